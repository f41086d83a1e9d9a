"""Every method by its name: the examples of the API page, and what is refused."""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import igam_tf
from igam_tf.method import objectives
from igam_tf.method.new_trainer import arguments_of
from igam_tf.method.objectives import METHODS, Method

DOCS = Path(__file__).parents[1] / "docs"
SETUP, *EXAMPLES = re.findall(
    r"```python\n(.*?)```", (DOCS / "api" / "trainers.md").read_text(encoding="utf-8"), re.S
)


def test_the_examples_of_the_api_page_train_save_and_load_every_method(
    tmp_path, capsys, step_by_step
):
    space: dict = {}
    exec(SETUP, space)
    seen = []
    for code in EXAMPLES:
        exec(code, space)
        trained = space["training"]
        seen += re.findall(r'trainer\(\s*"(\w+)"', code)
        printed = capsys.readouterr().out
        assert printed == f"{sorted({'loss', *METHODS[seen[-1]].terms})}\n"
        trained.save(path := tmp_path / f"{seen[-1]}.keras")
        again = keras.models.load_model(path)
        assert type(again) is type(trained)
        np.testing.assert_array_equal(again(space["x"]), trained(space["x"]))
    assert sorted(seen) == sorted(METHODS)


def test_pages_and_docstrings_know_every_method():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "methods.md").read_text(encoding="utf-8"), re.M)
    assert METHODS.keys() <= {*rows}
    for text in (igam_tf.trainer.__doc__, objectives.__doc__):
        assert METHODS.keys() <= {*re.findall(r"\w+", text)}


def network() -> keras.Model:
    return keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("nfgsm", {}, "did you mean n_fgsm"),
        ("trades", {"eps": 0.1, "betta": 6.0}, "received 'betta': did you mean beta"),
        ("trades", {"eps": 0.1, "alpha": 0.5}, "received 'alpha'"),
        ("ard", {"eps": 0.1}, "expected a teacher"),
        ("igam", {}, "expected a teacher.* received none"),
        ("igam", {"teacher": "resnet"}, "received a str"),
        ("pgd", {"eps": 0.1, "teacher": network()}, "no teacher"),
        ("finetune", {"teacher": network()}, "no teacher"),
        ("finetune", {}, r"igam_tf\.Teacher"),
        ("pgd", {}, "expected eps"),
        ("n_fgsm", {"eps": 8.0}, "eps as a fraction"),
        ("n_fgsm", {"eps": 0.1, "steps": 3}, "received 'steps'"),
        ("standard", {"eps": 0.1}, "received 'eps'"),
        ("cosine", {"diff_norm": "l1"}, "received 'diff_norm'"),
        ("l2", {"disc_every": 2}, "received 'disc_every'"),
        ("gradient_penalty", {"teacher_gradient": "zero"}, "received 'teacher_gradient'"),
        ("trades", {"eps": 0.1, "beta": -1.0}, "trades_beta of at least 0"),
    ],
)
def test_what_a_method_does_not_take(method, arguments, words):
    arguments = {"pixel_max": 1.0} | arguments
    with pytest.raises(igam_tf.UserError, match=words) as error:
        igam_tf.trainer(method, network(), arguments.pop("teacher", None), **arguments)
    assert "\n" not in str(error.value)


def test_settings_are_read_where_no_argument_says_otherwise():
    settings = igam_tf.Settings(trades_beta=2.0, pgd_steps=3, lambda_diff=0.7)
    taken = igam_tf.trainer("trades", network(), eps=0.1, settings=settings, pixel_max=1.0)
    assert (taken.objective.keywords, taken.steps, taken.step_size) == ({"beta": 2.0}, 3, 0.025)
    said = igam_tf.trainer("trades", network(), eps=0.1, beta=1.0, settings=settings, pixel_max=1.0)
    assert said.objective.keywords == {"beta": 1.0}
    matched = igam_tf.trainer("gradient_penalty", network(), settings=settings, pixel_max=1.0)
    assert (matched.settings.method, matched.settings.lambda_diff) == ("gradient_penalty", 0.7)
    fast = igam_tf.trainer("fast", network(), eps=0.1, settings=settings, pixel_max=1.0)
    assert (fast.steps, fast.step_size, fast.noise) == (1, 0.125, 1.0)


def test_every_hyperparameter_is_read_by_a_method():
    read = {field for method in METHODS for field in arguments_of(method).values()}
    fields = {field.name for field in dataclasses.fields(igam_tf.Settings)}
    assert fields - read - {"method"} == set()


def test_a_random_term_is_a_function_of_seed_step_and_gradients(monkeypatch):
    def drawn(j_s, j_t, key):
        return tf.random.stateless_uniform([len(j_s)], key)

    monkeypatch.setitem(METHODS, "drawn", Method(matched_to="zero", difference=drawn))
    j = tf.ones((3, 2, 2, 1))

    def terms(seed: int, step: int) -> list[float]:
        training = igam_tf.trainer("drawn", network(), seed=seed, pixel_max=1.0)
        training.compile("sgd")
        training.optimizer.iterations.assign(step)
        return training.matching(j, j)[1]["L_diff"].numpy().tolist()

    first = terms(0, 0)
    assert first == terms(0, 0)
    assert len({*first, *terms(0, 1), *terms(1, 0)}) == 9


def test_a_term_that_the_entry_does_not_name(monkeypatch):
    def more(f, x, x_adv, y, *, xent):
        loss, terms, logits = objectives.adversarial_xent(f, x, x_adv, y, xent=xent)
        return loss, terms | {"L_more": loss}, logits

    monkeypatch.setitem(METHODS, "more", Method(adversarial=more))
    training = igam_tf.trainer("more", network(), eps=0.1, pixel_max=1.0)
    training.compile("sgd")
    x, y = np.full((2, 2, 2, 1), 0.5, "float32"), np.arange(2)
    with pytest.raises(igam_tf.UserError, match=r"expected own_terms .*; received L_more"):
        training.fit(x, y, verbose=0)
