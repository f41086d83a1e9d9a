"""The names and settings of the figures, without importing TensorFlow or matplotlib."""

import dataclasses

FIGURES = ("gradients", "landscape", "regions", "alignment")  # methods of `composing.Composer`
PGD_STEPS = 20
EXTENT = 2.0  # half the side of the plane, in eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureSettings:
    """The settings of the figures, with the names of the flags.

    Attributes:
        eps: l-inf radius, as a fraction of the pixel range.
        num_examples: number of images of `alignment`, the first of the split.
        num_drawn: number of images of `gradients`, the first of the split.
        image: index in the split of the image of `landscape` and `regions`.
        direction: adversarial direction of both: "fgsm" or "pgd", see
            `measuring.adversarial_direction`.
        points: points along each side of their grid, odd.
        input_gradient: the loss whose gradient is J, see `igam_tf.formulas.losses.GRADIENT_OF`.
        seed: seed of the random direction.
    """

    eps: float
    num_examples: int
    num_drawn: int
    image: int
    direction: str
    points: int
    input_gradient: str
    seed: int
