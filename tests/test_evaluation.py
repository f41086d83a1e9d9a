"""Accuracy under attack against closed forms; what is attacked, how often, and from where."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.attacks import AttackSpec, attack_names, attack_specs, random_inputs
from igam_tf.audit import audit as audit_module
from igam_tf.common.errors import UserError
from igam_tf.datasets import DatasetSpec, Split, in_pixel_range
from igam_tf.evaluation import evaluate as evaluate_module
from igam_tf.evaluation import loading as models_module
from igam_tf.evaluation.evaluate import (
    WORST_CASE,
    evaluate,
    evaluate_model,
    fraction_text,
    logits_function,
    model_report,
    table,
)
from igam_tf.evaluation.robust import robust_flags
from igam_tf.formulas.statistics import wilson_interval
from igam_tf.storage.journal import Journal, mask_of_text
from madry_models import WideResNet

RNG = np.random.default_rng(0)


def _specs(text: str, *, eps=0.1, step_size=0.02, restarts=1, loss="xent") -> list[AttackSpec]:
    return attack_specs(
        attack_names(text), eps=eps, step_size=step_size, restarts=restarts, loss=loss
    )


def _run(logits_fn, images, labels, text="clean,fgsm,pgd5", *, of=evaluate, **kwargs):
    attack = {k: kwargs.pop(k) for k in ("eps", "step_size", "restarts", "loss") if k in kwargs}
    settings = dict(pixel_max=1.0, seed=0, batch_size=16, batch_norm="inference", progress=False)
    return of(logits_fn, images, labels, attacks=_specs(text, **attack), **(settings | kwargs))


def _two_class(z_of):
    def logits_fn(x):
        z = z_of(x)
        return tf.stack([tf.zeros_like(z), z], axis=1)

    return logits_fn


WEIGHTS = RNG.normal(size=(3, 3, 1)).astype("float32")
IMAGES = RNG.uniform(0.2, 0.8, size=(60, 3, 3, 1)).astype("float32")  # eps 0.1 meets no bound
LINEAR = _two_class(lambda x: tf.reduce_sum((x - 0.5) * WEIGHTS, (1, 2, 3)))
MARGIN = ((IMAGES - 0.5) * WEIGHTS).sum((1, 2, 3))
LABELS = (MARGIN > 0).astype(int)
LABELS[::10] = 1 - LABELS[::10]  # six that are wrong clean
WRONG = np.isin(np.arange(60), np.arange(0, 60, 10))
# The worst of the l-inf ball moves the linear model's margin by eps times the l1 norm of w.
ROBUST = ~WRONG & (np.abs(MARGIN) > 0.1 * np.abs(WEIGHTS).sum())
# Gradients that turn with x, so that few steps from different starts end differently.
CURVED = _two_class(lambda x: tf.reduce_sum(tf.sin(20 * x) * WEIGHTS, (1, 2, 3)) + 0.5)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (5, 10, 0.23659, 0.76341),  # (0.5 + z2/20 -+ z sqrt(.025 + z2/400)) / (1 + z2/10)
        (0, 10, 0.0, 0.27753),  # z2 / (n + z2)
        (10, 10, 0.72247, 1.0),
        (9865, 10000, 0.98404, 0.98858),
        (1, 1, 0.20655, 1.0),
    ],
)
def test_wilson_interval_by_hand(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_of_nonsense(successes, n):
    with pytest.raises(ValueError, match=f"received {successes} of {n}"):
        wilson_interval(successes, n)


def test_linear_model_in_closed_form():
    results = _run(LINEAR, IMAGES, LABELS, "clean,fgsm,pgd20")
    assert 5 < ROBUST.sum() < 45
    assert results["clean"]["accuracy"] == 100 * 54 / 60
    for name in ("fgsm", "pgd20", WORST_CASE):
        assert results[name]["accuracy"] == pytest.approx(100 * ROBUST.mean(), rel=1e-12)
    masks = _run(LINEAR, IMAGES, LABELS, "pgd20", of=robust_flags)
    np.testing.assert_array_equal(masks["pgd20"], ROBUST)


@pytest.mark.parametrize("loss", ["xent", "cw"])
def test_every_row_states_its_settings(loss):
    results = _run(
        LINEAR, IMAGES, LABELS, "clean,fgsm,pgd3", restarts=2, loss=loss, seed=7, batch_size=50
    )
    common = {"batch_norm": "inference", "batch_size": 50, "seed": 7}
    common |= {"n": 60, "eps_unit": "l-inf, fraction of the pixel range"}
    per_attack = {
        "clean": {"eps": 0, "step_size": 0, "steps": 0, "restarts": 0, "loss": None},
        "fgsm": {"eps": 0.1, "step_size": 0.1, "steps": 1, "restarts": 1, "loss": loss},
        "pgd3": {"eps": 0.1, "step_size": 0.02, "steps": 3, "restarts": 2, "loss": loss},
    }
    for row in per_attack.values():
        row |= {"kind": "pgd", "targets": 0, "after": None}
    per_attack[WORST_CASE] = {"eps": 0.1, "attacks": ["clean", "fgsm", "pgd3"]}
    assert list(results) == list(per_attack)
    for name, row in results.items():
        figures = {"accuracy": row.pop("accuracy"), "ci95": row.pop("ci95")}
        if name != WORST_CASE:
            assert figures["accuracy"] == pytest.approx(
                100 * mask_of_text(row.pop("robust_mask")).mean()
            )
        assert row == per_attack[name] | common
        interval = wilson_interval(round(figures["accuracy"] * 0.6), 60)
        assert figures["ci95"] == pytest.approx([100 * bound for bound in interval], abs=1e-3)


def _hidden(x):
    """Pixel v, and a flag that says which attack finds the error; right everywhere else.

    Flag 0: wrong near v = 0.545, over which one step of 0.1 from 0.5 jumps. Flag 1: wrong from 0.595
    on, but the gradient points there at 0.5 alone.
    """
    v, flag = x[:, 0, 0, 0], x[:, 0, 0, 1]
    ridge = 0.015 - tf.abs(v - 0.545)
    slope = tf.where(tf.abs(v - 0.5) < 1e-4, v - 0.5, 0.5 - v)
    masked = tf.where(v > 0.595, 1.0, slope - 1)
    return tf.where(flag < 0.5, ridge, masked)


def test_rows_are_each_attacks_own_and_the_worst_case_is_per_example():
    images = np.full((8, 1, 1, 2), 0.5, np.float32)
    images[:4, ..., 1], images[4:, ..., 1] = 0.0, 1.0
    results = _run(_two_class(_hidden), images, np.zeros(8, int), "fgsm,pgd40", step_size=0.01)
    assert results["fgsm"]["accuracy"] == 50.0
    assert results["pgd40"]["accuracy"] == 50.0
    assert results[WORST_CASE]["accuracy"] == 0.0


# --- what is attacked, from where ----------------------------------------------------------------


def _counting(logits_fn):
    """The same function, and the number of examples it has been called on."""
    seen = tf.Variable(0)

    def counted(x):
        seen.assign_add(tf.shape(x)[0])
        return logits_fn(x)

    return counted, seen


@pytest.mark.parametrize("batch_size", [7, 60])
def test_broken_examples_are_not_attacked(batch_size):
    logits_fn, seen = _counting(LINEAR)
    _run(logits_fn, IMAGES, LABELS, "clean,pgd4", batch_size=batch_size)
    assert seen.numpy() == 60 + 60 + 54 * (4 + 1)  # scale, clean; four gradients and the verdict


def test_restarts_attack_what_still_stands():
    logits_fn, seen = _counting(LINEAR)
    _run(logits_fn, IMAGES, LABELS, "pgd20", restarts=3)
    # PGD always finds a linear model's worst point: the second restart has ROBUST left, and so on.
    assert seen.numpy() == 60 + 60 + 21 * (54 + 2 * ROBUST.sum())


def test_restarts_can_only_break_more():
    labels = tf.argmax(CURVED(IMAGES), 1).numpy()
    one, five = (
        _run(CURVED, IMAGES, labels, "pgd2", of=robust_flags, restarts=r)["pgd2"] for r in (1, 5)
    )
    assert not (five & ~one).any()
    assert five.sum() < one.sum()


def test_neither_batch_size_nor_company_changes_a_verdict():
    labels = tf.argmax(CURVED(IMAGES), 1).numpy()
    kwargs = dict(of=robust_flags, restarts=2, eps=0.02, step_size=0.005)
    masks = [
        _run(CURVED, IMAGES, labels, "pgd2", batch_size=size, **kwargs)["pgd2"]
        for size in (1, 7, 60)
    ]
    assert 5 < masks[0].sum() < 55
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    other = _run(CURVED, IMAGES, labels, "pgd2", seed=1, **kwargs)["pgd2"]
    assert (masks[0] != other).any()
    first = _run(CURVED, IMAGES[:20], labels[:20], "pgd2", **kwargs)["pgd2"]
    np.testing.assert_array_equal(first, masks[0][:20])


@pytest.mark.parametrize("batch_norm", ["inference", "batch"])
def test_a_longer_pgd_goes_on_where_a_shorter_one_ends(batch_norm, tmp_path):
    """One pass, with the masks of PGDs that run alone; also where a journal knows some of them."""
    labels = tf.argmax(CURVED(IMAGES), 1).numpy()
    steps = tf.Variable(0)

    def counted(x):
        steps.assign_add(1)
        return CURVED(x)

    kwargs = dict(of=robust_flags, eps=0.04, step_size=0.007, batch_size=60, batch_norm=batch_norm)
    names = ["pgd7", "fgsm", "pgd2", "pgd4"]
    alone = {name: _run(counted, IMAGES, labels, name, **kwargs)[name] for name in names}
    steps.assign(0)
    together = _run(counted, IMAGES, labels, ",".join(names), **kwargs)
    assert list(together) == names
    # The logits' scale and clean; fgsm; the longest, looked at three times.
    assert steps.numpy() == (1 + 1) + (1 + 1) + (7 + 3)
    assert len({mask.tobytes() for mask in alone.values()}) == 4
    for name, mask in alone.items():
        np.testing.assert_array_equal(together[name], mask)

    journal = Journal(tmp_path / "journal", "model")
    _run(counted, IMAGES, labels, "pgd4", journal=journal, **kwargs)
    for _ in range(2):
        some = _run(counted, IMAGES, labels, ",".join(names), journal=journal, **kwargs)
        assert all((some[name] == mask).all() for name, mask in alone.items())
    steps.assign(0)
    _run(counted, IMAGES, labels, ",".join(names), journal=journal, **kwargs)
    assert steps.numpy() == 1  # the logits' scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_start_is_uniform_and_each_examples_own(dtype):
    spec = AttackSpec(name="pgd", random_start=True)
    start = lambda indices, seed=0, restart=0: random_inputs(  # noqa: E731
        spec, (20, 20, 3), indices, eps=8.0, seed=seed, restart=restart, dtype=dtype
    )["noise"]
    noise = start(range(50))
    assert noise.dtype == dtype
    assert np.abs(noise).max() <= 8.0
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(8 / np.sqrt(3), rel=0.01)
    np.testing.assert_array_equal(start([31, 4]), noise[[31, 4]])
    for other in (start(range(50), seed=1), start(range(50), restart=1)):
        assert np.abs(np.corrcoef(other.ravel(), noise.ravel())[0, 1]) < 0.02
    assert np.abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_one_trace_serves_every_attack_and_batch_size():
    traces = []

    def logits_fn(x):
        if not tf.executing_eagerly():
            traces.append(x.shape)
        return LINEAR(x)

    _run(logits_fn, IMAGES, LABELS, "fgsm")
    alone = len(traces)
    traces.clear()
    _run(logits_fn, IMAGES, LABELS, "clean,fgsm,pgd2,pgd5", batch_size=7)
    assert len(traces) == alone


# --- pixels --------------------------------------------------------------------------------------


def test_bytes_are_scaled_and_floats_keep_their_precision():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(in_pixel_range(every, 255.0), every.astype(np.float32))
    np.testing.assert_allclose(in_pixel_range(every, 1.0), every / 255, rtol=1e-7)
    assert in_pixel_range(np.zeros(1, np.float16), 1.0).dtype == np.float32
    assert in_pixel_range(np.zeros(1), 1.0).dtype == np.float64


@pytest.mark.parametrize(("dtype", "seen"), [("float64", "float64"), ("float32", "float32")])
def test_the_attack_runs_in_the_precision_of_the_images(dtype, seen):
    dtypes = set()

    def logits_fn(x):
        dtypes.add(x.dtype.name)
        return tf.reshape(x, (-1, 9))[:, :2]

    _run(logits_fn, IMAGES.astype(dtype), LABELS)
    assert dtypes == {seen}


def test_byte_pixels_and_a_model_of_0_to_255():
    """The same images, weights and fractions in both ranges: the same verdicts."""
    images = RNG.integers(0, 256, size=(40, 3, 3, 1), dtype=np.uint8)
    wide = _two_class(lambda x: tf.reduce_sum((x / 255 - 0.5) * WEIGHTS, (1, 2, 3)))
    labels = tf.argmax(LINEAR(tf.constant(images / np.float32(255))), 1).numpy()
    one = _run(LINEAR, images, labels, of=robust_flags, pixel_max=1.0, eps=0.05)
    other = _run(wide, images, labels, of=robust_flags, pixel_max=255.0, eps=0.05)
    assert 0 < one["pgd5"].sum() < 40
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean,fgsn", "received 'fgsn' in 'clean,fgsn'"),
        ("pgd", "fgsm, pgd<steps>, .*; received 'pgd'"),
        ("pgd0", "received 'pgd0'"),
        ("pgd-1", "received 'pgd-1'"),
        ("clean,", "received '' in 'clean,'"),
        ("", "received '' in ''"),
        ("pgd5, pgd5", "expected each attack once; received 'pgd5' twice"),
    ],
)
def test_wrong_attacks(text, message):
    with pytest.raises(UserError, match=message):
        attack_names(text)


def test_attack_names_of_any_k():
    assert attack_names("clean, fgsm,pgd1,pgd1000") == ["clean", "fgsm", "pgd1", "pgd1000"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:9], "60 and 9"),
        (IMAGES[:0], LABELS[:0], "received 0 and 0"),
        (IMAGES * 255, LABELS, r"pixels in 0\.\.1,"),
        (IMAGES - 0.5, LABELS, r"pixels in 0\.\.1,"),
        (IMAGES * np.float32("nan"), LABELS, "finite pixels"),
    ],
)
def test_wrong_images(images, labels, message):
    with pytest.raises(UserError, match=message):
        _run(LINEAR, images, labels)


@pytest.mark.parametrize("attack", ["clean", "pgd5"])
def test_logits_that_are_not_finite_get_no_score(attack):
    """NaN has no largest entry, but an argmax: class 0 would be `right`."""

    def logits_fn(x):
        far = tf.reduce_sum(tf.abs(x - IMAGES[:1]), (1, 2, 3)) > (0.01 if attack == "pgd5" else -1)
        return tf.where(far[:, None], np.float32("nan"), LINEAR(x))

    labels = LABELS[1:2]
    with pytest.raises(UserError, match=f"under {attack} the model's are NaN or infinite for 1 of"):
        _run(logits_fn, IMAGES[:1], 1 - LABELS[:1] if attack == "pgd5" else labels, attack)


def test_unknown_loss_and_batch_norm():
    with pytest.raises(UserError, match="received 'l2'"):
        _specs("fgsm", loss="l2")
    with pytest.raises(UserError, match="inference or batch; received 'eval'"):
        logits_function(None, "eval")


# --- batch norm ----------------------------------------------------------------------------------


def _network(kind: str) -> keras.Model:
    if kind == "WideResNet":
        model = WideResNet(8, 1)
    else:
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Conv2D(4, 3),
                layers.BatchNormalization(),
                layers.Dropout(0.5, seed=1),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )
    model.build((None, 8, 8, 3))
    return model


@pytest.mark.parametrize("batch_norm", ["inference", "batch"])
@pytest.mark.parametrize("kind", ["WideResNet", "Sequential"])
def test_evaluation_changes_no_variable(kind, batch_norm):
    model = _network(kind)
    images, labels = RNG.integers(0, 256, (10, 8, 8, 3), np.uint8), np.arange(10)
    before = [v.numpy().copy() for v in model.variables]
    _run(
        logits_function(model, batch_norm), images, labels,
        pixel_max=255.0, batch_norm=batch_norm, batch_size=4,
    )  # fmt: skip
    assert len(before) > 5
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_batch_mode_is_the_model_on_batch_statistics():
    model = _network("WideResNet")
    x = tf.constant(RNG.uniform(0, 255, (6, 8, 8, 3)), tf.float32)
    ours = tf.function(logits_function(model, "batch"))
    np.testing.assert_allclose(ours(x), model(x, training=True), rtol=1e-4, atol=1e-5)
    assert np.abs(ours(x)[:3] - ours(x[:3])).max() > 1e-3  # neighbours matter
    inference = logits_function(model, "inference")
    np.testing.assert_allclose(inference(x)[:3], inference(x[:3]), rtol=1e-4, atol=1e-5)
    assert np.abs(ours(x) - inference(x)).max() > 1e-3


def test_batch_mode_attacks_whole_batches_in_order():
    """The broken ones stay: without them their neighbours' statistics would be others."""
    logits_fn, seen = _counting(LINEAR)
    results = _run(logits_fn, IMAGES, LABELS, "pgd4", batch_norm="batch", restarts=2, batch_size=7)
    assert seen.numpy() == 60 + 60 + 2 * 60 * 5
    assert results["pgd4"]["accuracy"] <= 90.0  # and are not counted as right
    assert results["pgd4"]["batch_norm"] == "batch"


# --- reports -------------------------------------------------------------------------------------


SPEC = DatasetSpec("cifar10", (8, 8, 3), 10, pixel_max=255.0, eps=8 / 255, step_size=2 / 255)
SPLIT = Split(RNG.integers(0, 256, (10, 8, 8, 3), np.uint8), np.arange(10), SPEC, "builtin", "test")


def _report(model=None, **kwargs):
    settings = dict(attacks=["clean", "fgsm", "pgd2"], batch_size=4, progress=False)
    return model_report(model or _network("WideResNet"), SPLIT, **(settings | kwargs))


@pytest.mark.parametrize(
    ("given", "eps", "step_size"),
    [
        ({}, 8 / 255, 2 / 255),
        ({"eps": 4 / 255}, 4 / 255, 1 / 255),
        ({"step_size": 0.01}, 8 / 255, 0.01),
        ({"eps": 0.5, "step_size": 0.25}, 0.5, 0.25),
    ],
)
def test_threat_model_is_the_data_sets_unless_said(given, eps, step_size):
    row = _report(_network("Sequential"), **given, num_examples=4)["results"]["pgd2"]
    assert row["eps"] == pytest.approx(eps, rel=1e-12)
    assert row["step_size"] == pytest.approx(step_size, rel=1e-12)
    assert row["n"] == 4


def test_pixel_range_is_the_models_own_else_the_data_sets():
    assert _report(_network("Sequential"))["pixel_max"] == 255.0
    model = _network("Sequential")
    model.pixel_max = 1.0
    assert _report(model)["pixel_max"] == 1.0


@pytest.mark.parametrize("n", [0, 11])
def test_as_many_examples_as_there_are(n):
    with pytest.raises(UserError, match=rf"within 1\.\.10, the size of cifar10 test; received {n}"):
        _report(num_examples=n)


def test_model_for_other_images_or_classes():
    narrow = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(UserError, match=r"model for images \[8, 8, 3\]"):
        _report(narrow)
    with pytest.raises(UserError, match=r",10\] of the model.* \[4, 192\]"):
        _report(keras.Sequential([keras.layers.Flatten()]))


def test_table():
    text = table(_report(seed=3, num_examples=8)).splitlines()
    assert text[0] == "cifar10 test, data builtin (synthetic): first n = 8 images"
    assert text[1] == (
        "l-inf eps 8/255 of the pixel range (8 in 0..255), loss xent, batch norm inference, "
        "batch size 4, seed 3"
    )
    assert " ".join(text[3].split()) == "attack accuracy % 95 % interval steps step size restarts"
    assert [line.split()[0] for line in text[4:8]] == ["clean", "fgsm", "pgd2", "worst_case"]
    assert text[8].startswith("DOUBTFUL: Clean accuracy is not above chance: ")
    assert text[5].split()[-3:] == ["1", "8/255", "1"]
    assert text[6].split()[-3:] == ["2", "2/255", "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.3, "0.3"),
        (0.01, "0.01"),
        (1.0, "1"),
        (1 / 3, "85/255"),
        (0.25 / 255, "0.25/255"),
    ],
)
def test_fraction_text(value, text):
    assert fraction_text(value) == text


# --- arrays --------------------------------------------------------------------------------------


def test_arrays_give_the_data_sets_report():
    model = _network("Sequential")
    expected = _report(model, seed=3)
    ours = evaluate_model(
        model, SPLIT.images, SPLIT.labels, "clean,fgsm,pgd2",
        eps=8 / 255, pixel_max=255.0, seed=3, batch_size=4,
    )  # fmt: skip
    assert ours["results"] == expected["results"]
    assert ours.keys() == expected.keys()
    assert ours["doubts"] == expected["doubts"]
    assert [doubt["code"] for doubt in ours["doubts"]] == ["chance"]
    assert ours["dataset"] == "arrays"


class Counted(keras.Model):
    """Counts how often it is run, in Python and in graphs."""

    def __init__(self):
        super().__init__()
        self.network = keras.Sequential(
            [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
        self.network.set_weights([np.full((16, 2), [-1.0, 1.0]), np.array([8.0, -8.0])])
        self.runs = tf.Variable(0)

    def call(self, x, training=False):
        self.runs.assign_add(1)
        return self.network(x)


@pytest.mark.parametrize(("n", "batches"), [(8, 1), (12, 2), (400, 20)])
def test_nothing_is_computed_twice_before_the_first_attack(monkeypatch, n, batches):
    """Each batch that is looked at once, the first twice, and its gradient at four points."""
    y = np.arange(n) % 2
    x = np.broadcast_to(y.reshape(-1, 1, 1, 1), (n, 4, 4, 1)) * np.float32(0.9)
    model, before = Counted(), []
    model.build((None, 4, 4, 1))
    attacks = evaluate_module.robust_flags
    monkeypatch.setattr(
        evaluate_module, "robust_flags",
        lambda *args, **kwargs: before.append(int(model.runs)) or attacks(*args, **kwargs),
    )  # fmt: skip
    model.runs.assign(0)
    report = evaluate_model(model, x, y, "clean,pgd2", eps=0.1, pixel_max=1.0, batch_size=10)
    assert report["doubts"] == []
    assert before[0] == batches + 2 + 4 * batches


_X, _Y = SPLIT.images, SPLIT.labels


@pytest.mark.parametrize(
    ("images", "labels", "settings", "message"),
    [
        (_X, _Y[:3], {}, "10 and 3"),
        (_X[:0], _Y[:0], {}, r"at least one; .*\[0, 8, 8, 3\]"),
        (_X, _Y + 10, {}, r"labels in 0\.\.9, .* 10"),
        (_X, np.eye(10)[_Y], {}, "labels .*float64"),
        (_X.astype(int), _Y, {}, "uint8; received int64"),
        (_X / 1.0, _Y, {"pixel_max": 1.0}, r"pixels in 0\.\.1, .*; received 0"),
        (_X / 255.0, _Y, {}, r"in 0\.\.255, .*pixel_max=1\.0"),
        (_X, _Y, {"eps": 8}, "eps as a fraction .* 8$"),
        (_X, _Y, {"eps": 40, "norm": "l2"}, r"13\.8564 in l2; received 40"),
        (_X, _Y, {"preprocess": "mean=0.5/std=0"}, "preprocess as one of .*; received 'mean=0.5"),
        (_X[0], _Y, {}, r"images .*\[\d+, \d+, 3\]"),
        (_X[..., :1], _Y, {}, "model for images .*WideResNet"),
        (_X, _Y, {"eps": -0.1}, "eps .*above 0.* -0.1"),
        (_X, _Y, {"pixel_max": 0}, "pixel_max above 0"),
        (_X, _Y, {"attacks": "bim"}, "received 'bim'"),
        (_X, _Y, {"eps": "8/255"}, "eps as a fraction .* '8/255'"),
        (_X, _Y, {"pixel_max": "255"}, "pixel_max above 0.* '255'"),
        (_X, _Y, {"norm": "l0"}, "norm among linf, l2, l1; received 'l0'"),
        (_X, _Y, {"restarts": 0}, "restarts .* 0"),
        (_X, _Y, {"step_size": -0.1}, "step_size above 0.* -0.1"),
        (_X, _Y, {"batch_size": 0}, "batch_size .* 0"),
        ([_X[0], _X[1, :4]], _Y[:2], {}, "arrays of images and labels"),
    ],
)
def test_arrays_that_do_not_go_together(images, labels, settings, message):
    with pytest.raises(UserError, match=message):
        evaluate_model(
            _network("WideResNet"), images, labels, **({"eps": 0.1, "pixel_max": 255.0} | settings)
        )


def test_a_model_that_no_graph_can_call_is_refused_and_a_py_function_is_attacked():
    x, y = np.float32([[[[0.7]]], [[[0.2]]]]), np.array([0, 1])

    class Called(keras.Model):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x, training=False):
            return self.function(tf.concat([x - 0.5, 0.5 - x], 3)[:, 0, 0])

    def in_python(z):
        return tf.ensure_shape(tf.py_function(lambda z: 3 * z, [z], tf.float32), [None, 2])

    report = evaluate_model(Called(in_python), x, y, "clean,pgd5", eps=0.25, pixel_max=1.0)
    assert [report["results"][name]["accuracy"] for name in ("clean", "pgd5")] == [100.0, 50.0]
    with pytest.raises(UserError, match=r"within tf\.function.*numpy"):
        evaluate_model(
            Called(lambda z: tf.constant(z.numpy())), x, y, "clean,pgd5", eps=0.25, pixel_max=1.0
        )


def test_the_example_runs():
    for module in (evaluate_module, audit_module, models_module):
        assert doctest.testmod(module).failed == 0
