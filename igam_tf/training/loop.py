"""The training loop of every stage: batches in, checkpoints and metrics out, killed at any moment.

The state of a stage is the trainer's variables, its optimizers and the number of steps done. Data,
augmentation and attacks are pure functions of the seed and the step, so a stage that goes on from a
checkpoint computes what it would have computed without the interruption, bit for bit.
"""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from igam_tf.formulas import losses
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.system import devices
from igam_tf.system.checkpoints import Checkpoints
from igam_tf.system.run_folder import RunFolder, read_metrics, write_text
from madry_models.errors import UserError

SIGTERM_STATUS = 128 + signal.SIGTERM


class Log:
    """Scalars of one stage, to `metrics.jsonl` and TensorBoard."""

    def __init__(self, folder: RunFolder, stage: str):
        self._stage, self._path = stage, folder / "metrics.jsonl"
        self._silent = not folder.chief
        self.tensorboard = (
            tf.summary.create_noop_writer()
            if self._silent
            else tf.summary.create_file_writer(str(folder / "tensorboard" / stage))
        )

    def forget_after(self, step: int) -> None:
        """Drops lines beyond the checkpoint that the stage goes on from: they will come again."""
        if self._silent or not self._path.exists():
            return
        rows = read_metrics(self._path)
        keep = [row for row in rows if row["stage"] != self._stage or row["step"] <= step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in keep))

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars of one step."""
        if self._silent:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self._stage, "step": step} | scalars) + "\n")
        with self.tensorboard.as_default(step=step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)


class SaturationWatch:
    """Says so, once, when the discriminator has won for long: L_adv then teaches nothing."""

    def __init__(self, patience: int = 4):
        self._patience, self._for_long = patience, 0

    def __call__(self, step: int, means: dict[str, float]) -> None:
        """Looks at the means of one logging window."""
        won = means.get("disc_accuracy") == 1.0 or -1e-3 < means.get("L_adv", -losses.LOG_4) < 0.0
        self._for_long = self._for_long + 1 if won else 0
        if self._for_long == self._patience:
            logging.warning(
                "step %d: the discriminator has saturated (accuracy %.4f, L_adv %.2e): L_adv no "
                "longer moves the student. Lower --disc_learning_rate or raise --disc_every.",
                step,
                means["disc_accuracy"],
                means["L_adv"],
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
        batches: start step -> the batches from there on.
        folder, stage: where checkpoints and metrics go, under which name.
        steps: in all, those of an earlier process counted in.
        log_every, checkpoint_every, validate_every: in steps.
        validate: (step, log) -> scalars; None: never.

    Raises:
        UserError: a loss is NaN or infinite; what was saved stays. What was saved is damaged.
        SystemExit: SIGTERM came; the state is saved.
    """
    # Keras 3 keeps layers in lists that tf.train.Checkpoint cannot see: name every variable to it.
    minutes = tf.Variable(0.0, dtype=tf.float64, trainable=False)
    state = tf.train.Checkpoint(
        variables=[variable.value for variable in trainer.state_variables], train_minutes=minutes
    )
    checkpoints = Checkpoints(state, folder / "checkpoints" / stage)
    checkpoints.restore()
    done = int(trainer.optimizer.iterations.numpy())
    log, watch = Log(folder, stage), SaturationWatch()
    log.forget_after(done)
    if not devices.same_everywhere(tf.distribute.get_strategy(), done):
        raise UserError(
            f"stage {stage}: expected all workers to read one checkpoint; this one is at step {done}, "
            f"others elsewhere: is {folder.path} on a file system that all of them share?"
        )
    if done:
        logging.info("%s: going on from step %d of %d", stage, done, steps)
    if done >= steps:
        return
    stop = _SigtermFlag()
    data = devices.shares(batches(done))
    train_function = trainer.make_train_function() or trainer.train_function
    trainer.reset_metrics()
    clock = _Stopwatch(float(minutes.numpy()))
    with stop, tqdm(initial=done, total=steps, desc=stage, unit="step", mininterval=1.0) as bar:
        for step in range(done + 1, steps + 1):
            try:
                train_function(data)
            except tf.errors.InvalidArgumentError as error:
                term = re.search(r"(\w+) : Tensor had", error.message)
                if not term:
                    raise
                kept = checkpoints.latest or "none yet"
                raise UserError(
                    f"stage {stage}, step {step}: {term[1]} is not finite (NaN or infinite); "
                    f"training stopped, last good checkpoint: {kept}"
                ) from error
            bar.update()
            if step % log_every == 0 or step == steps:
                means = {m.name: float(m.result()) for m in trainer.metrics}
                trainer.reset_metrics()
                watch(step, means)
                rate = float(tf.convert_to_tensor(trainer.optimizer.learning_rate))
                log(step, means | {"learning_rate": rate, "train_minutes": clock.minutes()})
                bar.set_postfix_str(f"L_xent {means['L_xent']:.3f}, acc {means['accuracy']:.3f}")
            if not folder.chief:  # the chief alone validates, saves and heeds SIGTERM
                continue
            if validate and (step % validate_every == 0 or step == steps):
                with clock.stopped():
                    log(step, validate(step, log) | {"train_minutes": clock.minutes()})
            if stop.set or step % checkpoint_every == 0 or step == steps:
                with clock.stopped():
                    minutes.assign(clock.minutes())
                    checkpoints.save(step)
            if stop.set:
                logging.warning(
                    "SIGTERM: %s saved at step %d of %d; the same command goes on",
                    stage,
                    step,
                    steps,
                )
                raise SystemExit(SIGTERM_STATUS)


class _Stopwatch:
    """Minutes of training alone, going on from those of an earlier process."""

    def __init__(self, minutes: float):
        self._begin = time.monotonic() - 60 * minutes
        self._stopped: float | None = None

    def minutes(self) -> float:
        """Minutes so far; while stopped, those until then."""
        return ((self._stopped or time.monotonic()) - self._begin) / 60

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Validation and checkpoints are not training."""
        self._stopped = time.monotonic()
        try:
            yield
        finally:
            self._begin += time.monotonic() - self._stopped
            self._stopped = None


class _SigtermFlag:
    """Context in which SIGTERM sets `set` instead of ending the process."""

    def __init__(self):
        self.set = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "set", True))
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)
