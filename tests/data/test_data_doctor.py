"""The report before training: every fault is counted and every bad file is named."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from official_formats import deep, jpeg, truncated
from PIL import Image
from test_data_common import SPACE

from hrcf_lib import data
from hrcf_lib.data import table_writer


@pytest.fixture
def out(tmp_path):
    """A table of good and bad pictures; one more goes missing after it was prepared."""
    images = tmp_path / "images"
    names = ["good", "cut", "cmyk", "tiny", "twin", "gone", "deep", "text", "été", "never", "empty"]
    for k, name in enumerate(names[:-2]):
        jpeg(images / f"{name}.jpg", seed=k, mode="CMYK" if name == "cmyk" else "RGB")
    truncated(images / "cut.jpg")
    jpeg(images / "tiny.jpg", size=(5, 40))
    shutil.copy(images / "good.jpg", images / "twin.jpg")
    shutil.copy(images / "good.jpg", images / "leak.jpg")
    deep(images / "deep.jpg")
    (images / "text.jpg").write_text("no picture")
    (images / "empty.jpg").write_bytes(b"")
    with table_writer.writing(tmp_path / "out", "invented", "somewhere", SPACE, images, {}, {}) as table:
        with table.split("train", "train") as split:
            for k, name in enumerate(names):
                split.add(name, f"{name}.jpg", [] if name == "good" else [k % 2], [2])
        with table.split("test", "test") as split:
            split.add("leak", "leak.jpg", [2], [])
    (images / "gone.jpg").unlink()
    return tmp_path / "out"


def test_report(out, tmp_path):
    report = data.doctor(out, csv=tmp_path / "bad.csv", workers=2)
    bad = {(row.split, row.file): row.problem for row in report.bad.itertuples()}
    assert bad == {
        ("train", "cut.jpg"): "corrupt",
        ("train", "tiny.jpg"): "too small",
        ("train", "gone.jpg"): "missing",
        ("train", "deep.jpg"): "corrupt",
        ("train", "text.jpg"): "corrupt",
        ("train", "twin.jpg"): "same bytes",
        ("test", "leak.jpg"): "in two splits",
        ("train", "never"): "missing picture",
        ("train", "empty"): "empty picture file",
    }
    train = report.counts.loc["train"]
    assert train["pictures"] == 9 and train["left out"] == 2 and train["corrupt"] == 3 and train["missing"] == 1
    assert train["without positives"] == 1 and report.counts.loc["test", "in two splits"] == 1
    assert report.labels["positives"].tolist() == [4, 4, 1] and report.labels["negatives"].tolist() == [0, 0, 9]
    assert report.labels["part"].tolist() == ["seen", "seen", "unseen"] and len(report.per_picture) == 10
    assert not report.healthy and report.decoded
    named = pd.read_csv(tmp_path / "bad.csv")
    assert list(named.columns) == ["split", "file", "problem", "detail"] and len(named) == 9
    assert named[named.file == "deep.jpg"].detail.str.contains("16-bit").all()
    for part in ("3 corrupt, the first: cut.jpg", "left out by prepare: 1 missing picture, 1 empty", "in two splits"):
        assert part in str(report)


def test_a_file_that_may_not_be_read_is_named(out, monkeypatch):
    def refuse(path, *arguments, **options):
        if Path(path).name == "good.jpg":
            raise PermissionError("denied")
        return ours(path, *arguments, **options)

    for place, name in ((Image, "open"), (Path, "read_bytes")):
        with monkeypatch.context() as patch:
            ours = getattr(place, name)
            patch.setattr(place, name, refuse)
            bad = data.doctor(out).bad
        assert len(bad[bad.file == "good.jpg"]) == (name == "open")


def test_one_split_without_decoding(out):
    report = data.doctor(out, split="test", decode=False)
    assert len(report.bad) == 0 and report.healthy and list(report.counts.index) == ["test"] and not report.decoded
    assert "pictures were not decoded" in str(report)


def test_a_dataset_and_a_folder_with_a_csv(tmp_path):
    rows = ["file,labels", "a.png,cat", "b.png,", "gone.png,dog"]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    jpeg(tmp_path / "a.png", seed=1)
    (tmp_path / "b.png").write_bytes(b"")
    report = data.doctor(tmp_path)
    assert report.bad[["file", "problem"]].values.tolist() == [["b.png", "corrupt"], ["gone.png", "missing"]]
    assert report.counts.loc["all", "without positives"] == 1
    with pytest.warns(UserWarning, match="skipped 2 of 3"):
        dataset = data.load(tmp_path, skip_bad=True)
    assert data.doctor(dataset).healthy
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.doctor(tmp_path / "nowhere")


def test_splits_and_images_are_those_of_load(out, tmp_path):
    own = tmp_path / "own"
    jpeg(own / "a.png", seed=1)
    (own / "labels.csv").write_text("file,labels\na.png,cat\n")
    for source in (own, data.load(own)):
        for asked in ({"split": "nonsense"}, {"images": "nowhere"}):
            with pytest.raises(ValueError, match="own is not a prepared table, so it has no splits and no other"):
                data.doctor(source, **asked)
    table = data.load(out)
    report = data.doctor(table, split="test")
    assert list(report.counts.index) == ["test"] and len(report.per_picture) == 1 and report.healthy
    with pytest.raises(ValueError, match="has no split 'tset'; did you mean 'test'"):
        data.doctor(table, split="tset")
    with pytest.raises(ValueError, match="this dataset is loaded already: give load"):
        data.doctor(table, images=tmp_path)


def test_arguments_are_checked_before_a_picture_is_decoded(out, tmp_path, monkeypatch):
    module = sys.modules["hrcf_lib.data.doctor"]  # the package has the function under this name
    monkeypatch.setattr(module, "look_at", lambda *_, **__: pytest.fail("a picture was decoded"))
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        data.doctor(out, csv=tmp_path)
    with pytest.raises(NotADirectoryError, match="about.json is a file, and no folder"):
        data.doctor(out, csv=out / "about.json" / "bad.csv")
    for name, value in [("workers", -1), ("workers", 0), ("workers", "2"), ("least_side", "8"), ("least_side", -1)]:
        with pytest.raises(ValueError, match=f"{name} = {value!r}: give a whole number from"):
            data.doctor(out, **{name: value})


def test_a_table_without_pictures(tmp_path):
    with table_writer.writing(tmp_path / "out", "invented", "somewhere", SPACE, None, {}, {}) as table:
        with table.split("train", "train") as split:
            split.add("a", "a.jpg", [0], [])
    report = data.doctor(tmp_path / "out")
    assert report.healthy and not report.decoded and report.labels["unknown"].tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="prepared without pictures"):
        data.scan(tmp_path / "out")


def test_names_that_differ_in_case_are_told(tmp_path):
    jpeg(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,labels\na.png,Owl|owl|cat\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="differ in case only"):
        report = data.doctor(tmp_path)
    assert "labels that differ in case only: 'Owl', 'owl'; write each in one way" in str(report)


def test_no_other_file_is_written_over(tmp_path):
    (tmp_path / "labels.csv").write_text("file,labels\na.png,cat\n")
    jpeg(tmp_path / "a.png", seed=1)
    with pytest.raises(FileExistsError, match="labels.csv is a file of something else, and would be lost"):
        data.doctor(tmp_path, csv=tmp_path / "labels.csv")
    assert data.load(tmp_path).labels.names == ("cat",)
    for _ in range(2):  # its own are
        data.doctor(tmp_path, csv=tmp_path / "bad.csv")
