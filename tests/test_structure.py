"""The directions of imports, and flags in entry points alone (the layout of README.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = {
    "igam_tf.train", "igam_tf.eval_pgd", "igam_tf.report", "igam_tf.audit.__main__",
    "igam_tf.reproduce.__main__", "igam_tf.figures.__main__", "igam_tf.export",
    "madry_models.fetch", "madry_models.convert",
}  # fmt: skip
MAY_IMPORT = ("igam_tf.attacks", "igam_tf.formulas.losses", "igam_tf.formulas.gradients")
LEAVES = {
    "igam_tf.formulas.gradients",
    "igam_tf.method.transforms",
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("igam_tf", "madry_models")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in ("igam_tf", "madry_models")}


@pytest.mark.parametrize("module", MODULES)
def test_imports(module):
    imports = _imports(MODULES[module])
    if module.startswith("madry_models"):
        assert not any(name.startswith("igam_tf") for name in imports)
    if module in LEAVES:
        assert not imports
    if module.startswith("igam_tf.attacks"):
        ours = {name for name in imports if name.startswith("igam_tf")}
        assert all(name.startswith(MAY_IMPORT) for name in ours)
    # `fetch` is a function as well, which training calls; the others are programs alone.
    assert not imports & (ENTRY_POINTS - {"madry_models.fetch"})


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ENTRY_POINTS))
def test_flags_stay_in_entry_points(module):
    names = {
        n.id for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Name)
    }
    assert "FLAGS" not in names
