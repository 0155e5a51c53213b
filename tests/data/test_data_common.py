"""The common form on disk: what is written is read back, and nothing unfinished looks finished."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from official_formats import jpeg, stopped_before, truncated

from hrcf_lib import data
from hrcf_lib.data import table_format, table_writer
from hrcf_lib.data.images import find_file
from hrcf_lib.data.official import own_folder
from hrcf_lib.data.table import LabelRows
from hrcf_lib.engine.hashes import hash_file
from hrcf_lib.labels import LabelSpace

SPACE = LabelSpace(["cat", "dog"], ["sea"])
ROWS = [("a", [0], [1, 2]), ("b", [1, 2], [0]), ("c", [], []), ("d", [2], [])]  # id, positives, negatives


def write(out, images=None, rows=ROWS, key=(), splits=("train",), stop=None):
    """A table with the same rows in each split; an error after the split ``stop``."""
    with table_writer.writing(
        out, "invented", "somewhere", SPACE, images, dict(key), {"more": 1}, mids=["x", "y", "z"]
    ) as t:
        for name in splits:
            if t.done(name):
                continue
            with t.split(name, f"official {name}", 7) as split:
                for id, positives, negatives in rows:
                    split.add(f"{name} {id}", f"{id}.jpg", positives, negatives)
            if stop == name:
                raise KeyboardInterrupt
    return out


@pytest.fixture
def images(tmp_path):
    for k, (id, _, _) in enumerate(ROWS):
        jpeg(tmp_path / "images" / f"{id}.jpg", seed=k)
    return tmp_path / "images"


def vectors(dataset):
    return [dataset.label_vector(i).tolist() for i in range(len(dataset))]


def test_what_is_written_is_read_back(tmp_path, images):
    out = write(tmp_path / "out", images, splits=("train", "test"))
    dataset = data.load(out, side=16)
    assert dataset.labels == SPACE and dataset.extras == {"mids": ["x", "y", "z"]} and dataset.about["more"] == 1
    assert vectors(dataset) == 2 * [[1, -1, -1], [-1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert list(dataset.splits) == ["train"] * 4 + ["test"] * 4 and dataset.ids[4:6] == ["test a", "test b"]
    assert dataset.rows.tolist() == [0, 1, 2, 3] * 2
    image, y = dataset[3]
    assert (image == data.read_image(images / "d.jpg", 16)).all() and y.tolist() == [0, 0, 1]
    assert len(dataset.skipped) == 0 and dataset.ignored == {}
    with pytest.raises(IndexError, match="picture 8 of 8"):
        dataset[8]
    part = dataset.select("test")
    assert list(part.ids) == [f"test {id}" for id in "abcd"] and vectors(part) == vectors(data.load(out, split="test"))
    with pytest.raises(ValueError, match="has no split 'tset'; did you mean 'test'?"):
        data.load(out, split="tset")
    about = json.loads((out / "about.json").read_text())
    assert about["versions"]["pyarrow"] and about["splits"]["train"] == {
        "official": "official train",
        "expected": 7,
        "listed": 4,
        "rows": 4,
        "positives": 4,
        "negatives": 3,
        "without_positives": 1,
        "shards": 1,
        "hashes": [hash_file(out / "train-00000.parquet")],
        "problems": {},
        "notes": {},
    }


def test_other_labels_than_the_tables(tmp_path, images):
    out = write(tmp_path / "out", images)
    assert vectors(data.load(out, hide_unseen=True)) == [[1, -1, 0], [-1, 1, 0], [0, 0, 0], [0, 0, 0]]
    dataset = data.load(out, ["sea", "kite", "dog", "cat"], hide_unseen=True)
    assert vectors(dataset) == [[-1, 0, -1, 1], [1, 0, 1, -1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert [c.tolist() for c in dataset.label_counts()] == [[2, 0, 1, 1], [1, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"labels outside the label space: 'cat' \(1 times\), 'dog' \(1 times\)"):
        data.load(out, ["sea"])
    dataset = data.load(out, LabelSpace(["kite"], ["sea"]), strict=False)
    assert dataset.ignored == {"cat": 1, "dog": 1} and vectors(dataset)[1] == [0, 1]
    assert dataset.positives_per_picture().tolist() == [0, 1, 0, 1]
    assert data.load(out, hide_unseen=True).positives_per_picture().tolist() == [1, 1, 0, 0]


def test_fingerprint_follows_pictures_labels_and_settings(tmp_path, images):
    out = write(tmp_path / "out", images)
    first = data.load(out).fingerprint()
    assert first == data.load(out).fingerprint()
    found = {first, data.load(out, side=64).fingerprint(), data.load(out, hide_unseen=True).fingerprint()}
    squashed = data.load(out, resize="squash")
    found.add(squashed.fingerprint())
    assert squashed.take([0]).resize == "squash"
    found.add(data.load(write(tmp_path / "out2", images, rows=[("a", [1], []), *ROWS[1:]])).fingerprint())
    jpeg(images / "a.jpg", seed=9, size=(40, 40))
    found.add(data.load(out).fingerprint())
    assert len(found) == 6


def test_streamed_through_datasets(tmp_path, monkeypatch):
    import datasets
    from datasets.distributed import split_dataset_by_node

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(table_writer, "GROUP", 1)
    monkeypatch.setattr(table_writer, "SHARD", 2)
    out = write(tmp_path / "out")
    rows = list(table_format.stream(out, "train"))
    assert [(row["id"], row["positives"], row["negatives"]) for row in rows] == [
        (f"train {i}", p, n) for i, p, n in ROWS
    ]
    parts = [split_dataset_by_node(table_format.stream(out, "train"), k, 2) for k in range(2)]
    assert sorted(row["id"][-1] for part in parts for row in part) == ["a", "b", "c", "d"]
    whole = datasets.load_dataset("parquet", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert whole.column_names == ["id", "file", "split", "row", "positives", "negatives"]
    assert whole.features["row"].dtype == "int32" and whole.features["positives"].feature.dtype == "int32"
    assert [row["file"] for row in whole] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_a_split_whose_pictures_are_all_missing(tmp_path, images):
    for file in images.iterdir():
        file.rename(images / file.name.replace(".jpg", ".png"))
    with table_writer.writing(tmp_path / "out", "invented", "somewhere", SPACE, images, {}, {}) as table:
        for name, ending in (("train", "jpg"), ("test", "png")):
            with table.split(name, name) as split:
                split.add("a", f"a.{ending}", [0], [])
    out = tmp_path / "out"
    assert len(data.load(out)) == 1 and "train: 0 of 1 pictures; 1 missing picture" in table_format.summary(out)
    for read in (lambda: data.load(out, split="train"), lambda: table_format.stream(out, "train")):
        with pytest.raises(
            ValueError, match="no pictures in its split 'train': all 1 were left out .1 missing picture"
        ):
            read()
    report = data.doctor(out)
    assert report.counts.loc["train", ["pictures", "left out"]].tolist() == [0, 1]


def test_an_interrupted_run_leaves_no_table_and_is_continued(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(out, splits=("train", "test"), stop="train")
    assert not out.exists()
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.load(out)
    with pytest.raises(FileNotFoundError, match="is not a prepared folder|has no labels.csv"):
        data.load(tmp_path / "out.part")
    first = (tmp_path / "out.part" / "train-00000.parquet").stat().st_mtime_ns
    write(out, splits=("train", "test"))
    assert (out / "train-00000.parquet").stat().st_mtime_ns == first and len(data.load(out)) == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in out.iterdir()) == [
        "about.json",
        "label_space.json",
        "skipped.csv",
        "test-00000.parquet",
        "train-00000.parquet",
    ]


def test_a_run_killed_at_any_moment_is_completed_to_the_same_bytes(tmp_path, images, monkeypatch):
    """Before each change of the file system in turn, the run ends; the next one runs through."""
    (images / "b.jpg").unlink()  # so that skipped.csv has something to lose
    out, left = tmp_path / "out", 10**6

    def mortal(method):
        def change(self, *arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return method(self, *arguments, **options)

        return change

    for name in ("unlink", "rename", "replace", "mkdir", "open"):
        monkeypatch.setattr(Path, name, mortal(getattr(Path, name)))

    def read():
        return {path.name: path.read_bytes() for path in out.iterdir()}

    write(out, images, splits=("train", "test"))
    whole, killed = read(), 0
    for left_at_start in range(200):
        if left_at_start % 2:  # half of the runs replace an older table
            shutil.rmtree(out)
        left = left_at_start
        try:
            write(out, images, splits=("train", "test"))
            break
        except KeyboardInterrupt:
            killed += 1
        finally:
            left = 10**6
        if out.exists():
            assert read() == whole
        write(out, images, splits=("train", "test"))
        assert read() == whole and b"missing picture" in whole["skipped.csv"]
    assert 20 < killed < 200 and sorted(p.name for p in tmp_path.iterdir()) == ["images", "out"]


def test_what_is_left_of_a_folder_half_removed_is_not_continued(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", splits=("train", "test"), stop="train", key={"difficult": 1})

    def killed(folder, **options):
        next(folder.glob("*.parquet")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(table_writer.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", key={"difficult": 2})
    out = write(tmp_path / "out", splits=("train", "test"), key={"difficult": 1})
    assert len(data.load(out)) == 8


def test_an_interrupted_run_with_other_settings_begins_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", splits=("train", "test"), stop="train", key={"difficult": 1})
    write(tmp_path / "out", splits=("train",), rows=ROWS[:1], key={"difficult": 2})
    assert list(data.load(tmp_path / "out").ids) == ["train a"]


def test_a_run_that_fails_within_a_split_keeps_the_older_table(tmp_path):
    out = write(tmp_path / "out")
    with pytest.raises(ValueError, match="picture 'train a' has label column 3; columns go from 0 to 2"):
        write(out, rows=[("a", [3], [])])
    with pytest.raises(ValueError, match="picture 'train b' has label column 1 twice; list it once"):
        write(out, rows=[("a", [0], []), ("b", [1], [1])])
    assert len(data.load(out)) == 4
    write(out, rows=ROWS[:2])
    assert len(data.load(out)) == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_out_holds_something_else(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")  # an empty folder will do
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(FileExistsError, match="photos holds something other than a prepared table"):
        write(tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_nothing_beside_a_table_is_lost_when_it_is_replaced(tmp_path):
    out = write(tmp_path / "out")
    jpeg(out / "images" / "a.jpg")
    (tmp_path / "out.old").mkdir()
    with pytest.raises(FileExistsError, match="beside the prepared table it holds images, which would be lost; move"):
        write(out, images=out / "images")
    (out / "images").rename(tmp_path / "images")
    (out / "bad.csv").write_text("split,file,problem,detail\n")  # of doctor
    write(out, images=tmp_path / "images")
    assert len(data.load(out)) == 1 and (tmp_path / "out.old").is_dir()


def test_accents_are_composed_or_not(tmp_path):
    jpeg(tmp_path / "images" / "cafe\u0301.jpg")
    assert find_file(tmp_path / "images", "caf\u00e9.jpg")[0] == "cafe\u0301.jpg"
    out = write(tmp_path / "out", tmp_path / "images", rows=[("caf\u00e9", [0], []), ("\u732b", [1], [])])
    assert list(data.load(out).files) == ["cafe\u0301.jpg"] and data.load(out, side=8)[0][0].shape == (3, 8, 8)
    assert "\u732b.jpg" in (out / "skipped.csv").read_text(encoding="utf-8")


def test_damaged_tables_are_named(tmp_path):
    out = write(tmp_path / "out")
    shard, space, about = (out / name for name in ("train-00000.parquet", "label_space.json", "about.json"))
    whole, names, text = shard.read_bytes(), space.read_text(), about.read_text()
    shard.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="train-00000.parquet is damaged .*; prepare the data again"):
        data.load(out)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-00000.parquet, which its about.json counts"):
        data.load(out)
    shard.write_bytes(whole)
    space.write_text(names.replace("cat", "kite"))
    with pytest.raises(ValueError, match="label_space.json was changed: its names have the hash"):
        data.load(out)
    space.write_text(names)
    about.write_text(text.replace('"form": 1', '"form": 2'))
    with pytest.raises(ValueError, match="has form 2, this version reads form 1"):
        data.load(out)
    about.write_text(text[:50])
    with pytest.raises(ValueError, match="about.json cannot be read: it is cut.*; prepare the data again"):
        data.load(out)


def without_hashes(out) -> None:
    """As tables were written before there were any."""
    about = json.loads((out / "about.json").read_text())
    for counts in about["splits"].values():
        del counts["hashes"]
    (out / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize("read", [data.load, lambda out: list(table_format.stream(out, "train"))])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, read):
    out = write(tmp_path / "out")
    shard = out / "train-00000.parquet"
    whole = shard.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 30).astype(int):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="train-00000.parquet is damaged .*; prepare the data again"):
            read(out)
    shard.write_bytes(whole)
    assert len(read(out)) == 4


@pytest.mark.parametrize("old", [False, True])
def test_swapped_shards_are_told_by_their_hashes_and_by_their_split(tmp_path, old):
    out = write(tmp_path / "out", splits=("train", "test"))
    one, other = out / "train-00000.parquet", out / "test-00000.parquet"
    if old:
        without_hashes(out)
        assert len(data.load(out)) == 8, "a table that was stored before is read as before"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    why = "it has rows of another split than train" if old else "its hash is not the one that was stored"
    for read in (data.load, lambda out: list(table_format.stream(out, "train"))):
        with pytest.raises(ValueError, match=f"train-00000.parquet is damaged .*{why}.*; prepare the data again"):
            read(out)


def test_hashes_that_were_edited_are_told(tmp_path):
    out = write(tmp_path / "out")
    about = out / "about.json"
    text = json.loads(about.read_text())
    text["splits"]["train"]["hashes"] *= 2
    about.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="about.json has 2 hashes of 1 shards; prepare the data again"):
        data.load(out)


def test_a_full_disk_names_the_table(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")

    monkeypatch.setattr(table_writer.Split, "flush", fails)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(
        OSError, match=r"train-\*.parquet cannot be written: 0.0 MB are free in .*out.part, or its quota"
    ):
        write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_that_moved_or_broke(tmp_path, images):
    out = write(tmp_path / "out", images)
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no folder .*images with the pictures of .*: pass load\(..., images="):
        data.load(out)
    truncated(tmp_path / "elsewhere" / "b.jpg")
    with pytest.warns(UserWarning, match="skipped 1 of 4 pictures .*b.jpg"):
        dataset = data.load(out, images=tmp_path / "elsewhere", skip_bad=True)
    assert dataset.files == ["a.jpg", "c.jpg", "d.jpg"] and vectors(dataset) == [[1, -1, -1], [0, 0, 0], [0, 0, 1]]
    assert list(dataset.skipped["file"]) == ["b.jpg"]


def test_sparse_and_dense_rows_are_the_same():
    rng = np.random.default_rng(0)
    y = rng.integers(-1, 2, (50, 9)) * (rng.random((50, 9)) < 0.3)
    lists = [(np.concatenate([np.flatnonzero(row == s) for row in y]), (y == s).sum(1)) for s in (1, -1)]
    sparse, dense = LabelRows(50, 9, int((y != 0).sum())), LabelRows(50, 9, 50 * 9)
    dense._dense, sparse._dense = np.zeros((50, 9), np.int8), None
    sparse._codes = np.empty(int((y != 0).sum()), np.int32)
    for rows in (sparse, dense):
        rows.append(*lists)
        assert np.array_equal(np.stack([rows[i] for i in range(50)]), y)
        assert np.array_equal(rows.counts()[0], (y == 1).sum(0)) and np.array_equal(rows.counts()[1], (y == -1).sum(0))
        some = rows.take(np.array([7, 3, 3]))
        assert np.array_equal(np.stack([some[i] for i in range(3)]), y[[7, 3, 3]])
        keep = np.arange(9) < 4
        assert np.array_equal(rows.row_counts(keep), (y[:, :4] == 1).sum(1))


def test_ones_own_folder_as_a_table(tmp_path):
    for split, rows in {"train": ["a.jpg,cat|sea", "b.jpg,"], "test": ["a.jpg,dog"]}.items():
        (tmp_path / "p" / split).mkdir(parents=True)
        (tmp_path / "p" / split / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n")
        jpeg(tmp_path / "p" / split / "a.jpg", seed=len(split))
    splits = {split: tmp_path / "p" / split for split in ("train", "test")}
    out = own_folder.prepare(splits, tmp_path / "out")
    dataset = data.load(out)
    assert dataset.labels.names == ("cat", "dog", "sea") and list(dataset.files) == ["train/a.jpg", "test/a.jpg"]
    assert vectors(dataset) == [[1, -1, 1], [-1, 1, -1]]
    assert "train,train/b.jpg,missing picture,train/b.jpg" in (out / "skipped.csv").read_text()
    (tmp_path / "p/train/label_space.csv").write_text("part,label,annotated\nseen,cat,yes\nunseen,sea,no\n")
    dataset = data.load(own_folder.prepare(splits["train"], tmp_path / "one"), split="train")
    assert vectors(dataset) == [[1, 1]] and dataset.labels.unseen == ("sea",)
    with pytest.raises(ValueError, match="labels outside the label space: 'dog'"):
        own_folder.prepare(splits, tmp_path / "out")
    with pytest.raises(ValueError, match="is not a prepared table, so it has no splits"):
        data.load(splits["train"], split="train")


def test_an_interrupted_folder_with_another_label_space_begins_anew(tmp_path, monkeypatch):
    for split in ("train", "test"):
        jpeg(tmp_path / split / "a.jpg")
        (tmp_path / split / "labels.csv").write_text("file,labels\na.jpg,sea\n")
    splits, space = {split: tmp_path / split for split in ("train", "test")}, tmp_path / "train" / "label_space.csv"
    space.write_text("part,label,annotated\nseen,cat,yes\nunseen,sea,yes\n")
    with stopped_before(monkeypatch, "test"):
        own_folder.prepare(splits, tmp_path / "out")
    space.write_text("part,label,annotated\nseen,cat,no\nunseen,sea,no\n")
    assert vectors(data.load(own_folder.prepare(splits, tmp_path / "out"), split="train")) == [[0, 1]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda about: about.pop("splits"), "about.json lacks splits"),
        (lambda about: about.update(splits=[]), r"its splits are \[\], where splits by name should be"),
        (lambda about: about.update(images=3), "its images are 3, where the path of a folder should be"),
        (lambda about: about["splits"].update({"../x": {}}), "its split '../x' is {}"),
        (lambda about: about["splits"].update(train=3), "its split 'train' is 3"),
        (
            lambda about: about["splits"]["train"].update(rows="x"),
            "rows of its split train is 'x', where a number from 0",
        ),
        (lambda about: about["splits"]["train"].update(shards=10**9), "shards of [0-9]+ rows"),
        (lambda about: about["splits"]["train"].update(shards=10**9, rows=10**9), "lacks train-00001.parquet, "),
        (lambda about: about["splits"]["train"].update(hashes=3), "hashes or problems of its split train"),
    ],
)
def test_kinds_of_what_a_table_says_of_itself(tmp_path, edit, message):
    out = write(tmp_path / "out")
    about = json.loads((out / "about.json").read_text())
    edit(about)
    (out / "about.json").write_text(json.dumps(about))
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*; prepare the data again"):
        data.load(out)


def test_kinds_of_the_label_space_and_of_what_was_skipped(tmp_path):
    out = write(tmp_path / "out")
    (out / "skipped.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="skipped.csv is damaged .*; prepare the data again"):
        data.doctor(out)
    space = json.loads((out / "label_space.json").read_text())
    (out / "label_space.json").write_text(json.dumps(space | {"unseen": 3}))
    with pytest.raises(ValueError, match="label_space.json: unseen is a int, .*; prepare the data again"):
        data.load(out)


def test_sources_of_ones_own_that_are_none(tmp_path):
    for source, message in (
        ({}, "source is empty"),
        ({"../x": tmp_path}, "calls a split '../x': use letters and digits; give split"),
    ):
        with pytest.raises(ValueError, match=message):
            own_folder.prepare(source, tmp_path / "out")
