"""The explorer without a browser: its numbers are those of ``classify``, and what is refused breaks nothing."""

import asyncio
import datetime
import importlib
import io
import sys

import numpy as np
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import methods
from hrcf_lib.apply import calibration
from hrcf_lib.apply.calibration import Calibration, fingerprint
from hrcf_lib.apply.explorer import Explorer, Session, split_names
from hrcf_lib.apply.html import score_span
from hrcf_lib.apply.predict import classify
from hrcf_lib.data.mojiscenes.scenes import draw
from hrcf_lib.model import HRCF

LABELS = ["zebra", "dog", "moon", "rain"]


@pytest.fixture(scope="module")
def model():
    """A calibrated model with random weights."""
    model = synthetic.model()
    model.reference_labels = ("cat", "dog", "bus", "sun", "tree", "boat")
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    calibration.attach(model, Calibration((-0.5, 0.5), (-3.0, 3.0), 0.4, 0.2, made_for=fingerprint(model)))
    return model.eval()


@pytest.fixture
def picture():
    return Image.fromarray(draw("test", 15).image)


@pytest.fixture
def explorer(model):
    return Explorer(model, [15, 21], LABELS)


def counted(monkeypatch, model, name):
    """Calls of a method of the model."""
    calls, plain = [], getattr(model, name)
    monkeypatch.setattr(model, name, lambda *given: calls.append(given) or plain(*given))
    return calls


# -- the session -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "keep"), [(None, None), (0.0, 108), (0.9, 30), (1.0, 140)])
def test_scores_are_those_of_a_fresh_classify(model, picture, lam, keep):
    s = Session(model)
    s.see(picture)
    s.ask(LABELS)
    found = s.table(lam, keep).sort_values("rank", ignore_index=True)
    plain = classify(picture, LABELS, model.under(s.config(lam, keep)), top_k=len(LABELS))
    assert found["label"].tolist() == plain["label"].tolist() and found["rank"].tolist() == [1, 2, 3, 4]
    assert found["score"].tolist() == pytest.approx(plain["score"].tolist(), abs=1e-6)
    assert ("probability" in found) == ((lam, keep) == (None, None)), "calibrated for the model's own settings only"


def test_probabilities_and_answers_are_those_of_classify(model, picture):
    s = Session(model)
    s.see(picture)
    s.ask(LABELS)
    for thresholds, same in ((None, "calibrated"), ({"probability": 0.7}, 0.7)):
        found = s.table(thresholds=thresholds).set_index("label")
        plain = classify(picture, LABELS, model, top_k=4, threshold=same).set_index("label").loc[found.index]
        assert found["probability"].tolist() == pytest.approx(plain["probability"].tolist(), abs=1e-9)
        assert found["answer"].tolist() == plain["answer"].tolist()
        assert found["threshold"].tolist() == plain["threshold"].tolist()
    assert found["probability"].is_monotonic_decreasing


def test_maps_are_those_of_classify(model, picture):
    s = Session(model)
    s.see(picture)
    s.ask(LABELS)
    plain = classify(picture, LABELS, model, top_k=4, explain=True).set_index("label")["map"]
    for name, heat in s.maps().items():
        assert heat == pytest.approx(plain[name].astype("float32"), abs=1e-3)
    assert s.maps() is s.maps()


def test_each_thing_is_embedded_once(model, explorer, monkeypatch):
    pictures, lists = counted(monkeypatch, model, "embed"), counted(monkeypatch, model, "label_embeddings")
    explorer.lam.value, explorer.keep.value, explorer.threshold.value = 0.8, 12, 0.3
    assert not pictures and not lists, "sliders only score anew"
    explorer.picture.value = 1
    assert len(pictures) == 1 and not lists
    explorer.text.value = "zebra, walrus"
    assert len(pictures) == 1 and [given[0] for given in lists] == [["zebra", "walrus"]]
    explorer.text.value = "walrus, moon"
    assert [given[0] for given in lists][1:] == [["walrus", "moon"]], "never the reference vocabulary"


def test_a_copy_under_other_settings_may_lose_its_calibration_alone(model):
    s = Session(model)
    calibration.attach(model.under(s.config(lam=0.9)), None)
    s.ask(LABELS)
    assert s.scorer.curve is not None


def test_a_refused_list_leaves_the_last_one(model, picture):
    s = Session(model)
    s.see(picture)
    s.ask(LABELS)
    before = s.table()
    with pytest.raises(ValueError, match="read alike"):
        s.ask(["zebra", "Zebra"])
    with pytest.raises(FileNotFoundError):
        s.see("nowhere.png")
    assert s.labels == LABELS and s.table().equals(before)


def test_a_model_without_rss_keeps_all(picture):
    model = synthetic.model(rss=False)
    model.reference_labels = ("cat", "dog")
    s = Session(model)
    s.see(picture)
    s.ask(LABELS)
    assert s.keep == 140 and s.kept(140) == 140 and s.config(keep=140) == model.config
    assert s.config(keep=20).rss and s.table(keep=20)["score"].tolist() != s.table()["score"].tolist()


# -- the widgets -------------------------------------------------------------------------------------------------------


def test_a_change_shows(explorer):
    assert explorer._kind == "probability" and "dog" in explorer.html and explorer.view.value == explorer.html
    explorer.text.value = "walrus, dog"
    assert set(explorer.found["label"]) == {"walrus", "dog"} and "zebra" not in explorer.html
    before = explorer.found
    explorer.lam.value = 0.9
    assert explorer._kind == "score" and "Reset" in explorer.status.value
    assert explorer.threshold.description == "Threshold of score"
    explorer.reset.click()
    assert explorer.found.equals(before) and explorer.threshold.value == pytest.approx(0.4)


def test_the_threshold_moves_answers_and_stays_for_its_kind(explorer):
    explorer.threshold.value = 0.0
    assert explorer.found["answer"].eq("yes").all() and explorer.html.count("&#10003;") == 4
    explorer.threshold.value = 1.0
    assert explorer.found["answer"].eq("no").all()
    explorer.lam.value = 0.9
    assert explorer.threshold.value != 1.0, "a threshold of scores is another"
    explorer.lam.value = explorer.session.lam
    assert explorer.threshold.value == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog, Dog", "read alike by the text tower"),
        ("dog " * 40, "shorten it"),
        ("dog, hrcfquux", "was never trained on"),
        (" , \n", "no label yet"),
    ],
)
def test_refused_labels_leave_a_message_and_the_last_result(text, message):
    explorer = Explorer(None, [15], "owl, night")
    before = explorer.html
    explorer.text.value = text
    assert message in explorer.error and message in explorer.message.value
    assert explorer.html == before and "Traceback" not in explorer.message.value
    explorer.lam.value = 0.7
    assert explorer.html != before and message in explorer.error, "sliders work on; the text is still refused"
    explorer.text.value = "owl\nbus,sea"
    assert explorer.error == "" and explorer.message.value == ""
    assert set(explorer.found["label"]) == {"owl", "bus", "sea"}


def test_messages_are_escaped(explorer):
    explorer.text.value = "<b>x</b>, <B>x</b>"
    assert "<b>" not in explorer.message.value and "&lt;b&gt;" in explorer.message.value


def test_names_are_escaped(model):
    explorer = Explorer(model, [15], ["<script>x</script>"])
    assert "<script" not in explorer.html and "&lt;script&gt;" in explorer.html


def test_pictures_by_path_and_upload(explorer, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    before = explorer.html
    explorer.picture.value = None
    assert "no picture of your own yet" in explorer.error and explorer.html == before
    explorer.path.value = str(tmp_path / "nowhere.png")
    assert "correct the path" in explorer.error and explorer.html == before
    explorer.path.value = f'"{tmp_path / "red.png"}"'
    assert explorer.error == "" and "red.png" in explorer.html and explorer.picture.value is None
    red = explorer.found
    explorer.picture.value = 0
    assert "MojiScenes test 15" in explorer.html and not explorer.found.equals(red)
    with io.BytesIO() as file:
        Image.new("RGB", (50, 60), "red").save(file, "PNG")
        content = file.getvalue()
    upload = {"type": "image/png", "size": len(content), "last_modified": datetime.datetime(2025, 1, 1)}
    explorer.upload.set_trait("value", ({"name": "broken.png", "content": b"no picture", **upload},))
    assert "broken.png cannot be read as a picture" in explorer.error
    explorer.upload.set_trait("value", ({"name": "cut.png", "content": content[:90], **upload},))
    assert "cut.png cannot be read as a picture" in explorer.error and "MojiScenes test 15" in explorer.html
    explorer.upload.set_trait("value", ({"name": "own.png", "content": content, **upload},))
    assert explorer.error == "" and "own.png" in explorer.html
    assert explorer.found["score"].tolist() == pytest.approx(red["score"].tolist(), abs=1e-4)


def test_a_fault_of_the_library_is_shown_too(explorer, monkeypatch):
    monkeypatch.setattr(explorer.session, "table", lambda *settings: 1 / 0)
    before = explorer.html
    explorer.lam.value = 0.8
    assert "ZeroDivisionError" in explorer.error and explorer.html == before


def test_own_model_folder_and_other_methods(tmp_path):
    own = HRCF(synthetic.config(lam=0.3, keep=77))
    own.reference_labels = ("cat", "dog", "bus")
    explorer = Explorer(own.save_pretrained(tmp_path / "own"), [15], "owl, dog")
    assert explorer.lam.value == 0.3 and explorer.keep.value == 77 and "77 of 140" in explorer.status.value
    assert explorer._kind == "score" and "has no calibration" in explorer.status.value
    clip = methods.build("pre_clip", synthetic.config(), pretrained=False)
    clip.reference_labels = ("cat", "dog")
    plain = Explorer(clip, [15], LABELS)
    assert plain.lam.disabled and plain.keep.disabled and "no maps of" in plain.status.value
    assert plain._kind == "score" and 'tabindex="0"' not in plain.html
    assert plain.threshold.min <= plain.found["score"].min() and plain.found["score"].max() <= plain.threshold.max
    mkt = methods.build("mkt", synthetic.config(), pretrained=False)
    mkt.reference_labels = ("cat", "dog")
    other = Explorer(mkt, [15], LABELS)
    assert not other.lam.disabled and other.keep.disabled and "data:image/png" in other.html
    with pytest.raises(FileNotFoundError, match="there is no folder .*other here: correct the path"):
        Explorer(tmp_path / "other", [15])


def test_of_a_long_list_the_best_labels_are_shown(model):
    explorer = Explorer(model, [15], [f"thing {i}" for i in range(30)], limit=5)
    assert explorer.html.count("<li") == 5 and "and 25 labels of lower score" in explorer.html
    assert len(explorer.found) == 30


def test_what_is_shown_needs_nothing_else_and_the_keyboard_is_enough(explorer):
    page = explorer.html
    assert "http" not in page and "<script" not in page and " on" not in page.split("</style>")[1].replace(" one", "")
    assert page.count('<li class="no" aria-label=') + page.count('<li class="yes" aria-label=') == 4
    assert page.count('tabindex="0" data-lm-suppress-shortcuts="true"') == 4
    assert "li:focus .map" in page and "li:hover .map" in page


def test_where_there_are_no_widgets_it_is_html(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == explorer.html and "Explorer of HRCF" in bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_bad_beginnings_are_errors(model):
    with pytest.raises(ValueError, match="limit = 0"):
        Explorer(model, limit=0)
    with pytest.raises(ValueError, match="list of images is empty"):
        Explorer(model, [])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Explorer(model, ["nowhere.png"])


def test_the_extra_is_named_where_ipywidgets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "hrcf_lib.apply.explorer")
    with pytest.raises(ImportError, match=r"hrcf\[notebooks\]"):
        importlib.import_module("hrcf_lib.apply.explorer")


def test_texts_and_spans():
    assert split_names(" owl ,, night\nbus\r\n") == ["owl", "night", "bus"]
    assert score_span(torch.tensor([-0.2, 0.9])) == (0, 1) and score_span(torch.tensor([-2.5, 30.2])) == (-3, 31)


def test_a_list_of_labels_is_taken_as_it_is(model):
    explorer = Explorer(model, [15], ["owl, night", "wolf"], limit=np.int64(3))
    assert explorer.session.labels == ["owl, night", "wolf"]
    explorer.text.value += ", zebra"
    assert explorer.session.labels == ["owl, night", "wolf", "zebra"], "and what is shown reads the same again"
    assert split_names('5" disk, "a, b",c\n"d') == ['5" disk', "a, b", "c", "d"]


def test_an_upload_is_opened_as_a_file_is(explorer):
    at = {"type": "image/png", "size": 9, "last_modified": datetime.datetime(2025, 1, 1)}
    with io.BytesIO() as file:
        Image.new("RGBA", (112, 112), (200, 0, 0, 0)).save(file, "PNG")
        explorer.upload.set_trait("value", ({"name": "clear.png", "content": file.getvalue(), **at},))
    assert explorer.error == "" and "clear.png" in repr(explorer)
    white = Session(explorer.session.model)
    white.see(Image.new("RGB", (112, 112), "white"))
    assert torch.equal(explorer.session.e_g, white.e_g)
    explorer.upload.set_trait("value", ({"name": "owl.png", "content": b"%!PS-Adobe-3.0 EPSF-3.0\n", **at},))
    assert "owl.png cannot be read as a picture (this is PostScript" in explorer.error


def test_a_comma_takes_the_labels_at_once_in_a_kernel_too(model, picture):
    async def type_labels():
        explorer = Explorer(model, [picture], "zebra")
        taken = []
        for text in ("zebra, dog", "zebra, dog,"):  # the first waits for a pause
            explorer.text.value = text
            taken.append(len(explorer.session.labels))
        return taken

    assert asyncio.run(type_labels()) == [1, 2]
