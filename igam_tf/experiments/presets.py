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

# Budgets of the cpu preset: the minutes of its IGAM and some more, by the cost of a step there.
CPU_BUDGETS: dict[str, dict[str, Any]] = {
    "finetune": {"finetune_steps": 6000},
    "pgd": {"train_steps": 500},
    "fast": {"train_steps": 1200},
    "n_fgsm": {"train_steps": 1200},
    "trades": {"train_steps": 350},
    "ard": {"train_steps": 500},
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
