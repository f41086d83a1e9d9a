"""The pages and the README: their examples run, their commands and links are there, they are short."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import igam_tf

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
MEASUREMENTS = sorted((ROOT / "docs" / "lab").glob("*.md"))  # their commands are of their day
INCLUDED = [ROOT / "bench" / "README.md", ROOT / "igam_tf" / "audit" / "README.md"]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
EXTEND = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = {text.splitlines()[0]: text for text in EXTEND.split("\n## ")[1:] if "```python" in text}
PRINTED = {
    "A method": r"\{'L_xent': [\d.]+, 'L_diff': [\d.]+, 'cosine': -?[\d.]+\}"
    r"\n0 (\[.+\])\n0 (\1)\n1 (?!\1).+",
    "An attack": r"\{'clean': 100.0, 'corner20': 100.0, 'pgd5': 0.0, 'worst_case': 0.0\}",
    "An audit check": r"PASS the gradient is the better one on 100 % of the images",
    "A data set": r"\(16, 16, 3\) 4 100",
    "A student": r"plain-8 \(None, 10\)\nown_nets:flower_net \(None, 10\)",
}


def _run(*command: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _write_files(text: str, folder: Path) -> str:
    """Writes the blocks that name a file, and returns the other Python, in order."""
    for name, code in re.findall(r'```python title="(.+?)"\n(.*?)```', text, re.S):
        (folder / name).write_text(code, encoding="utf-8")
    return "".join(re.findall(r"```python\n(.*?)```", text, re.S))


def test_every_kind_of_extension_has_an_example():
    assert SECTIONS.keys() == PRINTED.keys()


def test_the_examples_of_extending_run(tmp_path):
    """In a process of their own, for they change registries."""
    for name in PRINTED:
        code = _write_files(SECTIONS[name], tmp_path)
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    run_all = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]: print('##', name); runpy.run_path(name + '.py')"
    )
    printed = _run(sys.executable, "-c", run_all, *PRINTED, cwd=tmp_path)
    for (name, expected), text in zip(PRINTED.items(), printed.split("## ")[1:], strict=True):
        assert re.fullmatch(rf"{name}\n{expected}\s*", text), text


def test_the_examples_of_pytorch_run(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    text = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
    (tmp_path / "example.py").write_text(_write_files(text, tmp_path), encoding="utf-8")
    printed = _run(sys.executable, "example.py", cwd=tmp_path).splitlines()
    assert printed[:2] == [
        "{'clean': 100.0, 'pgd20': 100.0, 'worst_case': 100.0}",
        "{'logits': 'PASS', 'finite_difference': 'PASS'}",
    ]
    assert "'cosine'" in printed[2]


@pytest.mark.slow
def test_the_lines_that_load_images_run(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir / "tensorflow_datasets"))
    text = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", text, re.S)
    code += "\nprint(x.dtype, x.shape, y.dtype, y.shape)"
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    printed = _run(sys.executable, "example.py", cwd=tmp_path)
    assert printed == "uint8 (10000, 32, 32, 3) int64 (10000,)\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A data set", "A student"])
def test_the_commands_of_extending_run(name, tmp_path):
    code = _write_files(SECTIONS[name], tmp_path)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    _run(sys.executable, "example.py", cwd=tmp_path)
    (command,) = re.findall(r"```\npython (-m igam_tf.*?)\n```", SECTIONS[name], re.S)
    _run(sys.executable, *command.replace("\\\n", "").split(), cwd=tmp_path)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)
def test_a_notebook_is_its_script_and_was_run(tutorial):
    cells = json.loads(tutorial.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    parts = re.split(r"^# %%", tutorial.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert code == [part.strip() for part in parts if not part.startswith(" [markdown]")]
    runs = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert runs == [*range(1, len(code) + 1)]
    outputs = [o["output_type"] for cell in cells for o in cell.get("outputs", ())]
    assert outputs
    assert "error" not in outputs


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(tutorial, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert "robust accuracy" in _run(sys.executable, str(tutorial), cwd=tmp_path)


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_first_pages_are_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_leads_to_algorithm_1():
    (line,) = re.findall(r"^\*\*Algorithm 1\*\*.*\n.*", (ROOT / "README.md").read_text(), re.M)
    code = (ROOT / re.search(r"\]\((.*?)\)", line)[1]).read_text(encoding="utf-8")
    names = re.findall(r"`(\w+)`", line)
    assert names
    assert all(f"def {name}(" in code for name in names)


def test_the_table_of_the_readme_is_that_of_the_results():
    """The same figures in the same order; the site's first page includes the README's."""
    readme, results = (
        [re.findall(r"[\d.]+", line) for line in _table(ROOT / name, "| N-FGSM |")]
        for name in ("README.md", "docs/results.md")
    )
    assert len(readme) == 12
    assert readme == results


def _table(page: Path, start: str) -> list[str]:
    """The rows of a table from the one that begins with `start` on."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[first:]))


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES, *MEASUREMENTS, *INCLUDED], ids=lambda p: p.name
)
def test_code_is_not_cut(page):
    """The site shows 88 characters of a line without scrolling."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 88]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *MEASUREMENTS], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Files by their paths beside the page; the site's build checks headings as well."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.name)
def test_flags_that_are_named_exist(page):
    """`--name` in a page is a flag of ours, or one of absl, TensorBoard or Slurm."""
    folders = (ROOT / name for name in ("igam_tf", "madry_models", "bench"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    known = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in files)))
    known |= {"logdir", "help", "version", "flagfile", "verbosity"}
    text = re.sub(r"#SBATCH.*|srun .*|pip .*", "", page.read_text(encoding="utf-8"))
    text = text.replace("--kill-on-bad-exit", "")
    named = set(re.findall(r"(?<![\w-])--(\w[\w-]*)", text))
    assert not {flag for flag in named if not {flag, flag.removeprefix("no")} & known}


def test_every_attack_is_where_attacks_are_listed():
    """What is lacking is named: of the kinds in `igam_tf.attacks`, of the names in judge.md."""
    attacks = igam_tf.attacks
    assert not [kind for kind in attacks.KINDS if kind not in attacks.__all__]
    assert not [kind for kind in attacks.KINDS if f"\n    {kind} " not in attacks.__doc__]
    rows = _table(ROOT / "docs" / "judge.md", "| `clean` |")
    listed = {name for row in rows for name in re.findall("`(.+?)`", row.split("|")[1])}
    assert not {*attacks.SHOWN.split(", ")} - listed


def test_every_public_name_is_on_an_api_page():
    """Functions and classes; each attack by its module, whose name is the function's."""
    folder = ROOT / "docs" / "api"
    pages = "\n".join(page.read_text(encoding="utf-8") for page in folder.glob("*.md"))
    shown = set(re.findall(r"^::: igam_tf\.(.+)", pages, re.M))
    wanted = {*igam_tf.__all__} - {"attacks", "__version__"}
    wanted |= {
        f"attacks.{name}.{name}" if name in igam_tf.attacks.KINDS else f"attacks.{name}"
        for name in igam_tf.attacks.__all__
        if callable(getattr(igam_tf.attacks, name))
    }
    assert not wanted - shown


def test_pictures_are_small():
    sizes = [
        path.stat().st_size
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".png", ".svg")
    ]
    assert sum(sizes) < 2_000_000
