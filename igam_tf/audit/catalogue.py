"""All checks of an audit by name; TensorFlow is not loaded for the names."""

from igam_tf.audit import attacking, differences, outputs, planted
from igam_tf.audit.checks import Check
from igam_tf.common.errors import UserError

CHECKS: dict[str, Check] = {
    **outputs.CHECKS,
    **differences.CHECKS,
    **attacking.CHECKS,
    **planted.CHECKS,
}


def check_names(text: str, setting: str = "checks") -> list[str]:
    """The names in "logits,square", in the order of `CHECKS`; "all" is all of them.

    Args:
        text: names separated by commas.
        setting: what the user wrote them in, for the error.

    Raises:
        UserError: an unknown one.
    """
    names = list(CHECKS) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in CHECKS]:
        raise UserError(f"expected {setting} among {', '.join(CHECKS)}; received {unknown[0]!r}")
    return [name for name in CHECKS if name in names]
