"""Base classes of the methods' configs: all methods share the experiment, each has settings of its own."""

from dataclasses import dataclass
from typing import ClassVar

from hrcf_lib import config as configs
from hrcf_lib.config import Config, Phase, setting
from hrcf_lib.labels import check_names
from hrcf_lib.vlp import MINI


@dataclass(frozen=True)
class MethodConfig(Config):
    """A config with the fields that methods add; HRCF's fields that a method does not use have no effect on it."""

    # No fields:
    small = {}  # values of the method's own in the presets of the mini VLP, chosen on val
    trains = "images"  # what all epochs train, one of ``config.SIDES``
    schedule: ClassVar[tuple[int, int] | None] = None  # epochs and pictures a step of its paper, where it prints them

    template: str = "a photo of a {}."  # prompt of a method that learns none
    blocks: int = 0  # last blocks of the ViT that are trained

    @classmethod
    def of(cls, config: Config, **changes) -> "MethodConfig":
        r"""The method's own defaults in the experiment of ``config``, such as a preset.

        Settings of data, masks and run come from ``config``, and so does every field that differs from its preset:
        what a user changed stays changed. In presets of the mini VLP, and with that VLP, ``small`` holds. ``budget``
        turns its phases into the method's. Raises ``ValueError`` for an unknown name in ``changes``, a value out of
        range, or a config of another method.
        """
        if isinstance(config, cls):
            return config.replace(**changes)
        if type(config) is not Config:
            raise ValueError(
                f"{cls.__name__} cannot be made of a {type(config).__name__}: give a preset such as mini()"
            )
        own = (
            {n: getattr(config, n) for n in configs.names_where(of=(configs.DATA, configs.MASK, configs.RUN))}
            | (cls.small if is_small(config) and "vlp" not in config.changes() else {})
            | config.changes()
            | {"phases": cls.budget(config)}
        )
        return cls(**own).replace(**changes)

    @classmethod
    def budget(cls, config: Config) -> tuple[Phase, ...]:
        """The paper's ``schedule`` in presets of full size.

        Without one, in presets of the mini VLP, and where phases were changed: as many passes over the pictures as all
        phases of ``config`` together, on its first batch size.
        """
        if cls.schedule and not is_small(config) and "phases" not in config.changes():
            return (Phase(cls.trains, *cls.schedule),)
        return (Phase(cls.trains, sum(p.epochs for p in config.phases), config.phases[0].batch),)

    def changes(self) -> dict:
        """The fields in which it differs from what ``of`` makes of its preset."""
        preset = type(self).of(configs.PRESETS[self.name]()).to_dict() if self.name in configs.PRESETS else {}
        return {name: value for name, value in self.to_dict().items() if name not in preset or value != preset[name]}


@dataclass(frozen=True)
class WordVectorConfig(MethodConfig):
    """What names the labels of a method with word vectors: the VLP's texts, or a file (``word_vectors.of_names``).

    BiAM's and semantic-aware's configs have these fields, too, further down: names of saved runs follow their order.
    """

    glove: str | None = None  # path of a GloVe text file; None: text embeddings of the template
    glove_missing: str = setting("error", choices=("error", "skip"))  # skip: words that the file lacks are left out


def is_small(config: Config) -> bool:
    """Whether a config started from a preset of the mini VLP."""
    return config.name in configs.PRESETS and configs.PRESETS[config.name]().vlp == MINI


def two_stages(config: Config) -> tuple[Phase, ...]:
    """First all epochs of the image side, then all epochs of the prompts, as many of each as HRCF has."""
    images = [p for p in config.phases if p.trains != "prompts"] or list(config.phases)
    prompts = [p for p in config.phases if p.trains == "prompts"]
    stages = [Phase("images", sum(p.epochs for p in images), images[0].batch)]
    return (*stages, *(Phase("prompts", sum(p.epochs for p in prompts), prompts[0].batch) for _ in prompts[:1]))


@dataclass(frozen=True)
class PartialConfig(MethodConfig):
    """Names of the labels, and how known and unknown ones are learnt from."""

    trains = "both"

    categories: tuple[str, ...] = ()  # names of the labels it scores, those of training
    loss: str = setting("asymmetric", choices=("asymmetric", "cross_entropy"))  # the latter binary, of known labels
    unknown: str = setting("ignored", choices=("ignored", "negative"))  # negative: an unknown label counts as absent
    gamma_positive: float = 1.0  # of the asymmetric loss
    gamma_negative: float = 2.0
    shift: float = 0.05  # an absent label of lower probability costs nothing
    prompt_vectors: int = 16  # M
    distillation: float = 0.0
    warmup_epochs: float = 0.0

    def __post_init__(self):
        names = check_names(self.categories, "categories") if self.categories else ()
        object.__setattr__(self, "categories", tuple(names))
        super().__post_init__()
        if self.shift >= 1:
            raise ValueError(f"shift = {self.shift!r} must be below 1")
