"""Input gradient adversarial matching (IGAM, CVPR 2020) for TensorFlow 2 and Keras 3.

    trainer                         the trainer of any method, by name; it has `compile()` and
        `fit()` like any Keras model
    IGAM, FineTune, PGDTraining     the classes of trainers
    Teacher, Discriminator          the two networks beside the student
    Settings                        hyperparameters of the objective (eq. 14)
    Identity, Scale, ...            maps from a target image to the teacher's input (§4.3);
        map_between chooses one
    Preprocess, Preprocessed        other inputs than pixels in 0..pixel_max: a map, and a network
        with it in front
    RobustAccuracy                  a Keras callback: accuracy under attack during training
    OverfittingStop                 the same, and it stops at catastrophic overfitting
    evaluate, audit_model           accuracy under attack, and whether it can be trusted
    attacks                         fgsm, pgd, apgd, fab, square: pure functions
    load_madry                      a challenge's checkpoint as a Keras model
    from_torch                      a PyTorch network as a Keras model

Public API: `__all__`; anything else may change. Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from igam_tf.common.lazy import register_later

__version__ = "0.2.0"

_MAPS = (
    "Identity", "Scale", "ChannelMean", "ChannelRepeat", "CenterCrop", "CenterPad", "RandomPad",
    "Resize", "TransposeConvolution", "Compose",
)  # fmt: skip
# Name of a class in a Keras file -> its module: of the public ones, and of the others.
_CLASSES = {
    "Discriminator": "igam_tf.method.discriminator",
    "FineTune": "igam_tf.method.teacher",
    "IGAM": "igam_tf.method.igam",
    "Momentum": "igam_tf.method.optimizers",
    "PGDTraining": "igam_tf.method.adversarial",
    "Preprocess": "igam_tf.method.preprocess",
    "Preprocessed": "igam_tf.method.preprocess",
    "Teacher": "igam_tf.method.teacher",
    **dict.fromkeys(_MAPS, "igam_tf.method.transforms"),
}
_OTHERS = {
    "ClassifierTrainer": "igam_tf.method.trainer",
    "JoinSchedules": "igam_tf.method.optimizers",
    "Port": "igam_tf.pytorch.networks",
    "SmallNetwork": "igam_tf.audit.controls",
    "TorchModel": "igam_tf.pytorch.bridge",
}
SAVED = {f"igam_tf>{name}": module for name, module in (_CLASSES | _OTHERS).items()}
register_later(SAVED)
# Public name -> its module.
_PUBLIC = _CLASSES | {
    "trainer": "igam_tf.method.new_trainer",
    "Settings": "igam_tf.method.settings",
    "schedule": "igam_tf.method.optimizers",
    "map_between": "igam_tf.method.transforms",
    "OverfittingStop": "igam_tf.training.callbacks",
    "RobustAccuracy": "igam_tf.training.callbacks",
    "evaluate": "igam_tf.evaluation.evaluate",
    "audit_model": "igam_tf.audit.audit",
    "load_madry": "madry_models.tf1_checkpoint",
    "from_torch": "igam_tf.pytorch.bridge",
    "UserError": "igam_tf.common.errors",
}
_OTHER_NAMES = {"evaluate": "evaluate_model", "load_madry": "from_tf1_checkpoint"}  # there
__all__ = sorted([*_PUBLIC, "attacks", "__version__"])


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return importlib.import_module("igam_tf.attacks")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'igam_tf' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    value = globals()[name] = getattr(module, _OTHER_NAMES.get(name, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from igam_tf import attacks as attacks
    from igam_tf.audit.audit import audit_model as audit_model
    from igam_tf.common.errors import UserError as UserError
    from igam_tf.evaluation.evaluate import evaluate_model as evaluate  # noqa: F401
    from igam_tf.method.adversarial import PGDTraining as PGDTraining
    from igam_tf.method.discriminator import Discriminator as Discriminator
    from igam_tf.method.igam import IGAM as IGAM
    from igam_tf.method.new_trainer import trainer as trainer
    from igam_tf.method.optimizers import Momentum as Momentum
    from igam_tf.method.optimizers import schedule as schedule
    from igam_tf.method.preprocess import Preprocess as Preprocess
    from igam_tf.method.preprocess import Preprocessed as Preprocessed
    from igam_tf.method.settings import Settings as Settings
    from igam_tf.method.teacher import FineTune as FineTune
    from igam_tf.method.teacher import Teacher as Teacher
    from igam_tf.method.transforms import CenterCrop as CenterCrop
    from igam_tf.method.transforms import CenterPad as CenterPad
    from igam_tf.method.transforms import ChannelMean as ChannelMean
    from igam_tf.method.transforms import ChannelRepeat as ChannelRepeat
    from igam_tf.method.transforms import Compose as Compose
    from igam_tf.method.transforms import Identity as Identity
    from igam_tf.method.transforms import RandomPad as RandomPad
    from igam_tf.method.transforms import Resize as Resize
    from igam_tf.method.transforms import Scale as Scale
    from igam_tf.method.transforms import TransposeConvolution as TransposeConvolution
    from igam_tf.method.transforms import map_between as map_between
    from igam_tf.pytorch.bridge import from_torch as from_torch
    from igam_tf.training.callbacks import OverfittingStop as OverfittingStop
    from igam_tf.training.callbacks import RobustAccuracy as RobustAccuracy
    from madry_models.tf1_checkpoint import from_tf1_checkpoint as load_madry  # noqa: F401
