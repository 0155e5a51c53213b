r"""HRCF: open-vocabulary multi-label classification with hierarchical region clues (Ma et al., IEEE TMM 2025).

>>> from hrcf_lib import classify  # doctest: +SKIP
>>> classify("pictures/", ["zebra", "bus", "beach"])  # doctest: +SKIP

Symbols, the same in code, comments and notebooks:

========  ================================================================================
``B``     pictures in a batch
``N``     side of the patch grid (14 for both VLPs)
``J``     regions: 140 = 10^2 + 6^2 + 2^2 with three merges, N^2 = 196 without HCG
``K``     labels that are scored
``C``     width of a tower: of the ViT's tokens, or of the text tower's
``D``     width of the common embedding of pictures, regions and labels
``M``     prompt vectors
``l``     level of a region map
``e_g``   (B, D) global embedding of the learning image side; ``e_p`` that of the frozen VLP
``e_j``   (B, J, D) regions' embeddings
``t_k``   (K, D) label embeddings
``lam``   lambda of Eq. 14, weight of the region score
========  ================================================================================

Annotations are -1 (absent), 0 (unknown), +1 (present). The names below are imported when first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Config": "config",
    "HRCF": "model",
    "LabelSpace": "labels",
    "classify": "predict",
    "default_model": "predict",
    "distillation_loss": "losses",
    "evaluate": "evaluation",
    "extract": "features",
    "FrozenFeatures": "features",
    "mean_average_precision": "metrics",
    "precision_recall_f1_at_k": "metrics",
    "ranking_loss": "losses",
    "train": "training",
}
_MODULES = (
    *("config", "labels", "vlp", "regions", "prompts", "scores", "model", "losses", "metrics", "features", "training"),
    *("pictures", "devices", "protocols", "evaluation", "fit", "results", "explain", "predict", "figures", "notebook"),
    *("studies", "comparison", "resampling", "data", "batch", "method", "baselines", "breakdown", "published"),
    *("calibration", "grad_cam", "localisation", "map_figures", "method_figures", "onnx_export", "card", "explorer"),
    *("embeddings", "pretrain", "probe", "benchmark", "dry_run", "report", "own_data"),
    *("decisions", "partial"),
)
__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(import_module(f"hrcf_lib.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return import_module(f"hrcf_lib.{name}")
    raise AttributeError(f"module 'hrcf_lib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted([*globals(), *__all__])
