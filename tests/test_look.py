"""The look before every figure: each kind of doubt on networks whose fault is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import wong2018

import igam_tf
from igam_tf import datasets
from igam_tf.attacks import AttackSpec
from igam_tf.common.errors import UserError
from igam_tf.evaluation.disagreement import disagreements, weak_loss
from igam_tf.evaluation.evaluate import logits_function, look_at
from igam_tf.experiments.resolve import described_transform, resolve, source_spec, target_spec
from igam_tf.formulas.statistics import mcnemar, paired_t
from igam_tf.method.conventions import parsed
from igam_tf.method.look import CIFAR, look, misplaced_range
from igam_tf.method.networks import LogProbabilities
from igam_tf.method.preprocess import Preprocess
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.storage.journal import model_identity, text_of_mask
from igam_tf.training.building import check_student, load_source_network, new_student

RNG = np.random.default_rng(0)
COLOURS = RNG.uniform(0.1, 0.9, (10, 3)).astype("float32")
Y = np.arange(200) % 10
X = np.clip(COLOURS[Y][:, None, None] + RNG.normal(0, 0.1, (200, 2, 2, 3)), 0, 1).astype("float32")


class Nearest(keras.Model):
    """The nearest of ten colours; takes `convention`, and passes what it sees through `twist`."""

    def __init__(self, convention="0..1", twist=lambda u: u, outputs=lambda z: z, order=None):
        super().__init__()
        mean, std, self.bgr = parsed(convention)
        self.mean, self.std = mean.astype("float32"), std.astype("float32")
        self.twist, self.outputs = twist, outputs
        self.order = np.arange(10) if order is None else order

    def call(self, x, training=False):
        u = x * self.std + self.mean
        u = self.twist(u[..., ::-1] if self.bgr else u)
        seen = tf.reduce_mean(u, (1, 2))[:, None]
        return self.outputs(-tf.reduce_sum((seen - COLOURS[self.order]) ** 2, 2))


def codes(model, **settings):
    settings = {"pixel_max": 1.0, "classes": 10, "eps": 0.1} | settings
    return [doubt.code for doubt in look(model, X * settings["pixel_max"], Y, **settings)]


CONVENTIONS = ("0..1", "0..255", "-1..1", "imagenet", "caffe", "0..1/bgr", "-1..1/bgr", CIFAR)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_convention_that_suits_is_named(convention):
    """Right where preprocess says so, in any range of the images; else a doubt that names it."""
    network = Nearest(convention)
    for pixel_max in (1.0, 255.0):
        right = igam_tf.Preprocessed(network, convention, pixel_max)
        assert codes(right, pixel_max=pixel_max) == []
    for called in ("0..1", "0..255", "imagenet"):
        given = Preprocess(called)(X).numpy()
        accuracy = (network(given).numpy().argmax(1) == Y).mean()
        model = igam_tf.Preprocessed(network, called)
        found = [d for d in look(model, X, Y, pixel_max=1.0, classes=10) if d.code[0] == "i"]
        assert bool(found) == (accuracy < 0.85), (called, accuracy)
        if found:
            named = found[0].remedy.split("preprocess=")[1].split(";")[0]
            best = network(Preprocess(named)(X)).numpy().argmax(1) == Y
            assert best.mean() >= (network(Preprocess(convention)(X)).numpy().argmax(1) == Y).mean()
            assert f"{100 * accuracy:.1f} % as it is called" in found[0].sentence


def test_preprocess_by_hand(tmp_path):
    network = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten()])
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    bgr = X[..., ::-1] * 255 - np.float32([103.939, 116.779, 123.68])
    for name, expected in {
        "imagenet": (X - mean) / std,
        "caffe": bgr,
        "-1..1": 2 * X - 1,
        "mean=0.5/std=0.25,0.5,1": (X - 0.5) / np.float32([0.25, 0.5, 1]),
    }.items():
        model = igam_tf.Preprocessed(network, name, 255.0)
        ours = model(X * 255)
        np.testing.assert_allclose(ours, expected.reshape(200, -1), rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    assert model_identity(loaded) == model_identity(model) != model_identity(network)
    with pytest.raises(
        UserError, match="images of 3 channels with preprocess=imagenet; received 1"
    ):
        igam_tf.Preprocessed(network, "imagenet")(X[..., :1])


@pytest.mark.parametrize("wrong", ["vgg", "mean=1/std=0", "mean=a/std=1", "mean=1,2/std=1,2,3", 3])
def test_conventions_that_are_none(wrong):
    with pytest.raises(UserError, match=rf"expected preprocess as one of .*; received {wrong!r}"):
        Preprocess(wrong)


@tf.custom_gradient
def _no_number_for_some(u):
    return u, lambda g: tf.where(u > 0.8, np.float32(np.nan), g)


def test_kinds_of_doubt():
    noise = keras.random.SeedGenerator(0)
    order = np.array([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    for expected, model in {
        "": Nearest(),
        " ": Nearest(outputs=lambda z: 1e-3 * z),
        "  ": Nearest(outputs=lambda z: 1e3 * z),
        "random ": Nearest(
            twist=lambda u: u + 0.01 * keras.random.normal((2, 2, 3), seed=noise),
            outputs=lambda z: tf.concat([z[:, :9], -1e9 + z[:, 9:]], 1),
        ),
        "random": Nearest(twist=lambda u: u + 0.01 * keras.random.normal((2, 2, 3), seed=noise)),
        "batch": Nearest(outputs=lambda z: z - tf.reduce_mean(z, 0, keepdims=True)),
        "batch ": Nearest(
            twist=lambda u: u + 0.05 * keras.random.normal((tf.shape(u)[0], 1, 1, 3), seed=7)
        ),
        "    ": Nearest(outputs=lambda z: z - 1e-3 * tf.reduce_mean(z, 0, keepdims=True)),
        "probabilities": Nearest(outputs=tf.nn.softmax),
        "probabilities ": LogProbabilities(Nearest()),
        "   ": LogProbabilities(Nearest(outputs=tf.nn.softmax)),
        "sigmoid": Nearest(outputs=lambda z: tf.sigmoid(8 * z + 1)),
        "not_finite": Nearest(outputs=lambda z: z / 0),
        "no_gradient": Nearest(twist=lambda u: tf.round(u * 16) / 16 + 0 * u),
        "no_gradient ": Nearest(twist=tf.stop_gradient),
        "blind_pixels": Nearest(twist=lambda u: tf.clip_by_value(u, 0.4, 0.6)),
        "nan_gradient": Nearest(twist=_no_number_for_some),
        "class_order": Nearest(order=order),
        "chance": Nearest(outputs=lambda z: 0 * z + 5 * tf.one_hot([0], 10)),
    }.items():
        found = codes(model)
        if expected.startswith("chance"):
            found = found[:1]
        assert found == expected.split(), expected
    together = Nearest(outputs=lambda z: z - tf.reduce_mean(z, 0, keepdims=True))
    assert codes(together, whole=True) == []
    one = Nearest(twist=lambda u: tf.where(u[:, :1, :1, :1] < 0.01, tf.stop_gradient(u), u))
    assert codes(one, eps=None) == codes(Nearest(twist=tf.stop_gradient), eps=None) == []
    for dead, expected in ((3, []), (8, ["no_gradient"])):  # of 200 images
        least = np.partition(X[:, 0, 0, 0], dead - 1)[dead - 1]
        some = Nearest(
            twist=lambda u, v=least: tf.where(u[:, :1, :1, :1] <= v, tf.stop_gradient(u), u)
        )
        assert codes(some, eps=1e-9) == expected
    with pytest.raises(UserError, match=r",10\] of the model"):
        codes(keras.Sequential([keras.Input((3, 3, 3)), keras.layers.Flatten()]))


def test_a_float16_model_that_is_another_in_float32():
    flat = np.repeat(COLOURS[None], 4, 0).transpose(0, 2, 1).reshape(12, 10)
    for scale, expected in ((1.0, []), (1e5, ["float16"])):
        layers = [keras.layers.Flatten(), keras.layers.Dense(10, dtype="mixed_float16")]
        model = keras.Sequential([keras.Input((2, 2, 3)), *layers])
        model.set_weights([scale * 2 * flat, -4 * scale * (COLOURS**2).sum(1)])
        assert codes(model, function=lambda m: logits_function(m, "inference")) == expected


def _beginning(*layers):
    rest = [keras.layers.Flatten(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((2, 2, 3)), *layers, *rest])


class Tempered(keras.Model):
    """Its first attribute is not what it calls first."""

    def __init__(self):
        super().__init__()
        self.temperature, self.logits = keras.layers.Rescaling(1e-3), keras.layers.Dense(10)

    def call(self, x, training=False):
        return self.temperature(self.logits(tf.reshape(x, [-1, 12])))


def test_a_range_that_the_first_layer_tells():
    rescaling, normalise = keras.layers.Rescaling, keras.layers.Normalization
    plain, of_bytes, of_signs = (
        _beginning(),
        _beginning(rescaling(1 / 255)),
        rescaling(1 / 127.5, -1),
    )
    standard = _beginning(normalise(mean=[0.5] * 3, variance=[0.05] * 3))
    image = keras.Input((2, 2, 3))
    functional = keras.Model(image, of_bytes(keras.layers.ZeroPadding2D(0)(image)))
    both = _beginning(rescaling(1 / 255), normalise(mean=[0.5] * 3, variance=[0.05] * 3))
    for model, right in (
        (plain, (1, 255)), (of_bytes, (255,)), (_beginning(of_signs), (255,)), (standard, (1,)),
        (both, (255,)), (_beginning(rescaling(2, -1)), (1,)), (_beginning(rescaling(255)), (1,)),
        (igam_tf.Preprocessed(of_bytes, "0..255"), (1, 255)),
        (igam_tf.Preprocessed(of_bytes, "0..1"), (255,)),
        (keras.Sequential([keras.Input((2, 2, 3)), functional, keras.layers.ReLU()]), (255,)),
        (Tempered(), (1, 255)),
    ):  # fmt: skip
        told = [pixel_max for pixel_max in (1, 255) if not misplaced_range(model, pixel_max)]
        assert tuple(told) == right
    trainer = igam_tf.PGDTraining(of_bytes, eps=0.1, step_size=0.1, steps=1, seed=0, pixel_max=1.0)
    trainer.compile("adam")
    with pytest.raises(UserError, match=r"made for another range\. Set pixel_max=255"):
        trainer.fit(X, Y, verbose=0)


def test_a_teacher_without_its_scale():
    source = igam_tf.Teacher(_beginning(keras.layers.Rescaling(1 / 255)), num_classes=10)
    scaled = igam_tf.Teacher(source.network, igam_tf.Scale(255.0), num_classes=10)
    for teacher, x, fits in ((source, X, False), (source, 255 * X, True), (scaled, X, True)):
        tuner = igam_tf.FineTune(teacher)
        tuner.compile("adam")
        if fits:
            tuner.fit(x[:8], Y[:8], verbose=0)
            continue
        with pytest.raises(UserError, match=r"put igam_tf\.Scale into the transform"):
            tuner.fit(x[:8], Y[:8], verbose=0)


@pytest.mark.parametrize(
    ("eps", "step_size", "message"),
    [
        (8, 2 / 255, "eps as a fraction .* received 8"), (8 / 255, 2.0, "step_size as a fraction"),
        (-8 / 255, 2 / 255, "eps"), (float("nan"), 0.1, "eps"),
    ],
)  # fmt: skip
def test_radii_of_adversarial_training(eps, step_size, message):
    with pytest.raises(UserError, match=message):
        igam_tf.PGDTraining(_beginning(), eps=eps, step_size=step_size, pixel_max=255.0)
    for eps, step_size in ((8 / 255, 10 / 255), (0, 0), (1, 1)):
        igam_tf.PGDTraining(_beginning(), eps=eps, step_size=step_size, pixel_max=255.0)


def test_a_trainer_with_preprocess_is_one_of_the_network_behind_it():
    y, settings = Y % 5, {"pixel_max": 255.0}

    def network():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(5, "softmax")]
        )

    more = {"from_probabilities": True, "eps": 8 / 255, "step_size": 4 / 255, "steps": 1, "seed": 0}
    ours = igam_tf.PGDTraining(network(), preprocess="caffe", **settings, **more)
    by_hand = igam_tf.PGDTraining(
        igam_tf.Preprocessed(network(), "caffe", 255.0), **settings, **more
    )
    again = igam_tf.PGDTraining.from_config(ours.get_config())
    start, losses = [], []
    for trainer in (ours, by_hand, again):
        trainer.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
        trainer.prepare(X * 255, y)
        start = start or trainer.get_weights()
        trainer.set_weights(start)
        losses.append(trainer.fit(X * 255, y, verbose=0, batch_size=100).history["loss"])
    assert losses[0] == losses[1] == losses[2]
    assert again.network.preprocess.convention == "caffe"
    with pytest.raises(UserError, match="expected pixel_max, the highest"):
        ClassifierTrainer(network(), preprocess="caffe")
    teacher = igam_tf.Teacher(network(), num_classes=5)
    with pytest.raises(UserError, match="Preprocess into its transform"):
        igam_tf.FineTune(teacher, preprocess="caffe", **settings)


def of_unit_pixels(shape, num_classes):
    """A student of the program's that takes -1..1, as far as its first layer tells."""
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    return keras.Sequential(layers)


def test_a_run_keeps_what_its_networks_take(tmp_path):
    chosen = {"source": "mnist", "target": "cifar10", "preset": "smoke", "teacher": "load"}
    named = {"student": f"{__name__}:of_unit_pixels", "preprocess": "imagenet"}
    config = resolve(chosen | named | {"teacher_preprocess": "-1..1"})
    check_student(config, target_spec(config))
    student = new_student(config, target_spec(config), "float32")
    x = np.full((1, 32, 32, 3), 255.0, "float32")
    expected = (1 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(student.preprocess(x)[0, 0, 0], expected, rtol=1e-6)
    assert student.pixel_max == 255.0
    words, between = described_transform(config)
    assert "--teacher_preprocess=-1..1" in words
    np.testing.assert_allclose(between(x), np.ones((1, 28, 28, 1)), rtol=1e-6)
    np.testing.assert_allclose(between(0 * x), -np.ones((1, 28, 28, 1)), rtol=1e-6)
    for wrong, message in (
        ({"preprocess": "vgg"}, "expected preprocess as one of .*; received 'vgg'"),
        ({"teacher_preprocess": "vgg"}, "expected teacher_preprocess as one of .*'vgg'"),
        ({"preprocess": "0..1", "pixel_max": 1.0}, "--preprocess or --pixel_max, which both"),
        ({"teacher_preprocess": "0..1", "teacher": "train"}, "with a teacher that is loaded"),
        ({"teacher_preprocess": "imagenet"}, "images of 3 channels .*; received 1"),
        (
            {"preprocess": "0..1", "student": "wrn-8-1"},
            r"--preprocess=0\.\.255, .*; received 0\.\.1",
        ),
        ({"preprocess": "mean=1,1/std=1,1", "student": named["student"]}, "images of 2 channels"),
    ):
        with pytest.raises(UserError, match=message):
            check_student(other := resolve(chosen | wrong), target_spec(other))
    path = str(tmp_path / "t.keras")
    teacher = of_unit_pixels((28, 28, 1), 10)
    igam_tf.Preprocessed(teacher, "-1..1", 1.0).save(path)
    assert load_source_network(path, source_spec(config), "0..1").pixel_max == 1.0
    with pytest.raises(UserError, match=r"--teacher_preprocess=0\.\.1, .*; received -1\.\.1"):
        load_source_network(path, source_spec(config), "-1..1")


def _row(name, left, n=200, kind="pgd", steps=20, step_size=0.025, loss="xent"):
    mask = np.arange(n) < left
    row = {"accuracy": 100 * left / n, "kind": kind, "steps": steps, "loss": loss, "eps": 0.1}
    return {name: row | {"step_size": step_size, "robust_mask": text_of_mask(mask)}}


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        (_row("pgd20", 54) | _row("apgd-t", 2, kind="apgd", step_size=0), True),  # the A4
        (_row("pgd20", 110) | _row("apgd-t", 99, kind="apgd", step_size=0), False),  # 5.5 points
        (_row("fgsm", 100, steps=1) | _row("pgd20", 120), True),
        (_row("fgsm", 120, steps=1) | _row("pgd20", 100), False),
        (_row("fgsm", 99, steps=1) | _row("pgd20", 100), False),
        (_row("fgsm", 100, steps=1) | _row("pgd5", 120, steps=5), False),
        (_row("fgsm", 100, steps=1) | _row("pgd20", 120, step_size=0.004), False),  # out of reach
        (_row("pgd20", 100) | _row("square", 85, kind="square", steps=5000), True),
        (_row("pgd20", 100) | _row("square", 99, kind="square", steps=5000), False),
        (_row("fgsm", 150, steps=1) | _row("square", 99, kind="square", steps=5000), False),
        (_row("clean", 200, loss=None, steps=0), False),
    ],
)  # fmt: skip
def test_attacks_that_disagree(rows, doubtful):
    found = disagreements(rows | {"worst_case": {"accuracy": 1.0}})
    assert (found.code if found else None) == ("attacks_disagree" if doubtful else None)


_ENSEMBLE = {"apgd-ce": "apgd", "apgd-t": "apgd", "fab-t": "fab", "square": "square"}


def _table(n, pgd20, *left, **others):
    """PGD-20's row, those of AutoAttack's attacks, each as many left of n, and others by kind."""
    rows = _row("pgd20", pgd20, n) if pgd20 is not None else {}
    for (name, kind), count in zip(_ENSEMBLE.items(), left, strict=False):
        rows |= _row(name, count, n, kind, steps=100, step_size=0)
    return rows | {
        k: v for name, count in others.items() for k, v in _row(name, count, n, steps=1).items()
    }


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        # Honest networks of docs/results.md: PGD-20, then all of AutoAttack's attacks.
        (_table(1000, 293, 285, 246, 246, 246), False),
        (_table(1000, 278, 270, 225, 225, 225), False),
        (_table(1000, 211, 205, 170, 170, 170, fgsm=260), False),
        (_table(1000, 158, 150, 105, 105, 105, fgsm=230), False),
        (_table(1000, 270, 262, 226, 226, 226), False),
        (_table(1000, 390, 380, 346, 346, 346), False),
        # Wong et al.'s networks: Square leaves one image less, or none.
        (_table(500, None, 108, 105, 105, 104), False),
        (_table(500, None, 478, 478, 478, 478), False),
        (_table(200, 30, 29, 29, 29, 29), False),
        (_table(200, 54, 2), True),  # APGD-CE finds what PGD-20 does not
        (_table(200, 54, 54, 2), True),
        (_table(1000, 270, 262, 226, 226, 180), True),
        (_table(1000, 270, 262, 226, 226, 226, fgsm=240), True),
    ],
)  # fmt: skip
def test_tables_of_the_whole_autoattack(rows, doubtful):
    """An honest network's is never marked; one where an attack finds far more, always."""
    assert bool(disagreements(rows)) == doubtful


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        (_row("pgd20", 100, step_size=0.002), True),
        (_row("fgsm", 100, steps=1, step_size=0.1) | _row("pgd5", 99, steps=5, step_size=0), True),
        (_row("pgd20", 100, step_size=0.002) | _row("apgd-ce", 99, kind="apgd"), False),
        (_row("pgd5", 100, steps=5, step_size=0.0034) | _row("pgd20", 99, step_size=0.0034), False),
        (_row("fgsm", 100, steps=1, step_size=0.1), False),
    ],
)
def test_steps_that_cannot_search_the_ball(rows, doubtful):
    found = disagreements(rows)
    assert (found.code if found else None) == ("short_steps" if doubtful else None)


@pytest.mark.parametrize(
    ("losses", "broken", "doubtful"),
    [
        (["xent"], 3, True),  # 3 of 50 looked at, of 50 left of 100: 3 points
        (["xent"], 2, False),
        (["cw", "xent"], 3, True),
        (["xent", "dlr"], 50, False),  # the table has it already
        ([], 50, False),
    ],
)
def test_what_a_targeted_attack_breaks_beyond_cross_entropy_and_margin(losses, broken, doubtful):
    specs = [AttackSpec(name="clean")]
    specs += [AttackSpec(name=f"pgd20 {loss}", steps=20, loss=loss) for loss in losses]
    tried = []

    def attack(spec, chosen):
        tried.append((spec.loss, spec.steps, spec.targets, len(chosen)))
        return np.arange(len(chosen)) >= broken

    specs.append(AttackSpec(name="square", kind="square", steps=5000, loss="cw"))
    found = weak_loss(specs, np.arange(100) < 50, attack, 10)
    assert (found.code if found else None) == ("weak_loss" if doubtful else None)
    assert tried == [("dlr", 20, 9, 50)] * ("xent" in losses and "dlr" not in losses)
    if losses == ["xent"]:
        for classes in (2, 3, 4):  # of two classes there is no third logit, of three no fourth
            weak_loss(specs, np.arange(300) < 250, attack, classes)
        assert tried[1:] == [("cw", 20, 0, 100), ("dlr", 20, 0, 100), ("dlr", 20, 3, 100)]


def test_a_class_that_the_cross_entropy_leads_away_from():
    """Of one pixel: class 1 is likelier and out of reach upwards, class 2 is within reach downwards.

    From the starts above -0.02 PGD climbs to 0.1, where the logit of class 1 is still 0.2 below.
    """
    model = keras.Sequential(
        [keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    slopes = np.array([[0.0, 10.0, -40.0, 0.0]])
    model.set_weights([slopes, np.array([0.0, -1.2, -3.6, -9.0]) - 0.5 * slopes[0]])
    x, y = np.full((60, 1, 1, 1), 0.5, np.float32), np.zeros(60, int)
    how = {"pixel_max": 1.0, "step_size": 0.025, "progress": False}
    for eps, true, doubts in ((0.1, 0, ["weak_loss"]), (0.08, 60, [])):
        report = igam_tf.evaluate(model, x, y, eps=eps, attacks="clean,pgd20", **how)
        left = 60 * report["results"]["pgd20"]["accuracy"] / 100
        assert (25 < left < 55) if true == 0 else left == true
        assert [doubt["code"] for doubt in report["doubts"]] == doubts
    exact = igam_tf.evaluate(model, x, y, eps=0.1, attacks="clean,apgd-t", **how)
    assert exact["results"]["apgd-t"]["accuracy"] == 0


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 2) == pytest.approx(56 / 1024)


@pytest.mark.parametrize(  # of published tables of Student's distribution
    ("t", "n", "p", "off"),
    [(4.604, 5, 0.005, 0.12), (4.297, 10, 0.001, 0.03), (3.234, 60, 0.001, 0.02)],
)
def test_paired_t_by_the_tables(t, n, p, off):
    gain = np.arange(n, dtype=float)
    gain += t * gain.std(ddof=1) / n**0.5 - gain.mean()
    assert paired_t(gain) == pytest.approx(p, rel=off)
    assert paired_t(-gain) == 1.0


def test_a_doubt_of_the_whole_report():
    report = igam_tf.evaluate(
        Nearest("-1..1"), X, Y, "clean,pgd2", eps=0.05, pixel_max=1.0, batch_size=200
    )
    assert "input_convention" in [doubt["code"] for doubt in report["doubts"]]
    right = igam_tf.evaluate(
        Nearest("-1..1"), X, Y, "clean,pgd2",
        eps=0.05, pixel_max=1.0, preprocess="-1..1", batch_size=200,
    )  # fmt: skip
    same = igam_tf.evaluate(Nearest(), X, Y, "clean,pgd2", eps=0.05, pixel_max=1.0, batch_size=200)
    assert (right["preprocess"], right["doubts"]) == ("-1..1", [])
    assert right["results"] == same["results"]


@pytest.mark.slow
@pytest.mark.parametrize("name", wong2018.EPS)
def test_networks_of_others_are_not_marked(name, data_dir, golden_dir):
    """Wong et al.'s networks and MadryLab's, as they are; in another range they are."""
    dataset = name.partition("_")[0].replace("cifar", "cifar10")
    folder = str(data_dir / "tensorflow_datasets")
    test = datasets.load(dataset, "test", source="tfds", data_dir=folder)
    settings = {"eps": wong2018.EPS[name], "seed": 0}
    others = {"mnist": golden_dir / "mnist", "cifar10": golden_dir / "cifar10_thin"}
    madry = igam_tf.load_madry(others[dataset] / "models" / "adv_trained")
    for model in (wong2018.network(name), madry):
        pixel_max = getattr(model, "pixel_max", 1.0)
        for norm in ("linf", "l2"):
            assert look_at(model, test, pixel_max=pixel_max, norm=norm, **settings) == []
    found = look_at(wong2018.network(name), test, pixel_max=255.0, **settings)
    assert {"input_convention", "input_range"} & {doubt.code for doubt in found}
