r"""BiAM: bi-level attention (Narayan, Gupta et al., ICCV 2021). A small network enriches regions; each scores alone.

$$q_h = h_r W^Q_h, \quad k_h = h_r W^K_h, \quad v_h = h_r W^V_h, \qquad
  \alpha_h = \mathrm{softmax}\Big( \frac{q_h k_h^\top}{\sqrt{d_r / H}} \Big) v_h \tag{2, 3}$$
$$o_r = [\alpha_1; \dots; \alpha_H] W_o, \qquad e_r = c^r(h_r + o_r) + (h_r + o_r) \tag{4, 5}$$
$$q^g = \mathrm{GAP}(h_r), \quad k^g = x_g W^g, \quad v^g = h_r, \qquad
  \alpha^g = v^g \otimes \mathrm{sigmoid}(q^g * k^g), \qquad e_g = c^g(\alpha^g) + h_r \tag{6-8}$$
$$e_f = c^f([e_r; e_g]), \qquad m = e_f W_a A^\top, \qquad s_k = \frac1{10} \sum_{j \in \mathrm{top}_{10}(k)} m_{jk}
  \tag{9, 1}$$
$$L = \sum_i \sum_{p, n} \max(s_i[n] - s_i[p] + 1,\; 0) \tag{10}$$

with regions x_r and a global feature x_g of a frozen backbone, h_r = BN(ReLU(Conv3x3(x_r))), and label vectors A.
Eqs. 2-5 are the region block (RCB), 6-8 the scene block (SCB). Sections are those of the paper.

**The paper** (``settings="paper"``, Sec. 3): x_r are the 14 x 14 x 512 features of VGG-19's Conv5, x_g the 4,096 of
FC7, A GloVe vectors of 300 numbers and unit length. 512 channels, H = 8 heads, k = 10; the two 3 x 3 convolutions are
followed by ReLU and batch norm; Adam with betas 0.5 and 0.999, a warm-up to 1e-3, batch 32, 40 epochs on NUS-WIDE, 2
on Open Images. Eqs. 1, 2, 4 and 6 multiply by matrices: no biases. **Silent**, and here as in the released code: c^r is
two 1 x 1 convolutions of twice the width between, with ReLU; a leaky ReLU of slope 0.2 follows c^f; dropout of 0.1 in
the region block and of 0.2 on x_g; batch norm's epsilon 1e-3. Silent and ours: no weight decay; without a block its
output is left out, and with one or none there is nothing that c^f could join, so W_a takes e_r, e_g or h_r (Table 3);
``map_side`` averages x_r over a coarser grid (Fig. 7).

**The released code** (``settings="released"``; github.com/akshitac8/BiAM) has k = 6, 256 channels, 4 heads and biases
everywhere; v^g = LReLU(Conv1x1(h_r)), of which q^g is the mean; e_g = c^g(alpha^g) + alpha^g; each picture's loss is
divided by its number of violated pairs. Each difference is a field of the config, so any mixture can be built. Further:
attention scores that are exactly 0 are masked out; batch norm has momentum 0.99, which is Keras's meaning of the word:
in torch it keeps the statistics of the last batch and forgets all others. Adam with L2 5e-4. By default beta1 0.5,
1e-3, optionally 3 epochs of warm-up and a cosine to 2e-4; its script for NUS-WIDE has 8 heads, beta1 0.9, 40 epochs
with that warm-up and a cosine to 5e-4, that for Open Images 16 heads, beta1 0.9, 10 epochs at 1e-4. The test set is
scored every tenth epoch; five more epochs on all training pictures follow.

**Which of the two the printed numbers belong to** is open. With VGG-19's sizes the released form has 3,828,480
parameters, the 3.8 M of HRCF's Table VI, the paper's form 9,595,904; and at 256 channels it takes 0.54 G
multiplications up to the classifier, of the 0.59 GFLOP in the paper's own Table 5, where 512 channels take 1.45 G.

**We** feed it the VLP, as "CLIP-BiAM" in Table II of OVML-VLP: x_r are positions in the joint space (``vlp.dense``), of
a ViT or a ResNet, x_g is e_p, both at the VLP's own scale (batch norm follows the first convolution), and a_k is the
text embedding of a fixed template, or GloVe with ``glove``. In the presets of the mini VLP, whose regions have 128
numbers, there are 128 channels: in the paper, too, there are as many as x_r has. Nothing is masked: no score is exactly
0 but by accident. ``bn_momentum`` is 0.1: evaluation should not depend on the last batch. Warm-up, cosine and length
are those of all methods. The released form is trained by AdamW with the decay of all methods. Its network is held
against numbers of the released code in the tests.

In training, batch norm sees the pictures of one process and of one of ``accumulate`` parts: either changes numbers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib import scores
from hrcf_lib.config import setting
from hrcf_lib.losses import ranking_loss
from hrcf_lib.method import Method, finite
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.settings import MethodConfig

TABLE_3 = {  # row of the paper's Table 3 -> changes of the config, for ``studies.run_all``
    "Standard region features": {"region_block": False, "scene_block": False},
    "RCB alone": {"scene_block": False},
    "SCB alone": {"region_block": False},
    "BiAM (RCB + SCB)": {},
}
SLOPE = 0.2  # of the leaky ReLU
DROP_REGION, DROP_SCENE = 0.1, 0.2  # dropout in the region block, and on x_g


@dataclass(frozen=True)
class BiAMConfig(MethodConfig):
    """Default values of the paper (Sec. 3, Implementation Details). ``before``: of the released code."""

    method = "biam"
    small = {"channels": 128}  # the mini VLP's regions have 128 numbers

    settings: str = setting("paper", choices=("paper",), before="released")  # "released": ``BiAMReleasedConfig``
    channels: int = setting(512, low=1, high=65_536)  # d_r, width of both blocks
    heads: int = setting(8, low=1, high=1_024)  # H of the region block; they share the channels
    topk: int = 10  # k, regions averaged for each label
    biases: bool = setting(False, before=True)  # of the matrices of Eqs. 1, 2, 4 and 6
    scene_value: str = setting("latent", choices=("latent", "convolved"), before="convolved")  # v^g: h_r, as in Eq. 6
    scene_shortcut: str = setting("latent", choices=("latent", "attended"), before="attended")  # + h_r, as in Eq. 8
    region_block: bool = setting(True, before=True)  # off: Table 3 without RCB
    scene_block: bool = setting(True, before=True)  # off: Table 3 without SCB; both off: its "standard region features"
    classify: str = setting("regions", choices=("regions", "pooled"), scores=True, before="regions")  # pooled: Fig. 5
    map_side: int | None = setting(None, low=1, before=None)  # h = w of Fig. 7; None: the VLP's own
    ranking_reduction: str = "sum"  # the letter of Eq. 10
    optimizer: str = "adam"
    weight_decay: float = 0.0  # silent
    bn_momentum: float = 0.1  # weight of the last batch in the running statistics; released: 0.99
    beta1: float = 0.5  # of Adam. Released script for NUS-WIDE: 0.9
    glove: str | None = None  # path of a GloVe text file; None: text embeddings of the template
    glove_missing: str = setting("error", choices=("error", "skip"))  # skip: words that the file lacks are left out

    def __post_init__(self):
        super().__post_init__()
        if self.channels % self.heads:
            raise ValueError(f"channels = {self.channels} cannot be shared by heads = {self.heads}: give a multiple")
        for name in ("beta1", "bn_momentum"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be below 1")


@dataclass(frozen=True)
class BiAMReleasedConfig(BiAMConfig):
    """Default values of the released code, except optimiser, weight decay and ``bn_momentum``."""

    small = {}

    settings: str = setting("released", choices=("released",), before="released")
    channels: int = setting(256, low=1, high=65_536)
    heads: int = setting(4, low=1, high=1_024)  # released script for NUS-WIDE: 8
    topk: int = 6
    biases: bool = setting(True, before=True)
    scene_value: str = setting("convolved", choices=("latent", "convolved"), before="convolved")
    scene_shortcut: str = setting("attended", choices=("latent", "attended"), before="attended")
    ranking_reduction: str = "violations"
    optimizer: str = "adamw"
    weight_decay: float = 0.05


class BiAM(Method):
    """Regions enriched by ``BiLevelAttention`` are the embeddings; the VLP is frozen; labels enter at the very end."""

    title, Config = "BiAM", BiAMConfig
    about = "BiAM: bi-level attention (Narayan, Gupta et al., ICCV 2021)."
    trainable, independent_labels = {"images": ("network.",), "prompts": ()}, True
    trained_blocks = 0

    def build(self) -> None:
        """The network, with weights drawn as torch draws them.

        Raises ``ValueError`` for a map larger than the VLP's, or fewer regions than ``topk``.
        """
        c, D, N = self.config, self.vlp.D, self.vlp.N
        if c.map_side is not None and c.map_side > N:
            raise ValueError(
                f"map_side = {c.map_side}: {self.vlp.name} gives a map of {N} x {N}; choose from 1 to {N}, or None"
            )
        (side,) = self.region_sides
        if c.classify == "regions" and c.topk > side**2:
            raise ValueError(
                f"topk = {c.topk} of {side**2} regions ({side} x {side}): choose from 1 to {side**2}, or a larger map"
            )
        label_width = word_vectors.label_width(self.vlp, c)
        form = {name: getattr(c, name) for name in FORM}
        self.network = BiLevelAttention(D, D, c.channels, c.heads, label_width, D, c.bn_momentum, **form)

    @property
    def region_sides(self) -> list[int]:
        """One map, of the VLP's positions or coarser."""
        return [self.config.map_side or self.vlp.N]

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) of the whole image tower -> e_p (B, D), and e_f as regions (B, map_side^2, d_f).

        d_f is D with both blocks, otherwise ``channels``.
        """
        e_p, x_r = self.vlp.teacher(trunk), self.vlp.dense(trunk)  # (B, D), (B, N*N, D)
        x_r = x_r.transpose(1, 2).unflatten(2, (self.vlp.N, self.vlp.N))  # (B, D, N, N)
        if self.config.map_side is not None:
            x_r = F.adaptive_avg_pool2d(x_r, self.config.map_side)  # (B, D, map_side, map_side)
        return e_p, self.network(x_r, e_p)

    def label_embeddings(self, names) -> Tensor:
        """(K, D), or (K, width) with ``glove``: a_k, of unit length, never trained. Raises as ``fixed_prompts`` and
        ``word_vectors.unit_vectors``."""
        return word_vectors.unit_vectors(self.vlp, names, self.config)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), which is not used, (B, J, d_f), (K, ·) -> (B, K), any real number.

        Pooled, the mean of e_f is classified (Fig. 5). Eq. 1 is linear in e_f, so that is top-k pooling with k = J.
        """
        if self.config.classify == "pooled":
            regions = regions.mean(dim=1, keepdim=True)  # (B, 1, d_f)
        return scores.pool(regions, self.network.classifiers(label_embeddings), self.config.topk)  # Eq. 1

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Ranking alone (Eq. 10). Raises ``FloatingPointError`` for scores that are not finite."""
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        return {"ranking": ranking_loss(s, labels, self.config.ranking_reduction)}

    def weights(self, side: str) -> dict[str, float]:
        """The one part of the loss."""
        return {"ranking": 1.0}

    def groups(self, side: str) -> list[dict]:
        """As in every method, with ``beta1``."""
        return [group | {"betas": (self.config.beta1, 0.999)} for group in super().groups(side)]


class BiAMReleased(BiAM):
    """BiAM as its released code has it."""

    Config = BiAMReleasedConfig


FORM = ("biases", "scene_value", "scene_shortcut", "region_block", "scene_block")  # fields that say what is built


class BiLevelAttention(nn.Module):
    r"""The network of BiAM, without knowing where its features come from. Its defaults are the released form.

    Args:
        in_channels: of the region features x_r.
        global_width: entries of the global feature x_g.
        channels: d_r, width of both blocks.
        heads: H of the region block; a divisor of ``channels``.
        label_width: entries of a label vector a_k.
        out: entries of an enriched region e_f, if both blocks are there; otherwise it has ``channels``.
        momentum: of batch norm, in torch's meaning.
        biases, scene_value, scene_shortcut, region_block, scene_block: as in ``BiAMConfig``.
    """

    def __init__(
        self,
        in_channels: int,
        global_width: int,
        channels: int,
        heads: int,
        label_width: int,
        out: int,
        momentum: float = 0.1,
        *,
        biases: bool = True,
        scene_value: str = "convolved",
        scene_shortcut: str = "attended",
        region_block: bool = True,
        scene_block: bool = True,
    ):
        super().__init__()
        both = region_block and scene_block
        self.entry = Conv3x3(in_channels, channels, momentum)
        self.region = RegionContext(channels, heads, biases) if region_block else None
        scene = (channels, global_width, momentum, biases, scene_value, scene_shortcut)
        self.scene = SceneContext(*scene) if scene_block else None
        self.join = nn.Conv2d(2 * channels, out, 1) if both else None  # c^f
        self.classifiers = nn.Linear(label_width, out if both else channels, bias=biases)  # W_a: a_k -> what e_f meets

    def forward(self, x_r: Tensor, x_g: Tensor) -> Tensor:
        """(B, in_channels, N, N), (B, global_width) -> e_f (B, N^2, out or channels). Labels take no part."""
        h = self.entry(x_r)  # h_r (B, d_r, N, N)
        enriched = [self.region(h)] if self.region else []  # e_r (B, d_r, N, N)
        enriched += [self.scene(h, x_g)] if self.scene else []  # e_g (B, d_r, N, N)
        if self.join:
            e_f = F.leaky_relu(self.join(torch.cat(enriched, dim=1)), SLOPE)  # (B, out, N, N)  Eq. 9
        else:
            e_f = enriched[0] if enriched else h  # Table 3: RCB or SCB alone, or the standard region features
        return e_f.flatten(2).transpose(1, 2)  # (B, N*N, out or d_r)


class Conv3x3(nn.Sequential):
    """BN(ReLU(Conv(x))), norm last: (B, ·, N, N) -> (B, H, N, N)."""

    def __init__(self, in_channels: int, channels: int, momentum: float):
        norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(), norm)


class RegionContext(nn.Module):
    """Region block (RCB): each position looks at all others; (B, d_r, N, N) -> e_r (B, d_r, N, N)."""

    def __init__(self, channels: int, heads: int, biases: bool = True):
        super().__init__()
        self.heads = heads
        maps = (nn.Conv2d(channels, channels, 1, bias=biases) for _ in range(4))
        self.query, self.key, self.value, self.output = maps
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)  # c^r

    def forward(self, h: Tensor) -> Tensor:
        """Attention, then a network at each position, each with a short cut."""
        split = lambda x: x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, H, N*N, d_r / H)
        q, k, v = (split(conv(h)) for conv in (self.query, self.key, self.value))  # Eq. 2
        drop = DROP_REGION if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)  # (B, H, N*N, d_r / H)  Eq. 3
        a = a.transpose(2, 3).reshape(h.shape)  # (B, d_r, N, N), heads beside each other
        o = F.dropout(self.output(a), DROP_REGION, self.training) + h  # Eq. 4, and the short cut
        return self.narrow(F.relu(self.widen(o))) + o  # Eq. 5


class SceneContext(nn.Module):
    """Scene block (SCB): the global feature opens and closes channels; (B, d_r, N, N), (B, ·) -> e_g (B, d_r, N, N)."""

    def __init__(
        self, channels: int, global_width: int, momentum: float, biases=True, value="convolved", shortcut="attended"
    ):
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 1) if value == "convolved" else None
        self.key = nn.Linear(global_width, channels, bias=biases)  # W^g
        self.refine = Conv3x3(channels, channels, momentum)  # c^g
        self.shortcut = shortcut

    def forward(self, h: Tensor, x_g: Tensor) -> Tensor:
        """One gate per channel, for all positions."""
        v = F.leaky_relu(self.value(h), SLOPE) if self.value else h  # v^g (B, d_r, N, N)  Eq. 6
        q = v.mean(dim=(2, 3))  # (B, d_r)  Eq. 6
        k = self.key(F.dropout(x_g, DROP_SCENE, self.training))  # (B, d_r)  Eq. 6
        a = v * torch.sigmoid(q * k)[:, :, None, None]  # (B, d_r, N, N)  Eq. 7
        return self.refine(a) + (h if self.shortcut == "latent" else a)  # Eq. 8
