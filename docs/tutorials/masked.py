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
# # Catch a masked defence
#
# A network can have a high accuracy under PGD without any robustness, because its gradients mislead the attack. This
# notebook builds such a defence in three lines and measures it as a paper might. Then an audit finds the masking, and
# the attack that the audit advises breaks the defence. It runs in about a minute, on **built-in synthetic digits**.

# %%
import igam_tf.common.quiet  # first: TensorFlow says less

# isort: split
import keras
import matplotlib.pyplot as plt
import tensorflow as tf

import igam_tf
from igam_tf.audit.controls import Wrapper, pgd_trained, standard
from igam_tf.datasets import load

keras.utils.set_random_seed(0)
EPS, PIXEL_MAX = 0.1, 1.0  # l-inf radius as a fraction of the pixel range; images are in 0..1
test = load("mnist", "test", source="builtin", num=100)
x, y = test.images.astype("float32") / 255, test.labels

# %% [markdown]
# ## The defence
#
# The network rounds its pixels to eight levels first. `base` gets standard training, in seconds, and is not robust.
# (`+ 0 * x` gives rounding the gradient 0, as in other libraries. In TensorFlow rounding has no gradient, and
# `igam_tf.evaluate` would refuse such a network with one sentence.)


# %%
class Rounded(Wrapper):
    """Pixels are rounded to 8 levels."""

    def before(self, x: tf.Tensor) -> tf.Tensor:
        return tf.round(x * 7) / 7 + 0 * x


base = standard()
defence = Rounded(base)
honest = pgd_trained()  # for comparison: trained on adversarial examples of this eps

# %% [markdown]
# ## What a paper might report


# %%
def accuracy(model: keras.Model, attacks: str, eps: float = EPS) -> dict[str, float]:
    """Attack -> accuracy in %."""
    report = igam_tf.evaluate(model, x, y, attacks, eps=eps, pixel_max=PIXEL_MAX)
    return {name: row["accuracy"] for name, row in report["results"].items()}


for name, model in {"plain": base, "rounded": defence, "PGD-trained": honest}.items():
    print(f"{name:12}", accuracy(model, "clean,fgsm,pgd20"))

# %% [markdown]
# Under PGD-20 the rounded network looks better than the adversarially trained one, though it is the network with
# standard training, and nothing more was trained.
#
# ## The audit


# %%
report = igam_tf.audit_model(
    defence,
    x,
    y,
    eps=EPS,
    pixel_max=PIXEL_MAX,
    checks="logits,deterministic,gradients,iterative,eps,square",
)
print(report["verdict"])
print(report["headline"]["text"])
for check in report["checks"].values():
    print(f"\n{check['status']:5} {check['title']}\n      {check['figure']}")
    if check["status"] == "FAIL":
        print(f"      what to do: {check['advice']}")

# %% [markdown]
# Each of these three checks is enough by itself:
#
# - **gradients**: every input gradient is 0. Rounding is flat, so PGD does not know where to go.
# - **eps**: at half the pixel range every image can become the same grey, and PGD still fails. An attack
#   that fails without a bound does not work.
# - **square**: an attack without gradients breaks images that PGD does not break.
#
# ## The right attack
#
# The audit's advice is a differentiable stand-in for the layer that cuts the gradient (BPDA; Athalye et al. 2018):
# rounding in the forward pass, the identity in the backward pass.


# %%
class StandIn(Wrapper):
    """The same network, whose rounding has the identity's gradient."""

    def before(self, x: tf.Tensor) -> tf.Tensor:
        return x + tf.stop_gradient(tf.round(x * 7) / 7 - x)


print("rounded, attacked through a stand-in:", accuracy(StandIn(base), "clean,fgsm,pgd20"))

# %% [markdown]
# ## In one picture
#
# Accuracy over eps. Without masking the curve falls to chance, whatever the network; with masking it stays high.

# %%
radii = [0.025, 0.05, 0.1, 0.2, 0.3, 0.5]
models = {
    "plain": base,
    "rounded, PGD": defence,
    "rounded, stand-in": StandIn(base),
    "PGD-trained": honest,
}
figure, panel = plt.subplots(figsize=(6, 3.4))
for (name, model), marker in zip(models.items(), "osD^", strict=True):
    curve = [accuracy(model, "pgd20", eps)["pgd20"] for eps in radii]
    panel.plot(radii, curve, marker=marker, label=name)
panel.axhline(10, color="grey", linestyle=":", label="chance")
panel.set(
    xlabel="l-inf eps, fraction of the pixel range",
    ylabel="accuracy under PGD-20, %",
    ylim=(-3, 103),
)
panel.legend()
figure.tight_layout()

# %% [markdown]
# The whole audit, with all of its checks and as a page, is one command:
#
# ```
# python -m igam_tf.audit --model=igam_tf.audit.controls:quantised --dataset=mnist \
#     --data=builtin --eps=0.1
# ```
#
# `igam_tf.audit.controls` has five more networks that mask their gradients, each in another way: try to predict which
# checks find them. What every check means: [how to read an audit](../audit.md).
