r"""Pre-CLIP (Table V of HRCF), CLIP-ML (Table I of OVML-VLP): the VLP as it comes, one global embedding a picture.

$$s_k = e_p \cdot \bar t_k, \qquad \bar t_k = \frac{1}{|T|} \sum_{\tau \in T} \mathrm{TextTower}(\tau(name_k))$$

**The papers** give numbers and no prompt. **Released code**: none; MKT's and BiAM's repositories do not hold it.
**We** score a single template or the mean over an ensemble T, as CLIP's authors do (Radford et al., ICML 2021, Sec.
3.1.4, there of unit length), by dot product, cosine or softmax over the labels; which of them is chosen on val.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrcf_lib.baselines.settings import MethodConfig
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method
from hrcf_lib.names import check_known
from hrcf_lib.zero_shot import PROMPTS, SIMILARITIES, prompted


@dataclass(frozen=True)
class PreCLIPConfig(MethodConfig):
    """Nothing is trained; ``prompt_set`` and ``similarity`` are what there is to choose."""

    method = "pre_clip"

    prompt_set: str = "photo"  # key of ``zero_shot.PROMPTS``: a single template, or "ensemble"
    similarity: str = "dot"  # key of ``zero_shot.SIMILARITIES``

    def __post_init__(self):
        super().__post_init__()
        check_known([self.prompt_set], list(PROMPTS), "unknown prompt_set")
        check_known([self.similarity], list(SIMILARITIES), "unknown similarity")


class PreCLIP(Method):
    """The plain VLP; ``fit`` has nothing to learn and takes no step."""

    title, Config = "Pre-CLIP", PreCLIPConfig
    trainable = {"images": (), "prompts": ()}
    blocks = 0

    def build(self) -> None:
        """Nothing but the VLP."""

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D), and no regions (B, 0, D)."""
        e_p = self.vlp.teacher(trunk)  # (B, D)
        return e_p, e_p[:, None][:, :0]

    @torch.no_grad()
    def label_embeddings(self, names) -> Tensor:
        """(K, D): the mean over the templates of ``prompt_set``. Raises ``ValueError`` as ``VLP.encode_text``."""
        return prompted(self.vlp, check_names(names), self.config.prompt_set)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D) -> (B, K)."""
        return SIMILARITIES[self.config.similarity](e_g, label_embeddings)
