r"""OVML-VLP (Dao et al., ICME 2023): label embeddings ask the VLP's feature map; the VLP itself is frozen.

$$f_k = W_o \big[ A^1_k V^1; \dots; A^H_k V^H \big], \quad
  A^h_k = \mathrm{softmax}_j \Big( \frac{q^h_k \cdot k^h_j}{\sqrt{d}} \Big), \quad
  q = W_q t_k, \; k_j = W_k F_j, \; v_j = W_v F_j,$$
$$s_k = \lambda\, f_k \cdot t_k + (1 - \lambda)\, e_p \cdot t_k \quad (\text{in training } \lambda = 1), \qquad
  L = L_{rank}(s, y) + w\, L_{con}$$

**The paper** has multi-head attention with label embeddings as queries (Eqs. 2-4), a log-sum ranking loss (Eqs. 5-7), a
supervised contrastive loss over projected class-specific features of present labels (Eqs. 8-9), features interpolated
with the VLP's at test time, Adam with a one-cycle learning rate of 2e-4 at its top, and a VLP that is not fine-tuned
(its Table III). Its exact terms are not at hand. **Released code**: none that we know of.

**We** take for F the patch tokens behind the VLP's last block, final norm and projection; no biases, no dropout, no
residual; projections that start at the identity, $W_q$ at a multiple of it (``sharpness``), so that at the start $f_k$
is a weighted mean of F in the VLP's own space and unseen labels are scored sensibly from the first step; the pairwise
log-sum-exp loss of Li et al. (CVPR 2017) and L_out of Khosla et al. (NeurIPS 2020), one linear projection before it.
Features are interpolated as they are, neither of unit length, which is the same as interpolating scores. lam and the
weight w are chosen on val. Labels that are 0 take no part in either loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrcf_lib import scores
from hrcf_lib.config import setting
from hrcf_lib.engine import chunks
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.method import Method, finite
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.losses import log_sum_ranking_loss, supervised_contrastive_loss
from hrcf_lib.methods.settings import MethodConfig


@dataclass(frozen=True)
class OVMLVLPFirstConfig(MethodConfig):
    """Learning rate and schedule are the paper's; the rest is ours."""

    method = "ovml_vlp"
    settings: str = setting("first", choices=("first",), before="first")

    heads: int = 8  # H; D is a multiple of it
    sharpness: float = 0.1  # what the VLP's own scores are multiplied by in the softmax at the start
    lam: float = 0.75  # weight of the class-specific features, at test time only; chosen on val
    contrastive: float = 0.1  # w, weight of the contrastive loss, chosen on val; 0 switches it off (Table III)
    contrastive_temperature: float = 0.1  # of Khosla et al.
    contrastive_width: int = 128  # of the projection before the contrastive loss
    lr: float = 2e-4  # top of the one cycle
    weight_decay: float = 0.0  # AdamW without decay is Adam

    def __post_init__(self):
        super().__post_init__()
        for field in ("heads", "contrastive_width", "contrastive_temperature"):
            if not getattr(self, field):
                raise ValueError(f"{field} = 0 must be above 0")


class ImageTextAttention(nn.Module):
    r"""Multi-head attention of labels over a feature map, Eqs. 2-4: one class-specific feature per label.

    Args:
        D: width of labels and map.
        heads: H; d = D / H.
        sharpness: at the start the H scores in the softmax are this times H times the share of a head in t_k . F_j, so
            that their mean is this times t_k . F_j.

    Raises ``ValueError`` if ``heads`` does not divide ``D``.
    """

    def __init__(self, D: int, heads: int, sharpness: float = 0.1):
        super().__init__()
        if D % heads:
            raise ValueError(f"heads = {heads} of embeddings of width {D}: choose a divisor of {D}")
        self.heads, d = heads, D // heads
        self.query, self.key, self.value, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        for layer in self.children():
            nn.init.eye_(layer.weight)
        with torch.no_grad():
            self.query.weight.mul_(sharpness * heads * math.sqrt(d))

    def forward(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""(B, J, D), (K, D) -> f (B, K, D). A label's feature does not depend on the other labels."""
        q, k, v = self.query(t), self.key(regions), self.value(regions)  # (K, D), (B, J, D), (B, J, D)
        q = self._split(q.expand(regions.shape[0], -1, -1))  # (B, H, K, d)
        f = functional.scaled_dot_product_attention(q, self._split(k), self._split(v))  # (B, H, K, d)  Eq. 3
        return self.out(f.transpose(1, 2).flatten(2))  # (B, K, D)  Eq. 4

    def masks(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""Where each head looks for each label: (B, J, D), (K, D) -> (B, H, K, J), which sum to 1 over J."""
        q, k = self._split(self.query(t)[None]), self._split(self.key(regions))  # (1, H, K, d), (B, H, J, d)
        return (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, H, K, J)  Eq. 2

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, n, D) -> (B, H, n, d)


class OVMLVLPFirst(Method):
    """What learns is the attention, and the projection before the contrastive loss, which training alone uses."""

    title, Config = "OVML-VLP", OVMLVLPFirstConfig
    about = "OVML-VLP (Dao et al., ICME 2023): label embeddings ask the VLP's feature map."
    has_lambda = True
    trainable = {"images": ("attention.", "projection."), "prompts": ()}
    trained_blocks = 0

    def build(self) -> None:
        """The attention, which starts in the VLP's own space, and the projection, which starts at random."""
        config = self.config
        self.attention = ImageTextAttention(self.vlp.D, config.heads, config.sharpness)
        self.projection = nn.Linear(self.vlp.D, config.contrastive_width, bias=False)
        if not config.contrastive:  # no gradient would reach the projection
            self.trainable = {"images": ("attention.",), "prompts": ()}

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D) and the feature map F (B, N^2, D)."""
        return self.vlp.teacher(trunk), self.vlp.dense(trunk)

    def label_embeddings(self, names) -> Tensor:
        """(K, D) of the template, never trained. Raises ``ValueError`` for names that it cannot take."""
        return fixed_prompts(self.vlp, names, self.config.template)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), (B, N^2, D), (K, D) -> (B, K); in training the class-specific features alone."""
        lam = 1.0 if self.training else self.config.lam
        s_global = scores.global_scores(e_g, label_embeddings)  # (B, K)
        own, _ = self.class_specific(regions, label_embeddings)  # (B, K)
        return scores.fuse(s_global, own, lam, normalize=False)  # ((1 - lam) e_p + lam f_k) . t_k

    def class_specific(self, regions: Tensor, t: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        r"""Scores f_k . t_k, and the features f_k of chosen pairs alone, which all together would be large.

        (B, J, D), (K, D), a mask (B, K) -> (B, K), (n, D) in the order of ``chosen.T.nonzero()``. Labels are taken in
        parts whose features and masks are no larger than ``chunks.LARGE``, each computed again for the backward pass
        where there are several.
        """
        B, J, D = regions.shape
        part = chunks.labels_at_a_time(len(t), B * max(D, self.config.heads * J))
        several = part < len(t) and torch.is_grad_enabled()
        found = []
        for first in range(0, len(t), part):
            own = None if chosen is None else chosen[:, first : first + part]
            found.append(chunks.recomputed(self._part, regions, t[first : first + part], own, again=several))
        s, f = zip(*found)
        return torch.cat(s, dim=1), None if chosen is None else torch.cat(f)

    def _part(self, regions: Tensor, t: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        f = self.attention(regions, t)  # (B, c, D)
        s = torch.linalg.vecdot(f, t)  # (B, c)
        return s, None if chosen is None else f.transpose(0, 1)[chosen.T]

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""The ranking loss of class-specific scores, and the contrastive loss of class-specific features.

        The latter compares the features of the pictures given, which in data parallel, or with ``accumulate``, are a
        part of the batch. Raises ``FloatingPointError`` for scores that are not finite.
        """
        present = labels == 1  # (B, K)
        s, f = self.class_specific(regions, t, present)  # (B, K), (n, D)
        rank = log_sum_ranking_loss(finite(s), labels)  # Eqs. 5-7
        if self.config.ranking_reduction == "sum":
            rank = rank * len(labels)
        classes = present.T.nonzero()[:, 0]  # (n,)
        contrast = supervised_contrastive_loss(self.projection(f), classes, self.config.contrastive_temperature)
        return {"ranking": rank, "contrastive": contrast}  # Eqs. 8-9

    def weights(self, side: str) -> dict[str, float]:
        """The paper's sum, weighted."""
        return {"ranking": 1.0, "contrastive": self.config.contrastive}

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """One cycle with ``lr`` at its top."""
        return one_cycle(epoch, epochs, self.config.lr)
