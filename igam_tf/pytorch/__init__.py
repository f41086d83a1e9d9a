"""Networks of PyTorch: native ports and their weight files, and a bridge to the networks themselves.

PyTorch is imported only when asked for.
"""

import sys
from typing import Any

from igam_tf.common.errors import UserError

INSTALL = "pip install -e .[torch], in the folder of igam_tf"


def import_torch() -> Any:
    """The module `torch`.

    Triton, which PyTorch's compiler and torchvision import, ends a process that has imported
    TensorFlow before, for both hold an LLVM. There they do without it.

    Raises:
        UserError: it is not installed.
    """
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"expected PyTorch, which runs such networks and reads their files; {error}: {INSTALL}"
        ) from error
    return torch
