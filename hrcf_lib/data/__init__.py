"""Data: one's own pictures and prepared tables (``load``), MojiScenes (``mojiscenes``), and the official downloads.

``nus_wide``, ``open_images``, ``coco``, ``voc`` and ``folder`` each have ``prepare(source, out, ...)``, which writes
the common form (``table_format``); ``prepare(name, source)`` and ``open_split(config, split)`` know them by name.
``doctor`` finds what is wrong with a data set before training does; ``hide_labels`` hides labels as the
partial-label protocols do. ``feeds`` is what training and evaluation read.
"""

from hrcf_lib.data import hide_labels, mojiscenes
from hrcf_lib.data.benchmarks import open_split, prepare, splits
from hrcf_lib.data.doctor import doctor
from hrcf_lib.data.images import find_images, read_image
from hrcf_lib.data.labelled_folder import ImageFolderTable
from hrcf_lib.data.load import load, scan
from hrcf_lib.data.official import coco, nus_wide, open_images, voc
from hrcf_lib.data.official import own_folder as folder

__all__ = [
    "ImageFolderTable",
    "coco",
    "doctor",
    "find_images",
    "folder",
    "hide_labels",
    "load",
    "mojiscenes",
    "nus_wide",
    "open_images",
    "open_split",
    "prepare",
    "read_image",
    "scan",
    "splits",
    "voc",
]
