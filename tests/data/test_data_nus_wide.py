"""NUS-WIDE from trees in the official format, whole and with planted faults."""

import csv
import json
import os
import shutil
import sys

import numpy as np
import pytest
from official_formats import jpeg, nus_wide, stopped_before

from hrcf_lib import data
from hrcf_lib.data import table_format
from hrcf_lib.data.official.nus_wide import RowOrderError, TagRows, prepare

LISTS = "ImageList/Imagelist.txt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tree without faults; tests that change files take ``tree``."""
    root = tmp_path_factory.mktemp("nus") / "source"
    return root, nus_wide(root)


@pytest.fixture
def tree(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "source")
    return tmp_path / "source", whole[1]


def skipped(out):
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return [(row["split"], row["item"], row["problem"]) for row in csv.DictReader(file)]


def edit(path, change):
    """Rewrite a text file, ``change`` taking and giving a list of lines."""
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def test_rows_labels_and_pictures_belong_together(whole, tmp_path):
    root, truth = whole
    out = prepare(root, tmp_path / "out")
    for split in ("train", "test"):
        dataset = data.load(out, split=split, side=16)
        files = [truth["files"][i] for i in truth[split]]
        assert list(dataset.files) == list(dataset.ids) == files and set(dataset.splits) == {split}
        assert dataset.rows.tolist() == list(range(len(files)))
        y = np.stack([dataset.label_vector(i).numpy() for i in range(len(dataset))])
        assert np.array_equal(y, truth["y"][truth[split]])
        image, labels = dataset[1]
        assert image.shape == (3, 16, 16) and labels.shape == (1006,)
        assert (image == data.read_image(root / "Flickr" / files[1], 16)).all()
    space = dataset.labels
    assert (space.n_seen, len(space.unseen)) == (925, 81) and space.unseen[0] == "airport" and "cats" in space.seen
    about = json.loads((out / "about.json").read_text(encoding="utf-8"))
    assert about["splits"]["test"]["expected"] == 107_859 and about["splits"]["test"]["rows"] == 8
    assert about["problems"] == {} and about["notes"] == [] and skipped(out) == []
    assert "test: 8 of 8 pictures, 107,859 published" in table_format.summary(out)


def test_unix_line_ends_and_other_prefixes(tmp_path):
    """Archives unpack with or without their top folder; a second copy of the same file does no harm."""
    truth = nus_wide(tmp_path / "a", n=8, end="\n")
    (tmp_path / "a" / "Groundtruth" / "AllLabels").rename(tmp_path / "a" / "AllLabels")
    shutil.copy(tmp_path / "a/ConceptsList/Concepts81.txt", tmp_path / "a/concepts81.txt")
    dataset = data.load(prepare(tmp_path / "a", tmp_path / "out"), split="train")
    assert list(dataset.files) == [truth["files"][i] for i in truth["train"]]
    (tmp_path / "a/concepts81.txt").write_text("airport\n")
    with pytest.raises(ValueError, match="different files named Concepts81.txt: .*; keep the one of the archive"):
        prepare(tmp_path / "a", tmp_path / "out2")


def test_val_is_the_tail_of_train(whole, tmp_path):
    root, truth = whole
    out = prepare(root, tmp_path / "out", val_share=0.25)
    files = [truth["files"][i] for i in truth["train"]]
    assert list(data.load(out, split="train").files) == files[:12]
    assert list(data.load(out, split="val").files) == files[12:]
    assert list(data.load(out).splits) == ["train"] * 12 + ["val"] * 4 + ["test"] * 8
    with pytest.raises(ValueError, match="val_share = 1"):
        prepare(root, tmp_path / "out", val_share=1)


def test_labels_alone(whole, tmp_path):
    dataset = data.load(prepare(whole[0], tmp_path / "out", images=False), split="test")
    assert len(dataset) == 8 and dataset.label_vector(0).shape == (1006,)
    with pytest.raises(FileNotFoundError, match="prepared without pictures; pass load"):
        dataset[0]


def test_train_and_test_tags_in_place_of_all_tags(tree, tmp_path):
    root, truth = tree
    rows = (root / "NUS_WID_Tags/AllTags1k.txt").read_text().splitlines()
    (root / "NUS_WID_Tags/AllTags1k.txt").unlink()
    for split in ("train", "test"):
        text = "\n".join(rows[i] for i in truth[split]) + "\n"
        (root / f"NUS_WID_Tags/{split.title()}_Tags1k.dat").write_text(text)
    dataset = data.load(prepare(root, tmp_path / "out"), split="test")
    y = np.stack([dataset.label_vector(i).numpy() for i in range(len(dataset))])
    assert np.array_equal(y, truth["y"][truth["test"]])


def test_a_recrawl_with_missing_empty_and_placeholder_pictures(tree, tmp_path):
    root, truth = tree
    gone, empty, sample = (truth["files"][i] for i in (0, 1, 5))
    copies = [truth["files"][i] for i in (2, 3, 4)]
    (root / "Flickr" / gone).unlink()
    (root / "Flickr" / empty).write_bytes(b"")
    for file in copies:
        jpeg(root / "Flickr" / file, seed=99)
    unavailable = jpeg(tmp_path / "unavailable.jpg", seed=77)
    jpeg(root / "Flickr" / sample, seed=77)
    out = prepare(root, tmp_path / "out", placeholders=[unavailable])
    assert sorted(skipped(out)) == sorted(
        [("train", gone, "missing picture"), ("train", empty, "empty picture file"), ("test", sample, "placeholder")]
        + [("test" if file == copies[0] else "train", file, "placeholder") for file in copies]
    )
    dataset = data.load(out, split="train")
    assert dataset.rows.tolist() == list(range(4, 16))  # rows of the official list, not of what is left
    assert np.array_equal(dataset.label_vector(0).numpy(), truth["y"][truth["train"][4]])
    assert dataset.about["problems"] == {"missing picture": 1, "empty picture file": 1, "placeholder": 4}
    assert "train: 12 of 16 pictures" in table_format.summary(out)


def test_a_photograph_stored_twice_is_no_placeholder_and_has_two_rows(tree, tmp_path):
    root, truth = tree
    old, twin = truth["files"][1], "zebra/9999_1000.jpg"  # photo 1000 is also harbor/0000_1000.jpg
    for name in ("Imagelist", "TrainImagelist"):
        edit(root / f"ImageList/{name}.txt", lambda rows: [r.replace(old.replace("/", "\\"), twin) for r in rows])
    (root / "Flickr" / old).rename(root / "Flickr" / twin)
    shutil.copy(root / "Flickr" / truth["files"][0], root / "Flickr" / twin)
    out = prepare(root, tmp_path / "out")
    assert {truth["files"][0], twin} <= set(data.load(out).ids) and skipped(out) == []
    assert table_format.read_about(out)["notes"] == [
        "1 photo ids have more than one row; folder and file tell rows apart"
    ]


def test_no_pictures_at_all(whole, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: correct images, or give images=False"):
        prepare(whole[0], tmp_path / "out", images=tmp_path / "nowhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="none of the 24 pictures .*24 missing picture; the first: harbor.*elsewhere"):
        prepare(whole[0], tmp_path / "out", images=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()
    nus_wide(tmp_path / "tables", n=4, pictures=False)
    with pytest.raises(FileNotFoundError, match="holds no folder of pictures .Flickr.*: give images=<folder>"):
        prepare(tmp_path / "tables", tmp_path / "out")


def swap(rows):
    """Exchange the labels of the pictures in folders harbor and zebra."""
    return [row for i in range(0, len(rows), 4) for row in (rows[i + 1], rows[i], rows[i + 2], rows[i + 3])]


FAULTS = {
    "Imagelist lacks a row": (LISTS, lambda r: r[:-1], "TestImagelist.txt lists 1 pictures that Imagelist.txt does"),
    "labels lack a row": (
        "Groundtruth/AllLabels/Labels_dog.txt",
        lambda r: r[:-1],
        "Labels_dog.txt has 23 rows, Imagelist.txt has 24: they must be of one release",
    ),
    "train labels lack a row": (
        "Groundtruth/TrainTestLabels/Labels_dog_Train.txt",
        lambda r: r[1:],
        "Labels_dog_Train.txt has 15 rows, TrainImagelist.txt has 16",
    ),
    "tags lack a row": (
        "NUS_WID_Tags/AllTags1k.txt",
        lambda r: r[:-1],
        "AllTags1k.txt has 23 rows, Imagelist.txt has 24",
    ),
    "a cell that is no label": (
        "Groundtruth/AllLabels/Labels_dog.txt",
        lambda r: [*r[:3], "2", *r[4:]],
        "Labels_dog.txt, line 4 is '2'; labels are 0 or 1",
    ),
    "a short row of tags": (
        "NUS_WID_Tags/AllTags1k.txt",
        lambda r: [r[0][:100], *r[1:]],
        "AllTags1k.txt, line 1 has 50 cells, expected 1000 of 0 or 1",
    ),
    "a concept too few": (
        "ConceptsList/Concepts81.txt",
        lambda r: r[1:],
        "Concepts81.txt: 80 names, expected 81",
    ),
    "another concept": (
        "ConceptsList/Concepts81.txt",
        lambda r: ["airports", *r[1:]],
        "Concepts81.txt: line 1 is 'airports', expected 'airport'",
    ),
    "a tag too few": (
        "NUS_WID_Tags/TagList1k.txt",
        lambda r: [x for x in r if x != "nature"],
        "TagList1k.txt without the concepts of Concepts81.txt: 924 names, expected 925",
    ),
    "a tag twice": ("NUS_WID_Tags/TagList1k.txt", lambda r: [*r[:-1], r[-2]], "names '.*' more than once"),
    "a picture twice": (LISTS, lambda r: [*r, r[0]], "Imagelist.txt lists 'harbor/0000_1000.jpg' more than once"),
    "an empty line": (LISTS, lambda r: [r[0], "", *r[1:]], "Imagelist.txt, line 2 is empty"),
    "a test picture in train": (
        "ImageList/TrainImagelist.txt",
        lambda r: [*r, "dogs_at_play/0000_1002.jpg"],
        "1 pictures are in train and in test: dogs_at_play/0000_1002.jpg",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tree, tmp_path, fault):
    path, change, message = FAULTS[fault]
    edit(tree[0] / path, change)
    with pytest.raises(ValueError, match=message):
        prepare(tree[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_in_another_order_than_the_pictures(tree, tmp_path):
    root, _ = tree
    for path in (root / "Groundtruth/AllLabels").iterdir():
        edit(path, swap)
    with pytest.raises(RowOrderError, match="of the 6 pictures in folder zebra only 0% have the label zebra .* not in"):
        prepare(root, tmp_path / "out")
    with pytest.raises(AssertionError):
        prepare(root, tmp_path / "out")


def test_train_test_labels_must_be_all_labels_reindexed(tree, tmp_path):
    root, _ = tree
    edit(root / "Groundtruth/TrainTestLabels/Labels_dog_Test.txt", lambda r: [str(1 - int(r[0])), *r[1:]])
    with pytest.raises(RowOrderError, match="Labels_dog_Test.txt, line 1 is ., but Labels_dog.txt, line 3 is .*1 such"):
        prepare(root, tmp_path / "out")
    shutil.rmtree(root / "Groundtruth/TrainTestLabels")
    out = prepare(root, tmp_path / "out")
    assert "162 files of TrainTestLabels are missing and were not compared" in table_format.read_about(out)["notes"][0]


@pytest.mark.parametrize("name", [LISTS, "NUS_WID_Tags/TagList1k.txt", "Groundtruth/AllLabels/Labels_dog.txt"])
def test_a_file_of_the_download_is_missing(tree, tmp_path, name):
    root, _ = tree
    (root / name).unlink()
    (root / "ImageList.zip").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=f"holds no {name.split('/')[-1]}.*part of .*not unpacked yet: ImageList"
    ):
        prepare(root, tmp_path / "out")


def test_names_in_latin_1(tree, tmp_path):
    """In a list they are an error that names the line; a file of such a name beside the official ones does no harm."""
    root, _ = tree
    if sys.platform == "linux":  # elsewhere file systems refuse the name
        (root / os.fsdecode("caf\xe9.txt".encode("latin-1"))).write_text("notes")
    assert len(data.load(prepare(root, tmp_path / "out"))) == 24
    path = root / LISTS
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(ValueError, match="Imagelist.txt, line 4 is not text in UTF-8 .*, or save it as UTF-8"):
        prepare(root, tmp_path / "out")


def test_linked_folders_are_entered_once(whole, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("ImageList", "ConceptsList", "Groundtruth", "NUS_WID_Tags", "Flickr"):
        (tmp_path / "links" / name).symlink_to(whole[0] / name)
    (tmp_path / "links" / "up").symlink_to(tmp_path / "links")
    assert len(data.load(prepare(tmp_path / "links", tmp_path / "out"))) == 24


def test_an_interrupted_run_is_continued_below_its_source(tree, monkeypatch):
    root, _ = tree
    out = root / "prepared"
    with stopped_before(monkeypatch, "test"):
        prepare(root, out)
    (root / "notes.txt").write_text("not of the download")
    before = (root / "prepared.part" / "train-00000.parquet").stat().st_mtime_ns
    prepare(root, out)
    assert (out / "train-00000.parquet").stat().st_mtime_ns == before and len(data.load(out)) == 24


def test_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: give the one that the official archives"):
        prepare(tmp_path / "nowhere", tmp_path / "out")


def test_rows_of_tags_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "tags.txt"
    path.write_bytes(b"0\t1\t1\t\r\n1\t0\t0\t\r\n\r\n")
    rows = TagRows(path, 2, "list", columns=3)
    assert len(rows) == 2 and rows[1].tolist() == [1, 0, 0] and rows[0].tolist() == [0, 1, 1]
    path.write_bytes(b"0 1 1 \n1 0 0")  # no line end after the last row
    assert TagRows(path, 2, "list", columns=3)[1].tolist() == [1, 0, 0]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="tags.txt has 0 rows, list has 2"):
        TagRows(path, 2, "list", columns=3)
