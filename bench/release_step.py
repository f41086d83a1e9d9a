"""The same training steps as the IGAM release takes them, to set `step.py` beside.

python bench/release_step.py [--student=wrn-32-1]     (Python 3.7 with tensorflow 1.14 and numpy 1.16)

A TensorFlow 1 graph of what `--fidelity=release` stands for, written anew: a teacher of the student's
size, J of the softmax probability in pixels of 0..255, L_diff summed over the batch, batch statistics in
all three networks, f_disc every --disc_every steps after the student's, with both J computed again, and
each batch fed to the session. PGD-7 is the challenges', one call of the session for each step of the
attack. Images, labels and weights are random. Ends with one line of JSON. It also runs in the TensorFlow
of igam_tf.
"""

import numpy as np
import rivals
import tensorflow.compat.v1 as tf

DECAY, LAMBDA_ADV, LAMBDA_DIFF = 2e-4, 1.0, 10.0


# --- the networks ----------------------------------------------------------------------------------


def convolution(x, size: int, filters: int, stride: int):
    """[B,H,W,C] -> [B,H/stride,W/stride,filters], without a bias."""
    with tf.variable_scope(None, default_name="conv"):
        shape = [size, size, int(x.shape[-1]), filters]
        init = tf.random_normal_initializer(stddev=(2 / (size * size * filters)) ** 0.5)
        kernel = tf.get_variable("kernel", shape, initializer=init)
        return tf.nn.conv2d(x, kernel, [1, stride, stride, 1], "SAME")


def norm_relu(x):
    """Batch norm on batch statistics, of which moving averages are kept, and a leaky ReLU."""
    with tf.variable_scope(None, default_name="norm"):
        shape = [int(x.shape[-1])]
        gamma = tf.get_variable("gamma", shape, initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", shape, initializer=tf.zeros_initializer())
        zeros = {"initializer": tf.zeros_initializer(), "trainable": False}
        moving = [tf.get_variable(n, shape, **zeros) for n in ("mean", "variance")]
        x, *moments = tf.nn.fused_batch_norm(x, gamma, beta)
        updates = [tf.assign_sub(a, 0.1 * (a - b)) for a, b in zip(moving, moments)]  # noqa: B905
        with tf.control_dependencies(updates):
            return tf.where(tf.less(x, 0.0), 0.1 * x, x)


def dense(x, units: int):
    """[B,D] -> [B,units]."""
    kernel = tf.get_variable("dense/kernel", [int(x.shape[-1]), units])
    return x @ kernel + tf.get_variable("dense/bias", [units], initializer=tf.zeros_initializer())


def centred(x):
    """Each image, or gradient, with mean 0 and l2 norm 1."""
    return tf.nn.l2_normalize(x - tf.reduce_mean(x, [1, 2, 3], keepdims=True), [1, 2, 3])


def unit(h, filters: int, stride: int, shared: bool):
    """Pre-activation residual unit; see `madry_models.wide_resnet`."""
    activated = norm_relu(h)
    shortcut = activated if shared else h
    missing = filters - int(h.shape[-1])
    if stride > 1:
        shortcut = tf.nn.avg_pool(shortcut, [1, 2, 2, 1], [1, 2, 2, 1], "VALID")
    if missing:
        shortcut = tf.pad(shortcut, [[0, 0], [0, 0], [0, 0], [missing // 2, missing // 2]])
    h = norm_relu(convolution(activated, 3, filters, stride))
    return shortcut + convolution(h, 3, filters, 1)


def wide_resnet(x, student: str):
    """Logits [B,10]."""
    depth, width = map(int, student.split("-")[1:])
    h = convolution(centred(x), 3, 16, 1)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range((depth - 2) // 6):
            h = unit(h, filters * width, 1 if i else stride, filters == 16 and i == 0)
    return dense(tf.reduce_mean(norm_relu(h), [1, 2]), 10)


def discriminator(j):
    """Two logits for each gradient, [B,2]."""
    h = centred(j)
    for filters in (16, 32, 64, 128, 256):
        h = convolution(h, 4, filters, 2)
        bias = tf.get_variable(f"bias{filters}", [filters], initializer=tf.zeros_initializer())
        h = norm_relu(h + bias)
    return dense(tf.reshape(h, [-1, int(np.prod(h.shape[1:]))]), 2)


# --- the steps -------------------------------------------------------------------------------------


def mean_xent(logits, y):
    """Mean cross-entropy of logits [B,K] and y [B]."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(logits=logits, labels=y)
    return tf.reduce_mean(losses)


class Trainer:
    """One student on one random batch over and over."""

    def __init__(self, student: str, batch_size: int, disc_every: int):
        rng = np.random.RandomState(0)
        self.images = rng.uniform(0, 255, [batch_size, 32, 32, 3]).astype(np.float32)
        self.labels, self.rng = rng.randint(10, size=batch_size), rng
        self.disc_every, self.steps = disc_every, 0
        with tf.Graph().as_default():
            self._build(student)
            self.product = tf.reduce_max(tf.matmul(*(self._matrix(i) for i in range(2))))
            self.session = tf.Session()
            self.session.run(tf.global_variables_initializer())

    @staticmethod
    def _matrix(i: int):
        return tf.get_variable(f"matrix{i}", [rivals.SIDE, rivals.SIDE], trainable=False)

    def _build(self, student: str):
        self.x = tf.placeholder(tf.float32, self.images.shape)
        self.y = tf.placeholder(tf.int64, self.labels.shape)
        true = tf.stack([tf.range(len(self.labels), dtype=tf.int64), self.y], 1)
        logits, j = {}, {}
        for name in ("student", "teacher"):
            with tf.variable_scope(name):
                logits[name] = wide_resnet(self.x, student)
            probability = tf.gather_nd(tf.nn.softmax(logits[name]), true)
            j[name] = tf.gradients(probability, self.x)[0]
        with tf.variable_scope("disc"):
            d = discriminator(tf.concat([j["student"], j["teacher"]], 0))
        d_xent = mean_xent(d, tf.constant(np.repeat([0, 1], len(self.labels))))
        l_diff = tf.reduce_sum(tf.square(j["student"] - j["teacher"]))
        xent = mean_xent(logits["student"], self.y)
        self.x_gradient = tf.gradients(xent, self.x)[0]
        igam = xent - LAMBDA_ADV * d_xent + LAMBDA_DIFF * l_diff
        self.plain_step = self._descent(xent, "student")
        self.igam_step = self._descent(igam, "student")
        self.disc_step = self._descent(d_xent, "disc")

    @staticmethod
    def _descent(loss, scope: str):
        variables = tf.trainable_variables(scope)
        decay = tf.add_n([tf.nn.l2_loss(v) for v in variables if "kernel" in v.name])
        optimizer = tf.train.MomentumOptimizer(1e-6, 0.9)
        return optimizer.minimize(loss + DECAY * decay, var_list=variables)

    def _run(self, what, x):
        return self.session.run(what, {self.x: x, self.y: self.labels})

    def plain(self):
        """L_xent on natural images."""
        self._run(self.plain_step, self.images)

    def igam(self):
        """The student's step, and f_disc's when it is its turn."""
        self._run(self.igam_step, self.images)
        if self.steps % self.disc_every == 0:
            self._run(self.disc_step, self.images)
        self.steps += 1

    def pgd7(self):
        """Madry's training: 7 steps of 2/255 inside 8/255 from a random start."""
        low, high = self.images - 8, self.images + 8
        x_adv = self.rng.uniform(low, high).astype(np.float32)
        for _ in range(7):
            x_adv += 2 * np.sign(self._run(self.x_gradient, x_adv))
            x_adv = np.clip(np.clip(x_adv, low, high), 0, 255)
        self._run(self.plain_step, x_adv)


def trainers_of(student: str, batch_size: int, disc_every: int):
    """(The trainer, a matrix product), as `rivals.rates` takes them."""
    trainer = Trainer(student, batch_size, disc_every)
    return {"nhwc": trainer}, lambda: trainer.session.run(trainer.product)


if __name__ == "__main__":
    rivals.main({"tensorflow": tf.__version__}, __doc__.split("\n")[0], trainers_of)
