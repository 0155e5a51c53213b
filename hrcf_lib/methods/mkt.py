r"""MKT: multi-modal knowledge transfer (He et al., AAAI 2023). Two streams, distillation, then prompt tuning.

$$s^{local}_k = \frac{1}{16} \sum_{j \in \mathrm{top}_{16}(k)} p_j \cdot t_k, \qquad s^{global}_k = e_g \cdot t_k,$$
$$s = \frac12 \frac{s^{local}}{\lVert s^{local} \rVert_2} + \frac12 \frac{s^{global}}{\lVert s^{global} \rVert_2}$$

Stage 1 trains the image side by ranking loss plus $\lVert e_g - e_p \rVert_1$; stage 2 the token table of the text
tower, by ranking loss alone, in "There is a {name} in the scene" with the rows of the name put back at every pass.

**The paper** says 15.2 M parameters for the image side. **The released code** (github.com/sunanhe/MKT) builds and
counts a projection MLP of 0.66 M that its forward never uses: without it there are 14.6 M. The L1 is a mean over D;
embeddings are not of unit length; patches and class token share one projection; the test set is scored each epoch.
**We** leave the MLP out (``unused_parameters`` counts it), give stages 1 and 2 the epochs and batches that HRCF's image
side and prompts have (released: 20 and 4 epochs, by default 64 pictures in either), and choose nothing on test. Scores,
gradients, parameter groups, learning rates and prompts are held against numbers of the released code in the tests.
"""

from dataclasses import dataclass

from torch import Tensor

from hrcf_lib import scores
from hrcf_lib.config import Config, Phase, setting
from hrcf_lib.engine.schedules import learning_rate
from hrcf_lib.methods.blocks import LastBlocks
from hrcf_lib.methods.settings import MethodConfig, two_stages
from hrcf_lib.prompts import PromptLearner


@dataclass(frozen=True)
class MKTConfig(MethodConfig):
    """Values of the released code: learning rates, decay, k and both minima."""

    method = "mkt"

    blocks: int = setting(2, high=1_000)  # last blocks of the ViT that are trained; the other ten of twelve are frozen
    topk: int = 16  # regions a label is averaged over
    lam: float = 0.5  # weight of the local stream
    prompt: str = "tuning"  # stage 2; "fixed" leaves it out
    prompt_min_lr: float = 1e-8  # end of the cosine of stage 2

    @classmethod
    def budget(cls, config: Config) -> tuple[Phase, ...]:
        """Stage 1, then stage 2."""
        return two_stages(config)


class MKT(LastBlocks):
    """Global stream and local stream share blocks, final norm and projection."""

    title, Config = "MKT", MKTConfig
    about = "MKT: multi-modal knowledge transfer (He et al., AAAI 2023)."
    has_lambda, map_kind = True, "scores"
    trainable = LastBlocks.trainable | {"prompts": ("prompt.",)}

    def build(self) -> None:
        """The last blocks, and prompts that start as the VLP's own."""
        super().build()
        self.prompt = PromptLearner(self.vlp, self.config.prompt, self.config.prompt_vectors)

    @property
    def unused_parameters(self) -> int:
        """Those of the MLP that the released code builds, counts and never uses: two layers, C to D and D to D."""
        C, D = self.vlp.C, self.vlp.D
        return (C + 1) * D + (D + 1) * D

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk tokens (B, 1 + N^2, C) -> e_g (B, D) of the class token and all patches (B, N^2, D)."""
        tokens = self.head(self.ln_post(self.block(trunk)))  # (B, 1 + N*N, D)
        return tokens[:, 0], tokens[:, 1:]

    def label_embeddings(self, names) -> Tensor:
        """(K, D). Raises ``ValueError`` for names that it cannot take."""
        return self.prompt(self.vlp, names)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), (B, N^2, D), (K, D) -> (B, K), in -1..1 where each stream is divided by its norm, as released.

        In evaluation mode the weight of the local stream and the norms are those of test time (``scores.mixing``).
        """
        local = scores.pool(regions, label_embeddings, self.config.topk)  # (B, K)
        s_global = scores.global_scores(e_g, label_embeddings)  # (B, K)
        return scores.fuse(s_global, local, *scores.mixing(self.config, at_test=not self.training))

    def learning_rate(self, side: str, epoch: float, epochs: int) -> float:
        """Stage 1: warm-up and cosine to ``min_lr``; stage 2: cosine to ``prompt_min_lr``."""
        if side == "prompts":
            return learning_rate(epoch, epochs, self.config.prompt_lr, self.config.prompt_min_lr, 0.0)
        return super().learning_rate(side, epoch, epochs)
