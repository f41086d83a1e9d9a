"""IGAM: one `train_step` (paper Algorithm 1, eq. 7-14).

J_t  input gradient of the frozen teacher, through the affine map          (eq. 17)
J_s  input gradient of the student                                         (eq. 8)
student        L_xent + lambda_adv L_adv + lambda_diff L_diff -> min       (eq. 14)
discriminator  L_adv -> max, every `disc_every`-th step                    (eq. 12)

Its relatives (l2, cosine, jarn, gradient_penalty) leave a term out, or have another one, or put
something else in the place of J_t: `igam_tf.method.objectives.METHODS`.
"""

import keras
import tensorflow as tf

from igam_tf.formulas import gradients, losses
from igam_tf.method.discriminator import standardize
from igam_tf.method.objectives import METHODS
from igam_tf.method.settings import Settings
from igam_tf.method.trainer import ClassifierTrainer, global_size, replicas

LONGEST = 5.0  # step of a finite difference, over the batch's mean
SHORTEST = 1e-20  # that mean before scaling; 0 where no term sees J_s, as with the cosine to 0
PHASES = ("plain", "student", "discriminator")  # the kinds of step


class IGAM(ClassifierTrainer):
    """Student, teacher and discriminator; `fit`, `igam_tf.training.loop` or `train_step` trains them.

    Args:
        student: network to train; its `pixel_max` says the pixel range of x.
        teacher: frozen model from x to logits of the target classes, `igam_tf.method.teacher.Teacher`;
            None where the method needs none.
        discriminator: maps J to the logit that it is the teacher's; None likewise.
        settings: see `igam_tf.method.settings.Settings`.
        adaptor: built layer between J_s and the discriminator (JARN), trained with the student.
        weight_decay: of student and discriminator alike (R7); JARN's adaptor has none.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None,
        discriminator: keras.Model | None,
        *,
        settings: Settings,
        adaptor: keras.layers.Layer | None = None,
        weight_decay: float = 0.0,
        **kwargs,
    ):
        method = METHODS[settings.method]
        super().__init__(student, weight_decay=weight_decay, terms=method.terms, **kwargs)
        self.teacher, self.discriminator, self.adaptor = teacher, discriminator, adaptor
        self.method, self.settings = method, settings
        self._unit = student.pixel_max / settings.gradient_pixel_max
        self._phase: str | None = None  # of the step being run or traced, where the host knows it

    def compile(self, optimizer, discriminator_optimizer=None, **kwargs):
        """Takes one optimizer for each player there is; their variables are made at once."""
        super().compile(optimizer=optimizer, **kwargs)
        self._compiled = {}  # kind of step -> its train function
        self.discriminator_optimizer = discriminator_optimizer
        optimizer.build(self.trained_variables)
        if self.method.discriminator:
            discriminator_optimizer.build(self.discriminator.trainable_variables)

    @property
    def trained_variables(self) -> list:
        """The variables of the student's step: theta, and the adaptor's where there is one."""
        adaptor = self.adaptor.trainable_variables if self.adaptor else []
        return self.network.trainable_variables + adaptor

    @property
    def state_variables(self) -> list:
        """Everything that training changes: each player and its optimizer."""
        state = super().state_variables + (self.adaptor.variables if self.adaptor else [])
        if self.method.discriminator:
            state += self.discriminator.variables + self.discriminator_optimizer.variables
        return state

    # --- the schedule: which of the three kinds of step comes next -----------------------------

    def phase(self, step: int) -> str:
        """Kind of step number `step`: "plain", "student", or "discriminator", where both take a step."""
        matched, turn = self._turns(step)
        return PHASES[matched + turn]

    def _turns(self, step):
        """(whether step number `step`, an int or a tensor, looks at J; whether it is f_disc's turn)."""
        s = self.settings
        since = step - s.igam_start
        matched = (since >= 0) & (since % s.match_every == 0)
        turn = matched & (since // s.match_every % s.disc_every == 0)
        return matched, turn & self.method.discriminator

    def make_train_function(self, force: bool = False):
        """One compiled function for each kind of step, chosen on the host.

        A discriminator update inside `tf.cond` is not possible under MirroredStrategy.
        """
        step = int(self.optimizer.iterations.numpy())
        if force:
            self._compiled.clear()

        def train_function(iterator):
            nonlocal step
            self._phase = self.phase(step)
            if self._phase not in self._compiled:
                super(IGAM, self).make_train_function(force=True)
                self._compiled[self._phase] = self.train_function
                self.train_function = train_function
            step += self.steps_per_execution
            try:
                return self._compiled[self._phase](iterator)
            finally:
                self._phase = None

        if self.steps_per_execution != 1:
            raise ValueError(
                "IGAM chooses each step's kind on the host: steps_per_execution must be 1. "
                f"Received: {self.steps_per_execution}"
            )
        self.train_function = train_function
        return train_function

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict:
        """One step on (x [B,H,W,C] in the student's pixel range, y [B]); returns running means."""
        if self._phase is not None:
            return self.step_of_kind(data, self._phase)
        if tf.executing_eagerly():
            return self.step_of_kind(data, self.phase(int(self.optimizer.iterations.numpy())))
        if replicas() > 1:
            raise ValueError(
                "under several replicas the host must choose each step's kind: use `fit`, "
                "`make_train_function`, or `step_of_kind(data, phase)` with `phase(step)`."
            )
        turns = self._turns(tf.cast(self.optimizer.iterations, tf.int64))
        kind = tf.add_n([tf.cast(turn, tf.int32) for turn in turns])
        phases = PHASES if self.method.discriminator else PHASES[:2]
        return tf.switch_case(kind, [lambda p=p: self.step_of_kind(data, p) for p in phases])

    def step_of_kind(self, data: tuple[tf.Tensor, tf.Tensor], phase: str) -> dict:
        """One step of the given kind; see `phase`."""
        if phase not in PHASES:
            raise ValueError(f"expected a phase of {', '.join(PHASES)}. Received: {phase!r}")
        if phase == "plain":
            return super().train_step(data)
        x, y = data
        grads, terms, logits, (j_s, j_t) = self.student_gradients(x, y)
        self.optimizer.apply(grads, self.trained_variables)
        if phase == "discriminator":
            if self.settings.disc_gradients == "recomputed":
                j_s, _, _ = self.input_gradient(self.network, x, y, training=True)
            grads, _ = self.discriminator_gradients(j_s, j_t)
            self.discriminator_optimizer.apply(grads, self.discriminator.trainable_variables)
        return self.log(terms, logits, y)

    # --- the method --------------------------------------------------------------------------------

    def input_gradient(self, model: keras.Model, x: tf.Tensor, y: tf.Tensor, *, training: bool):
        """(J, values [B], logits [B,K]) of `model` at x; J [B,H,W,C] in `gradient_pixel_max` unit."""
        of = losses.GRADIENT_OF[self.settings.input_gradient]

        def values(x):
            logits = model(x, training=training)
            return of(logits, y), logits

        j, values, logits = gradients.input_gradient(values, x, self.loss_scale)
        return j * self._unit, values, logits

    def target_gradient(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """What J_s is matched to, in the place of J_t: [B,H,W,C]; see `Method.matched_to`.

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
        if self.method.matched_to == "teacher":
            terms["cosine"] = gradients.cosine(j_s, j_t)
            terms["norm_ratio"] = gradients.norm_ratio(j_s, j_t)
        return grads, terms, logits, (j_s, j_t)

    def _exact(self, x: tf.Tensor, y: tf.Tensor, j_t: tf.Tensor):
        """Double back-propagation: the outer tape differentiates the inner one's J_s."""
        with tf.GradientTape() as tape:
            j_s, _, logits = self.input_gradient(self.network, x, y, training=True)
            l_xent = losses.xent(logits, y)
            matching, terms = self.matching(j_s, j_t)
            total = self.mean(l_xent) + matching + self.decay(self.network.kernels)
        grads = gradients.scaled(tape, total, self.trained_variables, self.mean_scale(l_xent))
        return grads, {"L_xent": l_xent} | terms, logits, j_s

    def _finite_difference(self, x: tf.Tensor, y: tf.Tensor, j_t: tf.Tensor):
        """With v = d(matching)/dJ_s held fixed, d<v, J_s>/dtheta = d/dh grad_theta L_xent(x + h v).

        One gradient at x serves L_xent, J_s and the difference; the other is taken at x + h v.
        """
        theta = self.network.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = self.network(x, training=True)
            l_xent = losses.xent(logits, y)
        # Of the sum over the batch.
        j_s, *here = gradients.scaled(tape, l_xent, [x, *theta], self.loss_scale)
        j_s *= self._unit
        adaptor = [variable.value for variable in self.trained_variables[len(theta) :]]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([j_s, *adaptor])
            matching, terms = self.matching(j_s, j_t)
        v, *adapting = tape.gradient(matching, [j_s, *adaptor])
        v *= self._unit
        norms = tf.norm(gradients.flatten(v), axis=1)
        length = self.mean(norms)
        length = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, length)
        # f_disc sees J_s / |J_s|, so that a tiny J_s has a huge v: no image goes beyond LONGEST steps.
        shorter = tf.minimum(tf.ones_like(norms), tf.math.divide_no_nan(LONGEST * length, norms))
        v *= tf.reshape(shorter, [-1, *[1] * (v.shape.rank - 1)])
        length = tf.maximum(length, tf.cast(SHORTEST, length.dtype))
        h = self.settings.difference_length * self.network.pixel_max / length

        averages = [v.value + 0 for v in self.network.non_trainable_variables]
        with tf.GradientTape() as tape:
            l_there = losses.xent(self.network(x + h * v, training=True), y)
            there = tf.reduce_sum(l_there) / h + self.decay(self.network.kernels)
        there = gradients.scaled(tape, there, theta, self.loss_scale and self.loss_scale * h)
        for variable, before in zip(self.network.non_trainable_variables, averages, strict=True):
            variable.assign(before)  # moving averages are those of x
        share = 1 / global_size(l_xent, l_xent.dtype) - 1 / h
        grads = [share * a + b for a, b in zip(here, there, strict=True)]
        return grads + adapting, {"L_xent": l_xent} | terms, logits, j_s

    def matching(self, j_s: tf.Tensor, j_t: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """(this replica's share of lambda_adv L_adv + lambda_diff L_diff, both terms per example).

        Of the two, the method's, the share `match_every` times as large; f_disc's accuracy is
        reported with L_adv.
        """
        s, share, terms = self.settings, 0.0, {}
        if self.method.discriminator:
            d_s, d_t = self.discriminator_logits(j_s, j_t)
            terms["L_adv"] = losses.l_adv(d_s, d_t)
            terms["disc_accuracy"] = losses.discriminator_accuracy(d_s, d_t)
            share += s.lambda_adv * self.reduce_adv(terms["L_adv"])
        if self.method.difference:
            terms["L_diff"] = self.method.difference(*self.apply_view(s.diff_view, j_s, j_t))
            share += s.lambda_diff * self.reduce_diff(terms["L_diff"])
        return s.match_every * share, terms

    def discriminator_gradients(self, j_s: tf.Tensor, j_t: tf.Tensor):
        """(gradient of -L_adv + weight decay with respect to phi (eq. 12), L_adv per example).

        With `disc_label_smoothing` and `disc_r1` f_disc descends on more than -L_adv.
        """
        s, phi = self.settings, self.discriminator.trainable_variables
        j_s = tf.stop_gradient(j_s)
        with tf.GradientTape() as tape:
            d_s, d_t = self.discriminator_logits(j_s, j_t)
            l_adv = losses.l_adv(d_s, d_t)
            # log(1 - sigmoid(d)) = log sigmoid(d) - d
            total = self.decay(self.discriminator.kernels)
            total -= self.reduce_adv(l_adv - s.disc_label_smoothing * d_t)
            if s.disc_r1:
                j_t = standardize(j_t)
                slope, _, _ = gradients.input_gradient(
                    lambda j: self.discriminator_logits(j_s, j)[::-1], j_t
                )
                total += s.disc_r1 / 2 * self.mean(losses.l_diff(slope, tf.zeros_like(slope)))
        return tape.gradient(total, phi), l_adv

    def discriminator_logits(self, j_s: tf.Tensor, j_t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """f_disc's logits (d_s, d_t), [B] each, from one batch that holds both gradients (R4)."""
        if self.adaptor:
            j_s = self.adaptor(j_s)
        both = tf.concat(self.apply_view(self.settings.disc_view, j_s, j_t), axis=0)
        return tf.split(self.discriminator(both), 2)

    def apply_view(self, view: str, *js: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What a term with that view, "all" or "teacher", sees of each J [B,H,W,C]."""
        if view == "all" or not self.teacher:
            return js
        return tuple(map(self.teacher.transform.teacher_view, js))

    def reduce_adv(self, l_adv: tf.Tensor) -> tf.Tensor:
        """This replica's share of L_adv over the global batch."""
        return self.mean(l_adv) / (2 if self.settings.adv_reduction == "mean_of_both" else 1)

    def reduce_diff(self, l_diff: tf.Tensor) -> tf.Tensor:
        """This replica's share of L_diff over the global batch."""
        return tf.reduce_sum(l_diff) if self.settings.diff_reduction == "sum" else self.mean(l_diff)
