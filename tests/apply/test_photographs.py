"""Photographs: CLIP as it comes scores them by its name, and a model of the mini VLP says that it knows drawings."""

import warnings

import clip_files
import golden_clip
import huggingface_hub
import open_clip
import pytest
import skimage.data
import synthetic
import tiny_resnet
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.testing import assert_close

from hrcf_lib import methods
from hrcf_lib.apply import fine_tune
from hrcf_lib.apply.explorer import Session
from hrcf_lib.apply.photographs import SIGN, Watch, is_photograph
from hrcf_lib.apply.predict import classify, load_model, plain_clip
from hrcf_lib.data import read_image
from hrcf_lib.data.mojiscenes import draw

NAMES = ["cat", "polar bear", "bus"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photographs (public domain and CC0) as files."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    return folder


# CLIP as it comes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tiny CLIP as a model of open_clip, and its weights in the form of OpenAI's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "golden", golden_clip.CONFIG)
        tiny_resnet.enter(patch)
        yield clip_files.openai(golden_clip.state(), tmp_path_factory.mktemp("clip") / "ViT-B-16.pt", half=False)


@pytest.fixture(scope="module")
def plain(checkpoint):
    return plain_clip("golden", str(checkpoint))


def test_scores_are_the_cosines_of_open_clips_own_embeddings(plain, photos):
    found = classify(photos, NAMES, plain, explain=True)
    assert found.columns.tolist() == ["image", "label", "score", "rank", "map"]
    model, tokenizer = plain.vlp.model, open_clip.get_tokenizer("golden")
    with torch.no_grad():
        texts = [tokenizer([text(name) for text in open_clip.SIMPLE_IMAGENET_TEMPLATES]) for name in NAMES]
        t = torch.stack([model.encode_text(own).mean(dim=0) for own in texts])
        images = torch.stack([read_image(path, 56) for path in sorted(photos.glob("*.jpg"))])
        s = normalize(model.encode_image(plain.vlp.normalise(images))) @ normalize(t).T
    for (_, rows), row in zip(found.groupby("image"), s):
        scores = rows.set_index("label")["score"]
        assert_close(torch.tensor(scores[NAMES].tolist()), row, rtol=1e-4, atol=1e-5)
    assert all(one.shape == (56, 56) and one.max() == 1 and one.min() == 0 for one in found["map"])


def test_a_label_has_the_same_score_in_any_list(plain, photos):
    one = classify(photos, ["cat"], plain)["score"]
    all_three = classify(photos, NAMES, plain).query("label == 'cat'")["score"]
    assert one.tolist() == pytest.approx(all_three.tolist())


def test_the_name_alone_takes_openais_weights(checkpoint, photos, monkeypatch):
    asked = []
    monkeypatch.setattr("hrcf_lib.vlp.find_weights", lambda *names: asked.append(names) or checkpoint)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "golden", {"ours": {"url": ""}, "openai": {"url": ""}})
    plain_clip.cache_clear()
    assert len(classify(photos, NAMES, model="golden")) == 6 and asked == [("golden", "openai")]
    assert load_model("golden") is not load_model("golden") and len(asked) == 1, "read once, and a copy of one's own"
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["golden"], "openai")
    plain_clip.cache_clear()
    assert load_model("golden") and asked[-1] == ("golden", "ours")
    plain_clip.cache_clear()


def test_a_folder_of_that_name_goes_first(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthetic.model().save_pretrained("golden")
    (tmp_path / "golden" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="golden.config.json is not a config of save_pretrained"):
        load_model("golden")


def test_it_is_saved_and_loaded_as_any_method(plain, checkpoint, photos, tmp_path):
    again = methods.load(plain.save_pretrained(tmp_path))
    found, expected = (classify(photos, NAMES, model, explain=True) for model in (again, plain))
    assert found.drop(columns="map").equals(expected.drop(columns="map"))
    assert all((a == b).all() for a, b in zip(found["map"], expected["map"]))


def test_a_resnet_shows_its_positions(checkpoint, photos, tmp_path):
    made = plain_clip(tiny_resnet.NAME, str(tiny_resnet.save(tmp_path)))
    assert made.region_sides == [made.vlp.N] and len(classify(photos, NAMES, made, explain=True)) == 6


def test_without_a_network_the_usual_error_says_what_to_do(monkeypatch, photos, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: False)
    with pytest.raises(OSError, match="weights 'openai' of ViT-B-16 are not on this machine") as error:
        classify(photos, NAMES, model="ViT-B-16")
    assert "To classify with a file, give model=plain_clip('ViT-B-16-quickgelu', its path)" in str(error.value)


@pytest.mark.parametrize("name", ["ViT-B16", "ViT-B/16", "ViTB-16"])
def test_a_name_that_is_nearly_one_of_open_clips(name, monkeypatch):
    monkeypatch.setattr("hrcf_lib.vlp.online", lambda: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=f"no folder {name} here, and no model .* did you mean 'ViT-B-16'"):
        load_model(name)


def test_a_file_of_weights_is_no_model(checkpoint, photos):
    with pytest.raises(ValueError, match="ViT-B-16.pt is a file: give a folder of save_pretrained, or plain_clip"):
        classify(photos, NAMES, model=checkpoint)


def test_it_has_nothing_to_tune(plain, tmp_path):
    with pytest.raises(ValueError, match="Pre-CLIP has nothing to train: start from a config, such as config.nus_wide"):
        fine_tune.tune(tmp_path, tmp_path / "out", start=plain)


# Drawings only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test", "test-line"])
def test_scenes_are_no_photographs(split):
    assert not any(is_photograph(torch.from_numpy(draw(split, i).image).permute(2, 0, 1)) for i in range(12))


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "camera", "coins"])
def test_photographs_are_told(name):
    assert is_photograph(read_image(Image.fromarray(getattr(skimage.data, name)()), 112))


def test_flat_and_grey_drawings_are_no_photographs():
    line = Image.new("L", (300, 300), 255)
    line.paste(Image.linear_gradient("L").resize((80, 80)), (20, 20))
    for drawing in (Image.new("RGB", (50, 50), "red"), line):
        assert not is_photograph(read_image(drawing, 112))


@pytest.mark.slow
def test_the_model_that_ships_says_that_it_knows_drawings_only(photos):
    with pytest.warns(UserWarning, match="2 of 2 pictures have as many colours as .*astronaut.jpg.*model='ViT-B-16'"):
        classify(photos, ["cat"])
    session = Session()
    session.see(photos / "chelsea.jpg")
    assert session.watch.photographs


@pytest.mark.slow
def test_other_vlps_and_drawings_are_not_told(plain, photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(photos, ["cat"], plain)
        classify([Image.fromarray(draw("test", i).image) for i in range(3)], ["cat"])


def test_one_in_twenty_is_no_sign():
    watch = Watch(synthetic.model())
    photo = read_image(Image.fromarray(skimage.data.astronaut()), 112)
    watch.see(photo, "a")
    for _ in range(round(1 / SIGN) - 1):
        watch.see(torch.zeros(3, 112, 112, dtype=torch.uint8), "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.warn()
    watch.see(photo, "c")
    with pytest.warns(UserWarning, match="2 of 21 pictures .*a, c"):
        watch.warn()


def test_tuning_on_photographs_says_so_before_the_work(photos, tmp_path, monkeypatch):
    (photos / "labels.csv").write_text("file,labels\nastronaut.jpg,rocket\nchelsea.jpg,cat\n", encoding="utf-8")

    def begin(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tune, "extract", begin)
    with pytest.warns(UserWarning, match="2 of 2 pictures have as many colours"), pytest.raises(KeyboardInterrupt):
        fine_tune.tune(photos, tmp_path / "out")
