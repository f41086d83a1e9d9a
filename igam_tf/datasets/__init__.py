"""Data sets: `load` a split into memory, `train_batches` and `eval_batches` from it."""

from igam_tf.datasets.loading import check_available as check_available
from igam_tf.datasets.loading import load as load
from igam_tf.datasets.pipeline import Augment as Augment
from igam_tf.datasets.pipeline import eval_batches as eval_batches
from igam_tf.datasets.pipeline import steps_per_epoch as steps_per_epoch
from igam_tf.datasets.pipeline import to_pixels as to_pixels
from igam_tf.datasets.pipeline import train_batches as train_batches
from igam_tf.datasets.registry import SPECS as SPECS
from igam_tf.datasets.registry import DatasetSpec as DatasetSpec
from igam_tf.datasets.registry import Split as Split
from igam_tf.datasets.registry import hold_out as hold_out
