"""Sizes and budgets: `--preset=paper`, `cpu` and `smoke`."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Two cores, a quarter of an hour; how it was chosen: docs/results.md.
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

# What a method changes: terms in another unit.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {"lambda_diff": 1.0},
    "jarn": {"lambda_adv": 1.0},
}

# --- the budgets of the cpu preset, all of them -----------------------------------------------------

# By method, steps of 128 images of 32x32: the minutes of its IGAM and some more, by their cost. Where
# IGAM or stage 1 have fewer steps, so have these.
CPU_BUDGETS: dict[str, dict[str, int]] = {
    "finetune": {"finetune_steps": 6000},
    "pgd": {"train_steps": 500},
    "fast": {"train_steps": 1200},
    "n_fgsm": {"train_steps": 1200},
    "trades": {"train_steps": 350},
    "ard": {"train_steps": 500},
}

# By source, steps of 128 images: CIFAR-10's images are 64x64 for Tiny-ImageNet's network.
CPU_SOURCES: dict[str, dict[str, Any]] = {
    "tiny_imagenet": {"finetune_steps": 500, "igam_start": 300, "train_steps": 1000},
}

# By source, of a teacher that is trained (--teacher=train): one step of 1.25 eps, as in fast
# adversarial training (Wong et al. 2020, arXiv 2001.03994); it fails at MNIST's eps of 0.3, whose
# teacher has three steps. Sources that are not named take cifar10's.
_FAST = {"teacher_attack_steps": 1, "teacher_step_size": 1.25, "teacher_lr_schedule": "cosine"}
CPU_TEACHERS: dict[str, dict[str, Any]] = {
    "mnist": _FAST
    | {
        "teacher_steps": 5500,
        "teacher_batch_size": 64,
        "teacher_learning_rate": 2e-3,
        "teacher_attack_steps": 3,
        "teacher_step_size": 0.5,
        "teacher_eps_warmup": 0.7,
    },
    "cifar10": _FAST | {"teacher_network": "wrn-8-2", "teacher_steps": 3500},
    # 20 classes, since 200 with some 50 images each teach nothing in these minutes. A batch of 32 images
    # of 64x64 costs what one of 128 images of 32x32 does, and 1000 images do not fill a wider network.
    "tiny_imagenet": _FAST
    | {
        "teacher_network": "wrn-8-1",
        "teacher_steps": 4000,
        "teacher_batch_size": 32,
        "source_classes": 20,
    },
}

# By target, where it is not CIFAR-10's size. 20 classes of the subset of Tiny-ImageNet with 50 images a
# class have 1000 images to train on and 200 to test: a narrower student, and fewer steps.
CPU_TARGETS: dict[str, dict[str, Any]] = {
    "tiny_imagenet": {
        "target_classes": 20,
        "student": "wrn-8-1",
        "batch_size": 32,
        "igam_start": 300,
        "train_steps": 1000,
        "num_validation": 100,
        "eval_examples": 200,
        "teacher_eval_examples": 1000,
    },
}

# -----------------------------------------------------------------------------------------------------

# The cpu preset's objective, chosen on validation images; weights in the unit of each fidelity's J.
_CHEAP = {"second_order": "finite_difference", "match_every": 4, "train_steps": 1700}
CPU_OBJECTIVE: dict[str, dict[str, Any]] = {
    "paper": _CHEAP | {"lambda_adv": 0.02, "lambda_diff": 1.0},
    # Half the batch, as many more steps.
    "best": _CHEAP
    | {
        "lambda_adv": 0.02,
        "igam_learning_rate": 0.12,
        "label_smoothing": 0.1,
        "activation": "silu",
        "batch_size": 64,
        "finetune_steps": 3000,
        "train_steps": 2860,
        "igam_start": 300,
    },
    "release": {"lambda_adv": 0.1, "lambda_diff": 2000.0, "train_steps": 1100},
}
# What a method that looks at no J takes instead with --fidelity=best: what the search for fast
# adversarial training found. A quarter of the batch, four times the steps.
CPU_BEST_OF_OTHERS: dict[str, Any] = {
    "learning_rate": 0.1,
    "label_smoothing": 0.0,
    "activation": "leaky_relu",
    "batch_size": 32,
    "finetune_steps": 6000,
    "train_steps": 6800,
}
# And what searches of their own changed in that, the steps as in CPU_BUDGETS.
CPU_BEST_OF_METHOD: dict[str, dict[str, Any]] = {
    "n_fgsm": {"learning_rate": 0.2},
    "pgd": {"label_smoothing": 0.1},
    "trades": {"pgd_steps": 3},
}
CPU_BEST_BUDGETS: dict[str, dict[str, int]] = {"trades": {"train_steps": 625}}
