"""The HTML gallery: one file that needs nothing else, escaped, bounded, readable without style sheets."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hrcf_lib.apply.gallery import gallery
from hrcf_lib.apply.html import MAP, explorer_view
from hrcf_lib.apply.predict import gallery as public

EVIL = "<script>alert('x')</script> & \"co\""


class Reader(HTMLParser):
    """Tags with their attributes, texts, and whether tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def found(tmp_path):
    """Two pictures of three labels, with everything that ``classify`` can add."""
    rows = []
    for i, colour in enumerate(("red", "blue")):
        path = tmp_path / f"{colour} <b>.png"
        Image.new("RGB", (300, 200), colour).save(path)
        for rank, label in enumerate((EVIL, "owl", "猫"), 1):
            p = 0.9 - 0.3 * rank - 0.5 * i
            row = {"image": str(path), "label": label, "score": 0.5 / rank, "rank": rank, "probability": max(p, 0)}
            row |= {"threshold": 0.4, "answer": "yes" if p >= 0.4 else "no", "map": np.eye(112, dtype=np.float16)}
            rows.append(row)
    return pd.DataFrame(rows)


def pictures(reader, of_map=False):
    images = [a for a in reader.all("img") if (a.get("class") == "map") == of_map]
    return [Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) for a in images]


def test_it_needs_nothing_else_and_every_name_is_escaped(found):
    page = gallery(found)
    reader = Reader(page._repr_html_())
    assert not reader.all("script") and not reader.all("link") and "http" not in page.html
    assert all(a["src"].startswith("data:image/") for a in reader.all("img"))
    assert all(not name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert (
        [text.strip() for text in reader.texts].count(EVIL) == 2
        and "red <b>.png" in reader.texts
        and "猫" in reader.texts
    )
    assert public is gallery


def test_thumbnails_and_maps_are_bounded(found):
    reader = Reader(gallery(found, size=96).html)
    assert [image.size for image in pictures(reader)] == [(96, 96)] * 2
    maps = pictures(reader, of_map=True)
    assert [image.size for image in maps] == [(MAP, MAP)] * 6
    heat = np.asarray(maps[0])
    assert heat[20, 20, 3] > heat[5, 50, 3] > 0, "the more opaque the higher, and nowhere without a tint"
    assert heat[20, 20, :3].sum() > heat[5, 50, :3].sum()
    assert np.asarray(pictures(reader)[0])[48, 48].tolist() == pytest.approx([254, 0, 0], abs=4)


def test_texts_for_screen_readers(found):
    reader = Reader(gallery(found).html)
    alts = [a["alt"] for a in reader.all("img")]
    assert all(alts) and alts[0].startswith("red <b>.png: ") and "owl 30% (no)" in alts[0]
    assert f"map of where {EVIL} was seen in red <b>.png" in alts
    assert [a["aria-label"] for a in reader.all("span") if a.get("role") == "img"] == ["yes"], "not by colour alone"
    assert all(a.get("tabindex") == "0" for a in reader.all("li")), "maps are reached by the keyboard"
    assert "none of these" in reader.texts and reader.texts.count("none of these") == 1


def test_bars_and_numbers(found):
    bars = lambda page: [float(w) for w in re.findall(r'"bar" style="width: ([\d.]+)%', page.html)]
    page = gallery(found)
    assert bars(page) == pytest.approx([60, 30, 0, 10, 0, 0], abs=0.1) and "60.0%" in page.html
    assert page.html.count("left: calc(40.00% - 1px)") == 6
    plain = gallery(found[["image", "label", "score", "rank"]])
    assert bars(plain) == pytest.approx([100, 50, 33.3] * 2, abs=0.1) and "0.250" in plain.html
    assert (
        not any("tabindex" in a for a in Reader(plain.html).all("li"))
        and '"limit"' not in plain.html
        and "none of these" not in plain.html
    )
    below = gallery(found.assign(score=-1.0).drop(columns="probability"))
    assert bars(below) == [0] * 6


def test_colours_follow_the_page(found):
    style = re.search("<style>(.*?)</style>", gallery(found).html, re.S).group(1)
    assert "currentColor" in style and not re.search(r"(?<!-)color: *(black|white|#000|#fff)", style)
    names = set(re.findall(r"hrcf-[0-9a-f]{8}", style))
    assert len(names) == 1 and all(line.startswith(".hrcf-") for line in style.strip().splitlines())
    assert names.isdisjoint(re.findall(r"hrcf-[0-9a-f]{8}", gallery(found).html)), "two in a notebook do not mix"


def test_rows_are_those_of_the_explorer_in_another_size(found):
    small = gallery(found, size=96).html
    row = found.assign(threshold=0.4).iloc[0].to_dict()
    large = explorer_view(pd.DataFrame([row]), 1, "a", "data:,", (), {row["label"]: "data:,"}, (0.0, 1.0))
    of = lambda html: re.findall(r'<div class="text">.*?<div class="track">.*?</div></div>', html)
    assert of(large) == of(small)[:1] and "$" not in small + large
    rules = [dict(re.findall(r"^\.hrcf-\S+ (\S.*?) \{(.*?)\}$", html, re.M)) for html in (small, large)]
    assert rules[0][".bar"] == "height: 5px; border-radius: 2px" and rules[1][".bar"].startswith("height: 7px")
    shared = [".text", ".name", ".map", "li:focus", "li:focus .map"]
    assert all(rules[0][name] == rules[1][name] for name in shared)
    assert small.count(" width: 96px") + small.count("{width: 96px") == 2
    assert small.count("data-lm-suppress-shortcuts") == 6


def test_a_saved_page(found, tmp_path):
    path = gallery(found).save(tmp_path / "deep" / "gallery.html")
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    assert text.startswith("<!doctype html>") and {"charset": "utf-8"} in reader.all("meta")
    assert {"name": "color-scheme", "content": "light dark"} in reader.all("meta")
    assert "2 pictures" in repr(gallery(found))


def test_a_line_says_how_many_pictures_there_are(found):
    page = gallery(found, limit=1)
    assert len(Reader(page.html).all("figure")) == 1 and "1 of 2 pictures" in page.html


def test_pictures_without_a_file(found):
    own = [Image.new("RGB", (9, 9), "green"), Image.new("RGB", (9, 9), "white")]
    frame = pd.DataFrame({"image": ["picture 1", "picture 0"], "label": ["owl", "owl"], "score": [0.1, 0.2]})
    shown = pictures(Reader(gallery(frame, own, size=16).html))
    assert np.asarray(shown[0])[8, 8].min() > 250 and np.asarray(shown[1])[8, 8, 0] < 5
    with pytest.raises(ValueError, match=r"'picture 1' is not a file: give gallery\(found, images\)"):
        gallery(frame)


def test_refused_frames_and_numbers(found):
    with pytest.raises(ValueError, match="no column 'score'"):
        gallery(found.drop(columns="score"))
    with pytest.raises(ValueError, match="no rows"):
        gallery(found[:0])
    for wrong in ({"size": 0}, {"size": 513}, {"size": 20.5}, {"limit": 0}, {"limit": True}):
        with pytest.raises(ValueError, match="give a whole number from 1 to"):
            gallery(found, **wrong)


def test_the_truth_stands_under_a_picture_and_marks_right_labels(found):
    red, blue = found["image"].unique()
    page = Reader(gallery(found, truth={red: (EVIL, "tiger"), blue: ()}).html)
    assert [text for text in page.texts if text.startswith("in it")] == [
        f"in it: {EVIL}, tiger",
        "in it: none of these",
    ]
    assert [("data-right" in row) for row in page.all("li")] == [True] + 5 * [False]
    assert "in it" not in gallery(found).html


def test_a_truth_of_one_name_and_by_path(found):
    red, blue = found["image"].unique()
    texts = Reader(gallery(found, truth={Path(red): "owl", blue: {"cat": 1}}).html).texts
    assert [text for text in texts if text.startswith("in it")] == ["in it: owl", "in it: cat"]


def test_a_truth_that_is_of_no_picture_or_no_names_is_refused(found):
    red, blue = found["image"].unique()
    for key, nearest in ((red.replace("red", "rad"), ".*red <b>.png'"), ("blue <b>.png", "/.*blue <b>.png'")):
        with pytest.raises(ValueError, match=f"truth names '.*<b>.png', not in found.*: did you mean '{nearest}"):
            gallery(found, truth={key: ["owl"]})
    with pytest.raises(ValueError, match="truth names 0, not in .*: write images as found"):
        gallery(found, truth={0: ["owl"]})
    assert "in it: owl" in gallery(found[found["image"] == red], truth={red: ["owl"], blue: []}).html, "rows of a frame"
    with pytest.raises(TypeError, match="truth is a list: give a dict of image -> list of names"):
        gallery(found, truth=["owl"])
    for known in (None, 3, [None], ["owl", 3]):
        with pytest.raises(TypeError, match="red <b>.png' holds .*, not a name: give a list of names, an empty one"):
            gallery(found, truth={red: known})


def test_a_page_needs_the_name_of_a_file(found, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        gallery(found).save(tmp_path)
    with pytest.raises(TypeError, match="the page is a NoneType: give a path"):
        gallery(found).save(None)
