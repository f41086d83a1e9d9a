"""The gradient that every white-box attack takes."""

from collections.abc import Callable

import tensorflow as tf

from igam_tf.formulas.gradients import input_gradient
from madry_models.errors import UserError


def ascent(
    per_example: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], x: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(gradient [B,...], values [B], logits [B,K]) of x -> (values, logits); see `input_gradient`.

    Raises:
        UserError: the values have no gradient with respect to x.
    """
    gradient, values, logits = input_gradient(per_example, x)
    if gradient is None:
        raise UserError(
            "expected logits that are differentiable in x; received some cut off from it, which "
            "no gradient attack can judge"
        )
    return gradient, values, logits
