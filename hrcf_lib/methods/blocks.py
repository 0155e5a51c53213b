"""Parts that several methods share: trained last blocks, and fixed prompts."""

import copy

import torch
from torch import Tensor, nn

from hrcf_lib.labels import check_names
from hrcf_lib.method import Method


class LastBlocks(Method):
    r"""A method that trains the last ``config.blocks`` blocks of the ViT, all with None, its norm and projection."""

    trainable = {"images": ("block.", "ln_post.", "head."), "prompts": ()}
    needs_vit = True

    @property
    def trained_blocks(self) -> int:
        """As the config says, or all."""
        return self.vlp.depth if self.config.blocks is None else self.config.blocks

    def build(self) -> None:
        """Trainable copies of the VLP's last blocks, final norm and projection."""
        visual = self.vlp.model.visual
        last = list(visual.transformer.resblocks)[self.vlp.depth - self.trained_blocks :]
        self.block = nn.Sequential(*copy.deepcopy(last)).requires_grad_(True)
        self.ln_post = copy.deepcopy(visual.ln_post).requires_grad_(True)
        self.head = nn.Linear(self.vlp.C, self.vlp.D, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(visual.proj.T)

    def lr_scale(self, side: str, name: str) -> float:
        """``layer_decay`` to the number of steps down from norm and projection: the last block is one below them."""
        words = name.split(".")
        return self.config.layer_decay ** (self.trained_blocks - int(words[1])) if words[0] == "block" else 1.0


@torch.no_grad()
def fixed_prompts(vlp, names, template: str) -> Tensor:
    """(K, D) embeddings of names in a template, such as "a photo of a {}.".

    Raises ``ValueError`` for names that the text tower cannot take, or a template without a place for the name.
    """
    names = check_names(names)
    try:
        texts, has_place = [template.format(name) for name in names], template.format("x") != template.format("y")
    except (AttributeError, LookupError, ValueError):
        has_place = False
    if not has_place:
        raise ValueError(f"template = {template!r}: write {{}} once, where the label's name stands")
    return vlp.encode_text(texts)
