r"""TRM-ML: each category looks for its region and its text is matched with that; prototypes fill in unknown labels.

$$e_{cj} = \frac{(W_q q_c) \cdot (W_k f_j)}{\sqrt D}, \qquad F^r_c = \sum_j \sigma(e_{cj})\, f_j \quad (2, 4), \qquad
  h_c = W_o \sum_j \mathrm{softmax}_j(e_{cj})\, W_v f_j, \quad F^q_c = h_c + \mathrm{MLP}(h_c) \quad (3)$$
$$g^\pm_c = \mathrm{TextTower}([\omega^\pm_{c,1}, \ldots, \omega^\pm_{c,16}, name_c, \text{.}]), \qquad
  z^\pm = \frac{\cos(F_c, g^\pm_c)}{\tau} \quad (1, 5), \qquad
  p_c = \frac{\exp z^+}{\exp z^+ + \exp z^-} = \sigma(z^+ - z^-)$$
$$L = L_{asl}(p^q, \hat y) + \alpha L_{asl}(p^r, \hat y) + \beta\, \mathrm{KL}(p^r \Vert p^q) + \gamma L_{NCE}
  \quad (6, 13, 14, 15)$$

with a map f_j of positions in the joint space, learnt category queries q_c, and labels $\hat y$ of which the unknown
ones are filled where prototypes say so (``prototypes.py``, Eqs. 7-12).

**The paper** (Ma et al., ACM MM 2024) freezes both towers and matches a text with one *region*, where others match it
with the picture or with every pixel. The region is a soft mask of the raw map (Eq. 4): linear layers would leave the
joint space, so they are in the query feature F^q alone (Eq. 3), which learns from the region (Eq. 6). Two prompts of 16
vectors for each category, drawn from N(0, 0.02); one head; ASL with 1, 2 and 0.05 on the query's and the region's
score; alpha 1, beta 0.05, gamma 0.01; AdamW, one cycle to 5e-4, 40 epochs of batches of 128. A label is scored by its
region; prototypes and losses are gone then.

**Readings.** The probability of Eq. 14 is the two-way one of both prompts, as in DualCoOp, on which the paper builds;
g_c of Eqs. 6 and 13 and the text prototype are those of the positive prompt. Eq. 2 puts a sigmoid on energies that
Eq. 4 writes without. Scores of Eq. 5 are logits: a softmax over the categories makes the distributions of Eq. 6.
Eqs. 9, 10 and 14 lack 1/l, an inequality and signs (``prototypes.decide``, ``losses.asymmetric_loss``). In Table 5 a
million is 2^20: there TRM-ML trains 6.80 of them on COCO (RN101, D = 512, 80 categories), 1.25 in prompts. What is left
fits four layers of attention with offsets, an MLP of Eq. 3 of hidden width 8 D, and one of D-D-D before Eq. 13, for
both modalities: 6.80. (With 4 D it is 4.79; two MLPs of 4 D would give 6.80, too.)

**Silent, hence ours**: a full stop behind the name; queries start at text embeddings, weights as PyTorch's attention
has them, the last layer of the MLP at zero; tau starts at 0.05; no norm, dropout or self-attention; the KL at
temperature 1, whose teacher gets no gradient; l = 64 places, k = 4 vectors a picture, eta = 0.99; the first stage is an
eighth of the steps, 5 epochs of 40; contrast at temperature 0.07, unit length behind the MLP, a mean over anchors, the
memory's vectors of other categories among the negatives; means over pictures. Pseudo-labels of a step are made with the
thresholds of the steps before. Text thresholds move in the first stage already, by the text as it is then.

**Named settings of ours**: ``offset``, ``fit``, ``attention_start = "text"``, ``context_std = 0``, ``margin``, and
``negative``: a pair of prompts compares two texts that both name the category, so that their difference takes away
what the positive one says. "weighed" is $\sigma(z^+ - w z^-)$ with a learnt w
that starts at 0, "none" is $\sigma(z^+)$, "words" begins with "A photo without any". What ``small`` holds is for
presets of 375 or 750 steps, and was chosen on val of an earlier version of the scenes (``papers/trm_ml.md``).

**Tables.** 3, part by part: ``matching="mean", beta=0, gamma=0, pseudo_labels=False`` is the baseline (dual prompts
without DualCoOp's attention); CARL is ``matching="region"``, KD ``beta``, MMCP ``pseudo_labels``, MMCL ``gamma``.
4: ``take_regions`` of a model that was trained with ``known=1, pseudo_labels=False, gamma=0``. 6: ``prototypes`` with
``gamma=0``.

Prototypes and thresholds are buffers: a checkpoint holds them. In data parallel each process puts its own pictures in,
and the buffers of the first are handed to all before each step, so they know the pictures of the first process alone,
and the contrast is among a process's own pictures; with ``accumulate`` both see each part of a batch by itself. Either
changes numbers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import chunks
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.method import finite
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.missing_labels.base import Contexts, Likeness, Partial, check_categories
from hrcf_lib.methods.missing_labels.prototypes import WHICH, Prototypes, decide, fill
from hrcf_lib.methods.settings import PartialConfig

__all__ = ["TRMML", "TRMMLConfig", "contrastive_loss", "decide", "region_features"]

MASKS = ("sigmoid", "softmax")


@dataclass(frozen=True)
class TRMMLConfig(PartialConfig):
    """The paper's values where it has them; the module says which those are."""

    method = "trm_ml"
    schedule = (40, 128)  # on every data set of the paper
    small = {  # for the mini VLP and 375 or 750 steps
        **{"context_std": 0.0, "negative": "none", "fit": True, "offset": True, "prompt_vectors": 4},
        **{"attention_start": "text", "mask": "softmax", "sharpness": 10.0, "mlp_ratio": 2},
        **{"ema": 0.9, "first_stage": 0.34, "margin": 0.5, "lr": 1e-3, "prompt_lr": 1e-3},
    }

    settings: str = setting("paper", choices=("paper",), before="first", gone="first")

    # Text (Sec. 3.1); ``prompt_vectors`` is L
    prompts: str = setting("class", choices=("class", "shared"))  # shared: one pair for all categories
    context_std: float = 0.02  # deviation of the normal numbers that positive contexts start from; 0: from words (ours)
    negative: str = setting("drawn", choices=("drawn", "words", "weighed", "none"))  # start of the negative contexts
    tau: float = 0.05  # temperature at the start; one for all
    offset: bool = False  # learn an offset of z+ - z-, too (ours)
    fit: bool = False  # begin with tau, and offset, at which the loss of known labels is least (ours)

    # Regions (Sec. 3.2)
    matching: str = setting("region", choices=("region", "pixel", "mean", "image"))  # the others: without CARL
    mask: str = setting("sigmoid", choices=MASKS)  # of Eq. 4; softmax: energies that sum to 1 over positions
    query_start: str = setting("text", choices=("text", "random"))
    attention_start: str = setting("random", choices=("random", "text"))  # text: energies begin as likeness to text
    sharpness: float = 30.0  # what cosines of text and positions are multiplied by: in "text", and in "pixel"
    mlp_ratio: int = setting(8, low=1, high=1_000)  # hidden width of the MLP of Eq. 3, in D

    # Distillation (Sec. 3.3)
    divergence: str = setting("softmax", choices=("softmax", "bernoulli"))  # over categories, or of each by itself
    distillation_temperature: float = 1.0

    # Prototypes (Sec. 3.4)
    pseudo_labels: bool = True  # off: unknown labels stay unknown
    prototypes: str = setting("both", choices=WHICH)  # whose decisions count (Table 6)
    text_prototype: str = setting("first_stage", choices=("first_stage", "current"))
    memory: int = setting(64, low=1, high=100_000)  # l, vectors of a category that are kept
    pixels: int = setting(4, low=1, high=10_000)  # k, vectors that a picture gives
    ema: float = 0.99  # eta of Eq. 11
    first_stage: float = setting(0.125, high=1)  # share of the steps before pseudo-labels are made
    margin: float = 0.0  # moves both thresholds apart, in shares of their distance (ours)

    # Contrast (Sec. 3.5)
    contrastive_temperature: float = 0.07
    memory_negatives: bool = True  # vectors of other categories in the memory repel, too

    # Loss and optimiser (Secs. 3.6 and 4.1)
    alpha: float = 1.0  # weight of the region's asymmetric loss beside the query's (Sec. 3.6)
    beta: float = 0.05  # of distillation (Eq. 15); 0 switches it off
    gamma: float = 0.01  # of contrast (Eq. 15); 0 switches it off
    lr: float = 5e-4  # top of the cycle
    prompt_lr: float = 5e-4  # likewise, of contexts, queries, tau and offset
    weight_decay: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        for name in ("tau", "sharpness", "contrastive_temperature", "distillation_temperature", "lr"):
            if not getattr(self, name):
                raise ValueError(f"{name} = 0 must be above 0")
        if self.ema >= 1:
            raise ValueError(f"ema = {self.ema!r} must be below 1: a threshold would never move")


class TRMML(Partial):
    """What learns are contexts and queries, the attention and its MLP, the MLP of the contrast, and tau."""

    title, Config = "TRM-ML", TRMMLConfig
    about = "TRM-ML: text and regions matched for each category, with pseudo-labels."
    map_kind = "attention"
    text_prefixes, open_vocabulary = ("context.", "negative_weight", "queries"), False

    def build(self) -> None:
        """Contexts, then what matching and losses need; and prototypes that know nothing yet."""
        check_categories(self.config)
        c, D, K = self.config, self.vlp.D, len(self.config.categories)
        number = K if c.prompts == "class" else 1
        self.context = nn.ModuleDict({"positive": Contexts(self.vlp, c.prompt_vectors, number, c.context_std)})
        if c.negative != "none":
            start = {"words": NEGATIVE} if c.negative == "words" else {"std": c.context_std or DRAWN}
            self.context["negative"] = Contexts(self.vlp, c.prompt_vectors, number, **start)
        self.likeness = Likeness(c.tau, 0.0, learnt=c.offset)
        self.prototypes = Prototypes(K, c.memory, D, c.ema)
        images, text = ["likeness." if c.offset else "likeness.log_scale"], ["context."]
        if c.negative == "weighed":
            self.negative_weight = nn.Parameter(torch.zeros(()))
            text += ["negative_weight"]
        if c.matching == "region":
            self.queries = nn.Parameter(self._first_queries())  # (K, D)
            self.attention = RegionAttention(D)
            self.mlp = perceptron(D, c.mlp_ratio * D, nn.GELU())
            nn.init.zeros_(self.mlp[2].weight)
            images += ["attention.", "mlp."]
            text += ["queries"]
        if c.gamma:
            self.project = perceptron(D, D, nn.ReLU())
            images += ["project."]
        if c.matching != "image" and c.pixels > self.vlp.N**2:
            raise ValueError(f"pixels = {c.pixels} of a map of {self.vlp.N**2} positions: choose up to that")
        self.trainable = {"images": tuple(images), "prompts": tuple(text), "both": (*images, *text)}

    def _first_queries(self) -> Tensor:
        shape, D = (len(self.config.categories), self.vlp.D), self.vlp.D
        if self.config.query_start == "random":
            return torch.randn(shape) / math.sqrt(D)
        return F.normalize(fixed_prompts(self.vlp, self.config.categories, self.config.template), dim=1)

    def begin(self, data) -> None:
        """Count the steps of the first stage; then what ``attention_start`` and ``fit`` ask for."""
        c = self.config
        steps = sum(p.epochs * BatchOrder(p.batch).steps(len(data)) for p in c.phases)
        self.prototypes.start.fill_(round(c.first_stage * steps) * c.accumulate)
        if c.matching == "region" and c.attention_start == "text":
            self.attention.start_at_text(self._first_map(data), c.sharpness)
        if c.fit:
            super().begin(data)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D) and the raw map f (B, N^2, D) in the joint space.

        With matching "image" e_p is the one position.
        """
        e = self.vlp.teacher(trunk)  # (B, D)
        return e, e[:, None] if self.config.matching == "image" else self.vlp.dense(trunk)

    def label_embeddings(self, names) -> Tensor:
        """(K, 3 D): g+ and g- of unit length, and queries (0 with another matching, as is g- without one).

        With ``negative`` "weighed" g- is as long as its weight.

        Raises ``ValueError`` for names that are none of its categories.
        """
        k = self.columns(names)
        own = k if self.config.prompts == "class" else None
        g = [F.normalize(context(self.vlp, names, own), dim=1) for context in self.context.values()]  # (K, D) each
        if self.config.negative == "none":
            g += [torch.zeros_like(g[0])]
        elif self.config.negative == "weighed":
            g[1] = self.negative_weight * g[1]
        return torch.cat([*g, self.queries[k] if self.config.matching == "region" else torch.zeros_like(g[0])], dim=1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), which is not used, (B, J, D), (K, 3 D) -> logits z+ - z- of the regions (B, K). Sec. 3.6."""
        size = self._part_size(regions, len(label_embeddings))
        x = [self._cosines(self.regions(regions, own), own) for own in label_embeddings.split(size)]  # (2, B, k) each
        positive, negative = torch.cat(x, dim=2)  # (B, K) x 2
        return self.likeness(positive - negative)

    def energies(self, f: Tensor, label_embeddings: Tensor) -> Tensor:
        """e of a map (B, J, D) for label embeddings (k, 3 D): (B, k, J)."""
        g, _, q = label_embeddings.chunk(3, dim=1)  # (k, D) each
        if self.config.matching == "region":
            return self.attention(f, q)
        if self.config.matching == "pixel":
            return self.config.sharpness * (g @ F.normalize(f, dim=-1).transpose(1, 2))
        return f.new_zeros(len(f), len(g), f.shape[1])

    def regions(self, f: Tensor, label_embeddings: Tensor) -> Tensor:
        """F^r (B, k, D) of a map (B, J, D) for label embeddings (k, 3 D), Eqs. 2 and 4."""
        return region_features(self.energies(f, label_embeddings), f, self._mask)

    @torch.no_grad()
    def maps(self, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """Where each label looks: (B, J, D), (K, 3 D) -> the soft masks of Eq. 2 (B, K, J), in 0..1."""
        return masked(self.energies(regions, label_embeddings), self._mask)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        r"""Eqs. 6, 13 and 14; in training mode, memory and thresholds are then updated from the known labels.

        Raises ``ValueError`` for labels of another number than its categories, ``FloatingPointError`` for scores that
        are not finite.
        """
        c, K = self.config, len(self.config.categories)
        if labels.shape[1] != K or len(t) != K:
            raise ValueError(f"labels of {labels.shape[1]} categories for a model of {K}: train it on all of its own")
        g = t.chunk(3, dim=1)[0]  # (K, D)  g+
        if self.training and c.text_prototype == "first_stage":
            self.prototypes.end_first_stage(g)
        x_r, x_q, s, F_r, pixels = self._matches(regions, t, labels == 1)  # (2, B, K) x 3, (n, D), (n, k, D)
        classes = (labels == 1).T.nonzero()[:, 0]  # (n,)
        y = self.filled(s, labels) if self.prototypes.started else labels  # (B, K)
        p_r = self.probabilities(finite(self.likeness(x_r[0] - x_r[1])))  # (B, K)
        parts = {"classification": self.classification(p_r, y)}  # L^r_cls, Eq. 14
        parts["distillation"] = parts["classification"] * 0
        if c.matching == "region":
            p_q = self.probabilities(finite(self.likeness(x_q[0] - x_q[1])))  # (B, K)
            parts["classification"] = self.classification(p_q, y) + c.alpha * parts["classification"]  # Sec. 3.6
            parts["distillation"] = self._distil(x_r, x_q)  # Eq. 6
        parts["contrastive"] = self._contrast(g, F_r, classes)  # Eq. 13
        if self.training:
            self.prototypes.add(pixels, classes)  # Eq. 7
            self.prototypes.update(s, labels, c.unknown == "negative")  # Eqs. 9 and 11
        return parts

    @torch.no_grad()
    def estimates(self, regions: Tensor, t: Tensor) -> Tensor:
        """What ``filled`` decides by: a map (B, J, D), label embeddings of all categories -> similarities (2, B, K)."""
        return self._matches(regions, t, torch.zeros(len(regions), len(t), dtype=torch.bool, device=t.device))[2]

    def usable(self, labels: Tensor) -> Tensor:
        """All pictures, unless unknown labels teach nothing: then as in ``Partial``."""
        if self.config.pseudo_labels or self.weights("both")["distillation"]:
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return super().usable(labels)

    def filled(self, s: Tensor, labels: Tensor) -> Tensor:
        """Labels (B, K) with pseudo-labels in the place of unknown ones, by ``estimates`` (2, B, K): Eqs. 10 and 12."""
        if not self.config.pseudo_labels:
            return labels
        return fill(labels, self.prototypes.decisions(s, self.config.prototypes, self.config.margin))

    def without_positives(self) -> tuple[str, ...]:
        """Names of the categories of which no vector is stored: the visual prototypes say nothing of them."""
        names = self.reference_labels or self.config.categories
        return tuple(name for name, n in zip(names, self.prototypes.stored.tolist(), strict=True) if not n)

    def take_regions(self, other: "TRMML", fixed: bool = False) -> None:
        r"""Queries, attention and MLP of another model, such as one trained with complete labels (Table 4).

        ``fixed``: they do not learn any more. The paper says that they are loaded and the new model is trained; by
        default they go on learning. ``attention_start`` has to be "random", or ``begin`` would overwrite them. Raises
        ``ValueError`` for a model without regions, of other categories or of other widths.
        """
        for model in (self, other):
            if model.config.matching != "region":
                raise ValueError(f"matching = {model.config.matching!r} has no regions to take or to put in")
        if self.config.categories != other.config.categories:
            raise ValueError("the two models have other categories, or another order of them: build both with the same")
        if self.config.attention_start == "text":
            raise ValueError("attention_start = 'text' would overwrite what is taken: set it to 'random'")
        parts, own = ("queries", "attention.", "mlp."), self.state_dict()
        state = {name: value for name, value in other.state_dict().items() if name.startswith(parts)}
        for name, value in state.items():
            if own[name].shape != value.shape:
                raise ValueError(f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here")
        self.load_state_dict(state, strict=False)
        if fixed:
            self.trainable = {side: tuple(n for n in names if n not in parts) for side, names in self.trainable.items()}

    def weights(self, side: str) -> dict[str, float]:
        """The weights of Eq. 15; alpha is within the classification loss."""
        c = self.config
        return {
            "classification": 1.0,
            "distillation": c.beta if c.matching == "region" else 0.0,
            "contrastive": c.gamma,
        }

    def lr_scale(self, side: str, name: str) -> float:
        """Contexts, queries, temperature and offset learn at ``prompt_lr``, all else at ``lr``."""
        slow = name.startswith((*self.text_prefixes, "likeness."))
        return self.config.prompt_lr / self.config.lr if slow else 1.0

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """One cycle up to ``lr`` at a fractional epoch (Sec. 4.1)."""
        return one_cycle(epoch, epochs, self.config.lr)

    @property
    def _mask(self) -> str:
        return self.config.mask if self.config.matching == "region" else "softmax"

    def _cosines(self, features: Tensor, label_embeddings: Tensor) -> Tensor:
        """Of features (B, k, D) with g+ and g- of label embeddings (k, 3 D): (2, B, k)."""
        features = F.normalize(features, dim=-1)
        g, g_negative, _ = label_embeddings.chunk(3, dim=1)  # (k, D) each
        return torch.stack([torch.linalg.vecdot(features, own) for own in (g, g_negative)])

    def _matches(self, f: Tensor, label_embeddings: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        r"""Cosines of regions and of queries (2, B, K) x 2, similarities (2, B, K), and of chosen pairs alone the
        regions (n, D) and the map's k vectors of largest energy (n, k, D), without gradient.

        (B, J, D), (K, 3 D), a mask (B, K); the pairs come in the order of ``chosen.T.nonzero()``. Labels are taken in
        parts, each computed again for the backward pass where there are several.
        """
        K = len(label_embeddings)
        centres = self.prototypes.centres(label_embeddings.chunk(3, dim=1)[0])  # (2, K, D)
        size, found = self._part_size(f, K), []
        for first in range(0, K, size):
            args = f, label_embeddings, chosen, centres, slice(first, first + size)
            found.append(chunks.recomputed(self._part, *args, again=size < K and torch.is_grad_enabled()))
        x_r, x_q, s, F_r, pixels = zip(*found, strict=True)
        return *(torch.cat(x, dim=2) for x in (x_r, x_q, s)), torch.cat(F_r), torch.cat(pixels)

    def _part(self, f: Tensor, label_embeddings: Tensor, chosen: Tensor, centres: Tensor, part: slice):
        own, chosen = label_embeddings[part], chosen[:, part].T  # (k, 3 D), (k, B)
        e = self.energies(f, own)  # (B, k, J)
        F_r = region_features(e, f, self._mask)  # (B, k, D)
        x_r = x_q = self._cosines(F_r, own)  # (2, B, k)
        if self.config.matching == "region":
            x_q = self._cosines(self.query_features(e, f, F_r if self._mask == "softmax" else None), own)
        s = torch.linalg.vecdot(F.normalize(F_r.detach(), dim=-1), centres[:, None, part])  # (2, B, k)  Eq. 8
        rows = chosen.nonzero()[:, 1]  # (n,) pictures
        best = e.detach().transpose(0, 1)[chosen].topk(min(self.config.pixels, f.shape[1]), dim=1).indices  # (n, k)
        return x_r, x_q, s, F_r.transpose(0, 1)[chosen], f.detach()[rows[:, None], best]  # Eq. 7

    def query_features(self, e: Tensor, f: Tensor, attended: Tensor | None = None) -> Tensor:
        """F^q of energies (B, k, J) and a map (B, J, D): (B, k, D), Eq. 3; ``attended``: softmax(e) f, if known."""
        h = self.attention.values(e.softmax(dim=-1) @ f if attended is None else attended)  # (B, k, D)
        return h + self.mlp(h)

    def _part_size(self, f: Tensor, K: int) -> int:
        B, J, D = f.shape
        hidden = self.mlp[0].out_features if hasattr(self, "mlp") else 0
        return chunks.labels_at_a_time(K, B * (3 * J + 6 * D + 3 * hidden))  # all that a part keeps, about

    def _distil(self, x_r: Tensor, x_q: Tensor) -> Tensor:
        c = self.config
        if c.divergence == "bernoulli":
            return distil_each(self.likeness(x_r[0] - x_r[1]), self.likeness(x_q[0] - x_q[1]))
        scale = self.likeness.log_scale.exp() / c.distillation_temperature
        return distil(x_r[0] * scale, x_q[0] * scale)

    def _contrast(self, g: Tensor, F_r: Tensor, classes: Tensor) -> Tensor:
        """Eq. 13 of texts (K, D), regions (n, D) of present labels, and the memory."""
        if not self.config.gamma:
            return g.sum() * 0
        c, memory = self.config, self.prototypes
        held = torch.arange(c.memory, device=g.device) < memory.number[:, None]  # (K, l)
        vectors, owners = memory.bank[held], held.nonzero()[:, 0]  # (m, D), (m,)
        texts, F_r, vectors = (F.normalize(self.project(x), dim=-1) for x in (g, F_r, vectors))
        return contrast(texts, F_r, classes, vectors, owners, c.contrastive_temperature, c.memory_negatives)

    @torch.no_grad()
    def _first_map(self, data, batch: int = 64) -> Tensor:
        """The map of the first batch, (B, J, D)."""
        training = self.training
        try:
            self.eval()
            _, inputs, _ = next(iter(data.batches(BatchOrder(batch, self.config.seed))))
            with self.autocast():
                return self.image_embeddings(data.frozen(self.vlp, inputs, self.config.bf16)[0])[1].float()
        finally:
            self.train(training)


NEGATIVE = "A photo without any"  # words that negative contexts may start from (ours)
DRAWN = 0.02  # deviation of the normal numbers that they are drawn with beside positive ones from words


class RegionAttention(nn.Module):
    r"""W_q, W_k, W_v and W_o of one head with offsets (Eqs. 2 and 3), which start as those of PyTorch's attention."""

    def __init__(self, D: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, f: Tensor, q: Tensor) -> Tensor:
        r"""Energies (B, k, J) of queries (k, D) and a map (B, J, D).

        (W_q q) . (W_k f + b) = (W_k^T W_q q) . f + (W_q q) . b: no key is ever made.
        """
        q = self.query(q) / math.sqrt(q.shape[1])  # (k, D)
        return (q @ self.key.weight) @ f.transpose(1, 2) + (q @ self.key.bias)[:, None]

    def values(self, attended: Tensor) -> Tensor:
        """W_o (W_v x) of sums (B, k, D) of positions whose weights sum to 1, by one product."""
        weight = self.out.weight @ self.value.weight  # (D, D)
        return F.linear(attended, weight, self.out(self.value.bias))

    @torch.no_grad()
    def start_at_text(self, f: Tensor, sharpness: float) -> None:
        r"""Energies begin as ``sharpness`` times how much more a position is like the query than the mean position is.

        W_q and W_k become one multiple of the identity, and the offset of W_k takes the mean of a map (B, J, D) away;
        W_v and W_o become the identity. For queries of unit length. Ours.
        """
        length, D = f.norm(dim=-1).mean(), f.shape[-1]
        for layer in self.children():
            nn.init.eye_(layer.weight)
        scale = (sharpness * math.sqrt(D) / length).sqrt()
        self.query.weight.mul_(scale)
        self.key.weight.mul_(scale)
        self.key.bias.copy_(-scale * f.mean(dim=(0, 1)))


def perceptron(D: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    """Two layers, D-hidden-D."""
    return nn.Sequential(nn.Linear(D, hidden), activation, nn.Linear(hidden, D))


def masked(energies: Tensor, mask: str = "sigmoid") -> Tensor:
    """Energies (B, C, J) -> soft masks (B, C, J): each position by itself, or with a sum of 1 over them (Eq. 2)."""
    return energies.sigmoid() if mask == "sigmoid" else energies.softmax(dim=-1)


def region_features(energies: Tensor, features: Tensor, mask: str = "sigmoid") -> Tensor:
    r"""Region features: the raw map, weighed by a soft mask and summed over its positions (Eqs. 2 and 4).

    .. math:: F^r_c = \sum_j \sigma(e_{cj})\, f_j

    Args:
        energies: (B, C, J), any real numbers.
        features: (B, J, D), the map f in the joint space.
        mask: "sigmoid", or "softmax" for weights that sum to 1 over positions.

    Returns:
        (B, C, D), not of unit length.

    Raises ``ValueError`` for shapes that do not fit, or another mask.

    >>> region_features(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[2., 3.]]])
    """
    if energies.ndim != 3 or features.ndim != 3 or energies.shape[::2] != features.shape[:2]:
        raise ValueError(
            f"energies {tuple(energies.shape)} and features {tuple(features.shape)}: give (B, C, J) and (B, J, D)"
        )
    if mask not in MASKS:
        raise ValueError(f"mask = {mask!r}: choose one of {', '.join(MASKS)}")
    return masked(energies, mask) @ features


def contrastive_loss(anchor: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    r"""An anchor attracts each positive, which has a denominator of its own: itself and all negatives (Eq. 13).

    .. math:: L = \frac{1}{|P|} \sum_{q_+ \in P} -\log \frac{\exp(p_a \cdot q_+ / \tau)}
        {\exp(p_a \cdot q_+ / \tau) + \sum_{q_- \in N} \exp(p_a \cdot q_- / \tau)}

    Args:
        anchor: (D,) of unit length, as are the others.
        positives: (P, D).
        negatives: (N, D).
        temperature: tau > 0.

    Returns:
        scalar >= 0; 0 without a positive or without a negative.

    Raises ``ValueError`` for shapes that do not fit, or a temperature that is not above 0.

    >>> contrastive_loss(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1.0)
    tensor(0.3133)
    """
    if anchor.ndim != 1 or not positives.shape[1:] == negatives.shape[1:] == anchor.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (anchor, positives, negatives))
        raise ValueError(f"anchor, positives and negatives of shapes {shapes}: give (D,), (P, D) and (N, D)")
    classes = torch.zeros(len(positives), dtype=torch.long, device=anchor.device)
    others = torch.ones(len(negatives), dtype=torch.long, device=anchor.device)
    return contrast(anchor[None], positives, classes, negatives, others, temperature)


def contrast(texts, regions, classes, memory, owners, temperature: float, memory_negatives: bool = True) -> Tensor:
    r"""``contrastive_loss``, a mean over the categories that the batch shows: the text is the anchor.

    Positives are the batch's regions and the memory's vectors of the category, negatives those of all others.

    Args:
        texts: (K, D) of unit length, as are the others.
        regions, classes: (n, D) regions of the batch, and the categories (n,) that they show.
        memory, owners: (m, D) vectors, and their categories (m,).
        temperature: tau > 0.
        memory_negatives: off: only regions of the batch repel.

    Returns:
        scalar; 0 where the batch shows nothing.

    Raises ``ValueError`` for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: choose a number above 0")
    every, owner = torch.cat([regions, memory]), torch.cat([classes, owners])  # (n + m, D), (n + m,)
    shown = classes.unique()  # (A,)
    s = texts[shown] @ every.T / temperature  # (A, n + m)
    own = owner == shown[:, None]  # (A, n + m)
    repel = ~own
    if not memory_negatives:
        repel[:, len(regions) :] = False
    if not len(shown) or not repel.any():
        return s.sum() * 0
    against = s.masked_fill(~repel, FAR).logsumexp(dim=1, keepdim=True)  # (A, 1)  log of the sum over N
    lost = F.softplus(against - s).masked_fill(~own, 0.0)  # (A, n + m)  -log of each fraction
    return (lost.sum(dim=1) / own.sum(dim=1)).mean()


FAR = -1e9  # of the logits that take no part in a sum of exponentials


def distil(teacher: Tensor, student: Tensor) -> Tensor:
    r"""KL divergence of two sets of logits (B, K) as softmax over the categories, a mean over the pictures (Eq. 6).

    .. math:: \frac1B \sum_i \sum_c p^r_{ic} \log \frac{p^r_{ic}}{p^q_{ic}}

    Nothing flows back into the teacher.

    >>> distil(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 5.0]]))  # an offset of all scores is no difference
    tensor(0.)
    """
    p = teacher.detach().log_softmax(dim=1)  # (B, K)
    return F.kl_div(student.log_softmax(dim=1), p, reduction="batchmean", log_target=True)


def distil_each(teacher: Tensor, student: Tensor) -> Tensor:
    r"""The other reading of Eq. 6: KL divergences of present or not, summed over the categories, a mean over pictures.

    Logits of present (B, K) each; nothing flows back into the teacher.

    >>> distil_each(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor(0.)
    """
    pair = lambda z: F.logsigmoid(torch.stack([z, -z]))  # (2, B, K)  log p, log (1 - p)
    return F.kl_div(pair(student), pair(teacher.detach()), reduction="sum", log_target=True) / len(teacher)
