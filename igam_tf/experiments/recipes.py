"""Reads the files in flags/ as settings of a run."""

import dataclasses
from functools import cache
from pathlib import PurePath
from typing import Any

from igam_tf.common import flagfiles
from igam_tf.common.errors import UserError
from igam_tf.experiments.config import Config

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
KEY = ("source", "target", "transform")  # what identifies a transfer
Found = dict[str, tuple[Any, str]]  # name of a setting -> (its value, where it comes from)


def setting_of(name: str, text: str) -> Any:
    """Converts the text of a flag to the type of its setting.

    Raises:
        ValueError: the text is not such a value, or there is no such setting.
    """
    if name not in FIELDS:
        raise ValueError(f"there is no setting {name}")
    if name == "disc_channels":
        return tuple(map(int, text.split(",")))
    if FIELDS[name].type is bool:
        return {"true": True, "false": False}[text]
    return FIELDS[name].type(text)


@cache
def recipe(*names: str) -> Found:
    """The settings of the first of these files that exists; {} if none does.

    Args:
        names: paths within flags/ without their suffix, such as "presets/cpu".

    Raises:
        UserError: a line is not `--<setting>=<value>`.
    """
    folder = flagfiles.FOLDER
    paths = [path for name in names if (path := folder / f"{name}.flags").is_file()]
    found: Found = {}
    for line, place in flagfiles.read(paths[0], folder) if paths else ():
        name, equals, text = line.removeprefix("--").partition("=")
        try:
            if not equals:
                raise ValueError("it has no value")
            found[name] = setting_of(name, text), place
        except (ValueError, KeyError) as error:
            raise UserError(
                f"expected --<setting>=<value> in {place}; received {line} ({error})"
            ) from error
    return found


@cache
def transfers() -> dict[tuple[str, str, str], str]:
    """(source, target, transform) -> name of its file in flags/transfers/.

    The first file of a pair of data sets gives its default transform.
    """
    found = {}
    for path in flagfiles.names(flagfiles.FOLDER, "transfers/*"):
        name = PurePath(path).stem
        row = recipe(f"transfers/{name}")
        if {*KEY} <= row.keys():
            found[tuple(row[key][0] for key in KEY)] = name
    return found
