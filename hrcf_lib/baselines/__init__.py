r"""The methods that HRCF is compared with, one file each, in one harness: same VLP, data, budget and evaluation.

>>> from hrcf_lib import baselines, config
>>> baselines.names()
('pre_clip', 'clip_ft', 'mkt', 'ovml_vlp', 'biam')
>>> mkt = baselines.build("mkt", config.mini(), topk=8)  # doctest: +SKIP
>>> mkt.fit(fit.source(mkt, "train")), mkt.score(images, ["zebra", "bus"])  # doctest: +SKIP

The next method is a copy of ``template.py`` and a line in ``METHODS``, or, outside of this package,
``METHODS["my_method"] = MyMethod``.
"""

from importlib import import_module
from pathlib import Path

from hrcf_lib.config import Config
from hrcf_lib.names import check_known

METHODS = {  # name (lower case, "_" between words) -> file here and class, or the class itself
    "pre_clip": ("pre_clip", "PreCLIP"),
    "clip_ft": ("clip_ft", "CLIPFT"),
    "mkt": ("mkt", "MKT"),
    "ovml_vlp": ("ovml_vlp", "OVMLVLP"),
    "biam": ("biam", "BiAM"),
}
MISSING = {  # methods for missing labels, in ``hrcf_lib.partial``
    "coop": ("coop", "CoOp"),
    "dual_coop": ("dual_coop", "DualCoOp"),
    "asl": ("asl", "ASL"),
    "semantic_aware": ("semantic_aware", "SemanticAware"),
    "trm_ml": ("trm_ml", "TRMML"),
}
ALIASES = {"clip_ml": "pre_clip", "ovml": "ovml_vlp"}  # what other papers call them


def names(missing_labels: bool = False) -> tuple[str, ...]:
    """Names of the methods that HRCF is compared with, or of those for missing labels, in the order of tables."""
    return tuple(MISSING if missing_labels else METHODS)


def method(name: str):
    """The class of a method, or ``HRCF``.

    Raises ``ValueError`` for an unknown name, with the nearest known one, and for a class whose config has another.
    """
    key = str(name).lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if key == "hrcf":
        return import_module("hrcf_lib.model").HRCF
    check_known([key], [*METHODS, *MISSING], "unknown method")
    found = METHODS.get(key) or MISSING[key]
    if not isinstance(found, type):
        file, of = found
        found = getattr(import_module(f"hrcf_lib.{'baselines' if key in METHODS else 'partial'}.{file}"), of)
    if found.Config.method != key:
        raise ValueError(
            f"METHODS has {found.__name__} as {key!r}, its {found.Config.__name__} says method = "
            f"{found.Config.method!r}: give both the same name, by which saved models are found"
        )
    return found


def build(name: str, config: Config, pretrained: bool = True, **changes):
    r"""A method, untrained, in the experiment of ``config``.

    Args:
        name: of ``names()``, or as tables write it ("OVML-VLP").
        config: a preset such as ``config.mini()``, from which data, VLP, evaluation and the length of training are
            taken and everything that was changed by hand (``MethodConfig.of``); or the method's own config.
        pretrained: ``False`` builds the VLP with random weights.
        changes: fields of the method's config.

    Raises ``ValueError`` for an unknown method or field, and what ``vlp.load`` raises.
    """
    kind = method(name)
    return kind(configure(name, config, **changes), pretrained)


def configure(name: str, config: Config, **changes) -> Config:
    """The config of a method in the experiment of ``config``, as ``build`` makes it."""
    kind = method(name).Config
    return kind.of(config, **changes) if hasattr(kind, "of") else config.replace(**changes)


def of(config: Config, pretrained: bool = True):
    """The untrained method that a config belongs to: HRCF for a plain ``Config``."""
    return method(config.method)(config, pretrained)


def load(folder: str | Path, **changes):
    """The method that ``save_pretrained`` wrote, whichever it is. Raises as ``Method.from_pretrained``."""
    from hrcf_lib.method import find_folder, read_about

    folder = find_folder(folder)
    return method(read_about(folder)["method"]).from_pretrained(folder, **changes)
