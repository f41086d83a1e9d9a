"""Where a run computes: the choice of devices, shares of batches, evaluations on several devices."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from igam_tf.attacks import attack_names, attack_specs
from igam_tf.common import devices
from igam_tf.common.errors import UserError
from igam_tf.evaluation.robust import robust_flags
from madry_models.batch_norm import BatchNormalization

CLUSTER = {"worker": ["a:1", "b:1"]}


def test_one_device_is_the_default_strategy(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    default = tf.distribute.get_strategy()
    for name in ("auto", "default", "mirrored"):
        assert devices.strategy(name, 0) is default
    assert devices.is_chief(default)
    assert devices.without_peers(default) is default


@pytest.mark.parametrize("name", ["auto", "mirrored"])
def test_several_devices_are_mirrored(name, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    chosen = devices.strategy(name, 3)
    assert isinstance(chosen, tf.distribute.MirroredStrategy)
    assert chosen.num_replicas_in_sync == 3
    assert devices.is_chief(chosen)
    assert devices.without_peers(chosen) is chosen


@pytest.mark.parametrize(
    ("name", "replicas", "config", "sentence"),
    [
        ("auto", -1, None, "expected --replicas of at least 0; received -1"),
        ("default", 2, None, "expected one device with --strategy=default"),
        ("auto", 2, {"cluster": CLUSTER}, "expected no --replicas with --strategy=multiworker"),
        ("multiworker", 0, None, "expected in the environment TF_CONFIG="),
        ("auto", 0, "{", "received '{'"),
        ("auto", 0, {"cluster": CLUSTER}, "expected in the environment TF_CONFIG="),
        ("auto", 0, {"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}, '"ps"'),
        (
            "multiworker", 0, {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}},
            '"index": 2',
        ),
    ],
)  # fmt: skip
def test_wrong_choices_are_one_sentence(name, replicas, config, sentence, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError) as raised:
        devices.strategy(name, replicas)
    assert sentence in str(raised.value)


def test_a_share_of_ten_for_four():
    parts = [devices.shard(tf.range(10), i, 4).numpy().tolist() for i in range(4)]
    assert parts == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert [len(devices.shard(tf.range(3), i, 4)) for i in range(4)] == [0, 1, 1, 1]


def test_replicas_together_see_every_batch_whole_and_in_order():
    x = np.arange(13 * 2).reshape(13, 2)
    batches = tf.data.Dataset.from_tensor_slices((x, np.arange(13))).batch(5)
    with devices.local_strategy(4).scope() as _:
        strategy = tf.distribute.get_strategy()
        seen = devices.sharded(batches)
        for begin in (0, 5, 10):
            local = [strategy.experimental_local_results(part) for part in next(seen)]
            whole = [np.concatenate([p.numpy() for p in parts]) for parts in local]
            np.testing.assert_array_equal(whole[0], x[begin : begin + 5])
            np.testing.assert_array_equal(whole[1], np.arange(13)[begin : begin + 5])
            assert max(map(len, local[1])) - min(map(len, local[1])) <= 1


def test_all_are_the_same_on_one_machine():
    assert devices.same_everywhere(devices.local_strategy(2), 7)


class _Cluster:
    """A strategy as far as `lost_workers` and `is_chief` look at it."""

    class cluster_resolver:
        """Of the second of two workers."""

        task_type, task_id = "worker", 1

        @staticmethod
        def cluster_spec():
            return tf.train.ClusterSpec(CLUSTER)


def test_the_second_worker_is_not_the_chief():
    assert not devices.is_chief(_Cluster())
    assert devices.without_peers(_Cluster()) is tf.distribute.get_strategy()


def test_a_lost_worker_is_one_sentence_and_other_errors_stay():
    aborted = tf.errors.InternalError(None, None, "x\nCollective ops is aborted by: gone\ny")
    sentence = r"another worker stopped .* from the last checkpoint \(gone\)"
    with pytest.raises(UserError, match=sentence), devices.lost_workers(_Cluster()):
        raise aborted
    with pytest.raises(UserError, match="closed"), devices.lost_workers(_Cluster()):
        raise tf.errors.UnavailableError(None, None, "Socket closed")
    with pytest.raises(tf.errors.InternalError), devices.lost_workers(_Cluster()):
        raise tf.errors.InternalError(None, None, "a bug")
    with pytest.raises(tf.errors.InternalError), devices.lost_workers(devices.local_strategy(2)):
        raise aborted


def test_without_synchronisation_moving_averages_are_those_of_the_mean():
    """Replicas' own means 1 and 5, variances 0 and 4: momentum 0.9 leaves a tenth of 3 and 2."""
    strategy = devices.local_strategy(2)
    with strategy.scope():
        norm = BatchNormalization(momentum=0.9, epsilon=1e-3, synchronized=False)
        norm.build((None, 1, 1, 1))
        x = strategy.experimental_distribute_values_from_function(
            lambda c: tf.reshape([[1.0, 1.0], [3.0, 7.0]][c.replica_id_in_sync_group], [2, 1, 1, 1])
        )
        y = tf.function(lambda x: strategy.run(lambda x: norm(x, training=True), (x,)))(x)
    for variable, expected in ((norm.moving_mean, 0.3), (norm.moving_variance, 0.9 + 0.2)):
        copies = strategy.experimental_local_results(variable.value)
        assert [float(copy[0]) for copy in copies] == pytest.approx([expected] * 2)
    first, second = (part.numpy().ravel() for part in strategy.experimental_local_results(y))
    np.testing.assert_allclose(first, 0, atol=1e-6)
    np.testing.assert_allclose(second, np.array([-2, 2]) / np.sqrt(4 + 1e-3), rtol=1e-5)


@pytest.mark.parametrize(
    "attacks",
    ["clean,pgd3", "apgd-ce,square", pytest.param("apgd-t,fab-t", marks=pytest.mark.slow)],
)
def test_an_evaluation_on_three_devices_is_that_on_one(attacks):
    """A linear model; the last batch has a single image, so that two devices have none."""
    rng = np.random.default_rng(0)
    images, weights = rng.random((9, 3, 3, 1), "float32"), rng.normal(size=(9, 4))
    w = tf.constant(weights.astype("float32"))

    def linear(x):
        return tf.reshape(x, [-1, 9]) @ w

    labels = (np.argmax(linear(images), 1) + (np.arange(9) % 4 == 3)) % 4  # two are wrong clean
    specs = [
        dataclasses.replace(spec, steps=min(spec.steps, 10), targets=min(spec.targets, 2))
        for spec in attack_specs(
            attack_names(attacks), eps=0.05, step_size=0.02, restarts=1, loss="xent", num_classes=4
        )
    ]
    results = []
    for replicas in (1, 3):
        with devices.local_strategy(replicas).scope():
            found = robust_flags(
                linear, images, labels, attacks=specs, pixel_max=1.0, seed=0, batch_size=8,
                batch_norm="inference", progress=False,
            )  # fmt: skip
            results.append(found)
    for name, robust in results[0].items():
        np.testing.assert_array_equal(results[1][name], robust, err_msg=name)
        assert 0 < robust.sum() <= 7
