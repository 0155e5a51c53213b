"""A user's labels beside the reference vocabulary: one rule, the text tower's, for all that scores or shows them."""

import warnings

import numpy as np
import pandas as pd
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import methods
from hrcf_lib.apply import onnx, region_maps
from hrcf_lib.apply.grad_cam import grad_cam
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.apply.predict import classify
from hrcf_lib.apply.vocabulary import beside_reference, check_lengths, read_labels
from hrcf_lib.data.mojiscenes.scenes import draw
from hrcf_lib.methods import registry

REFERENCE = ("dog", "polar bear", "tom's hat", "black & white", "café", "bus")
WRITTEN = ["DOG", " Polar \u00a0\tBEAR ", "Tom\u2019s hat", "Black &amp; white", "CAFE\u0301"]  # read as the first five


@pytest.fixture(scope="module")
def model():
    model = synthetic.model().eval()
    model.reference_labels = REFERENCE
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return model


def columns(model, labels):
    words = beside_reference(model, labels)
    return words.names, words.columns


def test_labels_beside_the_reference_vocabulary(model):
    assert columns(model, ["sun", "bus", "a  b"]) == ([*REFERENCE, "sun", "a b"], [6, 5, 7])
    assert columns(model, ["bus"]) == (list(REFERENCE), [5])
    assert columns(synthetic.model(), ["Sun"]) == (["Sun"], [0]), "not trained: no reference"
    assert columns(model, ["Sun", *WRITTEN]) == ([*REFERENCE, "Sun"], [6, 0, 1, 2, 3, 4])
    assert columns(model, ["toms hat", "Stra\u00dfe", "STRASSE"])[1] == [6, 7, 8], "these are other words"
    for wrong in ([], [""], ["sun", "sun "], ["sun", "Sun"], ["it's", "it\u2019s"], "sun"):
        with pytest.raises(ValueError):
            columns(model, wrong)


def test_a_vocabulary_is_read_once(model):
    words = beside_reference(model, ["sun", "BUS"])
    assert beside_reference(model, words) is words and words.columns_of(["BUS"]) == [5]
    with pytest.raises(ValueError, match="no such label in this vocabulary: 'bus'.*known: sun, BUS"):
        words.columns_of(["bus"])


def test_the_first_of_reference_labels_that_are_read_alike():
    twice = synthetic.model()
    twice.reference_labels = ("bus", "Dog", "dog")
    assert columns(twice, ["DOG", "owl"]) == (["bus", "Dog", "dog", "owl"], [1, 3])


def test_labels_that_are_too_long_are_all_named(model):
    with pytest.raises(ValueError, match=r"(?s)'owl owl.*; 'hat hat"):
        check_lengths(model, ["sun", "owl " * 90, "hat " * 90])


def test_a_label_written_otherwise_is_the_same_reference_column_everywhere(model):
    plain, image = list(REFERENCE[:5]), Image.fromarray(draw("test", 15).image)
    found, same = (classify(image, labels, model, top_k=5) for labels in (WRITTEN, plain))
    names = dict(zip(WRITTEN, plain)) | {"Polar BEAR": "polar bear"}  # white space is cleaned
    assert found.assign(label=found["label"].map(names)).equals(same)
    scorer = LabelScorer(model, WRITTEN)
    assert scorer.columns.tolist() == [0, 1, 2, 3, 4] and len(scorer.new) == 0
    assert onnx._scorer(model, WRITTEN, None, True).columns == [0, 1, 2, 3, 4]
    pixels = torch.from_numpy(draw("test", 15).image).permute(2, 0, 1)[None]
    assert torch.equal(region_maps.maps_for(model, pixels, WRITTEN), region_maps.maps_for(model, pixels, plain))
    ours, theirs = (region_maps.clues(model, pixels, labels) for labels in (WRITTEN, plain))
    assert torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("method", ["hrcf", "mkt"])
def test_grad_cam_reads_as_the_text_tower_does(method):
    pytest.importorskip("pytorch_grad_cam")
    model = registry.for_config(methods.configure(method, synthetic.config()), pretrained=False).eval()
    model.reference_labels = REFERENCE
    image = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    maps = [grad_cam(model, image, labels) for labels in (WRITTEN[2:4], REFERENCE[2:4])]
    assert torch.equal(*maps) and maps[0].amax() > 0


# -- files of labels ---------------------------------------------------------------------------------------------------

OWL = ["owl", "polar bear, white", "pizza"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'label\nowl,\n"polar bear, white",\npizza,,\n'),
        ("a.csv", ' Name ,n,\nowl,1\n"polar  bear, white",2\n\n,3\npizza,4,,'),
        ("a.csv", 'id,name,label\n1,x,owl\n2,y,"polar bear, white"\n3,z,pizza\n'),
        ("a.tsv", "label\tn\nowl\t1\npolar bear, white\t2\npizza\t3\n"),
        ("a.JSON", '["owl", " polar bear, white", "pizza"]'),
        ("a.txt", "owl\r\n\r\npolar bear, white \n\u200bpizza\n"),
        ("a.txt", '"owl"\n"polar bear, white"\n"pizza"\n'),
        ("labels", "owl\npolar bear, white\npizza"),
    ],
)
def test_every_form_of_a_file_gives_the_same_names(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_labels(tmp_path / name) == OWL
        if "." in name:
            assert read_labels(str(tmp_path / name)) == OWL


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label\nowl,night\npizza,wolf\n", r"a.csv: line 2 has 2 cells, line 3 has 2 cells instead of 1"),
        ("a.csv", "label,note\nowl,night,a\npizza,wolf,b\n", "line 2 has 3 cells, line 3 has 3 cells instead of 2"),
        ("a.csv", "label,note\nowl\n", "line 2 has 1 cells instead of 2 of the first line .'label,note'.; put"),
        ("a.csv", "label,Label\nowl,pizza\n", "has the columns 'label' and 'Label', of which one is read"),
        ("a.csv", 'label\nowl\n"pizza\nwolf\n', "a.csv, line 3 to 4: .* a quotation mark is not closed"),
        ("a.csv", "label;n\nowl;1\n", "its first line, 'label;n', has semicolons between cells: write commas"),
        ("a.csv", "n\tlabel\n1\towl\n", "has tabs between cells: write commas between cells"),
        ("a.csv", "n,label\n1,owl\nN,Label\n2,pizza\n", "a.csv: line 3 repeats the first line, which names"),
        ("a.csv", "l\0a\0b\0e\0l\0", "has the columns"),
        ("a.csv", "label\no\0w\0l\0\n", "line 2 holds bytes of 0, as in UTF-16: save it"),
        ("a.txt", "o\0w\0l\0\n", "a.txt, line 1: .*, with characters that no text has: save .*a.txt as text in UTF-8"),
        ("a.tsv", "label\tn\nowl\t1\t2\n", "a.tsv: line 2 has 3 cells instead of 2"),
        ("a.json", "[", "a.json is not JSON .*; write a list of names"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.json", '{"labels": ["owl"]}', "a.json: it holds a dict; write a list of names"),
        ("a.json", '["owl", {"name": "pizza"}]', "a.json: item 1 is {'name': 'pizza'}; write a list of names"),
        ("a.json", '["owl", 3]', "a.json: item 1 is 3; write a list of names"),
        ("a.json", '["pizza", "owl\\npizza"]', r"a.json, item 1: 'owl\\npizza': a line end or a tab .* two entries"),
        ("a.json", '["owl\\tpizza"]', r"a.json, item 0: 'owl\\tpizza': a line end or a tab within a name"),
        ("a.csv", 'label,n\nnight,0\n"owl\npizza",1\n', r"a.csv, line 4: 'owl\\npizza': .* split it into two entries"),
        ("a.tsv", 'label\n"owl\tpizza"\n', r"a.tsv, line 2: 'owl\\tpizza': a line end or a tab"),
        ("a.txt", '[\n  "owl",\n  "pizza"\n]', r"a.txt, line 1: '\[': a list, not a name; .* or save it as .json"),
        ("a.txt", "label\tn\nowl\t1\n", "a.txt, line 1, a.txt, line 2: a tab within a name; is it a table.* a.tsv"),
        ("a.xlsx", "PK", "a.xlsx ends in .xlsx: give a file of labels that ends in .txt, .csv, .tsv, .json"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("label\nowl\n", "'label': the name of a column"),
        ("# mine\nowl\n", "'# mine': a comment"),
        ("1\n2\n", "'1', '2': numbers, where names should be"),
        ("1. owl\n2. pizza\n", "'1. owl', '2. pizza': numbers or signs in front of the names"),
        ("- owl\n- pizza\n", "in front of the names"),
        ("n01440764 owl\n", "in front of the names"),
        ("owl|pizza\n", "several names, joined by '|'"),
        ('"owl"\npizza\n', "quotation marks around a name"),
        ("nan\nowl\n", "'nan': a missing name"),
    ],
)
def test_lines_that_look_like_something_else_are_told(tmp_path, text, why):
    (tmp_path / "a.txt").write_text(text)
    with pytest.warns(UserWarning, match=f"a.txt: .*{why}.*; each is read as a label as it stands"):
        assert len(read_labels(tmp_path / "a.txt")) == len(text.splitlines())


def test_a_folder_is_no_file_of_labels(tmp_path):
    with pytest.raises(ValueError, match="is a folder, or a FIFO or a device, not a file of labels"):
        read_labels(tmp_path)


@pytest.mark.parametrize("text", ["owl, pizza, wolf\n", "owl;pizza", "owl,1\npizza,2\n"])
def test_lines_with_commas_are_told(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.warns(UserWarning, match="a.txt: .* holds (commas|semicolons), and is one label, such as 'owl") as told:
        assert len(read_labels(tmp_path / "a.txt")) == len(text.splitlines())
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (None, "labels is None, not a list of names; write them out, such as"),
        (3, "labels is a int, not a list"),
        (pd.DataFrame({"label": ["owl"]}), "labels is a DataFrame, not a list"),
        ("owl, bus", r"write \['owl, bus'\] for one label, \['owl', 'bus'\] for several, or the name of a file"),
        (b"owl", "labels is the single string 'owl'"),
        (["owl", None], r"labels\[1\] is None, not a string"),
    ],
)
def test_labels_that_are_no_list_of_names(labels, what):
    with pytest.raises(ValueError, match=what):
        read_labels(labels)


def test_lists_of_other_kinds():
    for labels in (
        np.array(["owl", "bus"]),
        pd.Series(["owl", "bus"]),
        ("owl", "bus\ufeff"),
        iter(["\u200bowl", "bus"]),
    ):
        assert read_labels(labels) == ["owl", "bus"]
    assert read_labels(["\U0001f469\u200d\U0001f680", "a\u00adb"]) == ["\U0001f469\u200d\U0001f680", "ab"], (
        "emojis stay whole"
    )


def test_an_address_is_no_file_of_labels():
    with pytest.raises(ValueError, match="is the address 'https://x.org/labels.txt', and nothing is downloaded"):
        read_labels("https://x.org/labels.txt")


def test_a_set_of_labels_is_sorted():
    assert read_labels({"owl", "cat", "dog"}) == ["cat", "dog", "owl"]
