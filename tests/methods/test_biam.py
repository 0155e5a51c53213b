"""BiAM against the released code's numbers, its parameters against the paper's, and what its scores depend on."""

import copy
from pathlib import Path

import golden_clip
import pandas as pd
import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import methods, scores
from hrcf_lib.engine import files
from hrcf_lib.losses import ranking_loss
from hrcf_lib.methods.biam import BiAM, BiAMConfig, BiLevelAttention
from hrcf_lib.methods.blocks import patches
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
    return BiAM(config(**changes), pretrained=False)


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
    words = ["boat", "beach", "cat", "dog", "bus", "sun", "tree"]
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


def parameters(*sizes) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in BiLevelAttention(*sizes).parameters())


def test_parameters_are_the_papers():
    """VGG-19: regions 512 wide, global feature 4,096, GloVe 300, and 256 channels and 4 heads as released."""
    published = pd.read_csv(PAPERS / "published" / "hrcf_table6_parameters.csv").query("method == 'BiAM'")
    assert parameters(512, 4096, 256, 4, 300, 512) == 3_828_480
    assert round(3_828_480 / 1e6, 1) == float(published["all_M"].iloc[0])
    assert parameters(512, 512, 256, 4, 512, 512) == 3_019_520  # CLIP ViT-B/16, text embeddings
    assert parameters(512, 512, 256, 4, 300, 512) == 2_910_976  # CLIP ViT-B/16, GloVe


# -- the method --------------------------------------------------------------------------------------------------------


def test_defaults_are_the_released_ones_where_the_docstring_says_so():
    found = methods.configure("biam", synthetic.config())
    assert (found.channels, found.heads, found.topk, found.beta1, found.lr) == (256, 4, 6, 0.5, 1e-3)
    assert found.ranking_reduction == "violations"
    groups = model(beta1=0.6).groups("images")
    assert {g["betas"] for g in groups} == {(0.6, 0.999)} and {g["weight_decay"] for g in groups} == {
        0.0,
        found.weight_decay,
    }


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channels": 10, "heads": 4}, "channels = 10"),
        ({"heads": 0}, "heads = 0"),
        ({"channels": 0}, "channels = 0"),
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
    dense = patches(method.vlp, torch.cat([trunk[:, :1], trunk], dim=1))  # the class token once more, as a patch
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
    assert_close(seen["x"][:, :, 3, 5], patches(method.vlp, trunk)[:, 3 * 14 + 5])


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
        m = torch.einsum("bjd,kd->bkj", e_f, t @ W.weight.T + W.bias)
        assert_close(method.score_embeddings(*embedded, t), m.sort(dim=-1).values[..., -6:].mean(dim=-1))


def test_pictures_and_unseen_names_to_scores(trained):
    method, images = trained[0], torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    unseen = method.score(images, ["boat", "beach"])
    assert unseen.shape == (2, 2)
    assert_close(method.score(images, ["cat", "boat", "beach"])[:, 1:], unseen)


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
        if name == "network.region.key.bias":  # shifts all scores of a query alike, which softmax does not see
            continue
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
    loaded = BiAM(method.config, pretrained=False)
    loaded.vlp = copy.deepcopy(method.vlp)
    loaded.load_trainable(files.read_tensors(tmp_path / "model.safetensors"), tmp_path)
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
    with pytest.raises(ValueError, match="'sea boat': 'sea' is not in"):
        model(glove=glove).label_embeddings(["cat", "sea boat"])
    skipping = model(glove=glove, glove_missing="skip")
    assert_close(skipping.label_embeddings(["sea boat"]), skipping.label_embeddings(["boat"]))
    with pytest.raises(FileNotFoundError, match="no word vectors at none.txt"):
        model(glove="none.txt")
