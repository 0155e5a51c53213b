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

from hrcf_lib.engine.messages import check_known


@dataclass(frozen=True)
class Phase:
    """One stretch of alternate training (Eqs. 20-21): which side learns, for how long, on how large a batch."""

    trains: str  # one of ``SIDES``
    epochs: int  # passes over the training pictures
    batch: int  # B, pictures a step

    def __post_init__(self):
        if self.trains not in SIDES:
            raise ValueError(f"phase trains {self.trains!r}: choose one of {', '.join(SIDES)}")
        for field in ("epochs", "batch"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{field} = {value!r} of a phase must be a whole number, at least 1")


# Freezing is data: a phase trains the parameters whose name starts with one of these, and nothing else (Eqs. 20-21).
TRAINABLE = {
    "hcg": ("block.", "ln_post.", "gather.", "head."),  # Eq. 20: image side, text side fixed
    "prompts": ("prompt.",),  # Eq. 21: text side, image side fixed
    "both": ("block.", "ln_post.", "gather.", "head.", "prompt."),  # at once, which alternate training is held against
}
SIDES = (*TRAINABLE, "images")  # the last: the image side of a method without HCG (``hrcf_lib.methods.registry``)

CHOICES = {
    "dataset": ("mojiscenes", "nus_wide", "open_images", "coco_48_17", "coco", "voc", "folder"),
    "prompt": ("fixed", "learnable", "hybrid", "tuning"),
    "augment": ("none", "rand-m9-mstd0.5-inc1"),
    "cache": ("float16", "bfloat16", "float32"),
    "ranking_reduction": ("violations", "pairs", "sum"),
    "distillation_reduction": ("mean", "sum"),
    "protocol": ("per_class", "per_class_unknown_negative", "biam_open_images", "biam_open_images_per_class"),
}
# Bounds of numbers; the others are 0 or more.
RANGES = dict.fromkeys(("lam", "layer_decay", "merge_lr", "tag_noise", "known", "held_out"), (0, 1))
RANGES |= dict.fromkeys(("merges", "keep", "topk", "prompt_vectors", "accumulate"), (1, math.inf))
RANGES["keep"] = (1, 140)  # of the paper's 140 regions
RANGES |= dict.fromkeys(("train_size", "val_size", "test_size"), (1, math.inf))


@dataclass(frozen=True)
class Config:
    """All settings of one run. Section numbers are the HRCF paper's; "ours" marks what the paper leaves open."""

    method = "hrcf"  # whose config this is, as ``baselines.method`` knows it; no field

    name: str  # preset this config started from
    dataset: str  # one of ``CHOICES``
    vlp: str  # open_clip model name of the frozen VLP
    vlp_weights: str | None  # open_clip tag, path of a checkpoint, or None: the weights that ship with ``hrcf-mini``
    phases: tuple[Phase, ...]  # alternate training, in order (Sec. III-E)

    # Hierarchical clue gathering (Sec. III-B)
    hcg: bool = True  # off: the N^2 patch tokens are the regions (Table II)
    merges: int = 3  # levels; each merge takes 4 off the side of the map: 14 -> 10 -> 6 -> 2
    merge_starts_at_zero: bool = True  # second convolution starts at 0, so level 0 is pooled VLP tokens (ours)
    levels: tuple[int, ...] = ()  # whose regions are scored, such as (1, 3); (): all
    shared_merges: bool = True  # off: each merge has convolutions of its own, 39.6 M parameters in place of 18.3 (ours)

    # Hierarchical score aggregation (Sec. III-C)
    rsa: bool = True  # off: top-k mean pooling over whatever the regions are (Table II)
    rss: bool = True  # region selection, at test time only
    lam: float = 0.25  # lambda of Eq. 14, weight of the region score; 0.5 on Open Images
    keep: int = 108  # regions that RSS keeps, of 140
    topk: int = 16  # k of top-k mean pooling (MKT)
    normalize_fusion: bool = True  # divide both scores by their L2 norm over the labels before Eq. 14 (MKT's code)

    # Hybrid prompt learning (Sec. III-D)
    prompt: str = "hybrid"  # fixed, learnable, hybrid or tuning (Table III)
    prompt_vectors: int = 8  # M

    # Losses (Sec. III-E)
    ranking_reduction: str = "violations"  # or "sum", the letter of Eq. 15, or "pairs"
    distillation: float = 1.0  # weight of Eq. 5; 0 switches it off (Table IV)
    distillation_reduction: str = "mean"  # or "sum", the letter of Eq. 5

    # Optimiser (Sec. IV-B; AdamW)
    lr: float = 1e-3  # image side
    prompt_lr: float = 1e-3  # prompts
    weight_decay: float = 0.05  # 0 on 1-D parameters
    layer_decay: float = 0.65  # the last block learns at lr * layer_decay, head and merges at lr
    merge_lr: float = 1.0  # the convolutions of the merges learn at lr * merge_lr; 0: they stay as they start (ours)
    warmup_epochs: float = 2.0  # image side, once, linear from 0
    min_lr: float = 1e-6  # end of both cosines
    bf16: bool = True  # image side in bfloat16 where the device has it; scores, losses and weights stay float32
    accumulate: int = 1  # parts in which each process computes its share of a batch: less memory, the same numbers

    # Data and evaluation
    train_size: int | None = None  # pictures; None: all of the dataset
    val_size: int | None = None
    test_size: int | None = None
    tag_noise: float = 0.0  # share of training positives that nobody tagged (MojiScenes)
    data_seed: int = 0  # seed of the MojiScenes splits
    vocabulary_seed: int = 0  # which labels of MojiScenes are unseen; 0: the split that ships, others: a draw by group
    augment: str = "none"  # "none" (frozen features are cached, then) or "rand-m9-mstd0.5-inc1" (timm's RandAugment)
    stream: bool = False  # read the training table shard by shard, shuffled within a buffer, and never hold it whole
    cache: str = "float16"  # number format of stored frozen features: float16, bfloat16 or float32
    views: int = 0  # augmented views of each training picture, computed once and stored; 0: augmented anew every epoch
    workers: int | None = None  # processes that decode pictures; None: the cores, shared by the GPUs of a machine
    known: float = 1.0  # share of the training labels that are known (``data.partial``); the others read 0
    single_positive: bool = False  # of each training picture one positive label is known, and nothing else
    mask_seed: int | None = None  # which labels these are; None: the published seeds, 0 and 1200
    held_out: float = 0.0  # share of the official training pictures that are val, labels complete; 0.2 in Cole et al.
    protocol: str = "per_class"  # of evaluation, by name (``protocols.PROTOCOLS``)
    ks: tuple[int, ...] = (3, 5)  # K of P/R/F1@K; (10, 20) on Open Images
    seed: int = 0  # weights and order of training pictures

    def __post_init__(self):
        object.__setattr__(self, "phases", tuple(_phase(p) for p in self.phases))  # lists come from JSON and papermill
        object.__setattr__(self, "ks", tuple(self.ks))
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.phases:
            raise ValueError("phases is empty: give at least one, such as ('hcg', 4, 64)")
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.views and self.augment == "none":
            raise ValueError(f"views = {self.views} with augment 'none': set augment, or set views to 0")
        if self.views and self.stream:
            raise ValueError(f"views = {self.views} cannot be stored of a stream: set stream to False, or views to 0")
        if self.vocabulary_seed and self.dataset != "mojiscenes":
            seed = self.vocabulary_seed
            raise ValueError(f"vocabulary_seed = {seed} of {self.dataset}, whose unseen labels are given: set it to 0")
        if self.held_out and (self.dataset == "mojiscenes" or self.stream):
            why = "a stream, which is not divided" if self.stream else f"{self.dataset}, which has a val of its own"
            raise ValueError(f"held_out = {self.held_out} of {why}: set it to 0")
        if not self.known:
            raise ValueError("known = 0.0: give the share of training labels that are known, above 0 and up to 1")
        if self.single_positive and self.known < 1:
            raise ValueError(f"single_positive with known = {self.known}: choose one way of hiding labels")
        if any(level not in range(1, self.merges + 1) for level in self.levels):
            raise ValueError(
                f"levels = {self.levels} of {self.merges} merges: choose among 1 to {self.merges}, or give ()"
            )
        if not self.ks or any(not isinstance(k, Integral) or isinstance(k, bool) or k < 1 for k in self.ks):
            raise ValueError(f"ks = {self.ks}: give the K of P/R/F1@K, whole numbers from 1")

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed. Raises ``ValueError`` naming an unknown field and the nearest known one."""
        check_known(changes, [f.name for f in dataclasses.fields(self)], "unknown config name")
        return dataclasses.replace(self, **changes)

    def smoke(self) -> "Config":
        """The same experiment in seconds: it exercises every step and proves nothing about accuracy."""
        phases = tuple(dataclasses.replace(p, epochs=1, batch=min(p.batch, 16)) for p in self.phases[:3])
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


def from_dict(values: dict, kind: type[Config] = Config) -> Config:
    """The inverse of ``Config.to_dict``; an unknown name, or one that is missing and has no default, is an error."""
    fields = dataclasses.fields(kind)
    check_known(values, [f.name for f in fields], "unknown config name")
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"this config lacks {', '.join(missing)}: give them, or start from a preset")
    return kind(**values)


def alternate(hcg_epochs: int, prompt_epochs: int, rounds: int, hcg_batch: int, prompt_batch: int) -> tuple[Phase, ...]:
    """``rounds`` times (image side, prompts), without the last prompt phase (Sec. IV-B)."""
    pair = (Phase("hcg", hcg_epochs, hcg_batch), Phase("prompts", prompt_epochs, prompt_batch))
    return (pair * rounds)[:-1]


PRESETS = {}  # name -> function that builds it at full size


def _preset(build):
    """Enter a preset, and shrink what it builds where ``HRCF_SIZE=smoke`` asks for it."""
    PRESETS[build.__name__] = build
    return wraps(build)(lambda: _sized(build()))


@_preset
def mini() -> Config:
    """MojiScenes with the mini VLP: 3 to 4 minutes of training on two CPU cores. On val mAP is flat for lam >= 0.5."""
    return Config(
        name="mini",
        dataset="mojiscenes",
        vlp="hrcf-mini",
        vlp_weights=None,
        phases=alternate(2, 1, rounds=2, hcg_batch=32, prompt_batch=32),
        train_size=8000,
        val_size=1500,
        test_size=1500,
        warmup_epochs=0.5,
        lam=0.5,
    )


@_preset
def mini_short() -> Config:
    """``mini`` in a quarter of the time, for ablations: 4,000 pictures, 250 steps of the image side, 125 of prompts."""
    return PRESETS["mini"]().replace(name="mini_short", phases=alternate(1, 1, 2, 32, 32), train_size=4000)


@_preset
def nus_wide() -> Config:
    """NUS-WIDE with CLIP ViT-B/16 as in the paper: 50 + 4 epochs (Sec. IV-B). Needs the official download and a GPU."""
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
    """Open Images V4 with CLIP ViT-B/16 as in the paper: 5 + 1 epochs (Sec. IV-B)."""
    phases = (Phase("hcg", 3, 128), Phase("prompts", 1, 128), Phase("hcg", 2, 128))
    changes = {"phases": phases, "lr": 1e-4, "prompt_lr": 1e-4, "lam": 0.5, "ks": (10, 20)}
    changes |= {"protocol": "biam_open_images"}
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
        return Phase(**value) if isinstance(value, dict) else Phase(*value)
    except TypeError:
        raise ValueError(f"phase {value!r}: give what it trains, epochs and batch, as in ('hcg', 4, 64)") from None


def _checked(field: dataclasses.Field, value):
    """The value in the type of its field. Raises ``ValueError`` for another type or a number out of ``RANGES``."""
    if field.name in CHOICES and value not in CHOICES[field.name]:
        raise ValueError(f"{field.name} = {value!r}: choose one of {', '.join(CHOICES[field.name])}")
    if field.type in (int, float) or (field.type == int | None and value is not None):
        kind = Real if field.type is float else Integral
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            raise ValueError(f"{field.name} = {value!r} must be a {'number' if kind is Real else 'whole number'}")
        low, high = RANGES.get(field.name, (0, math.inf))
        if not low <= value <= high:
            bound = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ValueError(f"{field.name} = {value!r} must be {bound}")
        return float(value) if kind is Real else int(value)
    if field.type in (bool, str, str | None) and not isinstance(value, field.type):
        raise ValueError(f"{field.name} = {value!r} must be {'True or False' if field.type is bool else 'text'}")
    return value
