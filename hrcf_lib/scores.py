r"""Hierarchical score aggregation, HSA (Sec. III-D, Eqs. 9, 11-14 and 16-17), and top-k pooling, which it replaces.

Pure functions. B images, J regions, K labels, D embedding width. Embeddings are at the VLP's own scale, not of unit
length. The softmax of Eq. 12, the ranking of Eq. 17 and the norms of ``fuse`` run over *the labels that are passed in*:
scores of one label set are not columns of the scores of another.

Functions of embeddings raise ``ValueError`` if the label embeddings are not (K, D) with the D of the others.

Source: Sec. III-D of HRCF (Ma et al., IEEE TMM 2025). Top-k pooling is what RSA replaces, with MKT's k. The norms of
the fusion are MKT's code and differ from Eq. 14, which has none: ``fuse`` has both forms.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrcf_lib.engine import chunks

REGIONS = 140  # J of the paper, which ``config.keep`` counts from


def global_scores(e_g: Tensor, label_embeddings: Tensor) -> Tensor:
    r"""Eq. 9: $S^{global}_k = e_g \cdot t_k$. (B, D), (K, D) -> (B, K), any real number."""
    _same_width(e_g, label_embeddings)
    return e_g @ label_embeddings.T  # (B, K)  Eq. 9


def region_scores(regions: Tensor, label_embeddings: Tensor) -> Tensor:
    r"""Eq. 11: $s_{jk} = e_j \cdot t_k$, each region as a picture of its own. (B, J, D), (K, D) -> (B, J, K).

    $s_{jk}$ is the name of Eq. 16. The J regions are those of all levels (Eq. 10), in the order of ``regions.py``.
    """
    _same_width(regions, label_embeddings)
    return regions @ label_embeddings.T  # (B, J, K)  Eq. 11


def topk_mean(region_scores: Tensor, k: int) -> Tensor:
    r"""Top-k mean pooling over regions, as in MKT: the mean of each label's ``k`` best regions. (B, J, K) -> (B, K).

    Raises ``ValueError`` if ``k`` is not in 1..J.
    """
    J = region_scores.shape[1]
    if not 1 <= k <= J:
        raise ValueError(f"top-k mean pooling with k = {k} over {J} regions: choose k from 1 to {J}")
    return region_scores.topk(k, dim=1).values.mean(dim=1)  # (B, K)


def pool(regions: Tensor, label_embeddings: Tensor, k: int) -> Tensor:
    r"""Top-k mean pooling from embeddings, with at most J for ``k``: (B, J, D), (K, D) -> (B, K).

    If (B, J, K) were ``chunks.LARGE``, labels go in parts of ``chunks.CACHE`` entries, each pooled before the next is
    scored: the whole never exists, not even in the backward pass.
    """
    _same_width(regions, label_embeddings)
    (B, J, _), K = regions.shape, len(label_embeddings)
    n = (
        K if chunks.exporting() or B * J * K <= chunks.LARGE else chunks.fitting(chunks.CACHE, B * J)
    )  # labels at a time
    parts = [topk_mean(region_scores(regions, t), min(k, J)) for t in label_embeddings.split(max(1, n))]
    return torch.cat(parts, dim=1)  # (B, K)


def region_score_aggregation(region_scores: Tensor) -> Tensor:
    r"""RSA (Eqs. 12-13): each region is a single-label problem, and its vote weighs its score.

    $$w_{jk} = \mathrm{softmax}_k(s_{jk}), \qquad S^{region}_k = \sum_j w_{jk}\, s_{jk}$$

    (B, J, K) -> (B, K), any real number. A region that is sure of one label gives it the whole of its score; one that
    is undecided gives each label a K-th. This is the plain form; ``aggregate`` computes the same from embeddings
    without a (B, J, K) tensor.
    """
    return votes(region_scores).sum(dim=1)  # (B, K)  Eq. 13


def votes(region_scores: Tensor) -> Tensor:
    r"""What each region adds to each label's score, $w_{jk} s_{jk}$ of Eqs. 12-13: (B, J, K) -> (B, J, K)."""
    weights = region_scores.softmax(dim=-1)  # (B, J, K)  Eq. 12: over labels, for each region
    return weights * region_scores


def aggregate(regions: Tensor, label_embeddings: Tensor, chunk: int = 35) -> Tensor:
    r"""RSA from embeddings, at most ``chunk`` regions at a time: (B, J, D), (K, D) -> (B, K), equal to the plain form.

    If a (B, J, K) tensor were a ``chunks.LARGE`` one, a chunk holds no more regions than fit into ``chunks.CACHE``. For
    the backward pass of a large one only its scores are kept, up to ``chunks.KEPT`` entries; of more, not even these.
    """
    _same_width(regions, label_embeddings)
    B, J, _ = regions.shape
    K = len(label_embeddings)
    if chunks.exporting() or B * J * K <= chunks.LARGE:
        return sum(_aggregate(part, label_embeddings) for part in regions.split(chunk, dim=1))
    chunk = min(chunk, chunks.fitting(chunks.CACHE, B * K))
    if torch.is_grad_enabled() and (regions.requires_grad or label_embeddings.requires_grad):
        dtype = torch.promote_types(regions.dtype, label_embeddings.dtype)
        return _LargeAggregate.apply(regions.to(dtype), label_embeddings.to(dtype), chunk)
    return sum(_aggregate(part, label_embeddings) for part in _parts(regions, chunk))


def _aggregate(regions: Tensor, label_embeddings: Tensor) -> Tensor:
    return region_score_aggregation(region_scores(regions, label_embeddings))


def _parts(regions: Tensor, chunk: int) -> Iterator[Tensor]:
    """``chunk`` regions at a time, copied so that their scores are one matrix product and not one per image."""
    return (part.contiguous() for part in regions.split(chunk, dim=1))


class _LargeAggregate(torch.autograd.Function):
    r"""RSA whose backward pass is written out: autograd would keep scores, weights and votes of all regions.

    $$\partial L / \partial s_{jm} = w_{jm} (g_m + g_m s_{jm} - \sum_k w_{jk} g_k s_{jk}),
      \qquad g_k = \partial L / \partial S_k$$

    In the type of its inputs, also where the caller has autocast on.
    """

    @staticmethod
    def forward(ctx, regions, label_embeddings, chunk):
        B, J, _ = regions.shape
        t, K, total = label_embeddings, len(label_embeddings), 0
        kept = regions.new_empty(B * J * K if B * J * K <= chunks.KEPT else 0)
        with _exactly(regions):
            for first, part in zip(range(0, J, chunk), _parts(regions, chunk)):
                into = kept[B * first * K :][: B * part.shape[1] * K].view(-1, K) if len(kept) else None
                s = torch.mm(part.flatten(0, 1), t.T, out=into).view(B, -1, K)  # (B, c, K)  Eq. 11
                total = total + region_score_aggregation(s)  # (B, K)
        ctx.save_for_backward(regions, t, kept)
        ctx.chunk = chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        regions, t, kept = ctx.saved_tensors
        (B, J, _), K, g = regions.shape, len(t), g.unsqueeze(1)  # (B, 1, K)
        of_regions = torch.empty_like(regions) if ctx.needs_input_grad[0] else None
        of_t = torch.zeros_like(t) if ctx.needs_input_grad[1] else None
        with _exactly(regions):
            for first, part in zip(range(0, J, ctx.chunk), _parts(regions, ctx.chunk)):
                c = part.shape[1]
                s = kept[B * first * K :][: B * c * K].view(B, c, K) if len(kept) else region_scores(part, t)
                w = s.softmax(dim=-1)  # (B, c, K)
                of_s = g * s
                mean = torch.linalg.vecdot(of_s, w).unsqueeze(-1)  # (B, c, 1)
                of_s = of_s.add_(g).sub_(mean).mul_(w)  # (B, c, K)
                if of_regions is not None:
                    of_regions[:, first : first + c] = of_s @ t
                if of_t is not None:
                    of_t += of_s.flatten(0, 1).T @ part.flatten(0, 1)
        return of_regions, of_t, None


def _exactly(x: Tensor):
    """No autocast, on devices that have one."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def relevance(regions: Tensor, label_embeddings: Tensor) -> Tensor:
    r"""The sums that Eq. 17 ranks, of the scores $S^j$ of Eq. 16: $r_j = \sum_k e_j \cdot t_k = e_j \cdot \sum_k t_k$.

    What a region says to all labels together: (B, J, D), (K, D) -> (B, J), any real number.
    """
    _same_width(regions, label_embeddings)
    return regions @ label_embeddings.sum(dim=0)  # (B, J)  sum of Eq. 17, one dot product a region


def select_regions(regions: Tensor, label_embeddings: Tensor, keep: int) -> Tensor:
    r"""RSS (Eqs. 16-17): keep the ``keep`` regions of highest relevance, in their original order.

    (B, J, D), (K, D) -> (B, keep, D). Ties go to the lower index. Raises ``ValueError`` if ``keep`` is not in 1..J.
    """
    return take_best(regions, relevance(regions, label_embeddings), keep)  # Eq. 17


def take_best(regions: Tensor, values: Tensor, keep: int) -> Tensor:
    r"""The ``keep`` regions of highest ``values`` (B, J), in their original order: (B, J, D) -> (B, keep, D).

    Ties go to the lower index. Raises ``ValueError`` if ``keep`` is not in 1..J.
    """
    J = regions.shape[1]
    if not 1 <= keep <= J:
        raise ValueError(f"keep = {keep} of {J} regions: choose a number from 1 to {J}")
    if keep == J:
        return regions
    best = values.sort(dim=1, descending=True, stable=True).indices[:, :keep]  # (B, keep)
    best = best.sort(dim=1).values  # original order
    return regions.gather(1, best.unsqueeze(-1).expand(-1, -1, regions.shape[-1]))  # (B, keep, D)


def fuse(s_global: Tensor, s_region: Tensor, lam: float, normalize: bool = True) -> Tensor:
    r"""Eq. 14: $S = \lambda\, S^{region} + (1 - \lambda)\, S^{global}$, of two (B, K) -> (B, K).

    ``normalize=False`` is Eq. 14 as printed. There a sum over 140 regions is added to a single score, and may outweigh
    it even where lambda is small. ``normalize=True`` differs from Eq. 14: each score is first divided by its L2 norm
    over the labels, as MKT's code does. Then every entry is in -1..1, scores that are all zero stay zero, and how sure
    a picture is compared with other pictures is lost, which mAP feels. Raises ``ValueError`` for ``lam`` outside 0..1
    or for shapes that differ.
    """
    if s_global.shape != s_region.shape:
        raise ValueError(
            f"global scores {tuple(s_global.shape)} and region scores {tuple(s_region.shape)} differ in shape"
        )
    if not 0 <= lam <= 1:
        raise ValueError(f"lambda = {lam} is a weight: choose a number from 0 to 1")
    if normalize:
        s_global = torch.nn.functional.normalize(s_global, dim=-1)
        s_region = torch.nn.functional.normalize(s_region, dim=-1)
    return lam * s_region + (1 - lam) * s_global  # (B, K)  Eq. 14


def regions_to_keep(config, J: int) -> int:
    r"""``config.keep`` of the paper's 140 regions, and the same share of any other number: 108, or 151 of 196."""
    return min(max(round(config.keep * J / REGIONS), 1), J)


def mixing(config, at_test: bool) -> tuple[float, bool]:
    r"""lambda of Eq. 14, and whether each score is divided by its norm first: in training, or at test time."""
    lam, normalize = config.lam, config.normalize_fusion
    if at_test and config.lam_at_test is not None:
        lam = config.lam_at_test
    if at_test and config.normalize_at_test is not None:
        normalize = config.normalize_at_test
    return lam, normalize


def score(
    e_g: Tensor, regions: Tensor, label_embeddings: Tensor, config, select: bool, at_test: bool = False, how=None
) -> Tensor:
    r"""The whole of HSA under the switches of ``config``: (B, D), (B, J, D), (K, D) -> (B, K).

    ``select`` applies RSS first (test time only, Sec. III-D); ``regions_to_keep`` says how many stay. ``at_test`` is
    for ``mixing``. ``how`` is an aggregation in place of the config's, (B, J, D), (K, D) -> (B, K).
    """
    if select:
        regions = select_regions(regions, label_embeddings, regions_to_keep(config, regions.shape[1]))
    if how is not None:
        s_region = how(regions, label_embeddings)
    elif config.rsa:
        s_region = aggregate(regions, label_embeddings)
    else:
        s_region = pool(regions, label_embeddings, config.topk)
    return fuse(global_scores(e_g, label_embeddings), s_region, *mixing(config, at_test))


def score_alone(
    e_g: Tensor,
    regions: Tensor,
    reference: Tensor,
    label_embeddings: Tensor,
    config,
    select: bool,
    at_test: bool = False,
) -> Tensor:
    r"""HSA of each label $k$ alone beside the reference labels $R$: $S_k$ of $R \cup \{k\}$.

    (B, D), (B, J, D), (R, D), (K, D) -> (B, K). Such a score does not depend on the other K - 1 labels.
    With kept regions $j$, $Z_j = \sum_{r \in R} e^{s_{jr}}$ and the logistic function $\sigma$, the softmax over $R$
    and one more label gives

    $$S^{region}_k = \sum_j s_{jk}\, \sigma(s_{jk} - \log Z_j), \qquad
      S^{region}_r = \sum_j s_{jr}\, \frac{e^{s_{jr}}}{Z_j}\, \sigma(\log Z_j - s_{jk}) \;\; (r \in R)$$

    The second is needed for the norm alone; for all K labels at once it is one matrix product per picture, so that
    nothing is scored label by label. ``config``, ``select`` and ``at_test`` as for ``score``. None of the K labels may
    be among ``reference``.
    """
    n = chunks.fitting(chunks.PAIRS, len(e_g) * max(len(reference), regions.shape[1]))  # labels at a time
    parts = label_embeddings.split(n)
    parts = [_score_beside(e_g, regions, reference, part, config, select, at_test) for part in parts]
    return torch.cat(parts, dim=1) if parts else e_g.new_empty(len(e_g), 0)


def _score_beside(
    e_g: Tensor, regions: Tensor, reference: Tensor, label_embeddings: Tensor, config, select: bool, at_test: bool
) -> Tensor:
    """HSA of each label alone beside ``reference``: (B, D), (B, J, D), (R, D), (K, D) -> (B, K)."""
    s_r = region_scores(regions, reference)  # (B, J, R)
    s_k = region_scores(regions, label_embeddings)  # (B, J, K)
    kept = _kept_beside(regions, reference, s_k, config) if select else torch.ones_like(s_k)  # (B, J, K) of 0 and 1
    if config.rsa:
        z = s_r.logsumexp(dim=2, keepdim=True)  # (B, J, 1)  log Z_j
        of_k = (kept * s_k * (s_k - z).sigmoid()).sum(dim=1)  # (B, K)
        of_r = (s_r * (s_r - z).exp()).transpose(1, 2) @ (kept * (z - s_k).sigmoid())  # (B, R, K)
    else:
        of_k, of_r = _pooled_beside(s_r, s_k, kept, config)
    g_r, g_k = global_scores(e_g, reference), global_scores(e_g, label_embeddings)  # (B, R), (B, K)
    lam, normalize = mixing(config, at_test)
    if normalize:
        of_k = of_k / (of_k.square() + of_r.square().sum(dim=1)).sqrt().clamp(min=1e-12)
        g_k = g_k / (g_k.square() + g_r.square().sum(dim=1, keepdim=True)).sqrt().clamp(min=1e-12)
    return lam * of_k + (1 - lam) * g_k  # (B, K)  Eq. 14


def _kept_beside(regions: Tensor, reference: Tensor, s_k: Tensor, config) -> Tensor:
    """1 where RSS keeps region j when label k is scored beside the reference: (B, J, K)."""
    J = regions.shape[1]
    keep = regions_to_keep(config, J)
    relevant = relevance(regions, reference)[:, :, None] + s_k  # (B, J, K)  sum of Eq. 17 over R and k
    best = relevant.sort(dim=1, descending=True, stable=True).indices[:, :keep]  # (B, keep, K), ties to the lower
    return torch.zeros_like(s_k).scatter_(1, best, 1.0)


def _pooled_beside(s_r: Tensor, s_k: Tensor, kept: Tensor, config) -> tuple[Tensor, Tensor]:
    """Top-k mean pooling of kept regions: of the labels (B, K), and of the reference beside each (B, R, K)."""
    k = min(config.topk, int(kept[0, :, 0].sum()) if kept.numel() else config.topk)
    of_k = s_k.masked_fill(kept == 0, -torch.inf).topk(k, dim=1).values.mean(dim=1)  # (B, K)
    if bool((kept == 1).all()):
        return of_k, topk_mean(s_r, k)[:, :, None].expand(-1, -1, s_k.shape[2])
    beside = [topk_mean(s_r.masked_fill(kept[:, :, [i]] == 0, -1e30), k) for i in range(s_k.shape[2])]
    return of_k, torch.stack(beside, dim=2)  # (B, R, K)


def _same_width(embeddings: Tensor, label_embeddings: Tensor) -> None:
    if label_embeddings.ndim != 2 or embeddings.shape[-1] != label_embeddings.shape[-1]:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and label embeddings {tuple(label_embeddings.shape)} do not fit: "
            "label embeddings are (K, D) with the same D"
        )
