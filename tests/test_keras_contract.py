"""What Keras promises of a model and a trainer, over each of ours, in the style of its own tests."""

import copy
import dataclasses
import functools
import gc
import importlib
import json
import pkgutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
import madry_models
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import _Later
from igam_tf.formulas import losses
from igam_tf.method import objectives
from igam_tf.method.networks import features_of
from igam_tf.method.optimizers import JoinSchedules, Momentum, schedule
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.training.callbacks import RobustAccuracy

SHAPE, CLASSES = (4, 4, 3), 3
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0, 255, (8, *SHAPE)).astype("float32"), RNG.integers(0, CLASSES, 8)
WEIGHTS = igam_tf.Settings(lambda_adv=0.5, lambda_diff=0.3, disc_every=1)


def network(seed: int = 0, **kwargs) -> keras.Sequential:
    def kernel() -> keras.initializers.Initializer:
        return keras.initializers.GlorotUniform(seed)

    return keras.Sequential([
        keras.Input(SHAPE), keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, activation="tanh", kernel_initializer=kernel()),
        keras.layers.Flatten(), keras.layers.Dense(CLASSES, kernel_initializer=kernel(), **kwargs),
    ])  # fmt: skip


def igam(**settings) -> igam_tf.IGAM:
    disc = igam_tf.Discriminator((4,))
    teacher = None if settings.get("method") == "jarn" else network(5)
    settings = dataclasses.replace(WEIGHTS, **settings)
    return igam_tf.IGAM(network(), teacher, disc, settings=settings, pixel_max=255.0)


def pgd(**kwargs) -> igam_tf.PGDTraining:
    return igam_tf.PGDTraining(
        network(), eps=8 / 255, step_size=4 / 255, steps=2, seed=3, pixel_max=255.0, **kwargs
    )


def fine_tune() -> igam_tf.FineTune:
    return igam_tf.FineTune(igam_tf.Teacher(network(), num_classes=CLASSES), pixel_max=255.0)


def ard() -> igam_tf.PGDTraining:
    method = objectives.METHODS["ard"]
    objective = functools.partial(method.adversarial, alpha=0.7, temperature=5.0)
    return pgd(
        objective=objective, teacher=network(5), attack_loss="kl", noise=0.5, ramp_steps=3,
        terms=method.terms,
    )  # fmt: skip


MAIN = {
    "classifier": lambda: ClassifierTrainer(network(), pixel_max=255.0, weight_decay=0.1),
    "igam": igam,
    "pgd": pgd,
    "finetune": fine_tune,
}
ALL = MAIN | {
    "finite differences": lambda: igam(second_order="finite_difference"),
    "jarn": lambda: igam(method="jarn"),
    "ard": ard,
    "probabilities": lambda: ClassifierTrainer(
        network(activation="softmax"), pixel_max=255.0, from_probabilities=True
    ),
}


def table(quick):
    """Every kind, of which the quick ones run by default."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in ALL]


def compiled(kind: str, optimizer="sgd", **kwargs):
    trainer = ALL[kind]()
    trainer.compile(optimizer, **kwargs)
    return trainer


def weights(trainer) -> list[np.ndarray]:
    return [np.asarray(v) for v in trainer.state_variables]


def assert_same(one, other, **tolerance):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, **{"atol": 0} | tolerance)


def xent_by_hand(z: np.ndarray, y: np.ndarray) -> float:
    z = z.astype("float64")
    return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]))


@pytest.mark.parametrize("kind", table([]))
def test_every_way_of_training_and_looking(kind, tmp_path):
    _every_way(compiled(kind, keras.optimizers.SGD(0.01)), tmp_path)


def test_every_way_step_by_step(tmp_path):
    _every_way(compiled("igam", keras.optimizers.SGD(0.01), run_eagerly=True), tmp_path)


def _every_way(trainer, tmp_path):
    """fit, evaluate, predict, and each on a batch; callbacks without `mode`; saved, loaded, going on."""
    logs = trainer.train_on_batch(X, Y.astype("uint8"), return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert int(trainer.optimizer.iterations) == 1
    z = np.asarray(trainer.network(X, training=False))
    loss = xent_by_hand(z, Y)
    found = trainer.test_on_batch(X, Y, return_dict=True)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(z.argmax(1) == Y))
    assert trainer.test_on_batch(X, Y) == pytest.approx([loss, found["accuracy"], loss], rel=1e-5)
    np.testing.assert_allclose(trainer.predict_on_batch(X), z, atol=1e-5)
    np.testing.assert_allclose(trainer.predict(X, batch_size=4, verbose=0), z, atol=1e-5)
    evaluated = trainer.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)
    assert evaluated == pytest.approx(found, rel=1e-5)

    callbacks = keras.callbacks
    best = callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_pgd2", save_best_only=True)
    watching = [
        RobustAccuracy(X, Y.astype("int8"), eps=0.1, attacks="pgd2"),
        best,
        *(
            callbacks.EarlyStopping(name, patience=9)
            for name in ("accuracy", "val_accuracy", "val_loss", "val_L_xent", "val_pgd2")
        ),
        callbacks.ReduceLROnPlateau("val_loss", patience=9),
        callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        callbacks.CSVLogger(tmp_path / "log.csv"),
        callbacks.TerminateOnNaN(),
        callbacks.BackupAndRestore(tmp_path / "backup"),
    ]
    history = trainer.fit(
        X, Y.astype("int32"), batch_size=4, epochs=3, initial_epoch=1, verbose=0,
        callbacks=watching, validation_data=(X, Y[:]),
    ).history  # fmt: skip
    assert int(trainer.optimizer.iterations) == 5
    assert float(trainer.optimizer.learning_rate) == pytest.approx(0.0025)
    z = np.asarray(trainer.network(X, training=False))
    assert history["val_loss"][-1] == pytest.approx(xent_by_hand(z, Y), rel=1e-4)
    assert best.best == max(history["val_pgd2"])
    assert (tmp_path / "log.csv").read_text().count("\n") == 3

    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert type(again) is type(trainer)
    assert json.dumps(again.get_config()) == json.dumps(trainer.get_config())
    assert_same(again, trainer)
    np.testing.assert_array_equal(again(X), trainer(X))
    for each in (again, trainer):
        each.fit(X, Y, batch_size=8, verbose=0)
    assert_same(again, trainer)


@pytest.mark.parametrize("kind", table(["classifier"]))
def test_a_step_is_the_same_step_however_it_is_asked_for(kind):
    """Arrays, tensors, a data set, a PyDataset, a generator, one batch; each type of labels."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return X, Y

    pairs = tf.data.Dataset.from_tensors((X, Y))
    ways = {
        "arrays": lambda t: t.fit(X, Y.astype("uint8"), shuffle=False, verbose=0),
        "tensors": lambda t: t.fit(
            tf.constant(X), tf.constant(Y.astype("int8")), shuffle=False, verbose=0
        ),
        "positional": lambda t: t.fit(X, Y.astype("uint16"), 8, 1, 0, None, 0.0, None, False),
        "data set": lambda t: t.fit(pairs, verbose=0),
        "PyDataset": lambda t: t.fit(Batches(), verbose=0),
        "generator": lambda t: t.fit(
            (batch for batch in [(X, Y.astype("int32"))]), steps_per_epoch=1, verbose=0
        ),
        "a batch": lambda t: t.train_on_batch(X, Y.astype("uint64")),
        "split": lambda t: t.fit(
            np.concatenate([X, X]), np.concatenate([Y, Y]), validation_split=0.5, verbose=0,
            shuffle=False,
        ),
    }  # fmt: skip
    expected = None
    for name, way in ways.items():
        keras.utils.set_random_seed(0)
        trainer = compiled(kind, run_eagerly=True)
        way(trainer)
        assert int(trainer.optimizer.iterations) == 1, name
        expected = expected or trainer
        assert_same(trainer, expected, atol=1e-6)
    looks = [
        expected.evaluate(X, Y.astype("uint8"), verbose=0),
        expected.evaluate(pairs, verbose=0),
    ]
    assert looks[0] == pytest.approx(looks[1])
    np.testing.assert_allclose(
        expected.predict(pairs, verbose=0), expected.predict(X, verbose=0), rtol=1e-6
    )


@pytest.mark.parametrize("kind", table(["classifier"]))
def test_several_steps_per_execution(kind):
    if "igam" in type(compiled(kind)).__name__.lower():
        with pytest.raises(UserError, match="expected steps_per_execution=1"):
            compiled(kind, steps_per_execution=2)
        return
    found = []
    for steps in (1, 2):
        keras.utils.set_random_seed(0)
        trainer = compiled(kind, steps_per_execution=steps)
        trainer.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0)
        trainer.evaluate(X, Y, batch_size=2, verbose=0)
        found.append(trainer)
    assert_same(*found, atol=1e-6)


# --- precision ------------------------------------------------------------------------------------


@pytest.fixture
def policy():
    """Sets Keras's global policy, and takes it back."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def trainer_at(kind: str, start: list | None = None) -> tuple:
    """(a compiled trainer, its variables) with these weights: of both players where there are two."""
    keras.utils.set_random_seed(0)
    trainer = ALL[kind]()
    two = isinstance(trainer, igam_tf.IGAM)
    rates = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1)
    trainer.compile(*rates[: 1 + two], run_eagerly=True)
    trainer.prepare(X, Y)
    return trainer, starting_from(trainer, start)


def updates(kind: str, start: list | None = None, x_adv: np.ndarray | None = None) -> tuple:
    """(the weights before one step, what it changed); x_adv: in place of what its attack makes."""
    trainer, variables = trainer_at(kind, start)
    before = [v.numpy() for v in variables]
    if x_adv is not None:
        trainer.attack = lambda x, y: tf.cast(x_adv, x.dtype)
    trainer.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    return before, [v.numpy() - old for v, old in zip(variables, before, strict=True)]


def attacked(kind: str, start: list | None = None) -> np.ndarray | None:
    """What the attack of a step makes of X; None where there is none."""
    trainer, _ = trainer_at(kind, start)
    if not isinstance(trainer, igam_tf.PGDTraining):
        return None
    return trainer.attack(*trainer.batch_of((X, Y))).numpy()


def starting_from(trainer, start: list | None) -> list:
    """The variables of student and discriminator, then of the teacher, with these values."""
    players = [getattr(trainer, name, None) for name in ("discriminator", "teacher")]
    players += [trainer.network] if isinstance(trainer, igam_tf.FineTune) else []
    variables = [*trainer.trained_variables]
    for player in filter(None, players):
        variables += player.variables
    for v, value in zip(variables, start or [], strict=start is not None):
        v.assign(value)
    return variables


EXACT = {"float64": 1e-5, "mixed_bfloat16": 0.1, "mixed_float16": 5e-3}


@pytest.mark.parametrize("policy_name", EXACT)
@pytest.mark.parametrize("kind", table([]))
def test_the_update_under_a_global_policy_is_that_of_float32(kind, policy_name, policy):
    _compare(kind, policy_name, policy)


@pytest.mark.parametrize(
    ("kind", "policy_name"),
    [("igam", "mixed_float16"), ("pgd", "float64")],
)
def test_some_of_them_by_default(kind, policy_name, policy):
    _compare(kind, policy_name, policy)


def _compare(kind, policy_name, policy):
    """At one x_adv for all: what rounding does to an attack is measured below."""
    x_adv = attacked(kind)
    start, expected = updates(kind, x_adv=x_adv)
    policy(policy_name)
    _, found = updates(kind, start, x_adv)
    bound = EXACT[policy_name]
    if kind == "finite differences":
        bound = max(bound, 0.03 if policy_name == "mixed_float16" else 0.2)
    for a, b in zip(found, expected, strict=True):
        if np.linalg.norm(b) > 1e-5:  # a bias before batch norm has no gradient
            assert np.linalg.norm(a - b) < bound * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("kind", "policy_name"),
    [
        ("ard", "mixed_float16"),
        pytest.param("ard", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("ard", "float64", marks=pytest.mark.slow),
        *(pytest.param("pgd", name, marks=pytest.mark.slow) for name in EXACT),
    ],
)
def test_an_attack_under_a_global_policy_reaches_the_loss_of_float32(kind, policy_name, policy):
    """Not at the same pixels: where KL begins, p - q is as small as its rounding in a narrow type."""
    trainer, variables = trainer_at(kind)
    start, network = [v.numpy() for v in variables], trainer.network
    clean = network(X)

    def gained(x: np.ndarray) -> float:
        z = network(tf.cast(x, "float32"))
        gain = losses.kl(clean, z) if kind == "ard" else losses.xent(z, Y) - losses.xent(clean, Y)
        return float(tf.reduce_mean(gain))

    expected = gained(attacked(kind))
    policy(policy_name)
    found = attacked(kind, start)
    assert gained(found) > 0.9 * expected


@pytest.mark.parametrize("kind", table(["classifier"]))
def test_an_optimizer_that_scales_its_loss(kind, policy):
    """Static and dynamic; a scale beyond float16 skips steps, halves it and goes on."""
    policy("mixed_float16")
    start, expected = updates(kind)
    for optimizer in (
        keras.optimizers.SGD(0.1, loss_scale_factor=64.0),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**20),
    ):
        keras.utils.set_random_seed(0)
        trainer = ALL[kind]()
        trainer.compile(optimizer, run_eagerly=True)
        trainer.prepare(X, Y)
        steps, trained = 0, len(trainer.trained_variables)
        while not int(trainer.optimizer.iterations):
            for v, value in zip(trainer.trained_variables, start, strict=False):
                assert not steps or np.array_equal(v, value)
            variables = starting_from(trainer, start)[:trained]
            trainer.train_on_batch(X, Y)
            steps += 1
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            assert float(optimizer.dynamic_scale) * 2 ** (steps - 1) == optimizer.initial_scale
        for v, old, b in zip(variables, start, expected, strict=False):
            change = np.linalg.norm(b)
            assert np.linalg.norm(v.numpy() - old - b) < 0.02 * change


def test_several_batches_may_make_one_update():
    """By the optimizer's gradient accumulation: the kind of a step goes by the updates."""
    found = []
    for n, size in ((None, 8), (2, 4)):
        trainer = igam(match_every=2, method="l2")
        trainer.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=n))
        kinds = []
        phase = trainer.phase
        trainer.phase = lambda step, phase=phase, kinds=kinds: (
            kinds.append(phase(step)) or kinds[-1]
        )
        for _ in range(2):
            trainer.fit(X, Y, batch_size=size, shuffle=False, verbose=0)
        found.append((kinds, trainer.network.get_weights()))
    (one, a), (two, b) = found
    assert one == ["student", "plain"]
    assert two == ["student", "student", "plain", "plain"]
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_figures_add_up_where_floatx_is_narrow():
    """float16 counts no further than 2048."""
    keras.config.set_floatx("float16")
    try:
        trainer = compiled("classifier", run_eagerly=True)
    finally:
        keras.config.set_floatx("float32")
    n = 3000
    found = trainer.evaluate(
        np.repeat(X[:1], n, 0), np.repeat(Y[:1], n), batch_size=500, verbose=0, return_dict=True
    )
    z = np.asarray(trainer.network(X[:1], training=False))
    assert found["loss"] == pytest.approx(xent_by_hand(z, Y[:1]), rel=1e-3)


def test_keras_may_be_asked_to_scale(policy):
    policy("mixed_float16")
    trainer = compiled("classifier", auto_scale_loss=True)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert not isinstance(compiled("classifier").optimizer, keras.optimizers.LossScaleOptimizer)


# --- saving ---------------------------------------------------------------------------------------


@pytest.fixture
def not_imported():
    """Keras's registry as it is after `import keras, igam_tf` alone."""
    registered = keras.saving.get_custom_objects()
    before = dict(registered)
    for name, value in before.items():
        package, _, rest = name.partition(">")
        if package in ("igam_tf", "madry_models") and isinstance(value, type):
            registered[name] = _Later(value.__module__, rest)
    yield
    registered.update(before)


def test_every_class_that_is_saved_is_known_by_name():
    for package in (igam_tf, madry_models):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = {
        name
        for name, value in keras.saving.get_custom_objects().items()
        if isinstance(value, type) and value.__module__.split(".")[0] in ("igam_tf", "madry_models")
    }
    assert ours == set(igam_tf.SAVED) | set(madry_models.SAVED)


@pytest.mark.parametrize("kind", table(["ard"]))
def test_a_trainer_is_loaded_by_its_name_alone(kind, tmp_path, not_imported):
    trainer = compiled(kind, Momentum(schedule("cosine", 0.1, 20), momentum=0.9), run_eagerly=True)
    trainer.fit(X, Y, verbose=0)
    trainer.save(tmp_path / "t.keras")
    again = keras.saving.load_model(tmp_path / "t.keras")
    assert again.run_eagerly
    assert_same(again, trainer)
    for each in (trainer, again):
        each.fit(X, Y, verbose=0)
    assert_same(again, trainer)


@pytest.mark.parametrize("kind", ["classifier", "igam"])
def test_a_trainer_is_saved_and_copied_before_it_is_compiled(kind, tmp_path):
    trainer = ALL[kind]()
    trainer(X)
    trainer.save(tmp_path / "t.keras")
    trainer.save_weights(tmp_path / "t.weights.h5")
    other = ALL[kind]()
    other(X)
    other.load_weights(tmp_path / "t.weights.h5")
    for again in (keras.saving.load_model(tmp_path / "t.keras"), copy.deepcopy(trainer), other):
        np.testing.assert_array_equal(again(X), trainer(X))
        assert not again.compiled
    assert type(keras.models.clone_model(trainer)) is type(trainer)


def test_parts_are_loaded_by_their_names_alone(not_imported):
    maps = [
        igam_tf.Identity(), igam_tf.Scale(0.5), igam_tf.ChannelMean(), igam_tf.ChannelRepeat(3),
        igam_tf.CenterCrop((3, 2)), igam_tf.CenterPad(5), igam_tf.RandomPad(6), igam_tf.Resize(4),
        igam_tf.TransposeConvolution(),
    ]  # fmt: skip
    rate = JoinSchedules(0.1, schedule("step", 0.2, 8), 4)
    parts = [
        *maps, igam_tf.Compose(maps), igam_tf.Discriminator((4, 8), outputs=2),
        madry_models.MnistCNN(5), madry_models.WideResNet(8, 1), Momentum(rate, momentum=0.5),
    ]  # fmt: skip
    for part in parts:
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(part))
        assert type(again) is type(part)
        assert json.dumps(again.get_config()) == json.dumps(part.get_config())
    assert float(again._learning_rate(6)) == float(rate(6))


# --- wrong use ------------------------------------------------------------------------------------

ONE_HOT = np.eye(CLASSES)[Y]
LABELS = {
    "a column": (X, Y[:, None], r"received int64 \[8, 1\]: take y\[:, 0\]"),
    "one-hot": (X, ONE_HOT, r"received float64 \[8, 3\]: take y.argmax\(1\)"),
    "floats": (X, Y.astype("float32"), r'received float32 \[8\]: convert them with y.astype\("int64"'),
    "other classes": (X, Y + CLASSES, r"expected labels in 0..2"),
    "pixels of 0..1": (X / 255, Y, r"pixel_max=1\.0"),
    "pixels beyond": (X * 2, Y, "expected pixels in 0..255"),
    "a shape": (X[:, :3], Y, "fails on them"),
    "uint8": (X.astype("uint8"), Y, "images .*uint8"),
    "lengths": (X, Y[:3], "as many images as labels"),
    "no labels": (X, None, "images without labels"),
}  # fmt: skip
CALLS = {
    "fit": lambda t, x, y: t.fit(x, y, verbose=0),
    "data set": lambda t, x, y: t.fit(
        tf.data.Dataset.from_tensors(x if y is None else (x, y)), verbose=0
    ),
    "validation": lambda t, x, y: t.fit(X, Y, validation_data=(x, y), verbose=0),
    "evaluate": lambda t, x, y: t.evaluate(x, y, verbose=0),
    "train_on_batch": lambda t, x, y: t.train_on_batch(x, y),
    "test_on_batch": lambda t, x, y: t.test_on_batch(x, y),
    "predict": lambda t, x, y: t.predict(x, verbose=0) if y is Y else None,
    "predict_on_batch": lambda t, x, y: t.predict_on_batch(x) if y is Y else None,
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_data_is_one_sentence_wherever_it_comes_in(call):
    for prepared in (False, True):
        trainer = compiled("classifier", run_eagerly=True)
        if prepared:
            trainer.fit(X, Y, verbose=0)
        for name, (x, y, sentence) in LABELS.items():
            if call == "data set" and name in ("lengths", "no labels"):
                continue
            if call.startswith("predict") and y is not Y:
                continue
            if name == "other classes" and prepared and call.endswith("on_batch"):
                sentence = "expected labels (in|within)"
            with pytest.raises(UserError, match=sentence) as caught:
                CALLS[call](trainer, x, y)
            assert "\n" not in str(caught.value), name


def test_the_first_batch_is_looked_at_however_the_networks_were_built():
    rounds = keras.Sequential([keras.Input(SHAPE), keras.layers.Lambda(tf.round), network()])
    trainer = igam_tf.IGAM(
        rounds, settings=igam_tf.Settings(method="gradient_penalty"), pixel_max=255.0
    )
    trainer(X)
    trainer.compile("sgd")
    with pytest.raises(UserError, match="differentiable in x"):
        trainer.train_on_batch(X, Y)


def test_what_a_trainer_does_not_take_is_one_sentence():
    trainer, frozen = compiled("classifier", run_eagerly=True), compiled("igam")
    frozen.network.trainable = False
    ones = np.ones(8)
    for call in (
        lambda: trainer.fit(X, Y, sample_weight=ones),
        lambda: trainer.fit(X, Y, class_weight={0: 1.0}),
        lambda: trainer.fit(tf.data.Dataset.from_tensors((X, Y, ones)), verbose=0),
        lambda: trainer.fit(X, Y, validation_data=(X, Y, ones), verbose=0),
        lambda: trainer.evaluate(X, Y, sample_weight=ones),
        lambda: trainer.train_on_batch(X, Y, ones),
        lambda: trainer.train_on_batch(X, Y, class_weight={0: 1.0}),
        lambda: trainer.test_on_batch(X, Y, sample_weight=ones),
        lambda: trainer.compile("sgd", loss="mse"),
        lambda: trainer.compile("sgd", metrics=["accuracy"]),
        lambda: trainer.fit([[1.0]], [1]),
        lambda: trainer.fit(None),
        lambda: trainer.fit(X, list(Y)),
        *(
            functools.partial(getattr(ALL[kind](), call), X, Y)  # not compiled
            for kind in ("classifier", "igam")
            for call in ("fit", "evaluate", "train_on_batch", "test_on_batch")
        ),
        lambda: frozen.fit(X, Y),
    ):
        with pytest.raises(UserError, match=r"^expected [^\n]*$"):
            call()
    trainer.fit(X, Y, validation_data=(X, Y, None), verbose=0)


# --- models of the user's own ---------------------------------------------------------------------


def test_features_leave_the_layers_as_they_were(tmp_path):
    """Also where the call fails, where replicas read at once, and in copies."""
    model = network()
    head = model.layers[-1]
    call = head.call
    features, expected = features_of(model), None
    before = dict(vars(head))
    for _ in range(2):
        expected = features(X)
        assert head.call == call
        assert vars(head).keys() == before.keys()
    with pytest.raises(Exception, match=r"."):
        features(X[:, :2])
    assert head.call == call

    found = {}

    def read(i):
        found[i] = [features(X[i : i + 1]) for _ in range(20)]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, several in found.items():
        for one in several:
            np.testing.assert_allclose(one, expected[i : i + 1], rtol=1e-5, atol=1e-6)
    assert head.call == call
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras")(X), model(X))
    np.testing.assert_array_equal(keras.models.clone_model(model)(X).shape, model(X).shape)


def test_features_of_a_dense_layer_inside_another_layer():
    layers = keras.layers
    body = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(5, "tanh")])
    wrapped = keras.Sequential([body, layers.SpectralNormalization(layers.Dense(CLASSES))])
    np.testing.assert_array_equal(features_of(wrapped)(X), body(X))
    each = keras.Sequential(
        [keras.Input(SHAPE), layers.Reshape((4, 12)), layers.TimeDistributed(layers.Dense(CLASSES)),
         layers.GlobalAveragePooling1D()])  # fmt: skip
    with pytest.raises(UserError, match="expected a dense layer"):
        features_of(each)


def test_an_attribute_that_happens_to_be_called_features_is_no_protocol():
    class VGG(keras.Model):
        def __init__(self):
            super().__init__()
            self.features = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.ReLU()])
            self.flatten, self.classifier = keras.layers.Flatten(), keras.layers.Dense(CLASSES)

        def call(self, x):
            return self.classifier(self.flatten(self.features(x)))

    vgg = VGG()
    expected = vgg.flatten(vgg.features(X))
    np.testing.assert_array_equal(features_of(vgg)(X), expected)
    teacher = igam_tf.Teacher(vgg, num_classes=2)
    assert teacher(X).shape == (8, 2)


def test_robust_accuracy_is_that_of_the_model_it_is_called_for():
    """A model of the user's that happens to have an attribute `network`, and no trainer of ours."""

    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = network()  # untrained, and in another order of classes

        def call(self, x):
            return -self.network(x)

    model = Wrapped()
    model(X)
    labels = np.argmax(model(X), 1)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.0
    look = RobustAccuracy(X, labels, eps=1e-6, attacks="clean", pixel_max=255.0)
    stop = keras.callbacks.EarlyStopping("val_clean")
    before = list(model.metrics)
    history = model.fit(X, labels, verbose=0, callbacks=[look, stop]).history
    assert history["val_clean"] == [1.0]
    assert stop.monitor_op is keras.ops.greater
    assert model.metrics[: len(before)] == before
    assert len(model.metrics) == len(before)


def test_what_robust_accuracy_traced_is_freed_after_a_training():
    """Also where the callback is kept."""
    model = network_of(SHAPE)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    looks, counts = [], []
    for _ in range(2):
        looks.append(RobustAccuracy(X, Y, eps=0.01, attacks="fgsm", pixel_max=255.0))
        model.fit(X, Y, verbose=0, callbacks=[looks[-1]])
        gc.collect()
        counts.append(sum(type(o).__name__ == "FuncGraph" for o in gc.get_objects()))
    assert counts[1] == counts[0]


# --- random maps ----------------------------------------------------------------------------------


def test_a_random_map_is_drawn_in_steps_alone():
    """Validation, evaluation and pictures see the centre, also while stage 1 or 2 runs."""
    tuner = igam_tf.FineTune(
        igam_tf.Teacher(
            network_of((8, 8, 3)), igam_tf.RandomPad(8), num_classes=CLASSES
        )
    )  # fmt: skip
    tuner.compile("sgd", run_eagerly=True)
    tuner.optimizer.learning_rate = 0.0
    tuner.prepare(X, Y)
    teacher = tuner.network
    centred = teacher(X).numpy()
    loss = xent_by_hand(centred, Y)
    with teacher.offsets_of(tuner.optimizer, 0):
        drawn = tuner.fit(X, Y, validation_data=(X, Y), verbose=0).history
        assert drawn["val_loss"][0] == pytest.approx(loss, rel=1e-5)
        assert abs(drawn["loss"][0] - loss) > 1e-4
        assert tuner.evaluate(X, Y, verbose=0)[0] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(tuner.predict(X, verbose=0), centred, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(teacher(X), centred)


def network_of(shape) -> keras.Sequential:
    return keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 255),
                             keras.layers.Flatten(), keras.layers.Dense(6, "relu"),
                             keras.layers.Dense(CLASSES)])  # fmt: skip
