r"""TRM-ML: each category looks for its region and is matched with that; prototypes fill in unknown labels.

$$A_c = \mathrm{softmax}_j \Big( \frac{W_q q_c \cdot W_k F_j}{\sqrt D} \Big), \quad
  v_c = W_v \sum_j A_{cj} F_j, \quad u_c = q_c + \mathrm{MLP}(q_c + v_c), \qquad
  s_c = \frac{\cos(v_c, t_c)}{\tau} + \beta_0,$$
$$L = \alpha L_{asl}(s, \hat y) + \beta\, \mathrm{KL}\big( \sigma(s) \,\Vert\, \sigma(s^u) \big) + \gamma L_{con},
  \qquad s^u_c = \frac{\cos(u_c, t_c)}{\tau} + \beta_0$$

with texts t_c, patches F_j, queries q_c, softmax $\sigma$ over the categories, and labels $\hat y$ of which the unknown
ones are filled where prototypes are sure (``pseudo_labels.py``, Eqs. 7-12).

**The paper** (Ma et al., ACM MM 2024) freezes both encoders and matches text with category-aware *regions*, where
others match it with the image or with pixels. Cross-attention of category queries and the feature map gives regions
(Eqs. 2-4), cosine over a learnt temperature the score (Eq. 1), a KL divergence distils region into query scores (Eqs.
5-6), a visual memory and text prototypes estimate unknown labels and thresholds that are moving averages make
pseudo-labels (Eqs. 7-12), then come a multimodal contrastive loss (Eq. 13), ASL (Eq. 14) and their sum with weights 1,
0.05 and 0.01 (Eq. 15). The region score is what is used in the end. Its equations were not at hand to us, only its
abstract, what summaries say of it, and the abstract of the authors' patent (CN 119399505 A): attention gives a saliency
map per category, which sums the visual features up to the region; an MLP gives query features; regions teach these.
**Released code**: none; its repository holds a notice.

**We** decided the rest. One head; F_j of unit length; queries start at the text embeddings of a template, W_q and W_k
at a multiple of the identity, W_v at the identity. One context of 16 vectors is shared by all texts
(``base.Contexts``), and a learnt offset $\beta_0$ joins the temperature (``base.Likeness``); both are fitted to the
known labels before anything else learns (``base.Partial.begin``). The distillation has the
region for a teacher, which gets no gradient from it. alpha is the weight of ASL, beta that of distillation, gamma that
of the contrastive loss. Eq. 10 is printed with the same inequality twice: as meant, a label is present above an upper
threshold and absent below a lower one. What ``Memory.thresholds``, ``Memory.update`` and ``estimate`` compute is ours
too, as is ``contrast``. Only regions of labels *known* to be present enter the memory and the contrastive loss.
Pseudo-labels start after ``pseudo_after`` steps. Pictures without a known label take part where pseudo-labels are made
or regions distilled.

Memory and thresholds are buffers: a checkpoint holds them. In data parallel each process puts its own pictures in, and
the buffers of the first are handed to all before each step, so the memory knows the pictures of the first process
alone; with ``accumulate`` it is updated with each part of a batch: either changes numbers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.engine import chunks
from hrcf_lib.method import finite
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.first.pseudo_labels import WHICH, Memory, estimate, pseudo_labels
from hrcf_lib.methods.missing_labels.base import Contexts, Likeness, PseudoLabelled, check_categories
from hrcf_lib.methods.missing_labels.prototypes import fill
from hrcf_lib.methods.settings import PartialConfig


@dataclass(frozen=True)
class TRMMLFirstConfig(PartialConfig):
    """alpha, beta and gamma are the paper's; the rest is ours, chosen on val of MojiScenes."""

    method = "trm_ml"
    settings: str = setting("first", choices=("first",), before="first")

    matching: str = setting("region", choices=("region", "pixel", "image"))  # the others: without region learning
    alpha: float = 1.0  # weight of the asymmetric loss (Eq. 15)
    beta: float = 0.05  # of distillation; 0 switches it off, and so does another matching than "region"
    gamma: float = 0.01  # of the contrastive loss; 0 switches it off
    pseudo_labels: bool = True  # off: unknown labels stay unknown
    prototypes: str = setting("both", choices=WHICH)  # that estimates and the contrastive loss compare with
    memory: int = 16  # M, regions of a label that are kept
    ema: float = 0.9  # of the thresholds' moving averages: the weight of what was there before
    high: float = 0.6  # upper threshold, from 0, the moving average of estimates of present labels, to 1, certainty
    low: float = 0.0  # lower threshold, from 0, the moving average of other labels, to 1, that of present ones
    pseudo_after: int = 125  # steps without pseudo-labels
    estimate_sharpness: float = 20.0  # kappa of the estimates
    contrastive_temperature: float = 0.1
    distillation_temperature: float = 1.0
    sharpness: float = 10.0  # what cosines of texts and patches are multiplied by in the attention at the start
    tau: float = 0.1  # temperature before training, which begins by fitting it
    rare: float = 0.02  # likewise the probability of a label whose region is orthogonal to its text
    lr: float = 1e-3  # of queries, attention and MLP
    prompt_lr: float = 1e-3  # of context, temperature and offset

    def __post_init__(self):
        super().__post_init__()
        above = ("memory", "tau", "rare", "sharpness", "contrastive_temperature", "distillation_temperature")
        for name in above:
            if not getattr(self, name):
                raise ValueError(f"{name} = 0 must be above 0")
        for name in ("ema", "rare", "high", "low"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be below 1")


class TRMMLFirst(PseudoLabelled):
    """What learns are queries, attention and MLP, the context of all texts, temperature and offset."""

    title, Config = "TRM-ML", TRMMLFirstConfig
    about = "TRM-ML: text and regions matched for each category, with pseudo-labels."
    map_kind = "attention"
    trainable = {"images": ("attention.", "mlp.", "likeness."), "prompts": ("context.", "queries")}
    trainable["both"] = trainable["images"] + trainable["prompts"]
    text_prefixes, open_vocabulary = ("context.", "queries"), False

    def build(self) -> None:
        """Context, queries, attention and MLP, of which other matchings have a part; and an empty memory."""
        check_categories(self.config)
        c, D = self.config, self.vlp.D
        self.context = Contexts(self.vlp, c.prompt_vectors)
        self.likeness = Likeness(c.tau, math.log(c.rare / (1 - c.rare)))
        self.memory = Memory(len(c.categories), c.memory, D, c.ema)
        names = ["context.", "likeness."]
        if c.matching == "region":
            self.queries = nn.Parameter(F.normalize(fixed_prompts(self.vlp, c.categories, c.template), dim=1))  # (K, D)
            self.attention = RegionAttention(D, c.sharpness)
            names += ["queries", "attention."]
            if c.beta:
                self.mlp = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D // 2), nn.GELU(), nn.Linear(D // 2, D))
                names += ["mlp."]
        self.trainable = {
            side: tuple(name for name in own if name in names) for side, own in type(self).trainable.items()
        }

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D) and F (B, N^2, D), both of unit length.

        With matching "image" e_p is the one region.
        """
        e = F.normalize(self.vlp.teacher(trunk), dim=-1)  # (B, D)
        return e, e[:, None] if self.config.matching == "image" else F.normalize(self.vlp.dense(trunk), dim=-1)

    def label_embeddings(self, names) -> Tensor:
        """(K, 2 D): texts t_c of unit length, and what looks for regions: queries, or with other matchings the texts.

        Raises ``ValueError`` for names that are none of its categories.
        """
        k = self.columns(names)
        t = F.normalize(self.context(self.vlp, names), dim=1)  # (K, D)
        return torch.cat([t, self.queries[k] if self.config.matching == "region" else t], dim=1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), which is not used, (B, J, D), (K, 2 D) -> logits (B, K): the region score."""
        size = self._part_size(regions, len(label_embeddings))
        t, q = label_embeddings.chunk(2, dim=1)  # (K, D) each
        parts = zip(t.split(size), q.split(size), strict=True)
        return torch.cat([self._match(self.regions(regions, own_q), own_t) for own_t, own_q in parts], dim=1)

    def regions(self, patches: Tensor, q: Tensor) -> Tensor:
        """v_c (B, k, D) of patches (B, J, D) and the second half of label embeddings (k, D), Eqs. 2-4."""
        v = F.scaled_dot_product_attention(self._keys(q).expand(len(patches), -1, -1), patches, patches)  # (B, k, D)
        return self.attention.value(v) if self.config.matching == "region" else v  # W_v sum_j A_cj F_j

    @torch.no_grad()
    def maps(self, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """Where each label looks: (B, J, D), (K, 2 D) -> A (B, K, J), which sum to 1 over J, Eq. 2."""
        q = label_embeddings.chunk(2, dim=1)[1]
        return (self._keys(q) @ regions.transpose(1, 2) / math.sqrt(q.shape[1])).softmax(dim=-1)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""Eqs. 5-6, 13 and 14; in training mode, memory and thresholds are updated from the known labels at the end.

        Raises ``ValueError`` for labels of another number than its categories, ``FloatingPointError`` for scores that
        are not finite.
        """
        K = len(self.config.categories)
        if labels.shape[1] != K or len(t) != K:
            raise ValueError(f"labels of {labels.shape[1]} categories for a model of {K}: train it on all of its own")
        present = labels == 1  # (B, K)
        texts = t[:, : t.shape[1] // 2]  # (K, D)
        s, s_query, e, v = self._matches(regions, t, present)  # (B, K) x 3, (n, D)
        classes = present.T.nonzero()[:, 0]  # (n,)
        y = self.filled(e, labels) if self.memory.steps >= self.config.pseudo_after else labels  # (B, K)
        prototypes = self.memory.prototypes(texts)  # (K, D)
        parts = {"classification": self.classification(self.probabilities(finite(s)), y)}  # Eq. 14
        parts["distillation"] = distil(s, s_query, self.config.distillation_temperature)  # Eqs. 5-6
        parts["contrastive"] = self._contrast(v, classes, prototypes, texts)  # Eq. 13
        if self.training:
            self.memory.add(v.detach(), classes)  # Eq. 7
            self.memory.update(e, labels)  # Eqs. 11-12
        return parts

    def filled(self, e: Tensor, labels: Tensor) -> Tensor:
        """Labels (B, K) with pseudo-labels in the place of unknown ones, by ``estimates`` (B, K)."""
        if not self.config.pseudo_labels:
            return labels
        return fill(labels, pseudo_labels(e, *self.memory.thresholds(self.config.high, self.config.low)))

    def without_positives(self) -> tuple[str, ...]:
        """Names of the categories that the memory holds nothing of: their prototype is their text embedding."""
        names = self.reference_labels or self.config.categories
        return tuple(name for name, seen in zip(names, self.memory.seen.tolist(), strict=True) if not seen)

    def weights(self, side: str) -> dict[str, float]:
        """The weights of Eq. 15."""
        c = self.config
        return {
            "classification": c.alpha,
            "distillation": c.beta if c.matching == "region" else 0.0,
            "contrastive": c.gamma,
        }

    def lr_scale(self, side: str, name: str) -> float:
        """Where both sides learn at once, context, temperature and offset learn at ``prompt_lr``."""
        fast = side == "both" and name.startswith(("context.", "likeness."))
        return self.config.prompt_lr / self.config.lr if fast else 1.0

    def _keys(self, q: Tensor) -> Tensor:
        """What is compared with patches F_j: (k, D) -> W_k^T W_q q_c, or the texts times a constant, (k, D)."""
        if self.config.matching == "region":
            return self.attention(q)
        return q * (self.config.sharpness * math.sqrt(q.shape[1]))

    def _match(self, v: Tensor, t: Tensor) -> Tensor:
        """Eq. 1, of regions or queries (B, k, D) and texts (k, D) of unit length: logits (B, k)."""
        return self.likeness(torch.linalg.vecdot(F.normalize(v, dim=-1), t))

    def _matches(self, regions: Tensor, label_embeddings: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        r"""Region scores, query scores and estimates (B, K), and the regions (n, D) of chosen pairs alone.

        (B, J, D), (K, 2 D), a mask (B, K); the pairs come in the order of ``chosen.T.nonzero()``. Labels are taken in
        parts whose regions are no larger than ``chunks.LARGE``, each computed again for the backward pass where there
        are several.
        """
        K = len(label_embeddings)
        prototypes = self.memory.prototypes(label_embeddings.chunk(2, dim=1)[0])  # (K, D)
        size, found = self._part_size(regions, K), []
        for first in range(0, K, size):
            args = regions, label_embeddings, chosen, prototypes, slice(first, first + size)
            several = size < K and torch.is_grad_enabled()
            found.append(chunks.recomputed(self._part, *args, again=several))
        s, s_query, e, v = zip(*found, strict=True)
        return *(torch.cat(x, dim=1) for x in (s, s_query, e)), torch.cat(v)

    def _part(self, regions, label_embeddings, chosen, prototypes, part: slice) -> tuple[Tensor, ...]:
        c, (t, q) = self.config, label_embeddings.chunk(2, dim=1)  # (K, D) each
        v = self.regions(regions, q[part])  # (B, k, D)
        s = self._match(v, t[part])  # (B, k)
        s_query = s
        if hasattr(self, "mlp"):
            s_query = self._match(q[part] + self.mlp(q[part] + v), t[part])  # of u_c
        e = estimate(v, prototypes, t, part, c.estimate_sharpness, c.prototypes)  # (B, k)
        return s, s_query, e, v.transpose(0, 1)[chosen[:, part].T]

    def _part_size(self, regions: Tensor, K: int) -> int:
        B, J, D = regions.shape
        return chunks.labels_at_a_time(K, B * max(D, J))

    def _contrast(self, v: Tensor, classes: Tensor, prototypes: Tensor, texts: Tensor) -> Tensor:
        kinds = {"both": (prototypes, texts), "visual": (prototypes,), "text": (texts,)}[self.config.prototypes]
        return contrast(v, classes, kinds, self.config.contrastive_temperature)


class RegionAttention(nn.Module):
    r"""W_q, W_k and W_v of one head, which start as multiples of the identity (Eqs. 2-4).

    Args:
        D: width of queries and patches.
        sharpness: at the start the scores in the softmax are this times q_c . F_j.
    """

    def __init__(self, D: int, sharpness: float):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, D, bias=False) for _ in range(3))
        for layer in self.children():
            nn.init.eye_(layer.weight)
        with torch.no_grad():
            for layer in (self.query, self.key):
                layer.weight.mul_(math.sqrt(sharpness * math.sqrt(D)))

    def forward(self, q: Tensor) -> Tensor:
        """Queries (K, D) -> W_k^T W_q q (K, D), whose products with F_j are W_q q . W_k F_j: no key is ever made."""
        return self.query(q) @ self.key.weight


def distil(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL divergence of two sets of scores (B, K), a mean over the pictures; none flows back into the teacher.

    .. math:: \frac1B \sum_i \sum_c p_{ic} \log \frac{p_{ic}}{r_{ic}}, \qquad
        p_i = \mathrm{softmax}_c(s_i / T), \quad r_i = \mathrm{softmax}_c(s^u_i / T)

    >>> distil(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 5.0]]))  # an offset of all scores is no difference
    tensor(0.)
    """
    p = (teacher.detach() / temperature).log_softmax(dim=1)  # (B, K)
    return F.kl_div((student / temperature).log_softmax(dim=1), p, reduction="batchmean", log_target=True)


def contrast(v: Tensor, classes: Tensor, prototypes: tuple[Tensor, ...], temperature: float) -> Tensor:
    r"""Regions attract the prototypes of their own label in every modality, and repel all others (Eq. 13).

    .. math:: L = \frac{-1}{n |P|} \sum_i \sum_{P} \log \frac{\exp(\cos(v_i, P_{c_i}) / \tau)}
        {\sum_{P'} \sum_{c'} \exp(\cos(v_i, P'_{c'}) / \tau)}

    Args:
        v: (n, D) regions of present labels.
        classes: (n,) their labels.
        prototypes: one or two tables (K, D), visual and text; gradients flow into those that have any.
        temperature: tau, above 0.

    Returns:
        scalar, 0 without regions.
    """
    if not len(v):
        return v.sum() * 0
    K, every = len(prototypes[0]), F.normalize(torch.cat(prototypes), dim=1)  # (|P| K, D)
    log_p = (F.normalize(v, dim=1) @ every.T / temperature).log_softmax(dim=1)  # (n, |P| K)
    own = classes[:, None] + K * torch.arange(len(prototypes), device=v.device)  # (n, |P|)
    return -log_p.gather(1, own).mean()
