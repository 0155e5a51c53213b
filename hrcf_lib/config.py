r"""Every number of an experiment, with its unit and the place in the paper it comes from.

``mini()`` and ``nus_wide()`` differ in values only: they run the same code. A config is frozen; make a variant with
``dataclasses.replace(config, lam=0.5)`` or ``config.replace(lam=0.5)``; a notebook turns its parameters into one with
``config.preset("mini", lam=lam, seed=seed)``. Setting ``HRCF_SIZE=smoke`` in the environment shrinks every preset to
seconds, and this file is the only place that looks at it (``is_smoke``).
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real

from hrcf_lib.engine.messages import check_known, is_whole

LARGEST_SIDE = 4096  # pixels; far beyond it a picture fills the memory
LARGEST_SEED = 2**32 - 1  # that NumPy takes


@dataclass(frozen=True)
class Phase:
    """One stretch of alternate training (Eqs. 20-21): which side learns, for how long, on how large a batch."""

    trains: str  # one of ``SIDES``
    epochs: int  # passes over the training pictures
    batch: int  # B, pictures per step

    def __post_init__(self):
        if self.trains not in SIDES:
            raise ValueError(f"phase trains {self.trains!r}: choose one of {', '.join(SIDES)}")
        for field in ("epochs", "batch"):
            value = getattr(self, field)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{field} = {value!r} of a phase must be a whole number, at least 1")
            object.__setattr__(self, field, int(value))  # NumPy's numbers are no JSON


# What a phase trains is given by name prefixes: these parameters, and no others (Eqs. 20-21).
TRAINABLE = {
    "hcg": ("block.", "ln_post.", "gather.", "head."),  # Eq. 20: image side, text side fixed
    "prompts": ("prompt.",),  # Eq. 21: text side, image side fixed
    "both": ("block.", "ln_post.", "gather.", "head.", "prompt."),  # at once, for comparison with alternating
}
SIDES = (*TRAINABLE, "images")  # the last: the image side of a method without HCG (``hrcf_lib.methods``)

# What a setting belongs to: this decides which runs, features and checkpoints differ by it.
METHOD = "method"  # the method: each method has its own default
DATA = "data"  # the pictures, their labels and the VLP: other values, other features
MASK = "mask"  # which of the training labels are hidden; features stay the same
RUN = "run"  # the length, the device and the evaluation of a run, whatever the method


def setting(
    default=dataclasses.MISSING,
    *,
    of=METHOD,
    low=0,
    high=math.inf,
    choices=None,
    weights=True,
    scores=False,
    before=dataclasses.MISSING,
    gone=None,
):
    r"""A field of ``Config`` that states everything about itself; a plain default has the values given here.

    Args:
        default: without one, every preset has to give a value.
        of: METHOD, DATA, MASK or RUN. All but the first are shared by all methods in an experiment.
        low, high: bounds of a number, both included.
        choices: the values it may have.
        weights: whether trained weights depend on it. A run is not resumed under another value.
        scores: whether scores of trained weights depend on it. A calibration belongs to one value.
        before: of a field that came after the first saved runs, the value by which these were made: a saved config
            without the field means this value, and at this value it is not part of a run's name. It need not be the
            default.
        gone: a value of saved configs whose form of the method is no longer here: reading one says so.
    """
    about = {"of": of, "low": low, "high": high, "choices": choices, "weights": weights, "scores": scores}
    return dataclasses.field(default=default, metadata=about | {"before": before, "gone": gone})


@dataclass(frozen=True)
class Config:
    """All settings of one run. Section numbers are the HRCF paper's; "ours" marks what the paper leaves open."""

    method = "hrcf"  # the name of the method whose config this is (``methods.registry``); no field

    name: str = setting(of=RUN, weights=False)  # preset this config started from
    dataset: str = setting(
        of=DATA, choices=("mojiscenes", "nus_wide", "open_images", "coco_48_17", "coco", "voc", "folder")
    )  # whose pictures
    vlp: str = setting(of=DATA)  # open_clip model name of the frozen VLP: a plain ViT, or CLIP's ResNet (RN50, RN101)
    vlp_weights: str | None = setting(of=DATA)  # open_clip tag, path of a checkpoint, or None: ``hrcf-mini``'s
    phases: tuple[Phase, ...]  # alternate training, in order (Sec. III-F)

    # Hierarchical clue gathering (Sec. III-C)
    hcg: bool = setting(True, scores=True)  # off: the N^2 patch tokens are the regions (Table II)
    merges: int = setting(3, low=1)  # levels; each merge takes 4 off the side of the map: 14 -> 10 -> 6 -> 2
    merge_starts_at_zero: bool = True  # second convolution starts at 0, so level 0 is pooled VLP tokens (ours)
    levels: tuple[int, ...] = ()  # whose regions are scored, such as (1, 3); (): all; 0: the patches themselves (ours)
    shared_merges: bool = True  # off: each merge has convolutions of its own, 39.6 M parameters in place of 18.3 (ours)

    # Hierarchical score aggregation (Sec. III-D)
    rsa: bool = setting(True, scores=True)  # off: top-k mean pooling over whatever the regions are (Table II)
    rss: bool = setting(True, scores=True, weights=False)  # region selection, at test time only
    lam: float = setting(0.25, high=1, scores=True)  # lambda of Eq. 14, weight of the region score; 0.5 on Open Images
    lam_at_test: float | None = setting(
        None, high=1, scores=True, weights=False, before=None
    )  # another lambda at test time; None: as in training, which is the paper's (ours, for a choice on val)
    keep: int = setting(108, low=1, high=140, scores=True, weights=False)  # regions that RSS keeps, of 140
    votes: str = setting(
        "asked", choices=("asked", "open"), scores=True, weights=False, before="asked"
    )  # labels that Eqs. 12, 14 and 17 run over at test time: those asked for, or the seen ones beside them (ours)
    topk: int = setting(16, low=1, scores=True)  # k of top-k mean pooling (MKT)
    normalize_fusion: bool = setting(True, scores=True)  # norm over labels 1 before Eq. 14: MKT's code; False: Eq. 14
    normalize_at_test: bool | None = setting(
        None, scores=True, weights=False, before=None
    )  # another form of Eq. 14 at test time; None: as in training (ours, for a choice on val)

    # Hybrid prompt learning (Sec. III-E)
    prompt: str = setting("hybrid", choices=("fixed", "learnable", "coop", "hybrid", "tuning"))  # Table III
    tuning_template: str = setting("mkt", choices=("mkt", "hrcf"), before="mkt")  # of the prompt "tuning" alone
    prompt_vectors: int = setting(8, low=1, high=1000)  # M

    # Losses (Eq. 5 of Sec. III-C, Eq. 15 of Sec. III-D)
    ranking_reduction: str = setting("violations", choices=("violations", "pairs", "sum"))  # default: MKT; sum: Eq. 15
    distillation: float = 1.0  # weight of Eq. 5; 0 switches it off (Table IV)
    distillation_reduction: str = setting("mean", choices=("mean", "sum"))  # sum: Eq. 5; mean: MKT

    # Optimiser (Sec. IV-A3)
    optimizer: str = setting("adamw", choices=("adamw", "adam", "sgd"), before="adamw")  # as PyTorch has them
    momentum: float = setting(0.9, high=1, before=0.9)  # of sgd alone
    lr: float = 1e-3  # image side
    prompt_lr: float = 1e-3  # prompts
    weight_decay: float = 0.05  # 0 on 1-D parameters
    layer_decay: float = setting(0.65, high=1)  # the last block learns at lr * layer_decay, head and merges at lr
    merge_lr: float = setting(1.0, high=1)  # convolutions of the merges learn at lr * merge_lr; 0: not at all (ours)
    warmup_epochs: float = setting(2.0, of=RUN)  # image side, once, linear from 0
    min_lr: float = setting(1e-6, of=RUN)  # end of both cosines
    bf16: bool = setting(True, of=RUN)  # image side in bfloat16 where the device has it; scores and losses in float32
    accumulate: int = setting(1, of=RUN, low=1, weights=False)  # parts of each process's share of a batch: less memory

    # Data and evaluation
    train_size: int | None = setting(None, of=RUN, low=1)  # pictures; None: all of the dataset
    val_size: int | None = setting(None, of=RUN, low=1, weights=False)  # as ``train_size``
    test_size: int | None = setting(None, of=RUN, low=1, weights=False)  # as ``train_size``
    tag_noise: float = setting(0.0, of=DATA, high=1)  # share of training positives that are dropped (MojiScenes)
    data_seed: int = setting(0, of=DATA, high=LARGEST_SEED)  # seed of the MojiScenes splits
    vocabulary_seed: int = setting(
        0, of=DATA, high=LARGEST_SEED, before=0
    )  # which labels of MojiScenes are unseen; 0: as shipped
    coverage: float = setting(
        0.8, of=RUN, high=1, weights=False, before=0.8
    )  # share of val and test pictures that their unseen labels name (MojiScenes)
    side: int | None = setting(None, of=DATA, low=1, high=LARGEST_SIDE, before=None)  # pixels; None: the VLP's own
    augment: str = setting("none", of=DATA, choices=("none", "rand-m9-mstd0.5-inc1"))  # none: features are stored
    stream: bool = setting(False, of=DATA, weights=False)  # read the training table shard by shard, never the whole
    workers: int | None = setting(None, of=RUN, weights=False)  # processes that decode pictures; None: by the cores
    known: float = setting(
        1.0, of=MASK, high=1, before=1.0
    )  # share of the training labels that are known; others read 0
    single_positive: bool = setting(
        False, of=MASK, before=False
    )  # one positive label per training picture, nothing else
    mask_seed: int | None = setting(
        None, of=MASK, high=LARGEST_SEED, before=None
    )  # which labels are known; None: published seeds, 0 and 1200
    resize: str = setting(
        "crop", of=DATA, choices=("crop", "squash", "mkt"), before="crop"
    )  # ``data.images.read_image``
    held_out: float = setting(0.0, of=DATA, high=1, before=0.0)  # share of train that is val; 0.2 in Cole et al.
    protocol: str = setting(
        "per_class",
        of=RUN,
        weights=False,
        choices=(
            "per_class",
            "per_class_unknown_negative",
            "per_class_and_pooled",
            "biam_open_images",
            "biam_open_images_per_class",
        ),
    )  # of evaluation, by name (``protocols.PROTOCOLS``)
    ks: tuple[int, ...] = setting((3, 5), of=RUN, weights=False)  # K of P/R/F1@K; (10, 20) on Open Images
    seed: int = setting(0, of=RUN, high=LARGEST_SEED)  # weights and order of training pictures

    def __post_init__(self):
        for name in ("phases", "ks", "levels"):  # lists come from JSON and papermill
            if not isinstance(value := getattr(self, name), (list, tuple)):
                raise ValueError(f"{name} = {value!r}: give a list")
            object.__setattr__(self, name, tuple(map(_phase, value)) if name == "phases" else tuple(value))
        if not self.phases:
            raise ValueError("phases is empty: give at least one, such as ('hcg', 4, 64)")
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.vocabulary_seed and self.dataset != "mojiscenes":
            seed = self.vocabulary_seed
            raise ValueError(f"vocabulary_seed = {seed} of {self.dataset}, whose unseen labels are given: set it to 0")
        if not self.coverage:
            raise ValueError("coverage = 0.0: give the share of a picture that unseen labels name, above 0 and up to 1")
        if self.held_out and (self.dataset == "mojiscenes" or self.stream):
            why = "a stream, which is not divided" if self.stream else f"{self.dataset}, which has a val of its own"
            raise ValueError(f"held_out = {self.held_out} of {why}: set it to 0")
        if not self.known:
            raise ValueError("known = 0.0: give the share of training labels that are known, above 0 and up to 1")
        if self.single_positive and self.known < 1:
            raise ValueError(f"single_positive with known = {self.known}: choose one way of hiding labels")
        known = all(map(is_whole, self.levels)) and all(level in range(self.merges + 1) for level in self.levels)
        if not known or (self.levels and not any(self.levels)):
            raise ValueError(
                f"levels = {self.levels} of {self.merges} merges: choose among 1 to {self.merges}, and 0 beside them, "
                "or give ()"
            )
        if not self.ks or any(not is_whole(k) or k < 1 for k in self.ks):
            raise ValueError(f"ks = {self.ks}: give the K of P/R/F1@K, whole numbers from 1")
        for name in ("ks", "levels"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed. Raises ``ValueError`` naming an unknown field and the nearest known one."""
        _check_names(changes, [f.name for f in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def smoke(self) -> "Config":
        """The same experiment in seconds: it exercises every step and proves nothing about accuracy.

        With the batches of ``mini`` a prompt phase is one step, because a step embeds all labels anew.
        """
        batch = {"prompts": 48}
        small = lambda p: dataclasses.replace(p, epochs=1, batch=min(p.batch, batch.get(p.trains, 16)))
        phases = tuple(map(small, self.phases[:3]))
        sizes = {f: min(getattr(self, f) or n, n) for f, n in [("train_size", 48), ("val_size", 32), ("test_size", 32)]}
        return dataclasses.replace(self, phases=phases, warmup_epochs=min(self.warmup_epochs, 0.5), **sizes)

    def to_dict(self) -> dict:
        """Plain values for a JSON record."""
        return dataclasses.asdict(self)

    def changes(self) -> dict:
        """The fields in which it differs from its preset (or, without one, from a field's default)."""
        preset = PRESETS[self.name]().to_dict() if self.name in PRESETS else {}
        defaults = {f.name: f.default for f in dataclasses.fields(self)} | preset
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}


DEFAULTS = {f.name: f.default for f in dataclasses.fields(Config)}  # field -> its default, MISSING where it has none
RETIRED = {"cache": "float16", "views": 0}  # fields that earlier configs had, and their defaults


def names_where(kind: type[Config] = Config, **about) -> tuple[str, ...]:
    """Names of the fields of a config whose settings say this of themselves, such as ``names_where(scores=True)``.

    ``kind`` is a class of configs. A value may be a tuple of several. Raises ``KeyError`` for what no setting says.
    """
    wanted = {key: value if isinstance(value, tuple) else (value,) for key, value in about.items()}
    return tuple(f.name for f in dataclasses.fields(kind) if all(stated(f)[key] in of for key, of in wanted.items()))


def stated(field: dataclasses.Field) -> dict:
    """What a field says of itself, by the arguments of ``setting``.

    A method's config that gives a field of ``Config`` another default without ``setting`` keeps the rest of it.
    """
    return {**_PLAIN, **_BASE.get(field.name, {}), **field.metadata}


_BASE = {field.name: field.metadata for field in dataclasses.fields(Config)}
_PLAIN = setting(None).metadata


def choices(name: str, kind: type[Config] = Config) -> tuple:
    """The values that a field of a config may have, of one that states them."""
    (field,) = (f for f in dataclasses.fields(kind) if f.name == name)
    return stated(field)["choices"]


def values_before(kind: type[Config] = Config) -> dict:
    """Fields that are younger than the first saved runs -> the values by which those runs were made."""
    about = {f.name: stated(f)["before"] for f in dataclasses.fields(kind)}
    return {name: value for name, value in about.items() if value is not dataclasses.MISSING}


def fields_as_before(config: Config) -> set[str]:
    """Names of its younger fields at which it does what was done before them: older configs, which lack them, agree."""
    return {name for name, value in values_before(type(config)).items() if getattr(config, name) == value}


def from_dict(values: dict, kind: type[Config] = Config) -> Config:
    """The inverse of ``Config.to_dict``; retired fields are ignored, and younger ones mean what was done before them.

    Raises ``ValueError`` for what is no dict, an unknown name, one that is missing and has no default, or a form that
    is gone.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a config is a dict of settings by name, not a {type(values).__name__}")
    fields = dataclasses.fields(kind)
    values = values_before(kind) | {name: value for name, value in values.items() if name not in RETIRED}
    for name, gone in ((f.name, stated(f)["gone"]) for f in fields):
        if gone is not None and values.get(name) == gone:
            raise ValueError(
                f"a {kind.method} of {name} = {gone!r}, or saved before there was that setting, is another method "
                "than the one of that name now, and is no longer here: train it again, or open it with the version of "
                "hrcf that wrote it"
            )
    _check_names(values, [f.name for f in fields])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"this config lacks {', '.join(missing)}: give them, or start from a preset")
    return kind(**values)


def alternate(hcg_epochs: int, prompt_epochs: int, rounds: int, hcg_batch: int, prompt_batch: int) -> tuple[Phase, ...]:
    """``rounds`` times (image side, prompts), without the last prompt phase (Sec. IV-A3)."""
    pair = (Phase("hcg", hcg_epochs, hcg_batch), Phase("prompts", prompt_epochs, prompt_batch))
    return (pair * rounds)[:-1]


PRESETS = {}  # name -> function that builds it at full size


def _preset(build):
    """Enter a preset in ``PRESETS``; where ``HRCF_SIZE=smoke`` is set, what it builds is shrunk."""
    PRESETS[build.__name__] = build
    return wraps(build)(lambda: _sized(build()))


@_preset
def mini() -> Config:
    """MojiScenes with the mini VLP: 3 to 4 minutes of training on two CPU cores; mAP on val hardly depends on lam."""
    return Config(
        name="mini",
        dataset="mojiscenes",
        vlp="hrcf-mini",
        vlp_weights=None,
        phases=alternate(2, 1, rounds=2, hcg_batch=32, prompt_batch=64),
        train_size=8000,
        val_size=1500,
        test_size=1500,
        tag_noise=0.3,
        warmup_epochs=0.5,
        lr=3e-3,
        lam=0.5,
    )


@_preset
def mini_short() -> Config:
    """``mini`` in a quarter of the time, for ablations: 4,000 pictures, 250 steps of the image side, 63 of prompts."""
    return PRESETS["mini"]().replace(name="mini_short", phases=alternate(1, 1, 2, 32, 64), train_size=4000)


@_preset
def mini_open() -> Config:
    """``mini`` with open votes: at test time a region may vote for a seen label that nobody asked for (notebook 19)."""
    return PRESETS["mini"]().replace(name="mini_open", votes="open")


@_preset
def nus_wide() -> Config:
    """NUS-WIDE with CLIP ViT-B/16 as in the paper: 50 + 4 epochs (Sec. IV-A3). Needs the download and a GPU."""
    return Config(
        name="nus_wide",
        dataset="nus_wide",
        vlp="ViT-B-16",
        vlp_weights="openai",
        phases=alternate(10, 1, rounds=5, hcg_batch=64, prompt_batch=16),
        augment="rand-m9-mstd0.5-inc1",
    )


@_preset
def open_images() -> Config:
    """Open Images V4 with CLIP ViT-B/16 as in the paper: 5 + 1 epochs (Sec. IV-A3).

    mAP is the mean over labels, as in MKT, which the paper follows; the pooled one of BiAM's code stands beside it. The
    warm-up, MKT's, is 2 of the 5 epochs.
    """
    phases = (Phase("hcg", 3, 128), Phase("prompts", 1, 128), Phase("hcg", 2, 128))
    changes = {"phases": phases, "lr": 1e-4, "prompt_lr": 1e-4, "lam": 0.5, "ks": (10, 20)}
    changes |= {"protocol": "per_class_and_pooled"}
    return PRESETS["nus_wide"]().replace(name="open_images", dataset="open_images", **changes)


@_preset
def coco_48_17() -> Config:
    """COCO with 48 seen and 17 unseen labels: the benchmark of real photographs that needs no signed form (ours)."""
    return PRESETS["nus_wide"]().replace(name="coco_48_17", dataset="coco_48_17")


def preset(name: str, **changes) -> Config:
    """A preset by name with some fields changed, such as the parameters of a notebook.

    A smoke run (``HRCF_SIZE=smoke``) shrinks the result, whatever the changes ask for. Raises ``ValueError`` for an
    unknown preset or field, with the nearest known name, and for values out of range.
    """
    check_known([name], list(PRESETS), "unknown preset")
    return _sized(PRESETS[name]().replace(**changes))


def is_smoke() -> bool:
    """Whether ``HRCF_SIZE=smoke`` asks for runs of seconds. Raises ``ValueError`` for any value but smoke and full."""
    size = os.environ.get("HRCF_SIZE") or "full"
    if size not in ("full", "smoke"):
        raise ValueError(f"HRCF_SIZE = {size!r}: set it to 'smoke', to 'full', or not at all")
    return size == "smoke"


def _sized(config: Config) -> Config:
    return config.smoke() if is_smoke() else config


def _phase(value) -> Phase:
    """A ``Phase`` from itself, a dict or a triple, as JSON and papermill give them."""
    if isinstance(value, Phase):
        return value
    try:
        if isinstance(value, str):  # ("hcg", 1, 4) where [("hcg", 1, 4)] belongs
            raise TypeError
        return Phase(**value) if isinstance(value, dict) else Phase(*value)
    except TypeError:
        raise ValueError(f"phase {value!r}: give what it trains, epochs and batch, as in ('hcg', 4, 64)") from None


def _check_names(names, known: list[str]) -> None:
    if gone := [name for name in names if name in RETIRED]:
        raise ValueError(
            f"{gone[0]} is no longer a setting: features are stored once, as float16, and augmented pictures are read "
            "anew every epoch; leave it out"
        )
    check_known(names, known, "unknown config name")


def _checked(field: dataclasses.Field, value):
    """The value in the type of its field. Raises ``ValueError`` for another type, choice or a number out of bounds."""
    about = stated(field)
    if isinstance(field.type, str):
        raise TypeError(
            f"{field.name} of a config has its type as text, so that values are not checked: leave "
            "'from __future__ import annotations' out of the module of its class"
        )
    if about["choices"] and value not in about["choices"]:
        raise ValueError(f"{field.name} = {value!r}: choose one of {', '.join(map(str, about['choices']))}")
    if field.type in (int, float) or (field.type in (int | None, float | None) and value is not None):
        kind = Real if field.type in (float, float | None) else Integral
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            raise ValueError(f"{field.name} = {value!r} must be a {'number' if kind is Real else 'whole number'}")
        low, high = about["low"], about["high"]
        if not low <= value <= high:
            bound = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{field.name} = {value!r} must be {bound}")
        return float(value) if kind is Real else int(value)
    if field.type in (bool, bool | None, str, str | None) and not isinstance(value, field.type):
        kind = "True or False" if field.type in (bool, bool | None) else "text"
        raise ValueError(f"{field.name} = {value!r} must be {kind}")
    return value
