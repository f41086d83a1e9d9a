"""J_t of a PyTorch teacher: over `igam_tf.from_torch`, and in PyTorch alone.

python bench/bridge.py [--depth=14 --width=4] [--batch_size=64]     (needs torch)

The network is the challenge's in PyTorch, see `torch_step.py`; weights, images and labels are random.
Its depth is two less than in RobustBench's names: 14 and 4 are the size of a WRN-16-4 there.
Seconds of wall and of processor time of one batch, medians of rounds. Ends with one line of JSON.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
import rounds
import tensorflow as tf
import torch
import torch_step
from torch.nn import functional

import igam_tf
from igam_tf.formulas.gradients import input_gradient
from igam_tf.formulas.losses import xent

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def gradients_of(depth: int, width: int, batch_size: int) -> dict:
    """Name -> a function without arguments that returns J, [B,32,32,3]."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, batch_size)
    network = torch_step.WideResNet(depth, width).eval()
    model = igam_tf.from_torch(network, (32, 32, 3), pixel_max=255.0)
    graph = tf.function(lambda x, y: input_gradient(model, x, y, xent)[0])

    def alone() -> np.ndarray:
        images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
        loss = functional.cross_entropy(network(images), torch.from_numpy(y), reduction="sum")
        return torch.autograd.grad(loss, images)[0].numpy().transpose(0, 2, 3, 1)

    images, labels = tf.constant(x), tf.constant(y)
    return {"alone": alone, "bridge": lambda: graph(images, labels).numpy()}


def measure(depth: int, width: int, batch_size: int, repeats: int) -> dict:
    """Seconds of each way by each clock, and the bridge's over PyTorch's; prints them."""
    figures: dict = {}
    for clock, now in CLOCKS.items():
        calls = {
            name: partial(rounds.timed, call, now)
            for name, call in gradients_of(depth, width, batch_size).items()
        }
        seconds = rounds.medians(calls, repeats)
        over = seconds["bridge"] / seconds["alone"]
        print(
            f"{clock:9s} {seconds['alone']:.3f} s in PyTorch alone, {seconds['bridge']:.3f} s over "
            f"the bridge, {over:.2f} times",
            flush=True,
        )
        figures[clock] = {k: round(v, 4) for k, v in seconds.items()} | {"over": round(over, 3)}
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in {"depth": 14, "width": 4, "batch_size": 64, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = vars(parser.parse_args())
    print(json.dumps({"torch": torch.__version__, **args, **measure(**args)}))
