"""What is audited: a model, its images and the threat model; and the result of every attack on it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from igam_tf.attacks import AttackSpec, attack_specs
from igam_tf.attacks.direction import Direction, direction
from igam_tf.attacks.inputs import LogitsFn
from igam_tf.attacks.spec import STEPS, TARGETS
from igam_tf.attacks.square import QUERIES
from igam_tf.common.errors import UserError
from igam_tf.common.lazy import keras, tf
from igam_tf.datasets import Split, in_pixel_range
from igam_tf.formulas.losses import xent
from igam_tf.storage.journal import MASK_KEY, Journal, journaled, mask_of_text, text_of_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How much work an audit does; each is stated with the figures it led to.

    Attributes:
        num_examples: images audited, the first of the split, unless the user says otherwise.
        steps: numbers of PGD steps, ascending; the first is the default attack's.
        restarts: of the attack that is compared with a single start.
        queries: of Square.
        random_points: tried per example by the random search.
        batch_norm_steps: of PGD on batch statistics.
        inner_points, planted_images: of the planted-boundary test.
        ensemble: the parameter-free attacks in the headline.
    """

    num_examples: int
    steps: tuple[int, ...]
    restarts: int
    queries: int
    random_points: int
    batch_norm_steps: int
    inner_points: int
    planted_images: int
    ensemble: tuple[str, ...]

    @property
    def passes(self) -> float:
        """Gradients that the attacks on an image take at most; a forward pass is a third of one."""
        # 14: four step sizes, two losses, six radii, and two normalisations.
        gradients = max(self.steps) + (self.restarts + 14) * self.steps[0] + (1 + TARGETS) * STEPS
        forward = self.queries + self.random_points
        if "autoattack" in self.ensemble:
            gradients, forward = gradients + TARGETS * STEPS, forward + QUERIES
        return gradients + forward / 3


BUDGETS = {
    "quick": Budget(
        num_examples=100, steps=(20, 40), restarts=3, queries=500, random_points=20,
        batch_norm_steps=5, inner_points=49, planted_images=20, ensemble=("apgd-ce", "apgd-t"),
    ),
    "standard": Budget(
        num_examples=500, steps=(20, 40, 100), restarts=5, queries=5000, random_points=100,
        batch_norm_steps=10, inner_points=199, planted_images=50, ensemble=("autoattack",),
    ),
    "full": Budget(
        num_examples=1000, steps=(20, 40, 100, 1000), restarts=10, queries=5000,
        random_points=1000, batch_norm_steps=20, inner_points=999, planted_images=200,
        ensemble=("autoattack",),
    ),
}  # fmt: skip
# Steps of 2.5 eps / steps reach any point of the ball from any other, with some to spare for turns
# (Madry et al. 2018, §5.2): an attack whose steps are smaller measures itself.
TRAVEL = 2.5
# A sum in another order changes float32 logits by some 1e-6 of their size, randomness by far more.
REPEATS, REPEAT_TOLERANCE = 3, 1e-4
# Streams of random numbers whose figures are published; any other has the checksum of its name.
_STREAMS = {
    "neighbours": 1, "random points": 2, "planted points": 3, "planted starts of pgd": 4,
    "points of differences": 5, "directions of differences": 6, "planted starts of apgd": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """Result of one attack: its robust mask and its settings.

    Attributes:
        robust: whether each example is right clean and under the attack, [n] bool.
        settings: every setting of the attack, as the report states them.
    """

    robust: np.ndarray
    settings: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Share of the examples that are robust, 0..1."""
        return float(self.robust.mean())

    def to_json(self) -> dict[str, Any]:
        """Accuracy and 95 % interval in percent, the settings, and the mask under its JSON key."""
        from igam_tf.evaluation.evaluate import figures

        return figures(self.robust) | self.settings | {MASK_KEY: text_of_mask(self.robust)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> AttackResult:
        """Inverse of `to_json`."""
        own = ("accuracy", "n", "ci95", MASK_KEY)
        return cls(
            mask_of_text(content[MASK_KEY]), {k: v for k, v in content.items() if k not in own}
        )


class AuditedModel:
    """A model under audit, with its images; keeps the result of every attack that has run on it.

    Args:
        model: called with `training=`.
        split: the images, all of which are used.
        pixel_max: highest pixel value of the model's input; None: the model's own, else the data
            set's.
        eps: headline radius, l-inf, as a fraction of the pixel range; None: the data set's.
        step_size: of PGD, likewise; None: in the data set's ratio to eps, but at least TRAVEL eps /
            steps.
        seed: seed of all random starts and points.
        batch_size: images attacked at once.
        budget: how much work.
        sources: name -> model whose adversarial examples are tried on this one.
        journal: where finished batches are kept; None: nowhere.
        progress: whether progress bars are shown.
        logits: what `split_of_arrays` returned with the split; None: they are computed.

    Attributes:
        results: name of each attack that has run -> its AttackResult.
        tools: compiled functions, by name, that several checks use.
        doubts: what makes its figures doubtful, before any attack.

    Raises:
        UserError: the model does not fit the images.
    """

    def __init__(
        self,
        model: keras.Model,
        split: Split,
        *,
        pixel_max: float | None = None,
        eps: float | None = None,
        step_size: float | None = None,
        seed: int = 0,
        batch_size: int = 100,
        budget: Budget = BUDGETS["quick"],
        sources: dict[str, keras.Model] | None = None,
        journal: Journal | None = None,
        progress: bool = True,
        logits: np.ndarray | None = None,
    ):
        from igam_tf.evaluation.evaluate import logits_function, look_at
        from igam_tf.method.networks import pixel_max_of

        spec = split.spec
        self.model, self.split, self.budget = model, split, budget
        self.seed, self.batch_size, self.progress = seed, batch_size, progress
        self.sources, self.journal = sources or {}, journal
        self.pixel_max = pixel_max_of(model, pixel_max, spec.pixel_max)
        self.eps = spec.eps if eps is None else eps
        ratio = max(spec.step_size / spec.eps, TRAVEL / budget.steps[0])
        self.step_size = ratio * self.eps if step_size is None else step_size
        self.labels = split.labels.astype(np.int64)
        self.images = in_pixel_range(split.images, self.pixel_max)
        self.results: dict[str, AttackResult] = {}
        self.tools: dict[str, Callable] = {}
        self._compiled: dict[str, dict] = {}
        self.doubts = look_at(
            model, split, logits=logits,
            pixel_max=self.pixel_max, eps=self.eps, seed=seed, batch_size=batch_size,
        )  # fmt: skip
        self.logits_fn = differentiable(logits_function(model, "inference"))
        self.logits = tf.function(self.logits_fn, reduce_retracing=True, autograph=False)

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def eps_pixels(self) -> np.float32:
        """The headline radius in the model's pixel unit."""
        return np.float32(self.eps * self.pixel_max)

    def batches(self) -> Iterator[np.ndarray]:
        """Indices of the examples, batch by batch."""
        for begin in range(0, self.n, self.batch_size):
            yield np.arange(begin, min(begin + self.batch_size, self.n))

    def generator(self, stream: str, *numbers: int) -> np.random.Generator:
        """Random numbers that depend on the seed, the name of their stream and these numbers alone."""
        number = _STREAMS.get(stream, zlib.crc32(stream.encode()))
        return np.random.default_rng([self.seed, number, *numbers])

    def noise(self, indices: np.ndarray, stream: str, *draw: int) -> np.ndarray:
        """Perturbations uniform in the headline's eps-ball, [B,H,W,C], in the model's pixel unit.

        They depend on the seed, the stream, the draw and each example's index alone.

        Args:
            indices: of the examples, [B].
            stream: any name that no other check has.
            draw: number of the draw, where there are several.
        """
        unit = [
            self.generator(stream, *draw, int(i)).uniform(-1, 1, self.images[0].shape)
            for i in indices
        ]
        return (np.stack(unit) * self.eps_pixels).astype(np.float32)

    def clean_logits(self, batch_size: int | None = None) -> np.ndarray:
        """Logits of every image, [n,K] float32."""
        size = self.batch_size if batch_size is None else batch_size
        parts = [self.logits(self.images[i : i + size]) for i in range(0, self.n, size)]
        return tf.cast(tf.concat(parts, 0), tf.float32).numpy()

    @functools.cached_property
    def repeated_logits(self) -> np.ndarray:
        """Logits of every image in REPEATS calls, [REPEATS,n,K] float32.

        Raises:
            UserError: some are not finite.
        """
        z = np.stack([self.clean_logits() for _ in range(REPEATS)])
        if bad := int((~np.isfinite(z).all((0, 2))).sum()):
            raise UserError(
                f"expected finite logits; they are NaN or infinite for {bad} of {self.n} images"
            )
        return z

    @property
    def spread(self) -> float:
        """Median over the images of the logits' `spread_of`; 1 where that is 0."""
        from igam_tf.method.look import spread_of

        return float(np.median(spread_of(self.repeated_logits[0]))) or 1.0

    @property
    def repeat_change(self) -> float:
        """Largest change of a logit between those calls, as a share of the logits' spread."""
        return float(np.ptp(self.repeated_logits, axis=0).max()) / self.spread

    @property
    def random(self) -> bool:
        """Whether the same image has other logits in another call."""
        return self.repeat_change > REPEAT_TOLERANCE

    def gradient(self, x: np.ndarray, y: np.ndarray) -> Direction:
        """Where an attack on the cross-entropy goes at x [B,H,W,C]; traced once."""
        if "gradient" not in self.tools:
            self.tools["gradient"] = tf.function(
                lambda x, y: direction(self.logits_fn, x, y, xent),
                reduce_retracing=True, autograph=False,
            )  # fmt: skip
        return self.tools["gradient"](x, y)

    def expected_minutes(self) -> float:
        """Minutes that the attacks of the budget take at most, by the time of one batch's gradient."""
        x, y = (values[next(self.batches())] for values in (self.images, self.labels))
        self.gradient(x, y)  # which traces it
        begin = time.monotonic()
        self.gradient(x, y).gradient.numpy()
        seconds = (time.monotonic() - begin) / len(x)
        return self.n * self.budget.passes * seconds / 60

    @functools.cached_property
    def zero_gradients(self) -> np.ndarray:
        """Share of each image's gradient that is exactly 0, [n]; NaN where some of it is not finite."""
        shares = []
        for batch in self.batches():
            found = self.gradient(self.images[batch], self.labels[batch])
            share = (found.gradient.numpy().reshape(len(batch), -1) == 0).mean(1)
            shares.append(np.where(found.not_finite, np.nan, share))
        return np.concatenate(shares)

    def clip(self, x: np.ndarray) -> np.ndarray:
        """x within the pixel range."""
        return np.clip(x, 0, self.pixel_max).astype(np.float32)

    # --- attacks ------------------------------------------------------------------------------

    def pgd(self, name: str, **changes: Any) -> AttackSpec:
        """The default attack, PGD on the cross-entropy from one random start, with some changes."""
        settings = dict(
            eps=self.eps, step_size=self.step_size, steps=self.budget.steps[0], restarts=1,
            loss="xent", random_start=True,
        )  # fmt: skip
        return AttackSpec(name=name, **(settings | changes))

    def named(self, *names: str) -> list[AttackSpec]:
        """Attacks by their names in `igam_tf.attacks`, at the headline eps."""
        return attack_specs(
            names, eps=self.eps, step_size=self.step_size, restarts=1, loss="xent",
            num_classes=self.split.spec.num_classes,
        )  # fmt: skip

    def attack(
        self,
        *specs: AttackSpec,
        through: LogitsFn | None = None,
        variant: str = "",
        batch_norm: str = "inference",
        batch_size: int | None = None,
    ) -> list[AttackResult]:
        """Results of these attacks; an attack whose name has a result already is not run again.

        Args:
            specs: attacks, each with a name of its own.
            through: logits with the model's values and other gradients; default: the model's own.
            variant: name of those other gradients.
            batch_norm, batch_size: see `igam_tf.evaluation.evaluate.evaluate`.
        """
        from igam_tf.evaluation.evaluate import logits_function, settings_dict
        from igam_tf.evaluation.robust import robust_flags

        batch_size = self.batch_size if batch_size is None else batch_size
        if any(spec.name not in self.results for spec in specs):
            mode = f"{variant} {batch_norm}"
            logits_fn = through or self.logits_fn
            if batch_norm == "batch":
                logits_fn = differentiable(logits_function(self.model, "batch"))
            common = {"batch_norm": batch_norm, "batch_size": batch_size, "seed": self.seed}
            robust = robust_flags(
                logits_fn, self.split.images, self.labels,
                attacks=specs, pixel_max=self.pixel_max, progress=self.progress,
                journal=self._journal(variant), compiled=self._compiled.setdefault(mode, {}),
                **common,
            )  # fmt: skip
            for spec in specs:
                settings = settings_dict(spec) | {"gradient": variant or "exact", "on": "itself"}
                # Of a random network a second run would differ; what was judged stands.
                self.results.setdefault(
                    spec.name, AttackResult(robust[spec.name], settings | common)
                )
        return [self.results[spec.name] for spec in specs]

    def results_of(self, *specs: AttackSpec) -> dict[str, AttackResult]:
        """Name of each of these attacks -> its result, as `attack`."""
        return dict(zip((spec.name for spec in specs), self.attack(*specs), strict=True))

    def result_of(
        self,
        name: str,
        right: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
        *,
        identity: str = "",
        **settings: Any,
    ) -> AttackResult:
        """Result of an attack that is none of `igam_tf.attacks`, such as random points.

        Args:
            name: of the attack.
            right: (indices [B], x [B,H,W,C], y [B]) -> [B] bool, whether each example is right under
                the attack.
            identity: of what else the result depends on, such as another model's weights.
            **settings: settings of the attack; one that is left out does not apply.
        """
        from igam_tf.evaluation.evaluate import settings_dict

        if name in self.results:
            return self.results[name]
        robust, journal = self.clean.robust.copy(), self._journal(identity)
        common = {"batch_norm": "inference", "batch_size": self.batch_size, "seed": self.seed}
        blank = settings_dict(AttackSpec(name=name, eps=self.eps)) | {
            "gradient": "none",
            "on": "itself",
        }
        full = blank | settings | common
        for batch in self.batches():
            x, y = self.images[batch], self.labels[batch]
            robust[batch] &= journaled(
                journal, ["audit", name, full, batch, y, x], right, batch, x, y
            )
        self.results[name] = AttackResult(robust, full)
        return self.results[name]

    def _journal(self, variant: str) -> Journal | None:
        """The same journal file; a variant (other gradients, another model) has keys of its own."""
        if self.journal is None or not variant:
            return self.journal
        other = copy.copy(self.journal)
        other.identity = f"{self.journal.identity} {variant}"
        return other

    # --- attacks that several checks use ------------------------------------------------------

    @property
    def clean(self) -> AttackResult:
        """No attack: the images as they are."""
        return self.attack(AttackSpec(name="clean"))[0]

    @property
    def default(self) -> AttackResult:
        """The default attack; each of several checks changes one of its settings."""
        return self.attack(self.pgd(f"pgd{self.budget.steps[0]}"))[0]

    def pgd_by_steps(self) -> dict[str, AttackResult]:
        """PGD with each of the budget's numbers of steps."""
        return self.results_of(*(self.pgd(f"pgd{n}", steps=n) for n in self.budget.steps))

    def losses(self) -> dict[str, AttackResult]:
        """The default attack on each loss that this number of classes allows."""
        names = ("cw", "dlr") if self.split.spec.num_classes >= 3 else ("cw",)
        base = f"pgd{self.budget.steps[0]}"
        others = (self.pgd(f"{base} {loss}", loss=loss) for loss in names)
        return {base: self.default, **self.results_of(*others)}

    def ensemble(self) -> dict[str, AttackResult]:
        """AutoAttack, or the part of it in the budget, that this number of classes allows."""
        names = self.budget.ensemble if self.split.spec.num_classes >= 4 else ("apgd-ce",)
        return self.results_of(*self.named(*names))

    def white_box(self) -> dict[str, AttackResult]:
        """The gradient attacks that black boxes are compared with."""
        results = self.pgd_by_steps() | self.losses() | self.ensemble()
        return {
            name: result for name, result in results.items() if result.settings["kind"] != "square"
        }


def joint(results: dict[str, AttackResult]) -> np.ndarray:
    """Robust mask of all these attacks together, [n] bool."""
    return np.logical_and.reduce([result.robust for result in results.values()])


def differentiable(logits_fn: LogitsFn) -> LogitsFn:
    """The same logits; where they are cut off from x their gradient is 0 instead of missing.

    So a network without any gradient can be audited, and the check `gradients` reports it.
    """

    def with_path_to_x(x: tf.Tensor) -> tf.Tensor:
        logits = logits_fn(x)
        nothing = tf.reduce_sum(tf.zeros_like(x) * x, list(range(1, x.shape.rank)))
        return logits + tf.cast(nothing, logits.dtype)[:, None]

    return with_path_to_x
