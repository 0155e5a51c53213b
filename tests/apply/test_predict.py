"""classify: any list of labels, pictures in any form, scores inside the reference vocabulary, errors that help."""

import copy
import inspect
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.apply import calibration, predict
from hrcf_lib.apply.calibration import Calibration, fingerprint
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.apply.predict import answers, classify, gallery, load_model, own_thresholds, ranked
from hrcf_lib.apply.region_maps import maps_for
from hrcf_lib.data.mojiscenes.scenes import MojiScenes
from hrcf_lib.model import HRCF

REFERENCE = ("cat", "dog", "bus", "sun", "tree", "boat")


@pytest.fixture(scope="module")
def model():
    model = synthetic.model()
    model.reference_labels = REFERENCE
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four scenes as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    data = MojiScenes("test", 4)
    for i in range(4):
        Image.fromarray(data.scene(i).image).save(folder / f"{i}.png")
    return folder


def test_signature_is_the_promised_one():
    parameters = inspect.signature(classify).parameters
    assert list(parameters)[:4] == ["images", "labels", "model", "top_k"]
    assert parameters["model"].default is None and parameters["top_k"].default == 5


def test_the_frame_is_tidy(model, folder):
    frame = classify(folder, ["cat", "zebra", "ship", "sun", "moon", "rain"], model, top_k=3)
    assert frame.columns.tolist() == ["image", "label", "score", "rank"]
    assert len(frame) == 4 * 3 and frame.index.tolist() == list(range(12))
    assert frame.image.unique().tolist() == [str(folder / f"{i}.png") for i in range(4)]
    for _, part in frame.groupby("image"):
        assert part["rank"].tolist() == [1, 2, 3] and part.label.is_unique
        assert part.score.is_monotonic_decreasing
    assert frame.score.between(-1, 1).all()


def test_scores_are_the_models_inside_the_reference(model, folder):
    labels = ["zebra", "dog", "moon"]
    frame = classify(folder, labels, model, top_k=3)
    names = [*REFERENCE, "zebra", "moon"]
    data = MojiScenes("test", 4)
    pictures = torch.stack([data[i][0] for i in range(4)])
    with torch.no_grad():
        scores = model(pictures, names)
    for i, (_, part) in enumerate(frame.groupby("image")):
        for row in part.itertuples():
            assert row.score == pytest.approx(scores[i, names.index(row.label)].item(), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_lists_of_any_length(model, folder, n):
    frame = classify(folder / "0.png", [f"thing {i}" for i in range(n)], model, top_k=5)
    assert len(frame) == min(n, 5) and frame.score.notna().all()
    assert frame.score.abs().lt(0.999).all(), "a single label does not always score 1"


def test_a_single_label_tells_pictures_apart(model, folder):
    scores = classify(folder, ["zebra"], model).score
    assert scores.nunique() == 4


def test_a_label_of_ones_own_does_not_move_another_reference_label_twice(model, folder):
    """A label of the reference is not entered a second time, in whatever case of white space it is written."""
    alone = classify(folder, ["dog"], model)
    spaced = classify(folder, [" dog "], model)
    assert alone.equals(spaced) and alone.label.eq("dog").all()
    among = classify(folder, ["dog", "cat", "boat"], model, top_k=3)
    assert among[among.label == "dog"].score.tolist() == pytest.approx(alone.score.tolist(), abs=1e-6)


def test_order_of_labels_and_batch_do_not_matter(model, folder):
    a = classify(folder, ["zebra", "moon", "dog"], model, batch=1)
    b = classify(folder, ["dog", "moon", "zebra"], model, batch=3)
    assert a[["image", "label", "rank"]].equals(b[["image", "label", "rank"]])
    np.testing.assert_allclose(a.score, b.score, atol=1e-6)


def test_paths_pictures_and_folders_agree(model, folder):
    paths = sorted(folder.iterdir())
    whole = classify(folder, ["zebra", "dog"], model)
    for images in (paths, [str(p) for p in paths], str(folder), [folder]):
        assert classify(images, ["zebra", "dog"], model).equals(whole)
    opened = [Image.open(p) for p in paths]
    assert classify(opened, ["zebra", "dog"], model).equals(whole), "an opened file still has its name"
    nameless = [Image.fromarray(np.array(p)) for p in opened]
    frame = classify(nameless, ["zebra", "dog"], model)
    assert frame.image.unique().tolist() == [f"picture {i}" for i in range(4)]
    assert frame.drop(columns="image").equals(whole.drop(columns="image"))
    one = classify(paths[2], ["zebra", "dog"], model)
    assert one.label.tolist() == whole.label[4:6].tolist()
    mixed = classify([nameless[0], paths[1]], ["zebra"], model)
    assert mixed.image.tolist() == ["picture 0", str(paths[1])]


def test_any_size_and_mode(model, tmp_path):
    Image.new("L", (300, 40)).save(tmp_path / "grey.jpg")
    Image.new("RGBA", (20, 30)).save(tmp_path / "small.png")
    assert len(classify(tmp_path, ["zebra"], model)) == 2


def test_pictures_are_resized_as_the_config_says(model):
    """A picture of the model's own shape is the same to all but MKT's way, one of another shape is not."""
    under = {how: model.under(model.config.replace(resize=how)) for how in ("crop", "squash")}
    of = lambda image: {how: classify(image, ["cat", "dog"], m)["score"].tolist() for how, m in under.items()}
    side = model.vlp.side
    wide = np.zeros((side, 2 * side, 3), np.uint8)
    wide[:, :side] = 255
    assert (found := of(Image.fromarray(wide)))["crop"] != found["squash"]
    assert (found := of(Image.fromarray(wide[:, side // 2 :][:, :side])))["crop"] == found["squash"]


def test_the_same_again(model, folder):
    assert classify(folder, ["zebra", "moon"], model).equals(classify(folder, ["zebra", "moon"], model))


def test_a_model_in_training_is_put_in_evaluation_mode(model, folder):
    expected = classify(folder, ["zebra", "moon"], model)
    assert classify(folder, ["zebra", "moon"], model.train()).equals(expected)
    assert not model.training


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels is empty"),
        (["dog", " "], r"labels\[1\] is blank"),
        (["dog", "cat", "dog "], "'dog' occurs 2 times"),
        ("dog", r"write \['dog'\]"),
        (["dog", 3], r"labels\[1\] is 3, not a string"),
        ([" ".join(["zebra"] * 60)], "zebra.*tokens"),
    ],
)
def test_labels_that_are_refused(model, folder, labels, message):
    with pytest.raises(ValueError, match=message):
        classify(folder, labels, model)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
def test_numbers_that_are_refused(model, folder, wrong):
    with pytest.raises(ValueError, match="top_k = .*whole number from 1"):
        classify(folder, ["dog"], model, top_k=wrong)
    with pytest.raises(ValueError, match="batch = .*whole number from 1"):
        classify(folder, ["dog"], model, batch=wrong)


def test_pictures_that_are_refused(model, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        classify([folder / "0.png", tmp_path / "nowhere.png"], ["dog"], model)
    with pytest.raises(ValueError, match="no pictures in"):
        classify(tmp_path, ["dog"], model)
    with pytest.raises(ValueError, match="empty"):
        classify([], ["dog"], model)
    whole = (folder / "0.png").read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"not a picture"), ("zero.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            classify(tmp_path / name, ["dog"], model)
    with pytest.raises(TypeError, match=r"images\[0\] is a ndarray"):
        classify([np.zeros((4, 4, 3))], ["dog"], model)


# -- files of labels, models from folders, devices ---------------------------------------------------------------------


def test_labels_from_a_file(model, folder, tmp_path):
    names = ["zebra", "dog", "café au lait"]
    expected = classify(folder, names, model)
    (tmp_path / "own.txt").write_text("\ufeffzebra\n\n  dog \r\ncafé  au lait\n", encoding="utf-8")
    (tmp_path / "own.csv").write_text('id,Label\n1,zebra\n2,dog\n3,"café au lait"\n', encoding="utf-8")
    (tmp_path / "labels").write_text("\n".join(names), encoding="utf-8")
    for labels in (tmp_path / "own.txt", str(tmp_path / "own.txt"), str(tmp_path / "own.csv"), tmp_path / "labels"):
        assert classify(folder, labels, model).equals(expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt holds no label; write one name per line"),
        ("a.txt", b"\xff\xfe\x00", "a.txt is not text in UTF-8"),
        ("a.txt", b"owl\n\nbus\nOWL \n", r"'owl' \(a.txt, line 1\) and 'OWL' \(a.txt, line 4\); keep one of each"),
        ("a.csv", b"id,thing\n1,owl\n", "has the columns id, thing; call the one of the names 'label'"),
        ("a.csv", b"label\nowl\nowl\n", r"'owl' \(a.csv, line 2\) and 'owl' \(a.csv, line 3\)"),
        ("a.csv", b"", "a.csv holds no label"),
    ],
)
def test_files_of_labels_that_are_refused(model, folder, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        classify(folder, tmp_path / name, model)
    with pytest.raises(FileNotFoundError, match=r"no file none.txt of labels: .*write \['none.txt'\]"):
        classify(folder, "none.txt", model)


def test_ranks_of_equal_scores():
    order, ranks = ranked(torch.tensor([[0.5, 0.9, 0.5, -1.0], [0.0, 0.0, 0.0, 1.0]]))
    assert order.tolist() == [[1, 0, 2, 3], [3, 0, 1, 2]] and ranks.tolist() == [[2, 1, 3, 4], [2, 3, 4, 1]]
    assert ranked(torch.tensor([0.1, 0.2]))[1].tolist() == [2, 1]


def test_what_the_text_tower_reads_alike_is_one_label(model, folder):
    composed, apart = "caf\u00e9", "cafe\u0301"
    for pair in ([composed, apart], ["Owl", "owl"], ["rock \u2019n\u2019 roll", "rock 'n' roll"]):
        with pytest.raises(ValueError, match=r"read alike.*labels\[0\].*labels\[1\].*keep one of each"):
            classify(folder, pair, model)
    assert classify(folder, ["Dog"], model).score.equals(classify(folder, ["dog"], model).score), "of the reference"
    assert set(classify(folder, [apart, "\u732b", "Hund & Katze"], model).label) == {apart, "\u732b", "Hund & Katze"}


def test_every_label_that_is_too_long_is_named(model, folder):
    with pytest.raises(ValueError, match="'zebra zebra.*needs 302 tokens, the text tower takes 32.*'ant ant.*shorten"):
        classify(folder, ["dog", "zebra " * 300, "ant " * 300], model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model on the shipped VLP in a folder: the mini VLP knows the words of its vocabulary only."""
    model = HRCF(configs.mini().replace(bf16=False))
    model.reference_labels = ("cat", "dog", "pizza")
    return model.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_model_that_was_cast_scores_in_single_precision(model, folder, cast):
    made = getattr(copy.deepcopy(model), cast)()
    found = classify(folder, ["cat", "zebra"], made, explain=True)
    expected = classify(folder, ["cat", "zebra"], copy.deepcopy(made).float())
    assert found.drop(columns="map").equals(expected)
    assert {p.dtype for p in made.parameters()} == {getattr(torch, cast.replace("half", "float16"))}, "left as it is"
    with pytest.raises(
        ValueError, match="the weights of hrcf-mini are torch.*computes in torch.float32 alone: call fl"
    ):
        LabelScorer(made, ["cat"])(torch.zeros(1, 3, 112, 112))
    assert load_model(model) is model


def test_a_model_from_its_folder(saved, folder, monkeypatch):
    expected = classify(folder, ["owl", "cat"], HRCF.from_pretrained(saved))
    assert classify(folder, ["owl", "cat"], saved).equals(expected)
    assert classify(folder, ["owl", "cat"], str(saved)).equals(expected)
    assert predict._shared(saved) is predict._shared(str(saved)), "read once"
    own = load_model(saved)
    own.reference_labels = ("owl",)
    torch.nn.init.zeros_(own.head.weight)
    assert classify(folder, ["owl", "cat"], saved).equals(expected), "a copy of one's own"
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.setenv("USERPROFILE", str(saved.parent))
    assert HRCF.from_pretrained(f"~/{saved.name}").reference_labels == ("cat", "dog", "pizza")
    before = predict._shared(saved)
    os.utime(saved / "config.json", ns=(1, 1))
    assert predict._shared(saved) is not before, "until a file changes"


def test_models_that_are_refused(saved, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        classify(folder, ["dog"], tmp_path)
    with pytest.raises(TypeError, match="model is a int: give an HRCF"):
        classify(folder, ["dog"], 3)
    for file, message in (("config.json", "not a config of save_pretrained"), ("model.safetensors", "damaged")):
        broken = shutil.copytree(saved, tmp_path / file)
        (broken / file).write_bytes(b"{")
        with pytest.raises(ValueError, match=f"{file}.*{message}"):
            classify(folder, ["dog"], broken)
    (saved / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match="calibration.json is not a calibration"):
        classify(folder, ["dog"], saved)
    (saved / "calibration.json").unlink()


def test_devices(model, folder, monkeypatch):
    assert classify(folder, ["zebra"], model, device="cpu").equals(classify(folder, ["zebra"], model))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for wrong in ("cuda", "cuda:7", "mps", "gpu", "xpu"):
        with pytest.raises(ValueError, match=f"device = '{wrong}': this machine has cpu; choose"):
            classify(folder, ["zebra"], model, device=wrong)


def test_the_bar_is_shown_when_asked_for(model, folder, capsys):
    classify(folder, ["zebra"], model, progress=False)
    assert "pictures" not in capsys.readouterr().err
    classify(folder, ["zebra"], model, progress=True)
    assert "pictures: " in capsys.readouterr().err


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_animated_and_enormous_pictures(model, folder, tmp_path):
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    for name in ("moves.gif", "pages.tiff", "moves.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="the first frame was taken: .*moves.gif.*moves.png.*pages.tiff"):
        found = classify(tmp_path, ["zebra"], model)
    still = classify([frames[0]], ["zebra"], model)
    assert found.score[found.image.str.endswith("moves.png")].tolist() == pytest.approx(still.score.tolist(), abs=1e-6)
    Image.new("1", (20000, 5001)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="huge.png has 20000 x 5001 pixels, more than 100 megapixels; scale it down"):
        classify(tmp_path / "huge.png", ["zebra"], model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(classify(folder, ["zebra"], model)) == 4, "a still picture warns of nothing"


def test_bad_pictures_can_be_left_out(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "some")
    (tmp_path / "some" / "00.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="00.png cannot be read as a picture"):
        classify(tmp_path / "some", ["zebra"], model)
    for batch in (1, 32):
        with pytest.warns(UserWarning, match="1 of 5 pictures left out: .*00.png cannot be read"):
            found = classify(tmp_path / "some", ["zebra"], model, skip_bad=True, batch=batch)
        assert found.score.tolist() == pytest.approx(classify(folder, ["zebra"], model).score.tolist(), abs=1e-6)
    nameless = [Image.new("I;16", (9, 9)), Image.new("RGB", (9, 9))]
    with pytest.warns(UserWarning, match="left out"):
        assert classify(nameless, ["zebra"], model, skip_bad=True).image.tolist() == ["picture 1"]
    with pytest.raises(ValueError, match="none of the 1 pictures can be read; the first: .*00.png"):
        classify(tmp_path / "some" / "00.png", ["zebra"], model, skip_bad=True)


def test_a_folder_as_people_have_it(model, folder, tmp_path):
    """A FIFO does not stop it, a PostScript file is no picture, and a name that is not UTF-8 is a row."""
    some = shutil.copytree(folder, tmp_path / "some")
    os.mkfifo(some / "00.png")
    (some / "ps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(ValueError, match="ps.png cannot be read as a picture .this is PostScript"):
        classify(some, ["zebra"], model)
    with pytest.warns(UserWarning, match="1 of 5 pictures left out: .*ps.png") as told:
        assert len(classify(some, ["zebra"], model, skip_bad=True)) == 4
    assert [warning.filename for warning in told] == [__file__]
    (some / "ps.png").unlink()
    try:
        os.rename(some / "3.png", os.fsencode(some) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    found = classify(some, ["zebra"], model)
    assert found.image.iloc[-1] == str(some / "caf\\xe9.png") and len(found.to_csv().encode()) > 0
    assert len(gallery(found, some).html.encode()) > 0


def test_a_picture_that_vanishes_is_named_and_the_others_stay(model, folder, tmp_path, monkeypatch):
    paths = [shutil.copy(path, tmp_path) for path in sorted(folder.iterdir())]
    real = predict.open_picture

    def vanish(item, name):
        Path(paths[1]).unlink(missing_ok=True)
        return real(item, name)

    monkeypatch.setattr(predict, "open_picture", vanish)
    with pytest.raises(FileNotFoundError, match="no picture at .*1.png"):
        classify(paths, ["zebra"], model)
    shutil.copy(folder / "1.png", paths[1])
    with pytest.warns(UserWarning, match="1 of 4 pictures left out: no picture at .*1.png"):
        assert len(classify(paths, ["zebra"], model, skip_bad=True)) == 3


def test_what_lies_under_transparency_does_not_count(model, folder, tmp_path):
    pixels = np.array(Image.open(folder / "0.png"))
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[20:80, 20:80] = 255
    for hidden, name in ((0, "black.png"), (255, "white.png")):
        under = np.where(mask[..., None] == 255, pixels, hidden).astype(np.uint8)
        Image.fromarray(np.dstack([under, mask])).save(tmp_path / name)
        Image.fromarray(under).save(tmp_path / f"opaque_{name}")
    scores = classify(tmp_path, ["zebra"], model).set_index("image").score
    black, opaque_black, opaque_white, white = (scores[str(tmp_path / n)] for n in sorted(os.listdir(tmp_path)))
    assert black == white == opaque_white != opaque_black


def test_numbers_of_numpy_are_numbers(calibrated, folder):
    expected = classify(folder, ["zebra", "moon"], calibrated, top_k=1, threshold=0.25)
    found = classify(
        folder, ["zebra", "moon"], calibrated, top_k=np.int64(1), batch=np.uint8(3), threshold=np.float32(0.25)
    )
    pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(ValueError, match="threshold is .*nan"):
        classify(folder, ["zebra"], calibrated, threshold=np.float32("nan"))


def test_a_picture_given_twice_has_one_answer(calibrated, folder):
    found = classify([folder / "0.png"] * 2, ["zebra", "moon"], calibrated, threshold=0.0)
    assert len(found) == 4 and sorted(answers(found)["labels"].item()) == ["moon", "zebra"]
    assert gallery(found).html.count("zebra") == gallery(found.iloc[:2]).html.count("zebra")


# -- probabilities, thresholds, maps -----------------------------------------------------------------------------------


@pytest.fixture
def calibrated(model):
    """The model with a steep curve, so that small differences of scores would be seen."""
    calibration.attach(model, Calibration((-0.1, 0.3), (-20.0, 20.0), 0.5, 0.1, made_for=fingerprint(model)))
    yield model
    calibration.attach(model, None)


@pytest.mark.parametrize("n", [1, 2, 100, 1000])
def test_a_probability_does_not_depend_on_the_list(calibrated, folder, n):
    alone = classify(folder, ["zebra"], calibrated).probability
    known = classify(folder, ["dog"], calibrated).probability
    names = ["zebra", *(f"thing {i}" for i in range(n - 2)), "dog"][: max(n, 1)]
    found = classify(folder, names, calibrated, top_k=n)
    assert found.columns.tolist() == ["image", "label", "score", "rank", "probability"] and len(found) == 4 * n
    np.testing.assert_allclose(found.probability[found.label == "zebra"], alone, atol=1e-6)
    if n > 1:
        np.testing.assert_allclose(found.probability[found.label == "dog"], known, atol=1e-6)
    assert found.probability.between(0, 1).all() and alone.nunique() == 4


def test_a_probability_is_the_curve_of_the_label_alone_beside_the_reference(calibrated, folder):
    found = classify(folder, ["zebra", "moon", "dog"], calibrated, top_k=3)
    data = MojiScenes("test", 4)
    pictures = torch.stack([data[i][0] for i in range(4)])
    for label in ("zebra", "moon", "dog"):
        names = list(dict.fromkeys([*REFERENCE, label]))
        s = calibrated.score(pictures, names)[:, names.index(label)]
        expected = calibration.of_model(calibrated).probability(s)
        np.testing.assert_allclose(found.probability[found.label == label], expected, atol=1e-5)


def test_yes_and_no(calibrated, folder):
    names = [f"thing {i}" for i in range(30)]
    every = classify(folder, names, calibrated, top_k=30)
    limit = float(every.probability.quantile(0.7))
    found = classify(folder, names, calibrated, top_k=2, threshold=limit)
    assert found.columns.tolist()[-3:] == ["probability", "threshold", "answer"]
    assert (found.answer == np.where(found.probability >= limit, "yes", "no")).all()
    assert found[found.answer == "yes"].shape[0] == (every.probability >= limit).sum(), "none is hidden by top_k"
    merged = found.merge(every, on=["image", "label"], suffixes=("", "_all"))
    assert len(merged) == len(found) and (merged["rank"] == merged.rank_all).all()
    assert found.groupby("image")["rank"].apply(lambda r: r.is_monotonic_increasing and {1, 2} <= set(r)).all()
    told = answers(found)
    assert told.image.tolist() == every.image.unique().tolist()
    for row in told.itertuples():
        part = every[(every.image == row.image) & (every.probability >= limit)]
        assert set(row.labels) == set(part.label) and row.none == part.empty


def test_none_of_these(calibrated, folder):
    found = classify(folder, ["zebra", "moon"], calibrated, top_k=1, threshold=1.0)
    assert len(found) == 4 and found.answer.eq("no").all()
    assert answers(found)["none"].all() and answers(found)["labels"].tolist() == [[]] * 4
    with pytest.raises(ValueError, match="threshold='calibrated'"):
        answers(classify(folder, ["zebra"], calibrated))


def test_thresholds_of_the_calibration_and_of_ones_own(calibrated, folder):
    calibration.attach(calibrated, replace(calibration.of_model(calibrated), threshold=0.25, thresholds={"Moon": 0.75}))
    limit = lambda threshold: dict(
        classify(folder / "0.png", ["zebra", "moon"], calibrated, threshold=threshold)[["label", "threshold"]].values
    )
    assert limit("calibrated") == {"zebra": 0.25, "moon": 0.75}
    assert limit(0) == {"zebra": 0, "moon": 0}
    assert limit({"ZEBRA": 0.5}) == {"zebra": 0.5, "moon": 0.75}
    assert limit({"moon": 0.1}) == {"zebra": 0.25, "moon": 0.1}


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (1.5, "threshold is 1.5: give a probability from 0 to 1"),
        (True, "threshold is True"),
        ("high", "threshold is 'high'.*threshold='calibrated'"),
        ({"zebra": -1}, "the threshold of 'zebra' is -1"),
        ({"owl": 0.5}, "a threshold for 'owl', which is not among the labels"),
        ({1: 0.5}, "a threshold for 1, which is no label: give names"),
        ({None: 0.5}, "a threshold for None, which is no label"),
        ({"zebra": 0.1, "Zebra": 0.9}, "zebra.*Zebra"),
    ],
)
def test_thresholds_that_are_refused(calibrated, folder, threshold, message):
    with pytest.raises(ValueError, match=message):
        classify(folder, ["zebra"], calibrated, threshold=threshold)


def test_without_a_calibration(model, folder):
    with pytest.raises(ValueError, match="no calibration.*python -m hrcf_lib.apply.calibration FOLDER"):
        classify(folder, ["zebra"], model, threshold=0.5)
    with pytest.raises(ValueError, match="no calibration"):
        own_thresholds(folder, [[]] * 4, ["zebra"], model)


def test_a_stale_calibration_gives_no_probabilities(calibrated, folder):
    calibrated.config, before = calibrated.config.replace(lam=0.9), calibrated.config
    with pytest.warns(UserWarning, match="calibration was made for other weights, settings"):
        assert "probability" not in classify(folder, ["zebra"], calibrated)
    calibrated.config = before
    assert "probability" in classify(folder, ["zebra"], calibrated)


def test_thresholds_from_a_handful_of_pictures(calibrated, folder):
    present = [["zebra"], ["zebra", "moon"], [], "moon"]
    found = own_thresholds(folder, present, ["zebra", "moon", "dog"], calibrated)
    assert set(found) == {"zebra", "moon"} and all(0 <= value <= 1 for value in found.values())
    assert own_thresholds(folder, present, None, calibrated) == pytest.approx(found)
    once = [names if isinstance(names, str) else iter(names) for names in present]
    assert own_thresholds(folder, once, None, calibrated) == pytest.approx(found)
    assert len(classify(folder, ["zebra", "moon", "dog"], calibrated, threshold=found)) == 12
    with pytest.raises(ValueError, match="4 pictures, 2 lists of what is in them"):
        own_thresholds(folder, present[:2], ["zebra"], calibrated)
    with pytest.raises(ValueError, match="'moon' is listed for a picture and is not among the labels"):
        own_thresholds(folder, present, ["zebra"], calibrated)


@pytest.mark.parametrize("name", ["hrcf", "mkt"])
def test_maps_are_those_of_region_maps_and_survive_pandas(name, model, folder):
    labels = ["zebra", "dog", "moon"]
    if name == "mkt":
        model = methods.build("mkt", synthetic.config(), pretrained=False)
        model.reference_labels = REFERENCE
    found = classify(folder, labels, model, top_k=2, explain=True)
    plain = classify(folder, labels, model, top_k=2)
    assert found.drop(columns="map").equals(plain)
    data = MojiScenes("test", 4)
    expected = maps_for(model, torch.stack([data[i][0] for i in range(4)]), labels)
    shuffled = pd.concat([found[found["rank"] == 2], found[found["rank"] == 1]]).sample(frac=1, random_state=0)
    for row in shuffled.itertuples():
        assert row.map.shape == (112, 112) and row.map.dtype == np.float16
        own = expected[int(Path(row.image).stem), labels.index(row.label)]
        np.testing.assert_allclose(row.map, own, atol=2e-3)
    clip = methods.build("pre_clip", synthetic.config(), pretrained=False)
    with pytest.raises(ValueError, match="does not score its regions one by one .*map_kind is None.*take grad_cam"):
        classify(folder, ["zebra"], clip, explain=True)


@pytest.mark.parametrize("name", ["pre_clip", "mkt", "biam"])
def test_any_method_and_one_without_a_reference(name, folder):
    other = methods.build(name, synthetic.config(), pretrained=False)
    assert len(classify(folder, ["zebra", "moon"], other)) == 8, "untrained: no reference labels"
    other.reference_labels = REFERENCE
    calibration.attach(other, Calibration((-1.0, 1.0), (-2.0, 2.0), 0.5, 0.1, made_for=fingerprint(other)))
    found = classify(folder, ["zebra", "moon"], other)
    alone = classify(folder, ["moon"], other)
    np.testing.assert_allclose(found.probability[found.label == "moon"], alone.probability, atol=1e-6)


# -- a scorer that is kept ---------------------------------------------------------------------------------------------


def test_a_kept_scorer_embeds_its_labels_once(folder, monkeypatch):
    model = synthetic.model().eval()
    model.reference_labels = REFERENCE
    embedded, real = [], model.label_embeddings
    monkeypatch.setattr(model, "label_embeddings", lambda names: (embedded.extend(names), real(names))[1])
    scorer = LabelScorer(model, ["zebra", "dog"])
    expected = classify(folder, ["zebra", "dog"], model)
    embedded.clear()
    assert classify(folder, scorer).equals(expected) and not embedded
    other = scorer.for_labels(["moon"])
    assert embedded == ["moon"], "the reference vocabulary is not embedded again for another list"
    assert classify(folder, other).equals(classify(folder, ["moon"], model))


def test_a_call_after_training_scores_with_the_new_weights(folder):
    model = synthetic.model()
    model.reference_labels = REFERENCE
    before = classify(folder, ["zebra", "moon"], model)
    with torch.no_grad():
        model.prompt.vectors.mul_(2)
    after = classify(folder, ["zebra", "moon"], model)
    assert not np.allclose(after.score, before.score, atol=1e-5)
    fresh = synthetic.model()
    fresh.load_state_dict(model.state_dict())
    fresh.reference_labels = REFERENCE
    assert classify(folder, ["zebra", "moon"], fresh).equals(after)


@pytest.mark.parametrize(
    ("present", "message"),
    [("owl", "present = 'owl': give a list"), ([None], r"present\[0\] is None"), ([[1]], r"present\[0\] is \[1\]")],
)
def test_what_is_in_pictures_is_given_as_names(present, message):
    with pytest.raises(ValueError, match=message):
        own_thresholds(Image.new("RGB", (8, 8)), present)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "model is an empty text"),
        ("vit-b-16", "did you mean 'ViT-B-16'"),
        ("openai/clip-vit-base-patch16", "CLIP's own are 'ViT-B-16'"),
        ("https://huggingface.co/a/b", "a repository of the hub is hf://a/b"),
    ],
)
def test_names_of_models_as_people_write_them(model, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(model)


@pytest.mark.parametrize("present", [{"a": ["owl"]}, pd.DataFrame({"owl": [1]})])
def test_what_is_in_pictures_is_a_list(present):
    with pytest.raises(ValueError, match="give a list of names for each picture"):
        own_thresholds(Image.new("RGB", (8, 8)), present)


def test_pictures_of_which_nothing_is_named():
    with pytest.raises(ValueError, match="present names nothing in any picture"):
        own_thresholds([Image.new("RGB", (8, 8))] * 2, [[], []])


def test_a_scorer_has_a_model_and_a_device_of_its_own(model):
    scorer = LabelScorer(model, ["zebra"])
    one = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="LabelScorer, which has a model of its own: leave model out"):
        classify(one, scorer, "ViT-B-16")
    with pytest.raises(ValueError, match="leave device out"):
        classify(one, scorer, device="cpu")
    assert len(classify(one, scorer, model)) == 1
    for wrong in (None, "runs/model"):
        with pytest.raises(TypeError, match="give an HRCF or another Method"):
            LabelScorer(wrong, ["zebra"])


def test_a_picture_without_a_file_is_named_by_its_number(model):
    deep = Image.new("I;16", (8, 8))
    with pytest.raises(ValueError, match="^picture 1 has 16-bit or float pixels"):
        classify([Image.new("RGB", (8, 8)), deep], ["zebra"], model)
