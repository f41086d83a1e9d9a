"""The house: which room may import which, and flags in programs alone."""

import ast
import importlib.metadata
from pathlib import Path

import pytest

import igam_tf

ROOT = Path(__file__).parents[1]
# A program is run, and imported by nobody.
PROGRAMS = {
    "igam_tf.train", "igam_tf.eval_pgd", "igam_tf.export", "igam_tf.report", "igam_tf.teacher_check",
    "igam_tf.audit.__main__", "igam_tf.figures.__main__", "igam_tf.reproduce.__main__",
    "igam_tf.pytorch.convert", "madry_models.fetch", "madry_models.convert",
}  # fmt: skip
# Room -> the rooms of igam_tf it may import, beside `common`, the one room that madry_models knows.
ROOMS = {
    "common": set(),
    "formulas": set(),
    "attacks": {"formulas"},
    "datasets": set(),
    "storage": set(),
    "method": {"attacks", "formulas"},
    "pytorch": {"method"},
    "evaluation": {"pytorch", "method", "attacks", "datasets", "storage", "formulas"},
    "experiments": {"pytorch", "method", "attacks", "datasets", "storage", "formulas"},
    "training": {
        "evaluation", "experiments", "pytorch", "method", "attacks", "datasets", "storage", "formulas"
    },
}  # fmt: skip
ROOMS_OF_PROGRAMS = ("audit", "figures", "reproduce")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("igam_tf", "madry_models")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports(path: Path) -> set[str]:
    """Every module of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in ("igam_tf", "madry_models")}


def _room(module: str) -> str:
    """The folder of igam_tf that a module lies in; "" for a program at the top, and for the package."""
    parts = module.split(".")
    known = {*ROOMS, *ROOMS_OF_PROGRAMS}
    return parts[1] if len(parts) > 1 and parts[1] in known else ""


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_a_program(module):
    # `fetch` is a function as well, which training calls; the others are programs alone.
    assert not _imports(MODULES[module]) & (PROGRAMS - {"madry_models.fetch"})


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("madry_models")])
def test_madry_models_knows_what_both_packages_share_alone(module):
    ours = {_room(name) for name in _imports(MODULES[module]) if name.startswith("igam_tf.")}
    assert ours <= {"common"}


@pytest.mark.parametrize("module", [m for m in MODULES if _room(m) in ROOMS])
def test_rooms_depend_downwards(module):
    room = _room(module)
    others = {_room(name) for name in _imports(MODULES[module]) if name.startswith("igam_tf.")}
    assert others <= ROOMS[room] | {room, "common", ""}


@pytest.mark.parametrize("module", [m for m in MODULES if _room(m) in ROOMS_OF_PROGRAMS])
def test_the_rooms_of_programs_are_their_own(module):
    others = {_room(name) for name in _imports(MODULES[module]) if name.startswith("igam_tf.")}
    assert others <= {*ROOMS, _room(module), ""}


def test_nothing_but_programs_and_rooms_stands_at_the_top():
    top = {path.stem for path in (ROOT / "igam_tf").iterdir() if path.name != "__pycache__"}
    programs = {name.split(".")[1] for name in PROGRAMS if name.startswith("igam_tf.")}
    assert top - {"py"} == programs | {*ROOMS, "__init__"}


# What programs share of their command lines: definitions, and how they are read and shown.
COMMAND_LINES = {
    "igam_tf.common.program", "igam_tf.experiments.command_line", "igam_tf.evaluation.command_line",
}  # fmt: skip


@pytest.mark.parametrize("module", sorted(MODULES.keys() - PROGRAMS))
def test_flags_stay_in_programs(module):
    """Only what defines flags imports them; their values are read in programs, or handed over."""
    tree = list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    imported = {
        alias.name
        for node in tree
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and node.module == "absl")
        for alias in node.names
    }
    modules = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    if module not in COMMAND_LINES:
        assert not {"flags", "absl.flags"} & {*imported, *modules}
    if module != "igam_tf.common.program":
        names = {getattr(node, "id", getattr(node, "attr", None)) for node in tree}
        assert "FLAGS" not in names


@pytest.mark.parametrize("module", MODULES)
def test_what_not_every_program_needs_is_imported_where_it_is_used(module):
    whole = {"igam_tf.audit.plots", "igam_tf.datasets.tiny_imagenet"}
    if module.startswith("igam_tf.figures") or module in whole:
        return
    at_once = [
        name
        for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    heavy = {"matplotlib", "tensorboard", "tensorflow_datasets"}
    assert not heavy & {name.split(".")[0] for name in at_once}


def test_one_version():
    version = igam_tf.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert version in importlib.metadata.version("igam_tf")
