r"""Semantic-aware representation (Ruan, Xu et al., ACM TOMM 2024): image features and a prompt for each category.

$$\tilde f_{c,j} = P^T \tanh\big( (U^T f_j) \odot (V^T x_c) \big) + b, \qquad
  a_{c,j} = \mathrm{softmax}_j\, F_{att}(\tilde f_{c,j}), \qquad f^v_c = W \sum_j a_{c,j}\, \tilde f_{c,j},$$
$$f^t_c = \mathrm{TextTower}([v^c_1, \ldots, v^c_M, name_c, \text{.}]), \qquad
  p_c = \sigma\big( \cos(f^v_c, f^t_c) / \tau + \beta \big),$$
Eqs. 2 to 9, and the partial asymmetric loss of known labels, a sum over categories and a mean over pictures (10, 11).

**Printed**: CLIP's ResNet-101 at 448 px and its text tower, both frozen; an average pool of 2 x 2 with stride 2 in
place of the last pool; word vectors x_c by GloVe; F_att from 1,024 numbers to 1, then a linear map W from 1,024 to the
512 of the text; M = 16 vectors of each category's own, drawn from a Gaussian; exponents 1 and 2, shift 0.05; SGD at
0.002 with a cosine, 0.0005 in the first epoch; batch 64, 100 epochs; all that learns starts at random.
**Readings**: CLIP's ResNet ends in attention, not in an average pool: its last map of 14 x 14 is averaged to 7 x 7.
Eq. 6 gives f^g an index c, which f^g has not and ~f has. ``reading = "fused"`` sums ~f, whose 1,024 numbers are what W
takes (4.64 M numbers learn on COCO; printed: 4.8 M); ``"map"`` sums the map, as the group's earlier methods do, and W
has as many inputs (5.16 M). Eq. 9 is a softmax over categories. The text, however, calls predictions independent, Eq.
10 is binary, and the scores that Fig. 6 prints of one picture add up to far more than 1, which no softmax gives. So the
sigmoid is the default, and ``prediction = "softmax"`` the letter.
**Silent, ours**: the rank of U and V (1,024, as the group's earlier code, HCPLab-SYSU/HCP-MLR-PL, has for this fusion);
distributions of the start (PyTorch's own; 0.02 for the vectors, as CoOp); a full stop behind the name; the temperature
(CLIP's 0.01; learnt for the sigmoid, fixed for the softmax), and the offset beta of the sigmoid, without which every
positive cosine is a yes; momentum and decay. F_att has no offset, and under ``"map"`` ~f has none: the softmax over
positions takes away what is the same for all. Without a GloVe file x_c is the VLP's text embedding of a template. A
ViT's map is its dense features, which lie in the text's space: there ``"map"`` with a square W that starts at the
identity is the natural form, and ``fit`` sets temperature and offset to the start.
**Released code**: none that we know of.

**Fig. 4** compares with semantic attention (ADD-GCN, Ye et al., ECCV 2020): ``decoupling = "semantic_attention"``, see
``SemanticAttention``. **Table 4** takes parts out: ``decoupling = "none"`` (without sd), ``category_prompts = False``
(without csp). Without both it is ``coop.py`` with as many vectors, weight for weight.

**Memory**: w . ~f = (P w) . tanh(.) and sum_j a_j ~f_j = P^T sum_j a_j tanh(.) + b, so that a pair of picture and
category costs J R tangents and no (J, O) product. They are made ``chunks.CACHE`` at a time, in training with a sigmoid
of known pairs alone, and made again for the backward pass where all together are large.

B pictures, J positions, C categories (K asked), F width of the map, W of word vectors, R rank, O of ~f, D of texts.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.engine import chunks
from hrcf_lib.engine.schedules import learning_rate
from hrcf_lib.method import finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.missing_labels.base import (
    Contexts,
    Likeness,
    Partial,
    check_categories,
    cosines,
    softmax_logits,
)
from hrcf_lib.methods.missing_labels.coop import check_tau
from hrcf_lib.methods.settings import PartialConfig


@dataclass(frozen=True)
class SemanticAwareConfig(PartialConfig):
    """The paper's values: [P] printed, [R] a reading, [S] silent. ``small`` is for the mini VLP: chosen on val of
    earlier scenes, but for the 4 vectors of a category, which cost a third of 16."""

    method = "semantic_aware"
    schedule = (100, 64)  # [P]
    small = {  # for the mini VLP and 375 or 750 steps; R and O are half the channels of the map, as in the paper
        **{"rank": 64, "width": 64, "reading": "map", "start": "identity", "fit": True, "context_std": 0.0},
        **{"optimizer": "adamw", "lr": 3e-3, "prompt_lr": 1e-4, "weight_decay": 0.05, "prompt_vectors": 4},
    }

    settings: str = setting("paper", choices=("paper",), before="first", gone="first")

    decoupling: str = setting("bilinear", choices=("bilinear", "semantic_attention", "none"))  # none: e_p for all
    category_prompts: bool = True  # vectors of each category's own [P], or one context for all (Table 4)
    reading: str = setting("fused", choices=("fused", "map"))  # what Eq. 6 sums [R]: ~f of Eq. 3, or the map
    rank: int = setting(1024, low=1, high=65_536)  # R, columns of U and V [S]
    width: int = setting(1024, low=1, high=65_536)  # O, columns of P, inputs of F_att [P]
    start: str = setting("random", choices=("random", "identity"))  # of W [P]; identity: of a square one (ours)
    space: str = setting("auto", choices=("auto", "raw", "joint"))  # of the map; auto: raw [P], of a ViT joint
    pool: int = setting(2, low=1, high=64)  # side and stride of the average over positions [P]; 1: none
    prediction: str = setting("sigmoid", choices=("sigmoid", "softmax"))  # softmax: the letter of Eq. 9
    offset: bool = True  # beta of the sigmoid, learnt (ours)
    tau: float = 0.01  # temperature, of the sigmoid at the start [S]: CLIP's
    level: float = 0.0  # cosine of a probability of 1/2 at the start: beta = -level / tau (ours)
    fit: bool = False  # first fit tau and beta to known labels, as ``base.Partial.begin`` does for CoOp here (ours)
    context_std: float = 0.02  # deviation of the Gaussian [P] that vectors start from [S]; 0: they start from words
    optimizer: str = "sgd"  # [P]
    lr: float = 2e-3  # of the decoupling [P]
    prompt_lr: float = 2e-3  # of prompts, temperature and offset [P]
    first_rate: float = 0.25  # share of it in the first epochs: 0.0005 [P], constant [R]
    first_epochs: float = 1.0  # [P]
    weight_decay: float = 5e-4  # [S], CoOp's
    glove: str | None = None  # path of a GloVe text file [P]; None: text embeddings of the template
    glove_missing: str = setting("error", choices=("error", "skip"))  # skip: words that the file lacks are left out

    def __post_init__(self):
        super().__post_init__()
        check_tau(self)
        if self.start == "identity" and self.reading != "map":
            raise ValueError("start = 'identity' is of a map in the text's space: it needs reading = 'map'")


def attention(features: Tensor, words: Tensor, U: Tensor, V: Tensor, P: Tensor, b: Tensor, w: Tensor) -> Tensor:
    r"""Where the positions of a map agree with each category's word vector, Eqs. 3-5.

    .. math:: a_{c,j} = \mathrm{softmax}_j \; w \cdot \bigl( P^T \tanh( (U^T f_j) \odot (V^T x_c) ) + b \bigr)

    Args:
        features: (B, J, F) raw, of any scale.
        words: (C, W) raw.
        U, V, P: (F, R), (W, R), (R, O), used transposed as Eq. 3 prints them.
        b, w: (O,); w is F_att, whose offset would cancel, as b does.

    Returns: (B, C, J), rows of sum 1. No (B, C, J, O) tensor is made, and of (B, C, J, R) ``chunks.CACHE`` at a time.

    Raises:
        ValueError: shapes that do not fit, all of them named.
    """
    (n, m, r), o = (features.shape[-1], words.shape[-1], P.shape[0]), P.shape[-1]
    fit = features.ndim == 3 and words.ndim == 2 and U.shape == (n, r) and V.shape == (m, r) and P.ndim == 2
    if not (fit and b.shape == w.shape == (o,)):
        shapes = {"features": features, "words": words, "U": U, "V": V, "P": P, "b": b, "w": w}
        raise ValueError(
            "shapes do not fit: " + ", ".join(f"{name} {tuple(x.shape)}" for name, x in shapes.items()) + "; they are "
            "(B, J, F), (C, W), (F, R), (W, R), (R, O), (O,), (O,)"
        )
    u, v, merged = features @ U, words @ V, P @ w  # (B, J, R), (C, R), (R,)
    part = words.shape[0] if chunks.exporting() else chunks.fitting(chunks.CACHE, u[0].numel())
    large = torch.is_grad_enabled() and len(u) * len(v) * u[0].numel() > chunks.LARGE
    logits = lambda u, v: tangents(u, v) @ merged  # (..., c, J)  Eq. 4, less b . w
    if chunks.exporting():
        found = logits(u, v)
    else:
        found = torch.stack(
            [torch.cat([chunks.recomputed(logits, own, c, again=large) for c in v.split(part)]) for own in u]
        )
    return (found + b @ w).softmax(dim=-1)  # (B, C, J)  Eq. 5


def tangents(u: Tensor, v: Tensor) -> Tensor:
    r"""tanh of all products of U^T f (..., J, R) with V^T x (n, R) -> (..., n, J, R), of Eq. 3."""
    return (u[..., None, :, :] * v[:, None]).tanh()


class SemanticDecoupling(nn.Module):
    r"""Low-rank bilinear attention of word vectors over a map, Eqs. 3-6, and the linear map to the text's width.

    Args:
        F, W: widths of the map and of word vectors.
        R, O: rank, and width of the fused features.
        D: width of the text features.
        reading: "fused" or "map", what Eq. 6 sums.
        identity: whether W, of F = D, starts there; otherwise everything starts as PyTorch's linear layers do.

    Raises ``ValueError`` for an identity that is not square.
    """

    def __init__(self, F: int, W: int, R: int, O: int, D: int, reading: str = "fused", identity: bool = False):
        super().__init__()
        self.reading = reading
        self.image, self.word = nn.Linear(F, R, bias=False), nn.Linear(W, R, bias=False)  # U^T, V^T
        self.fuse = nn.Linear(R, O, bias=reading == "fused")  # P^T, b
        self.attend = nn.Linear(O, 1, bias=False)  # F_att
        self.out = nn.Linear(O if reading == "fused" else F, D)  # the intermediate layer, Sec. 4.2
        if identity:
            if F != D:
                raise ValueError(
                    f"start = 'identity' of a map of width {F} and text of width {D}: take space = 'joint', or 'random'"
                )
            nn.init.eye_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def masks(self, f: Tensor, x: Tensor) -> Tensor:
        r"""a: (B, J, F), word vectors (n, W) -> (B, n, J), of sum 1 over J. Eqs. 3-5."""
        b = self.attend.weight.new_zeros(self.fuse.out_features) if self.fuse.bias is None else self.fuse.bias
        weights = (layer.weight.T for layer in (self.image, self.word, self.fuse))
        return attention(f, x, *weights, b, self.attend.weight[0])

    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        r"""f^v: (B, J, F), (n, W) -> (B, n, D). All (B, n, J, R) tangents at once."""
        return self.pooled(f, self.image(f), self.word(x))

    def cosines(self, f: Tensor, t: Tensor, x: Tensor, asked: Tensor | None = None) -> Tensor:
        r"""cos(f^v_c, t_c) of asked pairs, 0 of others: (B, J, F), (K, D), (K, W), a mask (B, K) -> (B, K).

        Picture after picture and ``chunks.CACHE`` tangents at a time. More than ``chunks.LARGE`` in all are made again
        for the backward pass.
        """
        u, v, t = self.image(f), self.word(x), F.normalize(t, dim=-1)  # (B, J, R), (K, R), (K, D)
        if chunks.exporting():
            return self._cosines(f, u, v, t)
        asked = torch.ones(len(f), len(t), dtype=torch.bool, device=t.device) if asked is None else asked
        ks, each = asked.nonzero()[:, 1], u[0].numel()
        large = torch.is_grad_enabled() and len(ks) * each > chunks.LARGE
        part, found = chunks.fitting(chunks.CACHE, each), []
        for i, own in enumerate(ks.split(asked.sum(dim=1).tolist())):
            found += [chunks.recomputed(self._cosines, f[i], u[i], v[k], t[k], again=large) for k in own.split(part)]
        return t.new_zeros(asked.shape).masked_scatter(asked, torch.cat(found))

    def pooled(self, f: Tensor, u: Tensor, v: Tensor) -> Tensor:
        r"""f^v from the map and what Eq. 3 multiplies: (..., J, F), (..., J, R), (n, R) -> (..., n, D)."""
        h = tangents(u, v)  # (..., n, J, R)
        a = (h @ (self.attend.weight[0] @ self.fuse.weight)).softmax(dim=-1)  # (..., n, J)  Eqs. 4, 5
        if self.reading == "map":
            return self.out(a @ f)  # (..., n, F) -> (..., n, D)  Eq. 6
        h = (a[..., None, :] @ h)[..., 0, :]  # (..., n, R)
        return self.out(self.fuse(h))  # (..., n, O) -> (..., n, D)  Eqs. 3, 6, since a has sum 1

    def _cosines(self, f: Tensor, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return (F.normalize(self.pooled(f, u, v), dim=-1) * t).sum(dim=-1)  # (..., n)


class SemanticAttention(nn.Module):
    r"""Semantic attention, which Fig. 4 compares with: a map of each category's own from stacked 1 x 1 convolutions.

    .. math:: m_c = \sigma( g_c \cdot f_j ), \qquad f^v_c = W \sum_j m_{c,j} (A f_j + a)

    The module of ADD-GCN (Ye et al., ECCV 2020, Sec. 3.2) as its code (Yejin0111/ADD-GCN) has it: classifiers g_c
    without offset whose sigmoid is the mask, no softmax, and a transformed map of 1,024 channels; then the layer W of
    this paper. The g_c lie outside, in ``SemanticAware.classifier``: they take the place of word vectors x_c.

    Args:
        F, O, D: widths of the map, of the transformed map and of the text features.
    """

    def __init__(self, F: int, O: int, D: int):
        super().__init__()
        self.transform, self.out = nn.Linear(F, O), nn.Linear(O, D)

    def masks(self, f: Tensor, x: Tensor) -> Tensor:
        r"""m: (B, J, F), classifiers (n, F) -> (B, n, J) in (0, 1)."""
        return (x @ f.transpose(1, 2)).sigmoid()

    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        r"""f^v: (B, J, F), (n, F) -> (B, n, D)."""
        return self.out(self.masks(f, x) @ self.transform(f))  # (B, n, J) @ (B, J, O) -> (B, n, D)

    def cosines(self, f: Tensor, t: Tensor, x: Tensor, asked: Tensor | None = None) -> Tensor:
        r"""cos(f^v_c, t_c): (B, J, F), (K, D), (K, F) -> (B, K), all pairs, whatever is ``asked``.

        Labels are taken in parts of ``chunks.LARGE``, each made again for the backward pass where there are several.
        """
        part = chunks.labels_at_a_time(len(t), len(f) * self.transform.out_features)
        again = torch.is_grad_enabled() and part < len(t)
        pairs = zip(t.split(part), x.split(part), strict=True)
        return torch.cat([chunks.recomputed(self._cosines, f, *own, again=again) for own in pairs], dim=1)

    def _cosines(self, f: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return (F.normalize(self(f, x), dim=-1) * F.normalize(t, dim=-1)).sum(dim=-1)  # (B, n)


class SemanticAware(Partial):
    """What learns is the decoupling, and the vectors of each category's prompt with temperature and offset."""

    title, Config = "Semantic-aware", SemanticAwareConfig
    about = "Semantic-aware representation (Ruan, Xu et al., ACM TOMM 2024)."
    map_kind = "attention"
    open_vocabulary = False  # unless categories share their prompt
    text_prefixes = ("prompt.", "classifier.")  # the latter of semantic attention

    def build(self) -> None:
        """Prompts, temperature, offset, then the decoupling: without the latter draws are those of CoOp."""
        c, D = self.config, self.vlp.D
        attends = c.decoupling == "semantic_attention"
        if c.category_prompts or attends:
            check_categories(c)
        self.open_vocabulary = not (c.category_prompts or attends)
        sigmoid = c.prediction == "sigmoid"
        number = len(c.categories) if c.category_prompts else 1
        self.prompt = Contexts(self.vlp, c.prompt_vectors, number, c.context_std)
        self.likeness = Likeness(c.tau, -c.level / c.tau if sigmoid else 0.0, learnt=sigmoid and c.offset)
        learnt = ("likeness.log_scale", "likeness.offset")[: sigmoid + (sigmoid and c.offset)]
        text = ("prompt.", *learnt)
        image = {"none": (), "bilinear": ("decoupling.",), "semantic_attention": ("decoupling.", "classifier.")}
        image = image[c.decoupling]
        self.trainable = {"images": image, "prompts": text, "both": image + text}
        if c.decoupling == "none":
            return
        if self.vlp.N % c.pool:
            raise ValueError(
                f"pool = {c.pool} of a map of {self.vlp.N} x {self.vlp.N} would leave positions out: set pool to a "
                "divisor, 1 for none, or side to another size"
            )
        width = self.vlp.D if self.joint else self.vlp.C  # F
        if attends:
            self.decoupling = SemanticAttention(width, c.width, D)
            self.classifier = nn.Linear(width, len(c.categories), bias=False)
            return
        words = word_vectors.label_width(self.vlp, c)
        self.decoupling = SemanticDecoupling(width, words, c.rank, c.width, D, c.reading, c.start == "identity")
        if c.glove and c.categories:
            self.words(c.categories)  # reports words that the file lacks before features are computed

    @property
    def joint(self) -> bool:
        """Whether the map lies in the text's space: as ``space`` says, by itself for a ViT."""
        return self.vlp.is_vit if self.config.space == "auto" else self.config.space == "joint"

    @property
    def region_sides(self) -> list[int]:
        """One side, that of the pooled map."""
        return [self.vlp.N // self.config.pool]

    def begin(self, data) -> None:
        """Fit temperature and offset before the first step where ``fit`` says so; the paper does not."""
        if self.config.fit:
            super().begin(data)

    def spread(self, s: Tensor) -> Tensor:
        """Logits (B, K) of independent labels, or with a softmax those of Eq. 9."""
        return s if self.config.prediction == "sigmoid" else softmax_logits(s)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The loss of the known labels; a pair of picture and label costs much, and only those that it uses are scored.

        A softmax needs all. Raises ``FloatingPointError`` for scores that are not finite.
        """
        c = self.config
        asked = labels != 0 if c.prediction == "sigmoid" and c.unknown == "ignored" else None
        s = finite(self.score_embeddings(e_g, regions, t, asked))  # (B, K)
        return {"classification": self.classification(self.probabilities(s), labels)}

    def lr_scale(self, side: str, name: str) -> float:
        """Where both learn at once the decoupling learns at ``lr``, all else at ``prompt_lr``."""
        fused = side != "both" or name.startswith(("decoupling.", "classifier."))
        return 1.0 if fused else self.config.prompt_lr / self.config.lr

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """A share of the rate in the first epochs, then a cosine from the whole of it (Sec. 4.2)."""
        c = self.config
        base = c.prompt_lr if side == "prompts" else c.lr
        if epoch < c.first_epochs:
            return c.first_rate * base
        return learning_rate(epoch - c.first_epochs, epochs - c.first_epochs, base, c.min_lr, 0.0)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk (B, 1 + N^2, C) -> e_p of unit length (B, D), and the map f^g (B, J, F), J = (N / pool)^2, or none."""
        e = F.normalize(self.vlp.teacher(trunk), dim=-1)  # (B, D)
        if self.config.decoupling == "none":
            return e, e[:, None][:, :0]
        f = self.vlp.dense(trunk) if self.joint else trunk[:, 1:]  # (B, N^2, F)  Eq. 1
        f = f.transpose(1, 2).unflatten(2, (self.vlp.N, self.vlp.N))  # (B, F, N, N)
        return e, F.avg_pool2d(f, self.config.pool).flatten(2).transpose(1, 2)  # (B, J, F)

    def label_embeddings(self, names) -> Tensor:
        r"""f^t_c of unit length, and beside it x_c where a map is decoupled: (K, D) or (K, D + W).

        Raises ``ValueError`` for names that are none of its categories, where each has something of its own, and as
        ``fixed_prompts`` and ``word_vectors.read_vectors``.
        """
        c = self.config
        own = None if self.open_vocabulary else self.columns(names)
        t = F.normalize(self.prompt(self.vlp, names, own if c.category_prompts else None), dim=-1)  # (K, D)  Eqs. 7, 8
        if c.decoupling == "none":
            return t
        x = self.classifier.weight[own] if c.decoupling == "semantic_attention" else self.words(names)
        return torch.cat([t, x], dim=1)

    def words(self, names) -> Tensor:
        """x_c (K, W), never trained, at the scale of the file or of the VLP (Eq. 2). Those asked last are kept."""
        c = self.config
        key = (tuple(names), c.glove, c.glove_missing, c.template, self.vlp.mean.device)
        if getattr(self, "_words", (None,))[0] != key:
            self._words = key, word_vectors.of_names(self.vlp, names, c)
        return self._words[1]

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor, asked=None) -> Tensor:
        r"""(B, D), (B, J, F), (K, D + W) -> logits (B, K); with ``asked`` (B, K) bool of these pairs, others are beta.

        With a sigmoid a label's score does not depend on the other labels.
        """
        t, x = label_embeddings.tensor_split([self.vlp.D], dim=1)  # (K, D), (K, W)
        none = self.config.decoupling == "none"
        cos = cosines(e_g, t) if none else self.decoupling.cosines(regions, t, x, asked)  # (B, K)
        return self.spread(self.likeness(cos))  # Eq. 9

    def maps(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""Where it looks for each label: (B, J, F), label embeddings (K, D + W) -> (B, K, J).

        Of sum 1 over J, of semantic attention masks in (0, 1). Raises ``ValueError`` without decoupling.
        """
        if self.config.decoupling == "none":
            raise ValueError("decoupling = 'none': all labels have one global embedding, which looks nowhere")
        return self.decoupling.masks(regions, t[:, self.vlp.D :])
