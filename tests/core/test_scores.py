"""Hierarchical score aggregation: against MKT's numbers, hand-made examples and slow twins."""

import math

import golden_clip
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hrcf_lib import config, scores
from hrcf_lib.engine import chunks
from hrcf_lib.model import HRCF as HRCFModel

HRCF = config.mini()


def draw(B=2, J=140, K=9, D=6, seed=0, scale=1.0):
    """Embeddings e_g, e_j, t_k in float64."""
    g = torch.Generator().manual_seed(seed)
    shapes = (B, D), (B, J, D), (K, D)
    return [scale * torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


# MKT ---------------------------------------------------------------------------------------------------------------


def test_topk_pooling_and_fusion_are_those_of_mkt():
    golden = golden_clip.arrays("mkt_clipvit")
    t = golden["label_emb"]
    s_global = scores.global_scores(golden["dist_feat"], t)
    s_region = scores.topk_mean(scores.region_scores(golden["pred_feat"], t), int(golden["topk"]))
    close = dict(rtol=1e-5, atol=1e-6)
    assert_close(scores.fuse(s_global, s_region, 0.5), golden["score"], **close)
    assert_close(scores.fuse(s_global, s_region, 0.5, normalize=False), golden["score_unnormalised"], **close)
    assert_close(scores.fuse(s_global, s_region, 0.0), golden["score_global_only"], **close)
    switched = HRCF.replace(rsa=False, rss=False, hcg=False, topk=int(golden["topk"]), lam=0.5)
    whole = scores.score(golden["dist_feat"], golden["pred_feat"], t, switched, select=False)
    assert_close(whole, golden["score"], **close)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_mean_is_the_mean_of_the_first_sorted(k):
    s = torch.randn(3, 7, 5, dtype=torch.float64)
    assert_close(scores.topk_mean(s, k), s.sort(dim=1, descending=True).values[:, :k].mean(dim=1))


@pytest.mark.parametrize("k", [0, -1, 8])
def test_topk_mean_refuses_an_impossible_k(k):
    with pytest.raises(ValueError, match=f"k = {k} over 7 regions: choose k from 1 to 7"):
        scores.topk_mean(torch.zeros(1, 7, 2), k)


# RSA, Eqs. 12-13 ---------------------------------------------------------------------------------------------------


def test_rsa_by_hand():
    three, two = math.log(3), math.log(2)
    s = torch.tensor([[[0.0, three], [two, two]]])  # softmax: (1/4, 3/4) and (1/2, 1/2)
    assert_close(scores.region_score_aggregation(s), torch.tensor([[two / 2, 3 * three / 4 + two / 2]]))


def test_rsa_softmax_runs_over_labels_not_regions():
    s = torch.tensor([[[100.0, 0.0], [100.0, 0.0], [0.0, 7.0]]])
    assert_close(scores.region_score_aggregation(s), torch.tensor([[200.0, 7.0 / (1 + math.exp(-7))]]))


@pytest.mark.parametrize("k", [1, 16, 140, 999])
def test_pooling_from_embeddings_goes_through_many_labels_in_parts(k, monkeypatch):
    """In value and gradient, and in none of them a tensor of all labels and regions exists."""
    _, regions, t = draw(K=50)
    regions.requires_grad_(), t.requires_grad_()
    plain = scores.topk_mean(scores.region_scores(regions, t), min(k, 140))
    assert torch.equal(scores.pool(regions, t, k), plain), "few labels are scored at once"
    expected = torch.autograd.grad(plain.square().sum(), (regions, t))
    monkeypatch.setattr(chunks, "LARGE", 2 * 140 * 50 - 1)
    monkeypatch.setattr(chunks, "CACHE", 2 * 140 * 13 - 1)
    with Largest() as seen:
        parts = scores.pool(regions, t, k)
        found = torch.autograd.grad(parts.square().sum(), (regions, t))
    assert seen.entries <= max(2 * 140 * 12, regions.numel()) < 2 * 140 * 50
    assert_close(parts, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("large", ["small", "scores kept", "computed twice"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("chunk", [1, 35, 139, 500])
def test_chunked_rsa_equals_the_plain_form_in_value_and_gradient(chunk, scale, large, monkeypatch):
    monkeypatch.setattr(chunks, "LARGE", chunks.LARGE if large == "small" else 0)
    monkeypatch.setattr(chunks, "KEPT", 0 if large == "computed twice" else chunks.KEPT)
    monkeypatch.setattr(chunks, "CACHE", 2 * 9 * 4)  # of a large one: four regions
    _, regions, t = draw(seed=chunk, scale=math.sqrt(scale))
    regions.requires_grad_(), t.requires_grad_()
    out = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = scores.region_score_aggregation(torch.einsum("bjd,kd->bjk", regions, t))
    chunked = scores.aggregate(regions, t, chunk)
    assert plain.isfinite().all()
    assert_close(chunked, plain, rtol=1e-11, atol=1e-12 * scale)
    expected = torch.autograd.grad((plain * out).sum(), (regions, t))
    for ours, theirs in zip(torch.autograd.grad((chunked * out).sum(), (regions, t)), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * float(theirs.abs().max()))


class Largest(TorchDispatchMode):
    """Number of entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return out


def test_chunked_rsa_makes_no_tensor_of_all_regions_and_labels():
    e_g, regions, t = draw(K=50)
    with Largest() as seen, torch.no_grad():
        scores.aggregate(regions, t)
    assert seen.entries == 2 * 35 * 50
    with Largest() as seen:
        scores.region_score_aggregation(scores.region_scores(regions, t))
    assert seen.entries == 2 * 140 * 50


@pytest.mark.parametrize("part, regions_at_once", [(2 * 50 * 4, 4), (2 * 50 * 5 - 1, 4), (1, 1), (2 * 50 * 99, 35)])
def test_a_chunk_of_a_large_rsa_fits_into_a_part(part, regions_at_once, monkeypatch):
    _, regions, t = draw(K=50)
    expected = scores.aggregate(regions, t)
    monkeypatch.setattr(chunks, "CACHE", part)
    seen, plain = [], scores.region_scores
    see = lambda regions, t: seen.append((regions.shape[1], regions.is_contiguous())) or plain(regions, t)
    monkeypatch.setattr(scores, "region_scores", see)
    scores.aggregate(regions, t)
    assert seen == [(35, False)] * 4, "a small one is cut as ever: other cuts round differently"
    seen.clear()
    monkeypatch.setattr(chunks, "LARGE", 2 * 140 * 50 - 1)
    assert_close(scores.aggregate(regions, t), expected, rtol=1e-12, atol=1e-12)
    assert seen == [(regions_at_once, True)] * (140 // regions_at_once)


@pytest.mark.parametrize("wanted", ["regions", "labels"])
def test_a_large_rsa_has_the_gradient_of_either_side_alone(wanted, monkeypatch):
    monkeypatch.setattr(chunks, "LARGE", 0)
    _, regions, t = draw(B=3, J=11)
    x = (regions if wanted == "regions" else t).requires_grad_()
    (ours,) = torch.autograd.grad(scores.aggregate(regions, t, 4).square().sum(), x)
    plain = scores.region_score_aggregation(scores.region_scores(regions, t))
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_a_large_rsa_keeps_its_scores_alone_for_the_backward_pass_and_a_huge_one_nothing(monkeypatch):
    _, regions, t = draw(K=50)
    regions.requires_grad_()

    def kept():
        """Entries of scores, weights and votes that the backward pass holds on to."""
        sizes = []
        pack = lambda x: sizes.append(0 if x is regions or x is t else x.numel()) or x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scores.aggregate(regions, t)
        return sum(sizes)

    assert kept() >= 2 * (2 * 140 * 50), "weights and scores"
    monkeypatch.setattr(chunks, "LARGE", 2 * 140 * 50 - 1)
    assert kept() == 2 * 140 * 50
    monkeypatch.setattr(chunks, "KEPT", 2 * 140 * 50 - 1)
    assert kept() == 0
    monkeypatch.setattr(chunks, "LARGE", 2 * 140 * 50)
    assert kept() >= 2 * (2 * 140 * 50)


def test_a_large_rsa_can_be_counted_on_shapes_alone():
    regions = torch.empty(128, 140, 64, device="meta", requires_grad=True)
    total = scores.aggregate(regions, torch.empty(7186, 64, device="meta"))
    total.sum().backward()
    assert total.shape == (128, 7186) and regions.grad.shape == regions.shape


@pytest.mark.parametrize("kept", [0, 2**28])
def test_a_large_rsa_is_exact_where_the_caller_has_autocast_on(kept, monkeypatch):
    monkeypatch.setattr(chunks, "LARGE", 0)
    monkeypatch.setattr(chunks, "KEPT", kept)
    _, regions, t = draw(B=3, J=11)
    regions, t = regions.float().requires_grad_(), t.float().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = scores.aggregate(regions, t, 4)
        of_regions, of_t = torch.autograd.grad(ours.square().sum(), (regions, t))
    assert_close(ours, plain := scores.region_score_aggregation(scores.region_scores(regions, t.float())))
    assert of_regions.dtype == torch.float32 and of_t.dtype == torch.bfloat16
    assert_close(of_regions, torch.autograd.grad(plain.square().sum(), regions)[0], rtol=1e-4, atol=1e-5)


# RSS, Eqs. 16-17 ---------------------------------------------------------------------------------------------------


def slow_selection(regions, t, keep):
    """Sum the scores over labels region by region; higher first, then lower index; back to the original order."""
    picked = []
    for e in regions:
        value = [sum(float(e_j @ t_k) for t_k in t) for e_j in e]
        best = sorted(range(len(e)), key=lambda j: (-value[j], j))[:keep]
        picked.append(torch.stack([e[j] for j in sorted(best)]))
    return torch.stack(picked)


@pytest.mark.parametrize("keep", [1, 5, 11, 12])
@pytest.mark.parametrize("ties", [False, True])
def test_selection_is_that_of_brute_force(keep, ties):
    for seed in range(5):
        _, regions, t = draw(B=3, J=12, K=4, seed=seed)
        if ties:  # small whole numbers: sums are exact and many are equal
            regions, t = regions.round().clamp(-1, 1), t.round().clamp(-1, 1)
            value = scores.relevance(regions, t)
            assert all(len(set(row.tolist())) < 12 for row in value)
        assert torch.equal(scores.select_regions(regions, t, keep), slow_selection(regions, t, keep))


def test_ties_go_to_the_lower_index_and_order_is_kept():
    regions = torch.tensor([[[1.0, 0], [3, 1], [1, 2], [3, 3], [1, 4], [0, 5]]])  # relevance = first entry
    kept = scores.select_regions(regions, torch.tensor([[1.0, 0.0]]), 4)
    assert kept[0, :, 1].tolist() == [0, 1, 2, 3]


def test_no_label_or_half_precision_tie_upsets_the_order():
    regions = torch.ones(1, 140, 4)  # everything ties, many entries: an unstable sort would mix them
    regions[0, :, 0] = torch.arange(140)
    kept = scores.take_best(regions, torch.zeros(1, 140), 108)
    assert kept[0, :, 0].tolist() == list(range(108))


def test_relevance_is_the_sum_of_scores_over_labels():
    _, regions, t = draw()
    assert_close(scores.relevance(regions, t), scores.region_scores(regions, t).sum(dim=-1))


def test_selecting_then_scoring_equals_scoring_then_selecting():
    _, regions, t = draw()
    all_scores = scores.region_scores(regions, t)  # (B, J, K)
    assert_close(
        scores.aggregate(scores.select_regions(regions, t, 108), t),
        scores.region_score_aggregation(scores.take_best(all_scores, all_scores.sum(dim=-1), 108)),
    )


@pytest.mark.parametrize("keep", [0, 141])
def test_selection_refuses_an_impossible_number(keep):
    with pytest.raises(ValueError, match=f"keep = {keep} of 140 regions: choose a number from 1 to 140"):
        scores.select_regions(*draw()[1:], keep)


# Fusion, Eq. 14 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_fusion_mixes_scores_of_norm_one(lam):
    s_global, s_region = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 500.0]])
    expected = torch.tensor([[0.6 * (1 - lam), 0.8 * (1 - lam) + lam]])
    assert_close(scores.fuse(s_global, s_region, lam), expected)
    raw = torch.tensor([[3 * (1 - lam), 4 * (1 - lam) + 500 * lam]])
    assert_close(scores.fuse(s_global, s_region, lam, normalize=False), raw)
    assert torch.equal(s_global, torch.tensor([[3.0, 4.0]]))  # the input stays as it is


def test_lambda_and_form_of_equation_14_may_differ_at_test_time():
    model = HRCFModel(HRCF.replace(rss=False), pretrained=False)
    chosen = model.under(model.config.replace(lam=0.5, lam_at_test=0.9, normalize_at_test=False))
    plain = model.under(model.config.replace(lam=0.9, normalize_fusion=False))
    e_g, regions, t = draw()
    assert_close(chosen.eval().score_embeddings(e_g, regions, t), plain.eval().score_embeddings(e_g, regions, t))
    alone = [m.score_alone(e_g, regions, t[:4], t[4:]) for m in (chosen, plain)]
    assert_close(*alone)
    in_training = scores.score(e_g, regions, t, HRCF.replace(lam=0.5), select=False)
    assert_close(chosen.train().score_embeddings(e_g, regions, t), in_training)
    free = config.names_where(weights=False, scores=True)
    assert {"lam_at_test", "normalize_at_test", "keep"} <= set(free), "weights do not depend on them"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam_at_test": 1.5}, "lam_at_test = 1.5 must be from 0 to 1"),
        ({"lam_at_test": "all"}, "lam_at_test = 'all' must be a number"),
        ({"normalize_at_test": 1}, "normalize_at_test = 1 must be True or False"),
    ],
)
def test_settings_of_test_time_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        HRCF.replace(**changes)


def test_fusion_leaves_scores_of_zero_at_zero():
    assert torch.equal(scores.fuse(torch.zeros(2, 3), torch.zeros(2, 3), 0.5), torch.zeros(2, 3))


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan])
def test_fusion_refuses_a_weight_outside_0_to_1(lam):
    with pytest.raises(ValueError, match="choose a number from 0 to 1"):
        scores.fuse(torch.zeros(1, 2), torch.zeros(1, 2), lam)


def test_fusion_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(2, 3\) differ in shape"):
        scores.fuse(torch.zeros(1, 3), torch.zeros(2, 3), 0.5)


# The whole ---------------------------------------------------------------------------------------------------------


def test_zsl_scores_are_not_columns_of_gzsl_scores():
    e_g, regions, t = draw(B=8, K=20)
    unseen = slice(14, 20)
    zsl = scores.score(e_g, regions, t[unseen], HRCF, select=True)
    columns = scores.score(e_g, regions, t, HRCF, select=True)[:, unseen]
    assert not torch.allclose(zsl, columns, rtol=0.05)
    # not even after a rescaling, so the order of pictures under a label (and its AP) differs too
    assert not torch.equal(zsl.argsort(dim=0), columns.argsort(dim=0))
    assert not torch.equal(scores.select_regions(regions, t, 108), scores.select_regions(regions, t[unseen], 108))


def test_the_switches_of_the_config_do_what_they_say():
    e_g, regions, t = draw()
    kept = scores.select_regions(regions, t, 108)
    s_global = e_g @ t.T
    rsa = lambda r: (scores.region_scores(r, t).softmax(-1) * scores.region_scores(r, t)).sum(1)
    topk = lambda r: scores.region_scores(r, t).topk(16, dim=1).values.mean(1)
    for on, select, expected in [
        ({}, True, scores.fuse(s_global, rsa(kept), 0.25)),
        ({}, False, scores.fuse(s_global, rsa(regions), 0.25)),
        ({"rsa": False}, True, scores.fuse(s_global, topk(kept), 0.25)),
        ({"lam": 1.0, "normalize_fusion": False}, False, rsa(regions)),
        ({"lam": 0.0, "normalize_fusion": False}, True, s_global),
    ]:
        assert_close(scores.score(e_g, regions, t, HRCF.replace(**({"lam": 0.25} | on)), select), expected)


@pytest.mark.parametrize(
    "keep, J, expected", [(108, 140, 108), (108, 196, 151), (108, 100, 77), (1, 4, 1), (140, 36, 36)]
)
def test_the_share_of_regions_kept_is_the_same_for_any_number(keep, J, expected):
    assert scores.regions_to_keep(HRCF.replace(keep=keep), J) == expected


def test_topk_of_few_regions_takes_them_all():
    e_g, regions, t = draw(J=4)
    pooled = scores.score(e_g, regions, t, HRCF.replace(rsa=False, lam=1.0, normalize_fusion=False), select=False)
    assert_close(pooled, scores.region_scores(regions, t).mean(dim=1))


@pytest.mark.parametrize("function", [scores.global_scores, scores.region_scores, scores.relevance, scores.aggregate])
def test_widths_that_differ_are_named(function):
    embeddings = torch.zeros(2, 6) if function is scores.global_scores else torch.zeros(2, 140, 6)
    with pytest.raises(ValueError, match=r"6\) and label embeddings \(9, 5\) do not fit"):
        function(embeddings, torch.zeros(9, 5))
    with pytest.raises(ValueError, match=r"label embeddings \(6,\) do not fit"):
        function(embeddings, torch.zeros(6))
