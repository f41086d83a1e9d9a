"""The formulas: pure functions, one value per example, computed in at least float32.

    student        min over theta of  L_xent + lambda_adv L_adv + lambda_diff L_diff    (eq. 14)
    discriminator  max over phi   of  L_adv                                             (eq. 12)

The training step reduces them once, over the global batch (`igam_tf/method/trainer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from igam_tf.common.lazy import tf
from igam_tf.formulas import gradients

LOG_4 = 1.3862943611198906  # L_adv = -log 4 where f_disc cannot tell J_s from J_t (Theorem 6.1)


def at_least_float32(t: tf.Tensor) -> tf.Tensor:
    """t, cast to float32 if its dtype is narrower."""
    return tf.cast(t, tf.float32) if t.dtype.size < 4 else t


def xent(logits: tf.Tensor, y: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """L_xent = -log softmax(logits)[y] (eq. 7). logits [B,K], y [B] int -> [B].

    With `smoothing` s the label is 1 - s on y and s spread evenly over all K classes (Szegedy et al.
    2016, arXiv 1512.00567, section 7).

    Example:
        >>> xent(tf.constant([[0.0, 0.0]]), tf.constant([1])).numpy()
        array([0.6931472], dtype=float32)
    """
    logits = at_least_float32(logits)
    of_y = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
    if not smoothing:
        return of_y
    of_all = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
    return (1 - smoothing) * of_y + smoothing * of_all


def true_class_probability(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """softmax(logits)[y], whose gradient the release calls J (R1). logits [B,K], y [B] -> [B]."""
    return tf.gather(tf.nn.softmax(at_least_float32(logits)), y, axis=1, batch_dims=1)


# The losses whose input gradient J can be; the key is the setting `input_gradient`.
GRADIENT_OF = {"xent": xent, "softmax": true_class_probability}


def l_adv(d_s: tf.Tensor, d_t: tf.Tensor) -> tf.Tensor:
    """L_adv = log f_disc(J_t) + log(1 - f_disc(J_s)) (eq. 10), from logits, to avoid log 0.

    Args:
        d_s, d_t: f_disc's logit that J is the teacher's, for J_s and J_t of the same images, [B].

    Returns:
        [B], each at most 0; -log 4 if f_disc gives both the probability one half.

    Example:
        >>> l_adv(tf.zeros([1]), tf.zeros([1])).numpy()
        array([-1.3862944], dtype=float32)
    """
    d_s, d_t = at_least_float32(d_s), at_least_float32(d_t)
    return -tf.nn.softplus(-d_t) - tf.nn.softplus(d_s)


def discriminator_accuracy(d_s: tf.Tensor, d_t: tf.Tensor) -> tf.Tensor:
    """Share of the pair (J_s, J_t) that f_disc classifies correctly: 0, 1/2 or 1. [B] x 2 -> [B]."""
    return (tf.cast(d_s < 0, tf.float32) + tf.cast(d_t > 0, tf.float32)) / 2


def l_diff(j_s: tf.Tensor, j_t: tf.Tensor) -> tf.Tensor:
    """L_diff = squared l2 norm of J_s - J_t per image (eq. 13), in J's unit squared. -> [B].

    Example:
        >>> l_diff(tf.constant([[3.0, 0.0]]), tf.constant([[0.0, 4.0]])).numpy()
        array([25.], dtype=float32)
    """
    return tf.reduce_sum(
        tf.math.squared_difference(at_least_float32(j_s), at_least_float32(j_t)),
        axis=tf.range(1, tf.rank(j_s)),
    )


def l_diff_l2(j_s: tf.Tensor, j_t: tf.Tensor) -> tf.Tensor:
    """l2 norm of J_s - J_t per image, not squared, in J's unit; its gradient is 0 at 0. -> [B].

    For J_t = 0, eps times it is the rise of the loss, to first order, in an attack within l2 eps.

    Example:
        >>> l_diff_l2(tf.constant([[3.0, 0.0]]), tf.constant([[0.0, 4.0]])).numpy()
        array([5.], dtype=float32)
    """
    return gradients.l2_norm(at_least_float32(j_s) - at_least_float32(j_t))


def l_diff_l1(j_s: tf.Tensor, j_t: tf.Tensor) -> tf.Tensor:
    """l1 norm of J_s - J_t per image, in J's unit. -> [B].

    l1 is the dual of l-inf: for J_t = 0, eps times it is the rise of the loss, to first order, in
    an attack within l-inf eps (Finlay and Oberman 2019, arXiv 1905.11468).

    Example:
        >>> l_diff_l1(tf.constant([[3.0, 0.0]]), tf.constant([[0.0, 4.0]])).numpy()
        array([7.], dtype=float32)
    """
    difference = tf.abs(at_least_float32(j_s) - at_least_float32(j_t))
    return tf.reduce_sum(difference, axis=tf.range(1, tf.rank(j_s)))


def l_cosine(j_s: tf.Tensor, j_t: tf.Tensor) -> tf.Tensor:
    """1 - cos(J_s, J_t) per image, without a unit; 1 if one of them is 0. -> [B].

    It is half of L_diff between the two gradients at unit length.

    Example:
        >>> l_cosine(tf.constant([[3.0, 4.0]]), tf.constant([[8.0, 6.0]])).numpy().round(6)
        array([0.04], dtype=float32)
    """
    a, b = (gradients.unit(gradients.of_unit_size(j)[0]) for j in (j_s, j_t))
    return 1 - tf.reduce_sum(a * b, axis=1)


# The choices of L_diff; the key is the setting `diff_norm`.
DIFF_NORMS = {"squared_l2": l_diff, "l2": l_diff_l2, "l1": l_diff_l1}


def kl(logits_p: tf.Tensor, logits_q: tf.Tensor) -> tf.Tensor:
    """KL(p || q) = sum_k p_k log(p_k / q_k), p and q the softmaxes. [B,K] x 2 -> [B].

    Example:
        >>> kl(tf.math.log([[0.5, 0.5]]), tf.math.log([[0.25, 0.75]])).numpy().round(4)
        array([0.1438], dtype=float32)
    """
    log_p, log_q = (tf.nn.log_softmax(at_least_float32(z)) for z in (logits_p, logits_q))
    log_p = tf.cast(log_p, log_q.dtype)
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=1)


def l2(kernels: Iterable[tf.Variable]) -> tf.Tensor:
    """Half the summed squares of the kernels; weight_decay multiplies it (as in Madry's code)."""
    halves = [tf.nn.l2_loss(at_least_float32(tf.convert_to_tensor(k))) for k in kernels]
    dtype = max((half.dtype for half in halves), key=lambda dtype: dtype.size)
    return tf.add_n([tf.cast(half, dtype) for half in halves])
