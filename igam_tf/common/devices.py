"""Where a run computes: on one device, on several of one machine, or on several machines.

A replica's share of a batch is the same part of the same examples whichever machine it is on, so
that the weights do not depend on how many there are; `igam_tf.method.trainer` reduces over all of
them. How several machines are started: `docs/cluster.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from igam_tf.common.errors import UserError
from igam_tf.common.lazy import tf
from igam_tf.common.private_api import aborted_by

STRATEGIES = ("auto", "default", "mirrored", "multiworker")
TF_CONFIG = "TF_CONFIG"


def _gone() -> tuple[type[Exception], ...]:
    """The errors where a worker is gone; InternalError has other causes too."""
    return tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError


def strategy(name: str, replicas: int) -> tf.distribute.Strategy:
    """The strategy of a command line. Call it before any tensor is made.

    Args:
        name: "default", one device; "mirrored", see `local_strategy`; "multiworker", all devices of
            every worker that the environment's TF_CONFIG names; "auto": multiworker where there is a
            TF_CONFIG, else mirrored.
        replicas: devices of this machine, see `local_strategy`.

    Raises:
        UserError: as `local_strategy`; no TF_CONFIG or a wrong one, workers that do not come, or a
            number of replicas where there is no choice.
    """
    if name == "multiworker" or (name == "auto" and os.environ.get(TF_CONFIG)):
        return _multiworker(replicas)
    if name == "default" and replicas > 1:
        raise UserError(
            f"expected one device with --strategy=default; received --replicas={replicas}"
        )
    return local_strategy(1 if name == "default" else replicas)


def local_strategy(replicas: int) -> tf.distribute.Strategy:
    """MirroredStrategy over so many devices of this machine, the default strategy for a single one.

    Args:
        replicas: 0: all GPUs, or one CPU. CPUs are divided into as many logical ones, which share
            the cores; for that it must be called before any tensor is made.

    Raises:
        UserError: more replicas than GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if replicas < 0 or (gpus and replicas > len(gpus)):
        wanted = f"within 0..{len(gpus)} GPUs" if gpus else "of at least 0"
        raise UserError(f"expected --replicas {wanted}; received {replicas}")
    replicas = replicas or len(gpus) or 1
    if replicas == 1:
        return tf.distribute.get_strategy()
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(cpu) or []) < replicas:
            one = tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(cpu, [one] * replicas)
    return mirrored([f"{'GPU' if gpus else 'CPU'}:{i}" for i in range(replicas)])


def without_peers(chosen: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """The strategy for work of the chief alone: `chosen`, or the default one if that needs workers."""
    return tf.distribute.get_strategy() if chosen.cluster_resolver else chosen


def mirrored(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """MirroredStrategy that adds up on one device instead of through collective kernels.

    Those are paired by the order in which each replica's tapes happen to create them. In a step with
    nested tapes and synchronised batch norms that order differed between replicas now and then,
    which ended in an error or a deadlock.
    """
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multiworker(replicas: int) -> tf.distribute.MultiWorkerMirroredStrategy:
    if replicas:
        raise UserError(
            "expected no --replicas with --strategy=multiworker, where each worker takes all of its "
            f"devices; received {replicas}"
        )
    text = os.environ.get(TF_CONFIG, "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        known = cluster.keys() <= {"chief", "worker"} and all(cluster.values())
        ok = known and 0 <= task["index"] < len(cluster[task["type"]])
    except (ValueError, TypeError, KeyError, AttributeError):
        ok = False
    if not ok:
        raise UserError(
            'expected in the environment TF_CONFIG={"cluster": {"worker": ["<host>:<port>", ...]}, '
            f'"task": {{"type": "worker", "index": <place in that list>}}}}; received {text!r}'
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except _gone() as error:
        raise UserError(f"expected all workers of TF_CONFIG {text} to come up; {error}") from error


def is_chief(chosen: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder: the first worker of several, or the only one."""
    resolver = chosen.cluster_resolver
    if resolver is None or not resolver.cluster_spec().jobs:
        return True
    return resolver.task_id == 0 and resolver.task_type == resolver.cluster_spec().jobs[0]


def same_everywhere(chosen: tf.distribute.Strategy, value: float) -> bool:
    """Whether all workers call this with the same value. It waits until every worker has called it."""
    per_replica = chosen.experimental_distribute_values_from_function(
        lambda _: tf.constant(value, tf.float64)
    )
    return float(chosen.reduce(tf.distribute.ReduceOp.MEAN, per_replica, axis=None)) == value


@contextmanager
def lost_workers(chosen: tf.distribute.Strategy) -> Iterator[None]:
    """Context that turns the errors of a lost worker into one sentence.

    Raises:
        UserError: another worker is gone.
    """
    try:
        yield
    except tf.errors.OpError as error:
        reason = aborted_by(error)
        if chosen.cluster_resolver is None or not (reason or isinstance(error, _gone())):
            raise
        raise UserError(
            "another worker stopped or cannot be reached, so this one stops too; the same command on "
            f"every worker goes on from the last checkpoint ({reason or error.message})"
        ) from error


def sharded(batches: tf.data.Dataset) -> Iterator:
    """Iterator over global batches (x [b,...], y [b]), split over the replicas in order.

    Every worker makes every batch and takes its part: batches are functions of the step, and an
    automatic shard would deal out examples, or whole batches, instead of parts of each batch.
    """
    chosen = tf.distribute.get_strategy()
    replicas = chosen.num_replicas_in_sync
    if replicas == 1:
        return iter(batches)

    def mine(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def parts(*batch):
            return tf.data.Dataset.range(first, first + local).map(
                lambda i: tuple(shard(tensor, i, replicas) for tensor in batch)
            )

        # The data set is declared infinite, so that workers need not agree on its end at each batch;
        # a batch beyond its real end is an error.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.flat_map(parts).apply(endless).prefetch(2 * local)

    return iter(chosen.distribute_datasets_from_function(mine))


def shard(tensor: tf.Tensor, replica: tf.Tensor, replicas: int) -> tf.Tensor:
    """Part number `replica` of `replicas` along the first axis; sizes differ by at most one."""
    n, replica = tf.shape(tensor, tf.int64)[0], tf.cast(replica, tf.int64)
    return tensor[n * replica // replicas : n * (replica + 1) // replicas]
