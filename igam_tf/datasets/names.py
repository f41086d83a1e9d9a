"""What the classes of a data set are called."""

from igam_tf.datasets.loading import _quiet_tfds
from igam_tf.datasets.registry import SPECS


def class_names(name: str, *, source: str, data_dir: str | None = None) -> list[str]:
    """Names in the order of the labels, from tensorflow-datasets.

    Where it has none, as of Tiny-ImageNet or of data that are not prepared in `data_dir`, and for
    synthetic images, they are the labels' numbers.
    """
    numbers = [str(k) for k in range(SPECS[name].num_classes)]
    if source == "builtin" or name == "tiny_imagenet":
        return numbers
    import tensorflow_datasets as tfds

    with _quiet_tfds():
        return list(tfds.builder(name, data_dir=data_dir).info.features["label"].names)
