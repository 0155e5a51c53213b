r"""OVML-VLP (Dao et al., ICME 2023): each label's text asks the frozen VLP's feature map for an image of its own.

$$q_j = F_q(t_j), \quad K = F_k(X'), \quad V = F_v(X'), \qquad
  o_j = F_o \Big( \sum_i \mathrm{softmax}_i \Big( \frac{q_j \cdot k_i}{C} \Big) v_i \Big), \qquad
  s_j = \langle \bar o_j, \bar t_j \rangle, \tag{2-4}$$
$$L_{rank} = \frac{1}{N} \sum_i \frac{1}{|P^i|} \sum_{j \in P^i} \sum_{k \in \bar P^i} \log (1 + e^{s_k - s_j}),
  \tag{5-7}$$
$$L_{con} = \sum_{z_{ij} \in I} \frac{-1}{|P(i,j)|} \sum_{z_p \in P(i,j)}
  \log \frac{\exp(z_{ij} \cdot z_p / \tau)}{\sum_{z_a \in A(i,j)} \exp(z_{ij} \cdot z_a / \tau)}, \qquad
  L = L_{rank} + L_{con}. \tag{8-10}$$
At test time $s_j = \langle \lambda\, \bar o_j + (1 - \lambda)\, \bar x,\; \bar t_j \rangle$, x the VLP's own embedding.

**The paper** has CLIP RN50 at 224 px, frozen, with its map X' as it enters CLIP's attention pool; linear layers and
several heads in Eqs. 2-3; normalised features and texts, hence scores without a temperature; the pairwise loss over the
present labels; a sum over all anchors; both weights 1; Adam, one cycle up to 2e-4, 64 images a batch; and the
interpolation of features, at test alone. y is 0 or 1: a seen label without a tag is absent.

**Readings.** The softmax runs over positions. "L1-normalised" is taken as unit length, by which CLIP compares; ``norm``
has the letter, with which every score is near 0 and the ranking loss hardly depends on it. Eq. 5 is c_jk. The map is
as wide as the VLP has it, and F_k and F_v bring it to the width of the attention.

**Silent, and ours.** Class names without a template, biases, heads of 64 and C = 8, as in CLIP's pool, and CLIP's k, v
and c layers as the start of F_k, F_v, F_o (``start``), no position vectors (``positions``); z is one linear layer
without bias to 128 entries, of unit length, tau = 0.1, as Khosla et al. have it; an anchor without a partner is none,
but it repels others; lambda, chosen on val, of features that are of unit length first and not again, so that features
and scores are interpolated alike (``renormalize`` has the other). Beta1 is not cycled. Labels that are 0 (unknown) take
no part. The loss of an image without a positive is not defined, and ``train`` drops such images.

**With a ViT**, which the paper has not, X' are the patch tokens behind the last block, without final norm and
projection. The start is then made of these two: F_k and F_v take off a token's mean and multiply by the norm's gain,
F_o is the projection, and its bias that of the norm brought through it. What a linear layer lacks is the division by
each token's deviation.

**Released code**: none that we know of.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrcf_lib.config import Config, Phase, setting
from hrcf_lib.engine import chunks
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.method import Method, finite
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.losses import pairwise_logistic, supervised_contrastive_loss
from hrcf_lib.methods.settings import MethodConfig

BATCH = 64  # images in a step (Sec. IV)


@dataclass(frozen=True)
class OVMLVLPConfig(MethodConfig):
    """[P] is printed in the paper, [R] a reading of it, [S] a point on which it is silent: ours."""

    method = "ovml_vlp"
    small = {"lr": 6e-3, "lam": 0.75, "contrastive": 0.01}  # chosen on val; 190 steps of mini_short are few for 2e-4

    settings: str = setting("paper", choices=("paper",), before="first", gone="first")

    template: str = "{}"  # [R] a label is a word or a phrase, its class name
    norm: str = setting("l2", choices=("l2", "l1"), scores=True)  # [R] length 1 of o, t and x; [P] l1
    head_width: int = setting(64, low=1, high=65_536)  # [S] channels of a head, as in CLIP's pool; C is its root
    start: str = setting("clip", choices=("clip", "random"))  # [S] F_k, F_v, F_o from CLIP's own layers, or Xavier's
    positions: bool = setting(False, scores=True)  # [S] add the pool's position vectors to a ResNet's map
    lam: float = setting(0.5, high=1, scores=True, weights=False)  # [S] weight of o at test; in training 1 (Eq. 4)
    renormalize: bool = setting(False, scores=True, weights=False)  # [S] lam o + (1 - lam) x to length 1 again
    contrastive: float = 1.0  # [P] weight of L_con (Eq. 10); 0 switches it off (Table III)
    contrastive_temperature: float = 0.1  # [S] tau of Eq. 8
    contrastive_width: int = setting(128, low=1, high=65_536)  # [S] d_z
    contrastive_layers: int = setting(1, choices=(1, 2))  # [S] of the projection; 2: a ReLU between them
    optimizer: str = "adam"  # [P]
    lr: float = 2e-4  # [P] top of the one cycle
    weight_decay: float = 0.0  # [S]

    def __post_init__(self):
        super().__post_init__()
        if not self.contrastive_temperature:
            raise ValueError("contrastive_temperature = 0.0 must be above 0")

    @classmethod
    def budget(cls, config: Config) -> tuple[Phase, ...]:
        """As many passes over the pictures as all phases of ``config`` together, 64 pictures a step as in the paper."""
        return (Phase("images", sum(p.epochs for p in config.phases), BATCH),)


class ImageTextAttention(nn.Module):
    r"""Multi-head attention of labels over a feature map, Eqs. 2-3: one class-specific feature for each label.

    All layers have biases and start at random: Xavier's weights, biases of 0.

    Args:
        D: width of texts and features.
        C: width of the map.
        A: width of the attention, of queries, keys and values together.
        heads: of width A / heads = d each; the constant C of Eq. 2 is sqrt(d).

    Raises ``ValueError`` if ``heads`` does not divide ``A``.
    """

    def __init__(self, D: int, C: int, A: int, heads: int):
        super().__init__()
        if not heads or A % heads:
            raise ValueError(f"{heads} heads of an attention of width {A}: choose a divisor of it")
        self.heads = heads
        self.query, self.key = nn.Linear(D, A), nn.Linear(C, A)
        self.value, self.out = nn.Linear(C, A), nn.Linear(A, D)
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""X' (B, J, C), T (K, D) -> O (B, K, D). A label's feature does not depend on the other labels."""
        return self.ask(*self.keys_and_values(regions), t)

    def keys_and_values(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """X' (B, J, C) -> K and V, (B, H, J, d) each, which serve all labels."""
        return self._split(self.key(regions)), self._split(self.value(regions))  # Eq. 3

    def ask(self, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """(B, H, J, d) twice, (K, D) -> O (B, K, D)."""
        q = self._split(self.query(t)[None]).expand(len(k), -1, -1, -1)  # (B, H, K, d)  Eq. 3
        o = functional.scaled_dot_product_attention(q, k, v)  # (B, H, K, d)
        return self.out(o.transpose(1, 2).flatten(2))  # (B, K, D)  Eq. 2

    @torch.no_grad()
    def masks(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""Where each head looks for each label (Fig. 3): (B, J, C), (K, D) -> (B, H, K, J), of sum 1 over J.

        To be looked at: without gradient.
        """
        q, k = self._split(self.query(t)[None]), self._split(self.key(regions))  # (1, H, K, d), (B, H, J, d)
        return (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, H, K, J)  Eq. 2

    @torch.no_grad()
    def start_as(self, visual: nn.Module) -> None:
        """Take keys, values and output from CLIP's image tower: the pool of a ResNet, the norm and map of a ViT."""
        if (pool := getattr(visual, "attnpool", None)) is not None:
            for own, clips in ((self.key, pool.k_proj), (self.value, pool.v_proj), (self.out, pool.c_proj)):
                own.load_state_dict(clips.state_dict())
            return
        gain, bias, proj = visual.ln_post.weight, visual.ln_post.bias, visual.proj  # (C,), (C,), (C, D)
        centred = torch.eye(len(gain), device=gain.device) - 1 / len(gain)  # (C, C), x -> x - mean(x)
        for layer in (self.key, self.value):
            layer.weight.copy_(gain[:, None] * centred)
        self.out.weight.copy_(proj.T)
        self.out.bias.copy_(bias @ proj)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, n, A) -> (B, H, n, d)


class OVMLVLP(Method):
    """What learns is the attention, and the projection before the contrastive loss, which training alone uses."""

    title, Config = "OVML-VLP", OVMLVLPConfig
    about = "OVML-VLP (Dao et al., ICME 2023): each label's text asks the VLP's feature map."
    has_lambda, map_kind, independent_labels = True, "attention", True
    trainable = {"images": ("attention.", "projection."), "prompts": ()}
    trained_blocks = 0

    def build(self) -> None:
        """The attention, as wide as the map, from CLIP's own layers or at random; the projection at random."""
        c, C, D = self.config, self.vlp.C, self.vlp.D
        if C % c.head_width:
            raise ValueError(f"head_width = {c.head_width} of a feature map of width {C}: choose a divisor of it")
        if c.positions and self.vlp.is_vit:
            raise ValueError(f"positions of {c.vlp}, whose tokens hold theirs already: set it to False")
        self.attention = ImageTextAttention(D, C, C, C // c.head_width)
        if c.start == "clip":
            self.attention.start_as(self.vlp.model.visual)
        hidden = [nn.Linear(D, D, bias=False), nn.ReLU()] if c.contrastive_layers == 2 else []
        self.projection = nn.Sequential(*hidden, nn.Linear(D, c.contrastive_width, bias=False))
        if not c.contrastive:  # no gradient would reach the projection
            self.trainable = {"images": ("attention.",), "prompts": ()}

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's last map (B, 1 + N^2, C) -> x (B, D), and X' (B, N^2, C), which no pool or norm has seen."""
        regions = trunk[:, 1:]  # (B, N*N, C)
        if self.config.positions:
            regions = regions + self.vlp.model.visual.attnpool.positional_embedding[1:]  # without the mean's
        return self.vlp.teacher(trunk), regions

    def label_embeddings(self, names) -> Tensor:
        """T (K, D), of length 1, never trained. Raises ``ValueError`` for names that it cannot take."""
        return self._normalised(fixed_prompts(self.vlp, names, self.config.template))

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), (B, N^2, C), (K, D) -> (B, K), with l2 in -1..1; in training by the class-specific features alone."""
        lam = 1.0 if self.training else self.config.lam
        x, t = self._normalised(e_g), self._normalised(label_embeddings)  # (B, D), (K, D)
        if self.config.renormalize and not self.training:
            return self.class_specific(regions, t, mixed=(lam, x))[0]
        own, _ = self.class_specific(regions, t)  # (B, K)
        return lam * own + (1 - lam) * x @ t.T  # (B, K)  <lam o + (1 - lam) x, t>

    def maps(self, regions: Tensor, t: Tensor) -> Tensor:
        """Where it looks for each label, the mean over the heads: (B, N^2, C), (K, D) -> (B, K, N^2), of sum 1."""
        return self.attention.masks(regions, self._normalised(t)).mean(dim=1)

    def class_specific(self, regions: Tensor, t: Tensor, chosen: Tensor | None = None, mixed=None) -> tuple:
        r"""Scores <o_j, t_j>, and the features o_j of chosen pairs alone, which all together would be large.

        (B, J, C), (K, D), a mask (B, K) -> (B, K), (n, D) in the order of ``chosen.T.nonzero()``, or None without a
        mask. ``mixed`` (lam, x): of lam o_j + (1 - lam) x in place of o_j. Labels are taken in parts whose features and
        masks are no larger than ``chunks.LARGE``, each computed again for the backward pass where there are several.
        """
        k, v = self.attention.keys_and_values(regions)  # (B, H, J, d) each
        (B, H, J, d), D = k.shape, t.shape[1]
        part = chunks.labels_at_a_time(len(t), B * max(D, H * max(d, J)))
        several = part < len(t) and torch.is_grad_enabled()
        found = []
        for first in range(0, len(t), part):
            own = None if chosen is None else chosen[:, first : first + part]
            found.append(chunks.recomputed(self._part, k, v, t[first : first + part], own, mixed, again=several))
        s, o = zip(*found)
        return torch.cat(s, dim=1), None if chosen is None else torch.cat(o)

    def _part(self, k: Tensor, v: Tensor, t: Tensor, chosen: Tensor | None, mixed) -> tuple[Tensor, Tensor | None]:
        o = self._normalised(self.attention.ask(k, v, t))  # (B, c, D)
        if mixed is not None:
            lam, x = mixed
            o = self._normalised(lam * o + (1 - lam) * x[:, None])  # (B, c, D)
        s = torch.linalg.vecdot(o, t)  # (B, c)  Eq. 4
        return s, None if chosen is None else o.transpose(0, 1)[chosen.T]

    def _normalised(self, x: Tensor) -> Tensor:
        return functional.normalize(x, p={"l2": 2, "l1": 1}[self.config.norm], dim=-1)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""The ranking loss, a mean over the images, and the contrastive loss, a sum over the anchors.

        The latter compares the features of the images given, which in data parallel, or with ``accumulate``, are a part
        of the batch. Raises ``FloatingPointError`` for scores that are not finite.
        """
        present = labels == 1  # (B, K)
        s, o = self.class_specific(regions, self._normalised(t), present)  # (B, K), (n, D)
        rank = pairwise_logistic(finite(s), labels)  # Eqs. 5-7
        classes = present.T.nonzero()[:, 0]  # (n,)
        z = self.projection(o)  # (n, d_z), brought to length 1 in the loss
        contrast = supervised_contrastive_loss(z, classes, self.config.contrastive_temperature, reduction="sum")
        return {"ranking": rank, "contrastive": contrast}  # Eqs. 8-9

    def summed(self) -> set[str]:
        """Eq. 9 is a sum; Eq. 7 is a mean, whatever ``ranking_reduction`` says of the other methods' loss."""
        return {"contrastive"}

    def weights(self, side: str) -> dict[str, float]:
        """Eq. 10."""
        return {"ranking": 1.0, "contrastive": self.config.contrastive}

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """One cycle with ``lr`` at its top."""
        return one_cycle(epoch, epochs, self.config.lr)
