r"""Every number of an experiment, with its unit and the place in the paper it comes from.

``mini()`` and ``nus_wide()`` differ in values only: they run the same code. A config is frozen; make a variant with
``dataclasses.replace(config, lam=0.5)`` or ``config.replace(lam=0.5)``. Setting ``HRCF_SIZE=smoke`` in the environment
shrinks every preset to seconds, and this file is the only place that looks at it.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One stretch of alternate training (Eqs. 20-21): which side learns, for how long, on how large a batch."""

    trains: str  # key of ``TRAINABLE``
    epochs: int  # passes over the training pictures
    batch: int  # B, pictures a step


# Freezing is data: a phase trains the parameters whose name starts with one of these, and nothing else (Eqs. 20-21).
TRAINABLE = {
    "hcg": ("block.", "ln_post.", "gather.", "head."),  # Eq. 20: image side, text side fixed
    "prompts": ("prompt.",),  # Eq. 21: text side, image side fixed
}


@dataclass(frozen=True)
class Config:
    """All settings of one run. Section numbers are the HRCF paper's; "ours" marks what the paper leaves open."""

    name: str  # preset this config started from
    dataset: str  # mojiscenes, nus_wide, open_images or coco_48_17
    vlp: str  # open_clip model name of the frozen VLP
    vlp_weights: str | None  # open_clip tag, path of a checkpoint, or None: the weights that ship with ``hrcf-mini``
    phases: tuple[Phase, ...]  # alternate training, in order (Sec. III-E)

    # Hierarchical clue gathering (Sec. III-B)
    hcg: bool = True  # off: the N^2 patch tokens are the regions (Table II)
    merges: int = 3  # levels; each merge takes 4 off the side of the map: 14 -> 10 -> 6 -> 2
    merge_starts_at_zero: bool = True  # second convolution starts at 0, so level 0 is pooled VLP tokens (ours)

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
    ranking_reduction: str = "violations"  # or "sum", the letter of Eq. 15
    distillation: float = 1.0  # weight of Eq. 5; 0 switches it off (Table IV)
    distillation_reduction: str = "mean"  # or "sum", the letter of Eq. 5

    # Optimiser (Sec. IV-B; AdamW)
    lr: float = 1e-3  # image side
    prompt_lr: float = 1e-3  # prompts
    weight_decay: float = 0.05  # 0 on 1-D parameters
    layer_decay: float = 0.65  # the last block learns at lr * layer_decay, head and merges at lr
    warmup_epochs: float = 2.0  # image side, once, linear from ``min_lr``
    min_lr: float = 1e-6  # end of both cosines
    bf16: bool = True  # the image side runs in bfloat16 autocast; scores, losses and weights stay float32

    # Data and evaluation
    train_size: int | None = None  # pictures; None: all of the dataset
    val_size: int | None = None
    test_size: int | None = None
    tag_noise: float = 0.0  # share of training positives that nobody tagged (MojiScenes)
    data_seed: int = 0  # seed of the MojiScenes splits
    augment: str = "none"  # "none" (features are cached) or "rand-m9-mstd0.5-inc1"
    ks: tuple[int, ...] = (3, 5)  # K of P/R/F1@K; (10, 20) on Open Images
    seed: int = 0  # weights and order of training pictures

    def __post_init__(self):
        choices = {"prompt": ("fixed", "learnable", "hybrid", "tuning"), "augment": ("none", "rand-m9-mstd0.5-inc1")}
        choices |= {"ranking_reduction": ("violations", "sum"), "distillation_reduction": ("mean", "sum")}
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} = {getattr(self, field)!r}: choose one of {', '.join(allowed)}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam = {self.lam} is a weight: choose a number from 0 to 1")
        for field in ("merges", "keep", "topk", "prompt_vectors"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)} must be at least 1")
        for phase in self.phases:
            if phase.trains not in TRAINABLE:
                raise ValueError(f"phase trains {phase.trains!r}: choose one of {', '.join(TRAINABLE)}")
            if phase.epochs < 1 or phase.batch < 1:
                raise ValueError(f"{phase}: epochs and batch must be at least 1")

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed. Raises ``ValueError`` naming an unknown field and the nearest known one."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(known)}"
                raise ValueError(f"unknown config name {name!r}; {hint}")
        return dataclasses.replace(self, **changes)

    def smoke(self) -> "Config":
        """The same experiment in seconds: it exercises every step and proves nothing about accuracy."""
        phases = tuple(dataclasses.replace(p, epochs=1, batch=min(p.batch, 16)) for p in self.phases[:3])
        sizes = {f: min(getattr(self, f) or n, n) for f, n in [("train_size", 48), ("val_size", 32), ("test_size", 32)]}
        return dataclasses.replace(self, phases=phases, warmup_epochs=min(self.warmup_epochs, 0.5), **sizes)

    def to_dict(self) -> dict:
        """Plain values for a JSON record."""
        return dataclasses.asdict(self)


def from_dict(values: dict) -> Config:
    """The inverse of ``Config.to_dict``; unknown names are an error."""
    phases = tuple(p if isinstance(p, Phase) else Phase(**p) for p in values["phases"])
    ready = values | {"phases": phases, "ks": tuple(values.get("ks", (3, 5)))}
    return preset(values["name"]).replace(**ready)


def alternate(hcg_epochs: int, prompt_epochs: int, rounds: int, hcg_batch: int, prompt_batch: int) -> tuple[Phase, ...]:
    """``rounds`` times (image side, prompts), without the last prompt phase (Sec. IV-B)."""
    pair = (Phase("hcg", hcg_epochs, hcg_batch), Phase("prompts", prompt_epochs, prompt_batch))
    return (pair * rounds)[:-1]


def mini() -> Config:
    """MojiScenes with the mini VLP. Cost: about 6 minutes of training on two CPU cores."""
    return _sized(
        Config(
            name="mini",
            dataset="mojiscenes",
            vlp="hrcf-mini",
            vlp_weights=None,
            phases=alternate(4, 1, rounds=3, hcg_batch=64, prompt_batch=64),
            train_size=8000,
            val_size=1500,
            test_size=2500,
            warmup_epochs=0.5,
        )
    )


def nus_wide() -> Config:
    """NUS-WIDE with CLIP ViT-B/16 as in the paper: 50 + 4 epochs (Sec. IV-B). Needs the official download and a GPU."""
    return _sized(
        Config(
            name="nus_wide",
            dataset="nus_wide",
            vlp="ViT-B-16",
            vlp_weights="openai",
            phases=alternate(10, 1, rounds=5, hcg_batch=64, prompt_batch=16),
            augment="rand-m9-mstd0.5-inc1",
        )
    )


def open_images() -> Config:
    """Open Images V4 with CLIP ViT-B/16 as in the paper: 5 + 1 epochs (Sec. IV-B)."""
    return _sized(
        Config(
            name="open_images",
            dataset="open_images",
            vlp="ViT-B-16",
            vlp_weights="openai",
            phases=(Phase("hcg", 3, 128), Phase("prompts", 1, 128), Phase("hcg", 2, 128)),
            lr=1e-4,
            prompt_lr=1e-4,
            lam=0.5,
            ks=(10, 20),
            augment="rand-m9-mstd0.5-inc1",
        )
    )


def coco_48_17() -> Config:
    """COCO with 48 seen and 17 unseen labels: the benchmark of real photographs that needs no signed form (ours)."""
    return nus_wide().replace(name="coco_48_17", dataset="coco_48_17", ks=(3, 5))


PRESETS = {f.__name__: f for f in (mini, nus_wide, open_images, coco_48_17)}


def preset(name: str) -> Config:
    """A preset by name; raises ``ValueError`` that lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def _sized(config: Config) -> Config:
    size = os.environ.get("HRCF_SIZE", "full")
    if size not in ("full", "smoke"):
        raise ValueError(f"HRCF_SIZE = {size!r}: set it to 'smoke', to 'full', or not at all")
    return config.smoke() if size == "smoke" else config
