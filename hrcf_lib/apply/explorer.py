r"""An explorer for JupyterLab: a picture, labels as they are typed, and where each of them was seen.

>>> from hrcf_lib.apply.explorer import Explorer  # doctest: +SKIP
>>> Explorer("runs/mini/model", pictures=["photo.jpg"], labels="owl, night sky")  # doctest: +SKIP

The result is one piece of HTML (``html.py``) without a script: all maps are in it, and a style rule shows the one whose
label is under the pointer or has the focus, so looking around needs no kernel. Everything is reached by Tab; the left
and right keys move sliders. Needs the extra ``notebooks``. B = 1 picture, K labels, J regions, D embedding width.
"""

import asyncio
import copy
import csv
import io
import time
from html import escape
from numbers import Integral
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from hrcf_lib.apply import region_maps
from hrcf_lib.apply.html import SIDE, explorer_view, map_uri, picture_uri, score_span
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.apply.photographs import Watch
from hrcf_lib.apply.predict import load_model
from hrcf_lib.apply.vocabulary import SUFFIXES
from hrcf_lib.config import Config
from hrcf_lib.data.images import find_images, name_of, read_image
from hrcf_lib.data.mojiscenes.scenes import draw
from hrcf_lib.data.opening import open_picture
from hrcf_lib.engine.messages import whole_number
from hrcf_lib.method import Method
from hrcf_lib.scores import REGIONS, mixing, regions_to_keep

try:
    import ipywidgets as w
except ImportError as error:
    missing = "the explorer needs ipywidgets: pip install 'hrcf[notebooks]', in JupyterLab's own environment"
    raise ImportError(missing) from error

SCENES = (20, 38, 22, 56, 23, 53, 34, 50)  # of MojiScenes test, to choose from
LABELS = "elephant, animal, clouds, sand, penguin"
PAUSE = 0.4  # seconds without a key after which typed labels are taken; a comma or a new line takes them at once
LIMIT = 20  # the best labels are shown, at most so many
UNCALIBRATED = 0.2  # the first threshold of scores
ALERT = '<div role="alert" style="color: var(--jp-error-color1, #d32f2f); line-height: 1.4; overflow-wrap: anywhere">'


class Session:
    r"""A model with one picture and one list of labels; what does not change is computed once.

    ======================  ==========================================================
    a new                   computes
    ======================  ==========================================================
    picture                 ``e_g`` (1, D) and ``regions`` (1, J, D)
    list of labels          ``scorer``: their embeddings, those of the reference once
    lambda, regions kept    scores from the stored embeddings (``scores.py``)
    threshold               answers from the scores
    ======================  ==========================================================

    Args:
        model: as for ``classify``: a ``Method``, its folder, or None for the HRCF that ships.

    Attributes: ``lam`` and ``keep`` are the model's own settings, which its calibration was made for (``keep`` counts
    of 140, as in the config; it is 140 without RSS). Raises what ``load_model`` raises.
    """

    def __init__(self, model: Method | str | Path | None = None):
        self.model = load_model(model)
        config = self.model.config
        self.lam = mixing(config, at_test=True)[0]
        self.keep = config.keep if config.rss and self.model.has_selection else REGIONS
        self.scorer = self.e_g = self.regions = self._maps = None

    @property
    def labels(self) -> list[str]:
        """The cleaned names of the list that was asked last."""
        return self.scorer.labels

    @torch.no_grad()
    def see(self, image) -> None:
        """Take a picture: a path or a PIL image. Raises what ``read_image`` raises, and the last picture stays."""
        pixels = read_image(image, self.model.vlp.side, self.model.config.resize)[None]  # (1, 3, side, side)
        self.e_g, self.regions = self.model.embed(pixels)
        self.watch = Watch(self.model)
        self.watch.see(pixels[0], "this one")
        self._maps = None

    @torch.no_grad()
    def ask(self, labels) -> None:
        """Take a list of names. Raises as ``classify``, and the last list stays."""
        self.scorer = self.scorer.for_labels(labels) if self.scorer else LabelScorer(self.model, labels)
        self._maps = None

    def config(self, lam: float | None = None, keep: int | None = None) -> Config:
        """The model's config with another lambda, or another number of regions kept (of 140)."""
        changes = {} if lam in (None, self.lam) else {"lam": lam, "lam_at_test": None}
        changes |= {} if keep in (None, self.keep) else {"keep": keep, "rss": True}
        return self.model.config.replace(**changes)

    def kept(self, keep: int) -> int:
        """How many of the J regions of this model ``keep`` of 140 are."""
        config, J = self.config(keep=keep), self.regions.shape[1]
        return regions_to_keep(config, J) if config.rss else J

    @torch.no_grad()
    def table(self, lam: float | None = None, keep: int | None = None, thresholds=None) -> pd.DataFrame:
        r"""One row per label, the most probable one first, or the one with the highest score.

        Columns: label, score, rank (by score), probability (only under the model's own settings, of a calibrated
        model), threshold, answer. The labels are scored inside the reference vocabulary, as in ``classify``.
        ``thresholds`` maps "probability" and "score" to a threshold for all labels; by default probabilities have the
        calibrated ones, and scores 0.2. Raises ``ValueError`` for settings or a threshold out of range, or scores that
        are not finite.
        """
        config, thresholds, scorer = self.config(lam, keep), thresholds or {}, copy.copy(self.scorer)
        scorer.model = self.model.under(config)
        if config != self.model.config:
            scorer.curve = None
        s, p = scorer.scores(self.e_g, self.regions)  # (1, K) each
        found = pd.DataFrame({"label": self.labels, "score": s[0].tolist()})
        found["rank"] = found["score"].rank(method="first", ascending=False).astype(int)
        if p is None:
            found["threshold"] = thresholds.get("score", UNCALIBRATED)
        else:
            found["probability"] = p[0].tolist()
            found["threshold"] = scorer.limits(thresholds.get("probability", "calibrated")).tolist()
        yes = found["score" if p is None else "probability"] >= found["threshold"]
        found["answer"] = yes.map({True: "yes", False: "no"})
        first = "rank" if p is None else "probability"
        return found.sort_values(first, ascending=p is None, kind="stable", ignore_index=True)

    @torch.no_grad()
    def maps(self) -> dict | None:
        r"""Label -> where it was seen, (side, side) in 0..1, as ``region_maps.maps_for``; None of a method without.

        All regions take part, whatever the settings, so maps are computed once per picture and list.
        """
        if self._maps is None and self.model.map_kind is not None:
            maps = region_maps.region_maps(self.model, self.regions, self.scorer.t, self.scorer.columns)[0]
            self._maps = dict(zip(self.labels, maps.cpu().numpy()))  # (side, side) each
        return self._maps


class Explorer:
    r"""Shows itself at the end of a cell.

    Widgets are observed one by one: ``ipywidgets.interactive_output`` has no pause while somebody types, and clears
    what it showed when a change is refused.

    Args:
        model: as for ``classify``: a ``Method``, its folder, or None for the HRCF that ships.
        pictures: to choose from: paths, folders and PIL images as for ``classify``, and numbers, which are test scenes
            of MojiScenes. By default eight of its scenes.
        labels: to begin with, a list, a file of labels as for ``classify``, or a text with commas.
        limit: the largest number of labels to show, the best ones; all are scored.

    Attributes: ``session`` has the model, the picture and the labels; ``found`` is the frame that is shown
    (``Session.table``), and ``html`` how it is shown; ``error`` says why changes were refused. The widgets are
    ``picture``, ``path``, ``upload``, ``text``, ``lam``, ``keep``, ``threshold`` and ``reset``; ``box`` has them all.

    Raises ``ValueError`` and ``FileNotFoundError`` as ``classify`` for what it begins with. Later, what is refused is
    reported below the labels, and what was shown stays.
    """

    def __init__(self, model=None, pictures=None, labels=LABELS, limit: int = LIMIT):
        self.session, self.limit = Session(model), whole_number("limit", limit)
        self.samples = _samples(SCENES if pictures is None else pictures)  # (title, picture, what is in it)
        self._own = None  # the last picture of a path or an upload, as a sample
        self._thresholds = {}  # kind of number -> threshold that a user chose
        self._overlays = None, {}  # maps, and data URIs of those that were shown
        self._busy, self._timer, self._faults = False, None, {}
        typed = isinstance(labels, str) and not labels.lower().endswith(SUFFIXES)
        names = split_names(labels) if typed else labels
        self._make_widgets("")
        self._look(self.samples[0])
        self.session.ask(names)
        self.text.value = _as_text(self.session.labels)
        self._draw(time.perf_counter())
        self._observe()

    def __repr__(self) -> str:
        return f"<Explorer of {self.session.model.title}: {len(self.found)} labels, {self._shown[0]}>"

    def _repr_mimebundle_(self, **options) -> dict:
        """The widgets; where there are none, as on the web, what they show."""
        return self.box._repr_mimebundle_(**options) | {"text/html": self.html, "text/plain": repr(self)}

    @property
    def error(self) -> str:
        """Why changes were refused, one line each; "" where none was."""
        return "\n".join(self._faults.values())

    def _make_widgets(self, text: str) -> None:
        model, wide = self.session.model, w.Layout(flex="4 1 0", width="auto", min_width="0")
        narrow, over = {"description_width": "64px"}, {"description_width": "100%"}  # the name beside, or over a slider
        titles = [(title, i) for i, (title, _, _) in enumerate(self.samples)] + [("your own", None)]
        self.picture = w.Dropdown(options=titles, value=0, description="Picture", layout=wide, style=narrow)
        self.path = w.Text(description="or path", placeholder="photo.jpg, then Enter", layout=wide, style=narrow)
        self.path.continuous_update = False
        tip = "A file of up to about 10 MB, Jupyter's limit for messages; give the path of a larger one"
        self.upload = w.FileUpload(accept="image/*", description="or upload", tooltip=tip)
        hint = "names with commas between, or one per line"
        self.text = w.Textarea(text, description="Labels", placeholder=hint, rows=2, style=narrow)
        self.text.layout.width = "auto"
        self.message = w.HTML(layout=w.Layout(margin="0 0 0 72px"))
        slider = {"layout": w.Layout(flex="1 1 0", width="auto", height="auto", flex_flow="row wrap"), "style": over}
        self.lam = w.FloatSlider(self.session.lam, min=0, max=1, step=0.05, **slider)
        self.lam.description, self.lam.disabled = "λ, weight of the regions", not model.has_lambda
        self.keep = w.IntSlider(self.session.keep, min=1, max=REGIONS, **slider)
        self.keep.description, self.keep.disabled = f"Regions kept of {REGIONS}", not model.has_selection
        self.threshold = w.FloatSlider(0, min=0, max=1, step=0.01, **slider)
        self.reset = w.Button(description="Reset", tooltip="The model's own λ, regions and threshold")
        self.reset.layout = w.Layout(width="72px", align_self="flex-end")
        self.reset.add_class("hrcf-reset")
        self.view, self.status = w.HTML(), w.HTML()
        above, below = [self.picture, self.path, self.upload], [self.lam, self.keep, self.threshold, self.reset]
        rows = [w.HBox(above), self.text, self.message, w.HBox(below), self.view, self.status]
        self.box = w.VBox(rows, layout=w.Layout(max_width="1100px"))
        self.box.add_class("hrcf-explorer")

    def _observe(self) -> None:
        """From now on, changes of the widgets have effects."""
        actions = [
            (self.picture, "picture", self._choose),
            (self.path, "picture", self._open),
            (self.upload, "picture", self._receive),
            (self.lam, "settings", lambda: None),
            (self.keep, "settings", lambda: None),
            (self.threshold, "settings", lambda: self._thresholds.update({self._kind: self.threshold.value})),
        ]
        for widget, kind, action in actions:
            widget.observe(lambda change, kind=kind, action=action: self._change(kind, action), "value")
        self.text.observe(self._type, "value")
        self.reset.on_click(lambda button: self._change("settings", self._restore))

    def _change(self, kind: str, action) -> None:
        """Do it and show the result. A change that is refused leaves the last result and a message, which goes when a
        change of the same kind succeeds."""
        if self._busy:  # a widget was changed by this program
            return
        self._busy, begin = True, time.perf_counter()
        try:
            action()
            self._draw(begin)
            self._faults.pop(kind, None)
        except (ValueError, TypeError, OSError) as error:  # what bad input raises
            self._faults[kind] = str(error)
        except Exception as error:  # a fault of the library, or too little memory: shown, not hidden in a log
            self._faults[kind] = f"{type(error).__name__}: {error}"
        finally:
            self._busy = False
        self.message.value = "".join(f"{ALERT}{escape(fault)}</div>" for fault in self._faults.values())

    # What a change does -----------------------------------------------------------------------------------------------

    def _look(self, sample) -> None:
        """Embed a picture, and show it as large as the page has it."""
        title, image, truth = sample
        self.session.see(image)
        model = self.session.model
        shown = read_image(image, max(model.vlp.side, 2 * SIDE), model.config.resize)
        self._shown = title, picture_uri(shown), truth

    def _choose(self) -> None:
        sample = self._own if self.picture.value is None else self.samples[self.picture.value]
        if sample is None:
            raise ValueError("no picture of your own yet: give its path, or upload it")
        self._look(sample)

    def _open(self) -> None:
        if path := self.path.value.strip().strip("'\""):
            self._take((Path(path).name, path, ()))

    def _receive(self) -> None:
        for file in self.upload.value:
            image = open_picture(io.BytesIO(bytes(file["content"])), file["name"]).image
            self._take((file["name"], image, ()))

    def _take(self, sample) -> None:
        """Show a user's own picture; the list then says "your own"."""
        self._look(sample)
        self._own, self.picture.value = sample, None

    def _ask(self) -> None:
        self.session.ask(split_names(self.text.value))

    def _type(self, change) -> None:
        """Take the labels at once after a comma or a new line, otherwise after a pause."""
        if self._timer:
            self._timer.cancel()
        take = lambda: self._change("labels", self._ask)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None  # no kernel
        if loop is None or change["new"].endswith((",", "\n")):
            take()
        else:
            self._timer = loop.call_later(PAUSE, take)

    def _restore(self) -> None:
        """The model's own settings."""
        self._thresholds.clear()
        self.lam.value, self.keep.value = self.session.lam, self.session.keep

    # What is shown ----------------------------------------------------------------------------------------------------

    def _draw(self, begin: float) -> None:
        """Score under the settings of the sliders, and show it; ``begin`` is when the change came."""
        s, curve = self.session, self.session.scorer.curve
        self.found = s.table(round(self.lam.value, 6), self.keep.value, self._thresholds)
        sure = "probability" in self.found
        self._kind = "probability" if sure else "score"
        span = (0.0, 1.0) if sure else score_span(self.found["score"])
        with self.threshold.hold_trait_notifications():  # its ends and its value are checked together
            self.threshold.min, self.threshold.max = span
            self.threshold.value = self._thresholds.get(self._kind, curve.threshold if sure else UNCALIBRATED)
        self.threshold.description = f"Threshold of {self._kind}"
        self.html = self.view.value = explorer_view(self.found, self.limit, *self._shown, self._map_uris(), span)
        text, milliseconds = escape(" · ".join(self._facts())), 1e3 * (time.perf_counter() - begin)
        self.status.value = f'<span class="hrcf-status" style="opacity: .85">{text} · {milliseconds:.0f} ms</span>'

    def _map_uris(self) -> dict | None:
        """Label -> its map as a data URI, made when it is first shown; None of a method without maps."""
        maps = self.session.maps()
        if self._overlays[0] is not maps:
            self._overlays = maps, {}
        uris = self._overlays[1]
        for name in [] if maps is None else self.found["label"].head(self.limit):
            uris[name] = uris.get(name) or map_uri(maps[name])
        return None if maps is None else uris

    def _facts(self) -> list[str]:
        """The line below: what the numbers are."""
        s, keep = self.session, self.keep.value
        facts = [f"{(self.found['answer'] == 'yes').sum()} of {len(self.found)} labels: yes"]
        if s.model.has_selection:
            facts.append(f"{s.kept(keep)} of {s.regions.shape[1]} regions vote")
        if self._kind == "probability":
            facts.append("calibrated probabilities")
        elif s.scorer.curve is not None:
            regions = f" and {s.keep} regions" if s.model.has_selection else ""
            facts.append(f"scores: probabilities are calibrated at λ = {s.lam:g}{regions} (Reset)")
        else:
            facts.append("scores: the model has no calibration (python -m hrcf_lib.apply.calibration FOLDER makes one)")
        if s.watch.photographs:
            facts.append(f"this looks like a photograph, and {s.model.vlp.name} knows OpenMoji drawings only")
        if s.model.map_kind is None:
            facts.append(f"no maps of {s.model.title}")
        return facts


def _as_text(names: list[str]) -> str:
    """What ``split_names`` takes apart again."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def split_names(text: str) -> list[str]:
    """Label names of a text, between commas and line ends; one in double quotes may hold commas.

    >>> split_names('owl, "day, night"')
    ['owl', 'day, night']

    Raises ``ValueError`` if there is none.
    """
    lines = (csv.reader([line], skipinitialspace=True) for line in text.splitlines())  # a quotation ends with its line
    found = [name.strip() for line in lines for cells in line for name in cells if name.strip()]
    if not found:
        raise ValueError("no label yet: type a name, or several with commas between")
    return found


def _samples(pictures) -> list[tuple]:
    """(title, path or PIL image, names of what is in it) of each picture to choose from."""
    given = [pictures] if isinstance(pictures, (Integral, str, Path, Image.Image)) else list(pictures)
    found = []
    for item in given or [[]]:
        if isinstance(item, Integral) and not isinstance(item, bool):
            scene = draw("test", int(item))
            found.append((f"MojiScenes test {item}", Image.fromarray(scene.image), scene.names))
        else:
            images = find_images(item)
            found += [(Path(name_of(image, len(found) + i)).name, image, ()) for i, image in enumerate(images)]
    return found
