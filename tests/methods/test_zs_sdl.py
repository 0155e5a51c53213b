"""ZS-SDL against the released code's numbers, and its equations written as loops."""

import doctest
import math

import golden_clip
import pytest
import synthetic
import timm
import tiny_resnet
import torch
from hard_scores import KINDS, draw
from torch.testing import assert_close

from hrcf_lib import methods, metrics
from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.methods import zs_sdl
from hrcf_lib.methods.zs_sdl import (
    ZSSDL,
    centred,
    direction_scores,
    direction_variance,
    diversity_weights,
    pairs_per_image,
    principal_directions,
    semantic_diversity_loss,
)
from hrcf_lib.studies.records import published

CASES = ("mixed", "zeros_and_ones", "one_positive", "two_positives", "all_positive")
TOLERANCE = 2e-6  # times the largest entry, at least 1, of what the released code computed in float32


def near(ours: torch.Tensor, theirs, tolerance: float = TOLERANCE) -> None:
    theirs = torch.as_tensor(theirs).to(ours.dtype)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def test_doctests():
    assert doctest.testmod(zs_sdl).failed == 0


# The released code's numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return golden_clip.arrays("table1/sdl_loss")


def test_directions_and_scores_are_the_released_ones(golden):
    pooled = golden["features"].mean(dim=(2, 3))
    x = pooled @ golden["W"].T
    near(pooled, golden["pooled"])
    near(x, golden["x"])
    A = principal_directions(x, int(golden["M"]))
    near(A, golden["A"])
    near(direction_scores(A, golden["vecs"]), golden["scores"])
    near(direction_variance(A), golden["variance"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("weight", "name"), [(0.3, "w03"), (0.01, "w001"), (None, "wnone")])
def test_the_loss_is_the_released_one(golden, case, weight, name):
    labels, vecs = golden[f"{case}__labels"], golden["vecs"]
    W, x = golden["W"].clone().requires_grad_(), golden["x"].clone().requires_grad_()
    A = principal_directions(x, int(golden["M"]))
    near(diversity_weights(labels == 1, vecs) - 1, golden[f"{case}__diversity"])
    loss = semantic_diversity_loss(A, labels, vecs, weight)
    near(loss, golden[f"{case}__loss_{name}"])
    each = [semantic_diversity_loss(A[i : i + 1], labels[i : i + 1], vecs, weight) for i in range(len(A))]
    near(torch.stack(each), golden[f"{case}__per_image_{name}"])
    if weight == 0.3:
        near(torch.autograd.grad(loss, x)[0], golden[f"{case}__grad_x_w03"])
        if case == "mixed":
            A = principal_directions(golden["pooled"] @ W.T, int(golden["M"]))
            near(torch.autograd.grad(semantic_diversity_loss(A, labels, vecs, 0.3), W)[0], golden["mixed__grad_W_w03"])


def test_a_single_direction_has_the_released_loss(golden):
    x = golden["single_row__x"].clone().requires_grad_()
    loss = semantic_diversity_loss(x[:, None], golden["mixed__labels"], golden["vecs"], None)
    near(loss, golden["single_row__loss_wnone"])
    near(torch.autograd.grad(loss, x)[0], golden["single_row__grad_x_wnone"])


def test_our_metrics_on_the_pictures_that_the_released_protocol_keeps():
    """Pictures with a positive among the evaluated labels alone: micro P, R and F1, and mAP."""
    arrays = golden_clip.arrays("table1/sdl_protocol")
    labels = 2 * arrays["labels"][:, arrays["relevant"].long()].float() - 1
    kept = (labels == 1).any(dim=1)
    assert torch.equal(kept, arrays["kept_images"].bool())
    s, y = arrays["scores64"][kept], labels[kept]
    for k in (1, 3):
        ours = 100 * torch.tensor(metrics.precision_recall_f1_at_k(s, y, k), dtype=torch.float64)
        assert_close(ours, arrays[f"p_r_f1_k{k}"].double(), rtol=0, atol=1e-4)
    assert 100 * metrics.mean_average_precision(s, y) == pytest.approx(float(arrays["map"]), abs=1e-4)


# Loops ----------------------------------------------------------------------------------------------------------------


def slow_loss(directions, labels, words, weight, unknown="absent"):
    """Eqs. 1 to 5 picture by picture, pair by pair, coordinate by coordinate."""
    losses = []
    for A, y in zip(directions, labels, strict=True):
        s = [max((row * a).sum() for row in A) for a in words]
        P = [k for k in range(len(y)) if y[k] == 1]
        N = [k for k in range(len(y)) if y[k] == -1 or (y[k] == 0 and unknown == "absent")]
        if not P:
            continue
        softplus = lambda v: torch.logaddexp(v, torch.zeros_like(v))
        pairs = sum(softplus(s[n] - s[p]) for p in P for n in N) if N else sum(softplus(-s[p]) for p in P)
        variance = lambda rows: sum(
            sum((row[c] - sum(r[c] for r in rows) / len(rows)) ** 2 for row in rows) / (len(rows) - 1)
            for c in range(words.shape[1])
        )
        omega = 1 + (variance([words[k] for k in P]) if len(P) > 1 else 0)
        L = omega * pairs / len(P)
        if weight is not None:
            L = 2 * ((1 - weight) * L + weight * (variance(list(A)) if len(A) > 1 else 0))
        losses.append(L)
    return sum(losses) / len(losses) if losses else 0 * directions.sum()


@pytest.mark.parametrize("unknown", ["absent", "out"])
@pytest.mark.parametrize(("M", "weight"), [(1, None), (1, 0.3), (2, 0.01), (5, 1.0)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("K=")])
def test_the_loss_equals_its_slow_twin(kind, M, weight, unknown):
    _, labels = draw(kind, seed=M)
    labels = labels[:4, :7]
    g = torch.Generator().manual_seed(M)
    A = torch.randn(len(labels), M, 3, generator=g, dtype=torch.float64) * (50 if kind == "large" else 1)
    words = torch.randn(7, 3, generator=g, dtype=torch.float64)
    found = []
    for loss in (semantic_diversity_loss, slow_loss):
        own = A.clone().requires_grad_()
        value = loss(own, labels, words, weight, unknown)
        found.append((value.detach(), *torch.autograd.grad(value, own)))
    assert_close(found[0], found[1], rtol=1e-8, atol=1e-9)


def test_half_precision_is_computed_in_single():
    g = torch.Generator().manual_seed(0)
    A, words = torch.randn(3, 2, 4, generator=g), torch.randn(6, 4, generator=g)
    labels = torch.tensor([[1, 1, -1, 0, 0, -1]] * 3)
    low = semantic_diversity_loss(A.bfloat16(), labels, words.bfloat16(), 0.3)
    assert low.dtype == torch.float32
    assert_close(low, semantic_diversity_loss(A, labels, words, 0.3), rtol=0.05, atol=0.05)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_picture_without_a_positive_is_left_out():
    """The released code divides 0 by 0 there."""
    g = torch.Generator().manual_seed(1)
    A, words = torch.randn(3, 2, 4, generator=g), torch.randn(6, 4, generator=g)
    labels = torch.tensor([[1, 1, -1, 0, 0, -1], [-1, -1, 0, 0, -1, -1], [-1, 1, -1, 1, -1, 0]])
    assert_close(
        semantic_diversity_loss(A, labels, words, 0.3),
        semantic_diversity_loss(A[[0, 2]], labels[[0, 2]], words, 0.3),
    )
    A.requires_grad_()
    none = semantic_diversity_loss(A, -labels.abs(), words, 0.3)
    assert none == 0 and torch.autograd.grad(none, A)[0].abs().max() == 0
    assert semantic_diversity_loss(A[:0], labels[:0], words, 0.3) == 0


def test_diversity_of_one_positive_of_none_and_of_the_same_twice():
    words = torch.tensor([[0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [0.0, 0.0]])
    present = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert_close(diversity_weights(present, words), torch.tensor([1.0, 1.0, 1.0, 1.4, 1.0]))


def test_bad_input_is_named():
    A, words, labels = torch.randn(2, 3, 4), torch.randn(5, 4), torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"directions \(2, 3, 4\) and word vectors \(5, 6\) do not fit"):
        semantic_diversity_loss(A, labels, torch.randn(5, 6), 0.3)
    with pytest.raises(ValueError, match="at least one direction"):
        direction_scores(A[:, :0], words)
    with pytest.raises(ValueError, match=r"\(2, 5\) and labels \(2, 4\) must have one shape"):
        semantic_diversity_loss(A, labels[:, :4], words, 0.3)
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 2"):
        semantic_diversity_loss(A, labels * 2, words, 0.3)
    with pytest.raises(ValueError, match="nan"):
        semantic_diversity_loss(A * math.nan, labels, words, 0.3)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="of the variance must be from 0 to 1, or None"):
            semantic_diversity_loss(A, labels, words, weight)
    with pytest.raises(ValueError, match="unknown = 'negative': choose one of absent, out"):
        pairs_per_image(A, labels, words, "negative")
    with pytest.raises(ValueError, match="an output of width 12 cannot be read as 5 directions: choose a divisor"):
        principal_directions(torch.randn(2, 12), 5)


# The method -----------------------------------------------------------------------------------------------------------


RELEASED = {"start": "random", "blocks": 1, "pool": "class", "variance": 0.3}  # val has others, on the mini VLP


def model(**changes) -> ZSSDL:
    return methods.build("zs_sdl", synthetic.config(), pretrained=False, **RELEASED | changes)


@pytest.fixture(scope="module")
def trunk():
    return synthetic.features().batch(torch.arange(4))[0]


def test_parameters_are_those_of_hrcfs_table():
    """TResNet-M without its head, and W of M = 7 directions of GloVe's 300: 33.6 M; with M = 2 it would be 30.6 M."""
    with torch.device("meta"):
        trunk = timm.create_model("tresnet_m", num_classes=0)
    counts = {M: sum(p.numel() for p in trunk.parameters()) + trunk.num_features * 300 * M for M in (2, 7)}
    assert counts == {2: 30_568_832, 7: 33_640_832}
    table = published("hrcf_table6_parameters").set_index("method")
    assert table.loc["ZS-SDL", "all_M"] == round(counts[7] / 1e6, 1)


@pytest.mark.parametrize(("blocks", "M"), [(0, 7), (1, 2), (2, 1)])
def test_parameters_with_a_vlp(blocks, M):
    """The last blocks, the final norm and W, C x D M."""
    own = model(blocks=blocks, directions=M)
    C, D = own.vlp.C, own.vlp.D
    block = sum(p.numel() for p in own.vlp.model.visual.transformer.resblocks[0].parameters())
    assert own.trained_parameters() == {"image side": blocks * block + 2 * C + C * D * M, "text side": 0}


def test_x_is_the_class_token_or_the_mean_of_the_patches(trunk):
    own = model()
    other = own.under(own.config.replace(pool="mean"))
    with torch.no_grad():
        tokens = own.ln_post(own.block(trunk))
        x, A = own.image_embeddings(trunk)
        assert_close(x, tokens[:, 0])
        assert_close(other.image_embeddings(trunk)[0], tokens[:, 1:].mean(dim=1))
    assert A.shape == (4, 7, own.vlp.D)
    assert_close(A[:, 3], x @ own.head.weight.unflatten(0, (-1, 7))[:, 3].T)


def test_a_start_near_clips_projection_scores_like_clip(trunk):
    own = model(start="clip")
    names = ["cat", "boat", "sun", "tree", "bus"]
    t = own.label_embeddings(names)
    with torch.no_grad():
        s, clip = own.score_embeddings(*own.image_embeddings(trunk), t), own.vlp.teacher(trunk) @ t.T
        again = model(start="clip").head.weight
    assert torch.corrcoef(torch.stack([s.flatten(), clip.flatten()]))[0, 1] > 0.7
    assert torch.equal(own.head.weight, again) and not torch.equal(own.head.weight[0], own.head.weight[1])
    close = own.head.weight.unflatten(0, (-1, 7)) - own.vlp.model.visual.proj.T[:, None]
    assert 0.5 < float(close.detach().std() / (zs_sdl.NOISE * own.vlp.model.visual.proj.std())) < 2


def test_starts_that_cannot_be_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 2 3\ndog 3 2 1\n")
    with pytest.raises(ValueError, match="start = 'clip' with word vectors of .*glove.txt: take 'random'"):
        model(start="clip", glove=str(path))
    own = model(glove=str(path), directions=2)
    assert own.head.weight.shape == (6, own.vlp.C)
    assert_close(own.label_embeddings(["dog"]), torch.tensor([[3.0, 2.0, 1.0]]) / math.sqrt(14))
    tiny_resnet.enter(monkeypatch)
    with pytest.raises(ValueError, match="start = 'clip' with tiny-resnet, whose image tower ends in no projection"):
        model(start="clip", vlp=tiny_resnet.NAME)


def test_of_a_resnet_w_alone_learns(monkeypatch):
    tiny_resnet.enter(monkeypatch)
    own = model(vlp=tiny_resnet.NAME, directions=3)
    assert own.trained_parameters()["image side"] == own.vlp.C * own.vlp.D * 3
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    positions = own.vlp.trunk(images)[:, 1:]
    with torch.no_grad():
        assert_close(own.image_embeddings(own.vlp.trunk(images))[0], positions.mean(dim=1))
    assert own.score(images, ["cat", "boat"]).shape == (2, 2)


@pytest.mark.parametrize("lam", [None, 0.0, 0.3, 1.0])
def test_parts_add_up_to_the_loss(trunk, lam):
    own = model(variance=lam)
    labels = torch.tensor([[1, 1, -1, 0, -1], [-1, -1, 0, 0, -1], [1, -1, -1, 1, 1], [0, 0, 1, -1, -1]])
    t = own.label_embeddings(synthetic.SPACE.seen)
    with torch.no_grad():
        x, A = own.image_embeddings(trunk)
        parts = own.losses(x, A, t, labels, own.vlp.teacher(trunk))
    loss = sum(weight * parts[name] for name, weight in own.weights("images").items())
    assert_close(loss, semantic_diversity_loss(A, labels, t, lam))


def test_diversity_and_unknown_labels_have_switches(trunk):
    labels = torch.tensor([[1, 1, -1, 0, -1]] * 4)
    found = {}
    for changes in ({}, {"diversity": "none"}, {"diversity": "centred"}, {"unknown": "out"}):
        own = model(**changes)
        t = own.label_embeddings(synthetic.SPACE.seen)
        with torch.no_grad():
            x, A = own.image_embeddings(trunk)
            found[(*changes.values(), "")[0]] = own.losses(x, A, t, labels, x)["ranking"]
    omega = {name: diversity_weights(labels[:1] == 1, words)[0] for name, words in (("", t), ("centred", centred(t)))}
    assert_close(found[""], omega[""] * found["none"])
    assert_close(found["centred"], omega["centred"] * found["none"])
    assert_close(found["out"], pairs_per_image(A, labels, t, "out").mean() * omega[""])
    assert found["out"] < found[""]


def test_rates_rise_over_a_tenth():
    own = model(lr=1.0)
    rates = [own.learning_rate("images", epoch, 10) for epoch in (0.0, 1.0, 10.0)]
    assert rates == pytest.approx([1 / 25, 1.0, 1 / 25e4], rel=1e-6)
    assert {group["lr_scale"] for group in own.groups("images")} == {1.0}


def test_a_user_who_embeds_labels_by_another_model_is_told(trunk):
    with pytest.raises(ValueError, match=r"word vectors \(2, 5\) do not fit"):
        model().score(torch.zeros(1, 3, 112, 112, dtype=torch.uint8), torch.randn(2, 5))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"directions": 0}, "directions = 0 must be from 1 to"),
        ({"variance": 1.5}, "variance = 1.5 must be from 0 to 1"),
        ({"unknown": "negative"}, "unknown = 'negative': choose one of absent, out"),
        ({"diversity": "off"}, "diversity = 'off': choose one of words, centred, none"),
        ({"pool": "max"}, "pool = 'max': choose one of class, mean"),
        ({"start": "zero"}, "start = 'zero': choose one of random, clip"),
        ({"rise": 2}, "rise = 2 must be from 0 to 1"),
        ({"blocks": 99}, "blocks = 99 of a ViT with"),
        ({"glove": "/nowhere.txt"}, "no word vectors at"),
    ],
)
def test_bad_values_are_refused(changes, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        model(**changes)


# Texts in a cone ------------------------------------------------------------------------------------------------------


def in_a_cone(cosine: float, n: int = 400, d: int = 512) -> torch.Tensor:
    """Unit vectors whose cosines are about ``cosine``: a common direction, and noise."""
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    common = torch.zeros(d, dtype=torch.float64)
    common[0] = math.sqrt(cosine)
    return torch.nn.functional.normalize(common + noise * math.sqrt((1 - cosine) / d), dim=1)


@pytest.mark.parametrize(("cosine", "omega"), [(0.2, 1.8), (0.77, 1.23)])
def test_in_a_cone_the_diversity_weight_almost_vanishes(cosine, omega):
    """With cosines like GloVe's it is about 1.8, with those of CLIP's texts 1.23: the same for all pictures.

    Without their mean, it is about 2 in both.
    """
    words = in_a_cone(cosine)
    present = torch.rand(64, len(words), generator=torch.Generator().manual_seed(1)) < 0.02
    present[:, :2] = True
    own = diversity_weights(present, words)
    assert abs(own.mean() - omega) < 0.02 and own.std() < 0.02
    assert abs(diversity_weights(present, centred(words)).mean() - 2) < 0.02


def test_the_diversity_weight_of_the_mini_vlps_texts():
    """2 less the mean cosine of label texts, which lie in a cone as CLIP's do; 2 with their mean taken off, as of texts
    that know nothing of each other, and then it tells pictures apart. See papers/zs_sdl.md."""
    own = methods.build("zs_sdl", synthetic.config())
    words = own.label_embeddings(vocabulary.names("seen"))
    cosine = (words @ words.T)[~torch.eye(len(words), dtype=torch.bool)].mean()
    assert 0.4 < cosine < 0.9
    present = torch.rand(500, len(words), generator=torch.Generator().manual_seed(1)) < 3.6 / len(words)
    present = present[present.sum(dim=1) > 1]
    omega, without_mean = (diversity_weights(present, x) for x in (words, centred(words)))
    assert abs(omega.mean() - (2 - cosine)) < 0.03
    assert abs(without_mean.mean() - 2) < 0.05 and without_mean.std() > 1.3 * omega.std()


def test_the_diversity_weight_is_two_minus_the_mean_cosine_of_pairs():
    words = in_a_cone(0.5, n=6)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    cosine = sum(words[a] @ words[b] for a, b in pairs) / len(pairs)
    present = torch.tensor([[True] * 4 + [False] * 2])
    assert_close(diversity_weights(present, words)[0], 2 - cosine)
