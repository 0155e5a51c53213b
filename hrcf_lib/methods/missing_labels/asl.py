r"""ASL: a linear layer on the VLP's global embedding, trained with the asymmetric loss. What a plain classifier gives.

$$s_k = w_k \cdot \frac{e_p}{\lVert e_p \rVert_2} + b_k$$

**The paper** (Ridnik et al., ICCV 2021) trains a whole network with the loss and complete labels: gamma+ 0, gamma- 4.
**We** take its loss alone, with the frozen features that every method here has, and the exponents 1 and 2 of the
methods for missing labels. ``unknown`` says what an unknown label counts as: "ignored", or "negative", the usual way
out with one positive per picture ("assume negative", Cole et al., CVPR 2021).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.methods.missing_labels.base import Partial, check_categories
from hrcf_lib.methods.settings import PartialConfig

RARE = 0.02  # probability of each label at the start


@dataclass(frozen=True)
class ASLConfig(PartialConfig):
    """``prompt_lr`` is the rate of the layer."""

    method = "asl"
    trains = "prompts"

    prompt_lr: float = 3e-2  # chosen on val of earlier scenes


class ASL(Partial):
    """What learns is a weight vector and an offset for each label."""

    title, Config = "ASL", ASLConfig
    about = "ASL: a linear layer on the VLP's global embedding, trained with the asymmetric loss."
    trainable = {"images": (), "prompts": ("head.",)}
    text_prefixes, open_vocabulary = ("head.",), False

    def build(self) -> None:
        """The layer: weights as torch draws them, offsets at which labels are rare."""
        check_categories(self.config)
        self.head = nn.Linear(self.vlp.D, len(self.config.categories))
        nn.init.constant_(self.head.bias, math.log(RARE / (1 - RARE)))

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p of unit length (B, D), and no regions (B, 0, D)."""
        e = F.normalize(self.vlp.teacher(trunk), dim=-1)  # (B, D)
        return e, e[:, None][:, :0]

    def label_embeddings(self, names) -> Tensor:
        """(K, D + 1): weights and offset. Raises ``ValueError`` for names that are none of its categories."""
        k = self.columns(names)
        return torch.cat([self.head.weight[k], self.head.bias[k, None]], dim=1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D + 1) -> logits (B, K)."""
        w, b = label_embeddings[:, :-1], label_embeddings[:, -1]  # (K, D), (K,)
        return e_g @ w.T + b
