"""What the configs of methods for missing labels share."""

from dataclasses import dataclass

from hrcf_lib.baselines.settings import MethodConfig
from hrcf_lib.config import Config, Phase
from hrcf_lib.labels import check_names

LOSSES = ("asymmetric", "cross_entropy")
UNKNOWN = ("ignored", "negative")


@dataclass(frozen=True)
class PartialConfig(MethodConfig):
    """Names of the labels, and how known and unknown ones are learnt from."""

    trains = "both"  # what all epochs train, one of ``config.SIDES``; no field

    categories: tuple[str, ...] = ()  # names of the labels it answers for, those of training (``fit.categories``)
    loss: str = "asymmetric"  # or "cross_entropy": binary, over the known labels
    unknown: str = "ignored"  # or "negative": an unknown label counts as absent
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
        for name, choices in (("loss", LOSSES), ("unknown", UNKNOWN)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.shift >= 1:
            raise ValueError(f"shift = {self.shift!r} must be below 1")

    @classmethod
    def budget(cls, config: Config) -> tuple[Phase, ...]:
        """As many passes over the pictures as all phases of ``config`` together, on its first batch size."""
        return (Phase(cls.trains, sum(p.epochs for p in config.phases), config.phases[0].batch),)
