"""The built-in data: synthetic images of 10 classes, drawn with numpy from a seed.

They replace real data if there is none (`--data=builtin`), and show the same conflict between
accuracy and robustness. Every image has a coarse cue, a shape whose contrast is far above the
threat model's eps in most images and faint in some. The objects also have a fine cue, a pattern
weaker than eps that reveals the class in every image. Plain training learns the fine cue, so PGD
breaks the network; robust training has to learn the shapes.
"""

from collections.abc import Callable

import numpy as np

SIZES = {"train": 12_000, "test": 2_000}
_CHUNK = 1_000  # images drawn at a time, which limits memory use


def draw(
    name: str, split: str, seed: int, *, num: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [num, H, W, C] and labels int64 [num] of one split (default: its `SIZES`).

    The same arguments give the same bits. Each split has its own random stream.
    """
    rng = np.random.default_rng([seed, list(DRAWINGS).index(name), sorted(SIZES).index(split)])
    labels = rng.permutation(np.arange(num or SIZES[split]) % 10)
    chunks = [labels[i : i + _CHUNK] for i in range(0, len(labels), _CHUNK)]
    images = [np.clip(DRAWINGS[name](chunk, rng), 0, 255).round() for chunk in chunks]
    return np.concatenate(images).astype(np.uint8), labels.astype(np.int64)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (to the right) and y (upwards) of the pixels' centres, in [-1, 1]."""
    ticks = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return ticks[None, None, :], -ticks[None, :, None]


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float32)


def _placed(rng, n: int, size: int, *, scale, shift: float, turn: float, shear: float = 0.0):
    """(u, v, scale): coordinates in a random frame (moved, rotated, scaled) for each image."""
    x, y = _grid(size)
    radius = _uniform(rng, *scale, n, 1, 1)
    x, y = x - _uniform(rng, -shift, shift, n, 1, 1), y - _uniform(rng, -shift, shift, n, 1, 1)
    angle = np.deg2rad(_uniform(rng, -turn, turn, n, 1, 1))
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u, v = cos * x + sin * y, cos * y - sin * x
    return u + _uniform(rng, -shear, shear, n, 1, 1) * v, v, radius


# --- digits-like: 28x28x1 -----------------------------------------------------------------------

# Strokes of the digits: polylines by their corners in [-1, 1] x [-1, 1], with y upwards.
_DIGITS: list[list[list[tuple[float, float]]]] = [
    [[(-0.6, 0.5), (0, 1), (0.6, 0.5), (0.6, -0.5), (0, -1), (-0.6, -0.5), (-0.6, 0.5)]],
    [[(-0.4, 0.6), (0.1, 1), (0.1, -1)]],
    [[(-0.6, 0.6), (0, 1), (0.6, 0.6), (0.4, 0.1), (-0.6, -1), (0.65, -1)]],
    [[(-0.6, 0.9), (0.5, 0.9), (-0.1, 0.15), (0.6, -0.3), (0.2, -0.95), (-0.6, -0.8)]],
    [[(0.3, -1), (0.3, 1), (-0.7, -0.3), (0.7, -0.3)]],
    [[(0.6, 1), (-0.5, 1), (-0.5, 0.2), (0.2, 0.25), (0.6, -0.3), (0.2, -0.95), (-0.6, -0.85)]],
    [[(0.4, 1), (-0.3, 0.5), (-0.6, -0.4), (0, -1), (0.6, -0.5), (0.1, 0.1), (-0.5, -0.3)]],
    [[(-0.6, 1), (0.6, 1), (-0.1, -1)]],
    [
        [(0, 0.1), (-0.5, 0.55), (0, 1), (0.5, 0.55), (0, 0.1)],
        [(0, 0.1), (-0.6, -0.45), (0, -1), (0.6, -0.45), (0, 0.1)],
    ],
    [[(0.5, 0.4), (-0.1, 0.05), (-0.55, 0.5), (0, 1), (0.5, 0.6), (0.4, -0.2), (0, -1)]],
]


def _digits(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright pen strokes on black with random corners, thickness, slant, position and brightness."""
    n = len(labels)
    u, v, radius = _placed(rng, n, 28, scale=(0.55, 0.75), shift=0.15, turn=12, shear=0.2)
    shake = _uniform(rng, -0.12, 0.12, n, 8, 2, 1, 1)
    distance = np.full((n, 28, 28), np.inf, np.float32)
    for digit, strokes in enumerate(_DIGITS):
        here = labels == digit
        for stroke in strokes:
            corners = np.array(stroke, np.float32)[None, :, :, None, None]
            corners = corners + shake[here, : len(stroke)]
            for start, end in zip(range(len(stroke) - 1), range(1, len(stroke)), strict=True):
                step = _to_segment(u[here], v[here], corners[:, start], corners[:, end])
                distance[here] = np.minimum(distance[here], step)
    half_thickness = _uniform(rng, 1.0, 2.0, n, 1, 1)  # in pixels
    ink = np.clip(half_thickness + 0.5 - distance * radius * 14, 0, 1)
    ink = ink * _uniform(rng, 170, 255, n, 1, 1) + 15 * np.abs(rng.standard_normal(ink.shape))
    return ink[..., None]


def _to_segment(u, v, start, end) -> np.ndarray:
    """Distance [n, H, W] of the points (u, v) to a segment; start, end [n, 2, 1, 1]."""
    along = end - start
    du, dv = u - start[:, 0], v - start[:, 1]
    place = (du * along[:, 0] + dv * along[:, 1]) / np.sum(along**2, axis=1)
    place = np.clip(place, 0, 1)
    return np.hypot(du - place * along[:, 0], dv - place * along[:, 1])


# --- objects-like: 32x32x3 ----------------------------------------------------------------------


def _band(value, half_width: float) -> np.ndarray:
    return half_width - np.abs(value)


def _cross(u, v) -> np.ndarray:
    upright = np.minimum(_band(u, 0.27), _band(v, 1))
    return np.maximum(upright, np.minimum(_band(v, 0.27), _band(u, 1)))


# Per class: positive inside the shape, roughly the distance to its edge; mirroring keeps the class.
_SHAPES: list[Callable] = [
    lambda u, v: 0.95 - np.hypot(u, v),  # disc
    lambda u, v: _band(np.hypot(u, v) - 0.75, 0.23),  # ring
    lambda u, v: np.minimum(v + 0.75, (0.95 - v) * 0.5 - np.abs(u) * 0.87),  # triangle
    lambda u, v: _cross(u, v),  # upright cross
    lambda u, v: _cross((u + v) * 0.71, (u - v) * 0.71),  # diagonal cross
    lambda u, v: np.minimum(_band(np.abs(v) - 0.55, 0.25), _band(u, 0.95)),  # two bars, lying
    lambda u, v: np.minimum(_band(np.abs(u) - 0.55, 0.25), _band(v, 0.95)),  # two bars, upright
    lambda u, v: _band(np.maximum(np.abs(u), np.abs(v)) - 0.72, 0.2),  # frame
    lambda u, v: np.minimum(0.95 - np.hypot(u, v + 0.4), v + 0.4),  # dome
    lambda u, v: np.minimum(  # chequered square
        np.maximum(np.minimum(u, v), np.minimum(-u, -v)), _band(np.maximum(abs(u), abs(v)), 0.95)
    ),
]

# Per class: wave numbers (cycles per pixel) and opposed colours of the fine pattern. A product of
# cosines in random phase is the same texture after a shift or a mirror.
_FINE_WAVES = [(1 / 2, 0), (0, 1 / 2), (1 / 2, 1 / 2), (1 / 3, 0), (0, 1 / 3)]
_FINE_COLOURS = np.array([[1, -1, 0], [0, 1, -1]], np.float32)
_FINE_AMPLITUDE = 4.0  # in pixels of 0..255; the threat model's eps is 8


def _objects(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coloured, textured shapes on a cluttered background, with the fine pattern over everything."""
    n = len(labels)
    u, v, radius = _placed(rng, n, 32, scale=(0.5, 0.72), shift=0.2, turn=14)
    inside = np.empty((n, 32, 32), np.float32)
    for kind, shape in enumerate(_SHAPES):
        here = labels == kind
        inside[here] = shape(u[here], v[here])
    mask = np.clip(inside * radius * 16 + 0.5, 0, 1)[..., None]

    brightness = _uniform(rng, 15, 90, n, 1, 1, 1) * rng.choice([-1, 1], (n, 1, 1, 1))
    colour = brightness + _uniform(rng, -20, 20, n, 1, 1, 3)
    stripes = np.cos(_uniform(rng, 4, 9, n, 1, 1) * u + _uniform(rng, 0, 6.3, n, 1, 1))
    fill = colour * (1 + 0.2 * stripes[..., None])
    image = _clutter(rng, n) + mask * fill + _fine_pattern(labels, rng)
    return image + 3 * rng.standard_normal(image.shape, np.float32)


def _clutter(rng: np.random.Generator, n: int) -> np.ndarray:
    """Background [n, 32, 32, 3]: a colour, a slope, smooth noise and a few soft bars."""
    x, y = (axis[..., None] for axis in _grid(32))
    ground = _uniform(rng, 80, 175, n, 1, 1, 3)
    ground = (
        ground + _uniform(rng, -15, 15, n, 1, 1, 3) * x + _uniform(rng, -15, 15, n, 1, 1, 3) * y
    )
    knots = np.linspace(0, 6, 32)
    smooth = np.maximum(0, 1 - np.abs(knots[:, None] - np.arange(7))).astype(np.float32)
    noise = 8 * rng.standard_normal((n, 7, 7, 3), np.float32)
    ground += np.einsum("ik,nklc,jl->nijc", smooth, noise, smooth, optimize=True)
    for _ in range(3):
        bar_u, _, _ = _placed(rng, n, 32, scale=(0.1, 0.2), shift=1.0, turn=180)
        ground += np.exp(-(bar_u**2))[..., None] * _uniform(rng, -25, 25, n, 1, 1, 3)
    return ground


def _fine_pattern(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    waves = np.array(_FINE_WAVES, np.float32)[labels % 5]
    phase = rng.integers(0, 6, (n := len(labels), 2))
    pixels = np.arange(32)
    along, down = (
        np.cos(2 * np.pi * waves[:, axis, None] * (pixels + phase[:, axis, None]))
        for axis in (0, 1)
    )
    pattern = np.sign(down[:, :, None] * along[:, None, :] + 1e-3).astype(np.float32)
    colours = _FINE_COLOURS[labels // 5].reshape(n, 1, 1, 3)
    return _FINE_AMPLITUDE * pattern[..., None] * colours


# A name's place is part of its seed: a new one goes to the end, and changes no image of the others.
DRAWINGS: dict[str, Callable] = {"cifar10": _objects, "mnist": _digits}
