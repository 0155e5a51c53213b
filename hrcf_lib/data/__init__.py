"""Data: MojiScenes (``mojiscenes``), pictures on disk in the common form (``load``), and how pictures are read."""

from hrcf_lib.data.dataset import ImageFolderTable, load, scan
from hrcf_lib.data.images import find_images, read_image

__all__ = ["ImageFolderTable", "find_images", "load", "read_image", "scan"]
