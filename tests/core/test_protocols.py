"""The named protocols against BiAM's and MKT's numbers, plain twins and scikit-learn."""

import dataclasses
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from sklearn.metrics import average_precision_score

import hrcf_lib.protocols
from hrcf_lib import config as configs
from hrcf_lib import evaluation, metrics
from hrcf_lib.engine import chunks
from hrcf_lib.methods import plain_vlp
from hrcf_lib.protocols import PROTOCOLS, Protocol, kept, measure, named, pooled_average_precision

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "openimages_protocol.npz", allow_pickle=False)
METRICS = np.load(FOLDER / "metrics.npz", allow_pickle=False)
TASKS = {"seen": "seen", "zsl": "ZSL", "gzsl": "GZSL"}
BIAM, PER_CLASS = "biam_open_images", "biam_open_images_per_class"


def golden(set_name, array):
    return torch.from_numpy(GOLDEN[f"{set_name}__{array}"])


def golden_input(set_name):
    """Scores and labels of one of BiAM's three label sets: seen columns, then unseen ones."""
    n_seen = int(GOLDEN["n_seen"])
    columns = {"seen": slice(0, n_seen), "zsl": slice(n_seen, None), "gzsl": slice(None)}[set_name]
    return torch.from_numpy(GOLDEN["pred_all"][:, columns]), torch.from_numpy(GOLDEN["labels_all"][:, columns])


def draw(seed, N=60, K=12, levels=None, share=0.4):
    """Scores and labels of which about `share` is known; `levels` distinct scores give ties."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((N, K)) if levels is None else rng.integers(levels, size=(N, K))
    labels = np.where(rng.random((N, K)) < share, rng.choice([-1, 1], size=(N, K)), 0)
    return torch.from_numpy(scores).float(), torch.from_numpy(labels)


# Plain twins ---------------------------------------------------------------------------------------------------------


def plain_ap(entries):
    """AP of (score, annotation) pairs; equal scores enter together; NaN without positives."""
    total, ap, tp, n = sum(y == 1 for _, y in entries), 0.0, 0, 0
    for s in sorted({s for s, _ in entries}, reverse=True):
        group = [y for score, y in entries if score == s]
        tp, n, new = tp + sum(y == 1 for y in group), n + len(group), sum(y == 1 for y in group)
        ap += new * tp / n
    return ap / total if total else math.nan


def plain_pools(scores, labels):
    """The entries that the pooled AP of each label ranks."""
    S, Y = scores.tolist(), labels.tolist()
    K = labels.shape[1]
    return [[(s, y) for i in range(len(Y)) if Y[i][k] for s, y in zip(S[i], Y[i]) if y] for k in range(K)]


def plain_measure(scores, labels, ks, protocol, task):
    """All numbers of a protocol with lists and loops."""
    p = PROTOCOLS[protocol]
    S, Y, K = scores.tolist(), labels.tolist(), labels.shape[1]
    images = [i for i in range(len(Y)) if p.images == "all" or 1 in Y[i]]
    S, Y = [S[i] for i in images], [Y[i] for i in images]
    some = [k for k in range(K) if any(y[k] for y in Y)]
    for_map, for_f1 = (some if task in tasks else list(range(K)) for tasks in (p.map_annotated, p.f1_annotated))
    row = {}
    for k in ks:
        best = [sorted(for_f1, key=lambda j: (-s[j], j))[:k] for s in S]
        tp = sum(y[j] == 1 for y, chosen in zip(Y, best) for j in chosen)
        positives = sum(y[j] == 1 for y in Y for j in for_f1)
        P, R = tp / (k * len(images)), tp / positives if positives else 0.0
        row |= {f"P@{k}": P, f"R@{k}": R, f"F1@{k}": 2 * P * R / (P + R) if P + R else 0.0}
    pools = plain_pools(torch.tensor(S), torch.tensor(Y))
    if p.average == "label":
        pools = [[(s[k], y[k] or -1) for s, y in zip(S, Y) if y[k] or p.unknown == "negative"] for k in range(K)]
    ap = {k: plain_ap(pools[k]) for k in for_map}
    n = {k: sum(y[k] == 1 for y in Y) for k in for_map}
    row["mAP"] = sum(0.0 if math.isnan(a) else a for a in ap.values()) / len(ap)
    positive = [k for k in for_map if n[k]]
    row["mAP skip"] = sum(ap[k] for k in positive) / len(positive) if positive else math.nan
    if p.weighted:
        row["mAP weighted"] = sum(n[k] * ap[k] for k in positive) / sum(n.values())
    if p.beside:
        row[f"mAP {p.beside}"] = plain_measure(scores, labels, (), p.beside, task)["mAP"]
    return row | {"images": len(images), "labels": len(for_map)}


@pytest.mark.parametrize("task", ["seen", "ZSL", "GZSL"])
@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_equals_its_plain_twin(protocol, levels, task):
    for seed, share in enumerate((0.08, 0.3, 1.0)):
        scores, labels = draw(seed, N=40, K=9, levels=levels, share=share)
        labels[:, 2] = 0  # never annotated
        labels[:, 5] = labels[:, 5].clamp(max=0)  # no positives
        labels[7] = 0  # an image without known labels
        labels[8] = labels[8].clamp(max=0)  # one without positives
        row = measure(scores.double(), labels, (1, 4), protocol, task)
        assert row == pytest.approx(plain_measure(scores, labels, (1, 4), protocol, task), rel=1e-12, nan_ok=True)


# Golden arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_name", TASKS)
def test_images_and_labels_kept_are_biams(set_name):
    for protocol in (BIAM, PER_CLASS):
        use = kept(golden_input(set_name)[1], protocol, TASKS[set_name])
        assert torch.equal(use.images, golden(set_name, "kept_images").nonzero().flatten())
        assert torch.equal(use.map_labels, golden(set_name, "kept_classes").nonzero().flatten())
    assert len(use.images) < 150, "the golden case drops images"


@pytest.mark.parametrize("set_name", TASKS)
def test_pooled_ap_is_biams(set_name):
    scores, labels = golden_input(set_name)
    use = kept(labels, BIAM, TASKS[set_name])
    ap = pooled_average_precision(scores, labels, use.images)[use.map_labels]
    torch.testing.assert_close(ap, golden(set_name, "biam_ap").float(), rtol=5e-7, atol=0)


@pytest.mark.parametrize("case", ["mixed_200x30", "dense_pm1_200x30"])
def test_pooled_ap_of_the_function_alone_is_biams(case):
    scores, labels, expected = (
        torch.from_numpy(METRICS[f"{case}__{a}"]) for a in ("pred", "labels", "biam_openimages_ap")
    )
    ap = pooled_average_precision(scores, labels)
    assert torch.equal(ap.isnan(), expected == 0), "an empty pool: 0 in the released code"
    torch.testing.assert_close(ap.nan_to_num(0.0), expected.float(), rtol=5e-7, atol=0)


@pytest.mark.parametrize("set_name", TASKS)
@pytest.mark.parametrize("protocol, array", [(BIAM, "biam_map_and_weighted"), (PER_CLASS, "perclass_map_and_weighted")])
def test_means_and_f1_are_biams(set_name, protocol, array):
    scores, labels = golden_input(set_name)
    row = measure(scores, labels, (1, 3, 5), protocol, TASKS[set_name])
    assert [row["mAP"], row["mAP weighted"]] == pytest.approx(golden(set_name, array).tolist(), rel=5e-7)
    for k in (1, 3, 5):
        expected = golden(set_name, f"f1_p_r_k{k}").tolist()
        assert [row[f"F1@{k}"], row[f"P@{k}"], row[f"R@{k}"]] == pytest.approx(expected, rel=5e-7)
    assert row["images"] == golden(set_name, "kept_images").sum()
    assert row["labels"] == golden(set_name, "kept_classes").sum()


@pytest.mark.parametrize("case", ["mixed_200x30", "dense_pm1_200x30"])
def test_per_class_is_mkts(case):
    scores, labels = (torch.from_numpy(METRICS[f"{case}__{array}"]) for array in ("pred", "labels"))
    row = measure(scores, labels)
    assert row["mAP"] == pytest.approx(METRICS[f"{case}__mkt_ap_mean"].item(), rel=5e-7)
    for k in (3, 5):
        expected = METRICS[f"{case}__mkt_f1_p_r_k{k}"].tolist()
        assert [row[f"F1@{k}"], row[f"P@{k}"], row[f"R@{k}"]] == pytest.approx(expected, rel=5e-7)


def test_the_protocols_differ_on_the_golden_case():
    scores, labels = golden_input("gzsl")
    found = {name: round(measure(scores, labels, (), name)["mAP"], 4) for name in PROTOCOLS}
    assert len(set(found.values())) == len(found) - 1 and found["per_class"] == found["per_class_and_pooled"]


def test_pooled_map_stands_beside_that_of_each_label():
    scores, labels = golden_input("zsl")
    row = measure(scores, labels, (3,), "per_class_and_pooled", "ZSL")
    assert row.pop("mAP biam_open_images") == measure(scores, labels, (), BIAM, "ZSL")["mAP"]
    assert row == measure(scores, labels, (3,), "per_class", "ZSL")
    none = measure(scores, labels.clamp(max=0), (3,), "per_class_and_pooled", "ZSL")
    assert math.isnan(none["mAP biam_open_images"]) and none["mAP"] == 0, "BiAM keeps no image without a positive"
    assert configs.open_images().protocol == "per_class_and_pooled"


# scikit-learn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 1, 3, 20])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_pooled_ap_is_scikit_learns_on_the_pool(levels, share):
    scores, labels = draw(3, levels=levels, share=share)
    labels[:, 4] = 0
    for ap, pool in zip(pooled_average_precision(scores.double(), labels), plain_pools(scores, labels)):
        s, y = np.array(pool).T if pool else (np.zeros(0), np.zeros(0))
        expected = average_precision_score(y > 0, s) if (y > 0).any() else math.nan
        assert ap.item() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_unknown_as_negative_is_scikit_learns_macro_ap():
    scores, labels = draw(4, levels=15)
    row = measure(scores.double(), labels, (3,), "per_class_unknown_negative")
    expected = average_precision_score((labels > 0).numpy(), scores.numpy(), average="macro")
    assert row["mAP"] == pytest.approx(expected, rel=1e-12)
    absent = torch.where(labels == 1, 1, -1)
    assert row == measure(scores.double(), absent, (3,)), "the same as annotating unknown as absent"
    assert row["mAP"] < measure(scores, labels, (3,))["mAP"]
    unsigned = (labels > 0).to(torch.uint8)  # a table of 0 and 1
    assert measure(scores.double(), unsigned, (3,), "per_class_unknown_negative") == row


# Behaviour -----------------------------------------------------------------------------------------------------------


def test_per_class_is_the_metrics_to_the_bit():
    scores, labels = draw(5)
    labels[:, 1] = -1
    row = measure(scores, labels, (2, 5))
    for k in (2, 5):
        assert (row[f"P@{k}"], row[f"R@{k}"], row[f"F1@{k}"]) == metrics.precision_recall_f1_at_k(scores, labels, k)
    assert row["mAP"] == metrics.mean_average_precision(scores, labels, "zero")
    assert row["mAP skip"] == metrics.mean_average_precision(scores, labels, "skip")


@pytest.mark.parametrize("chunk", [1, 13, 60, 200])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chunks_change_nothing(protocol, chunk, monkeypatch):
    scores, labels = draw(6, levels=9)
    labels[:, 2] = 0
    whole = measure(scores, labels, (4,), protocol, "seen")
    monkeypatch.setattr(chunks, "CACHE", chunk)
    assert measure(scores, labels, (4,), protocol, "seen") == whole


def test_dropped_images_change_nothing():
    scores, labels = draw(7)
    labels[:20] = labels[:20].clamp(max=0)
    for protocol in (BIAM, PER_CLASS):
        row = measure(scores, labels, (3,), protocol)
        assert row == measure(scores[20:], labels[20:], (3,), protocol)
        assert row["images"] <= 40
    assert measure(scores, labels, (3,))["images"] == 60


def test_zsl_keeps_labels_that_nobody_annotated():
    scores, labels = draw(8, K=6)
    labels[:, 0] = 0
    rows = {task: measure(scores, labels, (2,), BIAM, task) for task in TASKS.values()}
    assert [rows[task]["labels"] for task in ("seen", "GZSL", "ZSL")] == [5, 5, 6]
    assert rows["ZSL"]["mAP"] == pytest.approx(rows["GZSL"]["mAP"] * 5 / 6), "an empty pool counts 0"
    assert rows["ZSL"]["mAP weighted"] == rows["GZSL"]["mAP weighted"]
    assert rows["ZSL"]["P@2"] == rows["GZSL"]["P@2"] < rows["seen"]["P@2"], "seen does not choose that label"


def test_labels_annotated_on_the_same_images_share_a_pool():
    ap = pooled_average_precision(*draw(9, share=1.0))
    assert (ap == ap[0]).all()
    scores, labels = draw(9, share=1.0)
    assert ap[0] == metrics.average_precision(scores.reshape(-1, 1), labels.reshape(-1, 1))[0]


def test_a_label_without_positives_has_a_pooled_ap():
    scores, labels = torch.tensor([[0.9, 0.8]]), torch.tensor([[-1, 1]])
    assert pooled_average_precision(scores, labels).tolist() == [0.5, 0.5]
    row = measure(scores, labels, (), BIAM)
    assert (row["mAP"], row["mAP skip"], row["mAP weighted"]) == (0.5, 0.5, 0.5)
    row = measure(scores, labels, (), PER_CLASS)
    assert (row["mAP"], row["mAP skip"], row["mAP weighted"]) == (0.5, 1.0, 1.0)


def test_all_unknown():
    scores, labels = torch.rand(5, 4), torch.zeros(5, 4)
    for protocol in ("per_class", "per_class_unknown_negative"):
        row = measure(scores, labels, (2,), protocol)
        assert row["mAP"] == row["P@2"] == row["R@2"] == row["F1@2"] == 0.0 and math.isnan(row["mAP skip"])
    assert pooled_average_precision(scores, labels).isnan().all()
    assert pooled_average_precision(scores, labels - 1).isnan().all(), "no positives, all known"


@pytest.mark.parametrize("protocol", [BIAM, PER_CLASS])
def test_no_image_left_is_an_error(protocol):
    message = f"{protocol!r} keeps only images with a positive .*none of the 5 images .*4 labels of ZSL; .*'per_class'"
    with pytest.raises(ValueError, match=message):
        measure(torch.rand(5, 4), -torch.ones(5, 4), (2,), protocol, "ZSL")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bad_input(protocol):
    scores, labels = draw(10)
    labels[41] = 0  # BiAM drops this image
    with pytest.raises(ValueError, match=r"scores \(60, 12\) and labels \(60, 11\) must have one shape"):
        measure(scores, labels[:, 1:], (2,), protocol)
    with pytest.raises(ValueError, match=r"scores \(0, 12\) hold nothing to evaluate"):
        measure(scores[:0], labels[:0], (2,), protocol)
    with pytest.raises(ValueError, match="k = 13, but there are 12 labels"):
        measure(scores, labels, (13,), protocol)
    with pytest.raises(ValueError, match="unknown task 'zsl'; did you mean 'ZSL'. known: ZSL, GZSL, seen"):
        measure(scores, labels, (2,), protocol, "zsl")
    scores[41, 5] = math.nan
    for call in (lambda: measure(scores, labels, (2,), protocol), lambda: pooled_average_precision(scores, labels)):
        with pytest.raises(ValueError, match=r"scores\[41, 5\] is nan \(image 41, label index 5\)"):
            call()


def test_k_is_held_against_the_labels_chosen_from():
    scores, labels = draw(10)
    labels[:, 3] = 0
    with pytest.raises(ValueError, match="k = 12, but there are 11 labels to choose from"):
        measure(scores, labels, (12,), BIAM, "seen")
    assert measure(scores, labels, (12,), BIAM, "GZSL")["R@12"] == 1.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_input_is_unchanged_and_may_carry_gradients(protocol):
    scores, labels = draw(11)
    before = scores.clone(), labels.clone()
    measure(scores.requires_grad_(), labels, (3,), protocol)
    assert torch.equal(scores.detach(), before[0]) and torch.equal(labels, before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_types(dtype):
    scores, labels = draw(12, levels=50)  # exact in every type
    scores[0] = 0
    assert pooled_average_precision(scores.to(dtype), labels).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    for protocol in PROTOCOLS:
        expected = measure(scores, labels, (3,), protocol)
        for kind in (torch.int8, torch.float32):
            assert measure(scores.to(dtype), labels.to(kind), (3,), protocol) == pytest.approx(expected, rel=1e-6)


def test_infinite_scores_rank():
    scores, labels = torch.tensor([[torch.inf, 0.0, -torch.inf]]), torch.tensor([[1, -1, 1]])
    assert pooled_average_precision(scores, labels).tolist() == pytest.approx([5 / 6] * 3)


# Names ---------------------------------------------------------------------------------------------------------------


def test_names():
    assert all(p.name == name and p.words for name, p in PROTOCOLS.items())
    assert named("per_class") is PROTOCOLS["per_class"] is named(PROTOCOLS["per_class"])
    for call in (
        named,
        lambda name: measure(*draw(0), (3,), name),
        lambda name: evaluation.metrics_row(*draw(0), (3,), name),
    ):
        with pytest.raises(
            ValueError, match="unknown protocol 'biam_openimages'; did you mean 'biam_open_images.*known: "
        ):
            call("biam_openimages")


def test_a_protocol_of_ones_own():
    own = dataclasses.replace(PROTOCOLS["per_class_unknown_negative"], name="own", images="positive")
    scores, labels = draw(13, share=0.1)
    some = (labels == 1).any(dim=1)
    assert not some.all()
    expected = measure(scores[some], labels[some], (3,), "per_class_unknown_negative")
    assert measure(scores, labels, (3,), own) == expected
    for field, value in {"images": "some", "average": "micro", "unknown": "zero"}.items():
        with pytest.raises(ValueError, match=f"protocol 'own': unknown {field} '{value}'"):
            dataclasses.replace(own, **{field: value})
    with pytest.raises(ValueError, match="protocol 'own': unknown task 'all'"):
        dataclasses.replace(own, map_annotated=("all",))
    with pytest.raises(ValueError, match="pools over annotated images"):
        dataclasses.replace(own, average="pooled")
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.name = "x"
    assert isinstance(own, Protocol)


# The table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluate_prints_the_protocol_and_counts(protocol):
    features, model = synthetic.features(24, seed=3), synthetic.model()
    features.labels[:6, 5:] = 0  # nothing known of the unseen labels there
    features.labels[6:9, 5:] = -1
    table = evaluation.evaluate(model, features, ("ZSL", "GZSL", "seen"), protocol=protocol)
    assert table.protocol.tolist() == [protocol] * 3
    expected = {task: kept(features.labels[:, features.space.columns(task)], protocol, task) for task in table.index}
    assert table.images.tolist() == [len(use.images) for use in expected.values()]
    assert table.labels.tolist() == [len(use.map_labels) for use in expected.values()]
    assert (table.images["ZSL"] < 24) == protocol.startswith("biam")
    assert ("mAP weighted" in table) == PROTOCOLS[protocol].weighted
    for word in (protocol, "images", "labels"):
        assert word in str(table.to_string())
    zero_shot = plain_vlp.zero_shot(model.vlp, features, "name", "dot", ks=(1,), protocol=protocol)
    assert zero_shot.protocol.tolist() == [protocol] * 2
    assert zero_shot.images.tolist() == table.images[["ZSL", "GZSL"]].tolist()


def test_the_row_is_in_percent():
    scores, labels = draw(14)
    row, shares = (
        evaluation.metrics_row(scores, labels, (3,), BIAM, "seen"),
        measure(scores, labels, (3,), BIAM, "seen"),
    )
    assert list(row) == ["P@3", "R@3", "F1@3", "mAP", "mAP skip", "mAP weighted", "protocol", "images", "labels"]
    assert all(row[name] == 100 * shares[name] for name in list(row)[:6])
    assert [row[name] for name in list(row)[6:]] == [BIAM, shares["images"], shares["labels"]]


@pytest.mark.parametrize("module", [hrcf_lib.protocols, hrcf_lib.protocols])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
