r"""An explorer for JupyterLab: a picture, labels as they are typed, and where each of them was seen.

>>> from hrcf_lib.apply.explorer import Explorer  # doctest: +SKIP
>>> Explorer("runs/mini/model", pictures=["photo.jpg"], labels="owl, night")  # doctest: +SKIP

The arithmetic is in ``rescoring.py``. What is shown is one piece of HTML that needs no network and no script: all maps
are in it, and a style rule shows the one whose label is under the pointer or has the focus, so that looking around asks
nothing of the kernel. Everything is reached by Tab; the left and right keys move sliders. Needs the extra
``notebooks``.
"""

import asyncio
import html
import io
import time
from pathlib import Path

from PIL import Image

from hrcf_lib.apply.explorer_page import SIDE, page, span_of
from hrcf_lib.apply.gallery import _coloured, _uri
from hrcf_lib.apply.rescoring import Rescorer
from hrcf_lib.data.images import find_images, read_image
from hrcf_lib.data.mojiscenes.scenes import draw
from hrcf_lib.scores import REGIONS

SCENES = (15, 21, 18, 32, 27, 13, 5, 14)  # of MojiScenes test, to choose from
LABELS = "flying saucer, snow, wolf, parrot, panda"
PAUSE = 0.4  # seconds without a key after which typed labels are taken; a comma or a new line takes them at once
LIMIT = 20  # labels that are shown, the best
UNCALIBRATED = 0.2  # threshold of scores to begin with


class Explorer:
    r"""Shows itself at the end of a cell.

    Args:
        model: as for ``classify``: a ``Method``, its folder, or None for the HRCF that ships.
        pictures: to choose from: paths, folders and PIL images as for ``classify``, and numbers, which are test scenes
            of MojiScenes. By default eight of its scenes.
        labels: to begin with, a list, or a text with commas.
        limit: most labels to show, the best ones; all are scored.

    Attributes: ``rescorer`` the model with picture and labels; ``found`` the frame that is shown (``Rescorer.table``);
    ``html`` how it is shown; ``error`` why wishes were refused. The widgets are ``picture``, ``path``,
    ``upload``, ``text``, ``lam``, ``keep``, ``threshold`` and ``reset``; all of them are in ``box``.

    Raises ``ImportError`` without ipywidgets, ``ValueError`` and ``FileNotFoundError`` as ``classify`` for what it
    begins with. Later on what is refused is told beside the fields, and what was shown stays.
    """

    def __init__(self, model=None, pictures=None, labels=LABELS, limit: int = LIMIT):
        widgets = _library()
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit = {limit!r}: give a whole number from 1")
        self.rescorer, self.limit, self.html = Rescorer(model), limit, ""
        self.samples = _samples(SCENES if pictures is None else pictures)  # (title, picture, what is in it)
        self._own = None  # the last picture of a path or an upload, as a sample
        self._moved = {}  # thresholds that a user chose, by what they are of
        self._made = None, {}  # maps, and data URIs of those that were shown
        self._busy, self._waiting, self._faults = False, None, {}
        self._make(widgets, labels if isinstance(labels, str) else ", ".join(labels))
        self._look(self.samples[0])
        self.rescorer.ask(names(self.text.value))
        self._draw()
        self._watch()

    def __repr__(self) -> str:
        return f"<Explorer of {self.rescorer.model.title}: {len(self.rescorer.labels)} labels, {self._shown[0]}>"

    def _repr_mimebundle_(self, **options) -> dict:
        """The widgets; where there are none, as on the web, what they show."""
        bundle = self.box._repr_mimebundle_(**options)
        return bundle | {"text/html": self.html, "text/plain": repr(self)}

    # -- the widgets ---------------------------------------------------------------------------------------------------

    def _make(self, w, text: str) -> None:
        """Build them."""
        r, wide = self.rescorer, {"style": {"description_width": "64px"}}
        titles = [(title, i) for i, (title, _, _) in enumerate(self.samples)] + [("your own", None)]
        grow = lambda share: w.Layout(flex=f"{share} 1 0", width="auto", min_width="0")
        self.picture = w.Dropdown(options=titles, value=0, description="Picture", layout=grow(4), **wide)
        self.path = w.Text(
            description="or path",
            placeholder="photo.jpg, then Enter",
            continuous_update=False,
            layout=grow(4),
            **wide,
        )
        tip = "A file of up to about 10 MB, Jupyter's limit for messages; a larger one by its path"
        self.upload = w.FileUpload(accept="image/*", multiple=False, description="or upload", tooltip=tip)
        self.text = w.Textarea(
            text,
            description="Labels",
            placeholder="names with commas between, or one a line",
            rows=2,
            layout=w.Layout(width="auto"),
            **wide,
        )
        self.message = w.HTML(layout=w.Layout(margin="0 0 0 72px"))
        above = w.Layout(flex="1 1 0", width="auto", height="auto", flex_flow="row wrap")  # the name over the slider
        bar = {"readout_format": ".2f", "layout": above, "style": {"description_width": "100%"}}
        self.lam = w.FloatSlider(r.lam, min=0, max=1, step=0.05, description="λ, weight of the regions", **bar)
        whole = bar | {"readout_format": "d"}
        self.keep = w.IntSlider(r.keep, min=1, max=REGIONS, description=f"Regions kept of {REGIONS}", **whole)
        self.threshold = w.FloatSlider(0, min=0, max=1, step=0.01, description="Threshold", **bar)
        self.reset = w.Button(description="Reset", tooltip="The model's own λ, regions and threshold")
        self.reset.layout.width, self.reset.layout.align_self = "72px", "flex-end"
        self.reset.add_class("hrcf-reset")
        self.lam.disabled, self.keep.disabled = not r.weighs, not r.selects
        self.view, self.status = w.HTML(), w.HTML()
        rows = [
            w.HBox([self.picture, self.path, self.upload]),
            self.text,
            self.message,
            w.HBox([self.lam, self.keep, self.threshold, self.reset]),
            self.view,
            self.status,
        ]
        self.box = w.VBox(rows, layout=w.Layout(max_width="1100px"))
        self.box.add_class("hrcf-explorer")

    def _watch(self) -> None:
        """From now on changes have effects."""
        self.picture.observe(lambda change: self._try("picture", self._choose), "value")
        self.path.observe(lambda change: self._try("picture", self._open), "value")
        self.upload.observe(lambda change: self._try("picture", self._receive), "value")
        self.text.observe(self._typed, "value")
        for slider in (self.lam, self.keep):
            slider.observe(lambda change: self._try("settings"), "value")
        self.threshold.observe(self._limited, "value")
        self.reset.on_click(lambda button: self._restore())

    def _try(self, what: str, action=lambda: None) -> None:
        """Do it and show what comes of it, or say why not: then the last result stays, and so does the message, until
        a wish of the same kind succeeds."""
        if self._busy:
            return
        self._busy = True
        try:
            begin = time.perf_counter()
            action()
            self._draw(begin)
            self._faults.pop(what, None)
        except (ValueError, TypeError, OSError) as error:  # what bad input raises
            self._faults[what] = str(error)
        except Exception as error:  # a fault of ours, or too little memory: told, not thrown into a log
            self._faults[what] = f"{type(error).__name__}: {error}"
        finally:
            self._busy = False
        look = "color: var(--jp-error-color1, #d32f2f); line-height: 1.4; overflow-wrap: anywhere"
        told = "".join(
            f'<div role="alert" style="{look}">{html.escape(fault)}</div>' for fault in self._faults.values()
        )
        self.message.value = told

    @property
    def error(self) -> str:
        """Why wishes were refused, a line each; "" where none was."""
        return "\n".join(self._faults.values())

    # -- what they do --------------------------------------------------------------------------------------------------

    def _look(self, sample) -> None:
        """Show a picture, as large as the page has it, and embed it."""
        title, image, truth = sample
        self.rescorer.see(image)
        side = max(self.rescorer.model.vlp.side, 2 * SIDE)
        shown = Image.fromarray(read_image(image, side).permute(1, 2, 0).numpy())
        self._shown = title, _uri(shown, "JPEG"), truth

    def _choose(self) -> None:
        number = self.picture.value
        if number is None and self._own is None:
            raise ValueError("no picture of your own yet: give its path, or upload it")
        self._look(self._own if number is None else self.samples[number])

    def _open(self) -> None:
        path = self.path.value.strip().strip("'\"")
        if path:
            self._take((Path(path).name, path, ()))

    def _receive(self) -> None:
        for file in self.upload.value:
            self._take((file["name"], _decoded(file["name"], bytes(file["content"])), ()))

    def _take(self, own) -> None:
        """A picture of the user's own, which the list then stands at."""
        self._look(own)
        self._own, self.picture.value = own, None

    def _typed(self, change) -> None:
        """Take the labels at once after a comma or a new line, otherwise when no key came for a while."""
        if self._waiting:
            self._waiting.cancel()
        take = lambda: self._try("labels", lambda: self.rescorer.ask(names(self.text.value)))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            loop = None
        if loop is None or change["new"].endswith((",", "\n")):
            take()
        else:
            self._waiting = loop.call_later(PAUSE, take)

    def _limited(self, change) -> None:
        if not self._busy:
            self._moved[self._kind] = change["new"]
        self._try("settings")

    def _restore(self) -> None:
        """The model's own settings."""
        self._moved.clear()
        self._busy = True
        try:
            self.lam.value, self.keep.value = self.rescorer.lam, self.rescorer.keep
        finally:
            self._busy = False
        self._try("settings")

    # -- what they show ------------------------------------------------------------------------------------------------

    def _draw(self, begin: float | None = None) -> None:
        """Score under the settings of the sliders, and show it."""
        r, begin = self.rescorer, time.perf_counter() if begin is None else begin
        lam, keep = round(self.lam.value, 6) if r.weighs else None, self.keep.value if r.selects else None
        s, p = r.scores(lam, keep)
        self._kind = "score" if p is None else "probability"
        moved = self._moved.get(self._kind)
        self.found = r.table(s, p, UNCALIBRATED if p is None and moved is None else moved)
        span = span_of(self.found["score"]) if p is None else (0.0, 1.0)
        usual = UNCALIBRATED if p is None else r.scorer.curve.threshold
        self._set_threshold(usual if moved is None else moved, *span)
        best = self.found.head(self.limit)
        self.html = page(best, self._kind, span, self._shown, self._overlays(best["label"]), len(self.found))
        self.view.value = self.html
        self.status.value = self._said(keep, 1e3 * (time.perf_counter() - begin))

    def _overlays(self, labels) -> dict | None:
        """Label -> its map as a data URI, made when it is first shown; None of a method without maps."""
        maps = self.rescorer.maps()
        if maps is None:
            return None
        if self._made[0] is not maps:
            self._made = maps, {}
        made = self._made[1]
        return {name: made.get(name) or made.setdefault(name, _uri(_coloured(maps[name]), "PNG")) for name in labels}

    def _set_threshold(self, value: float, low: float, high: float) -> None:
        """Stand at a value without an effect, inside other ends."""
        busy, self._busy = self._busy, True
        try:
            self.threshold.min, self.threshold.max = min(low, self.threshold.min), max(high, self.threshold.max)
            self.threshold.value = value
            self.threshold.min, self.threshold.max = low, high
            self.threshold.description = f"Threshold of {self._kind}"
        finally:
            self._busy = busy

    def _said(self, keep: int | None, milliseconds: float) -> str:
        """The line below: what the numbers are, and how long they took."""
        r = self.rescorer
        parts = [f"{int((self.found['answer'] == 'yes').sum())} of {len(self.found)} labels: yes"]
        if keep is not None:
            parts.append(f"{r.kept(keep)} of {r.regions.shape[1]} regions vote")
        if self._kind == "probability":
            parts.append("calibrated probabilities")
        elif r.calibrated:
            regions = f" and {r.keep} regions" if r.selects else ""
            parts.append(f"scores: probabilities are calibrated at λ = {r.lam:g}{regions} (Reset)")
        else:
            parts.append("scores: the model has no calibration (python -m hrcf_lib.apply.calibration FOLDER makes one)")
        if r.maps() is None:
            parts.append(f"no maps of {r.model.title}")
        text = html.escape(" · ".join(parts))
        return f'<span class="hrcf-status" style="opacity: .85">{text} · {milliseconds:.0f} ms</span>'


def names(text: str) -> list[str]:
    """Label names of a text, between commas and line ends. Raises ``ValueError`` if there is none."""
    found = [name.strip() for line in text.splitlines() for name in line.split(",") if name.strip()]
    if not found:
        raise ValueError("no label yet: type a name, or several with commas between")
    return found


def _samples(pictures) -> list[tuple]:
    """(title, path or PIL image, what is in it) of each picture to choose from."""
    given = [pictures] if isinstance(pictures, (int, str, Path, Image.Image)) else list(pictures)
    found = []
    for item in given or [None]:
        if isinstance(item, int) and not isinstance(item, bool):
            scene = draw("test", item)
            found.append((f"MojiScenes test {item}", Image.fromarray(scene.image), scene.names))
            continue
        for image in find_images([] if item is None else item):
            file = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
            found.append((Path(file).name if file else f"picture {len(found)}", image, ()))
    return found


def _decoded(name: str, content: bytes) -> Image.Image:
    """An uploaded file as a picture. Raises ``ValueError`` naming it."""
    try:
        image = Image.open(io.BytesIO(content))
    except Exception as error:  # each format raises its own
        raise ValueError(f"{name} cannot be read as a picture; choose another file") from error
    image.filename = name  # what errors call it
    return image


def _library():
    """ipywidgets, imported here: a plain installation does without."""
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            "the explorer needs ipywidgets: pip install 'hrcf[notebooks]', in JupyterLab's own environment"
        ) from error
    return ipywidgets
