"""classify: any list of labels, pictures in any form, scores inside the reference vocabulary, errors that help."""

import inspect

import numpy as np
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib.data.mojiscenes import MojiScenes
from hrcf_lib.predict import classify

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
