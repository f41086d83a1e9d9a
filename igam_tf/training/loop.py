"""The training loop of every stage: trains on batches, and writes checkpoints and metrics.

The state of a stage is the trainer's variables, its optimizers, the number of finished steps and
the running means of its metrics. Data, augmentation and attacks are pure functions of seed and
step. So a stage that is resumed from a checkpoint computes and logs the same bits as without the
interruption.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from igam_tf.common import devices
from igam_tf.common.checks import told_alone
from igam_tf.common.errors import UserError
from igam_tf.common.files import write_text
from igam_tf.common.private_api import not_finite
from igam_tf.formulas import losses
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.storage.checkpoints import Checkpoints
from igam_tf.storage.run_folder import RunFolder, read_metrics

# Signals that end training after the current step, with exit status 128 + signal -> their names.
STOPPING = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
# Terms that measure input gradients; TensorBoard shows them in a group of their own.
_MATCH = ("L_adv", "L_diff", "cosine", "norm_ratio", "disc_accuracy")


class Log:
    """Writes the scalars of one stage to `metrics.jsonl` and, grouped, to TensorBoard."""

    def __init__(self, folder: RunFolder, stage: str):
        self._stage, self._folder = stage, folder
        self._silent = not folder.chief
        self.tensorboard = (
            tf.summary.create_noop_writer()
            if self._silent
            else tf.summary.create_file_writer(str(folder / "tensorboard" / stage))
        )

    def forget_after(self, step: int) -> None:
        """Removes the lines after the checkpoint's step, because the stage writes them again."""
        path = self._folder / "metrics.jsonl"
        if self._silent or not path.exists():
            return
        keep = [r for r in read_metrics(path) if r["stage"] != self._stage or r["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in keep))

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of one step, without those that are NaN, which were not measured."""
        scalars = {name: value for name, value in scalars.items() if not math.isnan(value)}
        if self._silent:
            return
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._stage, "step": step} | scalars) + "\n")
        with self.tensorboard.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.scalar(tag(name), value)


def tag(name: str) -> str:
    """TensorBoard's name of a scalar: in the group match/, train/, or the one in its name."""
    if "/" in name:
        return name
    return f"match/{name}" if name in _MATCH else f"train/{name}"


class SaturationWatch:
    """Warns once when the discriminator has been right on every gradient for `patience` windows.

    L_adv then has no gradient left for the student.
    """

    def __init__(self, patience: int = 4):
        self._patience, self._for_long = patience, 0

    def __call__(self, step: int, means: dict[str, float]) -> None:
        """Checks the means of one logging window."""
        won = means.get("disc_accuracy") == 1.0 or -1e-3 < means.get("L_adv", -losses.LOG_4) < 0.0
        self._for_long = self._for_long + 1 if won else 0
        if self._for_long == self._patience:
            logging.warning(
                "step %d: the discriminator has saturated (accuracy %.4f, L_adv %.2e): L_adv no "
                "longer moves the student. Lower --disc_learning_rate or raise --disc_every.",
                step,
                means.get("disc_accuracy", math.nan),
                means.get("L_adv", math.nan),
            )


def train(
    trainer: ClassifierTrainer,
    batches: Callable[[int], tf.data.Dataset],
    *,
    folder: RunFolder,
    stage: str,
    steps: int,
    log_every: int,
    checkpoint_every: int,
    validate_every: int = 1,
    validate: Callable[[int, Log], dict[str, float]] | None = None,
) -> None:
    """Runs `trainer` up to `steps` steps, from the newest checkpoint of `stage` if there is one.

    Args:
        trainer: compiled, with built optimizers.
        batches: start step -> the batches from that step on.
        folder, stage: the folder for checkpoints and metrics, and the name of the stage in it.
        steps: total number of steps, including those of earlier processes.
        log_every, checkpoint_every, validate_every: intervals in steps.
        validate: (step, log) -> scalars; None means never.

    Raises:
        UserError: a loss is NaN or infinite (saved files stay), or all checkpoints are damaged.
        SystemExit: SIGTERM or Ctrl-C was received; the state is saved.
    """
    # Keras 3 keeps layers in lists that tf.train.Checkpoint does not search, so list the variables
    # here.
    minutes = tf.Variable(0.0, dtype=tf.float64, trainable=False)
    state = tf.train.Checkpoint(
        variables=[variable.value for variable in trainer.state_variables],
        train_minutes=minutes,
        metrics=_sums(trainer),
    )
    trainer.reset_metrics()
    checkpoints = Checkpoints(state, folder / "checkpoints" / stage)
    checkpoints.restore()
    done = int(trainer.optimizer.iterations.numpy())
    log, watch = Log(folder, stage), SaturationWatch()
    log.forget_after(done)
    if not devices.same_everywhere(tf.distribute.get_strategy(), done):
        raise UserError(
            f"stage {stage}: expected all workers to read one checkpoint; this one is at step "
            f"{done}, others are at another step: is {folder.path} on a file system that all of "
            "them share?"
        )
    if done:
        logging.info("%s: resuming at step %d of %d", stage, done, steps)
    if done >= steps:
        return
    stop = _StopFlag()
    data = devices.sharded(batches(done))
    train_function = trainer.make_train_function() or trainer.train_function
    clock = _Stopwatch(float(minutes.numpy()))
    with stop, tqdm(initial=done, total=steps, desc=stage, unit="step") as bar:
        for step in range(done + 1, steps + 1):
            try:
                with told_alone(f"stage {stage}, step {step}: "):
                    train_function(data)
            except tf.errors.OpError as error:
                term = not_finite(error)
                if not term:
                    raise
                kept = checkpoints.latest or "none yet"
                raise UserError(
                    f"stage {stage}, step {step}: {term} is not finite (NaN or infinite); "
                    f"training stopped, last good checkpoint: {kept}"
                ) from error
            if step == done + 1:
                bar.unpause()  # the time left is estimated from the steps, without the time for tracing
            bar.update()
            if step % log_every == 0 or step == steps:
                means = {m.name: float(m.result()) for m in trainer.means}
                trainer.reset_metrics()
                watch(step, means)
                rate = float(tf.convert_to_tensor(trainer.optimizer.learning_rate))
                log(step, means | {"learning_rate": rate, "train_minutes": clock.minutes()})
                bar.set_postfix_str(f"L_xent {means['L_xent']:.3f}, acc {means['accuracy']:.3f}")
            if not folder.chief:  # only the chief validates, saves and handles signals
                continue
            if validate and (step % validate_every == 0 or step == steps):
                with clock.stopped():
                    log(step, validate(step, log) | {"train_minutes": clock.minutes()})
            if stop.signal or step % checkpoint_every == 0 or step == steps:
                folder.check_place()
                with clock.stopped():
                    minutes.assign(clock.minutes())
                    checkpoints.save(step)
            if stop.signal:
                logging.warning(
                    "Stopped by %s. %s is saved at step %d of %d: run the same command to continue",
                    STOPPING[stop.signal], stage, step, steps,
                )  # fmt: skip
                raise SystemExit(128 + stop.signal)


def _sums(trainer: ClassifierTrainer) -> list[tf.Variable]:
    """The sums and counts of the running means; with several workers, zeros.

    Metrics of several workers need a collective read, but only the chief saves. So with several
    workers the current window of metrics starts again after a kill.
    """
    variables = [variable.value for metric in trainer.means for variable in metric.variables]
    if tf.distribute.get_strategy().cluster_resolver:
        return [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in variables]
    return variables


class _Stopwatch:
    """Minutes of training without validation and checkpoints, added to those of earlier processes."""

    def __init__(self, minutes: float):
        self._begin = time.monotonic() - 60 * minutes
        self._stopped: float | None = None

    def minutes(self) -> float:
        """Minutes so far, up to the stop while it is stopped."""
        return ((self._stopped or time.monotonic()) - self._begin) / 60

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Context that is not counted, for validation and checkpoints."""
        self._stopped = time.monotonic()
        try:
            yield
        finally:
            self._begin += time.monotonic() - self._stopped
            self._stopped = None


class _StopFlag:
    """Context in which a signal in `STOPPING` sets `signal`; a second Ctrl-C ends the process."""

    def __init__(self):
        self.signal: int = 0

    def _heed(self, number: int, _) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def __enter__(self):
        self._before = {number: signal.signal(number, self._heed) for number in STOPPING}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
