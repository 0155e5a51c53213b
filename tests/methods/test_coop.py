"""CoOp and DualCoOp: scores against plain slow forms of their equations, which names they take, and training."""

import pytest
import synthetic
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hrcf_lib import methods, prompts
from hrcf_lib.apply import region_maps
from hrcf_lib.engine import chunks
from hrcf_lib.methods.missing_labels.base import Contexts
from hrcf_lib.prompts import encode_after
from hrcf_lib.training import train

NAMES = ["cat", "tree", "sea", "bus"]  # of any kind: prompts are shared


def build(name, **changes):
    return methods.build(name, synthetic.config(), pretrained=False, **{"prompt_vectors": 4} | changes)


def trunk(model, B=3, seed=0):
    return torch.randn(B, 1 + model.vlp.N**2, model.vlp.C, generator=torch.Generator().manual_seed(seed))


def whole_prompt(model, contexts, name):
    """The embedding of [SOS, v_1 .. v_M, name, ., EOT] as the text tower itself computes it (D,)."""
    vlp = model.vlp
    table, tower = vlp.model.token_embedding.weight, vlp.model
    ends = [table[[token]] for token in (vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id)]
    own = table[vlp.token_ids(name) + vlp.token_ids(".")]
    x = torch.cat([ends[0], contexts.vectors[0], own, ends[1]])[None]  # (1, L, C)
    L = x.shape[1]
    x = tower.transformer(x + tower.positional_embedding[:L], attn_mask=tower.attn_mask[:L, :L])
    return (tower.ln_final(x[:, -1]) @ tower.text_projection)[0]


@pytest.mark.parametrize("name", ["coop", "dual_coop"])
def test_order_of_the_tables_and_open_labels(name):
    assert methods.names("missing_labels")[:3] == ("coop", "dual_coop", "asl")
    assert methods.method(name).open_vocabulary and build(name).open_vocabulary


# CoOp -----------------------------------------------------------------------------------------------------------------


def test_coop_is_a_cosine_over_a_temperature_less_an_offset():
    model = build("coop", tau=0.2, level=0.6)
    tokens = trunk(model)
    s = model.score_embeddings(*model.image_embeddings(tokens), model.label_embeddings(NAMES))
    e = model.vlp.teacher(tokens)
    for k, name in enumerate(NAMES):
        t = whole_prompt(model, model.prompt, name)
        assert_close(s[:, k], F.cosine_similarity(e, t[None]) / 0.2 - 3.0, rtol=1e-4, atol=1e-4)


def test_coop_starts_from_words_or_from_numbers_of_its_seed():
    words, ids = build("coop"), None
    ids = words.vlp.token_ids("A photo for multi-label classification,")[:4]
    assert_close(words.prompt.vectors[0], words.vlp.model.token_embedding.weight[ids])
    drawn = [build("coop", context_std=0.02, seed=seed).prompt.vectors for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert 0.015 < drawn[0].std() < 0.025


# DualCoOp -------------------------------------------------------------------------------------------------------------


def slow_dual(model, tokens, name):
    """Logits (B,) and softmax over positions (B, J), picture by picture, with the softmax over the pair written out."""
    c, found = model.config, []
    positive, negative = (whole_prompt(model, model.prompt[side], name) for side in ("positive", "negative"))
    for f in model.vlp.dense(tokens):  # (J, D)
        s = [c.sharpness * F.cosine_similarity(f, t[None]) for t in (positive, negative)]  # (J,)
        a = s[0].exp() / s[0].exp().sum()
        S = torch.stack([c.scale * (a * own).sum() for own in s])
        found.append((S.softmax(0)[0], a))
    p, a = zip(*found)
    return torch.stack(p), torch.stack(a)


def test_dual_coop_is_the_softmax_of_a_pair_of_pooled_scores():
    model = build("dual_coop", sharpness=7.0, scale=2.0, context_std=0.5)
    tokens = trunk(model)
    (e_g, regions), t = model.image_embeddings(tokens), model.label_embeddings(NAMES)
    p, a = model.probabilities(model.score_embeddings(e_g, regions, t)), model.maps(regions, t)
    for k, name in enumerate(NAMES):
        expected = slow_dual(model, tokens, name)
        assert_close(p[:, k], expected[0], rtol=1e-4, atol=1e-5)
        assert_close(a[:, k], expected[1], rtol=1e-4, atol=1e-6)


def test_both_prompts_alike_say_one_half():
    """From the same words they start alike: what they learn in opposite directions is all that tells them apart."""
    model = build("dual_coop", context_std=0.0, negative_std=0.0)
    s = model.score_embeddings(*model.image_embeddings(trunk(model)), model.label_embeddings(NAMES))
    assert_close(s, torch.zeros_like(s), rtol=0, atol=1e-5)


def test_dual_coop_in_parts_is_the_same_with_the_same_gradients(monkeypatch):
    model, found = build("dual_coop"), []
    model.prompt.requires_grad_(True)
    e_g, regions = model.image_embeddings(trunk(model))
    for part in (2**26, regions.shape[0] * regions.shape[1] * 3):  # all, then three of four
        monkeypatch.setattr(chunks, "LARGE", part)
        s = model.score_embeddings(e_g, regions, model.label_embeddings(NAMES))
        gradients = torch.autograd.grad(s.square().sum(), list(model.prompt.parameters()))
        found.append((s.detach(), *gradients))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


# Both -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["asymmetric", "cross_entropy"])
@pytest.mark.parametrize("name", ["coop", "dual_coop"])
def test_training_changes_every_parameter_and_lowers_the_loss(name, loss):
    model = build(name, loss=loss, phases=(("prompts", 8, 5),), prompt_lr=5e-4)
    before, data = synthetic.weights(model), synthetic.features()
    history = train(model, data)
    own = [n for n, _ in model.named_parameters() if not n.startswith("vlp.")]
    after = synthetic.weights(model)
    assert own and all(not torch.equal(before[n], after[n]) for n in own)
    assert synthetic.same(before, after, "vlp.")
    assert history["classification"].tail(2).mean() < history["classification"].head(2).mean()


@pytest.mark.parametrize("name", ["coop", "dual_coop"])
def test_a_label_does_not_depend_on_the_others(name):
    model = build(name)
    held = model.image_embeddings(trunk(model))
    whole = model.score_embeddings(*held, model.label_embeddings(NAMES))
    some = model.score_embeddings(*held, model.label_embeddings([NAMES[2], NAMES[0]]))
    assert_close(some, whole[:, [2, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["coop", "dual_coop"])
def test_contexts_of_each_labels_own(name):
    model = build(name, class_specific=True, categories=NAMES, context_std=0.5)
    contexts = [model.prompt] if name == "coop" else list(model.prompt.values())
    assert not model.open_vocabulary and not methods.asks_unseen(model.config)
    assert all(c.vectors.shape == (4, 4, model.vlp.text_width) for c in contexts)
    t = model.label_embeddings(NAMES)
    for i, c in enumerate(contexts):
        alone = Contexts(model.vlp, 4)
        with torch.no_grad():
            alone.vectors.copy_(c.vectors[[2]])
        own = t[:, i * model.vlp.D : (i + 1) * model.vlp.D]
        assert_close(own[2], F.normalize(whole_prompt(model, alone, NAMES[2]), dim=-1), rtol=1e-4, atol=1e-5)
    assert_close(model.label_embeddings([NAMES[3], NAMES[1]]), t[[3, 1]])
    with pytest.raises(ValueError, match="answers for the 4 labels it was built for, 'boat' is not among them"):
        model.label_embeddings(["boat"])
    with pytest.raises(ValueError, match=f"{name} learns something for each label: give the labels' names"):
        build(name, class_specific=True)


def test_the_negative_context_starts_from_words_of_its_own():
    model = build("dual_coop", negative_words="a photo")
    ids = model.vlp.token_ids("a photo")
    assert_close(model.prompt["negative"].vectors[0], model.vlp.model.token_embedding.weight[[*ids, *ids]])
    with pytest.raises(ValueError, match="was never trained on"):
        methods.build("dual_coop", synthetic.config(), negative_words="quux")


def test_contexts_of_each_label_run_in_chunks_with_the_same_gradients(monkeypatch):
    """Also the tokens of contexts count: a chunk holds 10 tokens here, each label has 1 + 4 + 1 + 2 of them or more."""
    vlp, found = build("coop").vlp, []
    contexts = Contexts(vlp, 4, len(NAMES), std=0.5)
    for tokens in (2**13, 10):
        monkeypatch.setattr(chunks, "TOKENS", tokens * vlp.text_width)
        monkeypatch.setattr(chunks, "TEXT", 12 * tokens * vlp.text_width if tokens > 10 else 0)
        sizes = []
        monkeypatch.setattr(
            prompts, "encode_after", lambda m, past, x, s=sizes: s.append(len(x)) or encode_after(m, past, x)
        )
        t = contexts(vlp, NAMES, [2, 0, 1, 3])
        found.append((t.detach(), *torch.autograd.grad(t.square().sum(), [contexts.vectors])))
        assert max(sizes) == (1 if tokens == 10 else len(NAMES)) and sum(sizes) == len(NAMES) * (
            2 if tokens == 10 else 1
        )
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, changes, says",
    [
        ("coop", {"tau": 0}, "tau = 0 must be above 0"),
        ("dual_coop", {"prompt_vectors": 0}, "prompt_vectors = 0 must be from 1 to 1000"),
        ("coop", {"loss": "hinge"}, "loss = 'hinge': choose one of asymmetric, cross_entropy"),
    ],
)
def test_bad_configs(name, changes, says):
    with pytest.raises(ValueError, match=says):
        build(name, **changes)


def test_a_name_too_long_for_its_context():
    with pytest.raises(ValueError, match="cat"):
        build("coop", prompt_vectors=76).label_embeddings(["cat"])


def test_maps_of_dual_coop_through_explain():
    model = build("dual_coop", context_std=0.5)
    model.reference_labels = ("cat", "dog")
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = region_maps.maps_for(model, images, ["bus", "cat"])
    assert maps.shape == (2, 2, 112, 112) and maps.min() == 0 and maps.max() == 1
    _, regions = model.embed(images)
    with torch.no_grad():
        a = model.maps(regions, model.label_embeddings(["bus", "cat"]))
    assert_close(maps, region_maps.score_map(a.transpose(1, 2), [14], 112), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="does not score its regions one by one"):
        region_maps.maps_for(build("coop"), images, ["bus"])
    with pytest.raises(ValueError, match="unknown kind of map 'votes'; known: attention"):
        region_maps.maker(model, ["bus"], kind="votes")
