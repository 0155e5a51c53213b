"""A user's labels beside the reference vocabulary: one rule, the text tower's, for all that scores or shows them."""

import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import methods
from hrcf_lib.apply import onnx, region_maps
from hrcf_lib.apply.grad_cam import grad_cam
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.apply.predict import classify
from hrcf_lib.apply.vocabulary import beside_reference, check_lengths
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
