"""Batch normalisation whose double back-propagation is one fused kernel and one linear combination.

Back-propagating through J_s differentiates the backward pass of every batch norm. TensorFlow
computes that second derivative with many small kernels and omits a part of it (`tf.nn.moments`
stops the gradient at the mean inside the variance). The formula below is exact and needs one more
call of the fused backward kernel. With x^ = (x - m) / s, a = mean(g), c = mean(g x^),

    dx = gamma / s (g - a - x^ c)

is linear and self-adjoint in g; its derivative with respect to x is in `derivative` below.
"""

import keras
import tensorflow as tf


def _sum(t: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(t, [0, 1, 2])


def _count(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)


def _sum_of_products(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """sum(a b) per channel, [C] float32."""
    if tf.config.list_logical_devices("GPU"):
        return _sum(tf.cast(a, tf.float32) * tf.cast(b, tf.float32))
    # On CPUs the fused kernel is the fastest way: this is dgamma for x^ = b.
    zeros, ones = tf.zeros(b.shape[-1]), tf.ones(b.shape[-1])
    return tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=a,
        x=b,
        scale=ones,
        reserve_space_1=zeros,
        reserve_space_2=ones,
        reserve_space_3=[],
        epsilon=1e-12,
        is_training=True,
    ).scale_backprop


@tf.function(jit_compile=True, autograph=False)
def _combine(tensors: list[tf.Tensor], factors: list[tf.Tensor], constant: tf.Tensor) -> tf.Tensor:
    """sum_i factors_i tensors_i + constant in one pass; [B,H,W,C] each, [C] float32."""
    products = [f * tf.cast(t, tf.float32) for t, f in zip(tensors, factors, strict=True)]
    return tf.cast(tf.add_n(products) + constant, tensors[0].dtype)


def normalize(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch norm on batch statistics, differentiable twice.

    Args:
        x: [B,H,W,C], float32, bfloat16 or float16.
        gamma, beta: [C], float32.
        epsilon: added to the variance.

    Returns:
        (y like x, mean [C], variance [C] without Bessel's correction); the last two have no
            gradient.
    """

    @tf.custom_gradient
    def forward(x, gamma, beta):
        y, mean, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        count = _count(x)
        variance *= (count - 1) / tf.maximum(count, 1)  # the kernel's has Bessel's correction
        variance = tf.where(count > 1, variance, 0.0)

        @tf.custom_gradient
        def backward(g, x, gamma, mean, variance, *reserved):
            def fused(g):
                return tf.raw_ops.FusedBatchNormGradV3(
                    y_backprop=g,
                    x=x,
                    scale=gamma,
                    reserve_space_1=reserved[0],
                    reserve_space_2=reserved[1],
                    reserve_space_3=reserved[2],
                    epsilon=epsilon,
                    is_training=True,
                )[:3]

            dx, dgamma, dbeta = fused(g)

            def derivative(u, u_gamma, u_beta):
                """From the cotangents of (dx, dgamma, dbeta) to those of (g, x, gamma)."""
                ug, u_sum_x, u_sum = fused(u)
                count = _count(x)
                a, c = dbeta / count, dgamma / count
                u_mean, u_c = u_sum / count, u_sum_x / count
                e = _sum_of_products(u, g) / count
                r = tf.math.rsqrt(variance + epsilon)
                k = gamma * r * r
                # x's coefficient, u's, g's and the constant, per channel
                p = r * (-k * (e - u_mean * a - 3 * u_c * c) - u_gamma * r * c)
                q = -k * c
                w = u_gamma * r - k * u_c
                s = k * (c * u_mean + u_c * a) - u_gamma * r * a - p * mean
                of_x = _combine([x, u, g], [p, q, w], s)
                v = u_gamma * r
                of_g = _combine([ug, x], [tf.ones_like(v), v], u_beta - v * mean)
                of_gamma = count * r * (e - u_mean * a - u_c * c)
                return of_g, of_x, of_gamma, *[None] * (2 + len(reserved))

            return (dx, dgamma, dbeta), derivative

        statistics = (mean, variance, *reserved)
        return (y, mean, variance), lambda g, *_: backward(g, x, gamma, *statistics)

    return forward(x, gamma, beta)


@keras.saving.register_keras_serializable(package="madry_models")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, with `normalize` for batch statistics of one replica in float32 or narrower.

    In float64 it uses Keras's own tf.nn.moments, like the recordings of the original code. That
    function treats the mean in the variance as a constant, which changes second derivatives.
    """

    def add_weight(self, *args, trainable: bool = True, **kwargs):
        """As Keras's; moving averages become the mean over replicas with statistics of their own."""
        aggregation = "none" if trainable or self.synchronized else "mean"
        return super().add_weight(*args, trainable=trainable, aggregation=aggregation, **kwargs)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B,H,W,C] -> the same; only `training` chooses batch statistics."""
        if not training:
            return super().call(x)
        if self.synchronized:
            return self._over_replicas(x)
        if x.dtype == tf.float64:
            return super().call(x, training=True)
        gamma, beta = map(tf.convert_to_tensor, (self.gamma, self.beta))
        y, mean, variance = normalize(x, gamma, beta, epsilon=self.epsilon)
        self._move_averages(mean, variance)
        return y

    def _over_replicas(self, x: tf.Tensor) -> tf.Tensor:
        """As Keras with `synchronized`, in one reduction over the replicas instead of three."""
        wide = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
        count = tf.cast(tf.size(wide) // tf.shape(wide)[-1], wide.dtype)
        sums = tf.concat([_sum(wide), _sum(tf.square(wide)), count[None]], axis=0)
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
        mean, square = tf.split(total[:-1] / total[-1], 2)
        variance = tf.maximum(square - tf.square(mean), 0)
        self._move_averages(mean, variance)
        y = keras.ops.batch_normalization(
            wide, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return tf.cast(y, self.compute_dtype)

    def _move_averages(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average * self.momentum + value * (1 - self.momentum))
