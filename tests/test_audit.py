"""The audit: honest networks pass, masked ones fail for their own reason; killed ones go on."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from html import escape
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.audit import __main__ as command_line
from igam_tf.audit import controls, outputs
from igam_tf.audit.attacking import normalisations
from igam_tf.audit.audit import CHECKS, _verdict, audit, audit_model, check_names
from igam_tf.audit.audited import BUDGETS, AttackResult, AuditedModel, joint
from igam_tf.audit.checks import FAIL, NOT_APPLICABLE, PASS, WARN, Finding, judge_excess
from igam_tf.audit.differences import relative_error
from igam_tf.audit.nested import nested_sources
from igam_tf.audit.page import html, markdown
from igam_tf.audit.planted import readout
from igam_tf.audit.plots import plots
from igam_tf.common.errors import UserError
from igam_tf.evaluation.evaluate import split_of_arrays
from igam_tf.formulas.losses import xent
from igam_tf.formulas.statistics import excess
from igam_tf.method.networks import LogProbabilities, features_of
from igam_tf.storage.journal import Journal
from madry_models import WideResNet

EPS = controls.EPS
# APGD takes its 100 steps from the attack's own table, and most checks look at nothing of it.
ALONE = dataclasses.replace(BUDGETS["quick"], ensemble=("clean",))
SMALL = dataclasses.replace(
    ALONE, steps=(3, 6), restarts=2, queries=20, random_points=4, batch_norm_steps=2,
    planted_images=4,
)  # fmt: skip
CHEAP = ("logits", "deterministic", "gradients", "iterative", "steps", "restarts", "eps")


@pytest.fixture
def command(command_of):
    return command_of(command_line)


@pytest.fixture
def alone(monkeypatch):
    """A quick audit without the ensemble; `test_command_on_a_keras_file` has it."""
    monkeypatch.setitem(BUDGETS, "quick", ALONE)


@pytest.fixture(scope="session")
def digits() -> datasets.Split:
    return datasets.load("mnist", "test", source="builtin", num=40)


@pytest.fixture(scope="session")
def standard() -> controls.SmallNetwork:
    return controls.trained(steps=200)


@pytest.fixture(scope="session")
def pgd_trained() -> controls.SmallNetwork:
    return controls.trained(eps=EPS, steps=150, attack_steps=3)


def _audited(model, split, **settings) -> AuditedModel:
    return AuditedModel(model, split, **({"eps": EPS, "progress": False} | settings))


def _statuses(report: dict) -> dict[str, str]:
    return {name: check["status"] for name, check in report["checks"].items()}


def _named(report: dict) -> dict:
    return {"name": "a network", "budget": "quick"} | report


@pytest.fixture(scope="session")
def honest_report(pgd_trained, standard, digits) -> dict:
    return _named(audit(_audited(pgd_trained, digits, sources={"plain": standard})))


# --- controls ------------------------------------------------------------------------------------


def test_control_pgd_trained_fails_nothing(honest_report):
    statuses = _statuses(honest_report)
    assert FAIL not in statuses.values(), honest_report["checks"]
    assert honest_report["headline"]["accuracy"] > 50
    assert [name for name, s in statuses.items() if s == NOT_APPLICABLE] == ["adaptive"]


@pytest.mark.parametrize(
    "names",
    [
        ("gradients", "iterative", "restarts", "square", "noise"),
        pytest.param(tuple(CHECKS), marks=pytest.mark.slow),
    ],
    ids=["some checks", "all checks"],
)
def test_control_standard_fails_nothing(standard, digits, names):
    budget = BUDGETS["quick"] if names == tuple(CHECKS) else ALONE
    report = audit(_audited(standard, digits, eps=2 * EPS, budget=budget), names=names)
    assert FAIL not in _statuses(report).values(), report["checks"]
    assert report["headline"]["accuracy"] == 0
    for name in ("square", "noise"):
        assert report["checks"][name]["status"] == NOT_APPLICABLE
        assert "no image is robust" in report["checks"][name]["figure"]


@pytest.mark.parametrize(
    ("name", "failing", "passing"),
    [
        ("quantised", ("gradients",), ("logits", "deterministic")),
        pytest.param("quantised", ("square", "eps", "planted"), (), marks=pytest.mark.slow),
        # Directions know no scale of the logits, so that saturation hides nothing any more.
        ("saturated", (), ("logits", "gradients", "losses", "finite_difference", "batch_norm")),
        ("noisy", ("deterministic",), ("logits", "gradients", "batch_norm")),
        ("shattered", ("linearity", "square", "planted"), ("gradients", "deterministic")),
        ("probabilities", ("logits",), ("deterministic", "gradients")),
        ("batch_statistics", ("batch_norm",), ("logits", "deterministic", "gradients")),
    ],
)
def test_control_masked(standard, digits, name, failing, passing):
    masked = getattr(controls, name)(standard)
    names = [name for name in CHECKS if name in failing + passing]
    # A black box is compared with APGD, too.
    strong = dataclasses.replace(ALONE, ensemble=("apgd-ce",), planted_images=8)
    budget = strong if "square" in failing else ALONE
    statuses = _statuses(report := audit(_audited(masked, digits, budget=budget), names=names))
    assert all(statuses[name] == FAIL for name in failing), report["checks"]
    assert all(statuses[name] in (PASS, WARN) for name in passing), report["checks"]
    assert report["verdict"].startswith("Not to be trusted") == bool(failing)


def test_gradient_attacks_are_not_compared_where_there_is_no_gradient(standard, digits):
    names = [name for name, check in CHECKS.items() if check.needs_gradient]
    assert names == ["iterative", "steps", "restarts", "step_size", "losses"]
    report = audit(_audited(controls.quantised(standard), digits, budget=SMALL), names=names)
    assert set(_statuses(report).values()) == {NOT_APPLICABLE}, report["checks"]
    assert list(plots(report)) == ["Every attack at the headline eps"]


def test_logits_that_are_cut_off_are_none(digits):
    """Logarithms of probabilities that end at a floor, of which the median distance says nothing."""
    z = 300 * np.random.default_rng(0).normal(size=(40, 10)).astype("float32")

    class Fixed(keras.Model):
        def __init__(self, floor):
            super().__init__()
            self.floor = floor

        def call(self, x, training=False):
            return tf.maximum(tf.constant(z)[: tf.shape(x)[0]], self.floor) + 0 * x[:, :1, 0, 0]

    for floor, status in ((-87.3, FAIL), (-1e9, PASS)):
        report = audit(_audited(Fixed(floor), digits, budget=SMALL), names=["logits"])
        assert _statuses(report) == {"logits": status}, report["checks"]


class AntiAdversary(keras.Model):
    """Steps away from the boundary, behind stop_gradient (Alfarra et al. 2022)."""

    def __init__(self, base):
        super().__init__(autocast=False)
        self.base, self.pixel_max, self.built = base, base.pixel_max, True

    def call(self, x, training=False):
        y, g = tf.argmax(self.base(x), 1), tf.zeros_like(x)
        for _ in range(2):
            with tf.GradientTape() as tape:
                tape.watch(g)
                loss = tf.reduce_sum(xent(self.base(x + g), y))
            g -= 0.15 * tf.sign(tape.gradient(loss, g))
        return self.base(x + tf.stop_gradient(g))


def test_a_smooth_wrong_gradient_is_found(pgd_trained, digits):
    """By its differences, and by the network within, whose adversarial examples hold for the whole."""
    names = ["logits", "deterministic", "gradients", "finite_difference", "transfer"]
    audited = _audited(AntiAdversary(pgd_trained), digits, eps=0.15, budget=SMALL)
    report = audit(audited, names=names)
    expected = dict.fromkeys(names, PASS) | {"finite_difference": FAIL, "transfer": FAIL}
    assert _statuses(report) == expected, report["checks"]
    assert report["verdict"].startswith("Not to be trusted")
    honest = audit(_audited(pgd_trained, digits, eps=0.15, budget=SMALL), names=["iterative"])
    masked = [report["rows"][f"pgd{n}"]["accuracy"] for n in SMALL.steps]
    assert min(masked) > honest["rows"]["pgd3"]["accuracy"] + 10


def _through(forward=tf.identity, backward=lambda dy: dy):
    """A layer with a forward and a backward pass of their own."""

    @tf.custom_gradient
    def layer(x):
        return forward(x), backward

    return layer


def _rows(x, every):
    return tf.cast(tf.range(x.shape[1]) % every == 0, x.dtype)[None, :, None, None]


@pytest.fixture(scope="module")
def tiny():
    """A small network with random weights, and images with the labels that it gives them."""
    keras.utils.set_random_seed(0)
    network = _functional()
    images = np.random.default_rng(0).uniform(0.1, 0.9, (12, 4, 4, 1)).astype(np.float32)
    return network, images, np.argmax(network(images), 1)


def _differences(model, images, labels) -> Finding:
    """What the check `finite_difference` finds, without an audit's headline."""
    split, _ = split_of_arrays(model, images, labels, eps=0.1, pixel_max=1.0, batch_size=100)
    return CHECKS["finite_difference"].judge(_audited(model, split))


@pytest.mark.parametrize(
    ("before", "scale", "status"),
    [
        pytest.param(lambda x: x, 1e-4, PASS, marks=pytest.mark.slow),
        (lambda x: x, 1e4, PASS),
        pytest.param(_through(backward=lambda dy: 3 * dy), 1, FAIL, marks=pytest.mark.slow),
        pytest.param(_through(backward=tf.ones_like), 1, FAIL, marks=pytest.mark.slow),
        (_through(forward=lambda x: tf.round(3 * x) / 3), 1e4, FAIL),
        (lambda x: tf.round(30 * x) / 30, 1, FAIL),
        (lambda x: x * (1 - _rows(x, 4)) + tf.stop_gradient(x * _rows(x, 4)), 1, FAIL),
        # Rounding of a narrow type is not held against the gradient, and hides no wrong one.
        (lambda x: tf.cast(tf.cast(x, tf.bfloat16), x.dtype), 1, PASS),
        (lambda x: tf.cast(_through(backward=tf.negative)(tf.cast(x, tf.bfloat16)), x.dtype), 1, FAIL),
    ],
)  # fmt: skip
def test_finite_differences(tiny, before, scale, status):
    network, images, labels = tiny

    class Whole(keras.Model):
        def call(self, x, training=False):
            return scale * network(before(x))

    found = _differences(Whole(), images, labels)
    assert found.status == status, found


def test_gradients_that_are_wrong_away_from_the_images_are_found(tiny):
    """A defence that knows the images, and follows its function in their half ball alone."""
    network, images, labels = tiny

    class Whole(keras.Model):
        def call(self, x, training=False):
            far = tf.reduce_max(tf.abs(x[:, None] - images[None]), (2, 3, 4))
            near = (tf.reduce_min(far, 1) < 0.06)[:, None, None, None]
            return network(tf.where(near, x, _through(backward=tf.negative)(x)))

    found = _differences(Whole(), images, labels)
    assert found.status == FAIL, found
    here, there = (
        np.array(found.data["relative_error"][where])
        for where in ("in the half ball", "at its corners")
    )
    assert np.median(here) < 0.1
    assert np.median(there) == pytest.approx(2, abs=0.1)


def test_relative_error_of_known_differences():
    """Two lengths, of which the better one counts, and rounding that is not held against J."""
    slopes = np.array([[[2.0, 8.0]], [[4.0, 8.0]]])
    said, slack = np.array([[4.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(relative_error(slopes, said, slack), [0.0, 0.25])
    unrelated = np.random.default_rng(0).normal(size=(2, 1, 4000, 1))
    error = relative_error(unrelated[0], unrelated[1, 0], np.zeros((1, 1)))
    assert error[0] == pytest.approx(2**0.5, abs=0.05)


def test_nested_networks_are_fed_as_the_whole_feeds_them(objects):
    """Another mean, range and order of channels are undone; what does not classify is left out."""
    network, split = objects

    class Whole(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"base": network}
            self.other = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
            self.built = True

        def call(self, x, training=False):
            bgr = 255 * x[..., ::-1] - [1.0, 2.0, 3.0]
            return self.parts["base"](bgr, training=training)

    x = split.images / np.float32(255)
    labels = np.argmax(Whole()(x), 1)
    split = dataclasses.replace(split, labels=labels)
    audited = AuditedModel(Whole(), split, pixel_max=1.0, progress=False)
    sources = nested_sources(audited)
    assert list(sources) == ["WideResNet inside"]
    logits = sources["WideResNet inside"].logits_fn(tf.constant(x))
    np.testing.assert_allclose(logits, audited.logits_fn(tf.constant(x)), rtol=1e-3, atol=1e-3)


def test_too_few_images_that_are_right_are_no_pass(standard, digits):
    """Labels of which two are the network's; an eps at which nothing changes."""
    predicted = tf.argmax(standard(digits.images / np.float32(255), training=False), 1).numpy()
    labels = np.where(np.arange(40) < 2, predicted, (predicted + 1) % 10)
    few = dataclasses.replace(digits, labels=labels)
    names = ["iterative", "restarts", "step_size", "losses", "square", "noise"]
    report = audit(_audited(standard, few, eps=1e-6, budget=SMALL), names=names)
    assert set(_statuses(report).values()) == {NOT_APPLICABLE}, report["checks"]
    found = report["checks"]["iterative"]["figure"]
    assert "only 2 of 40 images" in found
    assert report["verdict_status"] == NOT_APPLICABLE
    assert "clean accuracy is not above chance" in report["verdict"]


def test_a_weak_attack_misses_planted_boundaries(pgd_trained, digits):
    """PGD alone is weak; APGD, which the headline has too, is not."""
    budget = dataclasses.replace(ALONE, planted_images=8)
    report = audit(_audited(pgd_trained, digits, step_size=1e-6, budget=budget), names=["planted"])
    assert _statuses(report) == {"planted": WARN}
    found = report["checks"]["planted"]["data"]
    assert (found["by_pgd"], found["found"], found["by_square"]) == (0, found["planted"], 0)


# --- parts ---------------------------------------------------------------------------------------


def test_excess_by_hand():
    reference, suspect = np.ones(30, bool), np.ones(30, bool)
    suspect[:5] = False
    found = excess(reference, suspect)
    assert (found.net, found.n) == (5, 30)
    # (5.5 - 0.5) / 32 -+ 1.96 sqrt(6 - 25/32) / 32
    assert (found.low, found.high) == pytest.approx((0.0163, 0.2962), abs=1e-4)
    assert judge_excess(found, 0.01) == FAIL
    assert judge_excess(found, 0.1) == WARN  # 17 %, but perhaps less than 10
    assert judge_excess(found, 0.2) == PASS  # sure, but no more than an honest network may show
    assert judge_excess(excess(suspect, reference), 0.01) == PASS


@pytest.mark.parametrize(("broken", "status"), [(2, PASS), (3, WARN), (4, WARN), (5, FAIL)])
def test_few_examples_are_no_finding(broken, status):
    suspect = np.arange(30) >= broken
    assert judge_excess(excess(np.ones(30, bool), suspect), 0.01) == status


def test_readout_separates_and_stands_near_the_planted_point():
    rng = np.random.default_rng(0)
    inner, outer = rng.normal(size=(50, 8)), 6 * np.ones(8) / np.sqrt(8)
    w, b = readout(inner, outer)
    inside, outside = inner @ w + b, outer @ w + b
    assert inside.max() == pytest.approx(-1)
    assert 0 < outside < 0.02
    assert readout(inner, inner.mean(0)) is None


def test_results_come_back_from_json():
    row = AttackResult(np.array([True, False, True]), {"eps": 0.1, "loss": "xent"})
    content = json.loads(json.dumps(row.to_json()))
    assert content["robust_mask"] == "101"
    assert content["accuracy"] == pytest.approx(66.6667)
    again = AttackResult.from_json(content)
    np.testing.assert_array_equal(again.robust, row.robust)
    assert again.settings == row.settings


@pytest.fixture(scope="module")
def objects():
    """A WideResNet for 0..255 pixels, eight images, and the labels it gives them."""
    network = WideResNet(8, 1)
    network.build((None, 32, 32, 3))
    split = datasets.load("cifar10", "test", source="builtin", num=8)
    labels = tf.argmax(network(tf.cast(split.images, tf.float32), training=False), 1).numpy()
    return network, dataclasses.replace(split, labels=labels)


@pytest.mark.parametrize("input_layer", ["standardize", "unit_norm"])
def test_both_normalisations_have_the_networks_values(input_layer):
    network = WideResNet(8, 1, input_layer=input_layer)
    network.build((None, 16, 16, 3))
    x = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)), tf.float32)
    gradients = {}
    for name, logits_fn in normalisations(network).items():
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = logits_fn(x)
            first = z[:, 0]
        np.testing.assert_allclose(z, network(x, training=False), rtol=1e-3, atol=1e-4)
        gradients[name] = tape.gradient(first, x).numpy()
    # The exact gradient has no component along brightness; the constant one has.
    along = {name: np.abs(g.sum((1, 2, 3))).max() for name, g in gradients.items()}
    assert along["exact"] < 1e-3 * np.abs(gradients["exact"]).sum()
    assert along["constant"] > 10 * along["exact"]


def test_adaptive_and_transfer_checks_run_on_a_wide_resnet(objects):
    network, split = objects
    other = WideResNet(8, 1)
    other.build((None, 32, 32, 3))
    audited = _audited(
        network, split, eps=0.3 / 255, budget=SMALL, sources={"other": other, "itself": network}
    )
    report = audit(audited, names=["adaptive", "transfer"])
    names = ["pgd3, exact normalisation", "pgd3, constant normalisation", "pgd3 on itself"]
    assert set(names) <= report["rows"].keys()
    exact, default = audited.results[names[0]], audited.results["pgd3"]
    np.testing.assert_array_equal(exact.robust, default.robust)
    assert report["rows"]["pgd3 on other"]["on"] == "other"


def test_a_transfer_that_wins_fails(standard, digits):
    """Adversarial examples of the bare network against the same network behind rounding."""
    masked = controls.quantised(standard)
    report = audit(
        _audited(masked, digits, sources={"bare": standard}, budget=ALONE), names=["transfer"]
    )  # fmt: skip
    assert _statuses(report) == {"transfer": FAIL}


def test_headline_is_the_worst_case_of_every_attack(honest_report):
    headline, rows = honest_report["headline"], honest_report["rows"]
    assert {"fgsm", "square, 500 queries", "apgd-t", "20 random points", "pgd20 on plain"} <= set(
        headline["attacks"]
    )
    assert not any("batch statistics" in name for name in headline["attacks"])
    robust = joint({name: AttackResult.from_json(rows[name]) for name in headline["attacks"]})
    assert headline["accuracy"] == pytest.approx(100 * robust.mean())
    assert headline["accuracy"] <= min(rows[name]["accuracy"] for name in headline["attacks"])
    low, high = headline["ci95"]
    assert low < headline["accuracy"] < high
    assert "n = 40, l-inf eps 0.1 of the pixel range, worst case per image" in headline["text"]


def test_every_row_states_its_settings(honest_report):
    expected = {
        "accuracy", "n", "ci95", "kind", "eps", "eps_unit", "step_size", "steps", "restarts", "targets",
        "loss", "gradient", "on", "after", "batch_norm", "batch_size", "seed", "robust_mask",
    }  # fmt: skip
    for row in honest_report["rows"].values():
        assert row.keys() - {"points"} == expected


# --- reports ---------------------------------------------------------------------------------------


def test_html_is_one_page_that_fetches_nothing(honest_report):
    page = html(honest_report)
    assert page.count("<svg") == 4
    assert not re.search(r"<(script|link|img|iframe)\b|@import|src=|url\((?!#)", page)
    for check in honest_report["checks"].values():
        assert f"<code>{check['name']}</code><br>{check['title']}" in page
        assert all(escape(check[text]) in page for text in ("meaning", "threshold", "reason"))
    assert "builtin (synthetic)" in page
    assert "l-inf eps (fraction of the pixel range)" in page
    assert html(honest_report) == page


def test_plots_are_well_formed(honest_report):
    drawn = plots(honest_report)
    assert list(drawn) == [
        "Accuracy against eps", "Accuracy against PGD steps", "Do gradients agree in the neighbourhood?",
        "Batch-norm modes side by side", "Every attack at the headline eps",
    ]  # fmt: skip
    sentence = drawn.pop("Accuracy against PGD steps")  # of two points
    assert all(f"after {n} steps" in sentence for n in BUDGETS["quick"].steps)
    for svg in drawn.values():
        root = xml.etree.ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "accuracy (%)" in svg or "images" in svg  # the label of an axis


def test_markdown_has_every_check_and_attack(honest_report):
    text = markdown(honest_report)
    for name in honest_report["rows"]:
        assert f"| {name} |" in text
    assert text.count("\n| ") == len(honest_report["checks"]) + len(honest_report["rows"]) + 4


def test_a_report_without_figures_can_be_written(digits):
    class Broken(keras.Model):
        pixel_max = 1.0

        def call(self, x, training=False):
            return tf.fill((tf.shape(x)[0], 10), np.float32("nan"))

    names = ["logits", "gradients", "finite_difference", "iterative"]
    report = _named(audit(_audited(Broken(), digits, budget=SMALL), names=names))
    assert _statuses(report) == dict.fromkeys(names, NOT_APPLICABLE) | {"logits": FAIL}
    assert "NaN or infinite for 40 of 40" in report["checks"]["logits"]["figure"]
    assert report["headline"]["text"].startswith("no figure: expected finite logits")
    assert "No figure" in html(report)
    assert "no figure" in markdown(report)


# --- resuming ------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_a_killed_audit_goes_on_and_ends_the_same(standard, digits, tmp_path, monkeypatch):
    done, limit = [], [None]
    put = Journal.put

    def counted(journal, key, robust):
        if limit[0] is not None and len(done) >= limit[0]:
            raise _Killed
        put(journal, key, robust)
        done.append(key)

    monkeypatch.setattr(Journal, "put", counted)

    def run(folder, **settings) -> dict:
        folder.mkdir(exist_ok=True)
        audited = _audited(
            standard, digits, budget=SMALL, batch_size=15,
            journal=Journal(folder / "journal.jsonl", "a"),
        )  # fmt: skip
        return audit(audited, names=CHEAP, progress_file=folder / "finished.json", **settings)

    whole = run(tmp_path / "whole")
    needed = len(done)
    assert len(set(done)) == needed > 20

    done.clear()
    limit[0] = needed // 2  # in the middle of a check
    with pytest.raises(_Killed):
        run(tmp_path / "killed")
    limit[0] = None
    kept = json.loads((tmp_path / "killed" / "finished.json").read_text())["checks"]
    assert 0 < len(kept) < len(CHEAP)
    for name in kept:  # finished checks are not run again
        monkeypatch.setitem(CHECKS, name, dataclasses.replace(CHECKS[name], judge=None))
    again = run(tmp_path / "killed")
    assert json.dumps(again) == json.dumps(whole)
    assert len(done) == len(set(done)) == needed  # nor finished batches

    monkeypatch.setattr("igam_tf.evaluation.robust.robust_flags", None)
    for name in CHEAP:
        monkeypatch.setitem(CHECKS, name, dataclasses.replace(CHECKS[name], judge=None))
    audited = _audited(standard, digits, budget=SMALL, batch_size=15)
    finished = tmp_path / "whole" / "finished.json"
    assert audit(audited, names=CHEAP, progress_file=finished)["checks"] == whole["checks"]


def test_sigkill_midway_changes_no_byte_of_the_report(command, standard, tmp_path, capsys):
    """A process is killed, another run takes over from it, and a third is left alone."""
    standard.save(tmp_path / "model.keras")

    def arguments(folder: str) -> list[str]:
        return [
            f"--model={tmp_path / 'model.keras'}", f"--workdir={tmp_path / folder}",
            "--dataset=mnist", "--data=builtin", "--num_examples=6", "--eps=0.02", "--batch_size=2",
            "--budget=quick", "--checks=logits,iterative",
        ]  # fmt: skip

    process = subprocess.Popen(
        [sys.executable, "-m", "igam_tf.audit", *arguments("killed")], cwd=Path(__file__).parents[1],
        env=os.environ | {"TF_NUM_INTRAOP_THREADS": "1"},  # as here
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    journal = tmp_path / "killed" / "journal.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    kept = journal.read_bytes()
    assert not (tmp_path / "killed" / "report.json").exists()
    for folder in ("killed", "whole"):
        assert command(*arguments(folder)) == 0
        assert "robust accuracy" in capsys.readouterr().out
    assert len(journal.read_bytes()) > len(kept)
    assert journal.read_bytes().startswith(
        kept[: kept.rindex(b"\n") + 1]
    )  # gone on, not begun anew
    for name in ("report.json", "report.md", "report.html", "journal.jsonl"):
        ours, theirs = (tmp_path / folder / name for folder in ("killed", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), name


# --- the command ---------------------------------------------------------------------------------


QUICK = ("--dataset=mnist", "--data=builtin", "--num_examples=12", "--eps=0.1")


def test_command_on_a_keras_file(command, standard, tmp_path, capsys):
    standard.save(tmp_path / "plain.keras")
    arguments = [
        f"--model={tmp_path / 'plain.keras'}", f"--workdir={tmp_path / 'audit'}", *QUICK,
        "--checks=logits,transfer", f"--transfer_from={tmp_path / 'plain.keras'}",
    ]  # fmt: skip
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert "PASS  logits: Outputs are logits" in printed
    assert "robust accuracy" in printed
    report = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert report["subject"]["data"] == "builtin (synthetic)"
    assert report["subject"]["n"] == report["headline"]["n"] == 12
    assert "python" in report["versions"]
    assert {p.name for p in (tmp_path / "audit").iterdir()} == {
        ".lock", "config.json", "finished.json", "journal.jsonl", "report.html", "report.json",
        "report.md",
    }  # fmt: skip
    with pytest.raises(UserError, match="--seed was 0, is 1"):
        command(*arguments, "--seed=1")


def _as_a_function():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    model.build((None, 28, 28, 1))
    return model


def test_command_on_a_function(command, alone, tmp_path, capsys):
    command(
        f"--model={__name__}:_as_a_function", f"--workdir={tmp_path / 'audit'}", *QUICK,
        "--checks=deterministic,adaptive,planted",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "N/A   adaptive: " in printed
    assert "accuracy is not above chance" in printed


def _probabilities():
    network = controls.SmallNetwork()
    network.build((None, 28, 28, 1))
    return controls.probabilities(network)


def test_a_check_that_fails_is_the_exit_status(command, alone, tmp_path):
    arguments = (f"--workdir={tmp_path / 'audit'}", *QUICK, "--checks=logits")
    assert command(f"--model={__name__}:_probabilities", *arguments) == 2


def test_all_at_once_has_a_limit(standard, digits, monkeypatch):
    """Batch statistics of 1, and of at most LARGEST_BATCH; that of 1 is shown without being judged."""
    monkeypatch.setattr(outputs, "LARGEST_BATCH", 15)
    report = audit(_audited(standard, digits, budget=SMALL), names=["batch_norm"])
    check = report["checks"]["batch_norm"]
    modes = ["inference", "batch statistics of 1", "batch statistics of 15"]
    assert list(check["data"]["modes"]) == modes
    assert "at most 15 of the 40 images" in check["figure"]


def test_a_run_brings_its_teacher(command, alone, standard, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"target": "mnist", "data": "builtin"}))
    standard.save(run / "student.keras")
    standard.save(run / "teacher.keras")
    command(f"--model={run}", "--num_examples=12", "--checks=logits", "--eps=0.1")
    report = json.loads((run / "audit-quick" / "report.json").read_text())
    assert report["subject"]["transfer_from"] == ["teacher.keras"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere"], "expected --model as a run folder"),
        (["--model=json:nothing", "--dataset=mnist", "--data=builtin"], "expected module:function"),
        (["--model=no.such.module:f", "--dataset=mnist", "--data=builtin"], "module:function"),
        (
            ["--model=os:getcwd", "--dataset=mnist", "--data=builtin"],
            "a keras.Model; .* returns str",
        ),
        (["--model=nowhere", "--checks=pgd"], "expected --checks among .* received 'pgd'"),
        (["--model=nowhere", "--eps=8"], "expected --eps as a fraction"),
        (["nonsense"], "expected flags alone"),
    ],
)
def test_wrong_flags(command, arguments, message):
    with pytest.raises(UserError, match=message):
        command(*arguments)


def test_wrong_model_for_the_images(digits):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(UserError, match=r",10\] of the model.* \[40, 3\]"):
        _audited(model, digits)


def test_check_names():
    assert check_names("all") == list(CHECKS)
    assert check_names("square, logits") == ["logits", "square"]


# --- words ---------------------------------------------------------------------------------------


def _statuses_of(**statuses):
    return {name: {"status": status} for name, status in statuses.items()}


@pytest.mark.parametrize(
    ("statuses", "figures", "said"),
    [
        ({"logits": PASS, "eps": PASS}, {}, "None of 2 checks found a sign of masked gradients;"),
        (
            {"eps": PASS, "adaptive": NOT_APPLICABLE},
            {},
            "None of 1 .* Not tested: adaptive .did not",
        ),
        ({"eps": PASS}, {"robust": 0.0}, "Not robust: no image is robust to every attack"),
        (
            {"eps": FAIL, "square": FAIL},
            {"robust": 0.0},
            "Not robust: .*; 2 of 2 checks FAIL",
        ),
        ({"deterministic": FAIL}, {"robust": 0.0, "random": True}, "Not to be trusted: 1 of 1"),
        ({"logits": PASS}, {"clean_low": 0.05}, r"clean accuracy is not above chance \(10 %\)"),
        ({"logits": PASS, "square": WARN}, {}, "No check fails: 1 of 2 checks WARN"),
        ({"eps": PASS, "finite_difference": FAIL}, {}, "Not to be trusted: 1 of 2 checks FAIL"),
        ({"planted": FAIL}, {}, "Doubtful: 1 of 1 checks FAIL"),
        ({"losses": FAIL, "ensemble": FAIL}, {}, "Doubtful: 2 of 2 checks FAIL"),
        ({"planted": FAIL, "linearity": FAIL}, {}, "Not to be trusted: 2 of 2 checks FAIL"),
    ],
)
def test_verdict(statuses, figures, said):
    figures = {"robust": 40.0, "clean_low": 0.8, "chance": 0.1, "random": False} | figures
    found, verdict = _verdict(_statuses_of(**statuses), **figures)
    assert re.match(f".*{said}", verdict)
    assert f"; {len(CHECKS) - len(statuses)} of {len(CHECKS)} checks were not run." in verdict
    start = verdict.partition(":")[0]
    expected = {"Not to be trusted": FAIL, "Doubtful": WARN, "No check fails": WARN}
    assert found == expected.get(start, NOT_APPLICABLE)


def test_a_pass_is_one_of_all_checks():
    figures = {"robust": 40.0, "clean_low": 0.8, "chance": 0.1, "random": False}
    status, verdict = _verdict(_statuses_of(**dict.fromkeys(CHECKS, PASS)), **figures)
    assert status == PASS
    assert "not run" not in verdict
    found = _verdict(_statuses_of(**dict.fromkeys(CHECKS, PASS)), **figures, doubts=["batch"])
    assert found[0] == WARN
    assert found[1].startswith("Doubtful: batch")


def test_the_page_begins_with_the_verdict(honest_report):
    """Large and in its colour; the figure is struck where it is not to be trusted; FAIL comes first."""
    shown = html(honest_report)
    assert (
        shown.index('class="verdict PASS"')
        < shown.index('class="headline"')
        < shown.index("<table")
    )
    assert "<s>" not in shown
    failed = dict(honest_report["checks"])
    for name, status in (("planted", FAIL), ("square", FAIL), ("steps", WARN), ("logits", WARN)):
        failed[name] = failed[name] | {"status": status}
    report = honest_report | {"checks": failed, "verdict_status": FAIL, "verdict": "Not: a. B."}
    shown = html(report)
    assert 'class="verdict FAIL"' in shown
    assert "<s>Robust accuracy" in shown
    order = [
        shown.index(f'id="{name}"') for name in ("square", "planted", "logits", "steps", "eps")
    ]
    assert order == sorted(order)


def test_attacks_are_in_the_order_in_which_they_ran(honest_report):
    names = list(honest_report["rows"])
    order = [names.index(name) for name in ("pgd20", "pgd40", "apgd-t", "20 random points")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_on_checks_has_all_of_them(name):
    """README.md of the audit has each check's section, as its entry says it."""
    check = CHECKS[name]
    section = (
        f"### {name}\n\n**{check.title}.** {check.meaning}\n\n"
        f"- Threshold: {check.threshold}.\n"
        f"- Why: {check.reason}\n"
        f"- What to do: {check.advice}\n"
        f"- Weight of a FAIL: {check.weight:g}"
    )
    readme = (Path(command_line.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert section in readme, f"add to igam_tf/audit/README.md:\n{section}"


def test_what_was_judged_of_a_random_network_stands(standard, digits):
    """Run again with more steps, the first attack would have another figure on the same page."""
    audited = _audited(controls.noisy(standard), digits, budget=SMALL)
    first = audited.default
    assert audited.pgd_by_steps()["pgd3"] is first
    report = audit(audited, names=["deterministic"])
    assert report["headline"]["random"]
    assert "no upper bound" in report["headline"]["text"]


def test_a_crash_is_the_finding_of_its_line(standard, digits, monkeypatch):
    """An unexpected error neither ends the audit nor counts as a PASS."""

    def crash(_):
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(CHECKS, "eps", dataclasses.replace(CHECKS["eps"], judge=crash))
    report = _named(audit(_audited(standard, digits, budget=SMALL), names=["logits", "eps"]))
    assert _statuses(report) == {"logits": PASS, "eps": WARN}
    assert "ZeroDivisionError" in report["checks"]["eps"]["figure"]
    assert "ZeroDivisionError" in html(report)
    assert "by zero" in report["checks"]["eps"]["error"]


def test_the_expected_minutes_grow_with_the_budget_and_the_images(standard, digits):
    """Counted on a network of these: 887 gradients and 669 other passes an image, with `quick`."""
    assert 887 + 669 / 3 < BUDGETS["quick"].passes < 2 * 887
    assert BUDGETS["quick"].passes < BUDGETS["standard"].passes < BUDGETS["full"].passes
    audited = _audited(standard, digits, budget=SMALL)
    assert 0 < audited.expected_minutes() < 10


def test_arrays_are_audited_as_a_data_set_is(standard, digits, alone):
    names = "logits,deterministic,gradients"
    ours = audit_model(
        standard, digits.images, digits.labels, eps=EPS, pixel_max=1.0, checks=names, batch_size=40
    )
    theirs = _audited(standard, digits, batch_size=40, budget=ALONE)
    expected = audit(theirs, names=check_names(names))
    assert ours["checks"] == expected["checks"]
    assert ours["headline"] == expected["headline"]
    with pytest.raises(UserError, match=r"expected a budget among quick, .*; received 'tiny'"):
        audit_model(standard, digits.images, digits.labels, eps=EPS, pixel_max=1.0, budget="tiny")


# --- any model -----------------------------------------------------------------------------------


def _functional(softmax=False) -> keras.Model:
    x = keras.Input((4, 4, 1))
    h = keras.layers.Dense(6, activation="tanh")(keras.layers.Flatten()(x))
    z = keras.layers.Dense(3)(h)
    return keras.Model(x, keras.layers.Softmax()(z) if softmax else z)


@pytest.mark.parametrize("softmax", [False, True])
def test_features_are_the_input_of_the_last_dense_layer(softmax):
    model = _functional(softmax)
    x = np.random.default_rng(0).uniform(0, 1, (5, 4, 4, 1)).astype("float32")
    first = model.layers[2]
    expected = np.tanh(x.reshape(5, -1) @ first.kernel.numpy() + first.bias.numpy())
    np.testing.assert_allclose(features_of(model)(x), expected, atol=1e-6)
    np.testing.assert_allclose(features_of(LogProbabilities(model))(x), expected, atol=1e-6)


def test_features_of_models_that_have_none():
    class Own(keras.Model):
        def call(self, x, training=False):
            return x

    with pytest.raises(
        UserError, match=r"expected a dense layer, or igam_features\(x, training=\), in this Own"
    ):
        features_of(Own())
    pooled = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(UserError, match=r"expected a dense layer.* in this Sequential"):
        features_of(pooled)


def test_planted_check_of_a_functional_model():
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
    settings = {"eps": 0.3, "pixel_max": 1.0, "checks": "planted"}
    model = _functional()
    check = audit_model(model, images, np.arange(8) % 3, **settings)["checks"]["planted"]
    assert check["status"] in (PASS, WARN, FAIL)
    assert check["data"]["planted"] >= 3
    few = audit_model(model, images[:1], np.array([0]), **settings)["checks"]["planted"]
    assert few["status"] == NOT_APPLICABLE
