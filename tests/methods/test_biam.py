"""BiAM against the released code's numbers, its equations written as loops, and the parameters that were printed."""

import copy
import json
import math
from pathlib import Path

import golden_clip
import open_clip
import pandas as pd
import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods, scores
from hrcf_lib.engine import weights
from hrcf_lib.losses import ranking_loss
from hrcf_lib.methods import biam
from hrcf_lib.methods.biam import FORM, BiAM, BiAMConfig, BiAMReleased, BiLevelAttention
from hrcf_lib.studies import runs
from hrcf_lib.training import only, train

PAPERS = Path(__file__).parents[2] / "papers"
OURS = {  # released name -> ours
    "conv_3X3.body": "entry.0",
    "conv_3X3.bn": "entry.2",
    "region_context_block.w_q": "region.query",
    "region_context_block.w_k": "region.key",
    "region_context_block.w_v": "region.value",
    "region_context_block.w_o": "region.output",
    "region_context_block.sub_network.conv1": "region.widen",
    "region_context_block.sub_network.conv2": "region.narrow",
    "scene_context_block.w_g": "scene.key",
    "scene_context_block.gcff.body": "scene.refine.0",
    "scene_context_block.gcff.bn": "scene.refine.2",
    "scene_context_block.channel_conv.body": "scene.value",
    "conv_1X1.body": "join",
    "W": "classifiers",
}
PARTS = {"h_r": "entry", "e_r": "region", "e_g": "scene"}


def config(**changes) -> BiAMConfig:
    """Small and quick; 12 steps on the 10 pictures of ``synthetic``."""
    return methods.configure("biam", synthetic.config(), **{"channels": 16} | changes)


def model(**changes) -> BiAM:
    return methods.for_config(config(**changes), pretrained=False)


@pytest.fixture(scope="module")
def features():
    return synthetic.features()


@pytest.fixture(scope="module")
def trained(features):
    """A model after a whole run, and its history."""
    method = model()
    return method, train(method, features)


@pytest.fixture
def embedded(trained, features):
    """What the trained image side says of a few pictures."""
    with torch.no_grad():
        return trained[0].image_embeddings(features.batch(torch.arange(4))[0])


def names(n: int) -> list[str]:
    words = ["boat", "sea", "cat", "dog", "bus", "sun", "tree"]
    return words[:n]


# -- the released code -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """(inputs, outputs of the released code, ours by the same names)."""
    inputs, outputs = golden_clip.arrays("biam_forward_inputs"), golden_clip.arrays("biam_forward_outputs")
    network = BiLevelAttention(512, 4096, int(inputs["channel_dim"]), int(inputs["heads"]), 16, 512)
    state = {}
    for name, value in golden_clip.arrays("biam_state").items():
        module, _, leaf = name.rpartition(".")
        state[f"{OURS[module]}.{leaf}"] = value.flatten(1) if name == "scene_context_block.w_g.weight" else value
    network.load_state_dict(state)
    ours = {}
    for name, part in PARTS.items():
        network.get_submodule(part).register_forward_hook(lambda *x, name=name: ours.update({name: x[-1]}))
    a = inputs["vecs"].requires_grad_()
    e_f = network.eval()(inputs["features"].unflatten(2, (14, 14)), inputs["x_g"])
    ours["logits"] = scores.topk_mean(scores.region_scores(e_f, network.classifiers(a)), 6)
    ours["rank_loss"] = ranking_loss(ours["logits"], inputs["labels"])
    ours["rank_loss"].backward()
    ours |= {"grad_vecs": a.grad, "grad_W_weight": network.classifiers.weight.grad}
    return inputs, outputs, ours


def test_every_golden_array_is_compared(golden):
    assert golden[1].keys() == golden[2].keys()


@pytest.mark.parametrize("name", [*PARTS, "logits", "rank_loss", "grad_W_weight", "grad_vecs"])
def test_network_loss_and_gradients_are_those_of_the_released_code(golden, name):
    _, theirs, ours = golden
    assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6 * float(theirs[name].abs().max()))


def test_evaluation_uses_the_running_statistics(golden):
    state, h = golden_clip.arrays("biam_state"), golden[2]["h_r"]
    bn = {
        leaf: state[f"conv_3X3.bn.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
    }
    weight, bias = state["conv_3X3.body.weight"], state["conv_3X3.body.bias"]
    x = torch.conv2d(golden[0]["features"].unflatten(2, (14, 14)), weight, bias, padding=1).relu()
    by_hand = (x - bn["running_mean"]) / (bn["running_var"] + 0.001).sqrt() * bn["weight"] + bn["bias"]
    assert_close(h, by_hand, rtol=1e-5, atol=1e-5)


PAPER = {"biases": False, "scene_value": "latent", "scene_shortcut": "latent"}


def parameters(*sizes, **form) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in BiLevelAttention(*sizes, **form).parameters())


def test_parameters_of_the_released_form_are_those_of_hrcfs_table():
    """VGG-19: regions 512 wide, global feature 4,096, GloVe 300, and 256 channels and 4 heads as released."""
    published = pd.read_csv(PAPERS / "published" / "hrcf_table6_parameters.csv").query("method == 'BiAM'")
    assert parameters(512, 4096, 256, 4, 300, 512) == 3_828_480
    assert round(3_828_480 / 1e6, 1) == float(published["all_M"].iloc[0])
    assert parameters(512, 512, 256, 4, 512, 512) == 3_019_520  # CLIP ViT-B/16, text embeddings
    assert parameters(512, 512, 256, 4, 300, 512) == 2_910_976  # CLIP ViT-B/16, GloVe


def test_parameters_of_the_papers_form_are_far_more():
    """512 channels throughout, counted by hand: each 3 x 3 with its norm, the matrices, c^r, W^g, c^f, W_a."""
    entry = refine = 512 * 512 * 9 + 512 + 2 * 512
    c_r, c_f = (512 * 1024 + 1024) + (1024 * 512 + 512), 1024 * 512 + 512
    by_hand = entry + 4 * 512 * 512 + c_r + 4096 * 512 + refine + c_f + 300 * 512
    assert parameters(512, 4096, 512, 8, 300, 512, **PAPER) == by_hand == 9_595_904
    assert parameters(512, 4096, 512, 8, 300, 512) == 9_861_632  # the released form at this width: + Conv1x1, biases
    assert parameters(512, 512, 512, 8, 512, 512, **PAPER) == 7_869_440  # CLIP ViT-B/16, text embeddings


def test_the_papers_own_flops_are_those_of_256_channels():
    """Table 5 prints 0.59 G: multiplications of one picture up to e_f; scoring 81 to 925 labels adds 0.01 to 0.09."""
    J = 14 * 14

    def multiplications(width: int, value: bool) -> int:
        convolutions = 512 * width * 9 + width * width * (9 + 4 + 2 * 2 + value) + 2 * width * 512
        return J * convolutions + 2 * J * J * width + 4096 * width

    released, paper = multiplications(256, True), multiplications(512, False)
    assert released + J * 512 * 81 < 0.59e9 < released + J * 512 * 925 < 0.65e9
    assert paper > 1.4e9


# -- the equations -----------------------------------------------------------------------------------------------------


def slow_network(network, x_r, x_g, heads: int, form: dict) -> torch.Tensor:
    """Eqs. 2-9 of one picture, position by position: (C, N, N), (G,) -> (N^2, d), in evaluation mode."""
    h = network.entry(x_r[None])[0].flatten(1).T  # (J, d_r)
    J, width = h.shape
    d = width // heads
    N = math.isqrt(J)
    as_map = lambda rows: rows.T.reshape(1, -1, N, N)
    apply = lambda conv, x: conv.weight.flatten(1) @ x + (0 if conv.bias is None else conv.bias)
    parts = []
    if form["region_block"]:
        block, e_r = network.region, []
        q, k, v = ([apply(conv, h[j]) for j in range(J)] for conv in (block.query, block.key, block.value))  # Eq. 2
        for j in range(J):
            alpha = []
            for i in range(heads):
                own = slice(i * d, (i + 1) * d)
                r = torch.stack([q[j][own] @ k[n][own] / math.sqrt(d) for n in range(J)]).exp()
                alpha.append(sum(r[n] / r.sum() * v[n][own] for n in range(J)))  # Eq. 3
            o = apply(block.output, torch.cat(alpha)) + h[j]  # Eq. 4
            e_r.append(apply(block.narrow, apply(block.widen, o).clamp(min=0)) + o)  # Eq. 5
        parts.append(torch.stack(e_r))
    if form["scene_block"]:
        block = network.scene
        leaky = lambda x: torch.where(x > 0, x, 0.2 * x)
        v = h if form["scene_value"] == "latent" else torch.stack([leaky(apply(block.value, x)) for x in h])
        gate = 1 / (1 + (-(v.sum(dim=0) / J) * apply(block.key, x_g)).exp())  # Eqs. 6 and 7
        alpha = torch.stack([gate * v[j] for j in range(J)])
        e_g = block.refine(as_map(alpha))[0].flatten(1).T
        parts.append(e_g + (h if form["scene_shortcut"] == "latent" else alpha))  # Eq. 8
    if len(parts) < 2:
        return parts[0] if parts else h
    e_f = torch.stack([apply(network.join, torch.cat([a, b])) for a, b in zip(*parts, strict=True)])  # Eq. 9
    return torch.where(e_f > 0, e_f, 0.2 * e_f)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"scene_value": "convolved"},
        {"scene_shortcut": "attended"},
        {"scene_value": "convolved", "scene_shortcut": "attended"},
        {"region_block": False},
        {"scene_block": False},
        {"region_block": False, "scene_block": False},
    ],
)
def test_the_network_is_the_equations(own, biases):
    torch.manual_seed(0)
    form = PAPER | {"region_block": True, "scene_block": True} | own | {"biases": biases}
    network = BiLevelAttention(6, 5, 8, 2, 4, 7, **form).eval()
    x_r, x_g = torch.randn(2, 6, 3, 3), torch.randn(2, 5)
    with torch.no_grad():
        e_f = network(x_r, x_g)
        slow = torch.stack([slow_network(network, *pair, 2, form) for pair in zip(x_r, x_g, strict=True)])
    both = form["region_block"] and form["scene_block"]
    assert e_f.shape == (2, 9, 7 if both else 8) and network.classifiers.weight.shape == (e_f.shape[2], 4)
    assert_close(e_f, slow, rtol=1e-4, atol=1e-5)
    matrices = [name for name in dict(network.named_parameters()) if "bias" in name]
    named = ("query", "key", "value", "output", "scene.key", "classifiers")
    own = [name for name in matrices if any(f"{part}." in name for part in named) and "scene.value" not in name]
    assert bool(own) == biases, "the matrices of Eqs. 1, 2, 4 and 6"


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("Standard region features", {"entry", "classifiers"}),
        ("RCB alone", {"entry", "region", "classifiers"}),
        ("SCB alone", {"entry", "scene", "classifiers"}),
        ("BiAM (RCB + SCB)", {"entry", "region", "scene", "join", "classifiers"}),
    ],
)
def test_a_row_of_table_3_has_the_parameters_of_its_blocks_alone(row, parts, features):
    method = model(**biam.TABLE_3[row])
    assert {name.split(".")[0] for name in method.network.state_dict()} == parts
    only(method, "images")
    trunk, teacher, labels = features.batch(torch.arange(4))
    e, t = method.image_embeddings(trunk), method.label_embeddings(features.space.seen)
    method.losses(*e, t, labels[:, : features.space.n_seen], teacher)["ranking"].backward()
    assert all(p.grad.abs().max() > 0 for p in method.network.parameters()), "what is there learns"


def test_rows_of_table_3_are_named_as_published():
    published = pd.read_csv(PAPERS / "published" / "biam_table3_blocks_nuswide.csv")
    assert list(biam.TABLE_3) == published["features"].drop_duplicates().tolist()


def test_the_scene_reaches_regions_through_its_block_alone():
    torch.manual_seed(0)
    x_r, x_g = torch.randn(1, 6, 3, 3), torch.randn(2, 5)
    for scene in (True, False):
        network = BiLevelAttention(6, 5, 8, 2, 4, 7, **PAPER, scene_block=scene).eval()
        assert torch.equal(network(x_r, x_g[:1]), network(x_r, x_g[1:])) is not scene


# -- the method --------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers_and_the_released_codes_by_name():
    """Sec. 3 of the paper; its values on the mini VLP are as wide as that one's regions, 128."""
    fields = ("channels", "heads", "topk", "beta1", "lr", "ranking_reduction", "optimizer", *FORM)
    values = lambda own: tuple(getattr(own, name) for name in fields)
    wide, small = configs.nus_wide(), configs.mini()
    paper = (512, 8, 10, 0.5, 1e-3, "sum", "adam", False, "latent", "latent", True, True)
    assert values(methods.configure("biam", wide)) == paper
    assert values(methods.configure("biam", small)) == (128, *paper[1:])
    released = (256, 4, 6, 0.5, 1e-3, "violations", "adamw", True, "convolved", "attended", True, True)
    for base in (wide, small):
        assert values(methods.configure("biam", base, settings="released")) == released
    groups = model(beta1=0.6).groups("images")
    assert {g["betas"] for g in groups} == {(0.6, 0.999)} and {g["weight_decay"] for g in groups} == {0.0}
    assert {g["weight_decay"] for g in model(settings="released").groups("images")} == {0.0, 0.05}


def test_any_mixture_of_the_forms_can_be_built():
    mixed = config(settings="released", scene_value="latent", biases=False, heads=2, topk=9)
    network = methods.for_config(mixed, pretrained=False).network
    assert network.scene.value is None and network.classifiers.bias is None and network.scene.shortcut == "attended"
    assert (mixed.heads, mixed.topk, mixed.ranking_reduction) == (2, 9, "violations")


def test_a_form_is_chosen_where_the_config_is_made():
    with pytest.raises(ValueError, match="cannot be made of a BiAMConfig: give a preset such as mini"):
        methods.configure("biam", config(), settings="released")
    with pytest.raises(ValueError, match="settings = 'paper': choose one of released"):
        methods.configure("biam", config(settings="released"), settings="paper")
    with pytest.raises(ValueError, match="settings = 'printed': choose one of paper"):
        config(settings="printed")


def test_what_was_saved_before_is_the_released_form(tmp_path):
    """A config without the younger fields: the same class, weights, scores and name of its run."""
    method = model(settings="released")
    path = method.save_pretrained(tmp_path) / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    younger = [name for name in configs.values_before(type(method.config)) if name in about["config"]]
    assert {"settings", *FORM, "classify", "map_side"} <= set(younger)
    for name in younger:
        del about["config"][name]
    path.write_text(json.dumps(about), encoding="utf-8")
    read = methods.registry.saved("biam", about["config"])
    again = configs.from_dict(about["config"], read.Config)
    assert read is BiAMReleased and again == method.config and runs.run_name(again) == runs.run_name(method.config)
    loaded = read(again, pretrained=False)
    loaded.load_trainable(weights.read_tensors(tmp_path / "model.safetensors"), tmp_path)
    assert synthetic.same(loaded.trainable_state(), method.trainable_state())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channels": 10, "heads": 4}, "channels = 10 cannot be shared by heads = 4: give a multiple"),
        ({"heads": 0}, "heads = 0"),
        ({"channels": 0}, "channels = 0"),
        ({"map_side": 0}, "map_side = 0 must be at least 1"),
        ({"scene_value": "h"}, "scene_value = 'h': choose one of latent, convolved"),
        ({"scene_shortcut": "h"}, "scene_shortcut = 'h': choose one of latent, attended"),
        ({"classify": "image"}, "classify = 'image': choose one of regions, pooled"),
        ({"region_block": 1}, "region_block = 1 must be True or False"),
        ({"beta1": 1.0}, "beta1 = 1.0 must be below 1"),
        ({"bn_momentum": 1.5}, "bn_momentum = 1.5"),
        ({"glove": 3}, "must be text"),
        ({"glove_missing": "drop"}, "glove_missing = 'drop'"),
    ],
)
def test_bad_values_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        config(**changes)


def test_features_are_the_vlps_own(trained, features):
    method, trunk = trained[0], features.batch(torch.arange(3))[0]
    dense = method.vlp.dense(torch.cat([trunk[:, :1], trunk], dim=1))  # the class token once more, as a patch
    assert_close(dense[:, 0], method.vlp.teacher(trunk))
    e_p, e_f = method.image_embeddings(trunk)
    assert_close(e_p, method.vlp.teacher(trunk))
    assert e_f.shape == (3, 196, method.vlp.D)


def test_a_position_stays_where_it_is(features):
    """Row and column of a patch are those of the region with its number."""
    method, seen = model().eval(), {}
    method.network.entry.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    trunk = features.batch(torch.arange(2))[0]
    method.image_embeddings(trunk)
    assert_close(seen["x"][:, :, 3, 5], method.vlp.dense(trunk)[:, 3 * 14 + 5])


def test_scores_follow_the_labels_wherever_they_stand(trained, embedded):
    method, order = trained[0], [4, 0, 3, 1, 2]
    t = method.label_embeddings(names(5))
    assert_close(t.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        whole = method.score_embeddings(*embedded, t)
        assert whole.shape == (4, 5) and whole.isfinite().all()
        assert_close(method.score_embeddings(*embedded, t[order]), whole[:, order])
        assert_close(method.score_embeddings(*embedded, t[1:2]), whole[:, 1:2])  # no label depends on another


def test_scores_are_the_mean_of_the_best_positions(trained, embedded):
    method, (_, e_f) = trained[0], embedded
    t, W = method.label_embeddings(names(3)), method.network.classifiers
    with torch.no_grad():
        m = torch.einsum("bjd,da,ka->bkj", e_f, W.weight, t)  # Eq. 1
        assert_close(method.score_embeddings(*embedded, t), m.sort(dim=-1).values[..., -10:].mean(dim=-1))


def test_the_loss_is_the_sum_over_pairs(trained, embedded):
    """Eq. 10, as loops."""
    method, (e_p, e_f) = trained[0], embedded
    labels = torch.tensor([[1, -1, 0, -1], [1, 1, -1, -1], [-1, -1, -1, 0], [0, -1, 1, 1]])
    t = method.label_embeddings(names(4))
    with torch.no_grad():
        s = method.score_embeddings(e_p, e_f, t)
        loss = method.losses(e_p, e_f, t, labels, e_p)["ranking"]
    pairs = [(i, p, n) for i in range(4) for p in range(4) for n in range(4) if labels[i, p] == 1 == -labels[i, n]]
    assert_close(loss, sum((s[i, n] - s[i, p] + 1).clamp(min=0) for i, p, n in pairs))


# -- Figs. 5 and 7 -----------------------------------------------------------------------------------------------------


def test_pooled_classification_is_top_k_pooling_over_all_regions(features):
    """Eq. 1 is linear in e_f."""
    method = model(classify="pooled").eval()
    trunk, t = features.batch(torch.arange(4))[0], method.label_embeddings(names(5))
    with torch.no_grad():
        e = method.image_embeddings(trunk)
        pooled = method.score_embeddings(*e, t)
        by_hand = e[1].mean(dim=1) @ method.network.classifiers(t).T
        every = method.under(method.config.replace(classify="regions", topk=196)).score_embeddings(*e, t)
    assert_close(pooled, by_hand)
    assert_close(pooled, every)
    assert method.region_sides == [14], "its regions can still be looked at"


@pytest.mark.parametrize("side", [1, 4, 7, 9, 14])
def test_a_coarser_map_is_an_average_of_positions(side, features):
    method, seen = model(map_side=side, topk=1).eval(), {}
    method.network.entry.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    trunk = features.batch(torch.arange(2))[0]
    with torch.no_grad():
        _, e_f = method.image_embeddings(trunk)
    dense = method.vlp.dense(trunk).unflatten(1, (14, 14))  # (B, N, N, D)
    cuts = [(i * 14 // side, -((i + 1) * -14 // side)) for i in range(side)]  # rows from, to: they may overlap
    rows = [[dense[:, a:b, c:d].mean(dim=(1, 2)) for c, d in cuts] for a, b in cuts]
    by_hand = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (B, D, side, side)
    assert_close(seen["x"], by_hand, rtol=1e-4, atol=1e-5)
    assert e_f.shape == (2, side**2, method.vlp.D) and method.region_sides == [side]


def test_maps_and_k_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="map_side = 15: hrcf-mini gives a map of 14 x 14; choose from 1 to 14"):
        model(map_side=15)
    with pytest.raises(ValueError, match="topk = 10 of 9 regions .3 x 3.: choose from 1 to 9, or a larger map"):
        model(map_side=3)
    with pytest.raises(ValueError, match="topk = 197 of 196 regions"):
        model(topk=197)
    assert model(map_side=3, classify="pooled").config.topk == 10, "which pooled features have no use for"


RESNET = {  # 64 pixels, a last map of 2 x 2
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.mark.parametrize(("side", "N"), [(224, 7), (448, 14)])
def test_a_resnets_map_has_regions_too(side, N, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-resnet", RESNET)
    method = model(vlp="small-resnet", side=side).eval()
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    with torch.no_grad():
        trunk = method.vlp.trunk(images)
        e_p, e_f = method.image_embeddings(trunk)
        assert e_f.shape == (1, N * N, 32) and method.region_sides == [N]
        assert_close(e_p, method.vlp.teacher(trunk))
        s = method.score_embeddings(e_p, e_f, method.label_embeddings(["cat", "boat"]))
    assert s.shape == (1, 2) and s.isfinite().all()
    with pytest.raises(ValueError, match="topk = 10 of 4 regions .2 x 2."):
        model(vlp="small-resnet")


def test_pictures_and_unseen_names_to_scores(trained):
    method, images = trained[0], torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    unseen = method.score(images, ["boat", "sea"])
    assert unseen.shape == (2, 2)
    assert_close(method.score(images, ["cat", "boat", "sea"])[:, 1:], unseen)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_learns_by_the_ranking_loss_alone(trained, features):
    method, history = trained
    assert len(history) == 12 and "distillation" not in history and (history["ranking"] > 0).any()
    before = synthetic.weights(model())
    after = synthetic.weights(method)
    assert synthetic.same(before, after, "vlp.")
    still = [n for n in before if not n.startswith("vlp.") and torch.equal(before[n], after[n])]
    assert not still
    assert history["ranking"].iloc[-3:].mean() < 0.8 * history["ranking"].iloc[:3].mean()


def test_dropout_and_batch_statistics_in_training_alone(features):
    method, trunk = model(), features.batch(torch.arange(4))[0]
    with torch.no_grad():
        method.eval()
        once, running = method.image_embeddings(trunk)[1], method.network.entry[2].running_mean.clone()
        assert torch.equal(method.image_embeddings(trunk)[1], once)
        assert torch.equal(method.network.entry[2].running_mean, running)
        method.train()
        a, b = (method.image_embeddings(trunk)[1] for _ in range(2))
        assert not torch.equal(a, b)
        assert not torch.equal(method.network.entry[2].running_mean, running)


def test_gradients_reach_the_whole_network(features):
    method = model()
    only(method, "images")
    trunk, teacher, labels = features.batch(torch.arange(4))
    t = method.label_embeddings(features.space.seen)
    parts = method.losses(*method.image_embeddings(trunk), t, labels[:, : features.space.n_seen], teacher)
    parts["ranking"].backward()
    for name, p in method.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == name.startswith("network."), name


def test_scores_that_are_not_finite_are_refused(features):
    method = model()
    trunk, teacher, labels = features.batch(torch.arange(4))
    t, y = method.label_embeddings(features.space.seen), labels[:, : features.space.n_seen]
    e_p, e_f = method.image_embeddings(trunk)
    with pytest.raises(FloatingPointError):
        method.losses(e_p, e_f * torch.nan, t, y, teacher)


@pytest.mark.slow
def test_same_seed_same_run(trained, features):
    again = model()
    history = train(again, features)
    assert synthetic.same(synthetic.weights(again), synthetic.weights(trained[0]))
    assert history["ranking"].tolist() == trained[1]["ranking"].tolist()
    other = model(seed=1)
    train(other, features)
    assert not torch.equal(other.network.join.weight, again.network.join.weight)


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(trained, features, tmp_path):
    """Batch norm's running statistics included."""
    for part in (4, 2, None):
        method = model()
        history = train(method, features, tmp_path, stop_after=part)
    assert synthetic.same(synthetic.weights(method), synthetic.weights(trained[0]))
    assert history["ranking"].tolist() == trained[1]["ranking"].tolist()


def test_saved_and_loaded(trained, embedded, features, tmp_path):
    method = trained[0]
    method.save_pretrained(tmp_path)
    t = method.label_embeddings(names(3))
    loaded = methods.for_config(method.config, pretrained=False)
    loaded.vlp = copy.deepcopy(method.vlp)
    loaded.load_trainable(weights.read_tensors(tmp_path / "model.safetensors"), tmp_path)
    e = loaded.eval().image_embeddings(features.batch(torch.arange(4))[0])
    assert_close(loaded.score_embeddings(*e, t), method.score_embeddings(*embedded, t))


# -- GloVe -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def glove(tmp_path):
    path = tmp_path / "glove.txt"
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    lines = [f"{name} {' '.join(f'{x:.4f}' for x in row)}" for name, row in zip([*names(7), "the"], rows.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_labels_from_a_glove_file(glove, features):
    method = model(glove=glove)
    assert method.network.classifiers.in_features == 5
    assert_close(method.label_embeddings(["cat", "bus"]).norm(dim=1), torch.ones(2))
    assert not any("glove" in name or "words" in name for name in method.trainable_state())
    assert (train(method, features)["ranking"] > 0).any()
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    assert method.score(images, ["boat", "sun boat"]).shape == (2, 2)


def test_words_that_glove_lacks(glove):
    with pytest.raises(ValueError, match="'lake boat': 'lake' is not in"):
        model(glove=glove).label_embeddings(["cat", "lake boat"])
    skipping = model(glove=glove, glove_missing="skip")
    assert_close(skipping.label_embeddings(["lake boat"]), skipping.label_embeddings(["boat"]))
    with pytest.raises(FileNotFoundError, match="no word vectors at none.txt"):
        model(glove="none.txt")
