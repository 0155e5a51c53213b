r"""The plain forms that the fast paths of this library replace, written as in the equations and in published code.

The library itself never calls them: the speed table times them, and tests compare with them. Symbols are those of the
fast twins: B images, J regions, K labels, D embedding width, C width of the text tower.
"""

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from hrcf_lib import scores
from hrcf_lib.vlp import encode_tokens


def sentences(prompt, vlp, names) -> tuple[Tensor, Tensor]:
    r"""Token embeddings (K, 77, C) of whole prompts, padded with token 0, and the position (K,) of each one's end.

    Eq. 18 to the letter, in the form that CLIP's own code gives it; 77 is CLIP's context length. ``prompt`` is a
    ``PromptLearner`` of any kind, whose learnt parts get their gradient.
    """
    table = vlp.model.token_embedding.weight
    learnt = getattr(prompt, "table", table)
    prefix = getattr(prompt, "vectors", learnt[prompt.start_ids])  # (M, C)
    template = getattr(prompt, "template", learnt[prompt.template_ids])
    before, after = template.split([prompt.n_before, prompt.n_after])
    start, end = learnt[[vlp.tokenizer.sot_token_id]], learnt[[vlp.tokenizer.eot_token_id]]  # (1, C)
    rows = [torch.cat([start, prefix, before, table[vlp.token_ids(name)], after, end]) for name in names]
    padding = [table[[0]].expand(vlp.context_length - len(row), -1) for row in rows]
    padded = torch.stack([torch.cat(pair) for pair in zip(rows, padding, strict=True)])  # (K, 77, C)
    return padded, torch.tensor([len(row) - 1 for row in rows], device=padded.device)


def label_embeddings(prompt, vlp, names) -> Tensor:
    """Eq. 19 for whole sentences: (K, D). The twin of ``PromptLearner.forward``."""
    return encode_tokens(vlp.model, *sentences(prompt, vlp, names))


def ranking_loss(s: Tensor, labels: Tensor, reduction: str = "violations") -> Tensor:
    r"""Eq. 15 over all pairs in a (B, K, K) tensor, as the public code of BiAM and MKT forms it.

    The twin of ``losses.ranking_loss``; (B, K), (B, K) -> scalar.
    """
    pairs = (labels == -1).unsqueeze(2) & (labels == 1).unsqueeze(1)  # (B, K, K): negative n, positive p
    hinge = (1 + s.unsqueeze(2) - s.unsqueeze(1)).where(pairs, 0).clamp(min=0)  # (B, K, K)
    total, violations = hinge.sum(dim=(1, 2)), hinge.detach().sign().sum(dim=(1, 2))  # (B,), (B,)
    return total.sum() if reduction == "sum" else (total / violations.clamp(min=1)).mean()


def score(e_g: Tensor, regions: Tensor, label_embeddings: Tensor, config, select: bool) -> Tensor:
    r"""HSA (Eqs. 9, 11-14, 16-17) from one (B, J, K) tensor of all region scores: (B, D), (B, J, D), (K, D) -> (B, K).

    RSS sums the scores of every region over the labels (Eqs. 16-17) and drops the lowest. The twin of ``scores.score``.
    """
    s = scores.region_scores(regions, label_embeddings)  # (B, J, K)  Eq. 11
    if select:
        keep = scores.regions_to_keep(config, s.shape[1])
        best = s.sum(dim=2).topk(keep, dim=1).indices  # (B, keep)  Eqs. 16-17
        s = s.gather(1, best.unsqueeze(2).expand(-1, -1, s.shape[2]))  # (B, keep, K)
    s_region = scores.region_score_aggregation(s)  # (B, K)  Eqs. 12-13
    return scores.fuse(scores.global_scores(e_g, label_embeddings), s_region, config.lam, config.normalize_fusion)


def average_precision(s: Tensor, labels: Tensor) -> np.ndarray:
    """AP of each label by scikit-learn, one label after the other: (N, K), (N, K) -> (K,), NaN without positives.

    The twin of ``metrics.average_precision``.
    """
    values, present, known = s.numpy(), (labels == 1).numpy(), (labels != 0).numpy()
    out = np.full(values.shape[1], np.nan)
    for k in range(values.shape[1]):
        rows = known[:, k]
        if present[rows, k].any():
            out[k] = average_precision_score(present[rows, k], values[rows, k])
    return out
