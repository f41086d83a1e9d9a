"""Data sets: `spec_of` describes one, `load` reads a split, `train_batches` makes batches of it."""

from igam_tf.datasets.loading import NAMES as NAMES
from igam_tf.datasets.loading import check_available as check_available
from igam_tf.datasets.loading import checked_name as checked_name
from igam_tf.datasets.loading import class_names as class_names
from igam_tf.datasets.loading import load as load
from igam_tf.datasets.loading import short_name as short_name
from igam_tf.datasets.loading import spec_of as spec_of
from igam_tf.datasets.loading import stored_as as stored_as
from igam_tf.datasets.named import SPECS as SPECS
from igam_tf.datasets.named import Augment as Augment
from igam_tf.datasets.named import DatasetSpec as DatasetSpec
from igam_tf.datasets.named import Split as Split
from igam_tf.datasets.named import data_text as data_text
from igam_tf.datasets.named import fraction_text as fraction_text
from igam_tf.datasets.named import hold_out as hold_out
from igam_tf.datasets.named import in_pixel_range as in_pixel_range
from igam_tf.datasets.named import parse_fraction as parse_fraction
from igam_tf.datasets.pipeline import steps_per_epoch as steps_per_epoch
from igam_tf.datasets.pipeline import train_batches as train_batches
