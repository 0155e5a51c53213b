r"""CLIP-FT (Table I of MKT and of HRCF): the VLP's image tower, fine-tuned on the seen labels with the ranking loss.

$$s = \frac{\tilde s}{\lVert \tilde s \rVert_2}, \quad \tilde s_k = e_g \cdot t_k, \qquad
  \min \; \frac{1}{V} \sum_{p,\,n} \max(0,\; 1 + s_n - s_p)$$

**The papers**: "CLIP fine-tuned with ranking loss", no more; the text side is frozen. **Released code**: MKT's model
has a switch for its global stream alone (``global_only``), which divides the scores by their norm; a test compares our
scores with that. **We** train all blocks, the final norm and the projection, with MKT's layer decay, and leave the
patch embedding as it is; there is no distillation, which is what sets MKT and HRCF apart from it. V counts
the violated pairs.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hrcf_lib import scores
from hrcf_lib.methods.blocks import LastBlocks, fixed_prompts
from hrcf_lib.methods.settings import MethodConfig


@dataclass(frozen=True)
class CLIPFTConfig(MethodConfig):
    """Where the papers are silent, values are MKT's, except the learning rate (ours): all blocks are trained."""

    method = "clip_ft"

    blocks: int | None = None  # last blocks of the ViT that are trained; None: all of them
    distillation: float = 0.0
    lr: float = 1e-4  # of norm and projection; a block learns at lr * layer_decay ** (blocks above it + 1)


class CLIPFT(LastBlocks):
    """Only the global embedding takes part; there are no regions."""

    title, Config = "CLIP-FT", CLIPFTConfig
    about = "CLIP-FT: the VLP's image tower, fine-tuned on the seen labels with the ranking loss."

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk tokens (B, 1 + N^2, C) -> e_g (B, D), and no regions (B, 0, D)."""
        e_g = self.head(self.ln_post(self.block(trunk)[:, 0]))  # (B, D)
        return e_g, e_g[:, None][:, :0]

    def label_embeddings(self, names) -> Tensor:
        """(K, D) of the template, never trained. Raises ``ValueError`` for names that it cannot take."""
        return fixed_prompts(self.vlp, names, self.config.template)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D) -> (B, K), of norm 1 over the labels with ``normalize_fusion``."""
        s = scores.global_scores(e_g, label_embeddings)  # (B, K)
        return F.normalize(s, dim=-1) if self.config.normalize_fusion else s
