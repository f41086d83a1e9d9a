"""Composes each figure: its measurements, its title, and its numbers for `figures.json`."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tensorflow as tf
from matplotlib.figure import Figure

from igam_tf.datasets import Split, fraction_text
from igam_tf.figures import drawing, measuring
from igam_tf.figures.chosen import PGD_STEPS, FigureSettings
from igam_tf.figures.measuring import DrawnModel, Plane
from igam_tf.formulas.gradients import cosine

_J_OF = {"xent": "the cross-entropy", "softmax": "the true class's probability"}
_J_UNIT = {
    "xent": "nats per unit of pixels in 0..1",
    "softmax": "probability per unit of pixels in 0..1",
}


class Composer:
    """The figures of one list of models; each method returns a figure and its numbers.

    Args:
        models: the models drawn.
        teacher: the model among them whose gradients are J_t in `alignment`.
        split: at least as many images as the settings ask for.
        names: names of the classes.
        settings: settings of all figures.
    """

    def __init__(
        self,
        models: Sequence[DrawnModel],
        teacher: DrawnModel | None,
        split: Split,
        names: Sequence[str],
        settings: FigureSettings,
    ):
        self.models, self.teacher, self.split = models, teacher, split
        self.names, self.s = names, settings
        synthetic = ", synthetic images (builtin)" if split.source == "builtin" else ""
        self._data = f"{split.spec.name} {split.name}{synthetic}"

    def _first(self, n: int) -> Split:
        return self.split.take(slice(n), self.split.name)

    def gradients(self) -> tuple[Figure, dict[str, Any]]:
        """Input gradients of the first images (Figures 1, 4, 6)."""
        first, of = self._first(self.s.num_drawn), self.s.input_gradient
        figure, scales = drawing.gradient_grid(
            first.images,
            [drawing.class_label(k, self.names) for k in first.labels],
            {
                drawn.label: measuring.sensitivity(drawn, first, input_gradient=of)[0]
                for drawn in self.models
            },
            unit=_J_UNIT[of],
            title=f"Input gradients J of {_J_OF[of]}\n{self._data}, first n = {self.s.num_drawn} "
            "images, unperturbed (eps 0)",
        )
        return figure, {"n": self.s.num_drawn, "unit": _J_UNIT[of], "percentile_99": scales}

    @cached_property
    def _image(self) -> Split:
        return self.split.take(slice(self.s.image, self.s.image + 1), self.split.name)

    @cached_property
    def _planes(self) -> dict[str, Plane]:
        s, spec = self.s, self.split.spec
        step_size = spec.step_size / spec.eps * s.eps
        random = measuring.random_direction(spec.image_shape, s.seed)
        planes = {}
        for drawn in self.models:
            adversarial = measuring.adversarial_direction(
                drawn, self._image, eps=s.eps, step_size=step_size, attack=s.direction
            )
            planes[drawn.label] = measuring.plane(
                drawn, self._image, adversarial, random, eps=s.eps, points=s.points
            )
        return planes

    def _on_planes(self, what: str) -> dict[str, Any]:
        """The arguments that `drawing.landscape` and `drawing.regions` share."""
        whole = abs(self.s.eps * 255 - round(self.s.eps * 255)) < 1e-9
        attack = {"fgsm": "FGSM", "pgd": f"PGD-{PGD_STEPS}"}[self.s.direction]
        true = drawing.class_label(int(self._image.labels[0]), self.names)
        return {
            "eps": self.s.eps,
            "factor": 255.0 if whole else 1.0,
            "unit": "x/255" if whole else "pixels of 0..1",
            "title": f"{what} around one image, n = 1, l-inf eps {fraction_text(self.s.eps)}\n"
            f"{self._data}, image {self.s.image}, true: {true}\na: sign of each model's own "
            f"{attack}, b: a random sign (seed {self.s.seed}); pixels clipped",
        }

    def landscape(self) -> tuple[Figure, dict[str, Any]]:
        """L_xent along an adversarial and a random direction (Figure 7)."""
        figure = drawing.landscape(self._planes, **self._on_planes("Cross-entropy"))
        return figure, {"unit": "nats"} | {
            label: {
                "at_x": plane.at_x(plane.loss),
                "largest_within_eps": plane.loss[plane.within(self.s.eps)].max().item(),
            }
            for label, plane in self._planes.items()
        }

    def regions(self) -> tuple[Figure, dict[str, Any]]:
        """Predicted class along the same directions (Figure 7)."""
        true = int(self._image.labels[0])
        figure = drawing.regions(
            self._planes, true, self.names, **self._on_planes("Predicted class")
        )
        return figure, {"true_class": true} | {
            label: {
                "at_x": plane.at_x(plane.predicted),
                "share_right_within_eps": float(
                    (plane.predicted[plane.within(self.s.eps)] == true).mean()
                ),
            }
            for label, plane in self._planes.items()
        }

    def alignment(self) -> tuple[Figure, dict[str, Any]]:
        """cos(J_s, J_t), and alpha and rho of eq. 18."""
        first, of = self._first(self.s.num_examples), self.s.input_gradient
        measured = {
            drawn: measuring.sensitivity(drawn, first, input_gradient=of) for drawn in self.models
        }
        values = {}
        for drawn, (j, alpha, rho) in measured.items():
            values[drawn.label] = {"alpha": alpha, "rho": rho}
            if self.teacher and drawn is not self.teacher:
                cosines = cosine(tf.constant(j), tf.constant(measured[self.teacher][0]))
                values[drawn.label]["cosine"] = cosines.numpy()
        numbers = {
            label: {name: measuring.statistics(v) for name, v in row.items()}
            for label, row in values.items()
        }
        teacher = self.teacher and self.teacher.label
        figure = drawing.alignment(
            values, numbers, teacher,
            title=f"Alignment of input gradients, linearised robustness (eq. 18)\n{self._data}, "
            f"first n = {self.s.num_examples} images, unperturbed (eps 0), J of {_J_OF[of]}",
        )  # fmt: skip
        facts = {"n": self.s.num_examples, "J_t": teacher, "unit": "alpha, rho: l2, pixels of 0..1"}
        return figure, facts | numbers
