r"""DualCoOp: two learnt prompts, one for "present" and one for "absent", and regions that the first one chooses.

$$t^\pm_k = \mathrm{TextTower}([v^\pm_1, \ldots, v^\pm_M, name_k, \text{.}]), \qquad
  s^\pm_{jk} = \gamma \cos(f_j, t^\pm_k), \qquad a_{jk} = \mathrm{softmax}_j(s^+_{jk}),$$
$$S^\pm_k = \eta \sum_j a_{jk} s^\pm_{jk}, \qquad
  p_k = \frac{\exp S^+_k}{\exp S^+_k + \exp S^-_k} = \mathrm{sigmoid}(S^+_k - S^-_k)$$

**The paper** (Sun et al., NeurIPS 2022) projects each position of the feature map into the joint space, without the
pooling of the VLP, weighs positions for both prompts by the softmax of the positive one (class-specific region feature
aggregation), compares the two scores of a label alone, and trains with the asymmetric loss of known labels.
**Released code** (sunxm2357/DualCoOp): both embeddings of unit length, gamma 20 and eta 5; 16 vectors each, shared by
all labels, drawn with deviation 0.02; exponents 1 and 2; a ResNet-101 (50 epochs of SGD at 2e-3).

**We** take for f_j the ViT's patch tokens behind its last norm and projection, in which positions have already looked
at each other; gamma as released, and gamma eta as the start of a temperature that is learnt, with an offset beside it
(``base.Likeness``): both are fitted to the known labels before prompts learn (``base.Partial.begin``). The positive
prompt starts from words, since of drawn vectors the small text tower of MojiScenes makes little; the negative one is
drawn, as released: from the same words both would say the same. Drawn, it costs some points before any step, since what
it says of a label is noise; ``negative_words`` are others to start from. ``class_specific`` gives each label a pair of
its own, as TRM-ML's Table 5 counts them (1.25 M numbers on COCO). AdamW for their SGD. Any name can be asked, of pairs
of their own the categories alone. The softmax over positions is a map of where a label is seen (``maps``).
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.config import setting
from hrcf_lib.engine import chunks
from hrcf_lib.methods.missing_labels.base import Contexts, Likeness, Partial, cosines
from hrcf_lib.methods.missing_labels.coop import number_of_contexts
from hrcf_lib.methods.settings import PartialConfig


@dataclass(frozen=True)
class DualCoOpConfig(PartialConfig):
    """Number of the vectors and both scales are those of the released code; start and rate were chosen on val of
    earlier scenes."""

    method = "dual_coop"
    trains = "prompts"

    context_std: float = 0.0  # deviation of the normal numbers that vectors start from (released: 0.02); 0: from words
    negative_std: float = 0.02  # likewise, of the prompt for "absent"
    negative_words: str = setting("", before="")  # words that it starts from instead; "": drawn
    class_specific: bool = setting(False, before=False)  # a pair of each label's own
    sharpness: float = 20.0  # gamma, what cosines are multiplied by in the softmax over positions
    scale: float = 5.0  # eta, what the pooled scores are multiplied by
    prompt_lr: float = 3e-3


class DualCoOp(Partial):
    """What learns are the vectors of both prompts."""

    title, Config = "DualCoOp", DualCoOpConfig
    about = "DualCoOp: one learnt prompt for present labels, one for absent ones."
    map_kind = "attention"
    trainable = {"images": (), "prompts": ("prompt.", "likeness.")}
    text_prefixes = ("prompt.", "likeness.")

    def build(self) -> None:
        """Two prompts, drawn one after the other."""
        c = self.config
        self.open_vocabulary = not c.class_specific
        make = partial(Contexts, self.vlp, c.prompt_vectors, number_of_contexts(c))
        positive = make(c.context_std)
        negative = make(0.0, c.negative_words) if c.negative_words else make(c.negative_std)
        self.prompt = nn.ModuleDict({"positive": positive, "negative": negative})
        self.likeness = Likeness(1 / (c.scale * c.sharpness), 0.0)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D), which is not used, and f_j (B, N^2, D)."""
        return self.vlp.teacher(trunk), F.normalize(self.vlp.dense(trunk), dim=-1)

    def label_embeddings(self, names) -> Tensor:
        """t+ and t- beside each other, of unit length each (K, 2 D). Takes names and raises as CoOp's."""
        own = self.columns(names) if self.config.class_specific else None
        pair = [F.normalize(prompt(self.vlp, names, own), dim=-1) for prompt in self.prompt.values()]
        return torch.cat(pair, dim=1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""(B, D), (B, J, D), (K, 2 D) -> logits (B, K): S+ - S-. A label's does not depend on the others.

        Labels are taken in parts of at most ``chunks.LARGE`` scores of regions, each computed again for the backward
        pass where there are several.
        """
        B, J, _ = regions.shape
        part = chunks.labels_at_a_time(len(label_embeddings), B * J)
        several = part < len(label_embeddings) and torch.is_grad_enabled()
        parts = label_embeddings.split(part)
        x = torch.cat([chunks.recomputed(self._pooled, regions, own, again=several) for own in parts], dim=1)  # (B, K)
        return self.likeness(x)

    def maps(self, regions: Tensor, t: Tensor) -> Tensor:
        """Where it looks for each label: (B, J, D), (K, 2 D) -> a (B, K, J), which sums to 1 over J."""
        positive, _ = t.chunk(2, dim=1)
        return (self.config.sharpness * cosines(regions, positive)).softmax(dim=1).transpose(1, 2)

    def _pooled(self, regions: Tensor, t: Tensor) -> Tensor:
        positive, negative = (cosines(regions, own) for own in t.chunk(2, dim=1))  # (B, J, K)
        a = (self.config.sharpness * positive).softmax(dim=1)  # (B, J, K)
        return (a * (positive - negative)).sum(dim=1)  # (B, K)  (S+ - S-) / (gamma eta)
