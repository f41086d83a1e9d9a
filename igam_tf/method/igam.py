"""IGAM: one `train_step` (paper Algorithm 1, eq. 7-14).

J_t  input gradient of the frozen teacher, through the affine map          (eq. 17)
J_s  input gradient of the student                                         (eq. 8)
student        L_xent + lambda_adv L_adv + lambda_diff L_diff -> min       (eq. 14)
discriminator  L_adv -> max, every `disc_every`-th step                    (eq. 12)

Related methods (l2, cosine, jarn, gradient_penalty) drop or replace a term, or match J_s to
something other than J_t: `igam_tf.method.objectives.METHODS`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras.optimizers import LossScaleOptimizer

from igam_tf.common.errors import UserError
from igam_tf.formulas import gradients, losses
from igam_tf.formulas.second_derivatives import whole_second_derivatives
from igam_tf.method.discriminator import CHANNELS, Discriminator
from igam_tf.method.networks import decayed_variables
from igam_tf.method.objectives import METHODS
from igam_tf.method.optimizers import Momentum
from igam_tf.method.second_order import missing_second_derivative
from igam_tf.method.settings import Settings
from igam_tf.method.teacher import Teacher, check_teacher, check_teacher_outputs
from igam_tf.method.trainer import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    ClassifierTrainer,
    apply,
    float16_scale,
    global_size,
    mean_scale,
    step_key,
    total_of,
    training_step,
)
from madry_models.network import wide_dtype

# A finite difference clips the step of each image to LONGEST times the batch mean.
LONGEST = 5.0
# Before training, |J_s| and |J_t| differ by less than this factor if both networks get the pixels
# that they expect.
FAR = 1e4
# Smallest batch mean: avoids 0/0 if no term depends on J_s, as with the cosine to zero gradients.
SHORTEST = 1e-20
# Kinds of step: L_xent alone; eq. 14 for the student; eq. 14, then eq. 12 for the discriminator.
PHASES = ("plain", "student", "discriminator")


@keras.saving.register_keras_serializable("igam_tf")
class IGAM(ClassifierTrainer):
    """Student, teacher and discriminator; `fit`, `igam_tf.training.loop` or `train_step` trains them.

    If only student and teacher are given, everything else is as in the paper: f_disc,
    hyperparameters, weight decay, and momentum at a constant rate of 0.1 (`compile()`).

    Args:
        student: any Keras model, x [B,H,W,C] -> logits [B,K]; it is trained.
        teacher: any built Keras model from x to logits of the same classes, such as
            `igam_tf.method.teacher.Teacher`; it is not trained. None if the method has none.
        discriminator: maps J [B,...] to the logit [B] that it is the teacher's; None means the
            paper's, if the method has one.
        settings: hyperparameters of the objective.
        pixel_max: x lies in 0..pixel_max; None means that the student is a network of
            `madry_models`, which knows it.
        adaptor: layer between J_s and the discriminator, trained with the student; None means
            JARN's, with that method.
        weight_decay: of both student and discriminator (R7); JARN's adaptor has none.
        seed: of a difference that draws random numbers, see `igam_tf.method.objectives.Method`.
        decayed, from_probabilities, preprocess: of the student, see `ClassifierTrainer`.

    Raises:
        UserError: the teacher is missing or has no variables, or the pixel range is not known.

    Example:
        >>> import keras, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.uniform(0, 255, (8, 8, 8, 3)).astype("float32"), np.arange(8)
        >>> def network():
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        ...         keras.layers.Dense(8)])
        >>> igam = IGAM(network(), network(), pixel_max=255.0)
        >>> igam.compile()
        >>> sorted(igam.fit(x, y, verbose=0).history)[:4]
        ['L_adv', 'L_diff', 'L_xent', 'accuracy']
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        discriminator: keras.Model | None = None,
        *,
        settings: Settings | None = None,
        adaptor: keras.layers.Layer | None = None,
        weight_decay: float = WEIGHT_DECAY,
        seed: int = 0,
        **kwargs,
    ):
        settings = settings or Settings()
        method = METHODS[settings.method]
        if not method.matched_to:
            names = ", ".join(name for name, m in METHODS.items() if m.matched_to)
            raise UserError(
                f"expected a method that matches input gradients ({names}); received "
                f"{settings.method!r}"
            )
        super().__init__(student, weight_decay=weight_decay, terms=method.terms, **kwargs)
        if method.teacher:
            check_teacher(teacher, settings.method)
        self.teacher, self.discriminator, self.adaptor = teacher, discriminator, adaptor
        self.method, self.settings, self.seed = method, settings, seed
        if method.discriminator and discriminator is None:
            self.discriminator = Discriminator(CHANNELS)
        self._unit = self.pixel_max / settings.gradient_pixel_max
        self._derivatives_checked = False  # whether `check_derivatives` has passed
        self._phase: str | None = None  # of the current step, if it is known outside the graph

    def compile(self, optimizer=None, discriminator_optimizer=None, **kwargs):
        """Takes an optimizer or its name for student and discriminator; None means momentum.

        Raises:
            UserError: more than one step per execution.
        """
        if kwargs.get("steps_per_execution", 1) != 1:
            raise UserError(
                "expected steps_per_execution=1, because the kind of each step is chosen between "
                f"steps; received {kwargs['steps_per_execution']!r}: match_every=4 saves more time"
            )
        super().compile(optimizer, **kwargs)
        self._compiled = {}  # kind of step -> its train function
        if discriminator_optimizer is None:
            discriminator_optimizer = Momentum(LEARNING_RATE, momentum=MOMENTUM)
        self.discriminator_optimizer = (
            keras.optimizers.get(discriminator_optimizer) if self.method.discriminator else None
        )
        if self.network.built and (self.discriminator is None or self.discriminator.built):
            self._build_optimizers()

    def build(self, input_shape: tuple) -> None:
        """Creates the variables of student, adaptor and discriminator for images [B,H,W,C]."""
        super().build(input_shape)
        self.make_players(input_shape[1:])

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        if self.discriminator_optimizer and not self.discriminator_optimizer.built:
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def _make(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        if self.method.teacher:
            check_teacher_outputs(self.teacher, x, z, self.pixel_max)
        self.make_players(x.shape[1:])
        if not self._derivatives_checked:
            self.check_derivatives(x, y)
            self._derivatives_checked = True

    def check_derivatives(self, x: np.ndarray, y: np.ndarray) -> None:
        """Checks that all derivatives of the student's step exist, on images [n,H,W,C], labels [n].

        Raises:
            UserError: the student's or the teacher's loss has no gradient with respect to x, or the
                exact update needs a second derivative that TensorFlow does not have.
        """
        y = np.asarray(y, np.int64)
        images, labels = tf.constant(x), tf.constant(y)
        sizes = [
            float(tf.reduce_mean(tf.norm(gradients.flatten(j), axis=1)))
            for model in filter(None, (self.network, self.teacher))
            for j, _, _ in [self.input_gradient(model, images, labels, training=False)]
        ]
        if len(sizes) == 2 and not 1 / FAR <= sizes[0] / max(sizes[1], SHORTEST) <= FAR:
            logging.warning(
                "DOUBTFUL: on the first images |J_s| is %.2g and |J_t| %.2g in the mean: does the "
                "teacher take pixels in 0..%g? Else put a map in front of it, such as "
                "igam_tf.Scale(1 / 255) or igam_tf.Preprocess.", *sizes, self.pixel_max,
            )  # fmt: skip
        if self.settings.second_order != "exact":
            return
        missing = missing_second_derivative(self.network, self.differentiated, x, y, self.pixel_max)
        if missing:
            raise UserError(
                "expected a student whose input gradient TensorFlow can differentiate once more; "
                f"{missing}: leave it out, or take {self.settings.prefix}"
                "second_order=finite_difference, which needs first derivatives alone"
            )

    @property
    def differentiated(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """The loss whose input gradient is J: (logits [B,K], y [B]) -> [B]."""
        of = losses.GRADIENT_OF[self.settings.input_gradient]
        return self.xent if of is losses.xent else of

    def make_players(self, image_shape: tuple[int, ...]) -> None:
        """Creates the variables of adaptor and discriminator for images [H,W,C] if needed."""
        shape = (None, *image_shape)
        if self.method.adaptor and self.adaptor is None:
            self.adaptor = jarn_adaptor(image_shape, wide_dtype(self.network.compute_dtype))
        if self.adaptor is not None and not self.adaptor.built:
            self.adaptor.build(shape)
        if self.discriminator is not None and not self.discriminator.built:
            (seen,) = self.apply_view(tf.zeros((1, *image_shape)))
            self.discriminator.build((None, *seen.shape[1:]))

    def loss_of(self, means: dict[str, tf.Tensor]) -> tf.Tensor:
        """L_xent + lambda_adv L_adv + lambda_diff L_diff, from the means that were measured."""
        weights = {"L_adv": self.settings.lambda_adv, "L_diff": self.settings.lambda_diff}
        loss = super().loss_of(means)
        for name in weights.keys() & means.keys():
            measured = tf.math.is_finite(means[name])
            loss += weights[name] * tf.where(measured, means[name], tf.zeros_like(means[name]))
        return loss

    def get_config(self) -> dict:
        """Keras configuration: the networks and every setting."""
        serialize = keras.saving.serialize_keras_object
        config = super().get_config()
        del config["terms"]  # the method creates it
        return {
            **config,
            "teacher": self.teacher and serialize(self.teacher),
            "discriminator": self.discriminator and serialize(self.discriminator),
            "adaptor": self.adaptor and serialize(self.adaptor),
            "settings": dataclasses.asdict(self.settings),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict) -> "IGAM":
        """Inverse of `get_config`."""
        config = keras.saving.deserialize_keras_object(
            {name: value for name, value in config.items() if name != "settings"}
        ) | {"settings": Settings(**config["settings"])}
        return cls(config.pop("network"), **config)

    def get_compile_config(self) -> dict | None:
        """As in `ClassifierTrainer`, with both optimizers."""
        config = super().get_compile_config()
        if config is not None:
            disc = self.discriminator_optimizer
            config["discriminator_optimizer"] = disc and keras.saving.serialize_keras_object(disc)
        return config

    @property
    def trained_variables(self) -> list:
        """The variables that the student's step updates: theta, and those of an adaptor."""
        adaptor = self.adaptor.trainable_variables if self.adaptor else []
        return self.network.trainable_variables + adaptor

    @property
    def state_variables(self) -> list:
        """Everything that training changes: each network and its optimizer."""
        state = super().state_variables + (self.adaptor.variables if self.adaptor else [])
        if self.method.discriminator:
            state += self.discriminator.variables + self.discriminator_optimizer.variables
        return state

    # --- the schedule: which of the three kinds of step comes next -----------------------------

    def phase(self, step: int) -> str:
        """Kind of step number `step`: "plain", "student", or "discriminator" (both are updated)."""
        s, since = self.settings, step - self.settings.igam_start
        if since < 0 or since % s.match_every:
            return "plain"
        turn = since // s.match_every % s.disc_every == 0
        return "discriminator" if turn and self.method.discriminator else "student"

    def make_train_function(self, force: bool = False):
        """One compiled function for each kind of step; Python chooses between them.

        MirroredStrategy does not allow a discriminator update inside `tf.cond`.
        """
        if force:
            self._compiled.clear()
        step = None  # read at the first call: a callback can restore the optimizer

        def train_function(iterator):
            nonlocal step
            # A LossScaleOptimizer can skip a step, and an optimizer can accumulate several batches
            # into one.
            slower = isinstance(self.optimizer, LossScaleOptimizer) or bool(
                self.optimizer.gradient_accumulation_steps
            )
            known = step is not None and not slower
            step = step + 1 if known else int(self.optimizer.iterations.numpy())
            self._phase = self.phase(step)
            if self._phase not in self._compiled:
                super(IGAM, self).make_train_function(force=True)
                self._compiled[self._phase] = self.train_function
                self.train_function = train_function
            try:
                return self._compiled[self._phase](iterator)
            finally:
                self._phase = None

        self.train_function = train_function
        return train_function

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One step on (x [B,H,W,C] in the student's pixel range, y [B]); returns running means.

        Raises:
            UserError: it is called inside a tf.function, which cannot choose the kind of the step.
        """
        if self._phase is None and not tf.executing_eagerly():
            raise UserError(
                "expected train_step outside a tf.function, because Python chooses the kind of "
                "each step: use fit, make_train_function, or step_of_kind(data, phase) with "
                "phase(step)"
            )
        phase = self._phase or self.phase(int(self.optimizer.iterations.numpy()))
        return self.step_of_kind(data, phase)

    @training_step()
    def step_of_kind(self, data: tuple[tf.Tensor, tf.Tensor], phase: str) -> dict:
        """One step of the given kind; see `phase`."""
        if phase not in PHASES:
            raise UserError(f"expected a phase of {', '.join(PHASES)}; received {phase!r}")
        if phase == "plain":
            return super().train_step(data)
        x, y = self.batch_of(data)
        grads, terms, logits, (j_s, j_t) = self.student_gradients(x, y)
        apply(self.optimizer, grads, self.trained_variables)
        if phase == "discriminator":
            if self.settings.disc_gradients == "recomputed":
                with keras.StatelessScope():  # averages and dropout were used up above
                    j_s, _, _ = self.input_gradient(self.network, x, y, training=True)
            grads, _ = self.discriminator_gradients(j_s, j_t)
            apply(self.discriminator_optimizer, grads, self.discriminator.trainable_variables)
        return self.log(terms, logits, y)

    # --- the method --------------------------------------------------------------------------------

    def input_gradient(self, model: keras.Model, x: tf.Tensor, y: tf.Tensor, *, training: bool):
        """(J, values [B], logits [B,K]) of `model` at x; J [B,H,W,C] in `gradient_pixel_max` unit."""
        logits_fn, scale = partial(model, training=training), float16_scale(model)
        j, values, logits = gradients.input_gradient(logits_fn, x, y, self.differentiated, scale)
        return j * self._unit, values, logits

    def target_gradient(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """What J_s is matched to, J_t or its replacement: [B,H,W,C]; see `Method.matched_to`.

        Raises:
            InvalidArgumentError: "shuffled" gradients of a single image.
        """
        kind = self.method.matched_to
        kind = self.settings.teacher_gradient if kind == "teacher" else kind
        if kind == "image":
            return x
        if kind == "zero":
            return tf.zeros_like(x)
        batch_norm = self.settings.teacher_batch_norm == "batch"
        with keras.StatelessScope():  # it is frozen: neither its averages nor its seeds change
            j_t, _, _ = self.input_gradient(self.teacher, x, y, training=batch_norm)
        if kind == "shuffled":
            tf.debugging.assert_greater(
                tf.shape(x)[0], 1, "shuffled gradients need two images on each replica"
            )
            return tf.roll(j_t, shift=1, axis=0)
        return j_t

    def student_gradients(self, x: tf.Tensor, y: tf.Tensor):
        """Gradient of eq. 14 with respect to theta, through J_s.

        Returns:
            (gradients of this replica's share of the loss, per-example terms, logits,
            (J_s, what it is matched to)).
        """
        j_t = self.target_gradient(x, y)
        if self.settings.second_order == "exact":
            grads, terms, logits, j_s = self._exact(x, y, j_t)
        else:
            grads, terms, logits, j_s = self._finite_difference(x, y, j_t)
        if self.method.matches_teacher:
            terms["cosine"] = gradients.cosine(j_s, j_t)
            terms["norm_ratio"] = gradients.norm_ratio(j_s, j_t)
        return grads, terms, logits, (j_s, j_t)

    def _exact(self, x: tf.Tensor, y: tf.Tensor, j_t: tf.Tensor):
        """Double back-propagation: the outer tape differentiates J_s of the inner tape."""
        with whole_second_derivatives(), tf.GradientTape() as tape:
            j_s, _, logits = self.input_gradient(self.network, x, y, training=True)
            l_xent = self.xent(logits, y)
            matching, terms = self.matching(j_s, j_t)
            total = total_of(self.mean(l_xent), matching, self.decay(self.kernels))
        scale, theta = mean_scale(self.optimizer, self.network, l_xent), self.trained_variables
        grads = gradients.scaled(tape, total, theta, scale, unconnected_gradients="zero")
        return grads, {"L_xent": l_xent} | terms, logits, j_s

    def _finite_difference(self, x: tf.Tensor, y: tf.Tensor, j_t: tf.Tensor):
        """For a constant v = d(matching)/dJ_s, d<v, J_s>/dtheta = d/dh grad_theta L_xent(x + h v).

        The gradient at x serves L_xent, J_s and the difference; the second one is taken at x + h v.
        """
        theta = self.network.trainable_variables
        before = [(v, tf.identity(v.value)) for v in self.network.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = self.network(x, training=True)
            l_xent = self.xent(logits, y)
        # Gradient of the sum over the batch.
        own_scale = float16_scale(self.network)
        j_s, *here = gradients.scaled(tape, l_xent, [x, *theta], own_scale)
        j_s = gradients.connected(j_s) * self._unit
        here = [tf.zeros_like(v) if g is None else g for g, v in zip(here, theta, strict=True)]
        adaptor = [variable.value for variable in self.trained_variables[len(theta) :]]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([j_s, *adaptor])
            matching, terms = self.matching(j_s, j_t)
        v, *adapting = tape.gradient(matching, [j_s, *adaptor])
        v *= self._unit
        norms = gradients.l2_norm(v)
        length = self.mean(norms)
        length = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, length)
        # f_disc sees J_s / |J_s|, so a tiny J_s has a huge v: the step is clipped to LONGEST batch
        # means.
        shorter = tf.minimum(tf.ones_like(norms), tf.math.divide_no_nan(LONGEST * length, norms))
        v *= tf.reshape(shorter, [-1, *[1] * (v.shape.rank - 1)])
        length = tf.maximum(length, tf.cast(SHORTEST, length.dtype))
        h = self.settings.difference_length * self.pixel_max / length

        # Both points use the same dropout mask, and the moving averages are those of x.
        with keras.StatelessScope(before), tf.GradientTape() as tape:
            l_there = self.xent(self.network(x + h * v, training=True), y)
            there = tf.reduce_sum(l_there) / tf.cast(h, l_there.dtype)
            there = total_of(there, self.decay(self.kernels))
        scale = own_scale and own_scale * h
        there = gradients.scaled(tape, there, theta, scale, unconnected_gradients="zero")
        share = 1 / global_size(l_xent, h.dtype) - 1 / h
        grads = [tf.cast(share, a.dtype) * a + b for a, b in zip(here, there, strict=True)]
        return grads + adapting, {"L_xent": l_xent} | terms, logits, j_s

    def matching(self, j_s: tf.Tensor, j_t: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """(this replica's share of lambda_adv L_adv + lambda_diff L_diff, both terms per example).

        Only the terms that the method has. The loss is multiplied by `match_every` and by the
        warm-up; f_disc's accuracy is reported with L_adv.
        """
        s, share, terms = self.settings, tf.zeros([], j_s.dtype), {}
        if self.method.discriminator:
            d_s, d_t = self.discriminator_logits(j_s, j_t)
            terms["L_adv"] = losses.l_adv(d_s, d_t)
            terms["disc_accuracy"] = losses.discriminator_accuracy(d_s, d_t)
            share += s.lambda_adv * tf.cast(self.reduce_adv(terms["L_adv"]), share.dtype)
        if self.method.difference:
            terms["L_diff"] = self.difference(j_s, j_t)
            share += s.lambda_diff * tf.cast(self.reduce_diff(terms["L_diff"]), share.dtype)
        grown = tf.cast(self.ramp(s.igam_start, s.ramp_steps), j_s.dtype)
        return s.match_every * grown * share, terms

    def difference(self, j_s: tf.Tensor, j_t: tf.Tensor) -> tf.Tensor:
        """The method's difference between J_s and its target, without lambda_diff. -> [B]."""
        if self.method.in_norm:
            return losses.DIFF_NORMS[self.settings.diff_norm](j_s, j_t)
        draw = {}
        if "key" in inspect.signature(self.method.difference).parameters:
            # This key differs from that of a teacher's random map.
            draw["key"] = tf.random.fold_in(step_key(self.optimizer, self.seed), 1)
        return self.method.difference(j_s, j_t, **draw)

    def discriminator_gradients(self, j_s: tf.Tensor, j_t: tf.Tensor):
        """(gradient of -L_adv + weight decay with respect to phi (eq. 12), L_adv per example)."""
        phi, j_s = self.discriminator.trainable_variables, tf.stop_gradient(j_s)
        with (
            whole_second_derivatives(),
            tf.GradientTape() as tape,
        ):  # computes the moments as the student's step does
            d_s, d_t = self.discriminator_logits(j_s, j_t)
            l_adv = losses.l_adv(d_s, d_t)
            total = -self.reduce_adv(l_adv)
            total = total_of(total, self.decay(decayed_variables(self.discriminator)))
        scale = mean_scale(self.discriminator_optimizer, self.discriminator, l_adv)
        return gradients.scaled(tape, total, phi, scale), l_adv

    def discriminator_logits(self, j_s: tf.Tensor, j_t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """f_disc's logits (d_s, d_t), [B] each, from one batch that holds both gradients (R4)."""
        if self.adaptor:
            j_s = tf.cast(self.adaptor(j_s), j_t.dtype)
        both = tf.concat(self.apply_view(j_s, j_t), axis=0)
        return tf.split(losses.at_least_float32(self.discriminator(both)), 2)

    def apply_view(self, *js: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What f_disc sees of each J [B,H,W,C]; see the setting `disc_view`."""
        if self.settings.disc_view == "all" or not isinstance(self.teacher, Teacher):
            return js
        return tuple(map(self.teacher.transform.teacher_view, js))

    def reduce_adv(self, l_adv: tf.Tensor) -> tf.Tensor:
        """This replica's share of L_adv over the global batch."""
        return self.mean(l_adv) / (2 if self.settings.adv_reduction == "mean_of_both" else 1)

    def reduce_diff(self, l_diff: tf.Tensor) -> tf.Tensor:
        """This replica's share of L_diff over the global batch."""
        return tf.reduce_sum(l_diff) if self.settings.diff_reduction == "sum" else self.mean(l_diff)


def jarn_adaptor(image_shape: tuple[int, ...], dtype: str = "float32") -> keras.layers.Conv2D:
    """JARN's layer between J_s and f_disc, for images [H,W,C]: a 1x1 convolution and a tanh.

    J_s is too small for float16: the layer computes in float32 whatever the student does.
    """
    return keras.layers.Conv2D(image_shape[-1], 1, activation="tanh", dtype=dtype)
