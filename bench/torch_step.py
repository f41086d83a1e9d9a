"""The same training steps in straightforward PyTorch, to set `step.py` beside.

python bench/torch_step.py [--student=wrn-8-2]     (needs torch 2.13, which igam_tf does not)

Eager PyTorch as one would write it down: the challenge's networks, IGAM by double back-propagation with
f_disc every --disc_every steps, PGD-7 with its attack in inference mode, momentum SGD. The MNIST
network on a grey crop is the teacher. Every kind is measured in both memory formats, of which the faster
counts. Images, labels and weights are random. Ends with one line of JSON.
"""

import itertools

import rivals
import torch
from torch import nn
from torch.nn import functional

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DECAY, LAMBDA_ADV, LAMBDA_DIFF = 2e-4, 1.0, 0.05


class Unit(nn.Module):
    """Pre-activation residual unit; see `madry_models.wide_resnet`."""

    def __init__(self, channels: int, filters: int, stride: int, shared: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(filters)
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.stride, self.missing, self.shared = stride, filters - channels, shared

    def forward(self, h):
        """[B,C,H,W] -> [B,filters,H/stride,W/stride]."""
        activated = functional.leaky_relu(self.norm1(h), 0.1)
        shortcut = activated if self.shared else h
        if self.stride > 1:
            shortcut = functional.avg_pool2d(shortcut, self.stride)
        if self.missing:
            half = self.missing // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, half))
        h = functional.leaky_relu(self.norm2(self.conv1(activated)), 0.1)
        return shortcut + self.conv2(h)


class WideResNet(nn.Module):
    """Images [B,3,32,32] in 0..255 -> logits [B,10]."""

    def __init__(self, depth: int, width: int):
        super().__init__()
        layers, channels = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range((depth - 2) // 6):
                shared = filters == 16 and i == 0
                layers.append(Unit(channels, filters * width, 1 if i else stride, shared))
                channels = filters * width
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.LeakyReLU(0.1))
        self.logits = nn.Linear(channels, 10)

    def forward(self, x):
        """Logits."""
        deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
        return self.logits(self.body((x - mean) / deviation).mean((2, 3)))


class Teacher(nn.Module):
    """The MNIST challenge's network on the channel mean and centre crop of its images."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Linear(1024, 10),
        )  # fmt: skip

    def forward(self, x):
        """Logits [B,10]."""
        return self.body(visible(x) / 255)


def visible(x):
    """What the teacher sees: [B,3,32,32] -> [B,1,28,28]."""
    return x.mean(1, keepdim=True)[:, :, 2:-2, 2:-2]


class Discriminator(nn.Sequential):
    """f_disc on [B,1,28,28]."""

    def __init__(self):
        channels = (1, 16, 32, 64, 128, 256)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1 + (i == 2)), nn.BatchNorm2d(b), nn.LeakyReLU(0.1))
            for i, (a, b) in enumerate(itertools.pairwise(channels))
        ]
        super().__init__(*layers, nn.Flatten(), nn.LazyLinear(1))

    def forward(self, j):
        """Logits that J is the teacher's, [B]."""
        flat = j.flatten(1)
        flat = functional.normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-6)
        return super().forward(flat.view_as(j))[:, 0]


class Trainer:
    """One student on one random batch over and over."""

    def __init__(self, student: str, batch_size: int, disc_every: int, memory_format):
        torch.manual_seed(0)
        self.student = WideResNet(*map(int, student.split("-")[1:]))
        self.teacher, self.disc = Teacher().requires_grad_(False), Discriminator()
        self.disc(torch.zeros(2, 1, 28, 28))  # makes its last layer
        for model in (self.student, self.teacher, self.disc):
            model.to(memory_format=memory_format)
        self.x = (255 * torch.rand(batch_size, 3, 32, 32)).to(memory_format=memory_format)
        self.y, self.disc_every = torch.randint(10, (batch_size,)), disc_every
        sgd = {"lr": 1e-6, "momentum": 0.9, "weight_decay": DECAY}
        self.optimizer = torch.optim.SGD(self.student.parameters(), **sgd)
        self.disc_optimizer = torch.optim.SGD(self.disc.parameters(), **sgd)
        self.step = 0

    def input_gradient(self, model, x, create_graph: bool = False):
        """(J per unit of pixels in 0..1, L_xent per example)."""
        x = x.detach().requires_grad_()
        l_xent = functional.cross_entropy(model(x), self.y, reduction="none")
        return 255 * torch.autograd.grad(l_xent.sum(), x, create_graph=create_graph)[0], l_xent

    def l_adv(self, j_s, j_t):
        """Eq. 10."""
        d_s, d_t = self.disc(torch.cat([visible(j_s), visible(j_t)])).chunk(2)
        return functional.logsigmoid(d_t).mean() + functional.logsigmoid(-d_s).mean()

    def _descend(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def plain(self):
        """L_xent on natural images."""
        loss = functional.cross_entropy(self.student(self.x), self.y)
        self._descend(loss, self.optimizer)

    def igam(self):
        """Algorithm 1."""
        j_t, _ = self.input_gradient(self.teacher, self.x)
        j_s, l_xent = self.input_gradient(self.student, self.x, create_graph=True)
        l_diff = (j_s - j_t).square().sum((1, 2, 3)).mean()
        loss = l_xent.mean() + LAMBDA_ADV * self.l_adv(j_s, j_t) + LAMBDA_DIFF * l_diff
        self._descend(loss, self.optimizer)
        if self.step % self.disc_every == 0:
            self._descend(-self.l_adv(j_s.detach(), j_t), self.disc_optimizer)
        self.step += 1

    def pgd7(self):
        """Madry's training: 7 steps of 2/255 inside 8/255 from a random start."""
        self.student.eval()
        x_adv = self.x + 16 * torch.rand_like(self.x) - 8
        for _ in range(7):
            j, _ = self.input_gradient(self.student, x_adv)
            x_adv = (x_adv + 2 * j.sign()).clamp(self.x - 8, self.x + 8).clamp(0, 255)
        self.student.train()
        loss = functional.cross_entropy(self.student(x_adv.detach()), self.y)
        self._descend(loss, self.optimizer)


def trainers_of(student: str, batch_size: int, disc_every: int):
    """(Trainers by memory format, a matrix product), as `rivals.rates` takes them."""
    a, b = (torch.randn(rivals.SIDE, rivals.SIDE) for _ in range(2))
    trainers = {name: Trainer(student, batch_size, disc_every, f) for name, f in FORMATS.items()}
    return trainers, lambda: a @ b


if __name__ == "__main__":
    rivals.main({"torch": torch.__version__}, __doc__.split("\n")[0], trainers_of)
