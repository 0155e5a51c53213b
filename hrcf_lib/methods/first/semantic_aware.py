r"""Semantic-aware representation (Ruan, Xu et al., ACM TOMM 2024): image features and a prompt for each category.

$$h_{kj} = P \tanh(U f_j \odot V x_k), \qquad a_{kj} = \mathrm{softmax}_j(w \cdot h_{kj}), \qquad
  f_k = \sum_j a_{kj} f_j,$$
$$t_k = \mathrm{TextTower}([v^k_1, \ldots, v^k_M, name_k, \text{.}]), \qquad s_k = \cos(f_k, t_k) / \tau - \beta$$

**The paper** fuses the word vector x_k (GloVe) of a category with each position of the feature map by low-rank bilinear
pooling, turns that into attention over positions by a softmax and sums the positions up to the category's feature
(Eqs. 2-6); learns 16 prompt vectors for each category (Eq. 7); compares both (Eq. 9) and trains with the asymmetric
loss of known labels, exponents 1 and 2 and shift 0.05 (Eq. 10). Table 4 takes its two parts out one by one; what is
left without both is called CoOp. The exact terms of Eqs. 2-6 are not at hand.
**Released code**: none that we know of. That of the same group's earlier methods (SST and SARB, HCPLab-SYSU/HCP-MLR-PL)
has the first line above, with P and w linear layers with offsets, U and V without, d of 1024 (SARB: 512), and f as the
backbone gives it.

**Eq. 9** is a softmax over the categories, while the text calls predictions independent and Eq. 10 is binary: under a
softmax two present labels share what one could have. So a sigmoid is the default here, of a likeness whose temperature
and offset are learnt, and ``prediction="softmax"`` is the letter of Eq. 9. Its scores are the logits of these
probabilities, $\log p / (1 - p)$, so that everything behind them is the same.

**We** leave out the offsets of P and w: they add the same to all positions, which the softmax takes away. P and w are
multiplied first, w . (P h) = (P^T w) . h, so that a pair of picture and label costs J d hyperbolic tangents and no
(J, d, d) product; in training a sigmoid's loss asks for known pairs alone, and only these are computed. f_j are the
ViT's patch tokens behind its last norm and projection, x_k is the text embedding of a fixed template, or GloVe with
``glove``; for U and V both are brought to the square root of their width. With text embeddings U and V start alike,
P as the identity and w as a constant: attention begins near a softmax of the VLP's own cosines, and d can be small (on
300 val pictures of the first MojiScenes, before training, the mAP of seen labels was 26 with d = 16, and 19 with the
mean of all positions). With ``glove`` U and V share no space and start apart. Without ``decoupling`` f_k is e_p,
without ``category_prompts`` all labels share the vectors: without both it is ``coop.py``, weight for weight.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.engine import chunks
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.missing_labels.base import AskedPairs, Contexts, Likeness, check_categories, cosines
from hrcf_lib.methods.missing_labels.coop import check_tau
from hrcf_lib.methods.settings import PartialConfig

SMALL = 0.5  # length of the rows of U and V at the start, at which tangents are nearly their arguments


@dataclass(frozen=True)
class SemanticAwareFirstConfig(PartialConfig):
    """Vectors and loss as in the paper; rates were chosen on val, temperature and level are CoOp's, of a model
    before training (``base.Partial.begin``)."""

    method = "semantic_aware"
    settings: str = setting("first", choices=("first",), before="first")

    decoupling: bool = True  # a feature of each category's own, or e_p for all ("sd" of Table 4)
    category_prompts: bool = True  # vectors of each category's own, or one context for all ("csp" of Table 4)
    prediction: str = setting("sigmoid", choices=("sigmoid", "softmax"))  # softmax: the letter of Eq. 9
    width: int = 16  # d of the low-rank fusion; the group's earlier code: 1024, 512
    sharpness: float = 20.0  # what cosines of positions and words are multiplied by in the softmax at the start
    context_std: float = 0.0  # deviation of the normal numbers that vectors start from; 0: they start from words
    tau: float = 0.03  # temperature at the start
    level: float = 0.65  # cosine of a probability of 1/2 at the start: beta = level / tau
    lr: float = 1e-3  # of the fusion
    prompt_lr: float = 1e-4  # of the prompts, temperature and offset
    glove: str | None = None  # path of a GloVe text file; None: text embeddings of the template
    glove_missing: str = setting("error", choices=("error", "skip"))  # skip: words that the file lacks are left out

    def __post_init__(self):
        super().__post_init__()
        check_tau(self)
        if not self.width:
            raise ValueError("width = 0 must be above 0")


class SemanticDecoupling(nn.Module):
    r"""Low-rank bilinear attention of word vectors over a feature map, Eqs. 2-6: one feature per category.

    Args:
        D: width of the map.
        words: entries of a word vector.
        d: rank of the fusion.
        sharpness: at the start the softmax is of about this times cos(f_j, x_k), where words = D: U and V are the same
            rows, at right angles to each other, P is the identity and w a constant.
    """

    def __init__(self, D: int, words: int, d: int, sharpness: float = 20.0):
        super().__init__()
        self.image, self.word = nn.Linear(D, d, bias=False), nn.Linear(words, d, bias=False)  # U, V
        self.fuse, self.attend = nn.Linear(d, d, bias=False), nn.Linear(d, 1, bias=False)  # P, w
        for layer in (self.image, self.word):
            nn.init.orthogonal_(layer.weight, SMALL)
        if words == D:
            with torch.no_grad():
                self.word.weight.copy_(self.image.weight)
        nn.init.eye_(self.fuse.weight)
        nn.init.constant_(self.attend.weight, sharpness / (min(d, D) * SMALL**2))

    def masks(self, regions: Tensor, x: Tensor) -> Tensor:
        r"""(B, J, D), (K, words) -> a (B, K, J), which sums to 1 over J. All (B, K, J, d) tangents at once."""
        f, v = (layer(_scaled(own)) for layer, own in ((self.image, regions), (self.word, x)))  # (B, J, d), (K, d)
        w = self.attend.weight[0] @ self.fuse.weight  # (d,)  P^T w
        return ((f[:, None] * v[:, None]).tanh() @ w).softmax(dim=-1)  # (B, K, J)

    def forward(self, regions: Tensor, x: Tensor) -> Tensor:
        r"""(B, J, D), (K, words) -> f (B, K, D). A label's feature does not depend on the other labels."""
        return self.masks(regions, x) @ regions


def _scaled(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1])


class SemanticAwareFirst(AskedPairs):
    """What learns is the fusion, and the vectors of each category's prompt with temperature and offset."""

    title, Config = "Semantic-aware", SemanticAwareFirstConfig
    about = "Semantic-aware representation (Ruan, Xu et al., ACM TOMM 2024)."
    map_kind = "attention"
    open_vocabulary = False  # unless categories share their prompt

    def build(self) -> None:
        """Prompts, temperature, offset, then the fusion: without the latter draws are those of CoOp."""
        c, D = self.config, self.vlp.D
        if c.category_prompts:
            check_categories(c)
        self.open_vocabulary = not c.category_prompts
        self.prompt = Contexts(
            self.vlp, c.prompt_vectors, len(c.categories) if c.category_prompts else 1, c.context_std
        )
        self.likeness = Likeness(c.tau, -c.level / c.tau)
        text = ("prompt.", "likeness.") if c.prediction == "sigmoid" else ("prompt.", "likeness.log_scale")
        image = ("decoupling.",) if c.decoupling else ()
        self.trainable = {"images": image, "prompts": text, "both": image + text}
        if c.decoupling:
            self.decoupling = SemanticDecoupling(D, word_vectors.label_width(self.vlp, c), c.width, c.sharpness)
            if c.glove and c.categories:
                self.words(c.categories)  # reports words that the file lacks before features are computed

    def lr_scale(self, side: str, name: str) -> float:
        """Where both learn at once the fusion learns at ``lr``, all else at ``prompt_lr``."""
        fused = side != "both" or name.startswith("decoupling.")
        return 1.0 if fused else self.config.prompt_lr / self.config.lr

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p of unit length (B, D), and f_j (B, N^2, D) or none."""
        e = F.normalize(self.vlp.teacher(trunk), dim=-1)  # (B, D)
        return e, self.vlp.dense(trunk) if self.config.decoupling else e[:, None][:, :0]

    def label_embeddings(self, names) -> Tensor:
        r"""t_k of unit length, and beside it x_k where a map is decoupled: (K, D) or (K, D + words).

        Raises ``ValueError`` for names that are none of its categories, where each has a prompt of its own, and as
        ``fixed_prompts`` and ``word_vectors.read_vectors``.
        """
        own = self.columns(names) if self.config.category_prompts else None
        t = F.normalize(self.prompt(self.vlp, names, own), dim=-1)  # (K, D)  Eq. 7
        return torch.cat([t, self.words(names)], dim=1) if self.config.decoupling else t

    def words(self, names) -> Tensor:
        """x_k of unit length, never trained: (K, D), or (K, width of the file) with ``glove``."""
        return word_vectors.unit_vectors(self.vlp, names, self.config)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor, asked=None) -> Tensor:
        r"""(B, D), (B, J, D), (K, ·) -> logits (B, K); with ``asked`` (B, K) bool of these pairs, others are -beta.

        With a sigmoid a label's score does not depend on the other labels.
        """
        t, x = label_embeddings.tensor_split([self.vlp.D], dim=1)  # (K, D), (K, words) or (K, 0)
        s = self.likeness(self._own(regions, t, x, asked) if self.config.decoupling else cosines(e_g, t))  # (B, K)
        return self.spread(s)

    def maps(self, regions: Tensor, t: Tensor) -> Tensor:
        r"""Where it looks for each label: (B, J, D), label embeddings (K, D + words) -> a (B, K, J), of sum 1 over J.

        Raises ``ValueError`` without ``decoupling``.
        """
        if not self.config.decoupling:
            raise ValueError("decoupling = False: all labels have one global embedding, which looks nowhere")
        return torch.cat([self.decoupling.masks(own, t[:, self.vlp.D :]) for own in regions.split(1)])

    def _own(self, regions: Tensor, t: Tensor, x: Tensor, asked: Tensor | None) -> Tensor:
        r"""cos(f_k, t_k) of asked pairs, 0 of others (B, K): picture after picture, so that little is held at a time.

        A batch of more than ``chunks.LARGE`` tangents is computed again for the backward pass.
        """
        if chunks.exporting():
            return self._cosines(regions, t, x)
        B, J, _ = regions.shape
        asked = torch.ones(B, len(t), dtype=torch.bool, device=t.device) if asked is None else asked
        ks = asked.nonzero()[:, 1]
        large = torch.is_grad_enabled() and len(ks) * J * self.config.width > chunks.LARGE
        found = []
        for i, k in enumerate(ks.split(asked.sum(dim=1).tolist())):
            own = chunks.recomputed(self._cosines, regions[i : i + 1], t[k], x[k], again=large)
            found.append(own[0])
        return t.new_zeros(asked.shape).masked_scatter(asked, torch.cat(found))

    def _cosines(self, regions: Tensor, t: Tensor, x: Tensor) -> Tensor:
        f = self.decoupling(regions, x)  # (B, K, D)
        return (F.normalize(f, dim=-1) * t).sum(dim=-1)  # (B, K)
