"""Every setting of a run in one place; `igam_tf.experiments.resolve` puts their values together."""

import dataclasses
from pathlib import PurePath
from typing import Any, ClassVar

from igam_tf.common import flagfiles
from igam_tf.common.errors import UserError
from igam_tf.datasets import NAMES, checked_name, parse_fraction, short_name
from igam_tf.method.conventions import FORMS, contradiction, parsed
from igam_tf.method.maps import AUTO, MAPS, SAMPLINGS
from igam_tf.method.settings import ONE_OR_MORE, Settings, setting
from madry_models.activations import ACTIVATIONS

# Headings of the help text, in its order, and what stands below each.
GROUPS = {
    "experiment": "what is transferred to what, by which method, at which size",
    "teacher": "stages 0 and 1: the robust network and its new logits",
    "student": "stage 2: the network that is trained, and its optimizer",
    "objective": "eq. 14: what the student descends on",
    "discriminator": "eq. 12: the network that tells J_s from J_t",
    "baselines": "students trained on adversarial examples",
    "evaluation": "stage 3: accuracy on test images, clean and under attack",
    "run": "data, seed, and how often a run reports and saves",
}


def _named(folder: str) -> tuple[str, ...]:
    """The choices that have a file in this folder of flags/, "paper" first."""
    found = [PurePath(name).stem for name in flagfiles.names(flagfiles.FOLDER, f"{folder}/*")]
    return tuple(sorted(found, key="paper".__ne__))


PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """All settings of one run; `igam_tf.train` makes one flag of each field."""

    prefix: ClassVar[str] = "--"

    @staticmethod
    def without_places(settings: dict[str, Any]) -> dict[str, Any]:
        """Settings, or those of a config.json, without the folders in which a machine has its images.

        A run knows the images themselves, see `igam_tf.training.stages.Run.load`.
        """
        names = {n: short_name(str(settings.get(n))) for n in ("source", "target")}
        return {**settings, **names, "data_dir": ""}

    source: str = setting("mnist", f"Task of the teacher: {NAMES}.", "experiment")
    target: str = setting("cifar10", f"Task of the student: {NAMES}.", "experiment")
    fidelity: str = setting(
        "paper",
        "The objective: paper, of its text; release, of its released code (R1 to R12); best, in which "
        "L_diff is an l1 norm and eps its weight. With --method=gradient_penalty, which has no teacher, "
        "best is the most robust way here without adversarial examples. At --preset=cpu it also brings "
        "batch, rates, label smoothing and activation that a search found, to every method.",
        "experiment",
        choices=_named("fidelity"),
    )
    preset: str = setting(
        "paper",
        "Size and budget: paper, wrn-32-10 and 200 epochs; cpu, ten minutes on two cores; smoke, "
        "seconds, in which nothing is learnt.",
        "experiment",
        choices=_named("presets"),
    )
    data: str = setting(
        "tfds",
        "Real images, or built-in synthetic ones, which are drawn from --data_seed.",
        "experiment",
        choices=("tfds", "builtin"),
    )
    teacher: str = setting(
        "load",
        "Load a robust network that is there already, or train one on --source. Without "
        "--teacher_checkpoint one is trained for cifar100, tiny_imagenet and --data=builtin.",
        "teacher",
        choices=("load", "train"),
    )
    teacher_checkpoint: str = setting(
        "adv_trained",
        "With --teacher=load: a MadryLab checkpoint folder, a .keras file, or natural, adv_trained or "
        "secret, which are fetched.",
        "teacher",
    )
    teacher_preprocess: str = setting(
        "",
        "With --teacher=load: what the teacher takes in place of pixels in 0..pixel_max, as "
        "--preprocess; empty: pixels.",
        "teacher",
    )
    teacher_network: str = setting(
        "",
        "With --teacher=train: the teacher's network, as --student; empty: that of --student.",
        "teacher",
    )
    teacher_optimizer: str = setting(
        "momentum",
        "With --teacher=train: momentum, with --momentum and --weight_decay; adam, without.",
        "teacher",
        choices=("momentum", "adam"),
    )
    teacher_steps: int = setting(
        100_000, "With --teacher=train: training steps.", "teacher", within=ONE_OR_MORE
    )
    teacher_batch_size: int = setting(
        50, "With --teacher=train: images in a global batch.", "teacher", within=ONE_OR_MORE
    )
    teacher_learning_rate: float = setting(
        1e-4,
        "With --teacher=train: learning rate, at its highest.",
        "teacher",
    )
    teacher_lr_schedule: str = setting(
        "auto",
        "With --teacher=train: learning rate over the steps, as --lr_schedule; auto: step with "
        "momentum, constant with adam.",
        "teacher",
        choices=("auto", "constant", "step", "cosine"),
    )
    teacher_attack_steps: int = setting(
        40, "With --teacher=train: steps of PGD; 0: trained without an attack.", "teacher"
    )
    teacher_step_size: float = setting(
        0.0,
        "With --teacher=train: step of PGD in multiples of the source's eps; 0: the source's own step.",
        "teacher",
    )
    teacher_eps_warmup: float = setting(
        0.0,
        "With --teacher=train: share of the steps over which the attack's eps and step grow from 0.",
        "teacher",
        within=(0, 1),
    )
    teacher_eval_attacks: str = setting(
        "clean,pgd20",
        "With --teacher=train: attacks that the teacher itself is tested under, as --eval_attacks.",
        "teacher",
    )
    teacher_eval_examples: int = setting(
        0,
        "With --teacher=train: test images of --source that the teacher itself is tested on, from the "
        "beginning of the split, or all where there are fewer; 0: as many as --eval_examples.",
        "teacher",
    )
    transform: str = setting(
        "grey_crop",
        "Map from a target image to the teacher's input (§4.3); auto: channels averaged or repeated, "
        "then cropped and padded where sides differ by a quarter at most, else resized.",
        "teacher",
        choices=(*MAPS, AUTO),
    )
    up_resize: str = setting(
        "half_pixel", "Where a map that resizes up samples (R12).", "teacher", choices=SAMPLINGS
    )
    finetune_steps: int = setting(4700, "Stage 1: training steps of the new logits.", "teacher")
    finetune_learning_rate: float = setting(
        1e-3, "Stage 1: learning rate of Adam (R11).", "teacher"
    )
    finetune_weight_decay: float = setting(
        2e-4, "Stage 1: factor of half the squared kernel of the new logits (R11).", "teacher"
    )

    student: str = setting(
        "wrn-32-10",
        "The student: wrn-<depth>-<width>, the challenge's residual network, depth 6n + 2.",
        "student",
    )
    preprocess: str = setting(
        "",
        f"What the student takes in place of pixels in 0..pixel_max: {FORMS}. It is kept in front of "
        "the student; empty: pixels.",
        "student",
    )
    student_input: str = setting(
        "standardize",
        "Input layer of a wrn student: per-image standardisation, or zero mean and unit l2 norm (R5).",
        "student",
        choices=("standardize", "unit_norm"),
    )
    activation: str = setting(
        "leaky_relu",
        "Activation of a wrn student; the challenge's is leaky ReLU of slope 0.1.",
        "student",
        choices=tuple(ACTIVATIONS),
    )
    precision: str = setting(
        "float32",
        "In which the layers of the student compute, and the teacher's in J_t; J and losses stay "
        "float32.",
        "student",
        choices=PRECISIONS,
    )
    batch_size: int = setting(
        128, "Images in a global batch of stages 1 and 2.", "student", within=ONE_OR_MORE
    )
    train_steps: int = setting(
        78_200, "Training steps; the default is 200 epochs of 391.", "student", within=ONE_OR_MORE
    )
    learning_rate: float = setting(0.1, "Learning rate of the student, at its highest.", "student")
    igam_learning_rate: float = setting(
        0.0,
        "Highest learning rate of a schedule of its own from --igam_start on; 0: no such schedule.",
        "student",
    )
    lr_schedule: str = setting(
        "step",
        "Learning rate over the steps: constant; step, a tenth after 1/2 and a hundredth after 3/4; "
        "cosine, a warm-up over a tenth and a half cosine to 0.",
        "student",
        choices=("constant", "step", "cosine"),
    )
    sync_batch_norm: bool = setting(
        True, "Batch statistics over all devices, not each device's own.", "student"
    )
    momentum: float = setting(
        0.9, "Momentum of student and discriminator.", "student", within=(0, 1)
    )
    weight_decay: float = setting(
        2e-4, "Factor of half the squared kernels of student and discriminator.", "student"
    )
    label_smoothing: float = setting(
        0.0,
        "Share of each label that is spread evenly over all classes, in L_xent of the student.",
        "student",
        within=(0, 1),
    )
    pixel_noise: float = setting(
        0.0, "Half-width of uniform noise on training images, in pixels of 0..255 (R10).", "student"
    )

    disc_channels: tuple[int, ...] = setting(
        (16, 32, 64, 128, 256),
        "Output channels of f_disc's convolutions, with commas between.",
        "discriminator",
        within=ONE_OR_MORE,
    )
    disc_outputs: int = setting(
        1,
        "Outputs of f_disc: 1, sigmoid (eq. 10); 2, two-class softmax (R3).",
        "discriminator",
        within=(1, 2),
    )
    disc_learning_rate: float = setting(
        0.1, "Learning rate of the discriminator, at its highest.", "discriminator"
    )

    eval_examples: int = setting(
        1000, "Test images, from the beginning of the split.", "evaluation", within=ONE_OR_MORE
    )
    eval_attacks: str = setting(
        "clean,fgsm,pgd20", "Attacks with commas between, as --attacks of eval_pgd.", "evaluation"
    )

    image_size: int = setting(
        0,
        "Height and width that tfds:, folder: and npz: images are resized to; 0: as they are, which "
        "has to be alike.",
        "run",
    )
    eps: str = setting(
        "",
        "Radius of the target's l-inf attacks, a fraction of the pixel range such as 8/255; empty: the "
        "data set's own, 8/255 for tfds:, folder: and npz:.",
        "run",
    )
    step_size: str = setting(
        "",
        "Step of the target's PGD, a fraction of the pixel range; empty: the data set's own, 2/255 for "
        "tfds:, folder: and npz:, in its ratio to --eps.",
        "run",
    )
    pixel_max: float = setting(
        0.0,
        "Highest pixel value of the student's input, and of the teacher's where its source is tfds:, "
        "folder: or npz:; 0: the data set's own, 255 for these three.",
        "run",
    )
    source_classes: int = setting(
        0,
        "With --teacher=train: the teacher learns the first so many classes of --source alone, in the "
        "order of the labels; 0: all.",
        "run",
    )
    target_classes: int = setting(
        0,
        "The student learns, and is tested on, the first so many classes of --target alone; 0: all.",
        "run",
    )
    data_dir: str = setting("", "Folder of tensorflow-datasets; empty: its own default.", "run")
    train_examples: int = setting(
        0, "Training images, from the beginning of the split; 0: all.", "run"
    )
    data_seed: int = setting(0, "Seed from which built-in images are drawn.", "run")
    seed: int = setting(
        0, "Seed of data order, augmentation, weights and attacks.", "run", within=(0, 2**32 - 1)
    )
    num_validation: int = setting(1000, "Training images held out for validation; 0: none.", "run")
    log_every: int = setting(50, "Steps between metrics.", "run", within=ONE_OR_MORE)
    validate_every: int = setting(
        500, "Steps between validations and pictures of J.", "run", within=ONE_OR_MORE
    )
    checkpoint_every: int = setting(250, "Steps between checkpoints.", "run", within=ONE_OR_MORE)

    def __post_init__(self):
        super().__post_init__()
        for name in ("source", "target"):
            checked_name(getattr(self, name), name)
        for name in ("eps", "step_size"):
            parse_fraction(name, getattr(self, name) or None)
        for name in ("preprocess", "teacher_preprocess"):
            if convention := getattr(self, name):
                parsed(convention, name)
        if self.preprocess and self.pixel_max:
            raise UserError(contradiction(self.preprocess, self.pixel_max))
