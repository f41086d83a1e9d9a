"""Every setting of a run in one place: its default, its presets, its rows of the paper.

`resolve` puts them together, the later winning:

    Config's defaults < teacher of the source < row of the paper (source, target, transform)
    < fidelity < method < preset < the preset's budget for the method < what the user says
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from igam_tf.datasets import SPECS, steps_per_epoch
from igam_tf.method.igam import Settings
from igam_tf.method.objectives import METHODS
from igam_tf.method.transforms import (
    SAMPLINGS,
    CenterCrop,
    CenterPad,
    ChannelMean,
    Compose,
    Identity,
    RandomPad,
    Resize,
    Scale,
    TransposeConvolution,
)
from madry_models.errors import UserError

# Maps to the teacher's input (§4.3): name -> layers, of the teacher's image size and `up_resize`.
MAPS: dict[str, Callable[[int, str], list[Identity]]] = {
    "identity": lambda size, up_resize: [],
    "grey_crop": lambda size, up_resize: [ChannelMean(), CenterCrop(size)],
    "crop": lambda size, up_resize: [CenterCrop(size)],
    "resize": lambda size, up_resize: [Resize(size, up_resize)],
    "pad": lambda size, up_resize: [CenterPad(size)],
    "random_pad": lambda size, up_resize: [RandomPad(size)],
    "transpose_conv": lambda size, up_resize: [TransposeConvolution()],
}


_ONE_UP, _POSITIVE = (1, math.inf), (1e-6, math.inf)


def _setting(
    default: Any,
    doc: str,
    choices: tuple[str, ...] | None = None,
    within: tuple[float, float] = (0, math.inf),
) -> Any:
    metadata = {"doc": doc, "choices": choices, "within": within}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run; `igam_tf.train` makes one flag of each field."""

    # What is transferred to what
    source: str = _setting("mnist", "task of the teacher", tuple(SPECS))
    target: str = _setting("cifar10", "task of the student", tuple(SPECS))
    method: str = _setting("igam", "see objectives.METHODS", tuple(METHODS))
    teacher_gradient: str = _setting(
        "teacher",
        "J_t, or what stands for it as a control; plain: of a teacher trained without an attack",
        ("teacher", "zero", "shuffled", "plain"),
    )
    fidelity: str = _setting("paper", "objective of the paper or the release", ("paper", "release"))
    preset: str = _setting("paper", "size and budget", ("paper", "cpu", "smoke"))
    data: str = _setting("tfds", "real data, or the built-in synthetic pair", ("tfds", "builtin"))
    data_dir: str = _setting("", "tensorflow-datasets folder; empty: its own default")
    train_examples: int = _setting(0, "training images, from the beginning of the split; 0: all")
    data_seed: int = _setting(0, "of the drawing of the built-in data")
    seed: int = _setting(
        0, "of data order, augmentation, weights and attacks", within=(0, 2**32 - 1)
    )

    # Stage 0 and 1: the teacher
    teacher: str = _setting("load", "load a MadryLab checkpoint, or train one", ("load", "train"))
    teacher_checkpoint: str = _setting(
        "adv_trained", "MadryLab checkpoint folder, or natural, adv_trained, secret (fetched)"
    )
    teacher_steps: int = _setting(100_000, "--teacher=train: steps", within=_ONE_UP)
    teacher_batch_size: int = _setting(50, "--teacher=train: global batch", within=_ONE_UP)
    teacher_learning_rate: float = _setting(
        1e-4, "--teacher=train: of Adam for mnist; else of momentum, at its highest"
    )
    teacher_attack_steps: int = _setting(40, "--teacher=train: PGD steps")
    transform: str = _setting("grey_crop", "map to the teacher's input (§4.3)", tuple(MAPS))
    up_resize: str = _setting("half_pixel", "where resizing up samples (R12)", SAMPLINGS)
    finetune_steps: int = _setting(4700, "stage 1: steps")
    finetune_learning_rate: float = _setting(1e-3, "stage 1: of Adam (R11)")
    finetune_weight_decay: float = _setting(2e-4, "stage 1 (R11)")

    # Stage 2: the student
    student: str = _setting("wrn-32-10", "wrn-<depth>-<width>, depth = 6n + 2")
    student_input: str = _setting("standardize", "input layer (R5)", ("standardize", "unit_norm"))
    precision: str = _setting(
        "float32",
        "of the student's layers, and of the teacher's in J_t; J and losses stay float32",
        ("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit: str = _setting(
        "auto", "compile steps by XLA; auto: where it was measured to win", ("auto", "on", "off")
    )
    batch_size: int = _setting(128, "global batch of stages 1 and 2", within=_ONE_UP)
    train_steps: int = _setting(78_200, "student steps; 200 epochs of 391", within=_ONE_UP)
    learning_rate: float = _setting(0.1, "of the student, at its highest")
    igam_learning_rate: float = _setting(
        0.0, "where above 0, a schedule of its own from --igam_start on, with this highest rate"
    )
    lr_schedule: str = _setting("step", "see optimizers.schedule", ("constant", "step", "cosine"))
    sync_batch_norm: bool = _setting(
        True, "batch statistics over all replicas, not each replica's own"
    )
    momentum: float = _setting(0.9, "of student and discriminator", within=(0, 1))
    weight_decay: float = _setting(2e-4, "of student and discriminator kernels")
    pixel_noise: float = _setting(
        0.0, "half-width of uniform noise on training images, 0..255 (R10)"
    )

    # The objective; see igam_tf.method.igam.Settings
    lambda_adv: float = _setting(1.0, "weight of L_adv (eq. 14)")
    lambda_diff: float = _setting(
        100.0, "weight of L_diff (eq. 14), in the unit of J and its reduction"
    )
    match_every: int = _setting(
        1, "J is looked at every so many steps, with weights so many times as large", within=_ONE_UP
    )
    disc_every: int = _setting(
        10, "k: steps that look at J for each discriminator step", within=_ONE_UP
    )
    igam_start: int = _setting(0, "plain steps before both terms are switched on (R8)")
    input_gradient: str = _setting("xent", "J is the gradient of (R1)", ("xent", "softmax"))
    gradient_pixel_max: float = _setting(
        1.0, "J is per unit of pixels in 0..this", within=_POSITIVE
    )
    diff_reduction: str = _setting("mean", "of L_diff over the batch (R2)", ("mean", "sum"))
    adv_reduction: str = _setting(
        "sum_of_means", "of L_adv (eq. 10, R3)", ("sum_of_means", "mean_of_both")
    )
    diff_view: str = _setting("all", "what L_diff sees of J", ("all", "teacher"))
    disc_view: str = _setting("teacher", "what f_disc sees of J (§4.3.2)", ("teacher", "all"))
    disc_gradients: str = _setting("same", "J_s of f_disc's step (R9)", ("same", "recomputed"))
    teacher_batch_norm: str = _setting("inference", "of f_t in J_t (R6)", ("inference", "batch"))
    second_order: str = _setting(
        "exact", "gradient of the update through J_s", ("exact", "finite_difference")
    )
    difference_length: float = _setting(
        0.1, "--second_order=finite_difference: mean l2 step, in pixels of 0..1", within=_POSITIVE
    )
    disc_channels: tuple[int, ...] = _setting(
        (16, 32, 64, 128, 256), "of f_disc's convolutions", within=_ONE_UP
    )
    disc_outputs: int = _setting(1, "1: sigmoid (eq. 10); 2: two-class softmax (R3)", within=(1, 2))
    disc_norm: str = _setting(
        "batch", "of f_disc's layers: batch norm, or spectral norm", ("batch", "spectral")
    )
    disc_learning_rate: float = _setting(0.1, "of the discriminator, at its highest")
    disc_label_smoothing: float = _setting(
        0.0, "of the teacher's side, in f_disc's step", within=(0, 1)
    )
    disc_r1: float = _setting(0.0, "weight of f_disc's gradient penalty on J_t")

    # Students trained on adversarial examples
    pgd_steps: int = _setting(
        7,
        "--method=pgd|trades|ard: attack steps, of 2/255 inside 8/255 for CIFAR-10",
        within=_ONE_UP,
    )
    trades_beta: float = _setting(6.0, "--method=trades: weight of KL(p(x) || p(x_adv))")
    ard_alpha: float = _setting(
        1.0, "--method=ard: weight of the teacher against the labels", within=(0, 1)
    )
    ard_temperature: float = _setting(30.0, "--method=ard: of both softmaxes", within=_POSITIVE)

    # Stage 3 and reporting
    num_validation: int = _setting(1000, "training images held out for validation; 0: none")
    eval_examples: int = _setting(1000, "test images of stage 3", within=_ONE_UP)
    eval_attacks: str = _setting("clean,fgsm,pgd20", "attacks of stage 3")
    log_every: int = _setting(50, "steps between metrics", within=_ONE_UP)
    validate_every: int = _setting(500, "steps between validations and pictures", within=_ONE_UP)
    checkpoint_every: int = _setting(250, "steps between checkpoints", within=_ONE_UP)

    def objective(self) -> Settings:
        """The part of the settings that IGAM's step reads."""
        names = [field.name for field in dataclasses.fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})


# Teachers: MNIST's from its challenge, as in Config; all others with the CIFAR-10 challenge's recipe
# (§5.1.2, §5.3: "the same adversarial training hyperparameters"), of the student's size.
_CIFAR_RECIPE: dict[str, Any] = {
    "teacher_steps": 80_000,
    "teacher_batch_size": 128,
    "teacher_learning_rate": 0.1,
    "teacher_attack_steps": 7,
}
TEACHERS: dict[str, dict[str, Any]] = {
    "mnist": {},
    "cifar10": _CIFAR_RECIPE | {"teacher": "load"},
    "cifar100": _CIFAR_RECIPE | {"teacher": "train"},
    "tiny_imagenet": _CIFAR_RECIPE | {"teacher": "train"},
}

TRAIN_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny_imagenet": 100_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What the paper says of one transfer (Appendix A; epochs of fine-tuning: §5).

    Attributes:
        finetune_epochs: stage 1.
        lambda_adv, lambda_diff: as published.
        disc_channels: of f_disc's convolutions.
        disc_every: k.
        release_noise: half-width of the release's noise on training images, 0..255 (R10).
    """

    finetune_epochs: int
    lambda_adv: float
    lambda_diff: float
    disc_channels: tuple[int, ...]
    disc_every: int
    release_noise: float = 0.0

    def settings(self, target: str, fidelity: str) -> dict[str, Any]:
        """The row as settings; epochs, 200 for the student, become steps of 128 images."""
        epoch = steps_per_epoch(TRAIN_IMAGES[target], 128)
        paper = {
            "finetune_steps": self.finetune_epochs * epoch,
            "train_steps": 200 * epoch,
            "lambda_adv": self.lambda_adv,
            "lambda_diff": self.lambda_diff * PUBLISHED_TO_MEAN_UNIT,
            "disc_channels": self.disc_channels,
            "disc_every": self.disc_every,
        }
        if fidelity == "paper":
            return paper
        scale = {"lambda_diff": self.lambda_diff, "pixel_noise": self.release_noise}
        return paper | scale | RELEASE


_LARGE, _SMALL = (16, 32, 64, 128, 256), (8, 16, 32, 64)

# (source, target, transform) -> row; the first of a pair is its default.
ROWS: dict[tuple[str, str, str], Row] = {
    # A.1, Table 1: IGAM-MNIST
    ("mnist", "cifar10", "grey_crop"): Row(
        finetune_epochs=10, lambda_adv=1.0, lambda_diff=100.0, disc_channels=_LARGE, disc_every=10
    ),
    # A.1, Table 2: IGAM-Upsize, -Pad, -RandomPad, -TransposeConv
    ("tiny_imagenet", "cifar10", "resize"): Row(
        finetune_epochs=6, lambda_adv=5.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "pad"): Row(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=20.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "random_pad"): Row(
        finetune_epochs=6, lambda_adv=1.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    ("tiny_imagenet", "cifar10", "transpose_conv"): Row(
        finetune_epochs=6, lambda_adv=1.0, lambda_diff=10.0, disc_channels=_SMALL, disc_every=5
    ),
    # A.2, Table 3: IGAM-MNIST, IGAM-CIFAR10
    ("mnist", "cifar100", "grey_crop"): Row(
        finetune_epochs=10, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_LARGE, disc_every=5
    ),
    ("cifar10", "cifar100", "identity"): Row(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=10.0, disc_channels=_LARGE, disc_every=10,
        release_noise=8.0,
    ),
    # A.3, Figure 5: IGAM-CIFAR10-Resize, -Crop, IGAM-CIFAR100-Resize, -Crop
    ("cifar10", "tiny_imagenet", "resize"): Row(
        finetune_epochs=5, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar10", "tiny_imagenet", "crop"): Row(
        finetune_epochs=5, lambda_adv=2.0, lambda_diff=50.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar100", "tiny_imagenet", "resize"): Row(
        finetune_epochs=5, lambda_adv=0.1, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    ("cifar100", "tiny_imagenet", "crop"): Row(
        finetune_epochs=5, lambda_adv=0.5, lambda_diff=200.0, disc_channels=_SMALL, disc_every=5
    ),
    # Not in the paper: a teacher of the very task, with what Table 3 has for IGAM-CIFAR10
    ("cifar10", "cifar10", "identity"): Row(
        finetune_epochs=6, lambda_adv=2.0, lambda_diff=10.0, disc_channels=_LARGE, disc_every=10
    ),
}  # fmt: skip

# The published lambda_diff weighs a sum over 32 images of J in 0..255 pixels (R1, R2). On a mean
# over the batch of J in 0..1 pixels the same weight is smaller by this factor.
PUBLISHED_TO_MEAN_UNIT = 32 / 255**2

RELEASE: dict[str, Any] = {
    "input_gradient": "softmax",  # R1
    "gradient_pixel_max": 255.0,  # R1
    "diff_reduction": "sum",  # R2
    "adv_reduction": "mean_of_both",  # R3
    "disc_outputs": 2,  # R3, R4
    "disc_view": "all",
    "student_input": "unit_norm",  # R5
    "teacher_batch_norm": "batch",  # R6
    "batch_size": 32,  # R7
    "train_steps": 320_000,  # R7
    "igam_start": 280_000,  # R8
    "disc_gradients": "recomputed",  # R9
    "disc_every": 5,  # R9
    "finetune_steps": 4700,  # R11
    "up_resize": "legacy",  # R12
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Two cores, a quarter of an hour; how it was chosen: flags/mnist_to_cifar10_cpu.flags.
    "cpu": {
        "student": "wrn-8-2",
        "finetune_steps": 1500,
        "finetune_weight_decay": 0.1,
        "igam_start": 500,
        "lr_schedule": "cosine",
        "learning_rate": 0.1,
        "igam_learning_rate": 0.02,
        "batch_size": 128,
        "disc_learning_rate": 0.001,
        "disc_every": 10,
        "validate_every": 100,
    },
    # Seconds: every stage runs, nothing is learnt.
    "smoke": {
        "train_examples": 600,
        "student": "wrn-8-1",
        "batch_size": 16,
        "teacher_steps": 4,
        "teacher_batch_size": 8,
        "teacher_attack_steps": 2,
        "finetune_steps": 4,
        "train_steps": 8,
        "igam_start": 2,
        "disc_channels": (4, 8),
        "disc_every": 2,
        "learning_rate": 0.01,
        "pgd_steps": 2,
        "num_validation": 32,
        "eval_examples": 32,
        "eval_attacks": "clean,fgsm,pgd2",
        "log_every": 2,
        "validate_every": 4,
        "checkpoint_every": 2,
    },
}

# What a method changes of its row: terms in another unit, and the paper's 100 epochs of FT-*.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {"lambda_diff": 1.0},
    "jarn": {"lambda_adv": 1.0},
}
FINETUNE_EPOCHS = 100

# Budgets of the cpu preset: the minutes of its IGAM and some more, by the cost of a step there.
CPU_BUDGETS: dict[str, dict[str, Any]] = {
    "finetune": {"finetune_steps": 6000},
    "pgd": {"train_steps": 500},
    "fast": {"train_steps": 1200},
    "trades": {"train_steps": 350},
    "ard": {"train_steps": 500},
}

# --teacher_gradient=plain: MNIST's natural training takes 25 000 steps in the challenge; on two cores
# a shorter recipe. Other sources keep the steps of their robust teachers.
PLAIN_MNIST: dict[str, dict[str, Any]] = {
    "paper": {"teacher_steps": 25_000},
    "cpu": {"teacher_steps": 1500, "teacher_batch_size": 128, "teacher_learning_rate": 1e-3},
    "smoke": {},
}

# The cpu preset's objective, chosen on validation images; weights in the unit of each fidelity's J.
CPU_OBJECTIVE: dict[str, dict[str, Any]] = {
    "paper": {
        "lambda_adv": 0.02,
        "lambda_diff": 1.0,
        "second_order": "finite_difference",
        "match_every": 4,
        "train_steps": 1700,
    },
    "release": {"lambda_adv": 0.1, "lambda_diff": 2000.0, "train_steps": 1100},
}


def transform(config: Config) -> Identity:
    """The map of a run: the layers of `--transform`, then the change of pixel unit if there is one."""
    source, target = SPECS[config.source], SPECS[config.target]
    maps = MAPS[config.transform](source.image_shape[0], config.up_resize)
    if source.pixel_max != target.pixel_max:
        maps.append(Scale(source.pixel_max / target.pixel_max))
    return Compose(maps)


def resolve(chosen: dict[str, Any]) -> Config:
    """All settings of a run from those the user chose (None: not chosen).

    Raises:
        UserError: no such row of the paper, or settings that contradict each other.
    """
    chosen = {name: value for name, value in chosen.items() if value is not None}
    base = Config(**chosen)
    pair = {key[2]: key for key in ROWS if key[:2] == (base.source, base.target)}
    key = pair.get(chosen.get("transform", next(iter(pair), None)))
    if key is None:
        known = ", ".join(f"--source={s} --target={t} --transform={m}" for s, t, m in ROWS)
        asked = f" --transform={base.transform}" if "transform" in chosen else ""
        raise UserError(
            f"expected one of the transfers {known}; received --source={base.source} "
            f"--target={base.target}{asked}"
        )
    row = TEACHERS[base.source] | {"transform": key[2]}
    row |= ROWS[key].settings(base.target, base.fidelity)
    if base.method == "finetune":
        epoch = steps_per_epoch(TRAIN_IMAGES[base.target], 128)
        row["finetune_steps"] = FINETUNE_EPOCHS * epoch
    if base.teacher_gradient == "plain":
        row["teacher"] = "train"
        row |= PLAIN_MNIST[base.preset] if base.source == "mnist" else {}
    cpu = base.preset == "cpu"
    row |= CPU_OBJECTIVE[base.fidelity] if cpu else {}
    row |= METHOD_SETTINGS.get(base.method, {})
    preset = PRESETS[base.preset] | (CPU_BUDGETS.get(base.method, {}) if cpu else {})
    config = Config(**(row | preset | chosen))
    _check(config)
    return config


def _check_numbers(name: str, value: Any, least: float, most: float) -> None:
    """Raises a UserError where a setting's number, or one of them, is not finite or out of range."""
    numbers = value if isinstance(value, tuple) else (value,)
    if any(
        not (math.isfinite(n) and least <= n <= most) for n in numbers if not isinstance(n, str)
    ):
        wanted = f"within {least}..{most}" if math.isfinite(most) else f"of at least {least}"
        received = ",".join(map(str, numbers))
        raise UserError(f"expected --{name} {wanted}; received {received}")


def _check(config: Config) -> None:
    """Raises a UserError where a number is out of its range or settings contradict each other."""
    for field in dataclasses.fields(config):
        _check_numbers(field.name, getattr(config, field.name), *field.metadata["within"])
    config.objective()
    method = METHODS[config.method]
    if method.matched_to and config.igam_start > config.train_steps:
        raise UserError(
            f"expected --igam_start within the {config.train_steps} training steps; "
            f"received {config.igam_start}"
        )
    control = config.teacher_gradient
    if control != "teacher" and method.matched_to != "teacher":
        names = ", ".join(name for name, m in METHODS.items() if m.matched_to == "teacher")
        raise UserError(
            f"expected a method that matches J_t ({names}) with --teacher_gradient={control}; "
            f"received --method={config.method}"
        )
    if control == "plain" and config.teacher != "train":
        raise UserError(
            "expected --teacher=train with --teacher_gradient=plain, whose teacher is trained here "
            f"without an attack; received --teacher={config.teacher}"
        )
