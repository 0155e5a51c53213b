"""TRM-ML: each equation against a plain slow form, its parameters as printed, and what evolves in training."""

import dataclasses
import math

import pytest
import synthetic
import torch
from torch import nn
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.engine import chunks
from hrcf_lib.engine.schedules import one_cycle
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods.missing_labels import trm_ml
from hrcf_lib.methods.missing_labels.prototypes import ABSENT, PRESENT, TEXT, VISUAL, Prototypes, decide, fill
from hrcf_lib.studies import missing_labels
from hrcf_lib.training import train
from hrcf_lib.vlp import encode_tokens

NAMES = ["owl", "pizza", "bus", "cat", "dog"]
SPACE = LabelSpace(seen=NAMES, unseen=["zebra", "sea"])
LABELS = torch.tensor([[1, 0, -1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, -1], [-1, -1, 0, 1, 0]]).float()


PRINTED = {f.name: f.default for f in dataclasses.fields(trm_ml.TRMMLConfig) if f.name in trm_ml.TRMMLConfig.small}


def build(**changes):
    """With the paper's values, not those of the mini VLP."""
    ready = {"phases": (("both", 3, 4),), "categories": NAMES, "mlp_ratio": 2, "first_stage": 0.0}
    return methods.build("trm_ml", synthetic.config(), pretrained=False, **PRINTED | ready | changes)


def features(n=10, seed=0, hidden=0.5):
    """About half of the labels are unknown."""
    data = synthetic.features(n, seed, SPACE)
    data.labels[torch.rand(data.labels.shape, generator=torch.Generator().manual_seed(seed)) < hidden] = 0
    return data


def scrambled(model, seed=0):
    """The model with parameters that have left their start, and prototypes that know something of most categories."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("vlp."):
                p.add_(0.05 * torch.randn(p.shape, generator=g))
    D = model.vlp.D
    model.prototypes.add(torch.randn(3, 2, D, generator=g), torch.tensor([0, 1, 3]))
    model.prototypes.update(0.2 * torch.randn(2, 8, 5, generator=g), torch.randint(-1, 2, (8, 5), generator=g))
    return model


def inputs(model, seed=1):
    """e_g (4, D), a map (4, J, D), label embeddings (K, 3 D) and labels (4, K)."""
    g = torch.Generator().manual_seed(seed)
    e_g, f = model.image_embeddings(torch.randn(4, 197, model.vlp.C, generator=g))
    return e_g, f, model.label_embeddings(NAMES), LABELS


def cos(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


# Regions and scores, Eqs. 1-5 ---------------------------------------------------------------------------------------


def test_region_features_in_plain_form():
    g = torch.Generator().manual_seed(0)
    e, f = torch.randn(2, 3, 4, generator=g), torch.randn(2, 4, 5, generator=g)
    found = {mask: trm_ml.region_features(e, f, mask) for mask in trm_ml.MASKS}
    assert torch.equal(trm_ml.region_features(e, f), found["sigmoid"])
    for i in range(2):
        for c in range(3):
            own = [1 / (1 + math.exp(-x)) for x in e[i, c].tolist()]
            assert_close(found["sigmoid"][i, c], sum(w * x for w, x in zip(own, f[i])))
            total = sum(math.exp(x) for x in e[i, c].tolist())
            assert_close(found["softmax"][i, c], sum(math.exp(w) / total * x for w, x in zip(e[i, c].tolist(), f[i])))


@pytest.mark.parametrize(
    "args, says",
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 5, 6)), r"energies \(2, 3, 4\) and features \(2, 5, 6\): give"),
        ((torch.zeros(3, 4), torch.zeros(3, 4, 5)), r"energies \(3, 4\)"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4, 6), "hard"), "mask = 'hard': choose one of sigmoid, softmax"),
    ],
)
def test_region_features_of_what_does_not_fit(args, says):
    with pytest.raises(ValueError, match=says):
        trm_ml.region_features(*args)


@torch.no_grad()
@pytest.mark.parametrize("mask", trm_ml.MASKS)
def test_scores_maps_and_query_features_in_plain_form(mask):
    model = scrambled(build(mask=mask, offset=True)).eval()
    e_g, f, t, _ = inputs(model)
    a, D, s = model.attention, model.vlp.D, model.score_embeddings(e_g, f, t)
    maps, F_q = model.maps(f, t), model.query_features(model.energies(f, t), f)
    assert maps.shape == (4, 5, 196) and s.shape == (4, 5)
    plain = nn.MultiheadAttention(D, 1, batch_first=True)
    plain.in_proj_weight.copy_(torch.cat([layer.weight for layer in (a.query, a.key, a.value)]))
    plain.in_proj_bias.copy_(torch.cat([layer.bias for layer in (a.query, a.key, a.value)]))
    plain.out_proj.load_state_dict(a.out.state_dict())
    h, _ = plain(model.queries.expand(4, -1, -1), f, f)  # Cross_Att(Q, f)
    assert_close(F_q, h + model.mlp(h), rtol=1e-3, atol=1e-4)  # Eq. 3
    for i, k in ((0, 0), (3, 4)):
        energies = torch.stack([a.query(model.queries[k]) @ a.key(x) for x in f[i]]) / math.sqrt(D)
        weights = energies.sigmoid() if mask == "sigmoid" else energies.softmax(0)
        assert_close(maps[i, k], weights, rtol=1e-4, atol=1e-6)  # Eq. 2
        region = sum(w * x for w, x in zip(weights, f[i]))  # Eq. 4: the raw map
        g = [context(model.vlp, [NAMES[k]], [k])[0] for context in model.context.values()]
        z = [cos(region, own) * model.likeness.log_scale.exp() for own in g]  # Eq. 1
        assert_close(s[i, k], z[0] - z[1] + model.likeness.offset, rtol=1e-3, atol=1e-4)
        assert model.probabilities(s)[i, k].item() == pytest.approx(
            math.exp(z[0] + model.likeness.offset) / (math.exp(z[0] + model.likeness.offset) + math.exp(z[1])), rel=1e-3
        )


@torch.no_grad()
def test_the_map_is_raw_and_in_the_joint_space():
    model = build().eval()
    trunk = torch.randn(2, 197, model.vlp.C)
    e, f = model.image_embeddings(trunk)
    assert torch.equal(f, model.vlp.dense(trunk)) and torch.equal(e, model.vlp.teacher(trunk))


@torch.no_grad()
def test_other_matchings_have_a_region_of_their_own():
    image, mean, pixel = (build(matching=m, sharpness=4.0).eval() for m in ("image", "mean", "pixel"))
    trunk = torch.randn(2, 197, image.vlp.C)
    for model in (image, mean, pixel):
        e, f = model.image_embeddings(trunk)
        t = model.label_embeddings(NAMES)
        g = t[:, : model.vlp.D]
        near = (4.0 * torch.cosine_similarity(f[:, :, None], g, dim=-1)).softmax(dim=1)  # (B, J, K)
        expected = {"image": e[:, None].expand(-1, 5, -1), "mean": f.mean(dim=1, keepdim=True).expand(-1, 5, -1)}
        expected["pixel"] = near.transpose(1, 2) @ f
        assert_close(model.regions(f, t), expected[model.config.matching], rtol=1e-4, atol=1e-4)
        assert not hasattr(model, "queries") and model.weights("both")["distillation"] == 0


@torch.no_grad()
def test_prompts_of_each_category_or_shared_drawn_or_from_words():
    class_own, shared = build(), build(prompts="shared")
    for model, number in ((class_own, 5), (shared, 1)):
        for context in model.context.values():
            assert context.vectors.shape == (number, 16, 128)
            assert context.vectors.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(class_own.context["positive"].vectors[0], class_own.context["positive"].vectors[1])
    words = build(context_std=0.0, negative="words")
    a, b = (words.context[name].vectors for name in ("positive", "negative"))
    assert torch.equal(a[0], a[1]) and torch.equal(b[0], b[1]) and not torch.equal(a, b)
    for start in ("none", "weighed"):  # no negative prompt, and one whose weight starts at 0
        model = build(negative=start)
        e_g, f, t, _ = inputs(model)
        s = model.score_embeddings(e_g, f, t) / model.likeness.log_scale.exp()
        assert_close(s, torch.cosine_similarity(model.regions(f, t), t[:, :128], dim=-1), rtol=1e-4, atol=1e-5)
        assert len(model.context) == (1 if start == "none" else 2) and (t[:, 128:256] == 0).all()
    model.negative_weight.fill_(0.5)
    assert_close(model.label_embeddings(NAMES)[:, 128:256].norm(dim=1), torch.full((5,), 0.5))


@torch.no_grad()
def test_texts_are_those_of_whole_sentences():
    model = build()
    vlp, t = model.vlp, model.label_embeddings(NAMES)
    table, ids = vlp.model.token_embedding.weight, vlp.token_ids
    start, end = ([table[i]] for i in (vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id))
    for k, name in enumerate(NAMES):
        for context, own in zip(model.context.values(), t[k].chunk(3)):
            row = torch.stack([*start, *context.vectors[k], *table[ids(name)], *table[ids(".")], *end])
            whole = encode_tokens(vlp.model, row[None], torch.tensor([len(row) - 1]))[0]
            assert_close(own, whole / whole.norm(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_start_at_the_text():
    model = build(attention_start="text", sharpness=3.0)
    model.begin(features())
    f = model._first_map(features())
    t = model.label_embeddings(NAMES)
    e = model.energies(f, t)  # (B, K, J)
    expected = 3.0 * (f - f.mean(dim=(0, 1))) @ model.queries.T / f.norm(dim=-1).mean()
    assert_close(e.transpose(1, 2), expected, rtol=1e-3, atol=1e-4)


def test_a_fit_of_temperature_before_the_first_step():
    plain, fitted = build(), build(fit=True, offset=True)
    for model in (plain, fitted):
        model.begin(features(40))
    assert plain.likeness.log_scale.exp().item() == pytest.approx(20.0) and plain.likeness.offset == 0
    assert fitted.likeness.offset != 0


# Losses ---------------------------------------------------------------------------------------------------------------


def test_distillation_is_the_divergence_and_teaches_one_side():
    g = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 4, generator=g).requires_grad_() for _ in range(2))
    found = trm_ml.distil(teacher, student)
    expected = each = 0.0
    for i in range(3):
        p, r = ([math.exp(x) for x in row[i].tolist()] for row in (teacher, student))
        expected += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(r))) for a, b in zip(p, r)) / 3
        for a, b in zip(p, r):
            a, b = a / (1 + a), b / (1 + b)
            each += (a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))) / 3
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert trm_ml.distil_each(teacher, student).item() == pytest.approx(each, rel=1e-4)
    (found + trm_ml.distil_each(teacher, student)).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


def unit(*shape, seed):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_each_positive_has_a_denominator_of_its_own():
    anchor, positives, negatives = unit(6, seed=0), unit(3, 6, seed=1), unit(4, 6, seed=2)
    every = [math.exp(float(anchor @ q) / 0.3) for q in negatives]
    own = [math.exp(float(anchor @ q) / 0.3) for q in positives]
    expected = sum(-math.log(a / (a + sum(every))) for a in own) / 3
    assert trm_ml.contrastive_loss(anchor, positives, negatives, 0.3).item() == pytest.approx(expected, rel=1e-4)
    anchor.requires_grad_()
    for p, n in ((positives[:0], negatives), (positives, negatives[:0])):
        nothing = trm_ml.contrastive_loss(anchor, p, n, 0.3)
        nothing.backward()
        assert nothing == 0 and anchor.grad.isfinite().all()


@pytest.mark.parametrize(
    "args, says",
    [
        ((torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 3), 0.1), r"of shapes \(3,\), \(2, 4\), \(2, 3\): give"),
        ((torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(2, 3), 0.1), r"of shapes \(1, 3\)"),
        ((torch.zeros(3), torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature = 0.0: choose a number above 0"),
    ],
)
def test_a_contrast_of_what_does_not_fit(args, says):
    with pytest.raises(ValueError, match=says):
        trm_ml.contrastive_loss(*args)


@pytest.mark.parametrize("memory_negatives", [True, False])
def test_the_batch_loss_is_the_mean_of_the_anchors_own(memory_negatives):
    texts, regions, memory = unit(4, 6, seed=0), unit(4, 6, seed=1), unit(5, 6, seed=2)
    classes, owners = torch.tensor([2, 0, 2, 3]), torch.tensor([2, 2, 1, 0, 1])
    found, losses = trm_ml.contrast(texts, regions, classes, memory, owners, 0.2, memory_negatives), []
    for c in (0, 2, 3):
        positives = [x for x, k in zip([*regions, *memory], [*classes, *owners]) if k == c]
        negatives = [x for x, k in zip(regions, classes) if k != c]
        negatives += [x for x, k in zip(memory, owners) if k != c and memory_negatives]
        losses.append(trm_ml.contrastive_loss(texts[c], torch.stack(positives), torch.stack(negatives), 0.2))
    assert_close(found, sum(losses) / 3)
    assert trm_ml.contrast(texts, regions[:0], classes[:0], memory, owners, 0.2) == 0


@pytest.mark.parametrize("divergence", ["softmax", "bernoulli"])
def test_losses_in_plain_form_and_gradients_reach_every_parameter(divergence):
    model = scrambled(build(alpha=0.5, divergence=divergence)).train()
    e_g, f, t, labels = inputs(model)
    before = synthetic.weights(model.prototypes)
    parts = model.losses(e_g, f, t, labels, e_g)
    assert parts.keys() == model.weights("both").keys()
    sum(w * parts[name] for name, w in model.weights("both").items()).backward()
    for name, p in model.named_parameters():
        if not name.startswith("vlp."):
            assert p.grad is not None and p.grad.abs().max() > 0, name
    held = model.prototypes.frozen.clone(), model.prototypes.text.clone()
    model.prototypes.load_state_dict(before)
    model.prototypes.end_first_stage(t[:, : model.vlp.D])
    assert held[0] and torch.equal(held[1], model.prototypes.text)
    with torch.no_grad():
        y = model.filled(model.estimates(f, t), labels)
        assert ((y != labels) == ((labels == 0) & (y != 0))).all() and (y != labels).any()
        g, h, _ = t.chunk(3, dim=1)
        F_q, F_r = model.query_features(model.energies(f, t), f), model.regions(f, t)
        scale = model.likeness.log_scale.exp()
        z = lambda x, own: torch.cosine_similarity(x, own, dim=-1) * scale
        logits = {"q": z(F_q, g) - z(F_q, h), "r": z(F_r, g) - z(F_r, h)}
        asl = {name: model.classification(s.sigmoid(), y) for name, s in logits.items()}
        assert_close(parts["classification"], asl["q"] + 0.5 * asl["r"], rtol=1e-4, atol=1e-4)  # L^q + alpha L^r
        apart = trm_ml.distil(z(F_r, g), z(F_q, g))
        apart = trm_ml.distil_each(logits["r"], logits["q"]) if divergence == "bernoulli" else apart
        assert_close(parts["distillation"], apart, rtol=1e-3, atol=1e-4)
        own = [(i, k) for k in range(5) for i in range(4) if labels[i, k] == 1]
        held = [(k, v) for k in range(5) for v in model.prototypes.bank[k] if v.any()]
        project = lambda x: nn.functional.normalize(model.project(x), dim=-1)
        regions, classes = torch.stack([project(F_r[i, k]) for i, k in own]), torch.tensor([k for _, k in own])
        memory, owners = torch.stack([project(v) for _, v in held]), torch.tensor([k for k, _ in held])
        expected = trm_ml.contrast(project(g), regions, classes, memory, owners, 0.07)
        assert_close(parts["contrastive"], expected, rtol=1e-4, atol=1e-4)  # Eq. 13


def test_labels_in_parts_give_the_same_losses_gradients_and_memory(monkeypatch):
    found = []
    for part in (chunks.LARGE, 4 * (3 * 196 + 6 * 128 + 3 * 256) * 2):  # two labels at a time
        monkeypatch.setattr(chunks, "LARGE", part)
        model = scrambled(build()).train()
        e_g, f, t, labels = inputs(model)
        parts = model.losses(e_g, f, t, labels, e_g)
        sum(parts.values()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((parts, grads, dict(model.prototypes.named_buffers())))
    for one, other in zip(*found):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name], rtol=1e-3, atol=1e-5, equal_nan=True)


def test_evaluation_teaches_nothing_and_a_change_of_what_is_known_shows():
    model = scrambled(build()).eval()
    e_g, f, t, labels = inputs(model)
    before = synthetic.weights(model)
    base = model.losses(e_g, f, t, labels, e_g)
    assert synthetic.same(before, synthetic.weights(model))
    for i, k in ((0, 0), (0, 2), (3, 0)):
        changed = labels.clone()
        changed[i, k] = -changed[i, k]
        assert model.losses(e_g, f, t, changed, e_g)["classification"] != base["classification"]
    assert model.usable(labels).all() and not build(pseudo_labels=False, beta=0.0).usable(labels)[1]


@pytest.mark.parametrize(
    "changes, gone",
    [
        ({"gamma": 0.0}, "project."),
        ({"matching": "image"}, "attention."),
        ({"matching": "mean", "beta": 0.0, "gamma": 0.0, "pseudo_labels": False}, "mlp."),  # baseline of Table 3
        ({"matching": "pixel"}, "queries"),
        ({"negative": "none"}, "context.negative"),
        ({"negative": "weighed"}, "nothing"),
        ({"offset": True}, "nothing"),
    ],
)
def test_switches_leave_no_parameter_that_nothing_trains(changes, gone):
    model = build(phases=(("both", 1, 5),), **changes)
    history = train(model, features())
    names = [n for group in model.groups("both") for n in group["names"]]
    assert not any(name.startswith(gone) for name in names)
    assert set(names) == {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    assert history["classification"].notna().all()


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"matching": "patch"}, "matching = 'patch': choose one of region, pixel, mean, image"),
        ({"prototypes": "none"}, "prototypes = 'none': choose one of both, visual, text"),
        ({"beta": -0.05}, "beta = -0.05 must be at least 0"),
        ({"first_stage": 1.5}, "first_stage = 1.5 must be from 0 to 1"),
        ({"memory": 0}, "memory = 0 must be from 1 to"),
        ({"pixels": 0}, "pixels = 0 must be from 1 to"),
        ({"pixels": 197}, "pixels = 197 of a map of 196 positions: choose up to that"),
        ({"ema": 1.0}, "ema = 1.0 must be below 1: a threshold would never move"),
        ({"tau": 0.0}, "tau = 0 must be above 0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature = 0 must be above 0"),
    ],
)
def test_bad_settings(changes, says):
    with pytest.raises(ValueError, match=says):
        build(**changes)


def test_labels_of_other_categories():
    model = build()
    e_g, f, t, labels = inputs(model)
    with pytest.raises(ValueError, match="labels of 4 categories for a model of 5"):
        model.losses(e_g, f, t[:4], labels[:, :4], e_g)


# Prototypes, Eqs. 7-12 ------------------------------------------------------------------------------------------------


def test_queues_keep_the_last_vectors_of_each_category():
    memory, kept, g = Prototypes(3, 4, 2, 0.9), {0: [], 1: [], 2: []}, torch.Generator().manual_seed(0)
    for n in (1, 3, 0, 9, 2, 12):  # also more than four of a category at once
        vectors, classes = torch.randn(n, 2, 2, generator=g), torch.randint(0, 2, (n,), generator=g)
        memory.add(vectors, classes)
        for pair, k in zip(vectors, classes.tolist()):
            kept[k] = [*kept[k], *(x / x.norm() for x in pair)][-4:]
        for k in kept:
            inside = memory.bank[k][memory.bank[k].any(dim=1)]
            assert len(inside) == len(kept[k]) == memory.number[k]
            assert all(any(torch.allclose(x, y) for y in inside) for x in kept[k])


def test_the_memory_gets_the_raw_vectors_of_largest_energy():
    model = scrambled(build(pixels=3, memory=8)).train()
    model.prototypes.bank.zero_(), model.prototypes.stored.zero_()
    e_g, f, t, labels = inputs(model)
    model.losses(e_g, f, t, labels, e_g)
    e = model.energies(f, t)
    for k in range(5):
        own = [i for i in range(4) if labels[i, k] == 1]
        expected = [f[i, j] / f[i, j].norm() for i in own for j in e[i, k].argsort(descending=True)[:3]]  # Eq. 7
        stored = model.prototypes.bank[k][: len(expected)]
        assert model.prototypes.stored[k] == len(expected) and not model.prototypes.bank[k][len(expected) :].any()
        for x, y in zip(expected, stored):
            assert_close(x, y)


def test_similarities_are_means_of_cosines_with_each_stored_vector():
    model = scrambled(build())
    e_g, f, t, _ = inputs(model)
    with torch.no_grad():
        s, regions = model.estimates(f, t), model.regions(f, t)
        for i, k in ((0, 0), (3, 3), (2, 1)):
            own = [v for v in model.prototypes.bank[k] if v.any()]
            assert s[VISUAL, i, k].item() == pytest.approx(sum(cos(regions[i, k], v) for v in own) / len(own), rel=1e-3)
            assert s[TEXT, i, k].item() == pytest.approx(cos(regions[i, k], t[k, :128]), rel=1e-3)
    assert s[VISUAL, :, 2].isnan().all() and s[TEXT].isfinite().all()  # nothing is stored of the third


@pytest.mark.parametrize("unknown_absent", [False, True])
def test_thresholds_in_plain_form(unknown_absent):
    memory, g = Prototypes(3, 2, 2, 0.8), torch.Generator().manual_seed(0)
    expected = [[[None] * 3 for _ in range(2)] for _ in range(2)]
    for y in (torch.tensor([[1, 0, -1], [1, -1, 0]]), torch.tensor([[0, 1, -1], [0, 0, 0]]), torch.zeros(2, 3)):
        s = torch.randn(2, 2, 3, generator=g)
        s[VISUAL, :, 2] = torch.nan  # no stored vector
        memory.update(s, y, unknown_absent)
        for m in (VISUAL, TEXT):
            for kind, own in ((PRESENT, y == 1), (ABSENT, y != 1 if unknown_absent else y == -1)):
                for k in range(3):
                    values = [float(s[m, i, k]) for i in range(2) if own[i, k] and not s[m, i, k].isnan()]
                    if values:  # Eq. 9, then Eq. 11
                        old, mean = expected[m][kind][k], sum(values) / len(values)
                        expected[m][kind][k] = mean if old is None else 0.8 * old + 0.2 * mean
    assert expected[TEXT][PRESENT][2] is None and memory.steps == 3
    numbers = [[[math.nan if x is None else x for x in row] for row in pair] for pair in expected]
    assert_close(memory.thresholds, torch.tensor(numbers), equal_nan=True)


def test_decisions_in_plain_form():
    nan = math.nan
    present, absent = [0.8, 0.3, 0.5, nan, 0.8, nan], [0.2, 0.6, 0.5, 0.2, nan, nan]  # in either order, equal, unknown
    values = [-1.0, 0.1, 0.2, 0.3, 0.45, 0.5, 0.6, 0.7, 0.8, 1.0, nan]
    made = decide(torch.tensor(values)[:, None].expand(-1, 6), torch.tensor(present), torch.tensor(absent))
    for i, s in enumerate(values):
        for k, (up, down) in enumerate(zip(present, absent)):
            expected = 1 if s >= up and s >= down else -1 if s <= down and s <= up else 0
            assert made[i, k] == expected, (s, up, down)
    assert (made[:, 0] == 1).sum() == 2 and (made[:, 0] == -1).sum() == 3 and (made[:, 3:] == 0).all()
    with pytest.raises(ValueError, match=r"of shapes \(2, 3\), \(3,\), \(2,\): give"):
        decide(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2))


def test_both_modalities_have_to_agree_and_a_margin_moves_thresholds_apart():
    memory = Prototypes(3, 2, 2, 0.9)
    memory.averages.copy_(torch.tensor([[[0.6] * 3, [0.2] * 3], [[0.5] * 3, [0.1] * 3]]))
    memory.known.fill_(True)
    s = torch.tensor([[[0.7, 0.1, 0.7]], [[0.6, 0.0, 0.0]]])
    assert memory.decisions(s).tolist() == [[1, -1, 0]]  # Eq. 12
    assert memory.decisions(s, "visual").tolist() == [[1, -1, 1]]
    assert memory.decisions(s, "text").tolist() == [[1, -1, -1]]
    assert memory.decisions(s, "visual", margin=0.2).tolist() == [[1, -1, 1]]  # 0.68 and 0.12
    assert memory.decisions(s, "visual", margin=0.3).tolist() == [[0, 0, 0]]  # 0.72 and 0.08


def test_pseudo_labels_never_overwrite_known_ones():
    labels, pseudo = torch.randint(-1, 2, (50, 5)), torch.randint(-1, 2, (50, 5)).float()
    assert torch.equal(fill(labels, pseudo), torch.where(labels == 0, pseudo.long(), labels))


# What evolves in training -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_stage_ends_with_a_copy_of_the_text_and_pseudo_labels_begin():
    run = lambda **changes: train(build(first_stage=4 / 9, **changes), features())["classification"]
    first, never = run(), run(pseudo_labels=False)
    assert first[:4].equals(never[:4]) and not first[4:].equals(never[4:])
    model, plain = build(first_stage=4 / 9), build(pseudo_labels=False, first_stage=4 / 9)
    train(model, features(), stop_after=6)
    train(plain, features(), stop_after=4)
    with torch.no_grad():
        assert_close(model.prototypes.text, plain.label_embeddings(NAMES)[:, :128])
    assert model.prototypes.start == 4 and model.prototypes.steps == 6 and model.prototypes.frozen
    current = build(text_prototype="current")
    train(current, features(), stop_after=6)
    assert not current.prototypes.frozen and not current.prototypes.text.any()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits_with_memory_and_thresholds(tmp_path):
    changes = {"memory": 2, "first_stage": 3 / 9}
    whole, broken, again = (build(**changes) for _ in range(3))
    train(whole, features())
    train(broken, features(), tmp_path, stop_after=5)
    train(again, features(), tmp_path)
    assert whole.prototypes.steps == 9 and (whole.prototypes.stored > 2).any()
    assert synthetic.same(synthetic.weights(whole), synthetic.weights(again))


def test_categories_without_a_known_positive_are_named_and_get_no_pseudo_label():
    model, data = build(), features()
    assert model.without_positives() == tuple(NAMES)
    data.labels[:, 2] = -data.labels[:, 2].abs()
    data.labels[:, 0] = 1
    train(model, data)
    assert "bus" in model.without_positives() and "owl" not in model.without_positives()
    assert not model.prototypes.bank[2].any() and model.prototypes.thresholds[:, PRESENT, 2].isnan().all()
    made, given = missing_labels.filled(model, data)
    assert torch.equal(made[:, 2], given[:, 2]) and (made != given).any()
    assert not model.filled(torch.full((2, 3, 5), torch.nan), torch.zeros(3, 5)).any()
    fresh = build()
    assert not fresh.filled(torch.ones(2, 3, 5), torch.zeros(3, 5)).any()  # no threshold yet


@pytest.mark.parametrize("unknown", ["negative", "ignored"])
def test_single_positives_have_a_lower_threshold_where_unknown_counts_as_absent(unknown):
    model, data = build(unknown=unknown, memory=2), features(hidden=0.0)
    only = torch.zeros_like(data.labels)
    only[torch.arange(10), torch.arange(10) % 5] = 1
    data.labels = only
    train(model, data)
    made, given = missing_labels.filled(model, data)
    assert model.prototypes.thresholds[:, PRESENT].isfinite().all()
    assert model.prototypes.thresholds[:, ABSENT].isfinite().all() == (unknown == "negative")
    assert (made != given).any() == (unknown == "negative")  # else no label is ever known to be absent


# Numbers in print ---------------------------------------------------------------------------------------------------


def test_the_number_of_parameters_is_that_of_table_5():
    """COCO with RN101: D = 512, a text tower of width 512, 80 categories, 16 vectors; a million is 2^20 there."""
    D, K, L, million = 512, 80, 16, 2**20
    prompts = 2 * K * L * 512
    count = lambda module: sum(p.numel() for p in module.parameters())
    ratio = trm_ml.TRMMLConfig.__dataclass_fields__["mlp_ratio"].default
    with torch.device("meta"):
        parts = trm_ml.RegionAttention(D), trm_ml.perceptron(D, ratio * D, nn.GELU())
        parts += (trm_ml.perceptron(D, D, nn.ReLU()),)
    total = prompts + K * D + 1 + sum(map(count, parts))  # with queries and tau
    assert (prompts / million, round(total / million, 2)) == (1.25, 6.80)
    small = build(mlp_ratio=8)  # the model itself has these parts and no others
    D, K = 128, 5
    with torch.device("meta"):
        parts = trm_ml.RegionAttention(D), trm_ml.perceptron(D, 8 * D, nn.GELU()), trm_ml.perceptron(D, D, nn.ReLU())
    assert sum(small.trained_parameters().values()) == 2 * K * L * 128 + K * D + 1 + sum(map(count, parts))


def test_schedule_and_budget_are_the_papers_where_no_other_is_asked_for():
    full = methods.configure("trm_ml", configs.nus_wide(), categories=NAMES)
    assert [(p.trains, p.epochs, p.batch) for p in full.phases] == [("both", 40, 128)]
    short = configs.nus_wide().replace(phases=(("hcg", 3, 16),))
    assert [(p.epochs, p.batch) for p in methods.configure("trm_ml", short, categories=NAMES).phases] == [(3, 16)]
    mini = methods.configure("trm_ml", configs.mini_short(), categories=NAMES)
    assert [(p.epochs, p.batch) for p in mini.phases] == [(3, 32)]
    assert (full.lr, full.prompt_lr, full.optimizer) == (5e-4, 5e-4, "adamw")
    model = build(lr=5e-4)
    rates = [model.learning_rate("both", x / 10, 40) for x in range(400)]
    assert max(rates) == pytest.approx(5e-4) and rates[0] == pytest.approx(5e-4 / 25)
    assert rates == [one_cycle(x / 10, 40, 5e-4) for x in range(400)]


def test_what_mini_has_of_its_own_gives_way_to_what_is_said():
    assert [PRINTED[n] for n in ("context_std", "prompt_vectors", "lr", "mask")] == [0.02, 16, 5e-4, "sigmoid"]
    own = methods.configure("trm_ml", configs.mini_short(), categories=NAMES)
    for name, value in own.small.items():
        assert getattr(own, name) == value
    said = methods.configure("trm_ml", configs.mini_short(), categories=NAMES, ema=0.5, lr=7e-4)
    assert (said.ema, said.lr) == (0.5, 7e-4)
    hand = methods.configure("trm_ml", configs.mini_short().replace(lr=3e-4), categories=NAMES)
    assert hand.lr == 3e-4
    assert methods.configure("trm_ml", configs.nus_wide(), categories=NAMES).ema == 0.99


# Regions of another model, Table 4 ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_regions_of_a_model_that_was_trained_with_complete_labels():
    complete = build(pseudo_labels=False, gamma=0.0)
    train(complete, features(hidden=0.0))
    for fixed in (False, True):
        model = build(pseudo_labels=False, gamma=0.0)
        model.take_regions(complete, fixed)
        taken = synthetic.weights(model)
        assert synthetic.same(taken, synthetic.weights(complete), ("queries", "attention.", "mlp."))
        assert not synthetic.same(taken, synthetic.weights(complete), "context.")
        train(model, features())
        assert synthetic.same(taken, synthetic.weights(model), ("queries", "attention.", "mlp.")) == fixed


@pytest.mark.slow
def test_table_4_begins_with_the_regions_of_complete_labels(tmp_path):
    """A run of complete labels gives its queries, attention and MLP; found again, it is not trained again."""
    config = build(attention_start="text", lr=1e-9, prompt_lr=1e-9).config.replace(known=0.5)
    feats = lambda own: {"train": features(hidden=own.known < 1 and 0.5), "test": features(6, 1, 0)}
    found = missing_labels.complete_regions(config, feats, tmp_path, resamples=2)
    assert set(found.table["task"]) == {"seen"} and ("", "test", "seen", "mAP") in found.resampled
    (own,) = tmp_path.glob("*-complete-regions")
    (whole,) = (p for p in tmp_path.iterdir() if p != own)
    there, here = (torch.load(p / "checkpoint.pt", weights_only=True)["model"] for p in (whole, own))
    for name in ("queries", "attention.key.weight", "mlp.0.weight"):
        assert_close(here[name], there[name], rtol=0, atol=1e-6)
    random = build().attention.key.weight
    assert (here["attention.key.weight"] - random).abs().max() > 0.01
    again = missing_labels.complete_regions(config, feats, tmp_path, resamples=2)
    assert again.table.equals(found.table)


@pytest.mark.parametrize(
    "here, there, says",
    [
        ({"matching": "mean"}, {}, "matching = 'mean' has no regions to take or to put in"),
        ({}, {"categories": NAMES[::-1]}, "other categories, or another order of them"),
        ({}, {"mlp_ratio": 3}, r"mlp.0.weight is \(384, 128\) there and \(256, 128\) here"),
        ({"attention_start": "text"}, {}, "attention_start = 'text' would overwrite what is taken"),
    ],
)
def test_regions_that_do_not_fit(here, there, says):
    with pytest.raises(ValueError, match=says):
        build(**here).take_regions(build(**there))
