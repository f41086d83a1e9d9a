"""One flag for each setting; `resolve` gives a value to those that are not set."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from absl import flags

from igam_tf.common import devices
from igam_tf.common.errors import UserError
from igam_tf.common.program import default_and_range, heading
from igam_tf.experiments.config import GROUPS, Config

# The flags are listed in the --help of the program that defines them by these functions.
flags.disclaim_key_flags()

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def fields_of(group: str) -> list[dataclasses.Field]:
    """The settings of a group, see `igam_tf.experiments.config.GROUPS`."""
    return [f for f in dataclasses.fields(Config) if f.metadata["group"] == group]


def define_settings() -> None:
    """Defines a flag for each setting, below its heading in `GROUPS`, and those of the process."""
    for group in GROUPS:
        with of_group(group):
            for field in fields_of(group):
                _define(field)
    with of_group("run"):
        _define_process()


def of_group(group: str) -> AbstractContextManager[None]:
    """Context: --help shows the flags that are defined in it below the group's heading."""
    return heading(f"{group}: {GROUPS[group]}")


def _define(field: dataclasses.Field) -> None:
    choices, (least, most) = field.metadata["choices"], field.metadata["within"]
    least = None if field.type in (str, bool) else least
    doc = field.metadata["doc"] + default_and_range(field.default, least, most)
    if choices:
        flags.DEFINE_enum(field.name, None, choices, doc)
    elif field.name == "disc_channels":
        flags.DEFINE_list(field.name, None, doc)
    else:
        _DEFINE[field.type](field.name, None, doc)


def _define_process() -> None:
    flags.DEFINE_string(
        "workdir", None, "The run folder; by default runs/<source>-<target>-<method>-<preset>."
    )
    flags.DEFINE_string(
        "teachers", None,
        "Folder of the teachers that --teacher=train trains; runs with the same teacher settings "
        "share one. By default the folder teachers beside the run folder.",
    )  # fmt: skip
    flags.DEFINE_enum(
        "strategy",
        "auto",
        devices.STRATEGIES,
        "Devices to train on. default: one device; mirrored: all of this machine; multiworker: "
        "all of the machines in the environment variable TF_CONFIG; auto: multiworker if "
        "TF_CONFIG is set, else mirrored.",
    )
    flags.DEFINE_integer(
        "replicas", 0, "Number of devices of this machine to train on; 0 means all."
    )
    flags.DEFINE_bool(
        "wait",
        False,
        "If another process works in the run folder, wait for it instead of ending with an error.",
    )


def process_flags(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that are not settings of the run, by name."""
    names = ("workdir", "teachers", "strategy", "replicas", "wait")
    return {name: values[name].value for name in names}


def chosen_settings(values: flags.FlagValues) -> dict[str, Any]:
    """Name of each setting -> the value of its flag, None if it is not set.

    Raises:
        UserError: --disc_channels is not a list of whole numbers.
    """
    chosen = {f.name: values[f.name].value for f in dataclasses.fields(Config)}
    if chosen["disc_channels"] is not None:
        try:
            chosen["disc_channels"] = tuple(map(int, chosen["disc_channels"]))
        except ValueError as error:
            raise UserError(
                "expected --disc_channels as whole numbers separated by commas; received "
                f"{','.join(chosen['disc_channels'])!r}"
            ) from error
    return chosen
