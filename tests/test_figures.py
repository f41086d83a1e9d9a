"""Figures: every number against a closed form of a linear model, and the command from end to end."""

import dataclasses
import io
import itertools
import json
import subprocess
import sys
from xml.etree import ElementTree

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf

from igam_tf.common.errors import UserError
from igam_tf.common.files import write_json
from igam_tf.datasets import DatasetSpec, Split, builtin
from igam_tf.figures import __main__ as figures
from igam_tf.figures import drawing, measuring
from igam_tf.figures.composing import Composer, FigureSettings
from igam_tf.figures.measuring import DrawnModel, Plane
from igam_tf.storage.journal import model_identity
from madry_models import WideResNet

SPEC = DatasetSpec("tiny", (2, 2, 1), 3, pixel_max=255.0, eps=8 / 255, step_size=2 / 255)
RNG = np.random.default_rng(0)
W = RNG.normal(0, 0.01, (4, 3))
BIAS = np.array([0.3, 0.0, -0.2])


def _linear(weights, bias) -> keras.Model:
    """logits = x W + bias, of images in 0..255."""
    model = keras.Sequential(
        [keras.Input(SPEC.image_shape), keras.layers.Flatten(), keras.layers.Dense(len(bias))]
    )
    model.set_weights([weights, bias])
    return model


def _split(images) -> Split:
    images = np.reshape(np.uint8(images), (-1, *SPEC.image_shape))
    return Split(images, np.arange(len(images)) % 3, SPEC, "tfds", "test")


def _softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def linear() -> DrawnModel:
    return DrawnModel("linear", _linear(W, BIAS), SPEC.pixel_max)


IMAGES = RNG.integers(0, 256, (measuring.BATCH * 2 + 3, 4))  # three batches, the last one short


# --- measuring -------------------------------------------------------------------------------------


def _j_by_hand(weights, bias, images, labels, of="xent"):
    """[n,4] per unit of pixels in 0..1."""
    p = _softmax(images @ weights + bias)
    true = np.eye(3)[labels]
    d_logits = p - true if of == "xent" else (p * true).sum(1, keepdims=True) * (true - p)
    return 255 * d_logits @ weights.T


@pytest.mark.parametrize("of", ["xent", "softmax"])
def test_sensitivity_of_a_linear_model(linear, of):
    split = _split(IMAGES)
    j, alpha, rho = measuring.sensitivity(linear, split, input_gradient=of)
    expected = _j_by_hand(W, BIAS, IMAGES, split.labels, of)
    assert j.dtype == np.float32
    np.testing.assert_allclose(j.reshape(-1, 4), expected, rtol=1e-4, atol=1e-6)
    logits = IMAGES @ W + BIAS
    second, first = np.argsort(logits)[:, 1:].T
    g = (W[:, first] - W[:, second]).T
    norm = np.linalg.norm(g, axis=1)
    margin = np.ptp(np.sort(logits)[:, 1:], axis=1)
    np.testing.assert_allclose(rho, margin / norm / 255, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        alpha, np.abs((IMAGES * g).sum(1)) / norm / 255, rtol=1e-4, atol=1e-6
    )


def test_statistics():
    values = np.float32([10, 1, 4, 2, 3])
    found = measuring.statistics(values)
    half = 1.959964 * (12.5 / 5) ** 0.5  # variance (36 + 9 + 0 + 4 + 1) / 4
    assert (found["median"], found["quartiles"], found["mean"]) == (3, [2, 4], 4)
    assert found["mean_ci95"] == pytest.approx([4 - half, 4 + half])
    assert measuring.statistics(values[:1])["mean_ci95"] is None


def _direction(drawn, image, **changes):
    settings = {"eps": SPEC.eps, "step_size": SPEC.step_size, "attack": "fgsm"} | changes
    return measuring.adversarial_direction(drawn, _split([image]), **settings)


def test_adversarial_direction_is_the_sign_of_the_gradient(linear):
    image = [100, 20, 200, 128]
    expected = np.sign(_j_by_hand(W, BIAS, np.array([image]), [0]))[0]
    assert set(expected) == {-1, 1}
    direction = _direction(linear, image)
    assert direction.shape == SPEC.image_shape
    np.testing.assert_array_equal(direction.ravel(), expected)


def test_adversarial_direction_at_the_ends_of_the_range(linear):
    """A pixel that would leave the range does not move; any other there does."""
    moves = []
    for image in ([255, 0, 255, 0], [0, 255, 0, 255]):
        expected = np.sign(_j_by_hand(W, BIAS, np.array([image]), [0]))[0]
        inwards = (np.array(image) == 255) == (expected < 0)
        direction = _direction(linear, image).ravel()
        np.testing.assert_array_equal(direction, np.where(inwards, expected, 0))
        moves += inwards.tolist()
    assert set(moves) == {True, False}


def test_adversarial_direction_of_pgd():
    """The loss is highest where the first pixel is 103: FGSM's step of 8 leads past it, PGD's come
    to swing between 102 and 104. The other pixels, without a gradient, stay.
    """

    class Peak(keras.Model):
        def call(self, x, training=False):
            nearness = -((x[:, 0, 0, 0] - 103) ** 2) / 100
            return tf.stack([tf.zeros_like(nearness), nearness, nearness - 1], 1)

    drawn = DrawnModel("peak", Peak(), 255.0)
    for pixel, sign in ((100, 1), (106, -1)):
        for attack in ("fgsm", "pgd"):
            found = _direction(drawn, [pixel, 50, 50, 50], attack=attack)
            np.testing.assert_array_equal(found.ravel(), [sign, 0, 0, 0])
    # From 102 PGD comes back after any even number of steps; FGSM does not.
    assert _direction(drawn, [102, 50, 50, 50]).ravel()[0] == 1
    with pytest.raises(UserError, match="expected an input gradient"):
        _direction(drawn, [102, 50, 50, 50], attack="pgd")


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_no_direction_where_the_gradient_is_0(attack):
    drawn = DrawnModel("flat", _linear(np.zeros((4, 3)), BIAS), 255.0)
    with pytest.raises(UserError, match="that of flat is 0 at the image, choose another --image"):
        _direction(drawn, [1, 2, 3, 4], attack=attack)


def test_random_direction():
    direction = measuring.random_direction((100, 100, 1), seed=3)
    assert direction.dtype == np.float32
    assert set(np.unique(direction)) == {-1, 1}
    assert abs(direction.mean()) < 0.05  # five standard deviations
    np.testing.assert_array_equal(direction, measuring.random_direction((100, 100, 1), seed=3))
    assert (direction != measuring.random_direction((100, 100, 1), seed=4)).any()


def test_plane_of_a_linear_model(linear):
    image = np.array([3, 250, 100, 128])  # 16 pixel steps lead out of the range at the first two
    adversarial, random = np.array([1, -1, 1, -1]), np.array([1, 1, -1, -1])
    eps, split = SPEC.eps, _split([image])
    found = measuring.plane(
        linear, split, adversarial.reshape(2, 2, 1), random.reshape(2, 2, 1), eps=eps, points=13
    )  # 169 points: two batches
    np.testing.assert_allclose(found.ticks, np.linspace(-2 * eps, 2 * eps, 13), atol=1e-12)
    assert found.ticks[6] == 0
    clipped = 0
    for row, b in enumerate(found.ticks):
        for column, a in enumerate(found.ticks):
            free = image + 255 * (a * adversarial + b * random)
            moved = np.clip(free, 0, 255)
            clipped += (moved != free).any()
            logits = moved @ W + BIAS
            loss = np.log(np.exp(logits).sum()) - logits[split.labels[0]]
            assert found.loss[row, column] == pytest.approx(loss, rel=1e-4)
            assert found.predicted[row, column] == logits.argmax()
            if found.within(eps)[row, column]:
                assert np.abs(moved - image).max() <= 8 + 1e-9
    assert 0 < clipped < 169
    at_x = -np.log(_softmax(image @ W + BIAS)[0])
    assert found.at_x(found.loss) == pytest.approx(at_x, rel=1e-4)


def test_the_ball_is_a_diamond():
    eps = 0.1
    plane = Plane(np.linspace(-2 * eps, 2 * eps, 5), np.zeros((5, 5)), np.zeros((5, 5), int))
    assert plane.within(eps).astype(int).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert plane.within(2 * eps).sum() == 13


# --- composing -------------------------------------------------------------------------------------

SETTINGS = FigureSettings(
    eps=8 / 255, num_examples=5, num_drawn=2, image=1, direction="fgsm", points=5,
    input_gradient="xent", seed=0,
)  # fmt: skip


def _words(svg) -> str:
    """The text of an SVG, not its comments, on one line."""
    return " ".join(" ".join(ElementTree.parse(svg).getroot().itertext()).split())


def _text(figure) -> str:
    """All that a figure says, on one line."""
    with io.BytesIO() as svg, matplotlib.rc_context(drawing.STYLE):
        figure.savefig(svg, format="svg")
        svg.seek(0)
        return _words(svg)


@pytest.fixture(scope="module")
def other() -> DrawnModel:
    weights = np.random.default_rng(1).normal(0, 0.01, (4, 3))
    return DrawnModel("other", _linear(weights, BIAS), SPEC.pixel_max)


@pytest.fixture
def composer(linear, other):
    return Composer([linear, other], other, _split(IMAGES[:6]), ["zero", "one", "2"], SETTINGS)


def test_alignment(composer, other):
    figure, numbers = composer.alignment()
    labels = np.arange(5) % 3
    j_s, j_t = (
        _j_by_hand(weights, BIAS, IMAGES[:5], labels)
        for weights in (W, other.model.get_weights()[0])
    )
    cosine = (j_s * j_t).sum(1) / np.linalg.norm(j_s, axis=1) / np.linalg.norm(j_t, axis=1)
    found = numbers["linear"]["cosine"]
    assert (found["mean"], found["median"]) == pytest.approx(
        (cosine.mean(), np.median(cosine)), rel=1e-4
    )
    assert found["mean_ci95"][1] - found["mean"] == pytest.approx(
        1.959964 * cosine.std(ddof=1) / 5**0.5, rel=1e-4
    )
    assert numbers["other"].keys() == {"alpha", "rho"}  # a cosine with itself says nothing
    assert (numbers["n"], numbers["J_t"]) == (5, "other")
    text = _text(figure)
    assert "tiny test, first n = 5 images, unperturbed (eps 0)" in text
    assert f"{found['mean']:.3f} ({found['mean_ci95'][0]:.3f} to" in text
    assert "itself" in text
    assert "synthetic" not in text


def test_alignment_without_a_teacher_and_of_one_image(linear):
    settings = dataclasses.replace(SETTINGS, num_examples=1)
    alone = Composer([linear], None, _split(IMAGES[:1]), ["0", "1", "2"], settings)
    figure, numbers = alone.alignment()
    assert numbers["J_t"] is None
    assert numbers["linear"].keys() == {"alpha", "rho"}
    assert numbers["linear"]["rho"]["mean_ci95"] is None
    assert "cos" not in _text(figure)


def test_landscape_and_regions(composer, linear):
    split = composer.split.take(slice(1, 2), "test")
    adversarial = measuring.adversarial_direction(
        linear, split, eps=8 / 255, step_size=2 / 255, attack="fgsm"
    )
    random = measuring.random_direction(SPEC.image_shape, 0)
    plane = measuring.plane(linear, split, adversarial, random, eps=8 / 255, points=5)
    figure, numbers = composer.landscape()
    five = [plane.loss[i, j] for i, j in ((2, 2), (1, 2), (3, 2), (2, 1), (2, 3))]
    assert numbers["linear"] == pytest.approx({"at_x": five[0], "largest_within_eps": max(five)})
    assert numbers["unit"] == "nats"
    text = _text(figure)
    assert "around one image, n = 1, l-inf eps 8/255" in text
    assert "tiny test, image 1, true: 1 one" in text
    assert "(l-inf step, x/255)" in text
    assert "(nats)" in text
    figure, numbers = composer.regions()
    five = [plane.predicted[i, j] for i, j in ((2, 2), (1, 2), (3, 2), (2, 1), (2, 3))]
    assert numbers["true_class"] == 1
    assert numbers["linear"] == {
        "at_x": five[0], "share_right_within_eps": np.mean(np.array(five) == 1)
    }  # fmt: skip
    assert "1 one (true)" in _text(figure)


# --- drawing ---------------------------------------------------------------------------------------

AXES = {"eps": 0.3, "factor": 1.0, "unit": "pixels of 0..1", "title": "title"}


def _plane(loss, predicted=0) -> Plane:
    shape = (5, 5)
    return Plane(
        np.linspace(-0.6, 0.6, 5), np.broadcast_to(loss, shape), np.broadcast_to(predicted, shape)
    )


@pytest.mark.parametrize(
    ("loss", "levels"),
    [
        (0.0, (0, 0.01)),
        (np.linspace(0.02, 0.15, 5), (0.01, 0.03, 0.1, 0.2)),
        (np.linspace(0, 2000, 5), drawing._LEVELS),
        (5000.0, (100, 1000)),
    ],
)
def test_levels_of_the_loss(loss, levels, tmp_path):
    figure = drawing.landscape({"model": _plane(loss)}, **AXES)
    bar = figure.axes[-1]
    assert [float(text.get_text()) for text in bar.get_yticklabels()] == list(levels)
    figure.savefig(tmp_path / "figure.png")


def test_more_classes_than_colours(tmp_path):
    planes = {"model": _plane(0.0, np.arange(25).reshape(5, 5) % 10), "wrong": _plane(0.0, 4)}
    names = [*"012345678", "nine"]
    figure = drawing.regions(planes, 9, names, **AXES)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "9 nine (true)"
    assert legend[1] == "class 4"  # the largest of the others
    assert "3 other classes" in legend  # seven colours, ten classes
    figure.savefig(tmp_path / "figure.png")


def test_numbers_of_regions_are_beside_each_other():
    """A square, a frame around it, and stripes: the middles of all of them are one point."""
    row, column = np.abs(np.mgrid[-25:26, -25:26])
    far = np.maximum(row, column)
    predicted = np.select([far <= 4, far <= 9, column <= 18], [0, 1, 2], 3)
    plane = Plane(np.linspace(-0.6, 0.6, 51), np.zeros((51, 51)), predicted)
    figure = drawing.regions({"model": plane}, 0, "abcd", **AXES)
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places.keys() == {"0", "1", "2", "3"}
    for a, b in itertools.combinations(places.values(), 2):
        assert np.hypot(*np.subtract(a, b)) > 0.14
    for name, place in places.items():  # and each is within its region
        a, b = (np.abs(plane.ticks - value).argmin() for value in place)
        assert predicted[b, a] == int(name)


def test_scale_of_a_gradient():
    """The 99th percentile of |J| summed over channels; a J of 0 is drawn as it is."""
    j = np.zeros((2, 11, 10, 3))
    j[0, ..., 0], j[0, ..., 1] = np.arange(110).reshape(11, 10), 1
    images = np.zeros(j.shape, np.uint8)
    _, scales = drawing.gradient_grid(
        images, ["class 0", "class 1"], {"model": -j}, unit="unit", title="title"
    )
    assert scales == {"model": pytest.approx([1 + 0.99 * 109, 0])}


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def command(command_of, monkeypatch):
    monkeypatch.setitem(builtin.SIZES, "test", 7)
    return command_of(figures)


def _small(seed: int) -> WideResNet:
    keras.utils.set_random_seed(seed)
    model = WideResNet(8, 1)
    model.build((None, 32, 32, 3))
    return model


def test_command(command, tmp_path, capsys):
    student, teacher = _small(0), _small(1)
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    write_json(run / "config.json", {"target": "cifar10", "data": "builtin", "data_seed": 3})
    student.save(run / "student.keras")
    teacher.save(run / "teacher.keras")
    command(f"--runs=IGAM={run}", f"--output={out}", "--points=5", "--num_examples=4",
            "--num_drawn=2", "--image=1")  # fmt: skip
    names = ("gradients", "landscape", "regions", "alignment")
    shown = capsys.readouterr().out.splitlines()
    assert shown[:4] == [f"{out}/{name}.png" for name in names]
    assert all(": DOUBTFUL: Clean accuracy is not above chance" in line for line in shown[4:])
    (events,) = (out / "tensorboard").iterdir()
    assert {path.name for path in out.iterdir()} == {
        "figures.json", "tensorboard", *(f"{n}.png" for n in names), *(f"{n}.svg" for n in names)
    }  # fmt: skip
    records = tf.data.TFRecordDataset(str(events)).as_numpy_iterator()
    written = [v for r in records for v in tf.compat.v1.Event.FromString(r).summary.value]
    pictures = {v.tag: v.tensor.string_val[2:] for v in written}  # after width and height
    assert pictures.keys() == set(names)

    words = {name: _words(out / f"{name}.svg") for name in names}
    for name in names:
        (kept,) = pictures[name]
        picture = tf.io.decode_png((out / f"{name}.png").read_bytes(), channels=3)
        np.testing.assert_array_equal(tf.io.decode_png(kept), picture)
        assert np.ptp(picture) == 255
        assert "cifar10 test, synthetic images (builtin)" in words[name]
        assert "IGAM" in words[name]
        assert "teacher of IGAM" in words[name]
    assert "first n = 2 images" in words["gradients"]
    assert "(nats per unit of pixels in 0..1)" in words["gradients"]
    for name in ("landscape", "regions"):
        assert "n = 1, l-inf eps 8/255" in words[name]
        assert "(l-inf step, x/255)" in words[name]
    assert "cross-entropy of the true class (nats)" in words["landscape"]
    assert "first n = 4 images" in words["alignment"]
    assert "(l2, pixels of 0..1)" in words["alignment"]

    report = json.loads((out / "figures.json").read_text())
    assert report["models"] == {
        "IGAM": model_identity(student), "teacher of IGAM": model_identity(teacher)
    }  # fmt: skip
    facts = {k: report[k] for k in ("runs", "dataset", "split", "data", "data_seed")}
    assert facts == {
        "runs": {"IGAM": str(run)}, "dataset": "cifar10", "split": "test", "data": "builtin",
        "data_seed": 3,
    }  # fmt: skip
    assert report["settings"]["eps"] == 8 / 255
    assert report["settings"]["extent_in_eps"] == 2
    assert report["versions"]["tensorflow"] == tf.__version__
    numbers = report["figures"]
    images, labels = builtin.draw("cifar10", "test", 3)
    assert numbers["landscape"]["IGAM"]["at_x"] == pytest.approx(
        -np.log(_softmax(student(images[1:2]).numpy()))[0, labels[1]], rel=1e-4
    )
    assert numbers["regions"]["IGAM"]["at_x"] == student(images[1:2]).numpy().argmax()
    assert numbers["regions"]["true_class"] == labels[1]
    assert numbers["alignment"]["J_t"] == "teacher of IGAM"
    assert -1 < numbers["alignment"]["IGAM"]["cosine"]["mean"] < 1

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"expected --output={out} to be new or empty; it holds"):
        command(f"--runs={run}", f"--output={out}")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A linear model of MNIST's images, and one whose logits never change."""
    folder = tmp_path_factory.mktemp("models")
    for name, kernel in (("linear", "glorot_uniform"), ("flat", "zeros")):
        dense = keras.layers.Dense(10, kernel_initializer=kernel)
        layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), dense]
        keras.Sequential(layers).save(folder / f"{name}.keras")
    return folder


MNIST = ("--dataset=mnist", "--data=builtin", "--figures=landscape", "--points=5")
FEW = ("--num_examples=7", "--num_drawn=7")
LINEAR = "--runs={saved}/linear.keras"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --runs=<run folder>,.*; received ''"),
        (["--runs=a=x,a=y"], "no label twice; received 'a=x,a=y'"),
        (["--runs={saved}/linear.keras,linear={saved}/flat.keras"], "no label twice"),
        (["--runs=nowhere"], "received 'nowhere', not there"),
        ([LINEAR, "more"], "expected flags alone; received 'more' as well"),
        (
            [LINEAR, "--figures=gradients,saliency"],
            "regions, alignment; received 'grad.*,saliency'",
        ),
        ([LINEAR, "--figures="], "expected --figures among gradients, .*; received ''"),
        ([LINEAR, "--points=6"], "expected odd --points, .*; received 6"),
        ([LINEAR, "--output="], "expected --output=<new folder>; received none"),
        ([LINEAR, "--eps=8"], "expected --eps as a fraction"),
        ([LINEAR, "--teacher=nowhere"], "expected a teacher.keras in --teacher=nowhere"),
        (
            ["--runs=teacher={saved}/linear.keras", "--teacher={saved}/flat.keras"],
            "expected another label for the run 'teacher'",
        ),
        ([LINEAR, "--num_examples=8"], "within the 7 images of mnist test; received 8"),
        ([LINEAR, *FEW, "--image=7"], "within the 7 images of mnist test; received 8"),
        ([LINEAR, *FEW, "--dataset=cifar10"], r"a model for images \[32, 32, 3\]"),
        (["--runs={saved}/flat.keras", *FEW], "that of flat is 0 at the image"),
        (
            ["--runs={saved}/linear.keras,{saved}/flat.keras", "--preprocess=0..1", *FEW],
            "that of flat is 0 at the image",
        ),
        ([LINEAR, "--output={saved}/flat.keras"], "a folder to write to in .*; it is a file"),
    ],
)
def test_wrong_input(command, saved, tmp_path, arguments, message):
    given = (argument.format(saved=saved) for argument in arguments)
    with pytest.raises(UserError, match=message) as raised:
        command(f"--output={tmp_path / 'out'}", *MNIST, *given)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert {path.name for path in saved.iterdir()} == {"linear.keras", "flat.keras"}


def test_an_empty_output_folder_is_taken(command, saved, tmp_path):
    """And eps, the pixel range and the split's own numbering of images come from the flags."""
    command(LINEAR.format(saved=saved), f"--output={tmp_path}", *MNIST, *FEW, "--image=6",
            "--direction=pgd", "--eps=0.25", "--seed=2", "--teacher=none")  # fmt: skip
    words = _words(tmp_path / "landscape.svg")
    assert "n = 1, l-inf eps 0.25 mnist test, synthetic images (builtin), image 6" in words
    assert "PGD-20" in words
    assert "random sign (seed 2)" in words
    assert "(l-inf step, pixels of 0..1)" in words
    assert json.loads((tmp_path / "figures.json").read_text())["figures"].keys() == {"landscape"}


def test_labels(tmp_path):
    with_equals = tmp_path / "eps=4"
    with_equals.mkdir()
    found = figures.labelled(["runs/a", "B=runs/b", "c.keras", str(with_equals)])
    assert found == {
        "a": "runs/a", "B": "runs/b", "c": "c.keras", "eps=4": str(with_equals)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "flag"),
    [
        ({"target": "mnist"}, {"target": "cifar10"}, "dataset"),
        ({"target": "mnist", "data": "tfds"}, {"target": "mnist", "data": "builtin"}, "data"),
        ({"data": "builtin", "data_seed": 0}, {"data": "builtin", "data_seed": 1}, "data_seed"),
    ],
)
def test_runs_of_different_data(command_of, first, second, flag):
    command = command_of(figures)
    with pytest.raises(UserError, match="expected flags alone"):
        command("parses the flags")
    with pytest.raises(UserError, match=f"expected runs of one data set, or --{flag}; received"):
        figures.check_same_data({"a": first, "b": second, "c": {}})
    figures.check_same_data({"a": first, "b": first, "c": {}})


def test_the_seed_of_builtin_images_does_not_divide_runs_of_real_ones(command_of):
    command = command_of(figures)
    with pytest.raises(UserError, match="expected flags alone"):
        command("parses the flags")
    figures.check_same_data({str(k): {"data": "tfds", "data_seed": k} for k in range(2)})


def test_an_error_is_one_line_and_status_1(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "igam_tf.figures", f"--output={tmp_path / 'out'}", "--points=4"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last == "error: expected odd --points, so that x is one of them; received 4"
    assert not list(tmp_path.iterdir())
