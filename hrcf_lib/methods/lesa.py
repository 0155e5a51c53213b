r"""LESA: shared multi-attention (Huynh & Elhamifar, CVPR 2020). A few attentions, of which each label picks one.

$$h_r = \tanh(W_1 g_r + b_1), \quad e_{mr} = w_m \cdot h_r + b_m, \quad \alpha_{mr} = \mathrm{softmax}_r(e_{mr}), \qquad
  z_m = \sum_r \alpha_{mr} g_r \tag{1, 2}$$
$$s^m_c = z_m \cdot W \frac{v_c}{\lVert v_c \rVert}, \qquad s_c = \max_m s^m_c \tag{3}$$
$$L_{rank} = \frac1B \sum_i \frac{1}{V_i} \sum_{p, n} \max(0, 1 + s_n - s_p), \qquad
  L_{dist} = \frac1B \sum_i \frac1M \sum_m \Big( \sum_{c: y_c = 1} \mathrm{softmax}_m(s^m_c) \Big)^2 \tag{4, 5}$$
$$L_{rel} = \sum_i \sum_c \max\big( 0,\; \mu - y_c (s_c - \bar s_c) \big), \quad
  \bar s_c = \mathrm{mean}_r(g_r) \cdot W \frac{v_c}{\lVert v_c \rVert}, \qquad
  L_{div} = \sqrt{ \sum_i \sum_{m \ne m'} \Big\langle \frac{e_m}{\lVert e_m \rVert},
  \frac{e_{m'}}{\lVert e_{m'} \rVert} \Big\rangle^2 } \tag{6, 7}$$

with g = ReLU(BN(Conv2x2(f))) of the regions f of a frozen backbone, V_i the violated pairs of a picture, label vectors
v_c, and e_m the scores of attention m at all positions. The numbers of the equations are ours. [P] is printed in the
paper, of which title, abstract and introduction were at hand, [C] its released code (github.com/hbdat/cvpr20_LESA), [R]
a reading, [S] silent and ours.

**The paper and its code**: f are the 14 x 14 x 512 features of VGG-19's conv5_4, v GloVe vectors of 300, M = 10 [C].
The convolution is in all of its scripts; its kernel is even, and TensorFlow pads it at the far side alone [C]. L_div is
on the scores *before* the softmax [C]. L_dist is not divided by the number of labels: many labels in one picture are
dear even when they are spread [C]. Weights of 0.1, 0.001 and 0.01 stand before L_dist, L_rel and L_div, whose last two
are *sums over the batch* of 32: they are right at that size alone [C]. RMSProp with a rate of 1e-3, decay and momentum
of 0.9, and an epsilon of 1 inside the root; no weight decay, no dropout [C]. The rate falls by 0.8 whenever a running
mean of F1@5 on the first 5,000 training pictures has fallen; 200,000 steps, pictures not shuffled, and those without a
seen label stay [C]. HRCF's Table VI prints 0.45 M parameters; the trained network has 1,470,986, and 421,386 without
the convolution.

**We** feed it the VLP, as ``biam``: f are positions in the joint space (``vlp.dense``), of a ViT or a ResNet, and v_c
is the text embedding of a fixed template, or GloVe with ``glove``. L_rel is a mean over the pictures, at 32 times its
weight, and in L_div the mean over the pictures stands under the root, at sqrt(32) times its weight: the released loss
at 32 pictures, and the same at any other number [R]. In parts of a batch, or in several processes, L_div is the mean of
the parts' roots. W starts at random [C], or, without the convolution, at the identity (``start="clip"``, [S]): z_m are
then averages of CLIP's own patches, and scores begin as zero-shot ones. Warm-up, cosine and length are those of all
methods, and pictures without a seen label are dropped.

In training, batch norm sees the pictures of one process and of one of ``accumulate`` parts: either changes numbers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.optim import RMSpropTF
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.losses import ranking_loss
from hrcf_lib.method import Method, finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.settings import WordVectorConfig
from hrcf_lib.methods.zs_sdl import direction_scores

BATCH = 32  # pictures that the released weights of sums are for


@dataclass(frozen=True)
class LESAConfig(WordVectorConfig):
    """Marks as in the module: [C] the released code, [S] silent and ours."""

    method = "lesa"
    small = {"optimizer": "adamw", "convolution": False, "start": "clip"}  # chosen on val: papers/lesa.md

    attentions: int = setting(10, low=1, high=1_000)  # [C] M
    convolution: bool = True  # [C] the entry of 2 x 2; off: attentions look at f itself
    start: str = setting("random", choices=("random", "clip"))  # [C] of W; [S] the identity, without the convolution
    distribution: float = 0.1  # [C] weight of L_dist
    relevance: float = 0.001  # [C] weight of L_rel, for a sum over 32 pictures
    diversity: float = 0.01  # [C] weight of L_div, for a sum over 32 pictures
    margin: float = 0.0  # [C] mu of L_rel
    ranking_reduction: str = "violations"  # [C]
    optimizer: str = setting("rmsprop", choices=("rmsprop", "adamw", "adam", "sgd"))  # [C] as TensorFlow 1 has it
    lr: float = 1e-3  # [C]
    weight_decay: float = 0.0  # [C]
    bn_momentum: float = setting(0.01, high=1)  # [C] weight of the last batch in the running statistics


class LESA(Method):
    """The attended features are the regions; the VLP is frozen; labels enter at the very end."""

    title, Config = "LESA", LESAConfig
    about = "LESA: shared multi-attention (Huynh & Elhamifar, CVPR 2020)."
    trainable, independent_labels = {"images": ("network.",), "prompts": ()}, True
    trained_blocks = 0

    def build(self) -> None:
        """The network. Raises ``ValueError`` for a start that convolution or word vectors do not allow."""
        c, D, width = self.config, self.vlp.D, word_vectors.label_width(self.vlp, self.config)
        if c.start == "clip" and (c.convolution or c.glove):
            what = "convolution = True" if c.convolution else f"word vectors of {c.glove}"
            raise ValueError(f"start = 'clip' with {what}, behind which W = 1 says nothing: take 'random'")
        self.network = SharedAttentions(D, c.attentions, width, c.convolution, c.bn_momentum)
        if c.start == "clip":
            nn.init.eye_(self.network.classifiers.weight)

    @property
    def region_sides(self) -> list[int]:
        """Attended features belong to no single place in the picture."""
        return []

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        r"""Tokens (B, 1 + N^2, C) of the whole image tower -> (B, D + 1), and z as regions (B, M, D).

        The former are the mean of g and the overlap of the picture's attentions, which only the losses use.
        """
        f = self.vlp.dense(trunk).transpose(1, 2).unflatten(2, (self.vlp.N, self.vlp.N))  # (B, D, N, N)
        g, e = self.network(f)  # (B, N*N, D), (B, M, N*N)
        overlap = attention_overlap(e)[:, None]  # (B, 1)
        return torch.cat([g.mean(dim=1), overlap], dim=1), attend(e, g)

    def label_embeddings(self, names) -> Tensor:
        """v_c of unit length, never trained: (K, D), or (K, width) with ``glove``. Raises as
        ``word_vectors.unit_vectors``."""
        return word_vectors.unit_vectors(self.vlp, names, self.config)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D + 1), which is not used, (B, M, D), (K, ·) -> (B, K), any real number.

        Raises ``ValueError`` for label embeddings of another width.
        """
        return direction_scores(regions, self.network.classify(label_embeddings))  # Eq. 3

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Eqs. 4 to 7, means over the pictures but for the root of a mean in Eq. 7.

        Raises ``FloatingPointError`` for scores that are not finite.
        """
        c, q = self.config, self.network.classify(t)  # (K, D)
        g, overlap = e_g[:, :-1], e_g[:, -1]  # (B, D), (B,)
        s_m = regions @ q.T  # (B, M, K)
        s = finite(s_m.amax(dim=1))  # (B, K)  Eq. 3
        return {
            "ranking": ranking_loss(s, labels, c.ranking_reduction),  # Eq. 4
            "distribution": distribution_loss(s_m, labels),
            "relevance": relevance_loss(s, g @ q.T, labels, c.margin),
            "diversity": diversity_loss(overlap),
        }

    def weights(self, side: str) -> dict[str, float]:
        """The released weights of sums over 32 pictures become those of means."""
        c = self.config
        sums = {"relevance": BATCH * c.relevance, "diversity": math.sqrt(BATCH) * c.diversity}
        return {"ranking": 1.0, "distribution": c.distribution} | sums

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """As in every method; ``rmsprop`` is TensorFlow 1's: mean squares start at 1, epsilon is inside the root."""
        c = self.config
        if c.optimizer == "rmsprop":
            return RMSpropTF(groups, lr=c.lr, alpha=0.9, eps=1.0, momentum=c.momentum)
        return super().optimizer(groups)


class SharedAttentions(nn.Module):
    r"""The network of LESA, without knowing where its features come from.

    Args:
        width: D of a region.
        attentions: M.
        label_width: entries of a label vector.
        convolution: whether the entry of 2 x 2 is there.
        momentum: of its batch norm, in torch's meaning.
    """

    def __init__(self, width: int, attentions: int, label_width: int, convolution: bool = True, momentum: float = 0.01):
        super().__init__()
        entry = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 2, bias=False)]  # one column right, one row below
        entry += [nn.BatchNorm2d(width, eps=1e-3, momentum=momentum), nn.ReLU()]
        self.entry = nn.Sequential(*entry) if convolution else nn.Identity()
        self.hidden, self.attention = nn.Linear(width, width), nn.Linear(width, attentions)  # W_1, b_1; w_m, b_m
        self.classifiers = nn.Linear(label_width, width, bias=False)  # W
        if convolution:
            nn.init.xavier_uniform_(self.entry[1].weight)
        for layer in (self.hidden, self.attention):
            std = he_deviation(width + 1)  # biases are the last row of the released matrices, and drawn like the rest
            for values in (layer.weight, layer.bias):
                nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std)
        std = he_deviation(width)
        nn.init.trunc_normal_(self.classifiers.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, N, N) -> g (B, N^2, D) and e (B, M, N^2), the scores of the attentions before their softmax."""
        g = self.entry(f).flatten(2).transpose(1, 2)  # (B, N*N, D)
        e = self.attention(torch.tanh(self.hidden(g)))  # (B, N*N, M)  Eq. 1
        return g, e.transpose(1, 2)

    def classify(self, words: Tensor) -> Tensor:
        """W v: (K, label_width) -> (K, D). Raises ``ValueError`` for another width."""
        if words.ndim != 2 or words.shape[1] != self.classifiers.in_features:
            raise ValueError(
                f"word vectors {tuple(words.shape)}: the classifiers take (K, {self.classifiers.in_features})"
            )
        return self.classifiers(words)


def he_deviation(fan_in: int) -> float:
    """Of a normal that is cut at two deviations, so that what is drawn has variance 2 / ``fan_in``: TensorFlow's."""
    return math.sqrt(1.3 * 2 / fan_in)


def attend(e: Tensor, g: Tensor) -> Tensor:
    """Scores (B, M, J) of attentions, features (B, J, D) -> z (B, M, D), what each attention sees (Eq. 2)."""
    return e.softmax(dim=2) @ g


def attention_overlap(e: Tensor) -> Tensor:
    """How alike the attentions of each picture are, squared cosines of all ordered pairs: (B, M, J) -> (B,), >= 0.

    At least float32. NaN where a length is too large for a number, so that a diverged run is told.
    """
    e = e.to(torch.promote_types(e.dtype, torch.float32))
    products = (e[:, :, None] * e[:, None]).sum(dim=3)  # (B, M, M); autocast would halve the precision of a product @
    lengths = products.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()  # (B, M)
    cosines = products / lengths[:, :, None] / lengths[:, None]  # (B, M, M)
    others = ~torch.eye(e.shape[1], dtype=torch.bool, device=e.device)  # (M, M)
    return (cosines.square() * others).sum(dim=(1, 2))


def distribution_loss(s_m: Tensor, labels: Tensor) -> Tensor:
    """Present labels should share out the attentions (Eq. 5): (B, M, K), (B, K) -> scalar, the mean over pictures.

    A picture without a present label adds 0 and counts; an empty batch is 0.

    >>> s_m = torch.tensor([[[9.0, 9.0], [-9.0, -9.0]]])  # both labels of a picture pick the first of two attentions
    >>> distribution_loss(s_m, torch.tensor([[1, 1]]))
    tensor(2.)
    >>> distribution_loss(s_m, torch.tensor([[1, -1]]))
    tensor(0.5000)
    """
    picked = (s_m.softmax(dim=1) * (labels == 1)[:, None]).sum(dim=2)  # (B, M)
    return picked.square().mean(dim=1).sum() / max(1, len(labels))


def relevance_loss(s: Tensor, s_mean: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """An attention should tell more of a label than the mean region does (Eq. 6), summed over labels.

    Scores (B, K), those of the mean region (B, K), labels (B, K) in -1/0/+1 -> scalar, the mean over pictures. An
    unknown label adds ``margin``, as in the released code.
    """
    return F.relu(margin - labels * (s - s_mean)).sum() / max(1, len(labels))


def diversity_loss(overlap: Tensor) -> Tensor:
    """The root of the mean over pictures of ``attention_overlap`` (Eq. 7): (B,) -> scalar; 0 with one attention."""
    mean = overlap.sum() / max(1, len(overlap))
    return mean.sqrt() if mean.detach() > 0 else mean  # the root's slope at 0 is infinite
