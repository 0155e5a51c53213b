"""Data: one's own pictures and prepared tables (``load``), MojiScenes (``mojiscenes``), and the official downloads.

``nus_wide``, ``open_images``, ``coco``, ``voc`` and ``folder`` each have ``prepare(source, out, ...)``, which writes
the common form (``common``); ``prepare(name, source)`` and ``open_split(config, split)`` know them by name. ``doctor``
says what is wrong with a data set before a training meets it; ``partial`` hides labels as the partial-label protocols
do.
"""

from hrcf_lib.data import coco, folder, nus_wide, open_images, partial, voc
from hrcf_lib.data.benchmarks import open_split, prepare, splits
from hrcf_lib.data.dataset import ImageFolderTable, load, scan
from hrcf_lib.data.doctor import doctor
from hrcf_lib.data.images import find_images, read_image

__all__ = [
    "ImageFolderTable",
    "coco",
    "doctor",
    "find_images",
    "folder",
    "load",
    "nus_wide",
    "open_images",
    "open_split",
    "partial",
    "prepare",
    "read_image",
    "scan",
    "splits",
    "voc",
]
