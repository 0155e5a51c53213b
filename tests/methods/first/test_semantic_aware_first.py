"""The semantic-aware method: each equation against a plain slow form, its rows of Table 4, and what it refuses."""

import pytest
import synthetic
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from hrcf_lib import methods
from hrcf_lib.apply import region_maps
from hrcf_lib.data.mojiscenes.scenes import MojiScenes
from hrcf_lib.engine import chunks
from hrcf_lib.methods.first.semantic_aware import SemanticDecoupling
from hrcf_lib.methods.missing_labels.base import softmax_logits
from hrcf_lib.studies import localisation
from hrcf_lib.training import train

SEEN = synthetic.SPACE.seen
ROWS = [(False, False), (False, True), (True, False), (True, True)]  # of Table 4: decoupling, category_prompts


def build(**changes):
    ready = {"prompt_vectors": 4, "width": 8, "categories": SEEN} | changes
    return methods.build("semantic_aware", synthetic.config(), settings="first", pretrained=False, **ready)


def trunk(model, B=3, seed=0):
    return torch.randn(B, 1 + model.vlp.N**2, model.vlp.C, generator=torch.Generator().manual_seed(seed))


def scrambled(model, seed=0):
    """The model with each prompt moved away from its start, and a fusion that looks somewhere."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("vlp."):
                p.add_(0.3 * torch.randn(p.shape, generator=g))
    return model


def labels(B=3, seed=0):
    """(B, 5) in -1/0/+1, with both and an unknown one in each row."""
    y = torch.randint(-1, 2, (B, len(SEEN)), generator=torch.Generator().manual_seed(seed))
    y[:, 0], y[:, 1], y[:, 2] = 1, -1, 0
    return y


# Equations ------------------------------------------------------------------------------------------------------------


def test_the_fusion_is_that_of_the_released_code_offsets_and_all():
    """Position by position and category by category; offsets of P and w, which we leave out, change nothing."""
    g = torch.Generator().manual_seed(0)
    D, words, d, J, K = 12, 7, 5, 9, 4
    module = SemanticDecoupling(D, words, d)
    regions, x = torch.randn(2, J, D, generator=g), torch.randn(K, words, generator=g)
    fuse, attend = nn.Linear(d, d), nn.Linear(d, 1)
    with torch.no_grad():
        fuse.weight.copy_(module.fuse.weight), attend.weight.copy_(module.attend.weight)
    scaled = lambda v: v / v.norm() * len(v) ** 0.5
    for b in range(2):
        for k in range(K):
            v = module.word(scaled(x[k]))
            a = torch.stack([attend(fuse(torch.tanh(module.image(scaled(f)) * v)))[0] for f in regions[b]]).softmax(0)
            assert_close(module.masks(regions, x)[b, k], a)
            assert_close(module(regions, x)[b, k], sum(a[j] * regions[b, j] for j in range(J)))


@pytest.mark.parametrize("d", [16, 64])
def test_attention_starts_near_the_cosines(d):
    """Of all 64 directions about the softmax of 20 times the cosines, of 16 a rough sketch of it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 64, generator=g)
    regions = torch.cat([x + torch.randn(6, 64, generator=g), torch.randn(20, 64, generator=g)])[None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = SemanticDecoupling(64, 64, d, sharpness=20.0)
    found = fusion.masks(regions, x)[0].log()  # (K, J), up to a constant
    expected = 20 * F.cosine_similarity(x[:, None], regions, dim=-1)
    r = torch.corrcoef(torch.stack([(m - m.mean(dim=1, keepdim=True)).flatten() for m in (found, expected)]))[0, 1]
    assert r > (0.98 if d == 64 else 0.4)
    if d == 64:
        assert found.argmax(dim=1).tolist() == list(range(6))


def test_scores_are_cosines_of_category_features_and_own_prompts():
    model = scrambled(build())
    (e_g, regions), t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    D = model.vlp.D
    f = model.decoupling(regions, t[:, D:])  # (B, K, D)
    expected = F.cosine_similarity(f, t[None, :, :D], dim=-1) * model.likeness.log_scale.exp() + model.likeness.offset
    assert_close(model.score_embeddings(e_g, regions, t), expected, rtol=1e-4, atol=1e-4)


def test_each_category_has_its_own_vectors():
    model = build()
    before = model.label_embeddings(SEEN)
    with torch.no_grad():
        model.prompt.vectors[1] += torch.randn(4, model.prompt.vectors.shape[2])
    changed = (model.label_embeddings(SEEN) - before).abs().amax(dim=1) > 1e-4
    assert changed.tolist() == [name == SEEN[1] for name in SEEN]
    assert_close(model.label_embeddings([SEEN[3], SEEN[1]]), model.label_embeddings(SEEN)[[3, 1]])


def test_softmax_logits_are_those_of_the_softmax():
    s = 5 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(softmax_logits(s).sigmoid(), s.softmax(dim=1))
    s[0, 3], s[1] = 1e4, 0.0  # a certain one, and all alike
    found = softmax_logits(s.requires_grad_())
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), s)[0].isfinite().all()
    assert_close(found[1].sigmoid(), torch.full((7,), 1 / 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="ask for two or more"):
        softmax_logits(torch.zeros(2, 1))


def test_prediction_by_softmax_sums_to_one():
    model = scrambled(build(prediction="softmax"))
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    p = model.probabilities(model.score_embeddings(*held, t))
    assert_close(p.sum(dim=1), torch.ones(3))
    plain = model.under(model.config.replace(prediction="sigmoid")).score_embeddings(*held, t)
    assert_close(p, plain.softmax(dim=1))


# Table 4 --------------------------------------------------------------------------------------------------------------


def test_without_both_it_is_coop_weight_for_weight():
    ours = build(decoupling=False, category_prompts=False, context_std=0.02)
    coop = methods.build("coop", synthetic.config(), pretrained=False, prompt_vectors=4, context_std=0.02)
    assert synthetic.same(synthetic.weights(ours), synthetic.weights(coop))  # as they start
    scrambled(ours)
    coop.load_trainable(ours.trainable_state(), "ours")
    tokens, names = trunk(ours), ["sea", *SEEN]  # an unseen name too: prompts are shared
    scores = [m.score_embeddings(*m.image_embeddings(tokens), m.label_embeddings(names)) for m in (ours, coop)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("prediction", ["sigmoid", "softmax"])
@pytest.mark.parametrize("decoupling, category_prompts", ROWS)
def test_rows_of_the_table_train_all_that_they_have(decoupling, category_prompts, prediction):
    model = build(
        decoupling=decoupling,
        category_prompts=category_prompts,
        prediction=prediction,
        phases=(("both", 8, 5),),
        lr=3e-3,
        prompt_lr=3e-3,
    )
    assert hasattr(model, "decoupling") is decoupling and model.open_vocabulary is not category_prompts
    assert len(model.prompt.vectors) == (5 if category_prompts else 1)
    before = synthetic.weights(model)
    history = train(model, synthetic.features())
    after = synthetic.weights(model)
    own = [n for n, _ in model.named_parameters() if not n.startswith("vlp.")]
    unchanged = [] if prediction == "sigmoid" else ["likeness.offset"]  # which a softmax takes away
    assert [n for n in own if torch.equal(before[n], after[n])] == unchanged
    assert synthetic.same(before, after, "vlp.")
    assert history["classification"].tail(2).mean() < history["classification"].head(2).mean()


def test_rates_of_the_two_sides():
    model = build(lr=1e-2, prompt_lr=1e-3)
    rates = {n: group["lr_scale"] * 1e-2 for group in model.groups("both") for n in group["names"]}
    expected = {"decoupling": 1e-2, "prompt": 1e-3, "likeness": 1e-3}
    assert all(rates[n] == pytest.approx(expected[n.split(".")[0]]) for n in rates)
    assert {n.split(".")[0] for n in rates} == {"decoupling", "prompt", "likeness"}


# Known pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["ignored", "negative"])
def test_the_loss_of_known_pairs_alone_is_that_of_all(unknown):
    model = scrambled(build(unknown=unknown))
    held, y = model.image_embeddings(trunk(model)), labels()
    synthetic.assert_known_pairs_suffice(model, held, y, SEEN)


def test_nothing_is_computed_of_unknown_pairs(monkeypatch):
    model, seen = build(), []
    plain = SemanticDecoupling.masks
    monkeypatch.setattr(
        SemanticDecoupling, "masks", lambda self, f, x: seen.append((len(f), len(x))) or plain(self, f, x)
    )
    held, y = model.image_embeddings(trunk(model)), labels()
    y[1] = 0  # a picture without a known label
    model.losses(*held, model.label_embeddings(SEEN), y, held[0])
    assert seen == [(1, n) for n in (y != 0).sum(dim=1).tolist()]


def test_large_batches_are_computed_again_with_the_same_gradients(monkeypatch):
    model, found = scrambled(build()), []
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    for most in (2**26, 10):
        monkeypatch.setattr(chunks, "LARGE", most)
        s = model.score_embeddings(*held, t)
        found.append(
            (s.detach(), *torch.autograd.grad(s.square().sum(), list(model.decoupling.parameters()), retain_graph=True))
        )
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


def test_an_exported_graph_computes_the_same_all_at_once(monkeypatch):
    model = scrambled(build())
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    plain = model.score_embeddings(*held, t)
    monkeypatch.setattr(chunks, "exporting", lambda: True)
    assert_close(model.score_embeddings(*held, t), plain, rtol=1e-4, atol=1e-4)


# Word vectors and bad input -------------------------------------------------------------------------------------------


def test_glove_of_another_width_and_a_word_that_is_missing(tmp_path):
    path = tmp_path / "glove.txt"
    g = torch.Generator().manual_seed(0)
    row = lambda: " ".join(f"{v:.4f}" for v in torch.randn(6, generator=g).tolist())
    path.write_text("".join(f"{word} {row()}\n" for word in SEEN), encoding="utf-8")
    model = scrambled(build(glove=str(path)))
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    assert t.shape == (5, model.vlp.D + 6) and model.decoupling.word.weight.shape == (8, 6)
    assert_close(t[:, model.vlp.D :].norm(dim=1), torch.ones(5))
    assert model.score_embeddings(*held, t).shape == (3, 5)
    other = build(glove=str(path), category_prompts=False)
    with pytest.raises(ValueError, match="label 'fire truck': 'fire', 'truck' is not in"):
        other.label_embeddings(["cat", "fire truck"])
    with pytest.raises(ValueError, match="label 'fire truck': 'fire', 'truck' is not in"):  # before any feature
        build(glove=str(path), categories=["cat", "fire truck"])


def test_a_name_that_it_was_not_built_for():
    with pytest.raises(ValueError, match="answers for the 5 labels it was built for, 'boat' is not among them"):
        build().label_embeddings(["cat", "boat"])
    shared = build(category_prompts=False)
    assert shared.label_embeddings(["cat", "boat"]).shape == (2, 2 * shared.vlp.D)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"categories": ()}, "give the labels' names"),
        ({"prediction": "tanh"}, "prediction = 'tanh': choose one of sigmoid, softmax"),
        ({"width": 0}, "width = 0 must be above 0"),
        ({"tau": 0}, "tau = 0 must be above 0"),
        ({"glove_missing": "guess"}, "glove_missing = 'guess': choose one of error, skip"),
    ],
)
def test_bad_configs(changes, says):
    with pytest.raises(ValueError, match=says):
        build(**changes)


# Maps -----------------------------------------------------------------------------------------------------------------


def test_maps_are_the_attention_and_sum_to_one():
    model = scrambled(build())
    (_, regions), t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    a = model.maps(regions, t)
    assert a.shape == (3, 5, 196)
    assert_close(a.sum(dim=-1), torch.ones(3, 5))
    assert_close(a, model.decoupling.masks(regions, t[:, model.vlp.D :]))
    with pytest.raises(ValueError, match="decoupling = False"):
        build(decoupling=False).maps(regions, t)


def test_maps_take_part_in_the_pointing_game():
    scenes = MojiScenes("val", 3)
    names = scenes.labels.seen
    model = scrambled(build(categories=names))
    model.reference_labels = names
    frame = localisation.measure_maps(scenes, {"attention": region_maps.maker(model, names)}, names=names)
    assert set(frame["part"]) == {"seen"} and frame["hit"].between(0, 1).all() and not frame["flat"].all()
    with pytest.raises(ValueError, match="no label of this split: 'warp drive'"):
        localisation.measure_maps(scenes, {"attention": region_maps.maker(model, names)}, names=["warp drive"])
