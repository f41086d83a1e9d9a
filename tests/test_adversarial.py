"""Images that are kept: the worst of each example, checked without the attacks' code, and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from igam_tf import datasets, eval_pgd
from igam_tf.attacks import KINDS, AttackSpec
from igam_tf.attacks.spec import Kind
from igam_tf.common.errors import UserError
from igam_tf.datasets import Split
from igam_tf.evaluation import adversarial as adversarial_module
from igam_tf.evaluation import smallest as smallest_module
from igam_tf.evaluation.adversarial import distances, within
from igam_tf.evaluation.curve import curve
from igam_tf.evaluation.evaluate import evaluate_model, table
from igam_tf.storage import journal as journal_module
from igam_tf.storage.journal import mask_of_text

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(16, 2)).astype("float32")
W = (WEIGHTS[:, 0] - WEIGHTS[:, 1]).astype(float)  # the margin of class 0 is <w, x - 0.5>
IMAGES = RNG.uniform(0.2, 0.8, (30, 4, 4, 1)).astype("float32")
MARGIN = ((IMAGES.reshape(30, 16) - 0.5) @ W).astype(float)
LABELS = (MARGIN < 0).astype(int)
LABELS[:3] = 1 - LABELS[:3]  # wrong clean
EPS = 0.05


def linear(scale: float = 1.0) -> keras.Model:
    """Two classes, on pixels in 0..scale."""
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.set_weights([WEIGHTS / scale, -0.5 * WEIGHTS.sum(0)])
    return model


KEEP = {"return_adversarial": True}


def run(attacks: str, images=IMAGES, labels=LABELS, model=None, **settings):
    """The report; with return_adversarial (report, images)."""
    settings = {"eps": EPS, "pixel_max": 1.0} | settings
    report = evaluate_model(model or linear(), images, labels, attacks, **settings)
    return (report, report.pop("adversarial")) if "adversarial" in report else report


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_worst_image_of_a_linear_model_in_closed_form(norm, dual):
    """FGSM goes to the end of the ball, where the margin is eps times the dual norm of w lower."""
    eps = EPS if norm == "linf" else 4 * EPS
    report, found = run("clean,fgsm,pgd3", norm=norm, eps=eps, **KEEP)
    plain = run("clean,fgsm,pgd3", norm=norm, eps=eps)
    assert report == plain
    signs = np.where(LABELS == 0, 1, -1)
    margin = signs * ((found["x_adv"].reshape(30, 16) - 0.5) @ W)
    least = signs * MARGIN - eps * np.linalg.norm(W, dual)
    wrong = np.arange(30) < 3
    np.testing.assert_allclose(margin[~wrong], least[~wrong], atol=1e-5)
    np.testing.assert_array_equal(found["x_adv"][:3], IMAGES[:3])  # is itself
    assert set(found["attack"][:3]) == {"clean"}
    assert "clean" not in found["attack"][3:]
    robust = mask_of_text(report["results"]["fgsm"]["robust_mask"])
    np.testing.assert_array_equal(found["misclassified"], ~robust)
    assert 3 < found["misclassified"].sum() < 27
    assert (found["eps"], found["norm"], found["pixel_max"]) == (eps, norm, 1.0)
    np.testing.assert_array_equal(found["y"], LABELS)
    np.testing.assert_array_equal(found["predicted"], np.where(robust, LABELS, 1 - LABELS))


def test_whole_numbers_stay_bytes():
    images = np.uint8(np.round(IMAGES * 255))
    common = {"model": linear(255.0), "pixel_max": 255.0, "images": images, **KEEP}
    _, found = run("clean,fgsm", eps=12 / 255, **common)
    assert found["x_adv"].dtype == np.uint8
    change = found["x_adv"].astype(int) - images
    assert set(np.abs(change[found["attack"] == "fgsm"]).ravel()) == {12}
    assert run("clean,fgsm", eps=0.03, **common)[1]["x_adv"].dtype == np.float32


def test_distances_and_the_ball_by_hand():
    x, x_adv = np.zeros((1, 2, 1), np.float32), np.float32([[[0.3], [-0.4]]])
    for norm, length in (("linf", 0.4), ("l2", 0.5), ("l1", 0.7)):
        assert distances(x_adv, x, norm)[0] == pytest.approx(length)
        assert within(x_adv, x, eps=length, norm=norm)[0]
        assert not within(x_adv, x, eps=length - 1e-5, norm=norm)[0]


def _attack(monkeypatch, run):
    """An attack named "bad"."""
    kind = Kind(
        names="bad", shown="bad", draws=lambda *_: {}, run=run,
        spec=lambda name, threat: AttackSpec(
            name=name, kind="bad", norm=threat.norm, eps=threat.eps, steps=1, restarts=1, loss="xent"
        ),
    )  # fmt: skip
    monkeypatch.setitem(KINDS, "bad", kind)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (lambda x: 1 - x, "outside eps"),
        (lambda x: 0 * x - 1e-3, "outside the pixel range"),
    ],
)
def test_what_fails_the_check_does_not_count(monkeypatch, image, said):
    """Opposite images are misclassified, but not in the ball; those below 0 are no images."""
    _attack(monkeypatch, lambda logits_fn, x, y, spec, **_: image(x))
    eps = EPS if "eps" in said else 0.9
    plain = run("clean,bad", eps=eps)
    report, found = run("clean,bad", eps=eps, **KEEP)
    clean, bad = (report["results"][name]["accuracy"] for name in ("clean", "bad"))
    assert plain["results"]["bad"]["accuracy"] < bad == clean
    assert set(found["attack"]) == {"clean"}
    doubt = next(doubt for doubt in report["doubts"] if doubt["code"] == "unverified")
    assert said in doubt["sentence"]


def test_an_image_that_the_model_classifies_otherwise_when_called_directly(monkeypatch):
    logits = adversarial_module.logits_of_images
    flips = lambda model, x: -logits(model, x)  # noqa: E731
    monkeypatch.setattr(adversarial_module, "logits_of_images", flips)
    report, _ = run("clean", **KEEP)
    assert report["results"]["clean"]["accuracy"] == 10.0  # the three that are wrong
    assert "3 of 3 adversarial images fail the check (3 classified as labelled when" in str(
        report["doubts"]
    )


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def command(command_of, monkeypatch, tmp_path):
    """The command on thirty grey images of two classes; each call with flags of its own."""
    linear().save(tmp_path / "model.keras")
    spec = datasets.DatasetSpec(
        "mnist", (4, 4, 1), 2, pixel_max=1.0, eps=EPS, step_size=EPS / 4
    )  # fmt: skip
    monkeypatch.setattr(datasets, "spec_of", lambda *_, **__: spec)
    monkeypatch.setattr(datasets, "check_available", lambda *_, **__: None)
    monkeypatch.setattr(
        datasets, "load", lambda *_, **__: Split(IMAGES, LABELS, spec, "tfds", "test")
    )
    program = command_of(eval_pgd)

    def called(*arguments: str) -> int:
        eval_pgd.FLAGS.unparse_flags()
        for name in (
            "json",
            "save_adversarial",
            "adversarial",
            "curve",
            "eps",
            "batch_norm",
            "attacks",
        ):
            eval_pgd.FLAGS[name].value = eval_pgd.FLAGS[name].default
        return program(f"--model={tmp_path / 'model.keras'}", "--dataset=mnist", *arguments)

    return called


ATTACKS = ("--attacks=clean,pgd2,pgd4", "--restarts=2", "--batch_size=8")


class _Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bytes(command, tmp_path, monkeypatch):
    killed = (*ATTACKS, f"--save_adversarial={tmp_path / 'killed.npz'}", f"--json={tmp_path / 'j'}")
    command(*ATTACKS, f"--save_adversarial={tmp_path / 'whole.npz'}")
    stored, write = [], journal_module.replacing

    def dies(path):
        stored.append(path)
        if len(stored) == 9:
            raise _Killed
        return write(path)

    monkeypatch.setattr(journal_module, "replacing", dies)
    with pytest.raises(_Killed):
        command(*killed)
    assert not (tmp_path / "killed.npz").exists()
    stored[3].write_bytes(stored[3].read_bytes()[:-40])  # a damaged batch is attacked again
    monkeypatch.setattr(journal_module, "replacing", write)
    command(*killed)
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.keras", "killed.npz", "whole.npz", "j"}
    with np.load(tmp_path / "whole.npz") as file:
        assert len(file["x_adv"]) == 30
        assert within(file["x_adv"], IMAGES, eps=EPS, norm="linf").all()
        z = linear().predict(file["x_adv"], verbose=0)
        np.testing.assert_array_equal(z.argmax(1) != LABELS, file["misclassified"])


_DIES = """
import os, signal, sys
from igam_tf import eval_pgd
from igam_tf.storage import journal
write, count = journal.replacing, []
def dies(path):
    count.append(path)
    if len(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path)
journal.replacing = dies
eval_pgd.program()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "attacks", [(*ATTACKS, "--eps=0.1"), ("--attacks=clean,apgd-ce", "--norm=l1", "--eps=0.01")]
)
def test_sigkill(attacks, command_of, tmp_path):
    """A process is killed amid its images; another goes on, and a third is left alone."""
    keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)
    ]).save(tmp_path / "model.keras")  # fmt: skip

    def flags(name: str) -> list[str]:
        return [
            f"--model={tmp_path / 'model.keras'}", "--dataset=mnist", "--data=builtin", *attacks,
            "--num_examples=20", "--batch_size=8", f"--json={tmp_path / name}.json",
            f"--save_adversarial={tmp_path / name}.npz", "--allow_doubts",
        ]  # fmt: skip

    killed = subprocess.run(
        [sys.executable, "-c", _DIES, *flags("killed")], cwd=Path(__file__).parents[1],
        env=os.environ | {"TF_NUM_INTRAOP_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list((tmp_path / "killed.json.journal.arrays").iterdir())) == 4 + 1  # and the worst
    program = command_of(eval_pgd)
    for name in ("killed", "whole"):
        program(*flags(name))
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    ours, theirs = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("killed", "whole"))
    assert ours == theirs


# --- files of the challenges ----------------------------------------------------------------------


def own_challenge(model: keras.Model, x: np.ndarray, y: np.ndarray, eps: float, file: Path):
    """What pgd_attack.py and run_attack.py do, by NumPy and Keras: (accuracy in %, predictions)."""
    rng = np.random.default_rng(1)
    flat = x.reshape(len(x), -1)
    best = flat.copy()
    for _ in range(40):
        tried = np.clip(flat + eps * rng.choice([-1, 1], flat.shape), 0, 1).astype("float32")
        right = model.predict(tried.reshape(x.shape), verbose=0).argmax(1) == y
        best[~right] = tried[~right]
    np.save(file, best)
    x_adv = np.load(file)
    assert x_adv.shape == (len(x), x[0].size)
    assert np.abs(flat - x_adv).max() <= eps + 1e-4
    assert x_adv.min() >= -1e-4
    assert x_adv.max() <= 1.0001
    predicted = []
    for start in range(0, len(x), 64):
        batch = x_adv[start : start + 64].reshape(-1, *x.shape[1:])
        predicted.append(model.predict(batch, verbose=0).argmax(1))
    predicted = np.concatenate(predicted)
    return 100 * np.mean(predicted == y), predicted


def test_a_file_of_the_challenges_is_scored_alike(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    accuracy, predicted = own_challenge(linear(), IMAGES, LABELS, 0.1, tmp_path / "attack.npy")
    assert 10 < accuracy < 80
    flags = ("--eps=0.1", "--batch_size=7")
    assert command("--adversarial=attack.npy", "--json=out.json", *flags) == 0
    report = json.loads(Path("out.json").read_text())
    assert (report["accuracy"], report["n"]) == (pytest.approx(accuracy), 30)
    assert report["largest"] == pytest.approx(0.1, abs=1e-6)
    pred = np.load("pred.npy")
    assert pred.dtype == np.int64
    np.testing.assert_array_equal(pred, predicted)
    assert "largest perturbation 0.1 of 0.1 allowed, in 0..1" in capsys.readouterr().out

    command("--attacks=clean,pgd4", "--save_adversarial=own.npy", "--json=own.json", "--eps=0.1")
    own = np.load("own.npy")
    assert (own.shape, own.dtype) == ((30, 16), np.float32)
    command("--adversarial=own.npy", "--json=again.json", *flags)
    worst = json.loads(Path("own.json").read_text())["results"]["worst_case"]
    again = json.loads(Path("again.json").read_text())
    same = ("accuracy", "n", "ci95")
    assert [again[name] for name in same] == [worst[name] for name in same]
    with pytest.raises(UserError, match="to be a new file, or the score of the same file; eps was"):
        command("--adversarial=own.npy", "--json=again.json", "--eps=0.2")


def test_a_file_that_breaks_the_rules(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    low = IMAGES < 0.21
    for array, message in (
        (None, r"expected an \.npy file in --adversarial=.*; .*No such file"),
        (IMAGES[:9], r"an array \[30, 16\] or \[30, 4, 4, 1\] in .*; received \[9, 4, 4, 1\]"),
        (IMAGES + np.float32(0.051), r"perturbations of at most 0\.05 in 0\.\.1 in .*d 0\.051"),
        (np.where(low, -0.0002, IMAGES), r"pixels in 0\.\.1 in .*; received -0\.0002\.\."),
        (np.where(low, np.nan, IMAGES), r"pixels in 0\.\.1 in .*; received nan\.\.nan"),
        (IMAGES.astype(str), "numbers in --adversarial="),
        ({"x_adv": IMAGES}, r"received several arrays: --save_adversarial=<file>\.npy writes one"),
    ):
        if isinstance(array, dict):
            with open("attack.npy", "wb") as file:
                np.savez(file, **array)
        elif array is not None:
            np.save("attack.npy", array)
        with pytest.raises(UserError, match=message):
            command("--adversarial=attack.npy")
    assert not Path("pred.npy").exists()


# --- several radii -------------------------------------------------------------------------------


def test_several_radii_in_one_run(command, tmp_path, capsys):
    """Each as in a run of its own, in one table, one JSON and one plot."""
    radii, common = (0.02, 0.05, 0.1), ("--attacks=clean,fgsm,pgd3", "--batch_size=8")
    command(
        *common, "--eps=0.02,0.05,0.1", f"--json={tmp_path / 'all.json'}",
        f"--curve={tmp_path / 'curve.svg'}",
    )  # fmt: skip
    printed, bars = capsys.readouterr()
    assert "fgsm at eps 0.1:" in bars
    report = json.loads((tmp_path / "all.json").read_text())
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn == curve(report)
    assert "results" not in report
    assert [part["eps"] for part in report["radii"]] == [*radii]
    for eps, part in zip(radii, report["radii"], strict=True):
        command(*common, f"--eps={eps}", f"--json={tmp_path / str(eps)}.json")
        alone = json.loads((tmp_path / f"{eps}.json").read_text())
        assert part["results"] == alone["results"]
        worst = part["results"]["worst_case"]["accuracy"]
        assert f"{worst:.2f} (" in printed
    assert "l-inf eps 0.02, 0.05, 0.1 of the pixel range (0.02, 0.05, 0.1 in 0..1)" in printed
    for text in ("pgd3", "worst case", "l-inf eps"):
        assert text in drawn
    with pytest.raises(UserError, match=r"attacks was clean at eps 0.02,.* is clean at eps 0.02"):
        command(*common, "--eps=0.02,0.05", f"--json={tmp_path / 'all.json'}")
    (tmp_path / "all.json").write_text(json.dumps(report | {"smallest_eps": {}}))
    with pytest.raises(UserError, match="same settings; smallest_eps was True, is False"):
        command(*common, "--eps=0.02,0.05,0.1", f"--json={tmp_path / 'all.json'}")
    ours = run("fgsm", eps=[0.02, 0.1])
    theirs = [report["radii"][i]["results"]["fgsm"]["robust_mask"] for i in (0, 2)]
    assert [part["results"]["fgsm"]["robust_mask"] for part in ours["radii"]] == theirs


# --- the smallest eps of each image ---------------------------------------------------------------


def l1_distance(x: np.ndarray, margin: float) -> float:
    """To the plane of margin 0 within 0..1: pixels go to their ends, the largest |w| first."""
    length = 0.0
    room = np.where(-np.sign(margin) * W > 0, 1 - x.ravel(), x.ravel())
    for i in np.argsort(-np.abs(W)):
        step = min(room[i], abs(margin) / abs(W[i]))
        length, margin = length + step, abs(margin) - step * abs(W[i])
    return length


_SLOW = [pytest.param(norm, marks=pytest.mark.slow) for norm in ("l2", "l1")]


@pytest.mark.parametrize("norm", ["linf", *_SLOW])
def test_the_smallest_eps_of_a_linear_model_in_closed_form(norm):
    """The distance to the plane of margin 0: |<w, x - 0.5>| over the dual norm of w, but for bounds."""
    n = 11
    if norm == "l1":
        expected = np.array(
            [l1_distance(x, m) for x, m in zip(IMAGES[:n], MARGIN[:n], strict=True)]
        )
    else:
        expected = np.abs(MARGIN[:n]) / np.linalg.norm(W, {"linf": 1, "l2": 2}[norm])
    report = run("clean", IMAGES[:n], LABELS[:n], norm=norm, eps=0.1, smallest_eps=True)
    found = report["smallest_eps"]
    assert found["each"][:3] == [0, 0, 0]
    assert (found["misclassified_clean"], found["not_found"], found["n"]) == (3, 0, n)
    np.testing.assert_allclose(found["each"][3:], expected[3:], rtol=0.01)
    assert min(np.array(found["each"][3:]) / expected[3:]) > 1 - 1e-4
    ordered = sorted([0, 0, 0, *expected[3:]])
    assert found["median"] == pytest.approx(ordered[5], rel=0.01)  # at least half are not above
    assert found["quantiles"]["0.05"] == 0
    assert sum(found["histogram"]["counts"]) == n - 3
    assert sum(found["found_by"].values()) == n - 3
    assert found["found_by"]["fab"] > 0
    assert f"median {found['median']:.4g}\n" in table(report)


def test_bisection_alone_and_images_without_a_finding(monkeypatch):
    """Without FAB, APGD is within a step of 1 %; where every image is of one class, nothing is found."""
    monkeypatch.setattr(smallest_module, "fab", lambda logits_fn, x, y, **_: x)
    images, labels = IMAGES[:8], LABELS[:8]
    found = run("clean", images, labels, smallest_eps=True)["smallest_eps"]
    expected = np.abs(MARGIN[:8]) / np.abs(W).sum()
    np.testing.assert_allclose(found["each"][3:], expected[3:], rtol=0.011)
    assert found["found_by"] == {"fab": 0, "apgd": 5}
    one = linear()
    one.layers[-1].bias.assign([1e3, 0])
    labels = np.where(np.arange(8) < 3, 1, 0)
    found = run("clean", images, labels, model=one, smallest_eps=True)["smallest_eps"]
    assert found["each"] == [0.0] * 3 + [None] * 5
    assert (found["not_found"], found["misclassified_clean"]) == (5, 3)
    assert (found["median"], found["quantiles"]["0.25"]) == (None, 0)


def test_success_is_of_checked_images_too():
    """With targets, the images that reach the class are those of a run without the check."""
    attacks, common = "clean,pgd3,apgd-ce", {"targets": "1", "eps": 0.1}
    report, found = run(attacks, **common, **KEEP)
    assert report == run(attacks, **common)
    assert report["results"]["pgd3"]["success"] > 0
    assert found["misclassified"].sum() > 3


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save_adversarial=x.png"], r"<file>\.npz or <file>\.npy; received 'x\.png'"),
        (["--save_adversarial=/no/x.npz"], "expected --save_adversarial=/no/x.npz to be writable"),
        (
            ["--save_adversarial=x.npz", "--batch_norm=batch"],
            "batch norm inference where adversarial images are kept; received batch",
        ),
        (["--save_adversarial=x.npz", "--eps=0.1,0.2"], r"one eps where .*; received \[0.1, 0.2\]"),
        (["--adversarial=x.npy", "--save_adversarial=y.npy"], "alone; received --save_adversarial"),
        (["--adversarial=x.npy", "--eps=0.1,0.2"], "alone; received several --eps"),
        (
            ["--adversarial=x.npy", "--attacks=pgd5", "--targets=1"],
            "alone; received --attacks=pgd5, --targets=1",
        ),
        (["--eps=0.1,0.1"], r"expected each eps once; received \[0.1, 0.1\]"),
        (["--eps=0.1,"], "expected --eps as a fraction of the pixel range"),
        (["--curve=x.svg", "--eps=0.1"], "expected several --eps with --curve; received 0.1"),
        (["--smallest_eps", "--batch_norm=batch"], "batch norm inference where adversarial images"),
        (["--curve=x.png", "--eps=0.1,0.2"], r"expected --curve=<file>\.svg; received 'x\.png'"),
    ],
)
def test_wrong_uses(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command(*arguments)
