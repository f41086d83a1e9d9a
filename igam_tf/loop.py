"""The training loop of every stage: batches in, checkpoints and metrics out, killed at any moment.

The state of a stage is the trainer's variables, its optimizers and the number of steps done. Data,
augmentation and attacks are pure functions of the seed and the step, so a stage that goes on from a
checkpoint computes what it would have computed without the interruption, bit for bit.
"""

import json
import re
import signal
from collections.abc import Callable

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from igam_tf import losses
from igam_tf.classifier import Classifier
from igam_tf.runs import RunFolder
from madry_models.errors import UserError

SIGTERM_STATUS = 128 + signal.SIGTERM


class Log:
    """Scalars of one stage, to `metrics.jsonl` and TensorBoard."""

    def __init__(self, folder: RunFolder, stage: str):
        self._stage, self._path = stage, folder / "metrics.jsonl"
        self.tensorboard = tf.summary.create_file_writer(str(folder / "tensorboard" / stage))

    def forget_after(self, step: int) -> None:
        """Drops lines beyond the checkpoint that the stage goes on from: they will come again."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        keep = [
            line
            for line in lines
            if line.endswith("}\n")
            and ((row := json.loads(line))["stage"] != self._stage or row["step"] <= step)
        ]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(keep), encoding="utf-8")
        temporary.replace(self._path)

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars of one step."""
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
    trainer: Classifier,
    batches: Callable[[int], tf.data.Dataset],
    *,
    folder: RunFolder,
    stage: str,
    steps: int,
    log_every: int,
    checkpoint_every: int,
    validate_every: int = 0,
    validate: Callable[[int, Log], dict[str, float]] | None = None,
) -> None:
    """Runs `trainer` up to `steps` steps, from the newest checkpoint of `stage` if there is one.

    Args:
        trainer: compiled, with built optimizers.
        batches: start step -> the batches from there on.
        folder, stage: where checkpoints and metrics go, under which name.
        steps: in all, those of an earlier process counted in.
        log_every, checkpoint_every, validate_every: in steps; validate_every 0: never.
        validate: (step, log) -> scalars.

    Raises:
        UserError: a loss is NaN or infinite; what was saved stays.
        SystemExit: SIGTERM came; the state is saved.
    """
    # Keras 3 keeps layers in lists that tf.train.Checkpoint cannot see: name every variable to it.
    state = tf.train.Checkpoint(variables=[variable.value for variable in trainer.state])
    manager = tf.train.CheckpointManager(state, str(folder / "checkpoints" / stage), max_to_keep=2)
    if manager.latest_checkpoint:
        state.restore(manager.latest_checkpoint).assert_consumed()
    done = int(trainer.optimizer.iterations.numpy())
    log, watch = Log(folder, stage), SaturationWatch()
    log.forget_after(done)
    if done:
        logging.info("%s: going on from step %d of %d", stage, done, steps)
    if done >= steps:
        return
    stop = _SigtermFlag()
    strategy = tf.distribute.get_strategy()
    data = iter(strategy.experimental_distribute_dataset(batches(done)))
    train_function = trainer.make_train_function() or trainer.train_function
    trainer.reset_metrics()
    with stop, tqdm(initial=done, total=steps, desc=stage, unit="step", mininterval=1.0) as bar:
        for step in range(done + 1, steps + 1):
            try:
                train_function(data)
            except tf.errors.InvalidArgumentError as error:
                term = re.search(r"(\w+) : Tensor had", error.message)
                if not term:
                    raise
                kept = manager.latest_checkpoint or "none yet"
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
                log(step, means | {"learning_rate": rate})
                bar.set_postfix_str(f"L_xent {means['L_xent']:.3f}, acc {means['accuracy']:.3f}")
            if validate and (step % validate_every == 0 or step == steps):
                log(step, validate(step, log))
            if stop.set or step % checkpoint_every == 0 or step == steps:
                manager.save(checkpoint_number=step)
            if stop.set:
                logging.warning(
                    "SIGTERM: %s saved at step %d of %d; the same command goes on",
                    stage,
                    step,
                    steps,
                )
                raise SystemExit(SIGTERM_STATUS)


class _SigtermFlag:
    """Context in which SIGTERM sets `set` instead of ending the process."""

    def __init__(self):
        self.set = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "set", True))
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)
