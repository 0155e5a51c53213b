r"""(ML)2P-Encoder, of the framework C3-MLZSL (Liu et al., CVPR 2023): channels answer to labels, in M groups.

A map x of P positions becomes M groups of d channels, M d channels in all. In each group m:

$$[q; k; v] = \mathrm{DW}_{3 \times 3}\big( \mathrm{Conv}_{1 \times 1}(x) \big), \qquad
  Y_m = \mathrm{softmax}\Big( \tau_m \frac{q_m}{\lVert q_m \rVert} \frac{k_m^\top}{\lVert k_m \rVert} \Big) v_m
  \tag{a}$$
$$X = Y_m^\top, \qquad X \leftarrow X + T_2\, g(T_1\, \mathrm{LN}(X)), \qquad
  X \leftarrow X + g(\mathrm{LN}(X)\, C_1)\, C_2, \qquad g = \mathrm{GELU} \tag{b}$$
$$E_m = \sigma\big( \max_p X_p \big), \qquad S = \big( Q(E)\, K(E)^\top \big) E \tag{c, d}$$
$$s_k = \max_m \; A_m \cdot a_k \tag{e}$$

q, k, v are d x P, so the softmax of (a) is over d *channels*, and norms run over positions; tau_m is learnt, from 1.
One mixer (b) serves all groups: T over positions (P -> P // 5 -> P), C over channels (d -> d // 5 -> d). Q and K are
small networks d -> d -> d; (d) is M x M, without softmax, scaling or short cut. A are the M vectors that meet the
label vectors a_k. Letters of equations are ours.

What is printed [P] is the abstract alone, which was at hand; [C] is the released test code; [S] is silent, and ours.

* (a) to (e), tau, the max, the sigmoid: [C]. The released network has a second output projection and options that it
  never uses; they are not built. It places channel (m, c) at c M + m before Conv1x1, a fixed permutation before a full
  matrix: nothing that can be learnt depends on it, and it is kept so that released weights mean the same.
* ``reading="flat"`` [C]: A is S with its M d numbers, row by row, read as d rows of M: a "vector" holds every M-th
  number and mixes all groups. ``reading="rows"``: A = S, what the abstract describes.
* **No loss was released.** ``loss="semantic_diversity"`` is a guess, named so in the history of a run: ZS-SDL's
  (``zs_sdl.py``), from whose code names, M and reading are, with the weight 0.4 that the options hold. ``"ranking"``
  is the ranking loss of MKT and HRCF.
* lr 5e-5 [C]; optimiser, schedule, decay [S]: those of all methods here.

**Here** [S] x is the VLP's map in the joint space (``vlp.dense``), one level in place of three of VGG-19, brought by
max-pooling to ``map_side`` = 7, as its level 2 is; T holds P, so a model belongs to one size of picture. d is that of
the label vectors: D with the VLP's texts, 300 with GloVe. Label vectors have unit length in both tasks; its ZSL test
takes them as they are, which is another problem than its GZSL test. Its head is no light one: with M = 7 and D = 512 it
has 41.7 M parameters, 38.5 M of them in Conv1x1 (``groups`` = 4: 14.9 M).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.losses import ranking_loss
from hrcf_lib.method import Method, finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.settings import WordVectorConfig
from hrcf_lib.methods.zs_sdl import direction_scores, principal_directions, semantic_diversity_loss

ABLATIONS = {  # name of a row -> changes of the config, for ``studies.run_all``; the paper's tables were not at hand
    "(ML)2P-Encoder": {},
    "no channel attention": {"channel_attention": False},
    "no mixer": {"mixer": False},
    "no group attention": {"group_attention": False},
    "rows as vectors": {"reading": "rows"},
    "mean over positions": {"pool": "mean"},
    "ranking loss": {"loss": "ranking"},
}
REDUCTION = 5  # of both networks of the mixer
LOSSES = ("semantic_diversity", "ranking")


@dataclass(frozen=True)
class ML2PEncoderConfig(WordVectorConfig):
    """Default values of the released options, where they say."""

    method = "ml2p_encoder"
    small = {"groups": 2, "lr": 1e-2}  # with M = 4 or 7 a few hundred steps teach it next to nothing

    groups: int = setting(7, low=1, high=1_000)  # M
    map_side: int = setting(7, low=1, high=1_024)  # of the map after max-pooling; a smaller map stays as it is
    reading: str = setting("flat", choices=("flat", "rows"), scores=True)  # how S becomes A; flat: released
    pool: str = setting("max", choices=("max", "mean"), scores=True)  # over positions; max: released
    channel_attention: bool = setting(True, scores=True)  # off: Y_m is the group itself
    mixer: bool = setting(True, scores=True)  # (b)
    group_attention: bool = setting(True, scores=True)  # off: S = E
    loss: str = setting("semantic_diversity", choices=LOSSES)  # the paper's is not released: a guess
    diversity: float = setting(0.4, high=1)  # weight in that guess
    lr: float = 5e-5


class ML2PEncoder(Method):
    """The VLP is frozen; ``ChannelClassNetwork`` turns its map into M vectors, of which each label takes its best."""

    title, Config = "(ML)2P-Encoder", ML2PEncoderConfig
    about = "(ML)2P-Encoder (Liu et al., CVPR 2023): groups of channels that answer to labels."
    trainable, independent_labels = {"images": ("network.",), "prompts": ()}, True
    trained_blocks = 0

    def build(self) -> None:
        """The network, with weights drawn as torch draws them."""
        c, D = self.config, self.vlp.D
        d, side = word_vectors.label_width(self.vlp, c), min(c.map_side, self.vlp.N)
        self.network = ChannelClassNetwork(D, c.groups, d, side, **{name: getattr(c, name) for name in FORM})

    @property
    def region_sides(self) -> list[int]:
        """The regions are the M vectors of A, which are no map."""
        return [1] * self.config.groups

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) of the whole image tower -> e_p (B, D), which scores do not use, and A (B, M, d)."""
        x = self.vlp.dense(trunk)  # (B, N*N, D)
        x = x.transpose(1, 2).unflatten(2, (self.vlp.N, self.vlp.N))  # (B, D, N, N)
        if self.network.side < self.vlp.N:
            x = F.adaptive_max_pool2d(x, self.network.side)  # (B, D, side, side)
        return self.vlp.teacher(trunk), vectors(self.network(x), self.config.reading)

    def label_embeddings(self, names) -> Tensor:
        """(K, d): a_k, of unit length, never trained. Raises as ``word_vectors.unit_vectors``."""
        return word_vectors.unit_vectors(self.vlp, names, self.config)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), which is not used, A (B, M, d), (K, d) -> (B, K), any real number."""
        return direction_scores(regions, label_embeddings)  # Eq. e

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The loss of ``config.loss`` under its name. Raises ``FloatingPointError`` for scores that are not finite."""
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        if self.config.loss == "ranking":
            return {"ranking": ranking_loss(s, labels, self.config.ranking_reduction)}
        return {"semantic_diversity": semantic_diversity_loss(regions, labels, t, self.config.diversity)}

    def weights(self, side: str) -> dict[str, float]:
        """The one part of the loss."""
        return {self.config.loss: 1.0}


FORM = ("channel_attention", "mixer", "group_attention", "pool")  # fields that say what is built


def vectors(S: Tensor, reading: str) -> Tensor:
    """S (B, M, d) -> A (B, M, d): itself (``rows``), or its numbers read as d rows of M (``flat``)."""
    return S if reading == "rows" else principal_directions(S.flatten(1), S.shape[1])


class ChannelClassNetwork(nn.Module):
    r"""The network of (ML)2P-Encoder behind the joined levels, without knowing where its map comes from.

    Args:
        in_channels: of the map x.
        groups: M.
        width: d, channels of a group and entries of a label vector.
        side: of the map, which has P = side^2 positions.
        channel_attention, mixer, group_attention, pool: as in ``ML2PEncoderConfig``.
    """

    def __init__(
        self,
        in_channels: int,
        groups: int,
        width: int,
        side: int,
        *,
        channel_attention: bool = True,
        mixer: bool = True,
        group_attention: bool = True,
        pool: str = "max",
    ):
        super().__init__()
        self.side, self.pool = side, pool
        self.groups = groups
        self.embedding = nn.Conv2d(in_channels, groups * width, 1)
        self.channel_attention = ChannelAttention(groups, width) if channel_attention else None
        self.mixer = Mixer(side**2, width) if mixer else None
        self.group_attention = GroupAttention(width) if group_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, side, side) -> S (B, M, d). Labels take no part."""
        x = self.embedding(x)  # (B, M d, side, side)
        if self.channel_attention:
            y = self.channel_attention(shuffled(x, self.groups))  # (B, M, d, P)
        else:
            y = x.flatten(2).unflatten(1, (self.groups, -1))  # (B, M, d, P)
        y = y.transpose(2, 3)  # (B, M, P, d)
        y = self.mixer(y) if self.mixer else y  # Eq. b
        E = (y.amax(dim=2) if self.pool == "max" else y.mean(dim=2)).sigmoid()  # (B, M, d)  Eq. c
        return self.group_attention(E) if self.group_attention else E  # Eq. d


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel (m, c) of (B, M d, ...) goes to place c M + m."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ChannelAttention(nn.Module):
    """Each channel of a group looks at all of its channels: (B, M d, side, side) -> (B, M, d, P)."""

    def __init__(self, groups: int, width: int):
        super().__init__()
        channels = groups * width
        self.groups = groups
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)  # DW
        self.temperature = nn.Parameter(torch.ones(groups, 1, 1))  # tau

    def forward(self, x: Tensor) -> Tensor:
        """Eq. a."""
        q, k, v = self.depthwise(self.qkv(x)).flatten(2).unflatten(1, (3, self.groups, -1)).unbind(1)  # (B, M, d, P)
        likeness = F.normalize(q, dim=3) @ F.normalize(k, dim=3).transpose(2, 3)  # (B, M, d, d)
        return (self.temperature * likeness).softmax(dim=3) @ v  # (B, M, d, P)


class Mixer(nn.Module):
    """One block for all groups, over positions and then over channels: (B, M, P, d) -> (B, M, P, d)."""

    def __init__(self, positions: int, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = two_layers(positions, max(1, positions // REDUCTION))  # T
        self.channels = two_layers(width, max(1, width // REDUCTION))  # C

    def forward(self, x: Tensor) -> Tensor:
        """Eq. b."""
        x = x + self.positions(self.norm_1(x).transpose(2, 3)).transpose(2, 3)
        return x + self.channels(self.norm_2(x))


class GroupAttention(nn.Module):
    """The groups of a picture, mixed by how they answer each other: (B, M, d) -> (B, M, d), in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key = two_layers(width, width), two_layers(width, width)  # Q, K

    def forward(self, E: Tensor) -> Tensor:
        """Eq. d. Sums over d without scaling are large, so bfloat16 is not for them."""
        with torch.autocast(E.device.type, enabled=False):
            E = E.float()
            return self.query(E) @ self.key(E).transpose(1, 2) @ E  # (B, M, M) @ (B, M, d)


def two_layers(width: int, hidden: int) -> nn.Sequential:
    """width -> hidden -> width, with GELU in between."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
