"""TRM-ML: each equation against a plain slow form, what evolves in training, and the quality of pseudo-labels."""

import math

import pandas as pd
import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import methods
from hrcf_lib.engine import chunks
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods.first import pseudo_labels, trm_ml
from hrcf_lib.methods.first.pseudo_labels import OTHER, PRESENT, Memory
from hrcf_lib.methods.missing_labels.prototypes import fill
from hrcf_lib.studies import missing_labels
from hrcf_lib.training import train

NAMES = ["owl", "pizza", "bus", "cat", "dog"]
SPACE = LabelSpace(seen=NAMES, unseen=["zebra", "sea"])


def build(**changes):
    ready = {"phases": (("both", 3, 4),), "pseudo_after": 0, "categories": NAMES} | changes
    return methods.build("trm_ml", synthetic.config(), settings="first", pretrained=False, **ready)


def features(n=10, seed=0, hidden=0.5):
    """About half of the labels are unknown."""
    data = synthetic.features(n, seed, SPACE)
    data.labels[torch.rand(data.labels.shape, generator=torch.Generator().manual_seed(seed)) < hidden] = 0
    return data


def scrambled(model, seed=0):
    """The model with parameters that have left their start, and a memory that holds something of most labels."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("vlp."):
                p.add_(0.05 * torch.randn(p.shape, generator=g))
    model.memory.add(torch.randn(6, model.vlp.D, generator=g), torch.tensor([0, 0, 1, 3, 3, 3]))
    model.memory.update(torch.rand(8, 5, generator=g), torch.randint(-1, 2, (8, 5), generator=g))
    return model


def inputs(model, B=4, seed=1):
    """e_g (B, D), regions (B, J, D), label embeddings (K, 2 D) and labels (B, K)."""
    g = torch.Generator().manual_seed(seed)
    e_g, regions = model.image_embeddings(torch.randn(B, 197, model.vlp.C, generator=g))
    labels = torch.tensor([[1, 0, -1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, -1], [-1, -1, 0, 1, 0]])[:B].float()
    return e_g, regions, model.label_embeddings(NAMES), labels


def cos(a, b):
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


# Regions and scores ---------------------------------------------------------------------------------------------------


def slow_region(model, patches, q):
    """Eqs. 2-4, of one picture (J, D) and one query (D,)."""
    a = model.attention
    scores = torch.stack([a.query.weight @ q @ (a.key.weight @ f) for f in patches]) / math.sqrt(len(q))
    weights = scores.exp() / scores.exp().sum()
    return a.value.weight @ sum(w * f for w, f in zip(weights, patches)), weights


@torch.no_grad()
def test_regions_scores_and_maps_in_plain_form():
    model = scrambled(build()).eval()
    e_g, regions, t, _ = inputs(model, B=2)
    s, maps = model.score_embeddings(e_g, regions, t), model.maps(regions, t)
    assert maps.shape == (2, 5, 196)
    tau = 1 / model.likeness.log_scale.exp()
    for i, k in ((0, 0), (1, 3)):
        v, weights = slow_region(model, regions[i], model.queries[k])
        text = model.context(model.vlp, [NAMES[k]])[0]
        assert_close(maps[i, k], weights, rtol=1e-4, atol=1e-7)
        assert_close(model.regions(regions, model.queries)[i, k], v, rtol=1e-4, atol=1e-5)
        assert_close(s[i, k], cos(v, text) / tau + model.likeness.offset, rtol=1e-4, atol=1e-4)  # Eq. 1


@torch.no_grad()
def test_at_the_start_a_region_is_a_weighted_mean_of_patches_that_look_like_the_template():
    model = build(sharpness=3.0).eval()
    _, regions, t, _ = inputs(model)
    weights = (3.0 * regions @ model.queries.T).softmax(dim=1)  # (B, J, K)
    assert_close(model.maps(regions, t), weights.transpose(1, 2))
    assert_close(model.regions(regions, model.queries), weights.transpose(1, 2) @ regions, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_matchings():
    image, pixel = build(matching="image").eval(), build(matching="pixel", sharpness=4.0).eval()
    e_g, regions, t, _ = inputs(image)
    texts = t[:, : image.vlp.D]
    assert_close(image.score_embeddings(e_g, regions, t), image.likeness(e_g @ texts.T), rtol=1e-4, atol=1e-4)
    e_g, regions, t, _ = inputs(pixel)
    v = (4.0 * regions @ texts.T).softmax(dim=1).transpose(1, 2) @ regions
    expected = pixel.likeness(torch.cosine_similarity(v, texts, dim=-1))
    assert_close(pixel.score_embeddings(e_g, regions, t), expected, rtol=1e-4, atol=1e-4)
    for model in (image, pixel):
        assert not hasattr(model, "queries") and model.weights("both")["distillation"] == 0


# Losses ---------------------------------------------------------------------------------------------------------------


def test_distillation_is_the_divergence_and_teaches_one_side():
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 3, 4, generator=g).requires_grad_().unbind()
    teacher.retain_grad(), student.retain_grad()
    found = trm_ml.distil(teacher, student, temperature=2.0)
    expected = 0.0
    for i in range(3):
        p, r = ([math.exp(x / 2) for x in row[i].tolist()] for row in (teacher, student))
        expected += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(r))) for a, b in zip(p, r)) / 3
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


@pytest.mark.parametrize("number", [1, 2])
def test_contrast_in_plain_form(number):
    g = torch.Generator().manual_seed(0)
    v, classes = torch.randn(3, 6, generator=g), torch.tensor([2, 0, 2])
    kinds = torch.randn(number, 4, 6, generator=g)
    expected = 0.0
    for x, k in zip(v, classes):
        every = [math.exp(cos(x, p) / 0.5) for P in kinds for p in P]
        expected -= sum(math.log(math.exp(cos(x, P[k]) / 0.5) / sum(every)) for P in kinds) / (3 * number)
    assert trm_ml.contrast(v, classes, tuple(kinds), 0.5).item() == pytest.approx(expected, rel=1e-4)
    assert trm_ml.contrast(v[:0], classes[:0], tuple(kinds), 0.5) == 0


def test_losses_in_plain_form_and_gradients_reach_every_parameter():
    model = scrambled(build()).train()
    e_g, regions, t, labels = inputs(model)
    memory = synthetic.weights(model.memory)
    parts = model.losses(e_g, regions, t, labels, e_g)
    assert parts.keys() == model.weights("both").keys()
    sum(w * parts[name] for name, w in model.weights("both").items()).backward()
    for name, p in model.named_parameters():
        if not name.startswith("vlp."):
            assert p.grad is not None and p.grad.abs().max() > 0, name
    model.memory.load_state_dict(memory)
    with torch.no_grad():
        s, e = model.score_embeddings(e_g, regions, t), model.estimates(regions, t)
        y = model.filled(e, labels)
        assert ((y != labels) == ((labels == 0) & (y != 0))).all() and (y != labels).any()
        assert_close(parts["classification"], model.classification(s.sigmoid(), y))  # Eq. 14
        u = model.queries + model.mlp(model.queries + model.regions(regions, model.queries))
        texts = t[:, : model.vlp.D]
        s_query = model.likeness(torch.cosine_similarity(u, texts, dim=-1))
        assert_close(parts["distillation"], trm_ml.distil(s, s_query))
        own = [
            (model.regions(regions, model.queries)[i, k], k) for k in range(5) for i in range(4) if labels[i, k] == 1
        ]
        v, classes = torch.stack([v for v, _ in own]), torch.tensor([k for _, k in own])
        both = model.memory.prototypes(texts), texts
        assert_close(parts["contrastive"], trm_ml.contrast(v, classes, both, 0.1), rtol=1e-4, atol=1e-5)


def test_labels_in_parts_give_the_same_losses_gradients_and_memory(monkeypatch):
    found = []
    for part in (chunks.LARGE, 4 * 196 * 2):  # two labels at a time
        monkeypatch.setattr(chunks, "LARGE", part)
        model = scrambled(build()).train()
        e_g, regions, t, labels = inputs(model)
        parts = model.losses(e_g, regions, t, labels, e_g)
        sum(parts.values()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((parts, grads, dict(model.memory.named_buffers())))
    for one, other in zip(*found):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_evaluation_teaches_nothing_and_a_change_of_what_is_known_shows():
    model = scrambled(build(pseudo_labels=True)).eval()
    e_g, regions, t, labels = inputs(model)
    before = synthetic.weights(model)
    base = model.losses(e_g, regions, t, labels, e_g)
    assert synthetic.same(before, synthetic.weights(model))  # nothing is learnt in evaluation mode
    for i, k in ((0, 0), (0, 2), (3, 0)):  # a change of what is known does
        changed = labels.clone()
        changed[i, k] = -changed[i, k]
        assert model.losses(e_g, regions, t, changed, e_g)["classification"] != base["classification"]
    assert model.usable(labels).all() and not build(pseudo_labels=False, beta=0.0).usable(labels)[1]


@pytest.mark.parametrize(
    "changes, gone",
    [({"beta": 0.0}, "mlp."), ({"matching": "image"}, "attention."), ({"matching": "pixel"}, "queries")],
)
def test_switches_leave_no_parameter_that_nothing_trains(changes, gone):
    model = build(**changes)
    history = train(model, features())
    names = [n for group in model.groups("both") for n in group["names"]]
    assert not any(name.startswith(gone) for name in names)
    assert set(names) == {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    assert history["classification"].notna().all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"matching": "patch"}, "matching = 'patch': choose one of region, pixel, image"),
        ({"prototypes": "none"}, "prototypes = 'none'"),
        ({"memory": 0}, "memory = 0 must be above 0"),
        ({"ema": 1.0}, "ema = 1.0 must be below 1"),
        ({"high": 1.0}, "high = 1.0 must be below 1"),
        ({"low": 1.5}, "low = 1.5 must be below 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_labels_of_other_categories():
    model = build()
    e_g, regions, t, labels = inputs(model)
    with pytest.raises(ValueError, match="labels of 4 categories for a model of 5"):
        model.losses(e_g, regions, t[:4], labels[:, :4], e_g)


# Memory, thresholds, pseudo-labels ------------------------------------------------------------------------------------


def test_memory_keeps_the_last_regions_of_each_label():
    memory, kept = Memory(3, 4, 2, 0.9), {0: [], 1: [], 2: []}
    g = torch.Generator().manual_seed(0)
    for n in (1, 3, 0, 9, 2, 12):  # also more than four of a label at once
        regions, classes = torch.randn(n, 2, generator=g), torch.randint(0, 2, (n,), generator=g)
        memory.add(regions, classes)
        for x, k in zip(regions, classes.tolist()):
            kept[k] = [*kept[k], x / x.norm()][-4:]
        for k in kept:
            inside = memory.bank[k][memory.bank[k].any(dim=1)]
            assert len(inside) == len(kept[k]) == min(int(memory.seen[k]), 4)
            assert all(any(torch.allclose(x, y) for y in inside) for x in kept[k])
    t = torch.randn(3, 2, generator=g)
    prototypes = memory.prototypes(t)
    for k in (0, 1):
        mean = torch.stack(kept[k]).mean(dim=0)
        assert_close(prototypes[k], mean / mean.norm())
    assert_close(prototypes[2], t[2] / t[2].norm())  # nothing is known of it


def test_a_memory_that_is_not_full_yet_is_the_mean_of_what_it_holds():
    memory = Memory(2, 8, 3, 0.9)
    memory.add(torch.tensor([[3.0, 0, 0], [0, 4.0, 0]]), torch.tensor([1, 1]))
    assert_close(memory.prototypes(torch.eye(2, 3))[1], torch.tensor([0.5, 0.5, 0.0]).sqrt())


def test_moving_averages_and_thresholds_in_plain_form():
    memory, g = Memory(3, 2, 2, 0.8), torch.Generator().manual_seed(0)
    labels = [torch.tensor([[1, 0, -1], [1, -1, 0]]), torch.tensor([[0, 1, -1], [0, 0, 0]])]
    averages = [[None] * 3, [None] * 3]
    high, low = memory.thresholds(0.0, 0.0)
    assert (high == torch.inf).all() and (low == -torch.inf).all()
    for y in labels:
        e = torch.rand(2, 3, generator=g)
        memory.update(e, y)
        for row, own in ((PRESENT, y == 1), (OTHER, y != 1)):
            for k in range(3):
                if own[:, k].any():
                    mean, old = float(e[own[:, k], k].mean()), averages[row][k]
                    averages[row][k] = mean if old is None else 0.8 * old + 0.2 * mean
    assert averages[PRESENT][2] is None and memory.steps == 2
    averages[PRESENT][2] = sum(averages[PRESENT][:2]) / 2  # without a known positive: as the others
    m, o = (torch.tensor(x) for x in averages)
    high, low = memory.thresholds(0.4, 0.1)
    own = m + 0.4 * (1 - m)
    assert_close(high, torch.stack([max(x, own.mean()) for x in own]))  # no label is below the mean of all
    assert_close(low, o + 0.1 * (m - o))


def test_a_label_however_well_told_apart_can_get_a_positive_pseudo_label():
    memory = Memory(3, 2, 2, 0.9)
    memory.update(torch.tensor([[0.97, 0.3, 0.1], [0.01, 0.01, 0.01]]), torch.tensor([[1, 1, 1], [-1, 0, -1]]))
    for weight in (0.0, 0.3, 0.9):
        high, low = memory.thresholds(weight, 0.0)
        assert (high < 1).all() and (low < high).all()
        assert (pseudo_labels.pseudo_labels(torch.ones(1, 3), high, low) == 1).all()


@pytest.mark.parametrize("which", pseudo_labels.WHICH)
def test_estimates_in_plain_form(which):
    g = torch.Generator().manual_seed(0)
    v, visual, text = torch.randn(2, 2, 5, generator=g), *torch.randn(2, 4, 5, generator=g)
    kinds = {"both": (visual, text), "visual": (visual,), "text": (text,)}[which]
    e = pseudo_labels.estimate(v, visual, text, slice(1, 3), 3.0, which)
    for i in range(2):
        for k in range(2):
            like = [math.exp(3.0 * sum(cos(v[i, k], P[c]) for P in kinds) / len(kinds)) for c in range(4)]
            assert e[i, k].item() == pytest.approx(like[k + 1] / sum(like), rel=1e-4)


def test_pseudo_labels_never_overwrite_known_ones():
    g = torch.Generator().manual_seed(0)
    e, high, low = torch.rand(50, 5, generator=g), torch.full((5,), 0.7), torch.full((5,), 0.4)
    labels = torch.randint(-1, 2, (50, 5), generator=g)
    y = fill(labels, pseudo_labels.pseudo_labels(e, high, low))
    for i in range(50):
        for k in range(5):
            expected = 1 if e[i, k] > 0.7 else -1 if e[i, k] <= 0.4 else 0
            assert y[i, k] == (labels[i, k] if labels[i, k] else expected)


def test_a_label_that_looks_less_present_than_others_gets_no_pair_of_labels():
    """The moving averages may stand the wrong way round: then an estimate between them says nothing certain."""
    high, low = torch.tensor([0.2]), torch.tensor([0.6])
    made = pseudo_labels.pseudo_labels(torch.tensor([[0.1], [0.4], [0.9]]), high, low)
    assert made[:, 0].tolist() == [-1, 1, 1]


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits_with_memory_and_thresholds(tmp_path):
    whole, broken = build(memory=2), build(memory=2)
    train(whole, features())
    train(broken, features(), tmp_path, stop_after=5)
    again = build(memory=2)
    train(again, features(), tmp_path)
    assert whole.memory.steps == 9 and whole.memory.seen.any() and (whole.memory.seen > 2).any()
    assert synthetic.same(synthetic.weights(whole), synthetic.weights(again))
    assert synthetic.same(synthetic.weights(whole), synthetic.weights(again), "memory.")


@pytest.mark.slow
def test_pseudo_labels_start_when_they_are_said_to():
    first, never = (train(build(pseudo_labels=on, pseudo_after=4), features(), stop_after=6) for on in (True, False))
    differ = (first["classification"] != never["classification"]).tolist()
    assert differ[:4] == [False] * 4 and any(differ[4:])


def test_categories_without_a_known_positive_are_named():
    model, data = build(), features()
    assert model.without_positives() == tuple(NAMES)
    data.labels[:, 2] = -data.labels[:, 2].abs()
    data.labels[:, 0] = 1
    train(model, data)
    assert "bus" in model.without_positives() and "owl" not in model.without_positives()
    assert model.memory.bank[2].abs().max() == 0


def test_single_positives_give_thresholds_too():
    model, data = build(), features(hidden=0.0)
    only = torch.zeros_like(data.labels)
    only[torch.arange(10), torch.arange(10) % 5] = 1
    data.labels = only
    train(model, data)
    high, low = model.memory.thresholds(0.0, 0.0)
    assert high.isfinite().all() and low.isfinite().all()
    made, given = missing_labels.filled(model, data)
    assert (made != 0).sum() > (given != 0).sum()


# Quality --------------------------------------------------------------------------------------------------------------


def test_quality_of_a_made_up_case():
    known = torch.tensor([[1, 0, 0, 0, -1], [0, 0, 0, 0, 0]])
    truth = torch.tensor([[1, 1, -1, -1, -1], [1, -1, -1, -1, 0]])
    made = torch.tensor([[1, 1, 1, -1, -1], [0, -1, -1, 0, 1]])
    frame = missing_labels.pseudo_label_quality(made, known, truth).set_index("kind")
    assert frame.loc["present", ["filled", "share", "precision", "recall", "chance"]].tolist() == [
        2,
        2 / 7,
        0.5,
        0.5,
        2 / 7,
    ]
    assert frame.loc["absent", ["filled", "share", "precision", "recall", "chance"]].tolist() == [
        3,
        3 / 7,
        1,
        0.6,
        5 / 7,
    ]
    nothing = missing_labels.pseudo_label_quality(known, known, truth)
    assert nothing["filled"].eq(0).all() and nothing["precision"].isna().all()


def test_quality_refuses_what_does_not_fit():
    known = torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="the known label 0 of picture 0 was changed"):
        missing_labels.pseudo_label_quality(torch.tensor([[-1, 0]]), known, torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match=r"a truth \(10, 7\) for 10 pictures x 5 seen labels"):
        missing_labels.over_epochs(build(), features(), torch.ones(10, 7), "nowhere")
    with pytest.raises(ValueError, match="ASL makes no pseudo-labels"):
        missing_labels.filled(methods.build("asl", synthetic.config(), pretrained=False, categories=NAMES), features())


@pytest.mark.slow
def test_quality_over_epochs_leaves_the_run_as_it_is(tmp_path):
    plain, looked = build(), build()
    train(plain, features())
    truth = synthetic.features(10, 0, SPACE).labels[:, :5]
    frame = missing_labels.over_epochs(looked, features(), truth, tmp_path)
    assert synthetic.same(synthetic.weights(plain), synthetic.weights(looked))
    assert frame["epoch"].tolist() == [1, 1, 2, 2, 3, 3] and frame["step"].tolist() == [3, 3, 6, 6, 9, 9]
    last = missing_labels.pseudo_label_quality(*missing_labels.filled(plain, features()), truth)
    pd.testing.assert_frame_equal(frame.tail(2)[last.columns].reset_index(drop=True), last)
    finished = missing_labels.over_epochs(build(), features(), truth, tmp_path)  # all epochs were done before
    assert finished["epoch"].tolist() == [3, 3]
    pd.testing.assert_frame_equal(finished[last.columns], last)


@pytest.mark.slow
def test_quality_goes_on_from_within_an_epoch(tmp_path):
    train(build(), features(), tmp_path, stop_after=4)
    truth = synthetic.features(10, 0, SPACE).labels[:, :5]
    frame = missing_labels.over_epochs(build(), features(), truth, tmp_path, pictures=6)
    assert frame["step"].tolist() == [6, 6, 9, 9]
