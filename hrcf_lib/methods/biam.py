r"""BiAM: bi-level attention (Narayan, Gupta et al., ICCV 2021). A small network enriches regions; each scores alone.

$$h = \mathrm{BN}(\mathrm{ReLU}(\mathrm{Conv}_{3\times3}(x_r))), \qquad
  o = W_o\, \mathrm{softmax}(Q K^\top / \sqrt{d})\, V + h, \quad e_r = W_2\, \mathrm{ReLU}(W_1 o) + o,$$
$$v = \mathrm{LReLU}(W_v h), \quad c = \sigma(\bar v \odot W_g x_g) \odot v, \qquad
  e_g = c + \mathrm{BN}(\mathrm{ReLU}(\mathrm{Conv}_{3\times3}(c))),$$
$$e_f = \mathrm{LReLU}(W_f\, [e_r; e_g]), \qquad
  s_k = \frac16 \sum_{j \in \mathrm{top}_6(k)} e_{f,j} \cdot (W a_k + b)$$

**The paper** takes region features x_r (512 channels) and a global feature x_g (4,096) of a fixed VGG-19 and GloVe
vectors a_k (300): 3,828,480 parameters, the 3.8 M of HRCF's Table VI. The loss is the ranking loss alone.

**The released code** (github.com/akshitac8/BiAM): k = 6; queries and values of the scene block come from one
convolution, which it computes twice; attention scores that are exactly 0 are masked out; dropout of 0.1 in the region
block and 0.2 on x_g; a_k of unit length; scores not normalised. Batch norm has momentum 0.99, which is Keras's meaning
of the word: in torch it keeps the statistics of the last batch and forgets all others. Adam with L2 5e-4. By default
256 channels, 4 heads, beta1 0.5, 1e-3, optionally 3 epochs of warm-up and a cosine to 2e-4; its script for NUS-WIDE has
8 heads, beta1 0.9, 40 epochs with that warm-up and a cosine to 5e-4, that for Open Images 16 heads, beta1 0.9, 10
epochs at 1e-4. The test set is scored every tenth epoch; five more epochs on all training pictures follow.

**We** feed it the VLP, as "CLIP-BiAM" in Table II of OVML-VLP: x_r are the patch tokens after the last block, final
norm and projection, x_g is e_p, both at the VLP's own scale (batch norm follows the first convolution), and a_k is the
text embedding of a fixed template, or GloVe with ``glove``. Nothing is masked: no score is exactly 0 but by accident.
Heads and beta1 are the released defaults. ``bn_momentum`` is 0.1: evaluation should not depend on the last batch. The
optimiser is AdamW, as for every method here, its decay decoupled and not on biases; warm-up and cosine are those of all
methods. With ViT-B/16 there are 3,019,520 parameters with text embeddings and 2,910,976 with GloVe of 300. The network
is held against numbers of the released code in the tests.

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
from hrcf_lib.methods.blocks import fixed_prompts, patches
from hrcf_lib.methods.settings import MethodConfig

SLOPE = 0.2  # of the leaky ReLU
DROP_REGION, DROP_SCENE = 0.1, 0.2  # dropout in the region block, and on x_g


@dataclass(frozen=True)
class BiAMConfig(MethodConfig):
    """Default values of the released code, except weight decay and ``bn_momentum``."""

    method = "biam"

    channels: int = 256  # width of both blocks
    heads: int = 4  # of the region block; they share the channels. Released script for NUS-WIDE: 8
    topk: int = 6  # regions averaged for each label
    bn_momentum: float = 0.1  # weight of the last batch in the running statistics; released: 0.99
    beta1: float = 0.5  # of AdamW. Released script for NUS-WIDE: 0.9
    glove: str | None = None  # path of a GloVe text file; None: text embeddings of the template
    glove_missing: str = setting("error", choices=("error", "skip"))  # skip: words that the file lacks are left out

    def __post_init__(self):
        super().__post_init__()
        if not self.heads or not self.channels or self.channels % self.heads:
            raise ValueError(f"channels = {self.channels} cannot be shared by heads = {self.heads}: give a multiple")
        for name in ("beta1", "bn_momentum"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be below 1")


class BiAM(Method):
    """Regions enriched by ``BiLevelAttention`` are the embeddings; the ViT is frozen; labels enter at the very end."""

    title, Config = "BiAM", BiAMConfig
    about = "BiAM: bi-level attention (Narayan, Gupta et al., ICCV 2021)."
    trainable = {"images": ("network.",), "prompts": ()}
    trained_blocks = 0

    def build(self) -> None:
        """The network, with weights drawn as torch draws them."""
        c, D = self.config, self.vlp.D
        label_width = word_vectors.width(c.glove) if c.glove else D
        self.network = BiLevelAttention(D, D, c.channels, c.heads, label_width, D, c.bn_momentum)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D), and e_f as regions (B, N^2, D)."""
        e_p, x_r = self.vlp.teacher(trunk), patches(self.vlp, trunk)  # (B, D), (B, N*N, D)
        x_r = x_r.transpose(1, 2).unflatten(2, (self.vlp.N, self.vlp.N))  # (B, D, N, N)
        return e_p, self.network(x_r, e_p)

    def label_embeddings(self, names) -> Tensor:
        """(K, D), or (K, width) with ``glove``: a_k, of unit length, never trained. Raises as ``fixed_prompts`` and
        ``word_vectors.read_vectors``."""
        c = self.config
        if c.glove:
            a = word_vectors.read_vectors(c.glove, names, c.glove_missing).to(self.vlp.mean.device)
        else:
            a = fixed_prompts(self.vlp, names, c.template)
        return F.normalize(a, dim=-1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), which is not used, (B, N^2, D), (K, ·) -> (B, K), any real number."""
        return scores.pool(regions, self.network.classifiers(label_embeddings), self.config.topk)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Ranking alone. Raises ``FloatingPointError`` for scores that are not finite."""
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        return {"ranking": ranking_loss(s, labels, self.config.ranking_reduction)}

    def weights(self, side: str) -> dict[str, float]:
        """The one part of the loss."""
        return {"ranking": 1.0}

    def groups(self, side: str) -> list[dict]:
        """As in every method, with ``beta1`` of the released code."""
        return [group | {"betas": (self.config.beta1, 0.999)} for group in super().groups(side)]


class BiLevelAttention(nn.Module):
    r"""The network of BiAM, without knowing where its features come from.

    Args:
        in_channels: of the region features x_r.
        global_width: entries of the global feature x_g.
        channels: H, width of both blocks.
        heads: of the region block; a divisor of ``channels``.
        label_width: entries of a label vector a_k.
        out: entries of an enriched region e_f.
        momentum: of batch norm, in torch's meaning.
    """

    def __init__(self, in_channels, global_width, channels, heads, label_width, out, momentum: float = 0.1):
        super().__init__()
        self.entry = Conv3x3(in_channels, channels, momentum)
        self.region = RegionContext(channels, heads)
        self.scene = SceneContext(channels, global_width, momentum)
        self.join = nn.Conv2d(2 * channels, out, 1)
        self.classifiers = nn.Linear(label_width, out)  # a_k -> W a_k + b, which scores a region

    def forward(self, x_r: Tensor, x_g: Tensor) -> Tensor:
        """(B, in_channels, N, N), (B, global_width) -> e_f (B, N^2, out). Labels take no part."""
        h = self.entry(x_r)  # (B, H, N, N)
        e_r, e_g = self.region(h), self.scene(h, x_g)  # (B, H, N, N) each
        e_f = F.leaky_relu(self.join(torch.cat([e_r, e_g], dim=1)), SLOPE)  # (B, out, N, N)
        return e_f.flatten(2).transpose(1, 2)  # (B, N*N, out)


class Conv3x3(nn.Sequential):
    """BN(ReLU(Conv(x))), norm last: (B, ·, N, N) -> (B, H, N, N)."""

    def __init__(self, in_channels: int, channels: int, momentum: float):
        norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(), norm)


class RegionContext(nn.Module):
    """Region block (RCB): each position looks at all others; (B, H, N, N) -> e_r (B, H, N, N)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.widen, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Attention, then a network at each position, each with a short cut."""
        split = lambda x: x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, heads, N*N, d)
        q, k, v = (split(conv(h)) for conv in (self.query, self.key, self.value))
        drop = DROP_REGION if self.training else 0.0
        a = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)  # softmax(Q K^T / sqrt(d)) V
        a = a.transpose(2, 3).reshape(h.shape)  # (B, H, N, N), heads beside each other
        o = F.dropout(self.output(a), DROP_REGION, self.training) + h
        return self.narrow(F.relu(self.widen(o))) + o


class SceneContext(nn.Module):
    """Scene block (SCB): the global feature opens and closes channels; (B, H, N, N), (B, ·) -> e_g (B, H, N, N)."""

    def __init__(self, channels: int, global_width: int, momentum: float):
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 1)  # for the query too, which is its mean
        self.key = nn.Linear(global_width, channels)
        self.refine = Conv3x3(channels, channels, momentum)

    def forward(self, h: Tensor, x_g: Tensor) -> Tensor:
        """One gate per channel, for all positions."""
        v = F.leaky_relu(self.value(h), SLOPE)  # (B, H, N, N)
        k = self.key(F.dropout(x_g, DROP_SCENE, self.training))  # (B, H)
        gate = torch.sigmoid(v.mean(dim=(2, 3)) * k)  # (B, H)
        c = gate[:, :, None, None] * v
        return c + self.refine(c)
