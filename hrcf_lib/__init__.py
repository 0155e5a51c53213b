r"""HRCF: open-vocabulary multi-label classification with hierarchical region clues (Ma et al., IEEE TMM 2025).

>>> from hrcf_lib import classify  # doctest: +SKIP
>>> classify("pictures/", ["zebra", "bus", "sea"])  # doctest: +SKIP

The modules beside this file are the paper; ``README.md`` here says which equation is where, and what the packages are.
Symbols, the same in code, comments and notebooks:

========  ================================================================================
``B``     pictures in a batch
``N``     side of the patch grid (14 for ViT-B/16 and the mini VLP), or of a ResNet's last map (7 for RN50)
``J``     regions: 140 = 10^2 + 6^2 + 2^2 with three merges, N^2 = 196 without HCG
``K``     labels that are scored
``C``     width of a tower: of the image tower's tokens, or of the text tower's
``D``     width of the common embedding of pictures, regions and labels
``M``     prompt vectors
``l``     level of a region map
``e_g``   (B, D) global embedding of the learning image side; ``e_p`` that of the frozen VLP
``e_j``   (B, J, D) regions' embeddings
``t_k``   (K, D) label embeddings
``lam``   lambda of Eq. 14, weight of the region score
========  ================================================================================

Annotations are -1 (absent), 0 (unknown), +1 (present).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hrcf_lib.engine import moved

if TYPE_CHECKING:
    from hrcf_lib.apply.predict import classify
    from hrcf_lib.config import Config
    from hrcf_lib.evaluation import evaluate
    from hrcf_lib.labels import LabelSpace
    from hrcf_lib.model import HRCF
    from hrcf_lib.training import train

__version__ = "0.1.0"
__all__ = ["HRCF", "Config", "LabelSpace", "classify", "evaluate", "train"]

# Imported when first used, so that a part such as ``hrcf_lib.data.mojiscenes`` can be used without the rest.
_HOME = {"classify": "apply.predict", "Config": "config", "HRCF": "model", "LabelSpace": "labels"}
_HOME |= {"evaluate": "evaluation", "train": "training"}

moved.watch()


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"hrcf_lib.{_HOME[name]}"), name)
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return import_module(f"hrcf_lib.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(str(error)) from None


def __dir__():
    return sorted([*globals(), *__all__])
