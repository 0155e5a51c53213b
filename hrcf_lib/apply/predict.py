r"""Labels for your own pictures and your own list of names, in one call.

There are two kinds of answer. ``score`` is the method's own ranking score, as in the paper: it ranks the labels of a
picture against each other and changes with the list of labels. ``probability`` (``calibration.py``) scores each label
alone beside the model's fixed reference vocabulary: it says what share of such answers is right and does not change
with the list.
"""

import copy
import os
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

import open_clip
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import config as configs
from hrcf_lib.apply import calibration
from hrcf_lib.apply.gallery import Gallery, gallery
from hrcf_lib.apply.label_scorer import NO_PROBABILITY, LabelScorer
from hrcf_lib.apply.photographs import Watch
from hrcf_lib.apply.vocabulary import read_alike
from hrcf_lib.data.feeds.order import read_ahead
from hrcf_lib.data.images import find_images, name_of, resized
from hrcf_lib.data.opening import open_picture
from hrcf_lib.engine.messages import did_you_mean, list_some, tell, whole_number
from hrcf_lib.labels import one_or_more
from hrcf_lib.method import Method
from hrcf_lib.methods import registry
from hrcf_lib.model import HRCF
from hrcf_lib.pretrained import EXTRAS, FILES, HUB
from hrcf_lib.vlp import MINI

__all__ = ["Gallery", "answers", "classify", "default_model", "gallery", "load_model", "own_thresholds", "plain_clip"]


@cache
def _shipped() -> HRCF:
    return HRCF.from_pretrained(str(files("hrcf_lib") / "assets" / "hrcf-mini-trained"))


def default_model() -> HRCF:
    """The HRCF that ships, a copy of one's own: trained on MojiScenes with the mini VLP, so it knows OpenMoji drawings
    and nothing else."""
    return copy.deepcopy(_shipped())


def load_model(model: Method | str | Path | None = None) -> Method:
    r"""A model, in evaluation mode: the default one for None, a folder of ``save_pretrained``, a CLIP by its name in
    open_clip (``plain_clip``), or a model itself; of one that was cast to another precision, a copy in float32.

    What was read is a copy of one's own: training it does not change what ``classify`` answers by that name. Raises
    ``TypeError`` for anything else than these, ``FileNotFoundError`` for a name that nothing has, and what
    ``methods.load`` and ``plain_clip`` raise.
    """
    return _shared(model) if isinstance(model, Method) else copy.deepcopy(_shared(model))


def _shared(model: Method | str | Path | None) -> Method:
    """``load_model`` without the copy, for what leaves the model as it is.

    A folder (or ``hf://owner/name`` of the Hugging Face hub) that was read before is not read again until a file in it
    changes.
    """
    if model is None:
        return _shipped().eval()
    if isinstance(model, Method):
        return model.eval().in_float32()
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model is a {type(model).__name__}: give an HRCF or another Method, or the folder of one")
    if not str(model).strip():
        raise ValueError("model is an empty text: give a folder or a name, or leave it out for the one that ships")
    folder, known = Path(model).expanduser(), sorted({*open_clip.list_models()} - {MINI})
    if str(model) in known and not folder.exists():
        return plain_clip(str(model))
    if folder.is_file():
        raise ValueError(f"{model} is a file: give a folder of save_pretrained, or plain_clip(name, {str(model)!r})")
    near = did_you_mean(model, known, "") or ("clip" in str(model).lower() and "CLIP's own are 'ViT-B-16' and so on")
    if not folder.exists() and not str(model).startswith(HUB) and near:
        raise FileNotFoundError(f"there is no folder {model} here, and no model of that name in open_clip; {near}")
    present = [path for file in (*FILES, *(f"{name}.json" for name in EXTRAS)) if (path := folder / file).is_file()]
    return _loaded(str(folder if present else model), tuple(path.stat().st_mtime_ns for path in present)).eval()


@lru_cache(maxsize=2)
def _loaded(folder: str, changed: tuple) -> Method:
    return registry.load(folder)


@lru_cache(maxsize=2)
def plain_clip(name: str = "ViT-B-16", weights: str | None = None) -> Method:
    r"""CLIP as it comes, for photographs and any labels: ``classify(photos, labels, model="ViT-B-16")`` takes it.

    A picture's score for a label is the cosine of CLIP's two embeddings, of the label the mean over the prompts that
    CLIP's authors recommend. Maps show HRCF's regions before any training, which is rough. There are no probabilities.

    Args:
        name: of an open_clip model, a plain ViT or CLIP's ResNet: "ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50" ...
        weights: open_clip tag, or the path of a checkpoint in any form that ``vlp.load`` reads; by default OpenAI's
            where the model has them, else the first tag that open_clip lists. The file is downloaded once (ViT-B-16:
            600 MB).

    Raises what ``vlp.load`` raises: ``OSError`` where weights are neither here nor to be had.
    """
    if weights is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        weights = "openai" if "openai" in tags else next(iter(tags), None)
    weights = None if weights is None else str(weights)
    experiment = configs.nus_wide().replace(vlp=name, vlp_weights=weights, bf16=False)  # open_clip's own embeddings
    settings = {"prompt_set": "openai", "similarity": "cosine", "regions": True}
    try:
        return registry.build("pre_clip", experiment, **settings).eval()
    except OSError as error:
        tag = open_clip.get_pretrained_cfg(name, str(weights)) or {}
        own = name + "-quickgelu" * (bool(tag.get("quick_gelu")) and not name.endswith("-quickgelu"))
        raise OSError(f"{error}. To classify with a file, give model=plain_clip({own!r}, its path)") from error


@torch.no_grad()
def classify(
    images,
    labels,
    model: Method | str | Path | None = None,
    top_k: int = 5,
    batch: int = 32,
    *,
    threshold=None,
    explain: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    skip_bad: bool = False,
) -> pd.DataFrame:
    r"""The best labels of each picture.

    Args:
        images: a path, a PIL image, a list of either, or a folder.
        labels: names, any number from 1, or a file of them: a ``Path``, or a string that ends in ``.txt`` (one name
            per line), ``.csv`` or ``.tsv`` (a column ``label``), or ``.json`` (a list); see ``vocabulary``. They are
            scored inside the model's reference vocabulary (its seen labels): softmax, region selection and norms run
            over reference and own labels together, so that a single label does not always score 1; only your columns
            are returned. In a loop over pictures, pass one ``LabelScorer(load_model(model), labels)`` here, which
            embeds labels and reference vocabulary once.
        model: an ``HRCF`` or another ``Method``, or its folder; by default the HRCF that ships (``default_model``),
            which knows drawings only. For photographs the name of a CLIP, such as ``"ViT-B-16"`` (``plain_clip``). It
            is left in evaluation mode. A ``LabelScorer`` brings its own model and device.
        top_k: labels to report for each picture; fewer are returned if there are fewer labels.
        batch: pictures at a time; a thread reads the next ones meanwhile.
        threshold: adds yes or no: ``"calibrated"`` for the thresholds of the model's calibration, a probability in 0..1
            for all labels, or label -> probability for some and the calibration's for the others (``own_thresholds``).
            Labels with a yes are reported even if they are not among the ``top_k``. ``answers`` turns the frame into
            one row per picture and says where it is none of these.
        explain: adds a map to each row, which shows where the label was seen, as ``region_maps.maps_for`` (HRCF, MKT
            and every method with a ``map_kind``).
        device: "cpu", "cuda", "cuda:1" or "mps"; the model is moved there, and stays. By default it stays where it is.
        progress: show a bar (True), or none (False); by default where there is a terminal or a notebook.
        skip_bad: skip pictures that cannot be read, with one warning that names them, instead of raising an error.

    Returns:
        a tidy frame: image (its path, or ``picture 0`` and so on for a PIL image without a file), label, score (the
        model's own, comparable within a picture; for HRCF Eq. 14, in -1..1), rank (1 is best, by score). Then, where
        they are known: probability (for a calibrated model, in 0..1, the same whatever other labels are asked for),
        threshold and answer ("yes" or "no"), map (an array (side, side) in 0..1, float16, of the part of the picture
        that the model looks at, by default its centre square: ``resize`` of the config). Maps are values of a column,
        not ``attrs``, because filters, merges and ``concat`` keep columns; drop it before ``to_csv``.

    Raises:
        TypeError: arrays, tensors or nested lists in place of pictures, and what is no model.
        ValueError: empty, blank or duplicate names (as the text tower reads them: case does not count), a name that
            the text tower does not know or that is too long for it, ``top_k`` below 1, a picture that cannot be read or
            is enormous, a threshold without a calibration, maps of a method that has none, a device that this machine
            does not have, or a model that cannot be read.
        FileNotFoundError: a picture, folder or file of labels that does not exist.

    Transparency is laid on white. Only the first frame of an animated picture is used, with a warning. Another says
    that a model of the mini VLP was given what looks like photographs (``photographs.py``).
    """
    top_k, batch = whole_number("top_k", top_k), whole_number("batch", batch)
    items = find_images(images)
    scorer = _scorer(labels, model, device)
    if explain:
        scorer.check_maps()
    limits = scorer.limits(threshold)  # (K,), or None
    parts = []
    for numbers, pictures in _batches(items, scorer.model, batch, progress, skip_bad):
        s, p, regions = scorer(pictures)  # (B, K), (B, K) or None, (B, J, D)
        order, ranks = ranked(s)  # (B, K) each
        for b, i in enumerate(numbers):
            shown = ranks[b] <= top_k if limits is None else (ranks[b] <= top_k) | (p[b] >= limits)  # (K,)
            ks = order[b][shown[order[b]]]
            part = {"image": name_of(items[i], i), "label": [scorer.labels[k] for k in ks], "score": s[b, ks].tolist()}
            part["rank"] = ranks[b, ks].tolist()
            if p is not None:
                part["probability"] = p[b, ks].tolist()
            if limits is not None:
                part["threshold"] = limits[ks].tolist()
                part["answer"] = ["yes" if yes else "no" for yes in p[b, ks] >= limits[ks]]
            if explain:
                part["map"] = list(scorer.maps(regions[[b]], ks))
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Columns from the highest score to the lowest, and the rank of each column, 1 is best: (..., K) -> two (..., K).

    Of equal scores the one of the lower column comes first.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)  # (..., K)
    return order, order.argsort(dim=-1) + 1


def answers(found: pd.DataFrame) -> pd.DataFrame:
    r"""One row per picture, from a frame that ``classify`` made with a threshold: image, labels with a yes (a list, the
    most probable first), none (whether it is none of these).

    All labels that were asked for count, because each one with a yes has its row. A picture that was given twice has
    one row, and each label once. Raises ``ValueError`` for a frame
    without answers.
    """
    if "answer" not in found:
        raise ValueError("the frame has no answers: give classify a threshold, such as threshold='calibrated'")
    order = found.sort_values("probability", ascending=False, kind="stable")
    yes = order[order["answer"] == "yes"].groupby("image")["label"].agg(lambda names: list(dict.fromkeys(names)))
    rows = [(image, yes.get(image, [])) for image in dict.fromkeys(found["image"])]
    return pd.DataFrame([(image, names, not names) for image, names in rows], columns=["image", "labels", "none"])


@torch.no_grad()
def own_thresholds(images, present, labels=None, model=None, random: bool = False, batch: int = 32) -> dict[str, float]:
    r"""Label -> its own threshold, from a handful of pictures with known labels, for ``classify(threshold=...)``.

    Args:
        images: as for ``classify``.
        present: for each picture the names that are in it; the other ``labels`` are absent.
        labels: as for ``classify``; by default all names of ``present``.
        model: as for ``classify``; it has to be calibrated.
        random: whether the pictures are a random sample, not picked for their labels (``calibration``).

    A label gets a threshold only if at least one picture shows it and one does not. Raises ``ValueError`` if ``images``
    and ``present`` differ in number, for a name that is not in ``labels``, and as ``classify``.
    """
    items, present, batch = find_images(images), _names_in(present), whole_number("batch", batch)
    if len(items) != len(present):
        raise ValueError(f"{len(items)} pictures, {len(present)} lists of what is in them: give one list per picture")
    named = dict.fromkeys(name for names in present for name in names)
    if labels is None and not named:
        raise ValueError("present names nothing in any picture: say what is in them, or give the labels")
    scorer = _scorer(list(named) if labels is None else labels, model)
    column = {read_alike(name): k for k, name in enumerate(scorer.labels)}
    if unlisted := [name for name in named if read_alike(name) not in column]:
        raise ValueError(f"{unlisted[0]!r} is listed for a picture and is not among the labels: add it there")
    if scorer.curve is None:
        raise ValueError(NO_PROBABILITY)
    y = torch.full((len(items), len(scorer.labels)), -1.0)
    for i, names in enumerate(present):
        y[i, [column[read_alike(name)] for name in names]] = 1
    s = torch.cat([scorer.alone(x) for _, x in _batches(items, scorer.model, batch, False, False)])
    return calibration.own_thresholds(scorer.curve, s, y, scorer.labels, random)


def _names_in(present) -> list[list[str]]:
    """Names of what is in each picture. Raises ``ValueError`` for what is no list of names for each."""
    if isinstance(present, (str, bytes, Mapping)) or hasattr(present, "columns") or not isinstance(present, Iterable):
        raise ValueError(f"present = {present!r:.60}: give a list of names for each picture, as in [['owl'], []]")
    given = list(present)
    found = [one_or_more(names) for names in given]
    for i, names in enumerate(found):
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"present[{i}] is {given[i]!r:.60}: give the names of what is in picture {i}, or []")
    return found


def _scorer(labels, model, device: str | None = None) -> LabelScorer:
    """``labels`` itself where it is a scorer, or a new one. Raises ``ValueError`` for a scorer beside another model or
    device."""
    if not isinstance(labels, LabelScorer):
        return LabelScorer(_shared(model), labels, device)
    if device is not None or not (model is None or model is labels.model):
        what = "model" if device is None else "device"
        raise ValueError(f"labels is a LabelScorer, which has a {what} of its own: leave {what} out, or give names")
    return labels


def _batches(items, model: Method, batch: int, progress: bool | None, skip_bad: bool):
    """(numbers of pictures, pictures (B, 3, side, side), resized as the model's config says); a batch without a
    readable picture is skipped."""
    animated, unreadable, watch = [], [], Watch(model)

    def read(first: int) -> tuple[list[int], list[Tensor]]:
        numbers, pictures = [], []
        for i, item in enumerate(items[first : first + batch], first):
            name = name_of(item, i)
            try:
                picture = open_picture(item, name)
                pictures.append(resized(picture.image, model.vlp.side, model.config.resize))
                numbers.append(i)
                watch.see(pictures[-1], name)
                if picture.animated:
                    animated.append(name)
            except (ValueError, OSError) as error:  # OSError: the file has vanished since it was found
                if not skip_bad:
                    raise
                unreadable.append(str(error))
        return numbers, pictures

    starts = range(0, len(items), batch)
    hidden = None if progress is None else not progress
    with tqdm(total=len(items), desc="pictures", leave=False, disable=hidden) as bar:
        for first, (numbers, pictures) in zip(starts, read_ahead(read, starts), strict=True):
            if pictures:
                yield numbers, torch.stack(pictures)
            bar.update(min(batch, len(items) - first))
    if len(unreadable) == len(items):
        raise ValueError(f"none of the {len(items)} pictures can be read; the first: {unreadable[0]}")
    if unreadable:
        tell(f"{len(unreadable)} of {len(items)} pictures left out: {list_some(unreadable, '; ')}")
    if animated:
        tell(f"animated, or of several pages; the first frame was taken: {list_some(animated)}")
    watch.warn()
