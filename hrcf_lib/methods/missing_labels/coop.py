r"""CoOp: one learnt prompt that all labels share, and the VLP's global embedding.

$$t_k = \mathrm{TextTower}([v_1, \ldots, v_M, name_k, \text{.}]), \qquad s_k = \cos(e_p, t_k) / \tau - \beta$$

**The paper** (Zhou et al., IJCV 2022) learns the M vectors for pictures of one class each, with a softmax over the
classes at the VLP's own temperature and cross-entropy. It tries several M up to 16, contexts that all classes share and
one of each class's own, the name at the end and in the middle, vectors that start from words and from normal numbers.
**Released code** (KaiyangZhou/CoOp) starts from normal numbers of deviation 0.02 where no words are given, both
embeddings are of unit length, and the temperature is fixed. Its prompt ends in "name.".

**We** take the shared context of 16 with the name at the end, and say yes or no to each label by itself: a sigmoid,
with a temperature and an offset that are learnt (``base.Likeness``), under the loss of known labels that all methods
for missing labels here have. Both are fitted to known labels before the context learns (``base.Partial.begin``).
AdamW for their SGD. Any name can be asked. ``class_specific`` gives each label a context of its own, as the paper's
"class-specific" one and "csp" in Table 4 of the semantic-aware paper; the model then answers for its categories alone.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hrcf_lib.config import setting
from hrcf_lib.methods.missing_labels.base import Contexts, Likeness, Partial, check_categories, cosines
from hrcf_lib.methods.settings import PartialConfig


@dataclass(frozen=True)
class CoOpConfig(PartialConfig):
    """The paper's number of vectors. The rate was chosen on val of earlier scenes; temperature and level are those of a
    model before training, which begins by fitting both."""

    method = "coop"
    trains = "prompts"

    class_specific: bool = setting(False, before=False)  # a context of each label's own
    context_std: float = 0.0  # deviation of the normal numbers that vectors start from; 0: they start from words
    tau: float = 0.03  # temperature at the start
    level: float = 0.65  # cosine of a probability of 1/2 at the start: beta = level / tau
    prompt_lr: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        check_tau(self)


def check_tau(config) -> None:
    """Raise ``ValueError`` for a config whose temperature is 0."""
    if not config.tau:
        raise ValueError("tau = 0 must be above 0")


def number_of_contexts(config) -> int:
    """One for all labels, or one for each. Raises ``ValueError`` for the latter without categories."""
    if config.class_specific:
        check_categories(config)
    return len(config.categories) if config.class_specific else 1


class CoOp(Partial):
    """What learns are the vectors of the prompt, the temperature and the offset."""

    title, Config = "CoOp", CoOpConfig
    about = "CoOp: one learnt prompt that all labels share, and the VLP's global embedding."
    trainable = {"images": (), "prompts": ("prompt.", "likeness.")}
    text_prefixes = ("prompt.", "likeness.")  # the image side is fixed while these learn

    def build(self) -> None:
        """Prompt, temperature and offset."""
        c = self.config
        self.open_vocabulary = not c.class_specific
        self.prompt = Contexts(self.vlp, c.prompt_vectors, number_of_contexts(c), c.context_std)
        self.likeness = Likeness(c.tau, -c.level / c.tau)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p of unit length (B, D), and no regions (B, 0, D)."""
        e = F.normalize(self.vlp.teacher(trunk), dim=-1)  # (B, D)
        return e, e[:, None][:, :0]

    def label_embeddings(self, names) -> Tensor:
        """t_k of unit length (K, D), of any names, or of its categories where each has a context of its own.

        Raises ``ValueError`` for other names, and those that the text tower cannot take.
        """
        own = self.columns(names) if self.config.class_specific else None
        return F.normalize(self.prompt(self.vlp, names, own), dim=-1)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D) -> logits (B, K). A label's does not depend on the others."""
        return self.likeness(cosines(e_g, label_embeddings))
