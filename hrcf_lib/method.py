r"""What every classifier here is, HRCF and the methods it is compared with: one protocol, as small as it can be.

pictures -> ``vlp.trunk`` (frozen) -> ``image_embeddings`` -> a global embedding and regions
names    -> ``label_embeddings``                           -> a vector a label
both     -> ``score_embeddings``                           -> scores (B, K)

A new method says these three and, in ``build``, which modules they need; ``losses`` and the rest have defaults. Then
``training.train``, ``evaluation.evaluate``, ``studies.run`` and ``classify`` take it. A template is in
``baselines/template.py``. B pictures, N side of the patch grid, J regions, K labels, C width of the ViT, D embedding
width.
"""

import copy
import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from hrcf_lib import card, vlp
from hrcf_lib import config as configs
from hrcf_lib.engine import devices
from hrcf_lib.engine import files as files_module
from hrcf_lib.engine.schedules import learning_rate
from hrcf_lib.losses import distillation_loss, ranking_loss

FILES = ("config.json", "model.safetensors")  # what ``from_pretrained`` reads; a model card lies beside them
OPTIONAL = ("calibration.json",)  # what it reads too, of a model that has one
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name on the Hugging Face hub; no path from . or /


class Method(nn.Module):
    r"""A classifier on a frozen VLP.

    Args:
        config: of the kind ``Config``, which is a class attribute.
        pretrained: ``False`` builds the VLP with random weights and needs no network.

    Attributes: ``vlp`` frozen; ``reference_labels`` the seen labels of training, the vocabulary that a user's own
    labels are scored in; ``calibration`` what makes probabilities of scores, or None (``calibration.py``);
    ``trainable`` the parameters that each side trains, as beginnings of their names.

    Raises what ``vlp.load`` raises. Whatever is drawn at random depends on ``config.seed`` alone, and the global random
    state stays as it was.
    """

    title = "Method"  # what tables call it
    Config = configs.Config  # whose ``method`` is what ``baselines.build`` calls it
    trainable: dict[str, tuple[str, ...]] = configs.TRAINABLE
    text_prefixes: tuple[str, ...] = (
        "prompt.",
    )  # beginnings of the names of parameters that ``label_embeddings`` depends on
    open_vocabulary = True  # scores any labels; False: those it was trained on, which are ``config.categories``
    threshold: float | None = None  # score from which a label counts as present, of a method that fixes one

    def __init__(self, config: configs.Config, pretrained: bool = True):
        super().__init__()
        if not isinstance(config, self.Config):
            raise ValueError(
                f"{type(self).__name__} takes a {self.Config.__name__}, not a {type(config).__name__}: "
                f"use baselines.build({self.Config.method!r}, config)"
            )
        self.config = config
        self.reference_labels: tuple[str, ...] = ()
        self.calibration = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vlp = vlp.load(config.vlp, config.vlp_weights, pretrained)
            if not 0 <= self.trained_blocks <= self.vlp.depth:
                raise ValueError(
                    f"blocks = {self.trained_blocks} of a ViT with {self.vlp.depth}: choose from 0 to that"
                )
            self.vlp.trained_blocks = self.trained_blocks
            self.build()

    # What a method says -----------------------------------------------------------------------------------------------

    @property
    def trained_blocks(self) -> int:
        """How many last blocks of the ViT it trains; pictures come to ``image_embeddings`` as tokens before them."""
        return 1

    def build(self) -> None:
        """Make the modules. Parameters of the text side have names that begin as ``text`` says."""
        raise NotImplementedError

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        r"""Trunk tokens (B, 1 + N^2, C) -> a global embedding (B, ·) and regions (B, J, ·), which may be none."""
        raise NotImplementedError

    def label_embeddings(self, names) -> Tensor:
        r"""(K, D) embeddings of label names. Raises ``ValueError`` for names that it cannot take."""
        raise NotImplementedError

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""What ``image_embeddings`` gave, and (K, D) -> (B, K). Any set of labels, also ones never trained on."""
        raise NotImplementedError

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""The parts of the loss by name, each a mean over the B pictures: here ranking and distillation.

        ``labels`` (B, K) are -1/0/+1, ``teacher`` (B, D) is e_p of the frozen VLP. Raises ``FloatingPointError`` for
        scores that are not finite.
        """
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        rank = ranking_loss(s, labels, self.config.ranking_reduction)  # Eq. 15
        return {"ranking": rank, "distillation": distillation_loss(e_g, teacher, self.config.distillation_reduction)}

    def begin(self, data) -> None:
        """What a method does with the training data once, before the first step of a run; here nothing."""

    def usable(self, labels: Tensor) -> Tensor:
        """Which pictures take part in training: (B, K) -> (B,) bool. Here those with a positive label, as in MKT."""
        return (labels == 1).any(dim=1)

    def weights(self, side: str) -> dict[str, float]:
        """Weight of each part of the loss while ``side`` learns; a part of weight 0 is reported and trains nothing.

        The names are those of ``losses``, the same for every side.
        """
        return {"ranking": 1.0, "distillation": 0.0 if side == "prompts" else self.config.distillation}

    def lr_scale(self, side: str, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return 1.0

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """At a fractional epoch of the ``epochs`` that a side trains in all: warm-up and cosine; prompts without."""
        base, warmup = (
            (self.config.prompt_lr, 0.0) if side == "prompts" else (self.config.lr, self.config.warmup_epochs)
        )
        return learning_rate(epoch, epochs, base, self.config.min_lr, warmup)

    # What a user calls ------------------------------------------------------------------------------------------------

    def fit(self, data, folder: str | Path | None = None, **options):
        """Train on ``data`` (such as ``fit.source(method, "train")``) as ``training.train`` does; returns its frame."""
        from hrcf_lib.training import train  # which stands above all methods

        return train(self, data, folder, **options)

    @torch.no_grad()
    def score(self, images: Tensor, labels, batch: int = 64) -> Tensor:
        r"""Pictures (B, 3, side, side), uint8 or float in 0..1, and K names (or embeddings (K, D)) -> scores (B, K).

        In evaluation mode, ``batch`` pictures at a time, float32. The labels are scored among themselves, and may be
        any: seen or not. Raises ``ValueError`` for pictures of another shape or kind, names that ``label_embeddings``
        refuses, or scores that are not finite, naming the picture.
        """
        if not isinstance(images, Tensor):
            raise ValueError(
                f"images is a {type(images).__name__}: give a tensor (B, 3, {self.vlp.side}, {self.vlp.side}); "
                "predict.classify reads files and PIL images"
            )
        training = self.training
        try:
            self.eval()
            t = labels if isinstance(labels, Tensor) else self.label_embeddings(labels)
            parts = [self.score_embeddings(*self.embed(part), t) for part in images.split(batch)]
        finally:
            self.train(training)
        s = torch.cat(parts)
        if not (fine := s.isfinite().all(dim=1)).all():
            odd = (~fine).nonzero()[:5, 0].tolist()
            raise ValueError(f"scores of pictures {odd} are NaN or infinite: look at their pixels, or at the weights")
        return s

    def groups(self, side: str) -> list[dict]:
        """Parameters by group, as AdamW takes them: names, params, lr_scale, weight_decay (none on 1-D parameters)."""
        groups = {}
        for name, p in self.named_parameters():
            if name.startswith(self.trainable[side]):
                decay = self.config.weight_decay if p.ndim > 1 else 0.0
                groups.setdefault((self.lr_scale(side, name), decay), []).append((name, p))
        return [
            {"names": [n for n, _ in own], "params": [p for _, p in own], "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), own in groups.items()
        ]

    def trained_parameters(self) -> dict[str, int]:
        """How many numbers the ``image side`` and the ``text side`` train."""
        sides = {"image side": "images" if "images" in self.trainable else "hcg", "text side": "prompts"}
        count = lambda side: sum(p.numel() for group in self.groups(side) for p in group["params"])
        return {name: count(side) for name, side in sides.items()}

    def forward(self, images: Tensor, labels) -> Tensor:
        r"""Pictures (B, 3, side, side), uint8 or float in 0..1, and names (or embeddings (K, D)) -> scores (B, K).

        As ``score``, with gradients, in the mode and precision that its caller chooses.
        """
        t = labels if isinstance(labels, Tensor) else self.label_embeddings(labels)
        with torch.no_grad():
            trunk = self.vlp.trunk(images)
        return self.score_embeddings(*self.image_embeddings(trunk), t)

    @torch.no_grad()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, side, side) -> ``image_embeddings``, float32, without gradient, in ``autocast``.

        What inference calls; ``forward`` computes in the precision that its caller chooses.
        """
        with self.autocast():
            e_g, regions = self.image_embeddings(self.vlp.trunk(images))
        return e_g.float(), regions.float()

    def autocast(self) -> torch.autocast:
        """What trunk and image side run in: bfloat16 if ``config.bf16`` and the device has it."""
        return devices.autocast(self.vlp.mean.device, self.config.bf16)

    def under(self, config: configs.Config) -> "Method":
        """The same weights under another config, whose changes matter at test time only."""
        other = copy.copy(self)
        other.config = config
        return other

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that is not the frozen VLP."""
        return {n: v for n, v in self.state_dict().items() if not n.startswith("vlp.")}

    def load_trainable(self, state: dict[str, Tensor], source) -> None:
        """Load what ``trainable_state`` gave. Raises ``ValueError`` listing names and shapes that do not fit."""
        frozen = {n: v for n, v in self.state_dict().items() if n.startswith("vlp.")}
        files_module.load_into(self, state | frozen, source)

    def save_pretrained(self, folder: str | Path, metrics=None, training=None, licence: str | None = None) -> Path:
        r"""Write ``model.safetensors`` (trainable parts), ``config.json`` (config, hash of the VLP, seen labels), and a
        model card, ``README.md``.

        The VLP itself is not written; a calibration is, as ``calibration.json``. ``metrics`` (what ``evaluate``
        returned, or a dict split -> that), ``training`` and ``licence`` go on the card: see ``card.card``. Returns the
        folder, which is made if need be. Raises ``ValueError`` for metrics without a protocol, before anything is
        written.
        """
        from hrcf_lib.apply import calibration  # which stands above all methods

        about_it = card.card(self, metrics, training, licence)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files_module.write_tensors(self.trainable_state(), folder / "model.safetensors")
        about = {"config": self.config.to_dict(), "vlp_hash": self.vlp.hash, "reference_labels": self.reference_labels}
        about = {"method": self.config.method} | about
        (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        calibration.write_calibration(self.calibration, folder)
        card.write(about_it, folder)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes) -> "Method":
        r"""The model saved in ``folder``, in evaluation mode; ``changes`` replace config values.

        ``folder`` may also name a repository ``owner/name`` of the Hugging Face hub. Raises ``FileNotFoundError`` that
        says what is missing, ``ValueError`` if method, config, weights or VLP do not fit, and what ``vlp.load`` raises.
        """
        from hrcf_lib.apply import calibration  # which stands above all methods

        about = read_about(folder := find_folder(folder))
        if about["method"] != cls.Config.method:
            raise ValueError(
                f"{folder} holds a {about['method']!r}, not {cls.Config.method!r}: use baselines.load(folder)"
            )
        try:
            config = configs.from_dict(about["config"], cls.Config)
            expected, seen = about["vlp_hash"], about["reference_labels"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a config of save_pretrained: {error!r}") from error
        model = cls(config.replace(**changes))
        if model.vlp.hash != expected:
            raise ValueError(
                f"{folder} was trained on {config.vlp} with hash {expected}, the {model.vlp.name} here has "
                f"{model.vlp.hash}: give the same VLP (vlp, vlp_weights)"
            )
        model.load_trainable(files_module.read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
        model.reference_labels = tuple(seen)
        model.calibration = calibration.read_calibration(folder)
        return model.eval()


def finite(scores: Tensor) -> Tensor:
    """The scores themselves. Raises ``FloatingPointError`` if one is NaN or infinite; ``train`` says why."""
    if not scores.isfinite().all():
        raise FloatingPointError
    return scores


def read_about(folder: Path) -> dict:
    """What ``config.json`` of a folder says, with the name of the method. Raises ``ValueError`` for another file."""
    path = folder / "config.json"
    try:
        return {"method": "hrcf"} | json.loads(path.read_text(encoding="utf-8"))  # older folders name no method
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a config of save_pretrained: {error!r}") from error


def find_folder(source: str | Path) -> Path:
    """A folder of ``save_pretrained`` on this machine, fetched from the hub first where the name is of that kind."""
    folder = Path(source)
    if not folder.exists() and REPOSITORY.fullmatch(str(source)):
        try:
            cached_only = not vlp.online()
            files = [*FILES, *OPTIONAL]
            folder = Path(snapshot_download(str(source), allow_patterns=files, local_files_only=cached_only))
        except Exception as error:  # no such repository, no access, no network: every kind of its own
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"{source} is no folder here, and the hub gave none of that name: {reason}"
            ) from error
    for file in FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no {file}: give a folder that save_pretrained wrote")
    return folder
