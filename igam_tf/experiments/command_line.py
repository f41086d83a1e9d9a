"""One flag for each setting: unset ones come from the flagfiles that others name (`resolve`)."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from absl import flags

from igam_tf.common import devices
from igam_tf.common.errors import UserError
from igam_tf.common.program import default_and_range, heading
from igam_tf.experiments.config import GROUPS, Config

# The flags belong to the programs that ask for them, and show in their --help.
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
    """A flag for each setting, below the headings of `GROUPS`, and those of the process."""
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
        "workdir", None, "The run folder; runs/<source>-<target>-<method>-<preset> by default."
    )
    flags.DEFINE_string(
        "teachers", None,
        "Folder of the teachers that --teacher=train trains, each once for all runs with the same "
        "settings of it; teachers, beside the run folder, by default.",
    )  # fmt: skip
    flags.DEFINE_enum(
        "strategy",
        "auto",
        devices.STRATEGIES,
        "Devices to train on: default, one; mirrored, those of this machine; multiworker, those of all "
        "machines that the environment's TF_CONFIG names; auto, multiworker where there is a "
        "TF_CONFIG, else mirrored.",
    )
    flags.DEFINE_integer("replicas", 0, "Devices of this machine to train on; 0: all.")
    flags.DEFINE_bool(
        "wait", False, "Wait while another process works in the run folder; without it, an error."
    )


def process_flags(values: flags.FlagValues) -> dict[str, Any]:
    """Name of each flag that is no setting of the run -> its value."""
    names = ("workdir", "teachers", "strategy", "replicas", "wait")
    return {name: values[name].value for name in names}


def chosen_settings(values: flags.FlagValues) -> dict[str, Any]:
    """Name of each setting -> what its flag says; None: nothing.

    Raises:
        UserError: numbers in --disc_channels that are none.
    """
    chosen = {f.name: values[f.name].value for f in dataclasses.fields(Config)}
    if chosen["disc_channels"] is not None:
        try:
            chosen["disc_channels"] = tuple(map(int, chosen["disc_channels"]))
        except ValueError as error:
            raise UserError(
                f"expected --disc_channels as whole numbers with commas between; "
                f"received {','.join(chosen['disc_channels'])!r}"
            ) from error
    return chosen
