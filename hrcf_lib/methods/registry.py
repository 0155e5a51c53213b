r"""Every method by name: HRCF, the methods that it is compared with, and those for missing labels.

>>> names()[:4]
('hrcf', 'hrcf_open', 'pre_clip', 'clip_ft')
>>> names("missing_labels")
('coop', 'dual_coop', 'asl', 'semantic_aware', 'trm_ml')

A method of this package is a file and a line in ``METHODS``; one from outside is entered as
``METHODS["my_method"] = MyMethod`` before it is built or loaded.
"""

from pathlib import Path

from hrcf_lib.config import Config
from hrcf_lib.data import hide_labels
from hrcf_lib.engine.messages import check_known
from hrcf_lib.method import Method
from hrcf_lib.methods.biam import BiAM, BiAMReleased
from hrcf_lib.methods.clip_ft import CLIPFT
from hrcf_lib.methods.gen_mlzsl import GenMLZSL
from hrcf_lib.methods.lesa import LESA
from hrcf_lib.methods.missing_labels.asl import ASL
from hrcf_lib.methods.missing_labels.base import Partial
from hrcf_lib.methods.missing_labels.coop import CoOp
from hrcf_lib.methods.missing_labels.dual_coop import DualCoOp
from hrcf_lib.methods.missing_labels.semantic_aware import SemanticAware
from hrcf_lib.methods.missing_labels.trm_ml import TRMML
from hrcf_lib.methods.mkt import MKT
from hrcf_lib.methods.ml2p_encoder import ML2PEncoder
from hrcf_lib.methods.open_votes import HRCFOpen
from hrcf_lib.methods.ovml_vlp import OVMLVLP
from hrcf_lib.methods.plain_vlp import PreCLIP
from hrcf_lib.methods.zs_sdl import ZSSDL
from hrcf_lib.model import HRCF
from hrcf_lib.pretrained import find_folder, read_about

METHODS = {  # name (lower case, "_" between words) -> class, in the order of tables
    "hrcf": HRCF,
    "hrcf_open": HRCFOpen,
    "pre_clip": PreCLIP,
    "clip_ft": CLIPFT,
    "mkt": MKT,
    "ovml_vlp": OVMLVLP,
    "biam": BiAM,
    "lesa": LESA,
    "zs_sdl": ZSSDL,
    "gen_mlzsl": GenMLZSL,
    "ml2p_encoder": ML2PEncoder,
    "coop": CoOp,
    "dual_coop": DualCoOp,
    "asl": ASL,
    "semantic_aware": SemanticAware,
    "trm_ml": TRMML,
}
RELEASED = {"biam": BiAMReleased}  # of its released code, where that differs; what was saved without ``settings`` is so
ALIASES = {"clip_ml": "pre_clip", "ovml": "ovml_vlp"}  # what other papers call them


def names(kind: str = "all") -> tuple[str, ...]:
    """Names of methods, in the order of tables: ``all``, HRCF and variants of ``ours``, those ``compared`` with it, or
    those for ``missing_labels``.

    Raises ``ValueError`` for another kind.
    """
    check_known([kind], ["all", "ours", "compared", "missing_labels"], "unknown kind of method")
    partial = [name for name, found in METHODS.items() if issubclass(found, Partial)]
    ours = [name for name, found in METHODS.items() if issubclass(found, HRCF)]
    chosen = {"all": METHODS, "ours": ours, "missing_labels": partial, "compared": {*METHODS} - {*ours, *partial}}[kind]
    return tuple(name for name in METHODS if name in chosen)


def method(name: str, settings: str | None = None) -> type[Method]:
    """The class of a method, by its ``settings``: with "released" the form of its released code, of one that has two.

    Raises ``ValueError`` for an unknown name, with the nearest known one, and for a class whose config has another.
    """
    key = str(name).lower().replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    check_known([key], list(METHODS), "unknown method")
    found = RELEASED.get(key, METHODS[key]) if settings == "released" else METHODS[key]
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
        changes: fields of the method's config; ``settings="released"`` is BiAM as its released code has it.

    Raises ``ValueError`` for an unknown method or field, and what ``vlp.load`` raises.
    """
    return for_config(configure(name, config, **changes), pretrained)


def configure(name: str, config: Config, **changes) -> Config:
    """The config of a method in the experiment of ``config``, as ``build`` makes it."""
    kind = method(name, changes.get("settings", getattr(config, "settings", None))).Config
    return kind.of(config, **changes) if hasattr(kind, "of") else config.replace(**changes)


def for_config(config: Config, pretrained: bool = True):
    """The untrained method that a config belongs to: HRCF for a plain ``Config``."""
    return method(config.method, getattr(config, "settings", None))(config, pretrained)


def saved(name: str, values: dict) -> type[Method]:
    """The class that a saved config belongs to. BiAM saved without ``settings`` is its released code's form."""
    return method(name, values.get("settings", "released"))


def load(folder: str | Path, **changes):
    """The method that ``save_pretrained`` wrote, whichever it is. Raises as ``Method.from_pretrained``."""
    folder = find_folder(folder)
    about = read_about(folder)
    return saved(about["method"], about["config"]).from_pretrained(folder, **changes)


def asks_unseen(config) -> bool:
    """Whether a method is asked for unseen labels: it takes them, and its training labels are complete."""
    own = getattr(config, "class_specific", False)  # a context of each label's own: of a method else open
    return method(config.method).open_vocabulary and not own and not hide_labels.hides(config)
