r"""CLIP-FT (Table I of MKT and of HRCF): the VLP's image tower, fine-tuned on the seen labels with the ranking loss.

$$s = \frac{\tilde s}{\lVert \tilde s \rVert_2}, \quad \tilde s_k = e_g \cdot t_k, \qquad
  \min \; \frac{1}{V} \sum_{p,\,n} \max(0,\; 1 + s_n - s_p)$$

**The papers**: "CLIP fine-tuned with ranking loss", no more; the text side rests. **Released code**: MKT's model has a
switch for its global stream alone (``global_only``), which divides the scores by their norm; we hold our scores against
that. **We** train all blocks, the final norm and the projection, with MKT's layer decay, and leave the patch embedding
as it is; there is no distillation, which is what sets MKT and HRCF apart from it. V counts the violated pairs.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib import scores
from hrcf_lib.baselines.settings import MethodConfig
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method


@dataclass(frozen=True)
class CLIPFTConfig(MethodConfig):
    """Values are MKT's where the papers are silent."""

    method = "clip_ft"

    blocks: int | None = None  # last blocks of the ViT that are trained; None: all of them
    distillation: float = 0.0
    lr: float = 1e-4  # of norm and projection; a block learns at lr * layer_decay ** (blocks above it + 1)


class CLIPFT(Method):
    """Only the global embedding takes part; there are no regions."""

    title, Config = "CLIP-FT", CLIPFTConfig
    trainable = {"images": ("block.", "ln_post.", "head."), "prompts": ()}

    @property
    def blocks(self) -> int:
        """As the config says, or all."""
        return self.vlp.depth if self.config.blocks is None else self.config.blocks

    def build(self) -> None:
        """Copies of the VLP's last blocks, final norm and projection."""
        self.block, self.ln_post, self.head = image_tower(self.vlp, self.blocks)

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

    def lr_scale(self, side: str, name: str) -> float:
        """Layer decay: a factor ``layer_decay`` for each step down from norm and projection."""
        return layer_decay(name, self.blocks, self.config.layer_decay)


def image_tower(vlp, blocks: int) -> tuple[nn.Sequential, nn.Module, nn.Linear]:
    """Trainable copies of the last ``blocks`` blocks, the final norm and the projection, which starts as the VLP's."""
    visual = vlp.model.visual
    last = list(visual.transformer.resblocks)[vlp.depth - blocks :]
    head = nn.Linear(vlp.C, vlp.D, bias=False)
    with torch.no_grad():
        head.weight.copy_(visual.proj.T)
    parts = nn.Sequential(*copy.deepcopy(last)), copy.deepcopy(visual.ln_post)
    return *(part.requires_grad_(True) for part in parts), head


def layer_decay(name: str, blocks: int, decay: float) -> float:
    """``decay ** (blocks - i)`` for a parameter of ``block.i``, the last of them at ``decay``; 1 for all others."""
    words = name.split(".")
    return decay ** (blocks - int(words[1])) if words[0] == "block" else 1.0


@torch.no_grad()
def fixed_prompts(vlp, names, template: str) -> Tensor:
    """(K, D) embeddings of names in a template. Raises ``ValueError`` for names that the text tower cannot take."""
    return vlp.encode_text([template.format(name) for name in check_names(names)])
