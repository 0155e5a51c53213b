"""Open Images from tables in the official format: grouping, streaming, faults, and the list of what is missing."""

import csv
import itertools
from collections import Counter

import pytest
from official_formats import image_id, image_table, jpeg, open_images_table

from hrcf_lib import data
from hrcf_lib.data import table_format, table_writer
from hrcf_lib.data.official import open_images
from hrcf_lib.data.official.checks import label_list

SEEN = [mid for mid, _ in label_list("open_images_seen7186.csv")]
UNSEEN = [mid for mid, _ in label_list("open_images_unseen400.csv")]
A, B, C, U = SEEN[0], SEEN[1], SEEN[-1], UNSEEN[0]


def known(dataset, index):
    """mid -> value of the known labels of a picture."""
    y = dataset.label_vector(index).tolist()
    return {mid: int(v) for mid, v in zip(dataset.extras["mids"], y) if v}


def skipped(out):
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


@pytest.fixture
def source(tmp_path):
    """Three tables; in train, images 1 and 2 have labels of ours, image 3 has none."""
    root = tmp_path / "source"
    train = [(1, A, 1), (1, B, 0), (1, U, 1), (2, C, 1), (2, C, 0), (2, U, 0), (2, U, 1), (3, "/m/0other", 1)]
    open_images_table(root, "train", [(image_id(k), mid, v) for k, mid, v in train])
    open_images_table(root, "validation", [(image_id(10), A, 1)])
    open_images_table(root, "test", [(image_id(20), B, 1), (image_id(21), A, 0)])
    return root


def test_labels_by_image(source, tmp_path):
    out = open_images.prepare(source, tmp_path / "out", images=False)
    train = data.load(out, split="train")
    assert list(train.ids) == [image_id(k) for k in (1, 2, 3)]
    assert [known(train, i) for i in range(3)] == [{A: 1, B: -1, U: 1}, {C: -1, U: 1}, {}]  # the last row wins
    assert known(data.load(out, split="train", hide_unseen=True), 0) == {A: 1, B: -1}
    assert [known(data.load(out, split="test"), i) for i in range(2)] == [{B: 1}, {A: -1}]
    assert list(data.load(out).splits) == ["train"] * 3 + ["val"] + ["test"] * 2
    notes = table_format.read_about(out)["splits"]["train"]["notes"]
    assert notes == {"images without any of the labels": 1, "labels beyond the 7,586": 1}
    assert (train.labels.n_seen, len(train.labels.unseen)) == (7186, 400)
    assert train.label_counts()[0][SEEN.index(A)] == 1 and train.label_counts()[1][SEEN.index(B)] == 1
    assert train.positives_per_picture().tolist() == [2, 1, 0]


def test_pictures_of_all_three_sources(source, tmp_path):
    root = tmp_path / "pictures"
    places = {1: "train/{}.jpg", 2: "train_0/{}.jpg", 10: "validation/{}.jpg", 20: "{}.jpg"}
    for k, place in places.items():
        jpeg(root / place.format(image_id(k)), seed=k)
    out = open_images.prepare(source, tmp_path / "out", images=root)
    assert list(data.load(out).files) == [place.format(image_id(k)) for k, place in places.items()]
    assert [row[:3] for row in skipped(out)] == [
        ("train", image_id(3), "missing picture"),
        ("test", image_id(21), "missing picture"),
    ]
    assert data.load(out, split="train").rows.tolist() == [0, 1]


def test_the_list_of_missing_pictures_shrinks_as_they_come_in(source, tmp_path):
    root = tmp_path / "pictures"
    jpeg(root / "train_0" / f"{image_id(2)}.jpg")
    out = open_images.prepare(source, tmp_path / "out", images=root)
    image_table(tmp_path / "source", [image_id(1), image_id(99)])
    rows = list(csv.DictReader(open_images.missing(out, source=tmp_path / "source").open(newline="")))
    assert [(row["split"], row["ImageID"]) for row in rows] == [
        ("train", image_id(1)),
        ("train", image_id(3)),
        ("validation", image_id(10)),
        ("test", image_id(20)),
        ("test", image_id(21)),
    ]
    assert rows[0]["OriginalURL"] == f"https://example.org/{image_id(1)}.jpg" and rows[1]["OriginalURL"] == ""
    for k, place in ((1, "train"), (3, ""), (20, "test"), (21, "test")):
        jpeg(root / place / f"{image_id(k)}.jpg")
    (root / f"{image_id(10)}.jpg").write_bytes(b"")  # an interrupted download
    open_images.missing(out)
    assert (out / "missing.txt").read_text() == f"validation/{image_id(10)}\n"
    assert len(data.load(open_images.prepare(source, tmp_path / "out", images=root))) == 5
    out = open_images.prepare(source, tmp_path / "labels", images=False)
    with pytest.raises(ValueError, match="prepared without pictures: give images="):
        open_images.missing(out)
    (root / "test" / f"{image_id(20)}.jpg").unlink()
    open_images.missing(out, images=root)  # to begin a download: of all images of the table
    assert (out / "missing.txt").read_text() == f"validation/{image_id(10)}\ntest/{image_id(20)}\n"
    with pytest.raises(FileNotFoundError, match="no .*-with-rotation.csv"):
        open_images.missing(out, images=root, source=root)
    (root / "test-images-with-rotation.csv").write_text("id,url\n1,2\n")
    with pytest.raises(ValueError, match="test-images-with-rotation.csv begins with 'id,url', expected the columns"):
        open_images.missing(out, images=root, source=root)


def test_rows_that_cannot_be_read_are_named_and_left_out(source, tmp_path):
    with (source / "train-annotations-human-imagelabels.csv").open("ab") as file:
        file.write(f"{image_id(4)},verification\n".encode())
        file.write(f"{image_id(4)},verification,{A},0.7\n".encode())
        file.write(f"xyz,verification,{A},1\n{image_id(4)},verification,{A},1\r\n\n".encode())
        file.write(f"{image_id(4)},verification,caf\xe9,1\n".encode("latin-1"))
    out = open_images.prepare(source, tmp_path / "out", images=False)
    assert [row[:3] for row in skipped(out)] == [
        ("train", f"train-annotations-human-imagelabels.csv:{line}", "unreadable row") for line in (10, 11, 12, 15)
    ]
    assert "2 cells instead of 4" in skipped(out)[0][3]
    assert known(data.load(out, split="train"), 3) == {A: 1}


def test_labels_that_no_list_describes_are_named(source, tmp_path):
    rows = [f"{mid},name" for mid in (*SEEN, *UNSEEN)] + ['/m/0aaa4,"Ham, egg"']
    (source / "class-descriptions.csv").write_bytes("\r\n".join(rows).encode())
    (source / "classes-trainable.txt").write_text("\n".join(SEEN))
    out = open_images.prepare(source, tmp_path / "out", images=False)
    assert skipped(out) == [("train", image_id(3), "unknown label", "/m/0other")]
    (source / "classes-trainable.txt").write_text("\n".join(SEEN[1:]))
    with pytest.raises(ValueError, match="classes-trainable.txt: 7185 names, expected 7186"):
        open_images.prepare(source, tmp_path / "out", images=False)
    (source / "classes-trainable.txt").unlink()
    (source / "class-descriptions.csv").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match=f"does not describe 1 of the labels, such as {A}"):
        open_images.prepare(source, tmp_path / "out", images=False)


def test_tables_that_are_something_else(source, tmp_path):
    machine = source / "train-annotations-human-imagelabels.csv"
    machine.write_text(f"ImageID,Source,LabelName,Confidence\n{image_id(1)},machine,{A},0.7\n")
    with pytest.raises(ValueError, match="line 2 is a machine label; take the table of human labels"):
        open_images.prepare(source, tmp_path / "out", images=False)
    machine.write_text("ImageID,LabelName\n")
    with pytest.raises(ValueError, match="begins with 'ImageID,LabelName', expected 'ImageID,Source,Label"):
        open_images.prepare(source, tmp_path / "out", images=False)
    assert not (tmp_path / "out").exists()
    for table in source.iterdir():
        table.rename(table.with_name(table.name.replace("human", "machine")))
    with pytest.raises(FileNotFoundError, match="holds no train-annotations-human-imagelabels.csv"):
        open_images.prepare(source, tmp_path / "out", images=False)


def test_a_table_without_a_row_that_can_be_used(source, tmp_path):
    for table in source.iterdir():
        table.write_text("ImageID,Source,LabelName,Confidence\n")
    with pytest.raises(ValueError, match="none of the 0 pictures .*the list is empty.; correct the tables$"):
        open_images.prepare(source, tmp_path / "out", images=False)


def test_an_image_in_two_splits(source, tmp_path):
    open_images_table(source, "validation", [(image_id(2), A, 1)])
    with pytest.raises(ValueError, match=f"image {image_id(2)} is in validation-ann.* and in .*train-ann"):
        open_images.prepare(source, tmp_path / "out", images=False)
    with pytest.raises(ValueError, match=f"image {image_id(2)} is in"):  # also when val is there from before
        open_images.prepare(source, tmp_path / "out", images=False)


def test_a_table_that_is_not_sorted_is_grouped_all_the_same(source, tmp_path):
    rows = [(2, C, 1), (1, A, 1), (2, U, 0), (1, B, 0), (2, C, 0), (1, U, 1), (2, U, 1), (3, "/m/0other", 1)]
    sorted_out = open_images.prepare(source, tmp_path / "sorted", images=False)
    path = open_images_table(source, "train", [(image_id(k), mid, v) for k, mid, v in rows])
    assert open_images.survey(path) == (8, False)
    train = data.load(open_images.prepare(source, tmp_path / "out", images=False), split="train")
    expected = data.load(sorted_out, split="train")
    assert list(train.ids) == list(expected.ids)
    assert [known(train, i) for i in range(3)] == [known(expected, i) for i in range(3)]


def test_the_reader_holds_one_image_at_a_time():
    """Structure, not timing: no more lines are taken from an endless table than those of one image and one more."""
    taken = 0

    def table():
        nonlocal taken
        for k in itertools.count():
            for mid in (A, B, C):
                taken += 1
                yield f"{image_id(k)},verification,{mid},1\n"

    groups = open_images.group(open_images.parse(table(), "endless", None))
    for k in range(100):
        image, labels = next(groups)
        assert image == image_id(k) and labels == {A: 1, B: 1, C: 1} and taken == 3 * (k + 1) + 1


def test_the_writer_holds_a_bounded_number_of_rows(source, tmp_path, monkeypatch):
    monkeypatch.setattr(table_writer, "GROUP", 4)
    monkeypatch.setattr(table_writer, "ENTRIES", 10)
    monkeypatch.setattr(table_writer, "SHARD", 6)
    held = []
    add = table_writer.Split.add

    def watched(self, *arguments):
        result = add(self, *arguments)
        held.append((len(self._rows), sum(len(values) for values, _ in self._lists.values())))
        return result

    monkeypatch.setattr(table_writer.Split, "add", watched)
    open_images_table(source, "train", [(image_id(1000 + k), mid, 1) for k in range(50) for mid in (A, B, C, U)])
    out = open_images.prepare(source, tmp_path / "out", images=False)
    assert max(rows for rows, _ in held) < 4 and max(entries for _, entries in held) < 10
    assert len(list(out.glob("train-*.parquet"))) == table_format.read_about(out)["splits"]["train"]["shards"] == 9
    train = data.load(out, split="train")
    assert list(train.ids) == [image_id(1000 + k) for k in range(50)] and known(train, 49) == {A: 1, B: 1, C: 1, U: 1}


def test_names_are_distinct_for_prompts():
    space, extras = open_images.label_space()
    folded = [name.lower() for name in space.names]
    assert len(set(folded)) == len(folded) == 7586 and len(set(extras["mids"])) == 7586
    display = [" ".join(name.split()) for name in extras["display_names"]]
    changed = [(a, b) for a, b in zip(display, space.names) if a != b]
    shared = [name for name, n in Counter(display).items() if n > 1]
    assert len(shared) == 110 and len(changed) == 117  # 2 names more are equal in lower case
    seen = Counter(extras["display_names"][:7186])
    assert sum(n > 1 for n in seen.values()) == 107 and sum(n for n in seen.values() if n > 1) == 219
    assert {"Lamborghini", "Snowshoe"} <= set(seen) & set(display[7186:])
    assert "Snowshoe" in space.seen and "Snowshoe (sense 2)" in space.unseen
    assert all(b.startswith(a) for a, b in changed)
    assert open_images.distinct_names(["x (sense 2)", "x", "X"]) == ["x (sense 2)", "x", "X (sense 3)"]
