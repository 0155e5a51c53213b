"""LESA against the released code's numbers, its equations written as loops, and the parameters that were printed."""

import doctest
import math

import golden_clip
import pytest
import synthetic
import tiny_resnet
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from hrcf_lib import methods
from hrcf_lib.losses import ranking_loss
from hrcf_lib.methods import lesa
from hrcf_lib.methods.lesa import (
    LESA,
    SharedAttentions,
    attend,
    attention_overlap,
    distribution_loss,
    diversity_loss,
    he_deviation,
    relevance_loss,
)
from hrcf_lib.studies.records import published
from hrcf_lib.training import train

TOLERANCE = {"value": 2e-6, "gradient": 5e-6, "training": 1e-6}  # times the largest entry, at least 1
PARTS = ("rank", "att_dist", "att_global", "att_span")


def near(ours: torch.Tensor, theirs: torch.Tensor, kind: str = "value") -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE[kind] * max(1.0, float(theirs.abs().max()))


def test_doctests():
    assert doctest.testmod(lesa).failed == 0


# The released code's numbers ------------------------------------------------------------------------------------------


def released_network(convolution: bool) -> SharedAttentions:
    """With the released weights, whose matrices are input x output and end in the bias."""
    state = golden_clip.arrays("table1/lesa_state")
    D, M = len(state["W"]), state["w_att_2"].shape[1]
    network = SharedAttentions(D, M, state["W"].shape[1], convolution)
    layers = {"hidden": "w_att_1", "attention": "w_att_2"}
    own = {f"{ours}.weight": state[theirs][:-1].T for ours, theirs in layers.items()}
    own |= {f"{ours}.bias": state[theirs][-1] for ours, theirs in layers.items()}
    own["classifiers.weight"] = state["W"]
    if convolution:
        own["entry.1.weight"] = state["conv_weights"].permute(3, 2, 0, 1)
        norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        own |= {f"entry.2.{ours}": state[theirs] for ours, theirs in norm.items()}
        own["entry.2.num_batches_tracked"] = torch.tensor(0)
    network.load_state_dict(own)
    return network


@pytest.fixture(scope="module", params=["plain", "conv_eval", "conv_train", "margin"])
def compared(request):
    """(ours by the released names, theirs), of one case."""
    inputs = golden_clip.arrays("table1/lesa_inputs")
    network = released_network(request.param.startswith("conv")).train(request.param == "conv_train")
    seen, unseen, labels = inputs["seen_vecs"], inputs["unseen_vecs"], inputs["labels"]
    features = inputs["features"].requires_grad_()
    B, side = len(features), math.isqrt(features.shape[1])
    g, e = network(features.transpose(1, 2).unflatten(2, (side, side)))
    z = attend(e, g)
    score = lambda words: (z @ network.classify(F.normalize(words, dim=1)).T).amax(dim=1)
    s_m, s_mean = (x @ network.classify(F.normalize(seen, dim=1)).T for x in (z, g.mean(dim=1)))
    s = s_m.amax(dim=1)
    parts = {
        "rank": ranking_loss(s, labels, "violations"),
        "att_dist": distribution_loss(s_m, labels),
        "att_global": B * relevance_loss(s, s_mean, labels, 0.5 if request.param == "margin" else 0.0),
        "att_span": math.sqrt(B) * diversity_loss(attention_overlap(e)),
    }
    weights = {"rank": 1.0} | {f"att_{ours}": float(inputs[f"lambda_{ours}"]) for ours in ("dist", "global", "span")}
    loss = sum(weights[name] * part for name, part in parts.items())
    found = {"logits": s, "zs_logits": score(unseen), "gzs_logits": score(torch.cat([unseen, seen]))}
    found |= {"alphas": e.softmax(dim=2), "attention_logits": e, "att_logits": s_m, "logits_global": s_mean}
    found |= {"f_att": F.pad(z, (0, 1), value=1.0), "features": g, "loss": loss}
    found |= {f"loss_{name}": part for name, part in parts.items()}
    with_bias = lambda layer, of: torch.cat(
        [
            p.T if p.ndim == 2 else p[None]
            for p in torch.autograd.grad(of, [layer.weight, layer.bias], retain_graph=True)
        ]
    )
    found |= {f"grad_w_att_2_of_loss_{name}": with_bias(network.attention, part) for name, part in parts.items()}
    found |= {"grad_w_att_1": with_bias(network.hidden, loss), "grad_w_att_2": with_bias(network.attention, loss)}
    leaves = {"grad_features": features, "grad_W": network.classifiers.weight, "grad_logits": s}
    if request.param.startswith("conv"):
        entry = network.entry
        leaves |= {"grad_conv_weights": entry[1].weight, "grad_gamma": entry[2].weight, "grad_beta": entry[2].bias}
        found |= {"moving_mean_after": entry[2].running_mean, "moving_variance_after": entry[2].running_var}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found |= dict(zip(leaves, grads, strict=True))
    if "grad_conv_weights" in found:
        found["grad_conv_weights"] = found["grad_conv_weights"].permute(2, 3, 1, 0)
    everything = golden_clip.arrays("table1/lesa_outputs")
    theirs = {name.partition("__")[2]: x for name, x in everything.items() if name.startswith(f"{request.param}__")}
    return found, theirs


def test_every_number_of_the_released_code_is_ours(compared):
    ours, theirs = compared
    assert len(theirs) >= 20 and theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        near(ours[name].detach(), value, "gradient" if name.startswith("grad") else "value")


def test_autocast_leaves_the_overlap_in_single_precision():
    e = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        low = attention_overlap(e)
    assert low.dtype == torch.float32 and torch.equal(low, attention_overlap(e))


def test_the_padding_is_at_the_far_side():
    network = SharedAttentions(1, 1, 1)
    padded = network.entry[0](torch.ones(1, 1, 3, 3))
    assert padded.shape == (1, 1, 4, 4) and padded[0, 0, :3, :3].min() == 1 and padded.sum() == 9
    f = torch.randn(2, 1, 3, 3)
    same = F.conv2d(f, network.entry[1].weight, padding="same")
    assert_close(network.entry[:2](f), same)


def test_rmsprop_is_that_of_tensorflow():
    arrays = golden_clip.arrays("table1/lesa_training")
    model = build(lr=float(arrays["rmsprop__lr"]))
    p = torch.nn.Parameter(arrays["rmsprop__start"].clone())
    optimizer = model.optimizer([{"params": [p], "names": ["p"], "lr_scale": 1.0, "weight_decay": 0.0}])
    for gradient, expected in zip(arrays["rmsprop__gradients"], arrays["rmsprop__parameters"], strict=True):
        p.grad = gradient.clone()
        optimizer.step()
        near(p.detach(), expected, "training")


# Loops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "M", "K", "J", "D"), [(1, 1, 2, 4, 3), (3, 2, 6, 9, 4), (4, 5, 3, 1, 2)])
def test_scores_and_losses_equal_their_slow_twins(B, M, K, J, D):
    rng = torch.Generator().manual_seed(B)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    g, e, q = draw(B, J, D), draw(B, M, J), draw(K, D)
    labels = torch.randint(-1, 2, (B, K), generator=rng)
    z = attend(e, g)
    s_m, s_mean = z @ q.T, g.mean(dim=1) @ q.T
    distribution = relevance = overlap = 0.0
    for i in range(B):
        alpha = [[math.exp(e[i, m, r]) / sum(math.exp(x) for x in e[i, m]) for r in range(J)] for m in range(M)]
        own = [sum(alpha[m][r] * g[i, r] for r in range(J)) for m in range(M)]
        assert_close(z[i], torch.stack(own))
        picked = [0.0] * M
        for c in range(K):
            s = [float(own[m] @ q[c]) for m in range(M)]
            mean = float(sum(g[i, r] for r in range(J)) / J @ q[c])
            relevance += max(0.0, 0.5 - int(labels[i, c]) * (max(s) - mean))
            if labels[i, c] == 1:
                picked = [picked[m] + math.exp(s[m]) / sum(map(math.exp, s)) for m in range(M)]
        distribution += sum(x * x for x in picked) / M
        unit = [e[i, m] / math.sqrt(sum(x * x for x in e[i, m])) for m in range(M)]
        overlap += sum(float(unit[m] @ unit[n]) ** 2 for m in range(M) for n in range(M) if m != n)
    assert_close(distribution_loss(s_m, labels).item(), distribution / B)
    assert_close(relevance_loss(s_m.amax(dim=1), s_mean, labels, 0.5).item(), relevance / B)
    assert_close(diversity_loss(attention_overlap(e)).item(), math.sqrt(overlap / B))


def test_losses_without_pictures_positives_or_a_second_attention():
    empty = torch.zeros(0, 3, 4)
    assert distribution_loss(empty, torch.zeros(0, 4)) == 0 == diversity_loss(attention_overlap(empty))
    assert relevance_loss(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    assert distribution_loss(torch.randn(2, 3, 4), -torch.ones(2, 4)) == 0
    e = torch.randn(2, 1, 5, requires_grad=True)
    loss = diversity_loss(attention_overlap(e))
    assert loss == 0 and torch.autograd.grad(loss, e)[0].abs().max() == 0, "the slope of a root at 0 is infinite"
    zero = torch.zeros(2, 3, 5, requires_grad=True)
    assert torch.autograd.grad(diversity_loss(attention_overlap(zero)), zero)[0].isfinite().all()
    assert attention_overlap(torch.full((1, 2, 3), 1e30)).isnan().all(), "a diverged run is told"


# The method -----------------------------------------------------------------------------------------------------------


RELEASED = {"convolution": True, "start": "random", "optimizer": "rmsprop"}  # val has other values, on the mini VLP


def build(**changes) -> LESA:
    return methods.build("lesa", synthetic.config(), pretrained=False, **RELEASED | changes)


@pytest.fixture(scope="module")
def trunk():
    return synthetic.features().batch(torch.arange(4))[0]


def parameters(*sizes, **form) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SharedAttentions(*sizes, **form).parameters())


def test_parameters_are_neither_of_the_two_that_could_be_meant():
    """HRCF's Table VI prints 0.45 M. VGG-19's regions and GloVe; then CLIP ViT-B/16 and its texts."""
    assert published("hrcf_table6_parameters").set_index("method").loc["LESA (M=10)", "all_M"] == 0.45
    assert parameters(512, 10, 300, convolution=False) == 421_386 == (512 + 1) * 512 + (512 + 1) * 10 + 300 * 512
    assert parameters(512, 10, 300) == 1_470_986 == 421_386 + 4 * 512 * 512 + 2 * 512
    assert parameters(512, 10, 512) == 1_579_530 and parameters(512, 10, 512, convolution=False) == 529_930
    own = build()
    assert own.trained_parameters() == {"image side": parameters(128, 10, 128), "text side": 0}


def test_weights_of_sums_become_those_of_means(trunk):
    """At 32 pictures the loss is the released one, at another number it is of the same size."""
    own = build(distribution=0.1, relevance=0.001, diversity=0.01).eval()
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 2, (32, 5), generator=g)
    t, twice = own.label_embeddings(synthetic.SPACE.seen), torch.cat([trunk] * 8)
    with torch.no_grad():
        e_g, z = own.image_embeddings(twice)
        parts = own.losses(e_g, z, t, labels, e_g)
        loss = sum(weight * parts[name] for name, weight in own.weights("images").items())
        s_m, s_mean = z @ own.network.classify(t).T, e_g[:, :-1] @ own.network.classify(t).T
        sums = 0.001 * F.relu(-labels * (s_m.amax(dim=1) - s_mean)).sum() + 0.01 * e_g[:, -1].sum().sqrt()
        small = own.losses(e_g[:4], z[:4], t, labels[:4], e_g[:4])["diversity"]
    assert_close(loss, parts["ranking"] + 0.1 * parts["distribution"] + sums)
    assert_close(parts["diversity"], small)  # eight times the same four pictures


def test_a_start_at_the_identity_scores_averages_of_clips_patches(trunk):
    own = build(convolution=False, start="clip").eval()
    t = own.label_embeddings(["cat", "boat", "sun"])
    with torch.no_grad():
        s, dense = own.score_embeddings(*own.image_embeddings(trunk), t), own.vlp.dense(trunk)
        g, e = own.network(dense.transpose(1, 2).unflatten(2, (14, 14)))
    assert_close(g, dense)
    assert_close(s, (e.softmax(dim=2) @ dense @ t.T).amax(dim=1))


def test_a_position_stays_where_it_is(trunk):
    own, seen = build(), {}
    own.network.register_forward_pre_hook(lambda _, x: seen.update(f=x[0]))
    own.image_embeddings(trunk)
    assert_close(seen["f"][:, :, 3, 5], own.vlp.dense(trunk)[:, 3 * 14 + 5])


def test_what_is_drawn_has_the_deviation_of_he():
    network = SharedAttentions(256, 64, 200)
    for layer, fan_in in ((network.hidden, 257), (network.attention, 257), (network.classifiers, 256)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
        assert layer.weight.abs().max() <= 2 * he_deviation(fan_in)
    assert network.hidden.bias.std().item() == pytest.approx(math.sqrt(2 / 257), rel=0.2)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
def test_training_moves_the_whole_network(optimizer):
    own = build(optimizer=optimizer)
    before = synthetic.weights(own)
    history = train(own, synthetic.features())
    assert list(history.columns[5:-2]) == ["ranking", "distribution", "relevance", "diversity"]
    still = [name for name, value in own.trainable_state().items() if torch.equal(before[name], value)]
    assert not still and synthetic.same(before, synthetic.weights(own), "vlp.")


@pytest.mark.slow
def test_an_interrupted_run_with_rmsprop_goes_on_to_the_same_bits(tmp_path):
    whole = build()
    train(whole, synthetic.features())
    train(build(), synthetic.features(), tmp_path, stop_after=5)
    again = build()
    train(again, synthetic.features(), tmp_path)
    assert synthetic.same(synthetic.weights(whole), synthetic.weights(again))


def test_of_a_resnet_too(monkeypatch):
    tiny_resnet.enter(monkeypatch)
    own = build(vlp=tiny_resnet.NAME, side=128)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    assert own.score(images, ["cat", "boat", "sun"]).shape == (2, 3)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_word_vectors_from_a_file_and_of_another_width(tmp_path, trunk):
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 2 3\ndog 0 0 0\n")
    own = build(glove=str(path))
    assert own.network.classifiers.in_features == 3
    assert_close(own.label_embeddings(["cat"]), torch.tensor([[1.0, 2.0, 3.0]]) / math.sqrt(14))
    with pytest.raises(ValueError, match="word vectors of 'dog' are 0 throughout in .*glove.txt"):
        own.label_embeddings(["cat", "dog"])
    with pytest.raises(ValueError, match=r"word vectors \(2, 128\): the classifiers take \(K, 3\)"):
        own.score(torch.zeros(1, 3, 112, 112, dtype=torch.uint8), torch.randn(2, 128))
    with pytest.raises(ValueError, match="start = 'clip' with word vectors of .*glove.txt"):
        build(glove=str(path), convolution=False, start="clip")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"attentions": 0}, "attentions = 0 must be from 1 to"),
        ({"start": "clip"}, "start = 'clip' with convolution = True, behind which W = 1 says nothing: take 'random'"),
        ({"start": "zero"}, "start = 'zero': choose one of random, clip"),
        ({"optimizer": "rmsprob"}, "optimizer = 'rmsprob': choose one of rmsprop, adamw, adam, sgd"),
        ({"relevance": -1.0}, "relevance = -1.0 must be at least 0"),
        ({"margin": -1.0}, "margin = -1.0 must be at least 0"),
        ({"convolution": 2}, "convolution = 2 must be True or False"),
        ({"bn_momentum": 1.5}, "bn_momentum = 1.5 must be from 0 to 1"),
    ],
)
def test_bad_values_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)
