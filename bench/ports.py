"""Input gradients of a native port beside those of the same network in PyTorch.

python bench/ports.py [--depth=16] [--width=4] [--batch_size=64] [--repeats=20] [--threads=2]

Needs torch and robustbench, which igam_tf does not. J of the cross-entropy in float32: of RobustBench's
own WideResNet in both memory formats, of which the faster counts, and of the port, in one graph; each
once in every round, with as many threads. Images and weights are random. Rates are per second on the
clock, and of the processor's time. Ends with one line of JSON.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import rounds
import tensorflow as tf
import torch

from igam_tf.formulas.gradients import input_gradient
from igam_tf.formulas.losses import xent
from igam_tf.pytorch.weights import load_port

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def original(depth: int, width: int) -> torch.nn.Module:
    """RobustBench's class; the package itself imports more than this needs."""
    package = Path(importlib.util.find_spec("robustbench").origin).parent
    path = package / "model_zoo" / "architectures" / "wide_resnet.py"
    spec = importlib.util.spec_from_file_location("wide_resnet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WideResNet(depth, widen_factor=width).eval()


def main() -> None:
    """Prints images a second of each, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    torch.manual_seed(0)
    name, network = f"wrn-{args.depth}-{args.width}", original(args.depth, args.width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torch.save(network.state_dict(), path)
        port = load_port(path, name)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(args.batch_size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, args.batch_size)

    def theirs(memory_format: torch.memory_format) -> np.ndarray:
        network.to(memory_format=memory_format)
        inputs = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)
        inputs.requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(inputs), torch.tensor(y), reduction="sum")
        return torch.autograd.grad(loss, inputs)[0].numpy().transpose(0, 2, 3, 1)

    @tf.function
    def gradients(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return input_gradient(lambda x: port(x, training=False), x, y, xent)[0]

    def ours() -> np.ndarray:
        return gradients(tf.constant(x), tf.constant(y)).numpy()

    expected = theirs(torch.contiguous_format)
    difference = np.linalg.norm(ours() - expected) / np.linalg.norm(expected)
    kinds = {form: partial(theirs, FORMATS[form]) for form in FORMATS} | {"port": ours}
    rates, ratios = {}, {}
    for clock in (time.perf_counter, time.process_time):
        calls = {kind: partial(rounds.timed, work, clock) for kind, work in kinds.items()}
        seconds = rounds.medians(calls, args.repeats)
        rates[clock.__name__] = {k: round(args.batch_size / s, 1) for k, s in seconds.items()}
        ratios[clock.__name__] = round(seconds["port"] / min(seconds[form] for form in FORMATS), 3)
        for kind, rate in rates[clock.__name__].items():
            print(f"{name} {kind:5s} {rate:8.1f} images/s, {clock.__name__}")
    print(f"J differs by {difference:.1e} of its norm; time over PyTorch's: {ratios}")
    result = {"torch": torch.__version__, "tensorflow": tf.__version__, "architecture": name}
    print(json.dumps({**result, "images_per_second": rates, "over_torch": ratios}))


if __name__ == "__main__":
    main()
