"""OVML-VLP: attention against torch's own, its start against CLIP's layers, its losses and their weights, training."""

import numpy as np
import open_clip
import pytest
import synthetic
import torch
from torch.nn import functional as F

from hrcf_lib import config, methods, training
from hrcf_lib.apply import region_maps
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.engine import chunks, weights
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.methods import ovml_vlp
from hrcf_lib.methods.losses import pairwise_logistic
from hrcf_lib.methods.ovml_vlp import ImageTextAttention
from hrcf_lib.studies import runs

RESNET = {  # C = 256, four heads of 64, N = 2
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def build(**changes):
    ready = {"phases": (("images", 3, 4),), "bf16": False, "ks": (1, 2), "lr": 2e-4, "contrastive": 1.0} | changes
    return methods.build("ovml_vlp", config.mini(), pretrained=False, **ready)


@pytest.fixture
def resnet(monkeypatch):
    """``build`` on a small CLIP ResNet with random weights."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-resnet", RESNET)
    return lambda **changes: build(vlp="small-resnet", **changes)


def scrambled(model, seed=0):
    """The model with an attention that has left its start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.attention.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def embeddings(model, B=3, J=9, K=7, seed=0):
    """e_g (B, D), X' (B, J, C), t (K, D) of length 1 and labels (B, K)."""
    g = torch.Generator().manual_seed(seed)
    C, D = model.vlp.C, model.vlp.D
    labels = torch.randint(-1, 2, (B, K), generator=g)
    labels[:, 0], labels[:, 1] = 1, -1
    e_g, regions, t = (torch.randn(shape, generator=g) for shape in ((B, D), (B, J, C), (K, D)))
    return e_g, regions, F.normalize(t), labels


# Attention ------------------------------------------------------------------------------------------------------------


def test_attention_is_that_of_torch_with_biases():
    attention = ImageTextAttention(D=16, C=24, A=32, heads=4)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in attention.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    t, regions = torch.randn(5, 16, generator=g), torch.randn(3, 9, 24, generator=g)
    parts = (attention.query, attention.key, attention.value)
    found, masks = F.multi_head_attention_forward(
        attention.query(t).expand(3, 5, 32).transpose(0, 1),
        *(layer(regions).transpose(0, 1) for layer in parts[1:]),
        embed_dim_to_check=32,
        num_heads=4,
        in_proj_weight=torch.eye(32).repeat(3, 1),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=torch.eye(32),
        out_proj_bias=None,
        average_attn_weights=False,
    )
    torch.testing.assert_close(attention(regions, t), attention.out(found.transpose(0, 1)))
    torch.testing.assert_close(attention.masks(regions, t), masks.detach())


def test_attention_head_by_head():
    """Eqs. 2-3 as loops over images, labels and heads."""
    attention = ImageTextAttention(D=6, C=5, A=8, heads=2)
    g = torch.Generator().manual_seed(1)
    t, regions = torch.randn(3, 6, generator=g), torch.randn(2, 4, 5, generator=g)
    expected = torch.empty(2, 3, 6)
    for i in range(2):
        for j in range(3):
            q, k, v = attention.query(t[j]), attention.key(regions[i]), attention.value(regions[i])
            heads = []
            for own in (slice(0, 4), slice(4, 8)):
                weights = (k[:, own] @ q[own] / 4**0.5).softmax(dim=0)  # over positions
                heads.append(weights @ v[:, own])
            expected[i, j] = attention.out(torch.cat(heads))
    torch.testing.assert_close(attention(regions, t), expected)


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="3 heads of an attention of width 16: choose a divisor of it"):
        ImageTextAttention(8, 8, 16, heads=3)
    with pytest.raises(ValueError, match="head_width = 48 of a feature map of width 128: choose a divisor of it"):
        build(head_width=48)


def test_sizes_are_those_of_clips_pool(resnet):
    """RN50: 32 heads of 64, F_q 1024 to 2048, F_k and F_v 2048 to 2048, F_o 2048 to 1024 (counted, not built)."""
    model = resnet()
    pool = model.vlp.model.visual.attnpool
    assert model.attention.heads == pool.num_heads == 4 and model.attention.key.weight.shape == pool.k_proj.weight.shape
    with torch.device("meta"):
        whole = ImageTextAttention(1024, 2048, 2048, 2048 // 64)
    assert sum(p.numel() for p in whole.parameters()) == 2 * (2048 * 2048 + 2048) + 2 * 1024 * 2048 + 2048 + 1024


# Start ----------------------------------------------------------------------------------------------------------------


def test_a_resnet_starts_with_clips_own_layers(resnet):
    """With queries of 0 the masks are flat, and the feature is the mean of the VLP's own dense features."""
    model = resnet()
    pool, attention = model.vlp.model.visual.attnpool, model.attention
    for own, clips in ((attention.key, pool.k_proj), (attention.value, pool.v_proj), (attention.out, pool.c_proj)):
        assert torch.equal(own.weight, clips.weight) and torch.equal(own.bias, clips.bias)
        assert own.weight.data_ptr() != clips.weight.data_ptr() and own.weight.requires_grad
    torch.nn.init.zeros_(attention.query.weight)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    trunk = model.vlp.trunk(images)
    _, regions = model.image_embeddings(trunk)
    assert torch.equal(regions, trunk[:, 1:]) and regions.shape == (2, 4, 256)
    o = attention(regions, torch.randn(3, 32))  # (2, 3, 32)
    torch.testing.assert_close(o, model.vlp.dense(trunk).mean(dim=1, keepdim=True).expand(2, 3, 32))


def test_a_vit_starts_with_its_norm_and_projection():
    """For tokens of deviation 1 the start is the VLP's own dense features."""
    model = build()
    torch.nn.init.zeros_(model.attention.query.weight)
    visual = model.vlp.model.visual
    with torch.no_grad():
        visual.ln_post.weight.uniform_(0.5, 1.5), visual.ln_post.bias.uniform_(-0.5, 0.5)
    model.attention.start_as(visual)
    tokens = torch.randn(2, 10, 128) + torch.randn(2, 10, 1)
    tokens = tokens / tokens.std(dim=-1, keepdim=True, correction=0)
    dense = visual.ln_post(tokens[:, 1:]) @ visual.proj
    o = model.attention(tokens[:, 1:], torch.randn(3, 128))
    torch.testing.assert_close(o, dense.mean(dim=1, keepdim=True).expand(2, 3, 128), rtol=1e-4, atol=1e-4)


def test_a_random_start_is_drawn_by_the_seed(resnet):
    model, again, other = resnet(start="random"), resnet(start="random"), resnet(start="random", seed=1)
    assert synthetic.same(model.trainable_state(), again.trainable_state())
    assert not torch.equal(model.attention.key.weight, other.attention.key.weight)
    bound = (6 / (256 + 256)) ** 0.5  # of Xavier
    assert model.attention.key.weight.abs().max() <= bound and not model.attention.value.bias.any()
    assert not torch.equal(model.attention.value.weight, model.vlp.model.visual.attnpool.v_proj.weight)


def test_positions_are_those_of_the_pool_without_the_means(resnet):
    trunk = torch.randn(2, 5, 256)
    model = resnet(positions=True)
    _, regions = model.image_embeddings(trunk)
    torch.testing.assert_close(regions, trunk[:, 1:] + model.vlp.model.visual.attnpool.positional_embedding[1:])
    with pytest.raises(ValueError, match="positions of hrcf-mini, whose tokens hold theirs already: set it to False"):
        build(positions=True)


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "p"), [("l2", 2), ("l1", 1)])
def test_scores_are_of_normalised_features_and_texts(norm, p):
    model = scrambled(build(norm=norm, lam=0.25)).eval()
    e_g, regions, t, _ = embeddings(model)
    unit = lambda x: x / x.abs().pow(p).sum(dim=-1, keepdim=True) ** (1 / p)
    t = unit(t)
    o = unit(model.attention(regions, t))
    own = torch.einsum("bkd,kd->bk", o, t)

    def scores(**changes):
        return runs.scorer(model, changes)(e_g, regions, t)

    torch.testing.assert_close(scores(lam=1.0), own)
    torch.testing.assert_close(scores(lam=0.0), unit(e_g) @ t.T)  # CLIP-ML, Eq. 1
    mixed = 0.25 * o + 0.75 * unit(e_g)[:, None]  # features interpolated, then the dot product
    torch.testing.assert_close(scores(), torch.einsum("bkd,kd->bk", mixed, t))
    torch.testing.assert_close(scores(renormalize=True), torch.einsum("bkd,kd->bk", unit(mixed), t))
    assert norm == "l1" or scores().abs().max() <= 1
    torch.testing.assert_close(model.train().score_embeddings(e_g, regions, t), own)
    torch.testing.assert_close(model.score_embeddings(e_g, regions, 7 * t), own, msg="texts are normalised, too")


def test_texts_are_class_names_of_length_1(resnet):
    model = resnet()
    t = model.label_embeddings(["cat", "sports car"])
    torch.testing.assert_close(t, F.normalize(model.vlp.encode_text(["cat", "sports car"])))


def test_a_score_does_not_depend_on_the_other_labels_or_their_order():
    model = scrambled(build()).eval()
    e_g, regions, t, _ = embeddings(model)
    whole = model.score_embeddings(e_g, regions, t)
    order = torch.tensor([4, 0, 6, 2])
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t[order]), whole[:, order])
    torch.testing.assert_close(model.score_alone(e_g, regions, t[:3], t[3:]), whole[:, 3:])


def test_maps_are_the_mean_mask_over_the_heads():
    model = scrambled(build()).eval()
    _, regions, t, _ = embeddings(model, J=196)
    maps = model.maps(regions, 5 * t)
    torch.testing.assert_close(maps, model.attention.masks(regions, t).mean(dim=1))
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 7))
    drawn = region_maps.region_maps(model, regions, t, [1, 4])
    assert drawn.shape == (3, 2, 112, 112) and drawn.amin() == 0 and drawn.amax() == 1


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels_a_part", [1, 3])
def test_parts_agree_with_the_whole(labels_a_part, monkeypatch):
    """In float64: in float32 the order of sums, which differs between processors, moves gradients."""
    model = scrambled(build()).train().double()
    e_g, regions, t, labels = (x.double() for x in embeddings(model))
    regions.requires_grad_()

    def run():
        parts = model.losses(e_g, regions, t, labels, e_g)
        total = parts["ranking"] + parts["contrastive"]
        wanted = [regions, *model.attention.parameters(), *model.projection.parameters()]
        return [*(p.detach() for p in parts.values()), *torch.autograd.grad(total, wanted)]

    whole, scores = run(), model.score_embeddings(e_g, regions, t)
    mixed = model.eval().under(model.config.replace(renormalize=True)).score_embeddings(e_g, regions, t)
    model.train()
    entries = 3 * 2 * 64  # B, and heads of 64 entries, more than 9 positions
    monkeypatch.setattr(chunks, "LARGE", entries * labels_a_part)
    seen = []
    model.attention.out.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    for one, other in zip(run(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.score_embeddings(e_g, regions, t), scores)
    again = model.eval().under(model.config.replace(renormalize=True)).score_embeddings(e_g, regions, t)
    torch.testing.assert_close(again, mixed)
    assert max(seen) == labels_a_part


# Losses ---------------------------------------------------------------------------------------------------------------


def slow_contrastive_sum(z, pairs, tau):
    """Eqs. 8-9 anchor by anchor: ``pairs`` are (image, class) of each row of z."""
    total = z.new_zeros(())
    for a, (_, j) in enumerate(pairs):
        others = [b for b in range(len(pairs)) if b != a]
        partners = [b for b in others if pairs[b][1] == j]
        if partners:
            below = sum(torch.exp(z[a] @ z[b] / tau) for b in others)
            total = total - sum(torch.log(torch.exp(z[a] @ z[p] / tau) / below) for p in partners) / len(partners)
    return total


@pytest.mark.parametrize("layers", [1, 2])
def test_losses_are_those_of_all_features(layers):
    model = scrambled(build(contrastive_layers=layers)).train().double()
    e_g, regions, t, labels = (x.double() for x in embeddings(model, B=4))
    o = F.normalize(model.attention(regions, t), dim=-1)
    parts = model.losses(e_g, regions, t, labels, e_g)
    assert list(parts) == list(model.weights("images")) and model.weights("images") == dict.fromkeys(parts, 1.0)
    torch.testing.assert_close(parts["ranking"], pairwise_logistic(torch.einsum("bkd,kd->bk", o, t), labels))
    pairs = [(i, j) for j in range(7) for i in range(4) if labels[i, j] == 1]
    z = F.normalize(model.projection(torch.stack([o[i, j] for i, j in pairs])))
    assert z.shape[1] == 128
    torch.testing.assert_close(parts["contrastive"], slow_contrastive_sum(z, pairs, tau=0.1))


def test_unknown_labels_change_nothing():
    model = scrambled(build()).train()
    e_g, regions, t, labels = embeddings(model)
    labels[:, 4:] = 0
    parts = model.losses(e_g, regions, t, labels, e_g)
    t[4:] = F.normalize(torch.randn(t[4:].shape))
    other = model.losses(e_g, regions, t, labels, e_g)
    left_out = model.losses(e_g, regions, t[:4], labels[:, :4], e_g)
    for name in parts:
        torch.testing.assert_close(other[name], parts[name])
        torch.testing.assert_close(left_out[name], parts[name])


def test_scores_that_are_not_finite_stop_training():
    model = build().train()
    e_g, regions, t, labels = embeddings(model)
    regions[1, 2, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="scores are NaN or infinite: look at the features"):
        model.losses(e_g, regions, t, labels, e_g)


# Training -------------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_paper():
    made = methods.configure("ovml_vlp", config.open_images())
    assert (made.optimizer, made.lr, made.contrastive, made.norm, made.start) == ("adam", 2e-4, 1.0, "l2", "clip")
    assert [(p.trains, p.epochs, p.batch) for p in made.phases] == [("images", 6, 64)], "64, not the preset's 128"
    mini = methods.configure("ovml_vlp", config.mini_short())
    assert ovml_vlp.OVMLVLPConfig.small.items() <= mini.to_dict().items() and mini.phases[0].batch == 64
    assert isinstance(build().optimizer(build().groups("images")), torch.optim.Adam)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("contrastive_temperature", 0, "contrastive_temperature = 0.0 must be above 0"),
        ("contrastive_width", 0, "contrastive_width = 0 must be from 1 to"),
        ("contrastive_layers", 3, "contrastive_layers = 3: choose one of 1, 2"),
        ("head_width", 0, "head_width = 0 must be from 1 to"),
        ("norm", "l3", "norm = 'l3': choose one of l2, l1"),
        ("start", "clips", "start = 'clips': choose one of clip, random"),
        ("lam", 1.5, "lam = 1.5 must be from 0 to 1"),
    ],
)
def test_settings_out_of_bounds(field, value, message):
    with pytest.raises(ValueError, match=message):
        methods.configure("ovml_vlp", config.mini(), **{field: value})


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
    layers = {f"attention.{part}.{kind}" for part in ("query", "key", "value", "out") for kind in ("weight", "bias")}
    assert changed == layers | {"projection.0.weight"}
    assert model.vlp.hash == build().vlp.hash
    expected = [one_cycle(epoch, 3, 2e-4) for epoch in history["epoch"]]
    assert history["lr"].tolist() == expected and max(expected) == pytest.approx(2e-4, rel=0.02)
    assert history["contrastive"].iloc[-1] < history["contrastive"].iloc[0]


def test_without_the_contrastive_loss_its_projection_rests():
    model = build(contrastive=0.0, phases=(("images", 1, 10),))
    start = model.projection[0].weight.clone()
    history = training.train(model, synthetic.features())
    assert torch.equal(model.projection[0].weight, start) and (history["contrastive"] > 0).all()
    assert build().trainable == ovml_vlp.OVMLVLP.trainable != model.trainable


def test_the_ranking_loss_does_not_depend_on_accumulation_and_the_contrastive_parts_add_up():
    model = build()

    def first(accumulate):
        model = build(accumulate=accumulate, phases=(("images", 1, 10),), contrastive=0.0)
        return training.train(model, synthetic.features()).iloc[0]

    whole, halves = first(1), first(2)
    assert halves["ranking"] == pytest.approx(whole["ranking"], rel=1e-5)
    assert model.summed() == {"contrastive"}
    data, total = synthetic.features(), 0.0
    t = model.label_embeddings(data.space.seen)
    for rows in torch.arange(10).split(5):
        e_g, regions = model.image_embeddings(data.batch(rows)[0])
        total += model.losses(e_g, regions, t, data.labels[rows, :5], e_g)["contrastive"].item()
    assert total > 0 and halves["contrastive"] < whole["contrastive"], "parts compare fewer features"


def test_a_resnet_trains(resnet):
    model = resnet(phases=(("images", 8, 10),), lr=1e-2, contrastive=0.0)
    trunk = np.random.default_rng(0).standard_normal((10, 5, 256)).astype(np.float16)
    data = synthetic.features()
    data = FrozenFeatures(trunk, data.teacher[:, :32], data.labels, data.space)
    history = training.train(model, data)
    assert history["ranking"].iloc[-1] < history["ranking"].iloc[0]


@pytest.mark.slow
def test_saved_and_loaded(tmp_path):
    model = scrambled(build(contrastive_layers=2))
    model.save_pretrained(tmp_path)
    state = synthetic.weights(model)
    assert "projection.2.weight" in state
    loaded = build(seed=1, contrastive_layers=2)
    loaded.load_trainable(weights.read_tensors(tmp_path / "model.safetensors"), tmp_path)
    assert synthetic.same(model.trainable_state(), loaded.trainable_state())
