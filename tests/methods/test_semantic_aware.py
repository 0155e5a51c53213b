"""The semantic-aware method: each equation against a plain slow form, its switches, its sizes, and what it refuses."""

import math

import pytest
import synthetic
import tiny_resnet
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.apply import region_maps
from hrcf_lib.engine import chunks
from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.missing_labels import semantic_aware
from hrcf_lib.methods.missing_labels.base import softmax_logits
from hrcf_lib.methods.missing_labels.semantic_aware import SemanticAttention, SemanticDecoupling, attention
from hrcf_lib.training import train

SEEN = synthetic.SPACE.seen
ROWS = [("none", False), ("none", True), ("bilinear", False), ("bilinear", True), ("semantic_attention", True)]
PAPER = {"reading": "fused", "start": "random", "optimizer": "sgd", "fit": False, "context_std": 0.02}
PAPER |= {"lr": 2e-3, "prompt_lr": 2e-3, "weight_decay": 5e-4}


def build(**changes):
    ready = {"prompt_vectors": 4, "rank": 8, "width": 6, "categories": SEEN} | PAPER | changes
    return methods.build("semantic_aware", synthetic.config(), pretrained=False, **ready)


def trunk(model, B=3, seed=0):
    return torch.randn(B, 1 + model.vlp.N**2, model.vlp.C, generator=torch.Generator().manual_seed(seed))


def scrambled(model, seed=0):
    """The model with every weight moved away from its start."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith(("vlp.", "likeness.")):
                p.add_(0.3 * torch.randn(p.shape, generator=g))
    return model


def labels(B=3, seed=0):
    """(B, 5) in -1/0/+1, with both and an unknown one in each row."""
    y = torch.randint(-1, 2, (B, len(SEEN)), generator=torch.Generator().manual_seed(seed))
    y[:, 0], y[:, 1], y[:, 2] = 1, -1, 0
    return y


def arrays(B=2, J=9, F=12, C=4, W=7, R=5, O=6, seed=0):
    """features, words, U, V, P, b, w"""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g) for s in [(B, J, F), (C, W), (F, R), (W, R), (R, O), (O,), (O,)]]


def slow(features, words, U, V, P, b, w):
    """~f (B, C, J, O) and a (B, C, J), position by position and category by category, as Eqs. 3-5 are printed."""
    fused = torch.stack(
        [torch.stack([torch.stack([P.T @ torch.tanh((U.T @ f) * (V.T @ x)) + b for f in own]) for x in words])
         for own in features]
    )  # fmt: skip
    logits = torch.stack([torch.stack([torch.stack([w @ f for f in c]) for c in own]) for own in fused])
    return fused, logits.exp() / logits.exp().sum(dim=-1, keepdim=True)


# Equations ------------------------------------------------------------------------------------------------------------


def test_attention_is_that_of_the_equations_as_printed():
    given = arrays()
    a = attention(*given)
    assert a.shape == (2, 4, 9)
    assert_close(a, slow(*given)[1])
    assert_close(a.sum(dim=-1), torch.ones(2, 4))
    assert_close(attention(*(x.double() for x in given)), slow(*(x.double() for x in given))[1])


def test_attention_in_chunks_has_the_same_values_and_gradients(monkeypatch):
    found = []
    for most in (2**26, 9 * 5 * 3):  # all at once, then three categories of four, made again
        monkeypatch.setattr(chunks, "CACHE", most), monkeypatch.setattr(chunks, "LARGE", most)
        given = [x.requires_grad_() for x in arrays()]
        a = attention(*given)
        used = [x for x in given if x is not given[5]]  # b cancels
        found.append((a.detach(), *torch.autograd.grad(a.square().sum(), used)))
    for x, y in zip(*found, strict=True):
        assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_attention_makes_no_tensor_of_the_fused_features():
    """Nothing that is kept has J O numbers for each category of a picture."""
    given, sizes = arrays(O=50), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        attention(*(x.requires_grad_() for x in given))
    assert max(sizes) < 4 * 9 * 50


@pytest.mark.parametrize("wrong", range(7))
def test_attention_of_shapes_that_do_not_fit(wrong):
    given = arrays()
    given[wrong] = given[wrong][..., :-1]
    with pytest.raises(
        ValueError, match=r"shapes do not fit: features \(2, 9, 1[12]\), words .* w \([56],\); they are"
    ):
        attention(*given)


@pytest.mark.parametrize("reading", ["fused", "map"])
def test_a_category_feature_is_the_sum_of_either_reading(reading):
    features, words, *_ = arrays()
    module = SemanticDecoupling(12, 7, 5, 6, 3, reading)
    b = module.fuse.bias if reading == "fused" else torch.zeros(6)
    own = [layer.weight.T for layer in (module.image, module.word, module.fuse)]
    fused, a = slow(features, words, *own, b, module.attend.weight[0])
    for i in range(2):
        for c in range(4):
            summed = sum(a[i, c, j] * (fused[i, c, j] if reading == "fused" else features[i, j]) for j in range(9))
            assert_close(module(features, words)[i, c], module.out.weight @ summed + module.out.bias)
    assert_close(module.masks(features, words), a)


def test_semantic_attention_is_that_of_add_gcn():
    """Its code: 1 x 1 convolutions, a sigmoid of the classes' map, and the product with a transformed map."""
    g = torch.Generator().manual_seed(0)
    module, f, classes = (
        SemanticAttention(12, 6, 3),
        torch.randn(2, 12, 3, 3, generator=g),
        torch.randn(4, 12, generator=g),
    )
    mask = F.conv2d(f, classes[:, :, None, None]).flatten(2).sigmoid()  # (B, C, J)
    x = F.conv2d(f, module.transform.weight[:, :, None, None], module.transform.bias).flatten(2)  # (B, O, J)
    v = torch.matmul(x, mask.transpose(1, 2)).transpose(1, 2)  # (B, C, O)
    regions = f.flatten(2).transpose(1, 2)
    assert_close(module(regions, classes), module.out(v))
    assert_close(module.masks(regions, classes), mask)


@pytest.mark.parametrize("decoupling", ["bilinear", "semantic_attention"])
@pytest.mark.parametrize("offset", [True, False])
def test_scores_are_cosines_of_category_features_and_own_prompts(decoupling, offset):
    model = scrambled(build(decoupling=decoupling, tau=0.2, level=0.1, offset=offset))
    (e_g, regions), t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    f = model.decoupling(regions, t[:, model.vlp.D :])  # (B, K, D)
    expected = F.cosine_similarity(f, t[None, :, : model.vlp.D], dim=-1) / 0.2 - 0.5
    assert_close(model.score_embeddings(e_g, regions, t), expected, rtol=1e-4, atol=1e-4)
    names = {n for group in model.groups("both") for n in group["names"]}
    assert ("likeness.offset" in names) is offset and "likeness.log_scale" in names


def test_the_map_is_averaged_two_by_two():
    for space, width in (("raw", "C"), ("joint", "D"), ("auto", "D")):
        model = build(space=space)
        tokens = trunk(model, 1)
        _, regions = model.image_embeddings(tokens)
        whole = (tokens[:, 1:] if space == "raw" else model.vlp.dense(tokens))[0].unflatten(0, (14, 14))
        assert regions.shape == (1, 49, getattr(model.vlp, width)) and model.region_sides == [7]
        assert_close(regions[0, 9], whole[2:4, 4:6].mean(dim=(0, 1)))  # row 1, column 2 of 7
    assert build(pool=1).image_embeddings(trunk(build(pool=1)))[1].shape[1] == 196


def test_words_are_as_the_vlp_gives_them_and_are_read_once(monkeypatch):
    model, asked = build(), []
    plain = word_vectors.fixed_prompts
    monkeypatch.setattr(word_vectors, "fixed_prompts", lambda *a: asked.append(a[1]) or plain(*a))
    for names in (SEEN, SEEN, SEEN[:2]):
        x = model.label_embeddings(names)[:, model.vlp.D :]
        assert_close(x, model.vlp.encode_text([f"a photo of a {name}." for name in names]))
    assert asked == [SEEN, SEEN[:2]]


def test_each_category_has_vectors_of_its_own_drawn_from_a_gaussian():
    model = build(prompt_vectors=16)
    assert model.prompt.vectors.shape == (5, 16, model.vlp.text_width)
    assert 0.019 < model.prompt.vectors.std() < 0.021 and abs(model.prompt.vectors.mean()) < 1e-3
    before = model.label_embeddings(SEEN)
    with torch.no_grad():
        model.prompt.vectors[1] += torch.randn(16, model.vlp.text_width)
    changed = (model.label_embeddings(SEEN) - before).abs().amax(dim=1) > 1e-4
    assert changed.tolist() == [name == SEEN[1] for name in SEEN]
    assert_close(model.label_embeddings([SEEN[3], SEEN[1]]), model.label_embeddings(SEEN)[[3, 1]])


def test_prediction_by_softmax_is_the_letter_of_eq_9():
    model = scrambled(build(prediction="softmax", tau=0.05))
    (e_g, regions), t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    cos = F.cosine_similarity(model.decoupling(regions, t[:, model.vlp.D :]), t[None, :, : model.vlp.D], dim=-1)
    weights = (cos / 0.05).exp()
    p = model.probabilities(model.score_embeddings(e_g, regions, t))
    assert_close(p, weights / weights.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-6)
    assert not any(n.startswith("likeness.") for group in model.groups("both") for n in group["names"]), "tau is fixed"


def test_softmax_logits_are_those_of_the_softmax():
    s = 5 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(softmax_logits(s).sigmoid(), s.softmax(dim=1))
    s[0, 3], s[1] = 1e4, 0.0  # a certain one, and all alike
    found = softmax_logits(s.requires_grad_())
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), s)[0].isfinite().all()
    with pytest.raises(ValueError, match="ask for two or more"):
        softmax_logits(torch.zeros(2, 1))


def test_the_loss_is_that_of_eqs_10_and_11():
    """Sum over known categories, mean over pictures; partial BCE is what Fig. 7 compares with."""
    p, y = torch.tensor([[0.9, 0.3, 0.6], [0.02, 0.5, 0.8]]), torch.tensor([[1, -1, 0], [-1, 0, 1]])
    expected = [0.1 * math.log(0.9) + 0.25**2 * math.log(0.75), 0.2 * math.log(0.8)]  # 0.02 lies below the shift
    assert_close(build().classification(p, y), torch.tensor(-sum(expected) / 2))
    expected = [math.log(0.9) + math.log(0.7), math.log(0.98) + math.log(0.8)]
    assert_close(build(loss="cross_entropy").classification(p, y), torch.tensor(-sum(expected) / 2))


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading, millions", [("fused", 4.64), ("map", 5.16)])
def test_numbers_that_learn_on_coco(reading, millions):
    """ResNet-101 and GloVe: 2,048 and 300 to 1,024, 512 of the text, 80 categories. The paper prints 4.8 M."""
    with torch.device("meta"):
        module = SemanticDecoupling(2048, 300, 1024, 1024, 512, reading)
    n = sum(p.numel() for p in module.parameters()) + 80 * 16 * 512
    assert n / 1e6 == pytest.approx(millions, abs=0.005)
    own = build(reading=reading, prompt_vectors=16)
    D, K = own.vlp.D, len(SEEN)
    text, image = K * 16 * own.vlp.text_width + 2, D * 8 + D * 8 + 8 * 6 + 6 + D
    image += 6 + 6 * D if reading == "fused" else D * D
    assert own.trained_parameters() == {"image side": image, "text side": text}


def test_the_papers_values_are_the_defaults_at_full_size():
    config = methods.configure("semantic_aware", configs.nus_wide())
    assert (config.optimizer, config.momentum, config.lr, config.prompt_lr) == ("sgd", 0.9, 2e-3, 2e-3)
    assert [(p.trains, p.epochs, p.batch) for p in config.phases] == [("both", 100, 64)]
    assert (config.gamma_positive, config.gamma_negative, config.shift, config.prompt_vectors) == (1, 2, 0.05, 16)
    assert (config.rank, config.width, config.reading, config.start, config.pool) == (1024, 1024, "fused", "random", 2)
    assert config.changes() == {}
    short = methods.configure("semantic_aware", configs.nus_wide().replace(phases=(("hcg", 3, 8),)))
    assert [(p.trains, p.epochs, p.batch) for p in short.phases] == [("both", 3, 8)], "phases of one's own stay"
    mini = methods.configure("semantic_aware", configs.mini())
    assert sum(p.epochs for p in mini.phases) == sum(p.epochs for p in configs.mini().phases)
    assert mini.changes() == {}
    other = methods.configure("semantic_aware", configs.mini().replace(vlp="RN50"))
    assert (other.rank, other.reading) == (1024, "fused"), "values of the mini VLP are of no other"
    assert {n: getattr(mini, n) for n in type(mini).small} == type(mini).small


def test_the_schedule_is_constant_in_the_first_epoch_and_then_a_cosine():
    model = methods.build("semantic_aware", configs.nus_wide(), pretrained=False, categories=SEEN, vlp="hrcf-mini")
    rate = lambda epoch: model.learning_rate("both", epoch, 100)
    assert rate(0.0) == rate(0.99) == pytest.approx(0.0005)
    assert rate(1.0) == pytest.approx(0.002) and rate(50.5) == pytest.approx(0.001, rel=1e-2)
    assert rate(100.0) == pytest.approx(model.config.min_lr)


@pytest.mark.parametrize("decoupling, category_prompts", ROWS)
def test_rows_of_table_4_and_of_fig_4_train_all_that_they_have(decoupling, category_prompts):
    model = build(decoupling=decoupling, category_prompts=category_prompts, phases=(("both", 8, 5),), tau=0.2, lr=0.05)
    assert hasattr(model, "decoupling") is (decoupling != "none")
    assert hasattr(model, "classifier") is (decoupling == "semantic_attention")
    assert model.open_vocabulary is not category_prompts and len(model.prompt.vectors) == (5 if category_prompts else 1)
    before = synthetic.weights(model)
    history = train(model, synthetic.features())
    after = synthetic.weights(model)
    own = [n for n, _ in model.named_parameters() if not n.startswith("vlp.")]
    assert not [n for n in own if torch.equal(before[n], after[n])] and synthetic.same(before, after, "vlp.")
    assert history["classification"].tail(2).mean() < history["classification"].head(2).mean()


@pytest.mark.parametrize("side", ["images", "prompts"])
def test_sides_alone(side):
    """The classifier of semantic attention is read anew in each step where the image side alone learns."""
    model = build(decoupling="semantic_attention", phases=((side, 2, 5),))
    before = synthetic.weights(model)
    train(model, synthetic.features())
    moved = {n.split(".")[0] for n, v in synthetic.weights(model).items() if not torch.equal(before[n], v)}
    assert moved == ({"decoupling", "classifier"} if side == "images" else {"prompt", "likeness"})


def test_without_both_parts_it_is_coop_weight_for_weight():
    ours = build(decoupling="none", category_prompts=False, tau=0.03, level=0.65)
    coop = methods.build("coop", synthetic.config(), pretrained=False, prompt_vectors=4, context_std=0.02)
    assert synthetic.same(synthetic.weights(ours), synthetic.weights(coop))  # as they start
    coop.load_trainable(scrambled(ours).trainable_state(), "ours")
    tokens, names = trunk(ours), ["sea", *SEEN]  # an unseen name too: prompts are shared
    scores = [m.score_embeddings(*m.image_embeddings(tokens), m.label_embeddings(names)) for m in (ours, coop)]
    assert torch.equal(*scores)


def test_rates_of_the_two_sides():
    model = build(lr=1e-2, prompt_lr=1e-3, decoupling="semantic_attention")
    rates = {n: group["lr_scale"] * 1e-2 for group in model.groups("both") for n in group["names"]}
    expected = {"decoupling": 1e-2, "classifier": 1e-2, "prompt": 1e-3, "likeness": 1e-3}
    assert all(rates[n] == pytest.approx(expected[n.split(".")[0]]) for n in rates)
    assert {n.split(".")[0] for n in rates} == set(expected)


def test_a_square_map_starts_at_the_identity_and_temperature_and_offset_are_fitted_to_it():
    model = build(reading="map", start="identity", fit=True)
    assert torch.equal(model.decoupling.out.weight, torch.eye(model.vlp.D)) and not model.decoupling.out.bias.any()
    assert model.decoupling.fuse.bias is None
    scale = model.likeness.log_scale.item()
    model.begin(synthetic.features())
    assert model.likeness.log_scale.item() != scale
    plain = build()
    plain.begin(synthetic.features())
    assert plain.likeness.log_scale.item() == pytest.approx(math.log(100)) and plain.likeness.offset.item() == 0


# Known pairs and chunks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["fused", "map"])
@pytest.mark.parametrize("unknown", ["ignored", "negative"])
def test_the_loss_of_known_pairs_alone_is_that_of_all(unknown, reading):
    model = scrambled(build(unknown=unknown, reading=reading, tau=0.2))
    held, y = model.image_embeddings(trunk(model)), labels()
    synthetic.assert_known_pairs_suffice(model, held, y, SEEN)


def test_nothing_is_computed_of_unknown_pairs(monkeypatch):
    model, seen = build(), []
    plain = semantic_aware.tangents
    monkeypatch.setattr(semantic_aware, "tangents", lambda u, v: seen.append(len(v)) or plain(u, v))
    held, y = model.image_embeddings(trunk(model)), labels()
    y[1] = 0  # a picture without a known label
    model.losses(*held, model.label_embeddings(SEEN), y, held[0])
    assert sum(seen) == (y != 0).sum()


@pytest.mark.parametrize("decoupling", ["bilinear", "semantic_attention"])
def test_large_batches_are_computed_again_with_the_same_gradients(monkeypatch, decoupling):
    model, found = scrambled(build(decoupling=decoupling)), []
    held = model.image_embeddings(trunk(model))
    for most in (2**26, 49 * 8 * 2):  # all of a picture, then two categories at a time
        monkeypatch.setattr(chunks, "LARGE", most), monkeypatch.setattr(chunks, "CACHE", most)
        s = model.score_embeddings(*held, model.label_embeddings(SEEN))
        own = [p for n, p in model.named_parameters() if n.startswith(("decoupling.", "classifier."))]
        found.append((s.detach(), *torch.autograd.grad(s.square().sum(), own)))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("decoupling", ["bilinear", "semantic_attention"])
def test_an_exported_graph_computes_the_same_all_at_once(monkeypatch, decoupling):
    model = scrambled(build(decoupling=decoupling))
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    plain, a = model.score_embeddings(*held, t), model.maps(held[1], t)
    monkeypatch.setattr(chunks, "exporting", lambda: True)
    assert_close(model.score_embeddings(*held, t), plain, rtol=1e-4, atol=1e-4)
    assert_close(model.maps(held[1], t), a)


# Word vectors and bad input -------------------------------------------------------------------------------------------


def test_glove_of_another_width_and_a_word_that_is_missing(tmp_path):
    path = tmp_path / "glove.txt"
    g = torch.Generator().manual_seed(0)
    row = lambda: " ".join(f"{v:.4f}" for v in torch.randn(6, generator=g).tolist())
    path.write_text("".join(f"{word} {row()}\n" for word in (*SEEN, "fire")), encoding="utf-8")
    model = scrambled(build(glove=str(path)))
    held, t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    assert t.shape == (5, model.vlp.D + 6) and model.decoupling.word.weight.shape == (8, 6)
    assert model.score_embeddings(*held, t).shape == (3, 5)
    for says in (
        "labels without word vectors",
        "label 'fire truck': 'truck' is not in .*glove.txt",
        "glove_missing='skip'",
    ):
        with pytest.raises(ValueError, match=says):  # before any feature
            build(glove=str(path), categories=["cat", "fire truck"])
    skipped = build(glove=str(path), categories=["cat", "fire truck"], glove_missing="skip")
    assert torch.equal(skipped.words(["fire truck"]), skipped.words(["fire"]))
    with pytest.raises(ValueError, match="label 'lorry': 'lorry' is not in"):  # no word of it is there
        build(glove=str(path), categories=["cat", "lorry"], glove_missing="skip")
    with pytest.raises(FileNotFoundError, match="no word vectors at"):
        build(glove=str(tmp_path / "none.txt"))


def test_a_name_that_it_was_not_built_for():
    with pytest.raises(ValueError, match="answers for the 5 labels it was built for, 'boat' is not among them"):
        build().label_embeddings(["cat", "boat"])
    shared = build(category_prompts=False)
    assert shared.label_embeddings(["cat", "boat"]).shape == (2, 2 * shared.vlp.D)
    with pytest.raises(ValueError, match="answers for the 5 labels"):  # a mask of each category's own
        build(category_prompts=False, decoupling="semantic_attention").label_embeddings(["cat", "boat"])


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"categories": ()}, "give the labels' names"),
        ({"categories": (), "category_prompts": False, "decoupling": "semantic_attention"}, "give the labels' names"),
        ({"prediction": "tanh"}, "prediction = 'tanh': choose one of sigmoid, softmax"),
        ({"decoupling": "spatial"}, "decoupling = 'spatial': choose one of bilinear, semantic_attention, none"),
        ({"reading": "R3"}, "reading = 'R3': choose one of fused, map"),
        ({"rank": 0}, "rank = 0 must be from 1 to"),
        ({"width": 0}, "width = 0 must be from 1 to"),
        ({"tau": 0}, "tau = 0 must be above 0"),
        ({"start": "identity"}, "start = 'identity' is of a map in the text's space: it needs reading = 'map'"),
        ({"pool": 3}, "pool = 3 of a map of 14 x 14 would leave positions out: set pool to a divisor"),
        ({"glove_missing": "guess"}, "glove_missing = 'guess': choose one of error, skip"),
        ({"settings": "second"}, "settings = 'second'"),
    ],
)
def test_bad_configs(changes, says):
    with pytest.raises(ValueError, match=says):
        build(**changes)


def test_an_identity_that_is_not_square():
    with pytest.raises(ValueError, match="start = 'identity' of a map of width 12 and text of width 3: take space"):
        SemanticDecoupling(12, 7, 5, 6, 3, "map", identity=True)


def test_a_resnet_gives_its_raw_map(monkeypatch):
    """Of 128 px: 4 x 4 positions and 256 channels, averaged to 2 x 2. The 3 x 3 of 96 px cannot be halved."""
    tiny_resnet.enter(monkeypatch)
    base = lambda side: synthetic.config(vlp=tiny_resnet.NAME, side=side)
    make = lambda side, **changes: methods.build(
        "semantic_aware", base(side), pretrained=False, categories=SEEN, rank=8, **changes
    )
    model = make(128)
    tokens = trunk(model, 2)
    e, regions = model.image_embeddings(tokens)
    assert regions.shape == (2, 4, model.vlp.C) and e.shape == (2, model.vlp.D)
    assert_close(regions[:, 3], tokens[:, 1:].unflatten(1, (4, 4))[:, 2:, 2:].mean(dim=(1, 2)))
    assert model.score_embeddings(e, regions, model.label_embeddings(SEEN)).shape == (2, 5)
    with pytest.raises(
        ValueError, match="pool = 2 of a map of 3 x 3 would leave positions out.*or side to another size"
    ):
        make(96)
    with pytest.raises(ValueError, match="start = 'identity' of a map of width 256 and text of width 32: take space"):
        make(128, reading="map", start="identity")
    assert make(128, reading="map", start="identity", space="joint").image_embeddings(tokens)[1].shape == (2, 4, 32)


# Maps -----------------------------------------------------------------------------------------------------------------


def test_maps_are_the_attention_and_sum_to_one():
    model = scrambled(build())
    (_, regions), t = model.image_embeddings(trunk(model)), model.label_embeddings(SEEN)
    a = model.maps(regions, t)
    assert a.shape == (3, 5, 49)
    assert_close(a.sum(dim=-1), torch.ones(3, 5))
    assert_close(a, model.decoupling.masks(regions, t[:, model.vlp.D :]))
    with pytest.raises(ValueError, match="decoupling = 'none'"):
        build(decoupling="none").maps(regions, t)


@pytest.mark.parametrize("decoupling", ["bilinear", "semantic_attention"])
def test_maps_of_pictures(decoupling):
    model = scrambled(build(decoupling=decoupling))
    model.reference_labels = SEEN
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = region_maps.maps_for(model, images, ["bus", "cat"])
    assert maps.shape == (2, 2, 112, 112) and maps.min() == 0 and maps.max() == 1
