"""Settings: who wins, what is refused, and flagfiles that agree with the table."""

import dataclasses
from pathlib import Path

import pytest

from igam_tf import experiments
from igam_tf.experiments import RELEASE, ROWS, Config, resolve
from madry_models.errors import UserError

FLAGFILES = sorted((Path(__file__).parents[1] / "flags").glob("*.flags"))


def test_paper_is_the_default_and_lambda_diff_is_brought_to_its_unit():
    config = resolve({})
    assert (config.fidelity, config.preset, config.student) == ("paper", "paper", "wrn-32-10")
    assert config.lambda_adv == 1.0
    # 100, summed over 32 images of J in 0..255, on a mean of J in 0..1
    assert config.lambda_diff == pytest.approx(100 * 32 / 65025)
    assert config.disc_every == 10
    assert config.disc_channels == (16, 32, 64, 128, 256)


def test_release_is_the_release():
    config = resolve({"fidelity": "release"})
    assert {name: getattr(config, name) for name in RELEASE} == RELEASE
    assert config.lambda_diff == 100.0


def test_the_user_wins_over_every_preset():
    chosen = {"fidelity": "release", "preset": "smoke", "lambda_diff": 7.0, "batch_size": 5}
    config = resolve(chosen | {"seed": None})
    assert config.lambda_diff == 7.0
    assert config.batch_size == 5
    assert config.seed == Config().seed
    assert config.train_steps == experiments.PRESETS["smoke"]["train_steps"]


def test_unknown_transfer():
    with pytest.raises(UserError, match=r"--source=mnist --target=cifar10.*--target=mnist"):
        resolve({"target": "mnist"})


def test_igam_start_beyond_the_end():
    with pytest.raises(UserError, match=r"within the 10 training steps; received 11"):
        resolve({"train_steps": 10, "igam_start": 11})


def test_every_preset_names_settings():
    names = {field.name for field in dataclasses.fields(Config)}
    for preset in (*experiments.PRESETS.values(), *ROWS.values(), RELEASE):
        assert preset.keys() <= names


def test_objective_takes_its_settings_from_the_config():
    config = resolve({"fidelity": "release", "lambda_adv": 3.0})
    objective = config.objective()
    assert objective.lambda_adv == 3.0
    assert objective.diff_reduction == "sum"


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda p: p.stem)
def test_flagfiles_name_settings_and_rows(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    flags = dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))
    assert flags.keys() <= {field.name for field in dataclasses.fields(Config)}
    assert (flags["source"], flags["target"]) in ROWS
    assert any("python -m igam_tf.train --flagfile=flags/" + path.name in line for line in lines)
