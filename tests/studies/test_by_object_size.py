"""Results by size, by number of things and label by label, against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from hrcf_lib import metrics
from hrcf_lib.config import mini
from hrcf_lib.data import benchmarks
from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.data.mojiscenes.scenes import MojiScenes
from hrcf_lib.studies import by_object_size

NAN = math.nan


def made(n=60, K=8, seed=0):
    """Scores with ties, annotations with unknown entries, a size for two positives of three; column 7 has none."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 2, (n, K), generator=rng).float()
    labels[:, 7] = -1
    scores = (torch.rand(n, K, generator=rng) + 0.2 * (labels == 1)).round(decimals=1)
    sizes = torch.rand(n, K, generator=rng) * 0.9 + 0.05
    sizes[torch.rand(n, K, generator=rng) < 1 / 3] = NAN
    return scores, labels, sizes


def class_of(size: float) -> str:
    return "stuff and words" if math.isnan(size) else "small" if size < 0.25 else "medium" if size < 0.45 else "large"


def expected(scores, labels, sizes, name, k):
    """mAP, recall, positives and labels of one row, image by image and label by label."""
    n, K = scores.shape
    aps, hits, positives = [], 0, 0
    for j in range(K):
        rows = [i for i in range(n) if labels[i, j] == -1 or (labels[i, j] == 1 and class_of(sizes[i, j]) == name)]
        y = [int(labels[i, j] == 1) for i in rows]
        positives += sum(y)
        if sum(y):
            aps.append(average_precision_score(y, [scores[i, j].item() for i in rows]))
    for i in range(n):
        best = sorted(range(K), key=lambda j: (-scores[i, j].item(), j))[:k]
        hits += sum(labels[i, j] == 1 and class_of(sizes[i, j]) == name for j in best)
    return 100 * np.mean(aps), 100 * float(hits) / positives, positives, len(aps)


@pytest.mark.parametrize("k", [5, 2])
def test_by_size_is_what_a_plain_loop_finds(k):
    scores, labels, sizes = made()
    table = by_object_size.by_size(scores, labels, sizes, k)
    assert table.index.tolist() == ["small", "medium", "large", "stuff and words"]
    assert table.columns.tolist() == ["mAP", f"recall@{k}", "positives", "labels"]
    for name in table.index:
        assert table.loc[name].tolist() == pytest.approx(expected(scores, labels, sizes, name, k)), name
    assert table["positives"].sum() == (labels == 1).sum() and table["labels"].max() == 7


def test_by_size_by_hand():
    """Of label 0, the small positive stands below one negative, the large one above all."""
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.6], [0.7, 0.8]])
    labels = torch.tensor([[1, -1], [1, -1], [-1, 1]])
    sizes = torch.tensor([[0.45, 0.2], [0.2499, NAN], [NAN, NAN]])
    table = by_object_size.by_size(scores, labels, sizes, k=1)
    assert table.loc["large"].tolist() == [100, 100, 1, 1], "0.45 is large; the small positive is no negative"
    assert table.loc["small"].tolist() == [50, 0, 1, 1], "the large one, above it, is no negative either"
    assert table.loc["stuff and words"].tolist() == [100, 100, 1, 1]
    assert table.loc["medium", ["positives", "labels"]].tolist() == [0, 0]
    assert table.loc["medium", ["mAP", "recall@1"]].isna().all(), "nothing was asked, so nothing was missed"


def test_one_size_alone_is_the_plain_metric():
    scores, labels, _ = made()
    row = by_object_size.by_size(scores, labels, torch.full(scores.shape, 0.3)).loc["medium"]
    assert row["mAP"] == 100 * metrics.mean_average_precision(scores, labels, "skip")
    assert row["recall@5"] == 100 * metrics.precision_recall_f1_at_k(scores, labels, 5)[1]


def test_by_number_is_the_metric_of_each_part():
    scores, labels, _ = made()
    counts = torch.arange(60) % 3 + 2
    table = by_object_size.by_number(scores, labels, counts)
    assert table.index.tolist() == [2, 3, 4] and table["images"].tolist() == [20, 20, 20]
    for count in (2, 3, 4):
        s, y = scores[count - 2 :: 3], labels[count - 2 :: 3]
        assert table.loc[count, "mAP"] == 100 * metrics.mean_average_precision(s, y, "skip")
        assert table.loc[count, "F1@3"] == 100 * metrics.precision_recall_f1_at_k(s, y, 3)[2]
        assert table.loc[count, "labels"] == (y == 1).any(0).sum()


def test_per_label_is_a_mean_over_seeds():
    scores, labels, _ = made()
    other = made(seed=1)[0]
    names = [f"label {k}" for k in range(8)]
    table = by_object_size.per_label({"HRCF": [scores, other], "MKT": [other]}, labels, names)
    assert table.columns.tolist() == ["label", "HRCF", "MKT", "positives"]
    assert table["label"].tolist() == names[:7], "the last has no positives"
    assert table["positives"].tolist() == (labels == 1).sum(0)[:7].tolist()
    first, second = (100 * metrics.average_precision(s, labels)[:7] for s in (scores, other))
    assert table["HRCF"].tolist() == pytest.approx(((first + second) / 2).tolist(), abs=1e-4)
    assert table["MKT"].tolist() == pytest.approx(second.tolist(), abs=1e-4)
    whole = by_object_size.per_label({"one": [scores]}, labels, names)["one"].mean()
    assert whole == pytest.approx(100 * metrics.mean_average_precision(scores, labels, "skip"), abs=1e-4)


def test_inputs_stay_as_they_are():
    tables = made()
    before = [table.clone() for table in tables]
    by_object_size.by_size(*tables)
    by_object_size.by_number(*tables[:2], torch.arange(60) % 2)
    by_object_size.per_label({"one": [tables[0]]}, tables[1], "abcdefgh")
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(tables, before))


def test_errors_say_what_does_not_fit():
    scores, labels, sizes = made()
    with pytest.raises(
        ValueError, match=r"sizes \(60, 3\) must have the shape of the scores \(60, 8\): take the columns"
    ):
        by_object_size.by_size(scores, labels, sizes[:, :3])
    with pytest.raises(ValueError, match="sizes are shares of the picture's side"):
        by_object_size.by_size(scores, labels, sizes * 112)
    with pytest.raises(ValueError, match="must have one shape"):
        by_object_size.by_size(scores[:, 1:], labels, sizes)
    with pytest.raises(ValueError, match="k = 9, but there are 8 labels"):
        by_object_size.by_size(scores, labels, sizes, k=9)
    with pytest.raises(ValueError, match=r"counts \(59,\) must be one number for each of 60 images"):
        by_object_size.by_number(scores, labels, torch.ones(59))
    with pytest.raises(ValueError, match="must have one shape"):
        by_object_size.by_number(scores, labels[1:], torch.ones(60))
    with pytest.raises(ValueError, match="7 names for 8 columns"):
        by_object_size.per_label({"one": [scores]}, labels, "abcdefg")
    with pytest.raises(ValueError, match="'two' has no scores"):
        by_object_size.per_label({"one": [scores], "two": []}, labels, "abcdefgh")
    with pytest.raises(ValueError, match="there are no scores"):
        by_object_size.per_label({}, labels, "abcdefgh")
    with pytest.raises(ValueError, match="must have one shape"):
        by_object_size.per_label({"one": [scores[1:]]}, labels, "abcdefgh")


@pytest.fixture(scope="module")
def scenes() -> MojiScenes:
    return benchmarks.open_split(mini().replace(test_size=40), "test")


def test_sizes_are_those_of_the_boxes(scenes):
    sizes, names = by_object_size.objects(scenes)[0], scenes.labels.names
    assert sizes.shape == (40, len(names)) and sizes.dtype == torch.float32
    y = torch.stack([scenes.label_vector(i) for i in range(40)])
    kinds = [vocabulary.by_name()[name].kind for name in names]
    other = torch.tensor([kind != "thing" for kind in kinds])
    assert torch.equal(sizes.isnan(), (y != 1) | other), "every annotated thing has a size, and nothing else"
    assert {kind for kind, asked in zip(kinds, (y == 1).any(0)) if asked} == {"thing", "stuff", "word"}
    assert sizes[~sizes.isnan()].min() > 0.1 and sizes[~sizes.isnan()].max() < 0.9
    for i in range(8):
        scene = scenes.scene(i)
        for name, box in zip(scene.names[: scene.things], scene.boxes):
            if name in names:
                assert sizes[i, names.index(name)].item() * 112 == pytest.approx(max(box[2] - box[0], box[3] - box[1]))


def test_all_positives_of_a_split_are_in_some_row(scenes):
    y = torch.stack([scenes.label_vector(i) for i in range(40)])
    table = by_object_size.by_size(torch.rand(y.shape), y, by_object_size.objects(scenes)[0])
    assert table["positives"].sum() == (y == 1).sum() and (table["positives"] > 0).all()


def test_counts_are_of_things_whether_labels_or_not(scenes):
    sizes, counts = by_object_size.objects(scenes)
    assert counts.shape == (40,) and set(counts.tolist()) == {1, 2, 3}
    named = (~sizes.isnan()).sum(1)
    assert (named <= counts).all() and (named < counts).any(), "things of validation's unseen labels count too"
    with pytest.raises(TypeError, match="list has no scenes with boxes: give a split of MojiScenes"):
        by_object_size.objects([])
    with pytest.raises(TypeError, match="give a split of MojiScenes"):
        by_object_size.objects(torch.zeros(3))


def test_frequency_bias_tells_common_labels_from_seen_ones():
    _, labels, _ = made(n=200)
    share = (labels == 1).double().mean(0)
    same = share.expand(50, -1).float()
    assert by_object_size.frequency_bias(same, labels) == pytest.approx(1)
    assert by_object_size.frequency_bias(-3 * same + 1, labels) == pytest.approx(-1)
    noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    expected = np.corrcoef(noise.double().mean(0), share)[0, 1]
    assert by_object_size.frequency_bias(noise, labels) == pytest.approx(expected) and abs(expected) < 0.9
    assert math.isnan(by_object_size.frequency_bias(torch.ones(5, 8), labels))
    with pytest.raises(ValueError, match="scores of 3 labels and annotation of 8: give the same"):
        by_object_size.frequency_bias(noise[:, :3], labels)


def test_runs_of_several_methods_are_the_tables_of_each(scenes):
    y = torch.stack([scenes.label_vector(i) for i in range(40)])
    tasks = {task: scenes.labels.view(task).columns for task in ("ZSL", "GZSL")}
    draw = lambda seed: torch.rand(y.shape, generator=torch.Generator().manual_seed(seed))
    runs = {
        m: [{t: draw(s)[:, c] for t, c in tasks.items()} for s in seeds] for m, seeds in {"a": [0, 1], "b": [2]}.items()
    }
    tables = by_object_size.of_runs(runs, scenes, y)
    sizes, counts = by_object_size.objects(scenes)
    for (method, seed), drawn in {("a", 0): 0, ("a", 1): 1, ("b", 0): 2}.items():
        for task, columns in tasks.items():
            own = {k: t[t["method"].eq(method) & t["seed"].eq(seed) & t["task"].eq(task)] for k, t in tables.items()}
            by_size = by_object_size.by_size(draw(drawn)[:, columns], y[:, columns], sizes[:, columns])
            by_number = by_object_size.by_number(draw(drawn)[:, columns], y[:, columns], counts)
            assert own["size"].set_index("size")[by_size.columns].equals(by_size)
            assert own["things"].set_index("things")[by_number.columns].equals(by_number)
    assert len(tables["size"]) == 3 * 2 * 4 and len(tables["things"]) == 3 * 2 * 3


def test_training_scenes_have_sizes_of_what_nobody_annotated():
    scenes = MojiScenes("train", 30)
    sizes, seen = by_object_size.objects(scenes)[0], scenes.labels.n_seen
    assert (~sizes[:, seen:].isnan()).any()
    y = torch.stack([scenes.label_vector(i) for i in range(30)])
    table = by_object_size.by_size(torch.rand(y.shape), y, sizes)
    assert table["positives"].sum() == (y == 1).sum() == (y[:, :seen] == 1).sum()
