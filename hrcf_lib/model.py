r"""HRCF: the frozen VLP, clue gathering, hybrid prompts and score aggregation, put together.

pictures -> trunk (frozen) -> last block (a copy that learns) -> LN -> HCG -> head -> e_g, regions
names    -> hybrid prompt  -> text tower (frozen)             -> t_k
e_g, regions, t_k -> HSA -> scores (B, K)

B pictures, N side of the patch grid, J regions, K labels, C width of the ViT, D embedding width.
Source: Sec. III and Fig. 2 of HRCF (Ma et al., IEEE TMM 2025), which has no public code.
"""

import copy

import torch
from torch import Tensor, nn

from hrcf_lib import scores
from hrcf_lib.method import Method
from hrcf_lib.prompts import PromptLearner
from hrcf_lib.regions import HierarchicalClueGathering


class HRCF(Method):
    r"""Open-vocabulary multi-label classifier.

    Args:
        config: see ``hrcf_lib.config``.
        pretrained: ``False`` builds the VLP with random weights and needs no network.

    Attributes: ``vlp`` frozen; ``block``, ``ln_post``, ``gather``, ``head`` the image side; ``prompt`` the text side;
    ``reference_labels`` the seen labels of training, the vocabulary that a user's own labels are scored in.

    Raises what ``vlp.load`` raises, and ``ValueError`` for more merges than the VLP's grid can take.

    With CLIP ViT-B/16 the image side has 18,316,032 trainable parameters and the hybrid prompt 4,096. Whatever is drawn
    at random depends on ``config.seed`` alone, and the global random state stays as it was.
    """

    title = "HRCF"
    about = (
        "HRCF: open-vocabulary multi-label classification with hierarchical region clues (Ma et al., IEEE TMM 2025)."
    )
    has_lambda, has_selection, map_kind = True, True, "votes"
    needs_vit = True  # the last block learns (Eq. 1)

    def build(self) -> None:
        """The last block, the norm and the head start as the VLP's own."""
        config, visual = self.config, self.vlp.model.visual
        self.block = copy.deepcopy(visual.transformer.resblocks[-1]).requires_grad_(True)
        self.ln_post = copy.deepcopy(visual.ln_post).requires_grad_(True)
        if config.hcg:
            how = (config.merges, config.merge_starts_at_zero, config.levels, config.shared_merges)
            self.gather = HierarchicalClueGathering(self.vlp.C, self.vlp.N, *how)
        self.head = nn.Linear(self.vlp.C, self.vlp.D, bias=False)  # MH, shared by the global token and the regions
        with torch.no_grad():
            self.head.weight.copy_(visual.proj.T)
        self.prompt = PromptLearner(self.vlp, config.prompt, config.prompt_vectors, config.tuning_template)

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        r"""Trunk tokens (B, 1 + N^2, C) -> global embedding e_g (B, D) and regions (B, J, D). Eqs. 1-3, 6-8 and 10."""
        tokens = self.ln_post(self.block(trunk))  # (B, 1 + N*N, C)  last block of Eq. 1; O_L = [x_g; R_1 .. R_{N^2}]
        x_g, patches = tokens[:, 0], tokens[:, 1:]  # (B, C), (B, N*N, C)  Eq. 2
        regions = self.gather(patches) if self.config.hcg else patches  # (B, J, C)  Eqs. 6-7, 10
        return self.head(x_g), self.head(regions)  # (B, D) of Eq. 3, (B, J, D) of Eq. 8

    def label_embeddings(self, names) -> Tensor:
        r"""(K, D) embeddings t_k of label names (Eqs. 18-19). Raises what ``PromptLearner`` raises for a name."""
        return self.prompt(self.vlp, names)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        r"""(B, D), (B, J, D), (K, D) -> (B, K) by HSA (Eqs. 9, 11-14); RSS (Eqs. 16-17) in evaluation mode only, if the
        config has it.

        The scores rank the labels of a picture against each other; with ``config.normalize_fusion`` they are in -1..1.
        In evaluation mode lambda and the form of Eq. 14 are those of test time (``scores.mixing``).
        """
        at_test = not self.training
        return scores.score(e_g, regions, label_embeddings, self.config, self.config.rss and at_test, at_test)

    def companions(self, names) -> list[str]:
        """With ``config.votes`` "open" the reference labels that are not among ``names``, else none.

        A region that shows a seen thing can then vote for it, and need not name an unseen label. Where all seen labels
        are asked for, as in GZSL, nothing changes. Ours: the paper scores the labels of a task among themselves.
        """
        known = set(names)
        return [name for name in self.reference_labels if name not in known] if self.config.votes == "open" else []

    @property
    def region_sides(self) -> list[int]:
        """One map per level, [10, 6, 2]; without HCG the map of the patches."""
        return self.gather.sides if self.config.hcg else super().region_sides

    def score_alone(self, e_g: Tensor, regions: Tensor, reference: Tensor, label_embeddings: Tensor) -> Tensor:
        """As ``Method.score_alone``, in closed form (``scores.score_alone``) where the scores are those of HSA."""
        if type(self).score_embeddings is not HRCF.score_embeddings:
            return super().score_alone(e_g, regions, reference, label_embeddings)
        at_test = not self.training
        select = self.config.rss and at_test
        return scores.score_alone(e_g, regions, reference, label_embeddings, self.config, select, at_test)

    def lr_scale(self, side: str, name: str) -> float:
        """The ViT block learns at ``layer_decay``, the convolutions of the merges at ``merge_lr``; prompts that learn
        beside the image side at ``prompt_lr``."""
        config = self.config
        scales = {"block.": config.layer_decay, "gather.conv": config.merge_lr}
        if side == "both" and config.lr:
            scales["prompt."] = config.prompt_lr / config.lr
        return next((value for part, value in scales.items() if name.startswith(part)), 1.0)
