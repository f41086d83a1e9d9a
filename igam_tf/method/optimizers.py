"""Momentum as TensorFlow 1 has it, and the learning-rate schedules of the recipes."""

import keras
from keras import ops

from igam_tf.common.errors import UserError
from igam_tf.common.private_api import slot_of


@keras.saving.register_keras_serializable("igam_tf")
class Momentum(keras.optimizers.SGD):
    """a <- momentum a + g; w <- w - learning_rate a (the rule of the challenge code and the release).

    With `nesterov`, w <- w - learning_rate (momentum a + g).

    Keras's SGD multiplies the learning rate into a, so the two differ for about 1 / (1 - momentum)
    steps after the learning rate drops.

    Example:
        >>> w = keras.Variable([1.0])
        >>> momentum = Momentum(0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     momentum.apply([keras.ops.ones(1)], [w])
        >>> round(float(w[0]), 3)
        0.71
    """

    def update_step(self, gradient, variable, learning_rate):
        """One variable's update."""
        if not self.momentum:
            return super().update_step(gradient, variable, learning_rate)
        a = slot_of(self, self.momentums, variable)
        momentum, g = ops.cast(self.momentum, a.dtype), ops.cast(gradient, a.dtype)
        self.assign(a, momentum * a + g)
        step = momentum * a + g if self.nesterov else a
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)


def schedule(
    name: str, learning_rate: float, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate over `steps` steps.

    Args:
        name: "constant"; "step", a tenth after 1/2 and a hundredth after 3/4 of the steps (method of
            the challenge code, 40 000 and 60 000 of 80 000, and of the release); or "cosine", a
            linear warm-up over a tenth of the steps and a half cosine to 0.
        learning_rate: its highest value.
        steps: length of the schedule; 0 if it is not used.

    Example:
        >>> rate = schedule("step", 0.1, 80_000)
        >>> [round(float(rate(step)), 4) for step in (0, 40_001, 60_001)]
        [0.1, 0.01, 0.001]
    """
    if name == "constant":
        return learning_rate
    if name == "step":
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [steps // 2, steps * 3 // 4], [learning_rate, learning_rate / 10, learning_rate / 100]
        )
    if name == "cosine":
        warmup = steps // 10
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(steps - warmup, 1), warmup_target=learning_rate, warmup_steps=warmup
        )
    raise UserError(f"expected a schedule of constant, step or cosine; received {name!r}")


@keras.saving.register_keras_serializable("igam_tf")
class JoinSchedules(keras.optimizers.schedules.LearningRateSchedule):
    """Follows `first` for `steps` steps, then `second` from its beginning."""

    def __init__(self, first, second, steps: int):
        self.first, self.second, self.steps = first, second, steps

    def __call__(self, step):
        """Learning rate of step number `step`."""
        later = step >= self.steps
        since = ops.where(later, step - self.steps, 0)
        return ops.where(later, _rate(self.second, since), _rate(self.first, step))

    def get_config(self) -> dict:
        """Keras configuration."""
        first, second = map(keras.saving.serialize_keras_object, (self.first, self.second))
        return {"first": first, "second": second, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict) -> "JoinSchedules":
        """Inverse of `get_config`."""
        return cls(**keras.saving.deserialize_keras_object(config))


def _rate(schedule, step):
    return schedule(step) if callable(schedule) else schedule
