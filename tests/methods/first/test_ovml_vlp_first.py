"""OVML-VLP: attention against torch's own, its two losses' arguments, its start, and training."""

import numpy as np
import pytest
import synthetic
import torch
from torch.nn import functional as F

from hrcf_lib import config, evaluation, methods, training
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds.features import FrozenFeatures, extract
from hrcf_lib.engine import chunks, weights
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.methods import registry
from hrcf_lib.methods.first import ovml_vlp
from hrcf_lib.methods.first.ovml_vlp import ImageTextAttention
from hrcf_lib.methods.losses import log_sum_ranking_loss, supervised_contrastive_loss
from hrcf_lib.studies import runs


def build(**changes):
    ready = {"phases": (("images", 3, 4),), "bf16": False, "ks": (1, 2)} | changes
    return methods.build("ovml_vlp", config.mini(), settings="first", pretrained=False, **ready)


def scrambled(model, seed=0):
    """The model with an attention that has left its start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.attention.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def embeddings(model, B=3, J=9, K=7, seed=0):
    """e_g (B, D), F (B, J, D), t (K, D) and labels (B, K)."""
    g = torch.Generator().manual_seed(seed)
    D = model.vlp.D
    labels = torch.randint(-1, 2, (B, K), generator=g)
    labels[:, 0], labels[:, 1] = 1, -1
    return *(torch.randn(*shape, D, generator=g) for shape in ((B,), (B, J), (K,))), labels


# Attention ------------------------------------------------------------------------------------------------------------


def test_attention_is_that_of_torch():
    attention = ImageTextAttention(16, heads=4, sharpness=0.2)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    parts = attention.query, attention.key, attention.value
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in parts]))
        theirs.out_proj.weight.copy_(attention.out.weight)
    t, regions = torch.randn(5, 16, generator=g), torch.randn(3, 9, 16, generator=g)
    queries = t.expand(3, 5, 16)
    f, masks = theirs(queries, regions, regions, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(attention(regions, t), f)
    torch.testing.assert_close(attention.masks(regions, t), masks)


def test_it_starts_as_a_weighted_mean_in_the_space_of_the_vlp():
    """One head, closed form: softmax(sharpness F_j . t_k) over positions, then the mean of F."""
    attention = ImageTextAttention(8, heads=1, sharpness=0.5)
    g = torch.Generator().manual_seed(0)
    t, regions = torch.randn(5, 8, generator=g), torch.randn(2, 9, 8, generator=g)
    mask = (0.5 * regions @ t.T).softmax(dim=1)  # (B, J, K)
    torch.testing.assert_close(attention(regions, t), mask.transpose(1, 2) @ regions)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_sharpness_is_the_mean_over_the_heads(heads):
    attention = ImageTextAttention(8, heads, sharpness=0.5)
    g = torch.Generator().manual_seed(0)
    t, regions = torch.randn(5, 8, generator=g), torch.randn(2, 9, 8, generator=g)
    logits = attention.masks(regions, t).log().mean(dim=1)  # (B, K, J), up to a constant over J
    expected = 0.5 * t @ regions.transpose(1, 2)
    centred = [x - x.mean(dim=-1, keepdim=True) for x in (logits, expected)]
    torch.testing.assert_close(*centred, rtol=1e-4, atol=1e-5)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads = 3 of embeddings of width 16: choose a divisor of 16"):
        ImageTextAttention(16, heads=3)


@pytest.mark.parametrize("field", ["heads", "contrastive_width", "contrastive_temperature"])
def test_fields_that_must_be_above_zero(field):
    with pytest.raises(ValueError, match=f"{field} = 0"):
        methods.configure("ovml_vlp", config.mini(), settings="first", **{field: 0})


# Scores ---------------------------------------------------------------------------------------------------------------


def test_scores_of_a_label_do_not_depend_on_the_others_or_their_order():
    model = scrambled(build()).eval()
    e_g, regions, t, _ = embeddings(model)
    whole = model.score_embeddings(e_g, regions, t)
    order = torch.tensor([4, 0, 6, 2])
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t[order]), whole[:, order])
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t[3:4]), whole[:, 3:4])


def test_lambda_at_test_time():
    model = scrambled(build(lam=0.25)).eval()
    e_g, regions, t, _ = embeddings(model)
    own = torch.einsum("bkd,kd->bk", model.attention(regions, t), t)

    def scores(lam):
        return runs.scorer(model, {"lam": lam})(e_g, regions, t)

    torch.testing.assert_close(scores(0.0), e_g @ t.T, rtol=0, atol=0)
    torch.testing.assert_close(scores(1.0), own)
    mixed = 0.25 * model.attention(regions, t) + 0.75 * e_g[:, None]  # features interpolated, then the dot product
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t), torch.einsum("bkd,kd->bk", mixed, t))
    torch.testing.assert_close(model.train().score_embeddings(e_g, regions, t), own)


def test_lambda_of_zero_is_the_plain_vlp_from_pixels():
    model = build(lam=0.0).eval()
    images = torch.randint(0, 256, (2, 3, model.vlp.side, model.vlp.side), dtype=torch.uint8)
    t = torch.randn(4, model.vlp.D)
    torch.testing.assert_close(model.score(images, t), model.vlp.encode_image(images) @ t.T)


def test_the_feature_map_is_projected_patch_tokens():
    model = build()
    trunk = torch.randn(2, 1 + model.vlp.N**2, model.vlp.C)
    e_g, regions = model.image_embeddings(trunk)
    visual = model.vlp.model.visual
    tokens = visual.ln_post(trunk) @ visual.proj
    torch.testing.assert_close(e_g, tokens[:, 0])
    torch.testing.assert_close(regions, tokens[:, 1:])


def test_unseen_labels_before_any_training():
    """On scenes that the shipped VLP never saw, untrained attention tells unseen labels above chance."""
    cfg = methods.configure("ovml_vlp", config.mini(), settings="first", val_size=48, lam=1.0)
    model = registry.for_config(cfg).eval()
    scenes = benchmarks.open_split(cfg, "val", "data", model.vlp.side)
    data = extract(model.vlp, scenes, space=scenes.labels, workers=0)
    found = evaluation.evaluate(model, data, ("ZSL",))["mAP"]["ZSL"]
    shuffled = np.random.default_rng(0).permutation(len(data))
    chance = FrozenFeatures(data.trunk[shuffled], data.teacher[shuffled], data.labels, data.space)
    assert found > 1.25 * evaluation.evaluate(model, chance, ("ZSL",))["mAP"]["ZSL"]


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels_a_part", [1, 2, 3])
def test_parts_agree_with_the_whole(labels_a_part, monkeypatch):
    """In float64: in float32 the order of sums, which differs between processors, moves gradients by up to 3e-5."""
    model = scrambled(build()).train().double()
    e_g, regions, t, labels = (x.double() for x in embeddings(model))
    regions.requires_grad_()

    def run():
        model.zero_grad()
        parts = model.losses(e_g, regions, t, labels, e_g)
        total = parts["ranking"] + parts["contrastive"]
        wanted = [regions, *model.attention.parameters(), *model.projection.parameters()]
        return [*(p.detach() for p in parts.values()), *torch.autograd.grad(total, wanted)]

    whole, scores = run(), model.score_embeddings(e_g, regions, t)
    B, J, D = regions.shape
    entries = B * max(D, model.config.heads * J)
    monkeypatch.setattr(chunks, "LARGE", entries * labels_a_part)
    seen = []
    model.attention.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    for one, other in zip(run(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t), scores)
    assert max(seen) == B * D * labels_a_part


def test_parts_are_bounded_at_the_size_of_the_paper():
    """B = 256, K = 1,006, N^2 = 196, D = 512: neither features nor the masks of all heads exceed 256 MiB."""
    B, J, D, H = 256, 196, 512, 8
    part = chunks.labels_at_a_time(1006, B * max(D, H * J))
    assert 1 < part < 1006 and B * part * max(D, H * J) * 4 <= 2**28


# Losses ---------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_all_features():
    model = scrambled(build())
    model.train()
    e_g, regions, t, labels = embeddings(model)
    f = model.attention(regions, t)
    image, label = (labels == 1).nonzero().T
    parts = model.losses(e_g, regions, t, labels, e_g)
    assert list(parts) == list(model.weights("images"))
    torch.testing.assert_close(parts["ranking"], log_sum_ranking_loss(torch.einsum("bkd,kd->bk", f, t), labels))
    features = F.normalize(model.projection(f[image, label]))
    expected = supervised_contrastive_loss(features, label, model.config.contrastive_temperature)
    torch.testing.assert_close(parts["contrastive"], expected)


def test_unknown_labels_change_nothing():
    model = scrambled(build())
    model.train()
    e_g, regions, t, labels = embeddings(model)
    labels[:, 4:] = 0
    parts = model.losses(e_g, regions, t, labels, e_g)
    t[4:] = 7 * torch.randn(t[4:].shape)
    other = model.losses(e_g, regions, t, labels, e_g)
    left_out = model.losses(e_g, regions, t[:4], labels[:, :4], e_g)
    for name in parts:
        torch.testing.assert_close(other[name], parts[name])
        torch.testing.assert_close(left_out[name], parts[name])


def test_no_gradient_of_unknown_scores():
    scores = torch.randn(3, 6, requires_grad=True)
    labels = torch.tensor([[1, -1, 0, 0, 1, -1]] * 3)
    (grad,) = torch.autograd.grad(log_sum_ranking_loss(scores, labels), scores)
    assert not grad[:, 2:4].any() and grad[:, [0, 1, 4, 5]].all()


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_learns_and_is_the_same_twice():
    def run():
        model = build()
        return training.train(model, synthetic.features()), model

    (history, model), (again, other) = run(), run()
    start = build().trainable_state()
    assert synthetic.same(model.trainable_state(), other.trainable_state())
    assert history.drop(columns=["seconds", "waited"]).equals(again.drop(columns=["seconds", "waited"]))
    changed = {name for name, value in model.trainable_state().items() if not torch.equal(value, start[name])}
    assert changed == {f"attention.{part}.weight" for part in ("query", "key", "value", "out")} | {"projection.weight"}
    assert model.vlp.hash == build().vlp.hash
    expected = [one_cycle(epoch, 3, 2e-4) for epoch in history["epoch"]]
    assert history["lr"].tolist() == expected and max(expected) == pytest.approx(2e-4, rel=0.02)
    assert (history["contrastive"] > 0).all()


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    data, whole, broken = synthetic.features(), build(), build()
    history = training.train(whole, data)
    training.train(broken, data, tmp_path, save_every=2, stop_after=5)
    resumed = build()
    rest = training.train(resumed, data, tmp_path, save_every=2)
    assert synthetic.same(whole.trainable_state(), resumed.trainable_state())
    assert rest["contrastive"].equals(history["contrastive"]) and rest["lr"].equals(history["lr"])


def test_without_the_contrastive_loss_its_projection_rests():
    model = build(contrastive=0.0)
    start = model.projection.weight.clone()
    history = training.train(model, synthetic.features())
    assert torch.equal(model.projection.weight, start) and (history["contrastive"] > 0).all()
    assert build().trainable == ovml_vlp.OVMLVLPFirst.trainable != model.trainable


@pytest.mark.parametrize("reduction", ["violations", "sum"])
def test_the_ranking_loss_does_not_depend_on_accumulation(reduction):
    def ranking(accumulate):
        model = build(accumulate=accumulate, ranking_reduction=reduction, contrastive=0.0)
        return training.train(model, synthetic.features())["ranking"].to_numpy()

    np.testing.assert_allclose(ranking(2), ranking(1), rtol=1e-4)


def test_saved_and_loaded(tmp_path):
    model = scrambled(build())
    model.save_pretrained(tmp_path)
    state = synthetic.weights(model)
    assert "projection.weight" in state and model.trainable_state().keys() == {n for n in state if n[:4] != "vlp."}
    loaded = build(seed=1)
    loaded.load_trainable(weights.read_tensors(tmp_path / "model.safetensors"), tmp_path)
    assert synthetic.same(model.trainable_state(), loaded.trainable_state())
