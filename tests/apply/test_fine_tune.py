"""Own pictures: from a folder with a labels.csv to a fine-tuned model on disk."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import features, same, weights
from synthetic import model as small

from hrcf_lib import classify, config
from hrcf_lib.apply import calibration, fine_tune
from hrcf_lib.apply.fine_tune import mean_ap, training_and_held_out, tune
from hrcf_lib.apply.predict import default_model

ROWS = {"a.png": "owl|bus", "b.png": "owl", "c.png": "bus", "d.png": "owl|sea", "e.png": "", "f.png": "Cat"}


def folder(path, rows=ROWS):
    """Pictures of noise with a labels.csv."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for file in rows:
        Image.fromarray(rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)).save(path / file)
    return table(path, rows)


def table(path, rows):
    lines = [f"{file},{labels}\n" for file, labels in rows.items()]
    (path / "labels.csv").write_text("file,labels\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def start():
    """A model with random weights that knows three labels."""
    model = small()
    model.reference_labels = ("cat", "dog", "tree")
    return model.eval()


def test_labels_are_those_of_the_csv_beside_what_the_start_knows(tmp_path, start):
    before = weights(start)
    tuned = tune(folder(tmp_path / "p"), tmp_path / "out", start, held_out=0, passes=2)
    assert tuned.labels == ("Cat", "bus", "owl", "sea")
    assert tuned.model.reference_labels == ("Cat", "bus", "owl", "sea", "dog", "tree")  # both cats are one label
    assert start.reference_labels == ("cat", "dog", "tree") and same(before, weights(start))
    assert not same(before, weights(tuned.model), "block.") and same(before, weights(tuned.model), "vlp.")
    assert tuned.held_out == [] and tuned.table["mAP"].isna().all() and calibration.of_model(tuned.model) is None


def test_old_labels_are_unknown(start):
    y = torch.tensor([[1, -1], [-1, 1]])
    data = fine_tune._beside(features(2), y, ["owl", "CAT"], start.reference_labels)
    assert data.space.names == ("owl", "CAT", "dog", "tree")
    assert data.labels.tolist() == [[1, -1, 0, 0], [-1, 1, 0, 0]]  # of the cat the CSV knows better


@pytest.mark.slow
def test_result_lies_half_way(tmp_path, start, monkeypatch):
    pictures, first = folder(tmp_path / "p"), weights(start)
    half = weights(tune(pictures, tmp_path / "half", start, held_out=0, passes=2).model)
    monkeypatch.setattr(fine_tune, "SHARE", 1.0)
    last = weights(tune(pictures, tmp_path / "last", start, held_out=0, passes=2).model)
    assert not same(first, last, "head.")
    for name, x in half.items():
        torch.testing.assert_close(x, fine_tune.between(first, last, 0.5)[name])
    with pytest.raises(ValueError, match="belongs to another run .*share: there 0.5, here 1.0"):
        tune(pictures, tmp_path / "half", start, held_out=0, passes=2)


def test_another_run_is_refused_also_where_its_checkpoint_was_removed(tmp_path, start):
    pictures, out = folder(tmp_path / "p"), tmp_path / "out"
    tune(pictures, out, start, held_out=np.float32(0), passes=2, cache=tmp_path / "features")
    (out / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="another run .*passes: there 2, here 3.*: choose another out, or delete all"):
        tune(pictures, out, start, held_out=0, passes=3)
    with pytest.raises(ValueError, match="another run .*data: there"):
        tune(table(pictures, ROWS | {"b.png": "bus"}), out, start, held_out=0, passes=2)
    with pytest.raises(ValueError, match="another run .*labels: there .*'sea'.*, here"):
        tune(table(pictures, ROWS | {"d.png": "owl"}), out, start, held_out=0, passes=2)


def test_pictures_that_all_show_the_same_teach_nothing(tmp_path, start):
    with pytest.raises(ValueError, match="every picture has the label 'owl': add pictures without it"):
        tune(folder(tmp_path / "p", dict.fromkeys(("a.png", "b.png"), "owl")), tmp_path / "out", start)


def test_between_counts_and_weights():
    first, last = {"w": torch.zeros(2), "n": torch.tensor(3)}, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}
    half = fine_tune.between(first, last, 0.5)
    assert half["w"].tolist() == [0.5, 1.0] and half["n"] == 7
    assert torch.equal(fine_tune.between(first, last, 1.0)["w"], last["w"])


def test_from_scratch_only_the_csv_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tune, "SHARE", math.nan)  # nothing is averaged with a start that knows nothing
    tuned = tune(folder(tmp_path / "p"), tmp_path / "out", config.mini().replace(bf16=False), held_out=0, passes=2)
    assert tuned.model.reference_labels == tuned.labels == ("Cat", "bus", "owl", "sea")
    assert tuned.model.vlp.hash == default_model().vlp.hash
    assert all(x.isfinite().all() for x in weights(tuned.model).values())


@pytest.mark.slow
def test_saved_and_reloaded_it_answers_alike(tmp_path):
    pictures = folder(tmp_path / "p")
    tuned = tune(pictures, tmp_path / "out", held_out=0, passes=2)
    again = classify(pictures, tuned.labels, tmp_path / "out" / "model")
    assert again["score"].tolist() == classify(pictures, tuned.labels, tuned.model)["score"].tolist()
    assert again["score"].tolist() != classify(pictures, tuned.labels)["score"].tolist()
    assert not list((tmp_path / "out").glob("*.part"))
    noted = json.loads((tmp_path / "out" / "tuned.json").read_text(encoding="utf-8"))
    assert noted["labels"] == list(tuned.labels) and noted["held out"] == []


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path, start, monkeypatch):
    pictures, real = folder(tmp_path / "p"), fine_tune.train
    whole = tune(pictures, tmp_path / "whole", start, held_out=0, passes=4)
    monkeypatch.setattr(fine_tune, "train", lambda *a: real(*a, stop_after=2) and 1 / 0)
    with pytest.raises((ZeroDivisionError, ValueError)):
        tune(pictures, tmp_path / "cut", start, held_out=0, passes=4)
    assert not (tmp_path / "cut" / "model").exists()  # nothing that looks finished
    monkeypatch.setattr(fine_tune, "train", real)
    resumed = tune(pictures, tmp_path / "cut", start, held_out=0, passes=4)
    assert same(weights(whole.model), weights(resumed.model)) and len(resumed.history) == len(whole.history)
    stamp = (tmp_path / "cut" / "checkpoint.pt").stat().st_mtime_ns
    model = tmp_path / "cut" / "model"
    (model / "notes.txt").write_text("mine")
    made = (model / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(fine_tune, "_save", None)
    done = tune(pictures, tmp_path / "cut", start, held_out=0, passes=4)
    assert same(weights(whole.model), weights(done.model)) and done.labels == whole.labels
    assert (tmp_path / "cut" / "checkpoint.pt").stat().st_mtime_ns == stamp  # no further step
    assert (model / "model.safetensors").stat().st_mtime_ns == made and (model / "notes.txt").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*model.safetensors cannot be read")
def test_what_tune_did_not_write_is_never_deleted(tmp_path, start):
    pictures, out = folder(tmp_path / "p"), tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "notes.txt").write_text("mine")
    (out / "model.part").mkdir()
    with pytest.raises(ValueError, match="model was not written by tune, which notes it in tuned.json: choose another"):
        tune(pictures, out, start, held_out=0, passes=1)
    (out / "model").rename(tmp_path / "kept")
    tuned = tune(pictures, out, start, held_out=0, passes=1)
    (out / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="model is not the model that this run makes: it is .*model.1 now"):
        again = tune(pictures, out, start, held_out=0, passes=1)
    assert same(weights(tuned.model), weights(again.model)) and (out / "model.1" / "config.json").exists()
    assert (tmp_path / "kept" / "notes.txt").exists() and (out / "model.part").exists()


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(tmp_path, start):
    pictures = folder(tmp_path / "p")
    tune(pictures, tmp_path / "out", start, held_out=0, passes=2)
    model = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    other = small(seed=1).eval()
    with torch.no_grad():
        other.head.weight += 1
    for call in (
        lambda: tune(pictures, tmp_path / "out", other, held_out=0, passes=2),
        lambda: tune(pictures, tmp_path / "out", start, held_out=0.5, passes=2),
        lambda: tune(table(pictures, ROWS | {"e.png": "sea"}), tmp_path / "out", start, held_out=0, passes=2),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            call()
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            ROWS | {"a.png": "owl|qwertyish"},
            ValueError,
            "'qwertyish': the text tower of hrcf-mini was never trained on",
        ),
        (ROWS | {"a.png": "owl|OWL"}, ValueError, "read alike by the text tower: 'OWL'"),
        (ROWS | {"lost.png": "owl"}, FileNotFoundError, "pictures that do not exist: lost.png"),
        (dict.fromkeys(ROWS, ""), ValueError, "no labels"),
    ],
)
def test_faults_are_named_before_anything_is_written(tmp_path, rows, error, message):
    pictures = table(folder(tmp_path / "p"), rows)
    with pytest.raises(error, match=message):
        tune(pictures, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_unknown_words_are_named_at_once():
    strange = ["e-scooter", "qwerty", "zxcvb", "Übergröße", "owl " * 90, "fghjk", "vbnml"]
    with pytest.raises(ValueError, match="^'e-scooter': .*; nor can it read 'qwerty', .*'fghjk', 'vbnml'$"):
        fine_tune.check_words(default_model(), ["owl", *strange])


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_left_out(tmp_path, start):
    pictures = table(folder(tmp_path / "p"), ROWS | {"lost.png": "owl", "text.png": "bus"})
    (pictures / "text.png").write_text("no picture")
    with pytest.warns(UserWarning, match="skipped 2 of 8 pictures"):
        tuned = tune(pictures, tmp_path / "out", start, held_out=0, passes=1, skip_bad=True)
    assert len(tuned.history) == 1 and tuned.labels == ("Cat", "bus", "owl", "sea")


def test_arguments_out_of_range(tmp_path, start):
    with pytest.raises(ValueError, match="held_out = 1.0: give a share"):
        tune(tmp_path, tmp_path / "out", start, held_out=1.0)
    with pytest.raises(ValueError, match="passes = 0: give a whole number"):
        tune(tmp_path, tmp_path / "out", start, passes=0)


def test_nothing_held_out_is_told(tmp_path, start):
    with pytest.warns(UserWarning, match="none of the 2 pictures is held out, .* no mAP and no probabilities") as told:
        tuned = tune(folder(tmp_path / "p", {"a.png": "owl", "b.png": "bus"}), tmp_path / "out", start, 0.5, passes=1)
    assert tuned.held_out == [] and told[0].filename == __file__


def test_parts_leave_each_label_a_picture():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.where(rng.uniform(size=(60, 8)) < 0.15, 1, -1))
    y[:, 0] = -1
    y[7, 0] = 1  # the only picture of its label
    y[:, 1] = -1  # a label that nothing shows
    for seed in range(20):
        rows, held = training_and_held_out(y, 0.25, seed)
        assert len(held) == 15 and sorted([*rows, *held]) == list(range(60))
        assert 7 in rows and ((y[rows] == 1).any(dim=0) == (y == 1).any(dim=0)).all()
    assert not np.array_equal(training_and_held_out(y, 0.25, 0)[1], training_and_held_out(y, 0.25, 1)[1])
    assert np.array_equal(training_and_held_out(y, 0.25, 3)[1], training_and_held_out(y, 0.25, 3)[1])
    alone = torch.eye(6) * 2 - 1  # each picture is the only one of its label
    assert len(training_and_held_out(alone, 0.5)[1]) == 0 and len(training_and_held_out(y, 0.0)[1]) == 0


@pytest.mark.filterwarnings("ignore:the 3 held-out pictures")
def test_a_label_with_a_single_picture_is_trained(tmp_path, start):
    tuned = tune(folder(tmp_path / "p"), tmp_path / "out", start, held_out=0.5, passes=1)
    assert "sea" in tuned.labels and "d.png" not in tuned.held_out and "f.png" not in tuned.held_out
    assert 0 < len(tuned.held_out) <= 3


@pytest.mark.slow
def test_held_out_pictures_calibrate(tmp_path, start):
    rows = {f"{i}.png": "|".join(n for k, n in enumerate(("owl", "bus", "sea")) if (i >> k) % 2) for i in range(40)}
    tuned = tune(folder(tmp_path / "p", rows), tmp_path / "out", start, held_out=0.5, passes=2)
    assert len(tuned.held_out) == 20 and tuned.table["mAP"].between(1, 100).all()
    assert calibration.of_model(tuned.model).made_for == calibration.fingerprint(tuned.model)
    assert (tmp_path / "out" / "model" / "calibration.json").is_file()
    with pytest.warns(UserWarning, match="show labels .* times, 20 are the least"):
        few = tune(folder(tmp_path / "few"), tmp_path / "out2", start, held_out=0.3, passes=2)
    assert calibration.of_model(few.model) is None


def test_mean_ap_is_that_of_classify(tmp_path, start):
    """Ranks pictures by the scores that ``classify`` gives, the reference vocabulary beside them."""
    from sklearn.metrics import average_precision_score

    from hrcf_lib.data import load
    from hrcf_lib.data.feeds.pictures import Pictures

    dataset = load(folder(tmp_path / "p"))
    data = Pictures(dataset, start.vlp)
    names = list(dataset.labels.names)
    found = classify(tmp_path / "p", names, start, top_k=len(names)).pivot(
        index="image", columns="label", values="score"
    )
    want = np.mean([average_precision_score(data.labels[:, k] == 1, found[n]) for k, n in enumerate(names)])
    assert mean_ap(start, data) == pytest.approx(100 * want, abs=1e-4)
    assert mean_ap(start, data, ["owl"]) != pytest.approx(mean_ap(start, data, ["bus"]))
    with pytest.raises(ValueError, match="'dog' is not among the labels"):
        mean_ap(start, data, ["owl", "dog"])
    empty = data.take([4])
    with pytest.raises(ValueError, match="no picture shows any of"):
        mean_ap(start, empty)
    assert not math.isnan(mean_ap(start, data, ["sea"]))


def test_arguments_and_notes_of_other_kinds_are_named(tmp_path):
    with pytest.raises(ValueError, match="held_out = 'x': give a share"):
        tune(tmp_path, tmp_path / "out", held_out="x")
    for notes in ({"mAP": "x"}, {"mAP": [1]}, {"weights_hash": 3}):
        (tmp_path / "tuned.json").write_text(json.dumps(notes))
        with pytest.raises(ValueError, match="tuned.json is not what tune wrote .its (mAP|weights_hash) is"):
            fine_tune._noted(tmp_path, {})
