"""The devices of a run: one, several of one machine, or those of several machines.

A replica gets the same part of a batch on whichever machine it is, so the weights do not depend on
the number of machines; `igam_tf.method.trainer` reduces over all replicas. docs/cluster.md says how
to start several machines.
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
    """The errors raised when a worker is gone; InternalError has other causes too."""
    return tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError


def strategy(name: str, replicas: int) -> tf.distribute.Strategy:
    """The strategy that the flags ask for. Call this before any tensor is created.

    Args:
        name: "default", one device; "mirrored", see `local_strategy`; "multiworker", all devices of
            the workers in the environment variable TF_CONFIG; "auto", multiworker if TF_CONFIG is
            set, else mirrored.
        replicas: devices of this machine, see `local_strategy`.

    Raises:
        UserError: as `local_strategy`; TF_CONFIG is missing or wrong, a worker does not start, or a
            number of replicas is given where it is fixed.
    """
    if name == "multiworker" or (name == "auto" and os.environ.get(TF_CONFIG)):
        return _multiworker(replicas)
    if name == "default" and replicas > 1:
        raise UserError(
            f"expected one device with --strategy=default; received --replicas={replicas}"
        )
    return local_strategy(1 if name == "default" else replicas)


def local_strategy(replicas: int) -> tf.distribute.Strategy:
    """MirroredStrategy over devices of this machine; the default strategy for a single one.

    Args:
        replicas: number of devices; 0 means all GPUs, or one CPU. Without GPUs the CPU is divided
            into that many logical ones, which share the cores; call this before any tensor is
            created.

    Raises:
        UserError: there are more replicas than GPUs.
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
    """The strategy for work that only the chief does: `chosen`, or the default one if it has workers."""
    return tf.distribute.get_strategy() if chosen.cluster_resolver else chosen


def mirrored(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """MirroredStrategy that sums on one device instead of with collective kernels.

    Collective kernels are paired by the order in which each replica's tapes create them. In a step
    with nested tapes and synchronised batch norms this order sometimes differed between replicas,
    which led to an error or a deadlock.
    """
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multiworker(replicas: int) -> tf.distribute.MultiWorkerMirroredStrategy:
    if replicas:
        raise UserError(
            "expected no --replicas with --strategy=multiworker, where each worker uses all of "
            f"its devices; received {replicas}"
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
    """Whether all workers call this with the same value; waits until every worker has called it."""
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
            "another worker stopped or cannot be reached, so this one stops too; run the same "
            "command on every worker to resume from the last checkpoint "
            f"({reason or error.message})"
        ) from error


def sharded(batches: tf.data.Dataset) -> Iterator:
    """Iterator over global batches (x [b,...], y [b]), split over the replicas in order.

    Every worker makes every batch and takes its part of it. Batches are functions of the step, and
    automatic sharding would distribute examples, or whole batches, instead.
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

        # The data set is declared infinite, so that workers do not have to agree on its end at each
        # batch; reading beyond its real end is an error.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.flat_map(parts).apply(endless).prefetch(2 * local)

    return iter(chosen.distribute_datasets_from_function(mine))


def shard(tensor: tf.Tensor, replica: tf.Tensor, replicas: int) -> tf.Tensor:
    """Part number `replica` of `replicas` along the first axis; sizes differ by at most one."""
    n, replica = tf.shape(tensor, tf.int64)[0], tf.cast(replica, tf.int64)
    return tensor[n * replica // replicas : n * (replica + 1) // replicas]
