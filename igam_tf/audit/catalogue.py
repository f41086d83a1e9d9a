"""All checks of an audit by name; TensorFlow is not loaded for the names."""

import textwrap

from igam_tf.audit import attacking, differences, outputs, planted
from igam_tf.audit.checks import Check
from igam_tf.common.errors import UserError

CHECKS: dict[str, Check] = {
    **outputs.CHECKS,
    **differences.CHECKS,
    **attacking.CHECKS,
    **planted.CHECKS,
}


def documentation(name: str) -> str:
    """The section of README.md on a check, all of it from its entry."""
    check = CHECKS[name]
    parts = {
        "Threshold": check.threshold + ".",
        "Why": check.reason,
        "If it fails": check.advice,
        "Weight of a FAIL": f"{check.weight:g}",
    }
    meaning = f"**{check.title}.** {check.meaning}"
    listed = [f"- {part}: {text}" for part, text in parts.items()]
    return "\n".join([f"### {name}", "", _filled(meaning), "", *map(_filled, listed)])


def _filled(text: str) -> str:
    """Lines of 118 characters; a % stays with its number."""
    indent = "  " if text.startswith("-") else ""
    text = text.replace(" %", "\0%")
    return textwrap.fill(text, 118, subsequent_indent=indent, break_on_hyphens=False).replace(
        "\0", " "
    )


def check_names(text: str, setting: str = "checks") -> list[str]:
    """The names in "logits,square", in the order of `CHECKS`; "all" is all of them.

    Args:
        text: names with commas between.
        setting: what the user wrote them in, for the error.

    Raises:
        UserError: an unknown one.
    """
    names = list(CHECKS) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in CHECKS]:
        raise UserError(f"expected {setting} among {', '.join(CHECKS)}; received {unknown[0]!r}")
    return [name for name in CHECKS if name in names]
