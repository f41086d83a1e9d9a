"""What a user gets: the files of the wheel and of the source distribution."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGFILES = {
    path.relative_to(ROOT / "flags").as_posix(): path for path in (ROOT / "flags").rglob("*.flags")
}
PACKAGES = ("igam_tf", "madry_models")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder of both distributions; the wheel is built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT],
        check=True, env=environment, cwd=folder, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_every_module_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    data = {"igam_tf/py.typed", "madry_models/py.typed", "igam_tf/audit/README.md"}
    data |= {f"igam_tf/flagfiles/{name}" for name in FLAGFILES}
    assert names == modules | data


def test_flagfiles_of_the_wheel_are_those_of_the_checkout(wheel):
    for name, path in FLAGFILES.items():
        assert wheel.read(f"igam_tf/flagfiles/{name}") == path.read_bytes()


def test_wheel_has_scripts_and_licence(wheel):
    (scripts,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    lines = wheel.read(scripts).decode().split("\n")
    found = {line.split(" = ")[0] for line in lines if line.endswith(":program")}
    names = ["audit", "eval", "export", "figures", "report", "reproduce", "teacher-check", "train"]
    assert found == {f"igam-{name}" for name in names} | {"madry-fetch", "madry-convert"}
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_source_distribution_has_what_its_tests_need(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile",
        "pyproject.toml", "flags/demo.flags", "tests/conftest.py", "tests/oldest.txt",
        "bench/step.py", "docs/results.md",
    }  # fmt: skip
