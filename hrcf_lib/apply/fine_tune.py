r"""Your own pictures: from a folder with a ``labels.csv`` to a fine-tuned model on disk, in one call.

::

    tuned = tune("photos", "runs/photos")  # photos/labels.csv: file,labels (``data.load``)
    classify("new photos", tuned.labels, "runs/photos/model", explain=True)

Training starts from a model that already knows other labels, and keeps them: the labels of the CSV are added to its
reference vocabulary. These pictures were not searched for the old labels, so that these are unknown in training, and
every region learns to vote for some new label. To undo the harm of that, the returned model lies half way between the
start and the trained model, weight by weight (WiSE-FT: Wortsman et al., CVPR 2022),

$$\theta = \theta_{start} + s\,(\theta_{trained} - \theta_{start}), \qquad s = 1/2.$$

The learning rate and s were chosen on validation labels and pictures; notebook 15 measures their effect. n pictures,
K labels of the CSV.
"""

import copy
import math
import warnings
from dataclasses import dataclass, replace
from itertools import count
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hrcf_lib.apply import calibration, vocabulary
from hrcf_lib.apply.photographs import Watch
from hrcf_lib.apply.predict import load_model
from hrcf_lib.config import DATA, DEFAULTS, Config, names_where
from hrcf_lib.data import load
from hrcf_lib.data.feeds.embeddings import Embedded, embed
from hrcf_lib.data.feeds.features import FrozenFeatures, extract
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.engine import devices
from hrcf_lib.engine.files import alone, read_json, write_json
from hrcf_lib.engine.hashes import hash_tensors
from hrcf_lib.engine.messages import is_real, list_some, tell, user_path, whole_number
from hrcf_lib.evaluation import score_all
from hrcf_lib.labels import LabelSpace
from hrcf_lib.method import Method
from hrcf_lib.methods import registry
from hrcf_lib.metrics import mean_average_precision
from hrcf_lib.pretrained import EXTRAS, find_folder, read_about, read_extra, read_weights
from hrcf_lib.training import learns_text, train

PASSES, STEPS = 5, 60  # least passes of the image side and, roughly, least steps, if ``passes`` is not given
BATCH = 32  # largest number of pictures per step
WARM = 0.3  # share of the learning rate with which the training of a trained model continues
LATER = ("passes", "labels", "data")  # of what a run notes about itself: folders of earlier versions lack them
SHARE = 0.5  # s: how far the returned model lies from the start (0) towards the trained model (1)


@dataclass
class Tuned:
    """The result of ``tune``. ``folder`` holds ``model/``, ``tuned.json``, the checkpoint and frozen features."""

    model: Method  # in evaluation mode
    labels: tuple[str, ...]  # the trained labels: each has a picture in the CSV
    table: pd.DataFrame  # rows before and after: mAP in percent on the held-out part; NaN if it shows no label
    history: pd.DataFrame  # one row per step (``training.train``)
    held_out: list[str]  # files that were not used in training
    folder: Path


def tune(
    folder,
    out,
    start=None,
    held_out: float = 0.2,
    passes: int | None = None,
    seed=0,
    cache=None,
    skip_bad=False,
    outside=False,
) -> Tuned:
    r"""Train a model on a labelled folder and save it in ``out/model``.

    Args:
        folder: with a ``labels.csv``, or a prepared table (``data.load``). The seen labels that have a picture are
            trained; the others can still be asked for, like any name.
        out: folder of results. The same call resumes an interrupted one, and returns at once if that was finished.
        start: a model or its folder; by default the HRCF that ships. It is trained with 0.3 of its config's learning
            rate and then averaged with the start (top of this file). A ``Config`` starts its method from scratch, with
            the full rate, and nothing is averaged.
        held_out: share of the pictures to measure and calibrate on, drawn at random; a label's last picture stays in
            training. 0: train on all.
        passes: passes over the pictures for each side that the config trains; by default 5, or as many as make 60
            steps.
        seed: of the held-out part and the order of training.
        cache: folder of frozen features, by default ``out/features``. Pictures are not augmented.
        skip_bad: skip pictures that are missing or cannot be read, with a warning, instead of raising an error.
        outside: as for ``data.load``.

    The model has a calibration if the held-out part shows labels at least 20 times. ``out/model`` is complete or does
    not exist; another model that somebody puts in its place is renamed, with a warning, and nothing is deleted. Raises
    ``ValueError`` for words that the text tower does not know, naming each label, a folder without a positive label, or
    an ``out`` that belongs to another run or holds a model of another origin, and as ``load``, ``load_model`` and
    ``train``.
    """
    if not is_real(held_out) or not 0 <= held_out < 1:
        raise ValueError(f"held_out = {held_out!r}: give a share of the pictures, 0 or more and below 1")
    held_out, cache = float(held_out), None if cache is None else user_path(cache, "cache")
    passes = None if passes is None else whole_number("passes", passes, otherwise=", or leave it out")
    seed = whole_number("seed", seed, least=0)
    out, model = user_path(out, "out"), _copy_of(start)
    dataset = load(folder, side=model.vlp.side, skip_bad=skip_bad, resize=model.config.resize, outside=outside)
    y = label_matrix(dataset)[:, dataset.labels.columns("seen")]  # (n, K)
    there = (y == 1).any(dim=0)  # (K,)
    if not there.any():
        raise ValueError(f"{folder}: no picture has a label, so there is nothing to learn: fill in labels.csv")
    labels = [name for name, any_of in zip(dataset.labels.seen, there.tolist()) if any_of]
    if (y[:, there] == 1).all():
        names = list_some(map(repr, labels))
        raise ValueError(f"{folder}: every picture has the label {names}: add pictures without it, or other labels")
    labels = check_words(model, labels)
    watch = Watch(model)
    for i in range(0, len(dataset), 1 + len(dataset) // 32):  # some from all over
        watch.see(dataset[i][0], dataset.files[i])
    watch.warn()
    rows, held = training_and_held_out(y, held_out, seed)
    if held_out and not len(held):
        tell(
            f"none of the {len(rows)} pictures is held out, as a label's last picture stays in training: no mAP and no "
            "probabilities; give more pictures of each label, or a larger held_out"
        )
    config = _config(model, len(rows), passes, seed)
    scratch = isinstance(start, Config)
    lr, share = (config.lr, 1.0) if scratch else (WARM * config.lr, SHARE)
    about = {"start": calibration.fingerprint(model), "held_out": held_out, "seed": seed, "lr": lr, "share": share}
    about |= {"passes": config.phases[0].epochs, "labels": labels}
    with alone(out):
        _noted(out, about)  # another run is refused before the work
        found = extract(model.vlp, dataset, dataset.labels, cache or out / "features")
        data = _beside(found, y[:, there], labels, model.reference_labels)
        training, test = data.take(rows), data.take(held)
        about |= {"data": training.identity()}
        noted = _noted(out, about)
        if not noted:
            write_json(out / "tuned.json", about)
        shown = [name for name, own in zip(labels, (test.labels[:, : len(labels)] == 1).any(dim=0).tolist()) if own]
        score = lambda: mean_ap(model, test, shown) if shown else math.nan
        before = noted["mAP"][0] if "mAP" in noted else score()
        first = copy.deepcopy(model.trainable_state())
        calibration.attach(model, None)
        model.config = config.replace(lr=lr)
        history = train(model, training, out)
        if len(history) and not history["lr"].any():
            tell("the only step of this training has a rate of 0, as the rate warms up: give more passes or pictures")
        model.config = config  # whose rate is that of a whole training: who goes on from here takes a share of it again
        files = [str(dataset.files[i]) for i in held]
        if not _take_saved(model, out / "model", noted):
            model.load_trainable(between(first, model.trainable_state(), share), out)
            calibration.attach(model, _calibrated(model, test))
            noted = about | {"weights_hash": hash_tensors(model.trainable_state())}
            write_json(out / "tuned.json", noted)  # which model this is, before there is one
            _save(model, out / "model")
        if "mAP" not in noted:
            noted |= {"labels": labels, "held out": files, "mAP": [before, score()]}
            write_json(out / "tuned.json", noted, str)
    table = pd.DataFrame({"mAP": noted["mAP"], "pictures": len(test), "labels": len(shown)}, ["before", "after"])
    return Tuned(model, tuple(labels), table, history, files, out)


def check_words(model: Method, names) -> list[str]:
    """The names themselves. Raises ``ValueError`` that names each one with a word that the text tower never saw or with
    too many words, and names that it reads alike."""
    names, faults = vocabulary.read_labels(list(names)), {}
    for name in names:
        try:
            model.label_embeddings([name])
        except ValueError as error:
            faults[name] = str(error)
    if faults:
        first, *others = faults
        more = f"; nor can it read {list_some(map(repr, others), most=50)}" if others else ""
        raise ValueError(f"{faults[first]}{more}")
    return names


def training_and_held_out(labels: Tensor, held_out: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r"""Rows of annotations (n, K) to train on and to hold out, both in order.

    Rows are drawn at random; one that has the last positive of a label is skipped. So fewer than
    ``round(held_out * n)`` rows may be held out where labels are rare.
    """
    present = labels == 1  # (n, K)
    left, held = present.sum(dim=0), []
    for row in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(held) < round(held_out * len(labels)) and (left[present[row]] > 1).all():
            left = left - present[row].long()
            held.append(row)
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(np.array(held, np.int64))


@torch.no_grad()
def mean_ap(model: Method, data: FrozenFeatures, names=None, embedded: Embedded | None = None) -> float:
    r"""mAP in percent over ``names`` (by default all of ``data``), scored as in ``classify``: together with the model's
    reference vocabulary. A label without a positive is left out (protocol ``empty="skip"``). With ``embedded`` (from
    ``embed``) the image side does not run again.

    Raises ``ValueError`` for a name that ``data`` does not annotate, or if none has a positive.
    """
    names = list(data.space.names if names is None else names)
    column = {name: k for k, name in enumerate(data.space.names)}
    if strange := [name for name in names if name not in column]:
        raise ValueError(f"{strange[0]!r} is not among the labels of the data: leave it out")
    y = data.labels[:, [column[name] for name in names]]
    if not (y == 1).any():
        raise ValueError(f"no picture shows any of {list_some(names)}: there is nothing to measure")
    words = vocabulary.beside_reference(model, names)
    t = model.label_embeddings(words.names)
    held = embedded or embed(model.eval(), data)
    scores = score_all(held, t, model.eval().score_embeddings)[:, words.columns]  # (n, K)
    return 100 * float(mean_average_precision(scores, y, empty="skip"))


def _copy_of(start) -> Method:
    """The model to train, a copy: the start stays as it is. Raises ``ValueError`` for one that trains nothing."""
    model = registry.for_config(start) if isinstance(start, Config) else load_model(start)
    model = copy.deepcopy(model) if model is start else model  # what was read is a copy already
    if not any(model.trained_parameters().values()):
        raise ValueError(
            f"{model.title} has nothing to train: start from a config, such as config.nus_wide(), or a trained model"
        )
    return model.to(devices.best()).eval()


def _config(model: Method, n: int, passes: int | None, seed: int) -> Config:
    """The model's config with the length of a training on n pictures, without augmentation."""
    batch = min(BATCH, n)
    each = passes or max(PASSES, math.ceil(STEPS / math.ceil(n / batch)))
    sides = dict.fromkeys(phase.trains for phase in model.config.phases)  # each once
    phases = tuple((side, each, batch) for side in sides if not learns_text(model, side))
    of_model = {"vlp", "vlp_weights", "side", "resize"}  # how it looks at a picture, whatever the data
    data = set(names_where(of=DATA)) - of_model | {"train_size", "val_size", "test_size"}
    own = {name: DEFAULTS[name] for name in data} | {"dataset": "folder"}
    return model.config.replace(phases=phases or model.config.phases, seed=seed, **own)


def between(first: dict[str, Tensor], last: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights, by name, at ``share`` (0..1) of the way from ``first`` to ``last``; integers are those of ``last``."""
    return {name: torch.lerp(first[name].to(x), x, share) if x.is_floating_point() else x for name, x in last.items()}


def _beside(found: FrozenFeatures, y: Tensor, labels, reference) -> FrozenFeatures:
    """Features annotated with ``labels`` (n, K); the other labels of the ``reference`` are unknown."""
    own = set(map(vocabulary.read_alike, labels))
    old = [name for name in reference if vocabulary.read_alike(name) not in own]
    unknown = y.new_zeros(len(y), len(old))
    return replace(found, labels=torch.cat([y, unknown], dim=1), space=LabelSpace([*labels, *old]))


def _noted(out: Path, about: dict) -> dict:
    """What an earlier call of the same run has noted in ``out``; nothing if there was none.

    Raises ``ValueError`` if ``out`` belongs to another run, or holds a model that no run has noted.
    """
    path = out / "tuned.json"
    if not path.is_file():
        if (out / "model").exists():
            raise ValueError(
                f"{out / 'model'} was not written by tune, which notes it in tuned.json: choose another out"
            )
        return {}
    try:
        there = read_json(path)
        if not isinstance(there.get("weights_hash", ""), str):
            raise ValueError(f"its weights_hash is {there['weights_hash']!r:.60}, where a hash should be")
        found = there.get("mAP", [math.nan, math.nan])
        if not isinstance(found, list) or len(found) != 2 or not all(isinstance(v, Real) for v in found):
            raise ValueError(f"its mAP is {found!r:.60}, where two numbers should be")
        known = {n: value for n, value in about.items() if n in there or n not in LATER}
        differ = [f"{n}: there {there.get(n)}, here {value}" for n, value in known.items() if there.get(n) != value]
    except ValueError as error:
        raise ValueError(f"{path} is not what tune wrote ({error}): choose another out, or delete {out}") from error
    if differ:
        raise ValueError(f"{out} belongs to another run ({'; '.join(differ)}): choose another out, or delete all of it")
    return there


def _take_saved(model: Method, folder: Path, noted: dict) -> bool:
    """Give ``model`` what an earlier call has saved in ``folder``; False if it saved nothing, or if another model or a
    damaged one lies there."""
    began = "weights_hash" in noted or "mAP" in noted  # the first is not in older folders
    try:
        if not began or not folder.exists():
            return False
        there = read_about(find_folder(folder))
        if there.get("weights_hash") != noted.get("weights_hash"):
            return False
        extras = {name: read_extra(folder, name) for name in EXTRAS if (folder / f"{name}.json").is_file()}
        model.load_trainable(read_weights(folder, there), folder)
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}", stacklevel=3)
        return False
    model.extras = extras
    return True


def _calibrated(model: Method, held: FrozenFeatures):
    """A calibration from the held-out part, or None with a warning if that shows too few labels."""
    positives = int((held.labels == 1).sum())
    if positives >= calibration.EACH:
        return calibration.calibrate(model, held)
    if len(held):
        warnings.warn(
            f"the {len(held)} held-out pictures show labels {positives} times, {calibration.EACH} are the least for "
            "probabilities: the model has none; give more pictures, or a larger held_out",
            stacklevel=3,
        )
    return None


def _save(model: Method, folder: Path) -> None:
    """``save_pretrained``; what lies there already, which is another model or a damaged one, gets another name."""
    if folder.exists():
        aside = next(path for i in count(1) if not (path := folder.with_name(f"{folder.name}.{i}")).exists())
        warnings.warn(f"{folder} is not the model that this run makes: it is {aside} now", stacklevel=3)
        folder.rename(aside)
    model.save_pretrained(folder)
