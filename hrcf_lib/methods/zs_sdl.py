r"""ZS-SDL: semantic diversity learning (Ben-Cohen et al., ICCV 2021). Several principal directions for each picture.

$$A = W x \in R^{M \times d}, \qquad s_k = \max_m A^m \cdot a_k \tag{1}$$
$$\omega_i = 1 + \sum_c \mathrm{Var}_{k \in P_i}(a_{kc}), \qquad
  L_i = \frac{\omega_i}{|P_i|} \sum_{p \in P_i} \sum_{n \in N_i} \log (1 + e^{s_n - s_p}) \tag{2, 3}$$
$$L_{reg} = \sum_c \mathrm{Var}_m(A^m_c), \qquad
  L = \frac{1}{B} \sum_i 2 \big( (1 - \lambda) L_i + \lambda L_{reg, i} \big) \tag{4, 5}$$

with x (C) of a picture, W without bias, word vectors a_k (d) of unit length, present labels P_i and all others N_i.
Both variances are unbiased. The numbers of the equations are ours. [P] is printed in the paper (abstract, introduction
and Fig. 2 were at hand), [C] its released code (github.com/Alibaba-MIIL/ZS_SDL), [R] a reading, [S] silent and ours.

**The paper and its code**: x is the mean over positions of TResNet-M's last map, C = 2,048, and the whole network is
trained, from ImageNet's weights [C]; GloVe, d = 300 [C]; M = 7 on NUS-WIDE [C]. Unknown labels count as absent: the
line that would leave them out is commented away [C]. L_i is divided by the number of present labels alone, not by that
of the pairs, so that a loss is of the order of the number of labels [C]. lambda is 0.3 by default, 0.01 in the script
for COCO; that for NUS-WIDE is not released. lambda weighs a *penalty* that draws the directions together; what keeps
them apart is the maximum of Eq. 1. Adam, one cycle to 2.5e-5 with a rise over a tenth, L2 of 3e-4, 32 pictures a step,
10 epochs [C, COCO]. The checkpoint that is kept is the best on the *test* pictures.

**We** feed it the VLP, as "CLIP-ZSSDL" in Table II of OVML-VLP, which does not say what of CLIP was trained. Of a ViT
the last block learns, as in HRCF, and W stands in the place of its projection: x is the class token behind the final
norm, or the mean of the patches (``pool``), both C wide [R]. Of a ResNet W alone learns, and x is the mean over its
map, as released. a_k is the text embedding of a fixed template, or GloVe with ``glove``. W starts at random [C], or
every direction starts near the VLP's own projection (``start="clip"``, [S]), which is zero-shot CLIP but for the noise
that tells directions apart. Length, batch and what is kept are those of all methods.

**On CLIP's texts omega is nearly constant**: for unit vectors it is 2 minus the mean cosine of the pairs of present
labels, and texts of one template lie in a cone. ``diversity="centred"`` takes the mean of the seen labels off the
vectors in Eq. 2 and brings them to length 1 again [S]. papers/zs_sdl.md says what was measured.

Pictures without a present label, for which the released code divides 0 by 0, are left out; with M = 1 there is no
variance, and L_reg is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrcf_lib.config import setting
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.labels import check_scores
from hrcf_lib.method import finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.blocks import LastBlocks
from hrcf_lib.methods.losses import pairwise_logistic_per_image
from hrcf_lib.methods.settings import WordVectorConfig

UNKNOWN = ("absent", "out")  # what a label that is 0 is taken for: an absent one, or one that takes no part
NOISE = 0.1  # of the start near the VLP's projection, in deviations of its entries


@dataclass(frozen=True)
class ZSSDLConfig(WordVectorConfig):
    """Marks as in the module: [C] the released code, [R] a reading, [S] silent and ours."""

    method = "zs_sdl"
    small = {"start": "clip", "blocks": 0, "pool": "mean", "lr": 3e-4}  # chosen on val: papers/zs_sdl.md

    directions: int = setting(7, low=1, high=1_000)  # [C] M on NUS-WIDE; 2 on COCO
    variance: float | None = setting(0.3, high=1)  # [C] lambda of Eq. 5; None: L_i alone, without the factor 2
    unknown: str = setting("absent", choices=UNKNOWN)  # [C] a label that is 0 counts as absent; out: it takes no part
    diversity: str = setting("words", choices=("words", "centred", "none"))  # [C] omega of a_k; [S] centred; none: 1
    blocks: int | None = 1  # [R] last blocks of a ViT that are trained, None: all; of a ResNet none are
    pool: str = setting("class", choices=("class", "mean"), scores=True)  # [R] x: the class token, or the patches' mean
    start: str = setting("random", choices=("random", "clip"))  # [C] of W: drawn as torch does; [S] near CLIP's
    optimizer: str = "adam"  # [C]
    lr: float = 2.5e-5  # [C] top of the one cycle
    rise: float = setting(0.1, high=1)  # [C] share of training in which the rate rises
    weight_decay: float = 3e-4  # [C] which Adam adds to the gradient
    layer_decay: float = setting(1.0, high=1)  # [C] all layers at one rate


class ZSSDL(LastBlocks):
    """The directions are the regions; W, ``head``, is where the VLP's projection was."""

    title, Config = "ZS-SDL", ZSSDLConfig
    about = "ZS-SDL: semantic diversity learning (Ben-Cohen et al., ICCV 2021)."
    needs_vit, independent_labels = False, True

    @property
    def trained_blocks(self) -> int:
        """As the config says, or all; none of a ResNet."""
        return super().trained_blocks if self.vlp.is_vit else 0

    def build(self) -> None:
        """The last blocks, and W. Raises ``ValueError`` for a start that the VLP or the word vectors do not allow."""
        c, C, d = self.config, self.vlp.C, word_vectors.label_width(self.vlp, self.config)
        if c.start == "clip" and (c.glove or not self.vlp.is_vit):
            what = f"word vectors of {c.glove}" if c.glove else f"{c.vlp}, whose image tower ends in no projection"
            raise ValueError(f"start = 'clip' with {what}: take 'random'")
        if self.vlp.is_vit:
            super().build()
        self.head = nn.Linear(C, d * c.directions, bias=False)
        if c.start == "clip":
            proj = self.vlp.model.visual.proj.detach()  # (C, d)
            noise = NOISE * proj.std() * torch.randn(d, c.directions, C)
            with torch.no_grad():
                self.head.weight.copy_((proj.T[:, None] + noise).flatten(0, 1))  # (d M, C)

    @property
    def region_sides(self) -> list[int]:
        """Directions belong to no place in the picture."""
        return []

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk tokens (B, 1 + N^2, C) -> x (B, C), and A (B, M, d), of any length."""
        if self.vlp.is_vit:
            tokens = self.ln_post(self.block(trunk))  # (B, 1 + N*N, C)
            x = tokens[:, 0] if self.config.pool == "class" else tokens[:, 1:].mean(dim=1)  # (B, C)
        else:
            x = trunk[:, 0]  # (B, C), the mean over the map
        return x, principal_directions(self.head(x), self.config.directions)

    def label_embeddings(self, names) -> Tensor:
        """a_k of unit length, never trained: (K, D), or (K, width) with ``glove``. Raises as
        ``word_vectors.unit_vectors``."""
        return word_vectors.unit_vectors(self.vlp, names, self.config)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, C), which is not used, (B, M, d), (K, d) -> (B, K), any real number. Raises as ``direction_scores``."""
        return direction_scores(regions, label_embeddings)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Eqs. 3 and 4, each a mean over the pictures. Raises ``FloatingPointError`` for scores that are not finite."""
        finite(regions)
        ranking = pairs_per_image(regions, labels, t, self.config.unknown)  # (B,)
        if self.config.diversity != "none":
            words = centred(t) if self.config.diversity == "centred" else t
            ranking = diversity_weights(labels == 1, words) * ranking
        variance = direction_variance(regions)  # (B,)
        return {"ranking": mean_of_labelled(ranking, labels), "variance": mean_of_labelled(variance, labels)}

    def weights(self, side: str) -> dict[str, float]:
        """Eq. 5."""
        lam = self.config.variance
        return {"ranking": 1.0, "variance": 0.0} if lam is None else {"ranking": 2 * (1 - lam), "variance": 2 * lam}

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """One cycle with ``lr`` at its top."""
        return one_cycle(epoch, epochs, self.config.lr, self.config.rise)


def principal_directions(x: Tensor, number: int) -> Tensor:
    r"""The output (B, d M) of a layer as M directions: entry c M + m is coordinate c of direction m -> (B, M, d).

    Raises ``ValueError`` if ``number`` M does not divide the width of the output.
    """
    if number < 1 or x.shape[-1] % number:
        raise ValueError(f"an output of width {x.shape[-1]} cannot be read as {number} directions: choose a divisor")
    return x.unflatten(-1, (-1, number)).transpose(-1, -2)  # (B, M, d)


def direction_scores(directions: Tensor, words: Tensor) -> Tensor:
    r"""Each label is scored by the direction that suits it best (Eq. 1): (B, M, d), (K, d) -> (B, K), any real number.

    Neither directions nor scores are normalised; a word vector of length 0 scores 0. Raises ``ValueError`` for shapes
    that do not fit.

    >>> directions = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # of one picture
    >>> direction_scores(directions, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    tensor([[2., 1., 0.]])
    """
    fit = directions.ndim == 3 and words.ndim == 2 and directions.shape[2] == words.shape[1] and directions.shape[1]
    if not fit:
        raise ValueError(
            f"directions {tuple(directions.shape)} and word vectors {tuple(words.shape)} do not fit: they are "
            "(B, M, d) and (K, d), with one d and at least one direction"
        )
    return (directions @ words.T).amax(dim=1)  # (B, M, K) -> (B, K)


def diversity_weights(present: Tensor, words: Tensor) -> Tensor:
    r"""How far apart in meaning the present labels of each picture are (Eq. 2): (B, K) bool, (K, d) -> (B,), >= 1.

    For word vectors of unit length it is 2 minus the mean cosine of the pairs of present labels. 1 for a picture with
    one present label or none.

    >>> diversity_weights(torch.tensor([[True, True, False], [True, False, False]]), torch.eye(3))
    tensor([2., 1.])
    """
    a = words.to(torch.promote_types(words.dtype, torch.float32))
    a = a - a.mean(dim=0)  # (K, d): a variance stays as it is, and less is lost to rounding
    n, own = present.sum(dim=1), present.to(a.dtype)  # (B,), (B, K)
    squares = own @ a.square().sum(dim=1) - (own @ a).square().sum(dim=1) / n.clamp(min=1)  # (B,)
    return 1 + (squares / (n - 1).clamp(min=1)).clamp(min=0).where(n > 1, 0.0)


def centred(words: Tensor) -> Tensor:
    """Word vectors (K, d) without their mean, of length 1 again; one that is the mean stays 0."""
    return F.normalize(words - words.mean(dim=0), dim=1)


def direction_variance(directions: Tensor) -> Tensor:
    """How far apart the directions of each picture are (Eq. 4): (B, M, d) -> (B,); 0 with one direction."""
    if directions.shape[1] < 2 or not len(directions):
        return (directions * 0).sum(dim=(1, 2))
    return directions.var(dim=1).sum(dim=1)


def pairs_per_image(directions: Tensor, labels: Tensor, words: Tensor, unknown: str = "absent") -> Tensor:
    r"""L_i of Eq. 3 without omega: (B, M, d), (B, K), (K, d) -> (B,), at least float32; 0 without a present label.

    A picture whose labels are all present has no pair, and the released code's log(1 + exp(-s_p)) takes its place.
    Raises as ``semantic_diversity_loss``.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown = {unknown!r}: choose one of {', '.join(UNKNOWN)}")
    s = direction_scores(directions, words)  # (B, K)
    check_scores(s, labels, finite=True)
    s = s.to(torch.promote_types(s.dtype, torch.float32))  # (B, K)
    present = labels == 1  # (B, K)
    absent = labels == -1 if unknown == "out" else ~present  # (B, K)
    ranking = pairwise_logistic_per_image(s, present, absent)  # (B,)
    alone = (F.softplus(-s) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)  # (B,)
    return ranking + alone.where(~absent.any(dim=1), 0.0)


def semantic_diversity_loss(
    directions: Tensor, labels: Tensor, words: Tensor, weight: float | None, unknown: str = "absent"
) -> Tensor:
    r"""The loss of ZS-SDL (Eqs. 2-5): pictures whose labels differ in meaning count more, and directions stay together.

    The mean over the pictures that have a present label: of one without, the released code divides 0 by 0. The sum over
    pairs is divided by the number of present labels alone, so that a loss is of the order of the number of labels. A
    batch never holds a table of all pairs (``losses.pairwise_logistic_per_image``).

    Args:
        directions: (B, M, d), finite, any length.
        labels: (B, K), values -1 (absent), 0 (unknown), +1 (present).
        words: (K, d), word vectors, of unit length in the paper; constants.
        weight: lambda, from 0 to 1. With ``None`` the loss is the mean of L_i, without the factor 2 and the variance.
        unknown: ``"absent"``, as released: a label that is 0 counts as absent; ``"out"``: it takes no part.

    Returns:
        scalar >= 0, at least float32; 0 if no picture has a present label. With M = 1 the variance is 0.

    Raises:
        ValueError: shapes that do not fit, a score that is not finite, a label outside {-1, 0, 1}, another ``unknown``,
            or a weight outside 0..1.

    Source: Ben-Cohen et al., ICCV 2021; its released code for the factors.

    >>> directions, words = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.eye(2)  # both labels score 1
    >>> semantic_diversity_loss(directions, torch.tensor([[1, -1]]), words, weight=None)  # log 2
    tensor(0.6931)
    >>> semantic_diversity_loss(directions, torch.tensor([[1, -1]]), words, weight=0.5)  # 2 (0.5 log 2 + 0.5)
    tensor(1.6931)
    """
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight!r} of the variance must be from 0 to 1, or None")
    pairs = pairs_per_image(directions, labels, words, unknown)  # (B,)
    per_image = diversity_weights(labels == 1, words) * pairs  # (B,)  Eq. 3
    if weight is not None:
        variance = direction_variance(directions).to(per_image.dtype)  # (B,)
        per_image = 2 * ((1 - weight) * per_image + weight * variance)  # Eq. 5
    return mean_of_labelled(per_image, labels)


def mean_of_labelled(per_image: Tensor, labels: Tensor) -> Tensor:
    """The mean of (B,) over the pictures that have a present label among (B, K); 0 without any."""
    labelled = (labels == 1).any(dim=1)  # (B,)
    return (per_image * labelled).sum() / labelled.sum().clamp(min=1)
