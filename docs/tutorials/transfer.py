# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Transfer robustness to your network
#
# This notebook trains a network of your own with IGAM and answers three questions: is it more robust than with
# standard training, is it worth its minutes, and is the teacher the cause? It runs in a few minutes on two cores, on
# **built-in synthetic images**, so its figures say nothing about real photographs; [the results](../results.md) do.
# To use your own images, change one cell.

# %%
import igam_tf.common.quiet  # first: TensorFlow says less

# isort: split
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import igam_tf
from igam_tf.audit.controls import pgd_trained
from igam_tf.datasets import load
from igam_tf.formulas.gradients import input_gradient
from igam_tf.formulas.losses import xent

keras.utils.set_random_seed(0)
PIXEL_MAX, EPS = 255.0, 8 / 255  # images are in 0..255; eps is a fraction of that range

# %% [markdown]
# ## Images
#
# Coloured shapes of ten classes. Replace these four arrays with yours: float32 images `[n,H,W,C]` and integer
# labels `[n]`.

# %%
train = load("cifar10", "train", source="builtin", num=4000)
test = load("cifar10", "test", source="builtin", num=200)
x_train, y_train = train.images.astype("float32"), train.labels
x_test, y_test = test.images.astype("float32"), test.labels

figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for panel, image in zip(axes, test.images, strict=False):
    panel.imshow(image)
    panel.axis("off")

# %% [markdown]
# ## A robust teacher of another task
#
# The teacher classifies grey digits of 28x28 pixels. It is trained with PGD, in a few seconds. A map turns a coloured
# 32x32 image into its input: the mean over the channels, a crop, and pixels in 0..1. Stage 1 then trains new logits for
# the ten shapes; the teacher's other weights do not change.

# %%
to_digits = igam_tf.Compose([igam_tf.ChannelMean(), igam_tf.CenterCrop(28), igam_tf.Scale(1 / 255)])
teacher = igam_tf.Teacher(pgd_trained(), to_digits, num_classes=10)
tuner = igam_tf.FineTune(teacher)
tuner.compile("adam")
history = tuner.fit(x_train, y_train, epochs=5, batch_size=64, verbose=0).history
right = 100 * history["accuracy"][-1]
print(f"the teacher with its new logits is right on {right:.0f} % of the training images")


# %% [markdown]
# ## Your network
#
# Any Keras model from images to logits. Each student starts from the same weights.


# %%
def student() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1.0),
            keras.layers.Conv2D(16, 3, 2, activation="silu"),
            keras.layers.Conv2D(32, 3, 2, activation="silu"),
            keras.layers.Conv2D(64, 3, 2, activation="silu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


# %% [markdown]
# ## Train it five ways
#
# - **standard**: on natural images alone;
# - **IGAM**: after 250 steps of standard training, its input gradients are matched to the teacher's;
# - **IGAM, J_t = 0**: the control. The same steps with teacher gradients set to zero, which is a penalty on long
#   input gradients;
# - **gradient penalty**: that penalty alone, without a teacher or a discriminator;
# - **PGD-3 training**: on adversarial examples.

# %%
weights = dict(lambda_adv=0.02, lambda_diff=1.0, igam_start=250)
trainers = {
    "standard": lambda net: igam_tf.PGDTraining(
        net, eps=0.0, step_size=0.0, steps=0, seed=0, pixel_max=PIXEL_MAX
    ),
    "IGAM": lambda net: igam_tf.IGAM(
        net, teacher, settings=igam_tf.Settings(**weights), pixel_max=PIXEL_MAX
    ),
    "IGAM, J_t = 0": lambda net: igam_tf.IGAM(
        net,
        teacher,
        settings=igam_tf.Settings(teacher_gradient="zero", **weights),
        pixel_max=PIXEL_MAX,
    ),
    "gradient penalty": lambda net: igam_tf.IGAM(
        net, settings=igam_tf.Settings(method="gradient_penalty", **weights), pixel_max=PIXEL_MAX
    ),
    "PGD-3 training": lambda net: igam_tf.PGDTraining(
        net, eps=EPS, step_size=4 / 255, steps=3, seed=0, pixel_max=PIXEL_MAX
    ),
}
students, seconds = {}, {}
for name, trainer in trainers.items():
    students[name], start = student(), time.perf_counter()
    training = trainer(students[name])
    training.compile(keras.optimizers.Adam(2e-3))
    training.fit(x_train, y_train, epochs=10, batch_size=64, verbose=0)
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# ## Measure
#
# Clean accuracy and accuracy under PGD-20, in % of the same test images with 95 % intervals: l-inf, eps 8/255,
# steps of 2/255, one random start, cross-entropy.

# %%
reports = {
    name: igam_tf.evaluate(net, x_test, y_test, "clean,pgd20", eps=EPS, pixel_max=PIXEL_MAX)
    for name, net in students.items()
}
print(f"{'':18} {'clean':>18} {'PGD-20':>18} {'seconds':>8}")
for name, report in reports.items():
    rows = report["results"]
    cells = [
        f"{rows[a]['accuracy']:.1f} ({rows[a]['ci95'][0]:.1f}-{rows[a]['ci95'][1]:.1f})"
        for a in ("clean", "pgd20")
    ]
    print(f"{name:18} {cells[0]:>18} {cells[1]:>18} {seconds[name]:8.0f}")

# %% [markdown]
# Read the table in this order. Is IGAM more robust than **standard** under PGD-20, beyond the intervals? Then it made
# the network robust. Is it more robust than **J_t = 0**? Only then does the teacher help. Is it more robust than **PGD-3
# training**, and how do the seconds compare? Only then is it worth its time. On CIFAR-10 this project found yes, no and
# no ([results](../results.md#is-it-the-teachers)).
#
# ## Look at the input gradients
#
# A robust network's gradients are shorter and follow the image.


# %%
def gradient(net: keras.Model) -> np.ndarray:
    """J of the first test images, [6,H,W,C]."""
    return input_gradient(net, tf.constant(x_test[:6]), y_test[:6], xent)[0].numpy()


figure, axes = plt.subplots(1 + len(students), 6, figsize=(6, 6.8), dpi=72)
for panel, image in zip(axes[0], test.images, strict=False):
    panel.imshow(image)
for row, (name, net) in zip(axes[1:], students.items(), strict=True):
    for panel, j in zip(row, gradient(net), strict=True):
        # Each is scaled by its own deviation.
        panel.imshow(np.clip(0.5 + j / (6 * j.std() + 1e-12), 0, 1))
    row[0].set_title(name, loc="left", fontsize=9)
for panel in axes.flat:
    panel.axis("off")

# %% [markdown]
# ## Is the figure real?
#
# An audit looks for signs that the attack was misled. This runs three of its checks; `checks="all"` runs every one.

# %%
report = igam_tf.audit_model(
    students["IGAM"],
    x_test[:100],
    y_test[:100],
    eps=EPS,
    pixel_max=PIXEL_MAX,
    checks="gradients,iterative,eps",
)
for check in report["checks"].values():
    print(f"{check['status']:5} {check['title']}")
print(report["headline"]["text"])

# %% [markdown]
# ## Keep the most robust weights
#
# Accuracy under attack can fall while the loss still improves, so watch it. `igam_tf.RobustAccuracy` adds it to the logs
# of each epoch, on images that are neither trained on nor in the test; `ModelCheckpoint` behind it keeps the best epoch.
# `igam_tf.OverfittingStop` is a `RobustAccuracy` that also ends a training at catastrophic overfitting, to which training
# on examples of one step is prone: FGSM's accuracy far above PGD-20's.

# %%
look = igam_tf.OverfittingStop(x_train[-200:], y_train[-200:], eps=EPS)  # val_fgsm, val_pgd20
best = Path(tempfile.mkdtemp()) / "most_robust.keras"
keep = keras.callbacks.ModelCheckpoint(best, monitor="val_pgd20", mode="max", save_best_only=True)
fast = igam_tf.PGDTraining(
    student(), eps=EPS, step_size=10 / 255, steps=1, seed=0, pixel_max=PIXEL_MAX
)
fast.compile(keras.optimizers.Adam(2e-3))
history = fast.fit(
    x_train[:-200], y_train[:-200], epochs=8, batch_size=64, callbacks=[look, keep], verbose=0
).history
for name in ("val_fgsm", "val_pgd20"):
    print(f"{name:10}", *(f"{100 * accuracy:5.1f}" for accuracy in history[name]))
print(f"kept: epoch {1 + np.argmax(history['val_pgd20'])}; stopped: {look.stopped_epoch}")
kept = keras.models.load_model(best).network
report = igam_tf.evaluate(kept, x_test, y_test, "clean,pgd20", eps=EPS, pixel_max=PIXEL_MAX)
print({name: row["accuracy"] for name, row in report["results"].items()})

# %% [markdown]
# Next: [your own networks and images](../transfer.md), and
# [how an audit catches a masked defence](masked.ipynb).
