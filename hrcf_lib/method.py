r"""What every classifier here is, HRCF and the methods it is compared with: one protocol, as small as it can be.

pictures -> ``vlp.trunk`` (frozen) -> ``image_embeddings`` -> a global embedding and regions
names    -> ``label_embeddings``                           -> one vector per label
both     -> ``score_embeddings``                           -> scores (B, K)

A new method defines these three and, in ``build``, which modules they need; everything else has a default. Then
``training.train``, ``evaluation.evaluate``, ``studies.run`` and ``classify`` take it. ``methods/template.py`` is
one to copy. B pictures, N side of the patch grid, J regions, K labels, C width of the image tower, D
embedding width.
"""

import copy

import torch
from torch import Tensor, nn

from hrcf_lib import config as configs
from hrcf_lib import vlp
from hrcf_lib.engine import devices
from hrcf_lib.engine.messages import whole_number
from hrcf_lib.engine.schedules import learning_rate
from hrcf_lib.engine.weights import load_into
from hrcf_lib.labels import check_names
from hrcf_lib.losses import distillation_loss, ranking_loss
from hrcf_lib.pretrained import Pretrained


class Method(Pretrained, nn.Module):
    r"""A classifier on a frozen VLP. ``save_pretrained`` and ``from_pretrained`` come from ``Pretrained``.

    Args:
        config: of the kind ``Config``, which is a class attribute.
        pretrained: ``False`` builds the VLP with random weights and needs no network.

    Attributes: ``vlp`` frozen; ``reference_labels`` the seen labels of training, the vocabulary that a user's own
    labels are scored in; ``extras`` plain values that are saved with the model, by name.

    Raises what ``vlp.load`` raises, and ``ValueError`` for a ResNet where a ViT is needed. Whatever is drawn at random
    depends on ``config.seed`` alone, and the global random state stays as it was.
    """

    title = "Method"  # what tables call it
    about = "An open-vocabulary multi-label classifier."  # one line on its model card
    Config = configs.Config  # its ``method`` is the name by which ``methods.build`` knows it

    # What the library asks of a method, so that it never has to look at its name
    trainable: dict[str, tuple[str, ...]] = configs.TRAINABLE  # prefixes of the parameters that each side trains
    text_prefixes: tuple[str, ...] = ("prompt.",)  # of the parameters that ``label_embeddings`` depends on
    needs_vit = False  # whether it trains or uses blocks of a ViT, so that a ResNet is refused
    trained_blocks = (
        1  # last blocks of the ViT that it trains, 0 on a ResNet; ``image_embeddings`` gets the tokens before them
    )
    open_vocabulary = True  # scores any labels; False: only those it was trained on, ``config.categories``
    threshold: float | None = None  # score from which a label counts as present, of a method that fixes one
    has_lambda = False  # weighs regions against the whole picture by ``config.lam``
    has_selection = False  # leaves regions out at test time, by ``config.rss`` and ``config.keep``
    independent_labels = False  # whether a label's score depends on no other label (``score_alone``)
    idle_parameters = False  # whether some steps train only some of a side's parameters (``before_step``)
    fits_labels = False  # whether ``label_embeddings`` are fitted to the whole list, and by settings of the scores
    map_kind: str | None = None  # what its regions show of a label: "votes", "scores", "attention" (``region_maps``)

    def __init__(self, config: configs.Config, pretrained: bool = True):
        super().__init__()
        if not isinstance(config, self.Config) or config.method != self.Config.method:
            raise ValueError(
                f"{type(self).__name__} takes a {self.Config.__name__}, not a {type(config).__name__}: "
                f"use methods.build({self.Config.method!r}, config)"
            )
        self.config = config
        if self.needs_vit and not vlp.is_vit(config.vlp):
            raise ValueError(_no_vit(self.title, config.vlp))
        self.reference_labels: tuple[str, ...] = ()
        self.extras: dict[str, dict] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vlp = vlp.load(config.vlp, config.vlp_weights, pretrained, config.side)
            if self.trained_blocks and not self.vlp.is_vit:
                raise ValueError(_no_vit(self.title, config.vlp))
            if not 0 <= self.trained_blocks <= self.vlp.depth:
                blocks, depth = self.trained_blocks, self.vlp.depth
                raise ValueError(f"blocks = {blocks} of a ViT with {depth}: choose from 0 to that")
            self.vlp.trained_blocks = self.trained_blocks
            self.build()

    # What a method defines ----------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make the modules. Names of parameters of the text side begin as ``text_prefixes`` says."""
        raise NotImplementedError

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        r"""Trunk tokens (B, 1 + N^2, C) -> a global embedding (B, ·) and regions (B, J, ·), which may be none."""
        raise NotImplementedError

    def label_embeddings(self, names) -> Tensor:
        r"""(K, D) embeddings of label names. Raises ``ValueError`` for names that it cannot take."""
        raise NotImplementedError

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""What ``image_embeddings`` returned, and (K, D) -> (B, K), for any labels, also ones never trained on."""
        raise NotImplementedError

    def companions(self, names) -> list[str]:
        """Labels that are scored along with ``names`` and not reported: here none."""
        return []

    @torch.no_grad()
    def embed_names(self, names) -> Tensor:
        """Label embeddings to score K names with: theirs (K, D), and behind them those of their ``companions``."""
        along = self.companions(names)
        return self.label_embeddings([*names, *along] if along else names)

    @property
    def region_sides(self) -> list[int]:
        """Sides of the square maps that the regions form, one after the other: here one, of the N^2 positions."""
        return [self.vlp.N]

    def score_alone(self, e_g: Tensor, regions: Tensor, reference: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""Scores (B, K) of K labels (K, D), each alone beside the ``reference`` (R, D).

        This scores R + 1 labels, K times, unless the method has ``independent_labels``; one with another shorter way
        overrides it. None of the K labels may be among ``reference``.
        """
        if self.independent_labels:
            return self.score_embeddings(e_g, regions, label_embeddings)
        parts = [self.score_embeddings(e_g, regions, torch.cat([reference, t[None]]))[:, -1] for t in label_embeddings]
        return torch.stack(parts, dim=1) if parts else e_g.new_empty(len(e_g), 0)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""The parts of the loss by name, each a mean over the B pictures but for those of ``summed``: here ranking and
        distillation.

        ``labels`` (B, K) are -1/0/+1, ``teacher`` (B, D) is e_p of the frozen VLP. Raises ``FloatingPointError`` for
        scores that are not finite.
        """
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        rank = ranking_loss(s, labels, self.config.ranking_reduction)  # Eq. 15
        distillation = distillation_loss(e_g, teacher, self.config.distillation_reduction)  # Eq. 5
        return {"ranking": rank, "distillation": distillation}

    def summed(self) -> set[str]:
        """Names of the parts of the loss that are sums over the pictures and not means: parts of a batch add them."""
        return {"ranking"} if self.config.ranking_reduction == "sum" else set()

    def begin(self, data) -> None:
        """Called once with the training data, before the first step of a run; here it does nothing."""

    def before_step(self, step: int) -> None:
        """Called before each step, with its number in the run, from 1; here it does nothing.

        A method whose steps take turns closes the parameters of the others here (``requires_grad_``), and says so by
        ``idle_parameters``.
        """

    def usable(self, labels: Tensor) -> Tensor:
        """Which pictures take part in training: (B, K) -> (B,) bool. Here those with a positive label, as in MKT."""
        return (labels == 1).any(dim=1)

    def weights(self, side: str) -> dict[str, float]:
        """Weight of each part of the loss while ``side`` learns; a part of weight 0 is reported and trains nothing.

        Here those of HRCF: Eq. 20 with ``config.distillation`` before Eq. 5, and Eq. 21 while prompts learn. The names
        are those of ``losses``, the same for every side.
        """
        return {"ranking": 1.0, "distillation": 0.0 if side == "prompts" else self.config.distillation}

    def lr_scale(self, side: str, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return 1.0

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """At a fractional epoch of the ``epochs`` a side trains in all: cosine, with warm-up but for the prompts."""
        base, warmup = (
            (self.config.prompt_lr, 0.0) if side == "prompts" else (self.config.lr, self.config.warmup_epochs)
        )
        return learning_rate(epoch, epochs, base, self.config.min_lr, warmup)

    # What a user calls ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, images: Tensor, labels, batch: int = 64) -> Tensor:
        r"""Pictures (B, 3, side, side), uint8 or float in 0..1, and K names (or embeddings (K, D)) -> scores (B, K).

        In evaluation mode, ``batch`` pictures at a time, float32. Names, seen or not, are scored among themselves, or
        beside their ``companions``; embeddings always among themselves. Raises ``ValueError`` for pictures of another
        shape or kind, names that ``label_embeddings`` refuses, or scores that are not finite, naming the picture.
        """
        if not isinstance(images, Tensor):
            raise ValueError(
                f"images is a {type(images).__name__}: give a tensor (B, 3, {self.vlp.side}, {self.vlp.side}); "
                "classify reads files and PIL images"
            )
        batch = whole_number("batch", batch)
        labels = labels if isinstance(labels, Tensor) else check_names(labels)
        training = self.training
        try:
            self.eval()
            t = labels if isinstance(labels, Tensor) else self.embed_names(labels)
            parts = [self.score_embeddings(*self.embed(part), t)[:, : len(labels)] for part in images.split(batch)]
        finally:
            self.train(training)
        s = torch.cat(parts)
        if not (fine := s.isfinite().all(dim=1)).all():
            odd = (~fine).nonzero()[:5, 0].tolist()
            raise ValueError(f"scores of pictures {odd} are NaN or infinite: look at their pixels, or at the weights")
        return s

    def groups(self, side: str) -> list[dict]:
        """Parameters by group, as ``optimizer`` takes them: names, params, lr_scale, weight_decay (0 where 1-D)."""
        groups = {}
        for name, p in self.named_parameters():
            if name.startswith(self.trainable[side]):
                decay = self.config.weight_decay if p.ndim > 1 else 0.0
                groups.setdefault((self.lr_scale(side, name), decay), []).append((name, p))
        return [
            {
                "names": [n for n, _ in members],
                "params": [p for _, p in members],
                "lr_scale": scale,
                "weight_decay": decay,
            }
            for (scale, decay), members in groups.items()
        ]

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        r"""What updates the parameters of ``groups``: PyTorch's of the kind ``config.optimizer``.

        Weight decay is decoupled in ``adamw`` alone; ``adam`` and ``sgd`` add it to the gradient. ``train`` sets the
        rate before each step, keeps one optimizer for each side, and saves its state with a checkpoint.
        """
        c = self.config
        if c.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum)
        return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c.optimizer](groups, lr=c.lr)

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

    def in_float32(self) -> "Method":
        """Itself, or a copy in float32 of one that was cast (``half``, ``bfloat16``, ``double``), to score with."""
        numbers = [x for x in (*self.parameters(), *self.buffers()) if x.is_floating_point()]
        return self if all(x.dtype == torch.float32 for x in numbers) else copy.deepcopy(self).float()

    def under(self, config: configs.Config) -> "Method":
        """The same weights under another config, whose changes matter at test time only."""
        other = copy.copy(self)
        other.config, other.extras = config, dict(self.extras)
        return other

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that is not the frozen VLP."""
        return {n: v for n, v in self.state_dict().items() if not n.startswith("vlp.")}

    def load_trainable(self, state: dict[str, Tensor], source) -> None:
        """Load what ``trainable_state`` returned. Raises ``ValueError`` listing names and shapes that do not fit."""
        frozen = {n: v for n, v in self.state_dict().items() if n.startswith("vlp.")}
        load_into(self, state | frozen, source)


def _no_vit(title: str, name: str) -> str:
    return (
        f"{title} uses blocks of a ViT, and the image tower of {name} is a ResNet, which has none: set vlp to a ViT "
        "such as 'ViT-B-16', or take a method that leaves the image tower as it is, such as 'dual_coop'"
    )


def finite(scores: Tensor) -> Tensor:
    """The scores themselves. Raises ``FloatingPointError`` if one is NaN or infinite; ``train`` then reports why."""
    if not scores.isfinite().all():
        raise FloatingPointError("scores are NaN or infinite: look at the features, or lower the learning rate")
    return scores
