"""Networks of PyTorch: native ports and their weight files, and a bridge to the networks themselves.

PyTorch is imported only when asked for.
"""

from typing import Any

from igam_tf.common.errors import UserError


def import_torch() -> Any:
    """The module `torch`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"expected PyTorch, which runs such networks; {error}: pip install igam_tf[torch]"
        ) from error
    return torch
