r"""A label's score alone inside a fixed vocabulary: it does not depend on which other labels a user asks for.

HRCF's scores rank labels against each other: softmax (Eq. 12), region selection (Eqs. 16-17) and norms (Eq. 14) run
over the labels being scored. Here each label $k$ of the user's is scored with the reference labels $R$ and nothing
else, as $S_k$ of $R \cup \{k\}$; a label that is in $R$ is scored with $R$. For HRCF, with kept regions $j$,
$Z_j = \sum_{r \in R} e^{s_{jr}}$ and the logistic function $\sigma$, the softmax over $R$ and one more label gives

$$S^{region}_k = \sum_j s_{jk}\, \sigma(s_{jk} - \log Z_j), \qquad
  S^{region}_r = \sum_j s_{jr}\, \frac{e^{s_{jr}}}{Z_j}\, \sigma(\log Z_j - s_{jk}) \;\; (r \in R)$$

The second is needed for the norm alone; for all labels of the user's at once it is one matrix product a picture, so
that nothing is scored label by label. B pictures, J regions, R reference labels, K labels of the user's, D width.
"""

import torch
from torch import Tensor

from hrcf_lib import scores
from hrcf_lib.model import HRCF

PART = 2**24  # entries of (B, R, K) worked on at a time, 64 MiB in float32


def score_alone(model, e_g: Tensor, regions: Tensor, reference: Tensor, own: Tensor) -> Tensor:
    r"""Scores (B, K) of the labels ``own`` (K, D), each alone beside ``reference`` (R, D), by any method.

    ``e_g`` and ``regions`` are what ``model.image_embeddings`` gave. HRCF has a closed form; other methods score R + 1
    labels K times. No label of ``own`` may be among ``reference`` (``LabelScorer`` takes care of it).
    """
    if type(model).score_embeddings is HRCF.score_embeddings:
        select = model.config.rss and not model.training
        n = max(1, PART // max(1, len(e_g) * max(len(reference), regions.shape[1])))  # labels at a time
        parts = [_closed(e_g, regions, reference, part, model.config, select) for part in own.split(n)]
        return torch.cat(parts, dim=1) if parts else e_g.new_empty(len(e_g), 0)
    one_by_one = [model.score_embeddings(e_g, regions, torch.cat([reference, t[None]]))[:, -1] for t in own]
    return torch.stack(one_by_one, dim=1) if one_by_one else e_g.new_empty(len(e_g), 0)


def _closed(e_g: Tensor, regions: Tensor, reference: Tensor, own: Tensor, config, select: bool) -> Tensor:
    """HSA for each label of ``own`` beside ``reference``: (B, D), (B, J, D), (R, D), (K, D) -> (B, K)."""
    s_r = scores.region_scores(regions, reference)  # (B, J, R)
    s_k = scores.region_scores(regions, own)  # (B, J, K)
    kept = _kept(regions, reference, s_k, config) if select else torch.ones_like(s_k)  # (B, J, K) of 0 and 1
    if config.rsa:
        z = s_r.logsumexp(dim=2, keepdim=True)  # (B, J, 1)  log Z_j
        of_k = (kept * s_k * (s_k - z).sigmoid()).sum(dim=1)  # (B, K)
        of_r = (s_r * (s_r - z).exp()).transpose(1, 2) @ (kept * (z - s_k).sigmoid())  # (B, R, K)
    else:
        of_k, of_r = _pooled(s_r, s_k, kept, config)
    g_r, g_k = scores.global_scores(e_g, reference), scores.global_scores(e_g, own)  # (B, R), (B, K)
    if config.normalize_fusion:
        of_k = of_k / (of_k.square() + of_r.square().sum(dim=1)).sqrt().clamp(min=1e-12)
        g_k = g_k / (g_k.square() + g_r.square().sum(dim=1, keepdim=True)).sqrt().clamp(min=1e-12)
    return config.lam * of_k + (1 - config.lam) * g_k  # (B, K)  Eq. 14


def _kept(regions: Tensor, reference: Tensor, s_k: Tensor, config) -> Tensor:
    """1 where RSS keeps region j when label k is scored beside the reference: (B, J, K)."""
    J = regions.shape[1]
    keep = scores.regions_to_keep(config, J)
    relevance = scores.relevance(regions, reference)[:, :, None] + s_k  # (B, J, K)  Eq. 16 over R and k
    best = relevance.sort(dim=1, descending=True, stable=True).indices[:, :keep]  # (B, keep, K), ties to the lower
    return torch.zeros_like(s_k).scatter_(1, best, 1.0)


def _pooled(s_r: Tensor, s_k: Tensor, kept: Tensor, config) -> tuple[Tensor, Tensor]:
    """Top-k mean pooling of kept regions: of the labels (B, K), and of the reference beside each (B, R, K)."""
    k = min(config.topk, int(kept[0, :, 0].sum()) if kept.numel() else config.topk)
    of_k = s_k.masked_fill(kept == 0, -torch.inf).topk(k, dim=1).values.mean(dim=1)  # (B, K)
    if bool((kept == 1).all()):
        return of_k, scores.topk_mean(s_r, k)[:, :, None].expand(-1, -1, s_k.shape[2])
    beside = [scores.topk_mean(s_r.masked_fill(kept[:, :, [i]] == 0, -1e30), k) for i in range(s_k.shape[2])]
    return of_k, torch.stack(beside, dim=2)  # (B, R, K)
