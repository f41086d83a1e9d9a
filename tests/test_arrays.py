"""Images and labels as people have them: each form gives the same, each misuse one sentence."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.audit import audit as audit_module
from igam_tf.common.errors import UserError
from igam_tf.evaluation.arrays import in_memory

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0, 1, (10, 4, 4, 1)).astype("float32"), np.arange(10) % 3
PAIRS = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)]  # the last has two
SET = tf.data.Dataset.from_tensor_slices((X, Y))
UNKNOWN = SET.batch(4).filter(lambda x, y: True)


class Batches(keras.utils.PyDataset):
    """The pairs; `drawn` counts the batches that were asked for."""

    drawn = 0

    def __len__(self):
        return len(PAIRS)

    def __getitem__(self, index):
        self.drawn += 1
        return PAIRS[index]


class Endless(Batches):
    num_batches = None


def network(outputs: int = 3) -> keras.Model:
    """A linear one, of the same weights each time."""
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(outputs)]
    )
    weights = np.random.default_rng(1).normal(size=(16, outputs))
    model.set_weights([weights, np.zeros(outputs)])
    return model


@pytest.mark.parametrize("n", [None, 3, 9])
def test_every_form_gives_the_same_arrays(n):
    forms = {
        "lists": lambda: (X.tolist(), Y.tolist()),
        "arrays": lambda: (X, Y),
        "tensors": lambda: (tf.constant(X), tf.constant(Y)),
        "data set": lambda: (SET.batch(4),),
        "data set without weights": lambda: (SET.map(lambda x, y: (x, y, None)).batch(4),),
        "PyDataset": lambda: (Batches(),),
        "a list of batches": lambda: (PAIRS,),
    }
    unknown = {
        "generator": lambda: ((pair for pair in PAIRS),),
        "endless generator": lambda: (itertools.cycle(PAIRS),),
        "endless data set": lambda: (SET.repeat().batch(4),),
        "data set of unknown length": lambda: (UNKNOWN,),
    }
    for name, form in (forms | (unknown if n else {})).items():
        images, labels = in_memory(*form(), num_examples=n)
        np.testing.assert_allclose(images, X[:n], rtol=1e-7, err_msg=name)
        np.testing.assert_array_equal(labels, Y[:n], err_msg=name)
    few = Batches()
    in_memory(few, num_examples=5)
    assert few.drawn == 2


ONES = np.ones(10)
WRONG = {
    "single images": (lambda: (SET,), r"images \[4, 4, 1\] and labels \[\]: batch them"),
    "weights": (lambda: ([(X, Y, ONES)],), "received 3 values: leave out the weights"),
    "images alone": (lambda: ([X],), "expected pairs .*; received a ndarray"),
    "an array alone": (lambda: (X,), "images without labels"),
    "labels beside": (lambda: (SET.batch(4), "clean,fgsm"), "received a str: name the arguments"),
    "an endless generator": (lambda: (itertools.cycle(PAIRS),), "num_examples .* a cycle alone"),
    "an endless data set": (lambda: (SET.repeat().batch(4),), "num_examples"),
    "an endless PyDataset": (lambda: (Endless(),), "num_examples .* Endless alone"),
    "nothing": (lambda: ([],), "an empty list"),
    "no data": (lambda: (None,), "a NoneType"),
    "two sizes": (lambda: ([PAIRS[0], (X[:, :3], Y)],), r"one size, .*\[10, 3, 4, 1\]"),
    "lengths": (lambda: ([(X, Y[:3])],), r"\[10, 4, 4, 1\] and labels \[3\]"),
    "one-hot": (lambda: ([(X, np.eye(3)[Y])],), r"take y\.argmax\(1\)"),
    "a column": (lambda: ([(X, Y[:, None])],), r"take y\[:, 0\]"),
    "too few": (lambda: (SET.batch(4), None, 11), "num_examples of at most 10, .* 11"),
    "none": (lambda: (X, Y, 0), "num_examples as a whole number above 0"),
    "a class twice": (lambda: (X, Y, None, [0, 0, 1]), r"different outputs in 0\.\.2.* \[0, 0, 1\]"),
    "a class too few": (lambda: (X, Y, None, [1, 0]), r"labels? in 0\.\.2; received \[1, 0\]"),
    "no such output": (lambda: (X, Y, None, [0, 1, 3]), r"0\.\.2.* \[0, 1, 3\]"),
    "a dictionary": (lambda: (X, Y, None, {0: 1, 1: 0, 2: 2}), r"class_order as different"),
}  # fmt: skip
PLACES = {
    "evaluate": lambda x, y, **n: igam_tf.evaluate(network(), x, y, "clean", **n),
    "audit_model": lambda x, y, **n: igam_tf.audit_model(
        network(), x, y, checks="deterministic", **n
    ),
    "RobustAccuracy": lambda x, y, **n: _trained(igam_tf.RobustAccuracy(x, y, **n)),
}


def _trained(look: igam_tf.RobustAccuracy) -> None:
    model = network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, callbacks=[look], verbose=0)


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_use_is_one_sentence_wherever_it_comes_in(place):
    for name, (given, figures) in WRONG.items():
        x, y, n, order = (*given(), None, None, None)[:4]
        with pytest.raises(UserError, match=figures) as refused:
            PLACES[place](x, y, num_examples=n, class_order=order, eps=0.1, pixel_max=1.0)
        assert str(refused.value).startswith("expected "), name
        assert "\n" not in str(refused.value), name


def test_figures_of_a_data_set_are_those_of_its_arrays(monkeypatch):
    model, settings = network(), {"eps": 0.05, "pixel_max": 1.0}
    reports = [
        igam_tf.evaluate(model, *data, attacks="clean,pgd3", num_examples=9, **settings)
        for data in ((X, Y), (SET.batch(4),), (itertools.cycle(PAIRS),))
    ]
    assert reports[0]["results"] == reports[1]["results"] == reports[2]["results"]
    assert reports[0]["results"]["clean"]["n"] == 9
    monkeypatch.setattr(audit_module, "audit", lambda audited, names: audit_module._facts(audited))
    facts = [
        igam_tf.audit_model(model, *data, class_order=[2, 0, 1], **settings)
        for data in ((X, Y), (Batches(),))
    ]
    assert facts[0] == facts[1]
    assert facts[0]["class_order"] == [2, 0, 1]


@pytest.mark.parametrize(("labels", "outputs"), [(3, 3), (3, 7)])
def test_labels_in_another_order_than_the_outputs(labels, outputs):
    """A data set may have fewer classes than the model."""
    model, order = network(outputs), np.random.default_rng(2).permutation(outputs)[:labels]
    settings = {"attacks": "clean,pgd3", "eps": 0.05, "pixel_max": 1.0}
    found = igam_tf.evaluate(model, X, Y, class_order=order, **settings)
    by_hand = igam_tf.evaluate(model, X, order[Y], **settings)
    assert found["results"] == by_hand["results"]
    assert found["class_order"] == order.tolist()
    assert "class_order" not in by_hand


def test_what_the_doubt_advises_removes_it():
    """Also where an order is given that is wrong itself."""
    y = np.arange(200) % 5
    x = np.full((200, 4, 4, 1), 0.1, "float32") + 0.2 * y[:, None, None, None].astype("float32")
    shades = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    order = np.array([3, 0, 4, 1, 2])  # label -> output
    model = network(5)
    shades = shades[np.argsort(order)]
    model.set_weights([np.tile(2 * shades / 16, (16, 1)), -(shades**2)])
    settings = {"attacks": "clean", "eps": 0.01, "pixel_max": 1.0}
    for given in (None, [1, 0, 2, 3, 4]):
        wrong = igam_tf.evaluate(model, x, y, class_order=given, **settings)
        (doubt,) = [d for d in wrong["doubts"] if d["code"] == "class_order"]
        flag, argument = re.findall(r"class_order=\[?([\d, ]+\d)", doubt["remedy"])
        advised = [int(k) for k in flag.split(",")]
        assert advised == [int(k) for k in argument.split(",")] == order.tolist()
    right = igam_tf.evaluate(model, x, y, class_order=advised, **settings)
    assert right["results"]["clean"]["accuracy"] == 100.0
    assert right["doubts"] == []
