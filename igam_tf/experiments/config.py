"""Every setting of a run in one place; `igam_tf.experiments.resolve` puts their values together."""

import dataclasses
from functools import partial
from pathlib import PurePath
from typing import Any, ClassVar

from igam_tf.common import flagfiles
from igam_tf.common.errors import UserError
from igam_tf.datasets import NAMES, checked_name, parse_fraction, short_name
from igam_tf.method.conventions import FORMS, contradiction, parsed
from igam_tf.method.maps import AUTO, MAPS, SAMPLINGS
from igam_tf.method.settings import ONE_OR_MORE, Settings, setting
from madry_models.activations import ACTIVATIONS

# Headings of the help text, in its order, and what each one explains.
GROUPS = {
    "experiment": "what is transferred to what, by which method, at which size",
    "teacher": "stages 0 and 1: the robust network and its new logits",
    "student": "stage 2: the network that is trained, and its optimizer",
    "objective": "eq. 14: the loss that the student minimises",
    "discriminator": "eq. 12: the network that tells J_s from J_t apart",
    "baselines": "students trained on adversarial examples",
    "evaluation": "stage 3: accuracy on test images, clean and under attack",
    "run": "data, seed, and how often a run reports and saves",
}


def _named(folder: str) -> tuple[str, ...]:
    """The names of the files in this folder of flags/, "paper" first."""
    found = [PurePath(name).stem for name in flagfiles.names(flagfiles.FOLDER, f"{folder}/*")]
    return tuple(sorted(found, key="paper".__ne__))


_experiment = partial(setting, group="experiment")
_teacher = partial(setting, group="teacher")
_student = partial(setting, group="student")
_discriminator = partial(setting, group="discriminator")
_evaluation = partial(setting, group="evaluation")
_run = partial(setting, group="run")

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """All settings of one run; `igam_tf.train` has one flag for each field."""

    prefix: ClassVar[str] = "--"

    @staticmethod
    def without_places(settings: dict[str, Any]) -> dict[str, Any]:
        """The settings without the folders that hold the images on this machine.

        A run compares the images themselves, see `igam_tf.training.stages.Run.load`.
        """
        names = {n: short_name(str(settings.get(n))) for n in ("source", "target")}
        return {**settings, **names, "data_dir": ""}

    source: str = _experiment("mnist", f"Data set on which the teacher was trained: {NAMES}.")
    target: str = _experiment("cifar10", f"Data set on which the student is trained: {NAMES}.")
    fidelity: str = _experiment(
        "paper",
        "Whose objective is used. paper: that of the paper's text. release: that of the released "
        "code (R1 to R12). best: L_diff is an l1 norm and its weight is eps; with "
        "--method=gradient_penalty, which needs no teacher, this is the most robust recipe here "
        "without adversarial examples. With --preset=cpu, best also sets batch size, learning "
        "rates, label smoothing and activation, found by a search, for every method.",
        choices=_named("fidelity"),
    )
    preset: str = _experiment(
        "paper",
        "Size and budget. paper: wrn-32-10 for 200 epochs. cpu: ten minutes on two cores. smoke: "
        "a few seconds, in which nothing is learnt.",
        choices=_named("presets"),
    )
    data: str = _experiment(
        "tfds",
        "Use real images (tfds), or synthetic ones that are drawn from --data_seed (builtin).",
        choices=("tfds", "builtin"),
    )
    teacher: str = _teacher(
        "load",
        "Load a robust network, or train one on --source. If --teacher_checkpoint is not given, "
        "the default is to train for cifar100, tiny_imagenet and --data=builtin.",
        choices=("load", "train"),
    )
    teacher_checkpoint: str = _teacher(
        "adv_trained",
        "With --teacher=load: the network to load. This is a MadryLab checkpoint folder, a .keras "
        "file, one of natural, adv_trained and secret, which are downloaded, or a network of "
        "PyTorch: torch:module:function, robustbench:<name>, robustbench:<name>:<file>, or a .pt "
        "or .safetensors file with --teacher_network.",
    )
    teacher_preprocess: str = _teacher(
        "",
        "With --teacher=load: the input that the teacher expects instead of pixels in "
        "0..pixel_max, written as for --preprocess; if empty, it expects pixels.",
    )
    teacher_network: str = _teacher(
        "",
        "With --teacher=train: the teacher's architecture, written as for --student; if empty, "
        "the student's. With a .pt or .safetensors file: the network of its weights, such as "
        "wrn-28-10.",
    )
    teacher_optimizer: str = _teacher(
        "momentum",
        "With --teacher=train: the optimizer. momentum uses --momentum and --weight_decay; adam "
        "uses neither.",
        choices=("momentum", "adam"),
    )
    teacher_steps: int = _teacher(
        100_000, "With --teacher=train: number of training steps.", within=ONE_OR_MORE
    )
    teacher_batch_size: int = _teacher(
        50, "With --teacher=train: number of images in a global batch.", within=ONE_OR_MORE
    )
    teacher_learning_rate: float = _teacher(
        1e-4, "With --teacher=train: the highest learning rate."
    )
    teacher_lr_schedule: str = _teacher(
        "auto",
        "With --teacher=train: the learning-rate schedule, as in --lr_schedule; auto means step "
        "for momentum and constant for adam.",
        choices=("auto", "constant", "step", "cosine"),
    )
    teacher_attack_steps: int = _teacher(
        40, "With --teacher=train: number of PGD steps; 0 trains without an attack."
    )
    teacher_step_size: float = _teacher(
        0.0,
        "With --teacher=train: step size of PGD in multiples of the source's eps; 0 means the "
        "step size of the data set.",
    )
    teacher_eps_warmup: float = _teacher(
        0.0,
        "With --teacher=train: fraction of the training steps in which eps and step size of the "
        "attack grow from 0 to their values.",
        within=(0, 1),
    )
    teacher_eval_attacks: str = _teacher(
        "clean,pgd20",
        "With --teacher=train: attacks that evaluate the teacher on its own task, written as for "
        "--eval_attacks.",
    )
    teacher_eval_examples: int = _teacher(
        0,
        "With --teacher=train: evaluate the teacher on the first N test images of --source, or on "
        "all if there are fewer; 0 means as many as --eval_examples.",
    )
    transform: str = _teacher(
        "grey_crop",
        "Map from a target image to the teacher's input (§4.3). auto averages or repeats the "
        "channels; then it crops and pads if no side differs by more than a quarter, and resizes "
        "otherwise.",
        choices=(*MAPS, AUTO),
    )
    up_resize: str = _teacher(
        "half_pixel", "Where a map that enlarges images samples them (R12).", choices=SAMPLINGS
    )
    finetune_steps: int = _teacher(4700, "Stage 1: number of training steps for the new logits.")
    finetune_learning_rate: float = _teacher(1e-3, "Stage 1: learning rate of Adam (R11).")
    finetune_weight_decay: float = _teacher(
        2e-4,
        "Stage 1: weight decay of the new logits, which multiplies half their squared kernel "
        "(R11).",
    )

    student: str = _student(
        "wrn-32-10",
        "The student's architecture: wrn-<depth>-<width>, the residual network of the CIFAR-10 "
        "challenge with a depth of 6n + 2; mnist-cnn, the network of the MNIST challenge; "
        "keras:<name of keras.applications>; or module:function, a function that returns a Keras model.",
    )
    preprocess: str = _student(
        "",
        f"The input that the student expects instead of pixels in 0..pixel_max: {FORMS}. The "
        "conversion is saved with the student. If empty, the student takes pixels.",
    )
    student_input: str = _student(
        "standardize",
        "Input layer of a wrn student: standardize each image, or give it zero mean and unit l2 "
        "norm (R5).",
        choices=("standardize", "unit_norm"),
    )
    activation: str = _student(
        "leaky_relu",
        "Activation of a wrn student; the challenge uses leaky ReLU with slope 0.1.",
        choices=tuple(ACTIVATIONS),
    )
    precision: str = _student(
        "float32",
        "Precision in which the student's layers compute, and the teacher's when it computes J_t. "
        "J and the losses stay float32.",
        choices=PRECISIONS,
    )
    batch_size: int = _student(
        128, "Number of images in a global batch in stages 1 and 2.", within=ONE_OR_MORE
    )
    train_steps: int = _student(
        78_200,
        "Number of training steps; the default is 200 epochs of 391 steps.",
        within=ONE_OR_MORE,
    )
    learning_rate: float = _student(0.1, "The student's highest learning rate.")
    igam_learning_rate: float = _student(
        0.0,
        "Start a second schedule at --igam_start, with this highest learning rate; 0 means a "
        "single schedule.",
    )
    lr_schedule: str = _student(
        "step",
        "Learning-rate schedule. constant; step: divided by 10 after 1/2 and by 100 after 3/4 of "
        "the steps; cosine: a linear warm-up over a tenth of the steps, then a half cosine to 0.",
        choices=("constant", "step", "cosine"),
    )
    sync_batch_norm: bool = _student(
        True, "Compute batch statistics over all devices, rather than on each device separately."
    )
    momentum: float = _student(
        0.9, "Momentum of the student's and the discriminator's optimizers.", within=(0, 1)
    )
    weight_decay: float = _student(
        2e-4,
        "Weight decay of student and discriminator, which multiplies half their squared kernels.",
    )
    label_smoothing: float = _student(
        0.0,
        "Fraction of each label that L_xent of the student spreads evenly over all classes.",
        within=(0, 1),
    )
    pixel_noise: float = _student(
        0.0,
        "Add uniform noise to training images; this is its largest absolute value, in pixels of "
        "0..255 (R10).",
    )

    disc_channels: tuple[int, ...] = _discriminator(
        (16, 32, 64, 128, 256),
        "Output channels of each convolution of f_disc, separated by commas.",
        within=ONE_OR_MORE,
    )
    disc_outputs: int = _discriminator(
        1,
        "Number of outputs of f_disc: 1 for a sigmoid (eq. 10), 2 for a two-class softmax (R3).",
        within=(1, 2),
    )
    disc_learning_rate: float = _discriminator(0.1, "The discriminator's highest learning rate.")

    eval_examples: int = _evaluation(
        1000, "Evaluate on the first N test images.", within=ONE_OR_MORE
    )
    eval_attacks: str = _evaluation(
        "clean,fgsm,pgd20",
        "Attacks of the evaluation, separated by commas, written as for --attacks of eval_pgd.",
    )

    image_size: int = _run(
        0,
        "Resize tfds:, folder: and npz: images to this height and width; 0 leaves them as they "
        "are, and then all must have the same size.",
    )
    eps: str = _run(
        "",
        "l-inf radius of the attacks on the target, as a fraction of the pixel range such as "
        "8/255. If empty, the data set's own; for tfds:, folder: and npz: this is 8/255.",
    )
    step_size: str = _run(
        "",
        "Step size of PGD on the target, as a fraction of the pixel range. If empty, the data "
        "set's own (2/255 for tfds:, folder: and npz:), scaled in proportion if --eps is given.",
    )
    pixel_max: float = _run(
        0.0,
        "Highest pixel value of the student's input; if the source is tfds:, folder: or npz:, "
        "also of the teacher's. 0 means the data set's own, 255 for these three.",
    )
    source_classes: int = _run(
        0,
        "With --teacher=train: train the teacher on the first N classes of --source only, in "
        "label order; 0 means all.",
    )
    target_classes: int = _run(
        0, "Train and test the student on the first N classes of --target only; 0 means all."
    )
    data_dir: str = _run("", "Folder of tensorflow-datasets; if empty, its default folder.")
    train_examples: int = _run(0, "Train on the first N training images; 0 means all.")
    data_seed: int = _run(0, "Seed from which synthetic images are drawn.")
    seed: int = _run(
        0, "Seed of the data order, augmentation, weights and attacks.", within=(0, 2**32 - 1)
    )
    num_validation: int = _run(
        1000, "Hold out this many training images for validation; 0 means none."
    )
    log_every: int = _run(50, "Log metrics every N steps.", within=ONE_OR_MORE)
    validate_every: int = _run(
        500, "Validate, and draw pictures of J, every N steps.", within=ONE_OR_MORE
    )
    checkpoint_every: int = _run(250, "Write a checkpoint every N steps.", within=ONE_OR_MORE)

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
