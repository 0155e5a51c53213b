r"""TEMPLATE: copy this file, rename file, classes and ``method``, and enter it in ``registry.METHODS``. It works.

$$s_k = e \cdot t_k, \qquad e = W\, e_p + e_p$$

Here: one linear layer on the VLP's global embedding, trained with the ranking loss. The first lines say which
equations are computed, then **what the paper** states, **what its released code** does where they differ, and what
**we** chose. ``tests/methods/test_every_method.py`` runs this and every method in ``METHODS`` through the same tests. A
class outside this package is entered as ``methods.METHODS["my_method"] = MyMethod``, wherever it is to be loaded.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hrcf_lib.method import Method
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.settings import MethodConfig


@dataclass(frozen=True)
class TemplateConfig(MethodConfig):
    """One comment per field, with unit and place in the paper. Fields of ``Config`` may get other defaults here."""

    method = "template"  # the name in METHODS, lower case; no field, so without a type

    distillation: float = 0.0  # a field of Config: weight of the distillation loss
    scale: float = 1.0  # a field of its own, 0 or more; ``config.setting`` states other bounds, choices and uses


class Template(Method):
    """What learns is a linear layer that starts at zero, so that training starts from the VLP's own scores."""

    title, Config = "Template", TemplateConfig
    trainable = {"images": ("layer.",), "prompts": ()}  # beginnings of the names of parameters, for each side
    trained_blocks = 0  # of the ViT that come after the trunk: none, so ``trunk`` is the output of the last

    def build(self) -> None:
        """Make modules; ``self.vlp`` and ``self.config`` are there, and the random state is seeded."""
        self.layer = nn.Linear(self.vlp.D, self.vlp.D, bias=False)
        nn.init.zeros_(self.layer.weight)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) -> global embedding (B, D), and regions (B, J, D), here none."""
        e_p = self.vlp.teacher(trunk)  # (B, D)
        e = e_p + self.config.scale * self.layer(e_p)  # (B, D)
        return e, e[:, None][:, :0]

    def label_embeddings(self, names) -> Tensor:
        """(K, D) of any names."""
        return fixed_prompts(self.vlp, names, self.config.template)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D) -> (B, K)."""
        return e_g @ label_embeddings.T
