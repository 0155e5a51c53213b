"""COCO and VOC from trees in the official formats, whole and with planted faults."""

import csv
import json

import pytest
from official_formats import coco as coco_tree
from official_formats import jpeg, save_json
from official_formats import voc as voc_tree

from hrcf_lib import data
from hrcf_lib.data import table_format
from hrcf_lib.data.official import coco, voc
from hrcf_lib.data.official.checks import label_list

COCO80 = label_list("coco80.txt")


def present(dataset):
    return [[n for n, v in zip(dataset.labels.names, dataset.label_vector(i)) if v > 0] for i in range(len(dataset))]


def skipped(out):
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return [(row["split"], row["item"], row["problem"]) for row in csv.DictReader(file)]


@pytest.fixture
def source(tmp_path):
    return coco_tree(tmp_path / "coco")


def change(source, edit, split="train"):
    """Edit one of the JSON files."""
    path = source / "annotations" / f"instances_{split}2014.json"
    content = json.loads(path.read_text())
    edit(content)
    save_json(path, content)


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco(tmp_path, year):
    out = coco.prepare(coco_tree(tmp_path / "coco", year), tmp_path / "out", year=year)
    train, test = data.load(out, split="train", side=16), data.load(out, split="test")
    assert train.labels.names == COCO80 and list(train.ids) == ["0", "1", "2"] and list(test.ids) == ["10", "11", "12"]
    assert present(train) == present(test) == [[COCO80[0], COCO80[15]], [COCO80[1], COCO80[16]], []]
    assert train.label_vector(2).tolist() == [-1] * 80  # an image without annotations stays
    file = f"train{year}/COCO_train{year}_000000000001.jpg"
    assert train.files[1] == file and (train[1][0] == data.read_image(tmp_path / "coco" / file, 16)).all()
    assert table_format.read_about(out)["splits"]["test"]["official"] == f"val{year}"


def test_coco_48_17(source, tmp_path):
    out = coco.prepare(source, tmp_path / "out", labels="48/17")
    train = data.load(out, split="train")
    assert (train.labels.n_seen, len(train.labels.unseen)) == (48, 17)
    assert train.labels.unseen == label_list("coco_unseen17.txt")
    assert COCO80[15] == "cat" and present(train) == [["person", "cat"], ["bicycle", "dog"], []]
    assert present(data.load(out, split="train", hide_unseen=True)) == [["person"], ["bicycle"], []]
    assert table_format.read_about(out)["notes"][0].startswith("categories left out: traffic light")
    out = coco.prepare(source, tmp_path / "out", labels="48/17", drop_unseen=True)
    assert list(data.load(out).ids) == ["2", "10", "11", "12"] and data.load(out).rows.tolist() == [2, 0, 1, 2]
    out = coco.prepare(source, tmp_path / "out", annotated_only=True)
    assert list(data.load(out).ids) == ["0", "1", "10", "11"]


def test_coco_with_pictures_elsewhere_and_other_categories(tmp_path):
    root = tmp_path / "own"
    jpeg(root / "images" / "é 1.jpg")
    categories = [{"id": 7, "name": "kite"}, {"id": 3, "name": "axolotl"}]
    images = [{"id": 1, "file_name": "é 1.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    content = {"images": images, "annotations": [{"image_id": 1, "category_id": 7}], "categories": categories}
    save_json(root / "instances_val2017.json", content)
    with pytest.raises(ValueError, match="has the category 'axolotl': .*or pass labels='file'"):
        coco.prepare(root, tmp_path / "out", year=2017)
    out = coco.prepare(root, tmp_path / "out", year=2017, labels="file")
    dataset = data.load(out, split="test", side=16)
    assert dataset.labels.names == ("axolotl", "kite") and dataset[0][1].tolist() == [-1, 1]
    assert skipped(out) == [("test", "2", "missing picture")]
    assert table_format.read_about(out)["notes"] == ["instances_train2017.json is missing: no split train"]


def test_the_year_is_that_of_the_files(tmp_path):
    coco_tree(tmp_path / "coco", 2017)
    assert table_format.read_about(coco.prepare(tmp_path / "coco", tmp_path / "out"))["dataset"] == "coco2017"
    coco_tree(tmp_path / "coco", 2014)
    assert table_format.read_about(coco.prepare(tmp_path / "coco", tmp_path / "out"))["dataset"] == "coco2014"
    with pytest.raises(FileNotFoundError, match="holds no instances_train2014.json"):
        coco.prepare(coco_tree(tmp_path / "other", 2017), tmp_path / "out", year=2014)


def test_a_category_that_the_file_does_not_list_is_unknown(source, tmp_path):
    change(source, lambda content: content["categories"].pop(0))  # the last by id: toothbrush
    out = coco.prepare(source, tmp_path / "out")
    assert COCO80[79] == "toothbrush" and data.load(out, split="train").label_vector(2).tolist() == [-1] * 79 + [0]
    assert data.load(out, split="test").label_vector(2).tolist() == [-1] * 80
    assert table_format.read_about(out)["notes"] == [
        "instances_train2014.json lists no category toothbrush: unknown in train"
    ]


def test_in_ones_own_files_ids_may_begin_anew(source, tmp_path):
    def renumber(content):
        for image in content["images"]:
            image["id"] %= 10
        for row in content["annotations"]:
            row["image_id"] %= 10

    change(source, renumber, "val")
    with pytest.raises(ValueError, match="3 image ids are in train and in test: 0, 1, 2"):
        coco.prepare(source, tmp_path / "out")
    test = data.load(coco.prepare(source, tmp_path / "out", labels="file"), split="test")
    assert list(test.ids) == ["0", "1", "2"] and test.files[1] == "val2014/COCO_val2014_000000000011.jpg"
    assert present(test) == [[COCO80[0], COCO80[15]], [COCO80[1], COCO80[16]], []]


COCO_FAULTS = {
    "an image id twice": (lambda c: c["images"][1].update(id=0), "lists the image ids 0 more than once"),
    "a file twice": (
        lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]),
        "lists the files 'COCO_train2014_000000000000.jpg' more than once",
    ),
    "an image of val in train": (lambda c: c["images"][1].update(id=10), "1 image ids are in train and in test: 10"),
    "a file of val in train": (
        lambda c: c["images"][1].update(file_name="COCO_val2014_000000000010.jpg"),
        "1 image files are in train and in test: COCO_val2014_000000000010.jpg",
    ),
    "no file name": (lambda c: c["images"][1].pop("file_name"), r"images\[1\] has no file_name; correct"),
    "no list": (lambda c: c.pop("images"), "has no list 'images': it is not a file of instances"),
    "a renamed category": (
        lambda c: c["categories"][0].update(name="tooth brush"),
        "'tooth brush': did you mean 'tooth",
    ),
    "exchanged categories": (
        lambda c: c["categories"][0].update(id=0),
        "categories by id: line 1 is 'toothbrush', expected 'person'",
    ),
    "a category twice": (lambda c: c["categories"][0].update(name="person"), "lists the categories 'person' more"),
    "a category without name": (
        lambda c: c["categories"][0].update(name=None),
        r"categories\[0\] has no 'id' or no te",
    ),
    "a blank name": (lambda c: c["categories"][0].update(name=" \u200b"), r"categories\[0\] has no 'id' or no text"),
    "no category": (lambda c: c["categories"].clear(), "its list of categories is empty"),
    "categories are null": (lambda c: c.update(categories=None), "has no list 'categories'"),
    "no matching image": (
        lambda c: [row.update(image_id=row["image_id"] + 900) for row in c["annotations"]],
        "6 of 6 annotations belong to no image or no category of the file; the first has the image_id 900, known are 0",
    ),
    "no matching category": (
        lambda c: [row.update(category_id=f"x{row['category_id']}") for row in c["annotations"]],
        "the first has the category_id 'x1', known are 1, 2, 3, and 77 more",
    ),
    "a file outside": (
        lambda c: c["images"][0].update(file_name="../a.jpg"),
        r"images\[0\] has the file_name '../a.jpg'",
    ),
    "an absolute file": (lambda c: c["images"][0].update(file_name="C:\\\\a.jpg"), "which leads outside the folder"),
    "an id that is true": (lambda c: c["images"][1].update(id=True), r"images\[1\] has no id"),
    "an id in two forms": (lambda c: c["images"][1].update(id="0.0"), "lists the image ids 0 more than once"),
    "a category without id": (
        lambda c: c["categories"][0].pop("id"),
        r"categories\[0\] has no 'id' or no text as its 'name'",
    ),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_faults_of_coco_files(source, tmp_path, fault):
    edit, message = COCO_FAULTS[fault]
    change(source, edit)
    with pytest.raises(ValueError, match=message) as error:
        coco.prepare(source, tmp_path / "out")
    assert "instances_train2014.json" in str(error.value) or "train and in test" in str(error.value)
    assert not (tmp_path / "out").exists()


FORMS = {"number": lambda id: id, "float": float, "text": str, "text of a float": lambda id: f" {float(id)}"}


@pytest.mark.parametrize("in_images", FORMS)
@pytest.mark.parametrize("in_annotations", FORMS)
def test_an_id_is_one_in_any_form(source, tmp_path, in_images, in_annotations):
    def rewrite(content):
        for row in (*content["images"], *content["categories"]):
            row["id"] = FORMS[in_images](row["id"])
        for row in content["annotations"]:
            row.update({key: FORMS[in_annotations](row[key]) for key in ("image_id", "category_id")})

    change(source, rewrite)
    train = data.load(coco.prepare(source, tmp_path / "out"), split="train")
    assert present(train) == [[COCO80[0], COCO80[15]], [COCO80[1], COCO80[16]], []]


def test_names_and_files_of_other_writers(source, tmp_path):
    def rewrite(content):
        for row in content["categories"]:
            row["name"] = f" {row['name']}\n"
        for image in content["images"]:
            image["file_name"] = f"train2014\\{image['file_name']}"

    change(source, rewrite)
    train = data.load(coco.prepare(source, tmp_path / "out"), split="train", side=16)
    assert present(train) == [[COCO80[0], COCO80[15]], [COCO80[1], COCO80[16]], []]
    assert train.files[1] == "train2014/COCO_train2014_000000000001.jpg" and train[1][0].shape == (3, 16, 16)


def own(path, file, name="axolotl"):
    """A picture in its own file of annotations."""
    content = {"images": [{"id": 0, "file_name": file}], "categories": [{"id": 0, "name": name}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, content | {"annotations": [{"image_id": 0, "category_id": 0}]})


def test_roboflow_and_cvat(tmp_path):
    robo, cvat = tmp_path / "robo", tmp_path / "cvat"
    for split in ("train", "valid", "test"):
        jpeg(robo / split / "a.rf.1.jpg")
        own(robo / split / "_annotations.coco.json", "a.rf.1.jpg")
    splits = table_format.read_about(out := coco.prepare(robo, tmp_path / "out", labels="file"))["splits"]
    assert list(splits) == ["train", "val", "test"] and table_format.read_about(out)["dataset"] == "coco"
    val = data.load(out, split="val", side=8)
    assert val.files[0] == "valid/a.rf.1.jpg" and present(val) == [["axolotl"]] and val[0][0].shape == (3, 8, 8)
    jpeg(cvat / "images" / "default" / "b.jpg")
    own(cvat / "annotations" / "instances_default.json", "b.jpg")
    train = data.load(coco.prepare(cvat, tmp_path / "out", labels="file"), split="train")
    assert train.files[0] == "default/b.jpg" and present(train) == [["axolotl"]]
    own(cvat / "annotations" / "instances_Train.json", "c.jpg")
    with pytest.raises(ValueError, match="instances_default.json are both of the split train: keep one"):
        coco.prepare(cvat, tmp_path / "other", labels="file")


def test_a_folder_without_annotations_is_not_told_of_2014(tmp_path):
    own(tmp_path / "result.json", "a.jpg")
    with pytest.raises(FileNotFoundError, match="holds no annotations in COCO's form.*there are result.json") as error:
        coco.prepare(tmp_path, tmp_path / "out")
    assert "annotations_trainval2014" not in str(error.value)


def test_few_matches_and_no_annotations_are_told(source, tmp_path):
    change(source, lambda content: content["annotations"].append({"image_id": 0, "category_id": 500}))
    with pytest.warns(UserWarning, match="1 of 7 annotations belong to no image .* category_id 500.*they are skipped"):
        coco.prepare(source, tmp_path / "out")
    change(source, lambda content: content["annotations"].clear())
    with pytest.warns(UserWarning, match="has no annotations: every label of its 3 pictures reads absent"):
        coco.prepare(source, tmp_path / "out")


def test_annotations_of_nothing_are_named(source, tmp_path):
    extra = [{"image_id": 77, "category_id": 1}, {"image_id": 0, "category_id": 500}]
    change(source, lambda content: content["annotations"].extend(extra))
    out = coco.prepare(source, tmp_path / "out")
    n = 6  # annotations of the tree
    assert skipped(out) == [
        ("train", f"annotations[{n}]", "annotation of an unlisted image"),
        ("train", f"annotations[{n + 1}]", "label outside the list"),
    ]
    assert present(data.load(out, split="train"))[0] == [COCO80[0], COCO80[15]]


def test_no_coco(source, tmp_path):
    with pytest.raises(ValueError, match="COCO has no year 2015; known: 2014, 2017"):
        coco.prepare(source, tmp_path / "out", year=2015)
    with pytest.raises(FileNotFoundError, match="no instances_train2017.json.*annotations_trainval2017.zip"):
        coco.prepare(source, tmp_path / "out", year=2017)
    path = source / "annotations" / "instances_train2014.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="instances_train2014.json is not JSON .*truncated"):
        coco.prepare(source, tmp_path / "out")


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_skips_difficult_objects(tmp_path, year):
    home = voc_tree(tmp_path, year)
    out = voc.prepare(tmp_path, tmp_path / "out", year=year)
    train, test = data.load(out, split="train", side=16), data.load(out, split="test")
    assert list(train.ids) == ["000001", "000002"] and train.labels.names == label_list("voc20.txt")
    assert present(train) == [["dog"], []] and present(test) == [[], ["dog"]]
    assert train[0][0].shape == (3, 16, 16) and skipped(out) == []
    assert table_format.read_about(out)["splits"]["train"]["notes"] == {}
    for rule, value in (("unknown", 0), ("present", 1)):
        out = voc.prepare(home, tmp_path / "out", year=year, difficult=rule)
        train, test = data.load(out, split="train"), data.load(out, split="test")
        cat, dog = train.labels.names.index("cat"), train.labels.names.index("dog")
        assert train.label_vector(1)[cat] == value and test.label_vector(1)[dog] == 1


@pytest.mark.parametrize("fault", ["<annotation><object>", '<?xml version="1.0" encoding="none"?><annotation/>', ""])
def test_voc_with_faults(tmp_path, fault):
    home = voc_tree(tmp_path)
    xml = home / "Annotations" / "000001.xml"
    xml.write_text(xml.read_text().replace("dog", "wolf"))
    (home / "Annotations" / "000002.xml").write_text(fault)
    (home / "Annotations" / "000003.xml").unlink()
    (home / "ImageSets/Main/cat_test.txt").write_text("000003 -1\n000004\n")
    out = voc.prepare(tmp_path, tmp_path / "out")
    assert sorted(skipped(out)) == sorted(
        [
            ("train", "000001.xml", "label outside the list"),
            ("train", "000002", "unreadable annotation"),
            ("test", "000003", "unreadable annotation"),
            ("test", "cat_test.txt:2", "unreadable row"),
        ]
    )
    assert list(data.load(out).ids) == ["000001", "000004"] and data.load(out).rows.tolist() == [0, 1]
    assert table_format.read_about(out)["splits"]["train"]["notes"] == {"class files that differ from the XML": 1}


def test_a_class_of_voc_in_another_case_is_the_class(tmp_path):
    xml = voc_tree(tmp_path) / "Annotations" / "000001.xml"
    xml.write_text(xml.read_text().replace("dog", "Dog"))
    out = voc.prepare(tmp_path, tmp_path / "out")
    assert present(data.load(out, split="train")) == [["dog"], []] and skipped(out) == []


def test_one_year_of_voc_is_not_read_as_the_other(tmp_path):
    home = voc_tree(tmp_path, 2012)
    lists = home / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    for source in (tmp_path, home):
        assert table_format.read_about(voc.prepare(source, tmp_path / "out"))["dataset"] == "voc2012"
    with pytest.raises(FileNotFoundError, match="VOC2012 holds no VOC 2007"):
        voc.prepare(home, tmp_path / "out", year=2007)
    voc_tree(tmp_path, 2007)
    assert table_format.read_about(voc.prepare(tmp_path, tmp_path / "out"))["dataset"] == "voc2007"


def test_no_voc(tmp_path):
    home = voc_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no VOC 2012: .*unpack the official archives there"):
        voc.prepare(tmp_path, tmp_path / "out", year=2012)
    with pytest.raises(ValueError, match="unknown rule for difficult objects 'skip'"):
        voc.prepare(tmp_path, tmp_path / "out", difficult="skip")
    lists = home / "ImageSets/Main"
    (lists / "test.txt").write_text("000003\n000001\n")
    with pytest.raises(ValueError, match="1 pictures are in train and in test: 000001"):
        voc.prepare(tmp_path, tmp_path / "out")
    (lists / "test.txt").write_text("000003\n000003\n")
    with pytest.raises(ValueError, match="test.txt lists '000003' more than once"):
        voc.prepare(tmp_path, tmp_path / "out")


def test_names_that_no_file_and_no_text_can_have(source, tmp_path):
    change(source, lambda content: content["images"][0].update(file_name="a\0.jpg"))
    coco.prepare(source, tmp_path / "a")
    assert any(row[2] == "missing picture" for row in skipped(tmp_path / "a"))
    change(source, lambda content: content["categories"][0].update(name="a\ud800"))
    with pytest.raises(ValueError, match="its categories.[0-9]+. is .*, with characters that no text has"):
        coco.prepare(source, tmp_path / "b", labels="file")


def test_pictures_that_come_later_are_found(tmp_path):
    own(tmp_path / "train" / "_annotations.coco.json", "a.jpg")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        coco.prepare(tmp_path, tmp_path / "out", labels="file")
    assert not (tmp_path / "out.part").exists()
    jpeg(tmp_path / "train" / "a.jpg")
    assert len(data.load(coco.prepare(tmp_path, tmp_path / "out", labels="file"))) == 1


def test_objects_of_other_classes_than_vocs_are_told(tmp_path):
    home = voc_tree(tmp_path)
    for path in (home / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<annotation>", '<annotation xmlns="http://x.org">'))
    assert present(data.load(voc.prepare(tmp_path, tmp_path / "namespace"))) == [["dog"], [], [], ["dog"]]
    for path in (home / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace(">dog<", ">tiger<"))
    with pytest.warns(UserWarning, match="Annotations: 3 objects are of none of VOC's 20 classes"):
        voc.prepare(tmp_path, tmp_path / "many")
    for path in (home / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace(">cat<", ">lion<"))
    for _ in range(2):  # the second run finds what the first has written
        with pytest.raises(ValueError, match="4 objects are of none .* of your own write a labels.csv"):
            voc.prepare(tmp_path, tmp_path / "all")
