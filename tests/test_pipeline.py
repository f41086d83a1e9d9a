"""Batches: permutations, augmentation, and a start in the middle that changes nothing."""

import types

import numpy as np
import pytest
import tensorflow as tf

from igam_tf import datasets
from igam_tf.common.errors import UserError
from igam_tf.datasets import SPECS, Augment, Split, builtin, hold_out, train_batches

PLAIN = Augment(pad=0, flip=False)
N = 10


def numbered(n: int = N, name: str = "cifar10") -> Split:
    """Image i is i + 1 everywhere, its label i."""
    shape = SPECS[name].image_shape
    images = np.broadcast_to(np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None], (n, *shape))
    return Split(images.copy(), np.arange(n), SPECS[name], "tfds", "train")


def collect(split: Split, **settings) -> list[tuple[np.ndarray, np.ndarray]]:
    settings = {"batch_size": 4, "seed": 7, "augment": PLAIN, "num_steps": 9} | settings
    return list(train_batches(split, **settings).as_numpy_iterator())


def test_each_epoch_is_a_permutation_and_its_last_batch_is_smaller():
    batches = collect(numbered())
    assert [len(y) for _, y in batches] == [4, 4, 2] * 3
    epochs = [np.concatenate([y for _, y in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all((x[:, 0, 0, 0] == y + 1).all() for x, y in batches)


def test_a_start_in_the_middle_gives_the_same_bits():
    settings = {"augment": Augment(noise=8.0)}
    whole, rest = collect(numbered(), **settings), collect(
        numbered(), start_step=5, num_steps=4, **settings
    )  # fmt: skip
    for (x, y), (x2, y2) in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


def test_the_seed_decides():
    one, two = ([tuple(y) for _, y in collect(numbered(), seed=seed)] for seed in (0, 1))
    assert one != two


def test_crops_are_shifts_by_at_most_two_and_half_are_mirrored():
    """One image whose pixels are all different: every augmented one is one of 25 x 2 variants."""
    image = (np.arange(32 * 32).reshape(32, 32, 1) % 251 + np.array([0, 1, 2])).astype(np.uint8)
    split = Split(
        np.stack([image] * 400), np.zeros(400, np.int64), SPECS["cifar10"], "tfds", "train"
    )
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    variants = {}
    for top in range(5):
        for left in range(5):
            crop = padded[top : top + 32, left : left + 32]
            variants[crop.tobytes()] = (top, left, False)
            variants[crop[:, ::-1].tobytes()] = (top, left, True)
    x, _ = collect(split, batch_size=400, augment=Augment(), num_steps=1)[0]
    seen = [variants[image.astype(np.uint8).tobytes()] for image in x]
    assert len(set(seen)) == 50
    assert 150 < sum(mirrored for *_, mirrored in seen) < 250


def test_noise_is_uniform_and_stays_in_the_pixel_range():
    split = Split(
        np.full((64, 32, 32, 3), 4, np.uint8),
        np.zeros(64, np.int64),
        SPECS["cifar10"],
        "tfds",
        "train",
    )
    x, _ = collect(split, batch_size=64, augment=Augment(0, False, 8.0), num_steps=1)[0]
    assert x.min() == 0
    assert 11.9 < x.max() <= 12
    assert np.mean(x == 0) == pytest.approx(0.25, abs=0.01)  # 4 + u < 0 for a quarter of [-8, 8]


def test_mnist_pixels_are_in_the_unit_interval():
    split = numbered(4, "mnist")
    x, _ = collect(split, num_steps=1)[0]
    np.testing.assert_allclose(np.sort(x[:, 0, 0, 0]), np.arange(1, 5) / 255, rtol=1e-6)


def test_validation_is_held_out_of_training():
    train, validation = hold_out(numbered(), 3, seed=1)
    assert validation.name == "validation"
    assert len(validation.labels) == 3
    assert sorted([*train.labels, *validation.labels]) == list(range(N))
    again, _ = hold_out(numbered(), 3, seed=1)
    np.testing.assert_array_equal(again.labels, train.labels)


@pytest.mark.parametrize("num", [-1, N])
def test_nothing_left_to_train_on(num):
    with pytest.raises(UserError, match=f"between 0 and {N - 1} validation images"):
        hold_out(numbered(), num, seed=0)


def test_a_batch_of_nothing():
    with pytest.raises(UserError, match="batch size of at least 1"):
        collect(numbered(), batch_size=0)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_data(data_dir, name):
    split = datasets.load(name, "test", data_dir=str(data_dir / "tensorflow_datasets"), num=100)
    assert split.images.shape == (100, *SPECS[name].image_shape)
    assert split.images.dtype == np.uint8
    assert set(split.labels) <= set(range(10))
    assert len(set(split.labels)) > 5


def test_a_missing_data_set_names_the_folder_and_both_ways_out(tmp_path):
    with pytest.raises(UserError) as caught:
        datasets.load("cifar10", "train", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "cifar10" in message
    assert str(tmp_path) in message
    assert "--data_dir" in message
    assert "--data=builtin" in message


def test_a_new_builtin_data_set_changes_no_image_of_the_others(monkeypatch):
    names = list(builtin.DRAWINGS)
    before = [builtin.draw(name, "test", 0, num=10)[0] for name in names]
    monkeypatch.setitem(builtin.DRAWINGS, "fashion_mnist", builtin.DRAWINGS["mnist"])
    for name, images in zip(names, before, strict=True):
        np.testing.assert_array_equal(builtin.draw(name, "test", 0, num=10)[0], images)


def test_builtin_is_reproducible_and_says_what_it_is():
    one, two = (datasets.load("cifar10", "train", source="builtin", num=50) for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.source == "builtin"
    assert sorted(set(one.labels)) == list(range(10))
    other = datasets.load("cifar10", "train", source="builtin", num=50, seed=1)
    assert not np.array_equal(one.images, other.images)
    test = datasets.load("cifar10", "test", source="builtin", num=50)
    assert not np.array_equal(one.images, test.images)


@pytest.mark.parametrize("promised", [12, 13])
def test_cifar100_on_generated_examples(monkeypatch, promised):
    """There is no copy to read here; tensorflow-datasets' mock draws 12 random examples."""
    import tensorflow_datasets as tfds

    from igam_tf.datasets import loading

    with tfds.testing.mock_data(num_examples=12):
        real = tfds.builder("cifar100")
        builder = types.SimpleNamespace(
            name=real.name,
            data_path=real.data_path,
            info=types.SimpleNamespace(
                splits={"train": types.SimpleNamespace(num_examples=promised)}
            ),
            as_dataset=lambda **settings: {
                key: tf.stack([example[key] for example in real.as_dataset(split="train")])
                for key in ("image", "label")
            },
        )
        monkeypatch.setattr(loading, "_prepared_builder", lambda name, data_dir: builder)
        if promised == 13:
            with pytest.raises(UserError, match="expected 13 images"):
                datasets.load("cifar100", "train")
            return
        split = datasets.load("cifar100", "train")
    assert split.images.shape == (12, 32, 32, 3)
    assert split.spec.num_classes == 100
    assert 0 <= split.labels.min() <= split.labels.max() < 100
