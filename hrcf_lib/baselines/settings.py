"""What the configs of all baselines share: the experiment around a method is the same, its own settings are its own."""

from dataclasses import dataclass

from hrcf_lib import config as configs
from hrcf_lib.config import Config, Phase

# Fields that belong to the experiment and not to the method: data, VLP, precision, evaluation, the length of training.
SHARED = ("name", "dataset", "vlp", "vlp_weights", "train_size", "val_size", "test_size", "tag_noise")
SHARED += ("data_seed", "vocabulary_seed", "augment", "stream", "cache", "views", "workers", "protocol", "ks", "seed")
SHARED += ("known", "single_positive", "mask_seed")
SHARED += ("bf16", "accumulate", "warmup_epochs", "min_lr")


@dataclass(frozen=True)
class MethodConfig(Config):
    """A config with the fields that baselines add; those of HRCF that a method does not use have no effect on it."""

    template: str = "a photo of a {}."  # prompt of a method that learns none
    blocks: int = 0  # last blocks of the ViT that are trained

    @classmethod
    def of(cls, config: Config, **changes) -> "MethodConfig":
        r"""The method's own defaults in the experiment of ``config``, such as a preset.

        Fields of ``SHARED`` come from ``config``, and so does every field that differs from its preset: what a user
        changed stays changed. ``budget`` turns its phases into the method's. Raises ``ValueError`` for an unknown name
        in ``changes``, a value out of range, or a config of another method.
        """
        if isinstance(config, cls):
            return config.replace(**changes)
        if type(config) is not Config:
            raise ValueError(
                f"{cls.__name__} cannot be made of a {type(config).__name__}: give a preset such as mini()"
            )
        own = {n: getattr(config, n) for n in SHARED} | config.changes() | {"phases": cls.budget(config)}
        return cls(**own).replace(**changes)

    @classmethod
    def budget(cls, config: Config) -> tuple[Phase, ...]:
        """As many passes over the pictures as all phases of ``config`` together, on its first batch size."""
        return (Phase("images", sum(p.epochs for p in config.phases), config.phases[0].batch),)

    def changes(self) -> dict:
        """The fields in which it differs from what ``of`` makes of its preset."""
        preset = type(self).of(configs.PRESETS[self.name]()).to_dict() if self.name in configs.PRESETS else {}
        return {name: value for name, value in self.to_dict().items() if name not in preset or value != preset[name]}


def two_stages(config: Config) -> tuple[Phase, ...]:
    """First all epochs of the image side, then all epochs of the prompts, as many of each as HRCF has."""
    images = [p for p in config.phases if p.trains != "prompts"] or list(config.phases)
    prompts = [p for p in config.phases if p.trains == "prompts"]
    stages = [Phase("images", sum(p.epochs for p in images), images[0].batch)]
    return (*stages, *(Phase("prompts", sum(p.epochs for p in prompts), prompts[0].batch) for _ in prompts[:1]))
