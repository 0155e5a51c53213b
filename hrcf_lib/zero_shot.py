"""How the plain VLP is asked: prompts and similarities, of which one each is chosen on val."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

PROMPTS = {  # name -> templates, whose embeddings are averaged
    "name": ["{}"],
    "photo": ["a photo of a {}."],
    "drawing": ["a drawing of a {}."],
    "there is": ["there is a {}."],
    "multi-label": ["A photo for multi-label classification, there is a {}."],
    "ensemble": ["a photo of a {}.", "a drawing of a {}.", "a picture of a {}.", "there is a {}.", "this is a {}."],
}
SIMILARITIES = {  # global embeddings (B, D), label embeddings (K, D) -> (B, K)
    "dot": lambda e, t: e @ t.T,
    "cosine": lambda e, t: normalize(e, dim=-1) @ normalize(t, dim=-1).T,
    "softmax": lambda e, t: (e @ t.T).softmax(dim=-1),
}


def prompted(vlp, names, prompt: str) -> Tensor:
    """(K, D) mean embedding of each name over the templates of a prompt of ``PROMPTS``."""
    return torch.stack([vlp.encode_text([text.format(n) for n in names]) for text in PROMPTS[prompt]]).mean(0)
