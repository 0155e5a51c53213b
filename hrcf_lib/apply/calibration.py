r"""Probabilities from scores: what share of labels with such a score are really in the picture?

A label's score *alone beside the reference vocabulary* (``Method.score_alone``) goes through a rising curve,

$$P(y_k = 1) = \sigma(f(S_k(R \cup \{k\}))), \qquad f \text{ piecewise linear, increasing}$$

so that the probability depends on picture, label and reference vocabulary, and not on the user's other labels. The
knots of the curve are the shares of positives in bins of scores, made monotone by isotonic regression (Zadrozny and
Elkan, 2002). It is fitted once on labels that were held out of the vocabulary: the seen labels are divided into folds,
and each fold is scored beside the others. Probabilities hold for labels as frequent as those it was fitted on; for
other frequencies there is ``at_prevalence`` (Saerens et al., 2002). n pictures, K labels, R reference labels.

::

    python -m hrcf_lib.apply.calibration runs/mini/model --data data    # writes calibration.json into the folder
"""

import argparse
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import brier_score_loss, f1_score
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.apply.vocabulary import read_alike
from hrcf_lib.config import fields_as_before, names_where
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds import sources
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.engine import devices
from hrcf_lib.engine.files import write_json
from hrcf_lib.engine.messages import check_known, tell, whole_number
from hrcf_lib.evaluation import score_all
from hrcf_lib.methods import registry
from hrcf_lib.metrics import best_threshold
from hrcf_lib.pretrained import read_extra

NAME = "calibration"  # among a model's extras
FILE = f"{NAME}.json"  # in a folder of ``save_pretrained``
ANEW = "python -m hrcf_lib.apply.calibration FOLDER makes it anew, without it there are no probabilities"
KNOTS, EACH = 20, 20  # largest number of knots; least number of answers of the rarer kind, yes or no, for each knot


@dataclass(frozen=True)
class Calibration:
    """A rising curve from scores to probabilities, a threshold for all labels, and others for some labels."""

    scores: tuple[float, ...]  # knots, increasing
    logits: tuple[float, ...]  # f at the knots, increasing; the first and the last piece are extended beyond the ends
    threshold: float  # probability from which the answer is yes, in 0..1
    prevalence: float  # share of positives among the answers that it was fitted on, in 0..1
    thresholds: dict[str, float] = field(default_factory=dict)  # label -> its own threshold
    made_for: str = ""  # ``fingerprint`` of the model
    about: dict = field(default_factory=dict)  # what it was fitted on

    def __post_init__(self):
        for name in ("scores", "logits"):
            if not isinstance(value := getattr(self, name), Iterable) or isinstance(value, str | dict):
                raise ValueError(f"{name} is a {type(value).__name__}, where a list should be")
        if not isinstance(self.thresholds, dict):
            raise ValueError(f"thresholds is a {type(self.thresholds).__name__}, where a dict should be")
        if odd := [value for value in (*self.scores, *self.logits) if not isinstance(value, Real)]:
            raise ValueError(f"scores and logits have {odd[0]!r:.60}, which is no number")
        x, f = tuple(map(float, self.scores)), tuple(map(float, self.logits))
        rising = all(a < b for a, b in zip(x, x[1:])) and all(a <= b for a, b in zip(f, f[1:]))
        if not x or len(x) != len(f) or not rising or not all(map(math.isfinite, x + f)):
            raise ValueError(f"{len(x)} scores and {len(f)} logits are not a rising curve: fit it again")
        for name, value in {"threshold": self.threshold, "prevalence": self.prevalence, **self.thresholds}.items():
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name} = {value!r:.60} is not a probability: give a number from 0 to 1")
        object.__setattr__(self, "scores", x)
        object.__setattr__(self, "logits", f)

    def logit(self, scores: Tensor) -> Tensor:
        """f of scores of ``LabelScorer.alone``, any shape, in float64 (``np.interp`` is flat beyond the ends)."""
        x, f = torch.tensor(self.scores, dtype=torch.float64), torch.tensor(self.logits, dtype=torch.float64)
        s = scores.detach().cpu().double()
        if len(x) == 1:
            return torch.full_like(s, float(f))
        i = torch.searchsorted(x, s.contiguous()).clamp(1, len(x) - 1)  # number of the piece
        slope = (f[i] - f[i - 1]) / (x[i] - x[i - 1])
        return f[i - 1] + slope * (s - x[i - 1])

    def probability(self, scores: Tensor) -> Tensor:
        """Scores of ``LabelScorer.alone``, any shape -> probabilities in 0..1, float64 on the CPU."""
        return torch.sigmoid(self.logit(scores))

    def thresholds_for(self, labels) -> Tensor:
        """The threshold (K,) of each label: its own, or the one for all; names that are read alike are one label."""
        own = {read_alike(name): value for name, value in self.thresholds.items()}
        return torch.tensor([own.get(read_alike(name), self.threshold) for name in labels], dtype=torch.float64)

    def at_prevalence(self, prevalence: float) -> "Calibration":
        r"""The same curve for labels as frequent as ``prevalence``: all odds are multiplied by one factor, and no yes
        or no changes. Raises ``ValueError`` for a number that is not between 0 and 1."""
        shift = _logit(_share(prevalence)) - _logit(self.prevalence)
        shifted = lambda p: p if p in (0, 1) else 1 / (1 + math.exp(-_logit(p) - shift))
        return replace(
            self,
            logits=tuple(f + shift for f in self.logits),
            threshold=shifted(self.threshold),
            thresholds={name: shifted(p) for name, p in self.thresholds.items()},
            prevalence=prevalence,
        )


def _share(prevalence: float) -> float:
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence = {prevalence!r}: give the share of pictures with a label, between 0 and 1")
    return prevalence


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


# -- fitting -----------------------------------------------------------------------------------------------------------


def calibrate(model, data, folds: int = 5, seed: int = 0) -> Calibration:
    r"""The curve of a model from ``data`` that it was not trained on, such as ``sources.source(model, "val")``.

    To use and keep it: ``attach(model, calibrate(model, data))``, then ``save_pretrained``. Raises as ``held_out``
    and ``fit_curve``.
    """
    s, y = held_out(model, data, folds, seed)
    about = {"pictures": len(data), "labels": s.shape[1], "folds": folds, "seed": seed, "answers": int((y != 0).sum())}
    return replace(fit_curve(s, y), made_for=fingerprint(model), about=about)


@torch.no_grad()
def held_out(model, data, folds: int = 5, seed: int = 0, batch: int = 64) -> tuple[Tensor, Tensor]:
    r"""Scores (n, K) of the reference labels, each alone beside those of the other folds, and their annotation (n, K).

    For a model without reference labels these are the seen labels of ``data``. Raises ``ValueError`` for fewer labels
    than folds, fewer than two folds, or a reference label that ``data`` does not have.
    """
    names = list(model.reference_labels or data.space.seen)
    column = {name: k for k, name in enumerate(data.space.names)}
    if strange := [name for name in names if name not in column]:
        raise ValueError(f"the data have no label {strange[0]!r} of the reference vocabulary: give data of its labels")
    if not 2 <= folds <= len(names):
        raise ValueError(f"folds = {folds} of {len(names)} seen labels: choose a number from 2 to that")
    t, held = model.label_embeddings(names), embed(model.eval(), data)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    found = torch.empty(len(data), len(names))
    for fold in tqdm(order.chunk(folds), "folds", disable=None, leave=False):
        rest = torch.ones(len(names), dtype=torch.bool).index_fill(0, fold, False)
        found[:, fold] = score_all(held, t[fold], _beside(model, t[rest]), batch)
    return found, data.labels[:, [column[name] for name in names]]


@torch.no_grad()
def beside_reference(model, data, names, batch: int = 64) -> Tensor:
    """Scores (n, K) of labels that are not in the reference vocabulary, each scored alone beside that vocabulary."""
    held = embed(model.eval(), data)
    reference = model.label_embeddings(model.reference_labels)
    return score_all(held, model.label_embeddings(names), _beside(model, reference), batch)


def _beside(model, reference: Tensor):
    """A scorer for ``score_all``: each label alone beside ``reference`` (R, D)."""
    return lambda e_g, regions, own: model.score_alone(e_g, regions, reference, own)


def fit_curve(scores: Tensor, labels: Tensor) -> Calibration:
    r"""The curve that fits scores to annotation (any shape; entries labelled 0 are ignored), and the threshold with the
    highest F1 over all entries together, half way to the next lower probability.

    Each bin holds an equal share of the answers, with positives and negatives weighing the same in total. Raises
    ``ValueError`` if there is no positive or no negative, or for scores that are not finite.
    """
    known = labels != 0
    s, y = scores[known].double().numpy(), (labels[known] == 1).numpy()
    if not np.isfinite(s).all():
        raise ValueError("scores are NaN or infinite: look at the pictures, or at the weights")
    if y.all() or not y.any():
        raise ValueError(f"{y.sum()} positives among {len(y)} answers: a curve needs both kinds; give more pictures")
    order = np.argsort(s, kind="stable")
    s, y = s[order], y[order]
    bins = int(np.clip(min(y.sum(), (~y).sum()) // EACH, 2, KNOTS))
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())  # so that both ends of the curve have knots
    part = np.minimum((np.cumsum(weight) - weight / 2) * bins, bins - 1).astype(int)  # the bin of each answer
    part = part[np.searchsorted(s, s, side="right") - 1]  # equal scores are in one bin
    answers, hits, total = (np.bincount(part, w, bins) for w in (None, y, s))
    answers, hits, total = (v[answers > 0] for v in (answers, hits, total))
    share = isotonic_regression((hits + 0.5) / (answers + 1), sample_weight=answers)
    pooled = np.cumsum(np.diff(share, prepend=share[0]) > 0)  # bins that isotonic regression joined
    answers, hits, total = (np.bincount(pooled, v) for v in (answers, hits, total))
    share = (hits + 0.5) / (answers + 1)  # between 0 and 1, exclusive
    curve = Calibration(total / answers, np.log(share / (1 - share)), 0.5, float(y.mean()))
    p = curve.probability(torch.from_numpy(s))  # (answers,), increasing
    best = best_threshold(p[:, None], torch.from_numpy(np.where(y, 1, -1))[:, None])
    lower = p[p < best]
    return replace(curve, threshold=(best + (float(lower[-1]) if len(lower) else 0.0)) / 2)


def own_thresholds(calibration: Calibration, scores: Tensor, labels: Tensor, names, random: bool = False) -> dict:
    r"""Label -> its own threshold, for each label with a positive and a negative among a handful of examples.

    The examples shift a label's logits by $b_k$, with a normal prior of mean 0 and deviation 1 (a label is like the
    others until examples say otherwise), and its threshold by the same amount in the other direction. Examples that
    were picked say nothing about how frequent a label is, so that is removed as in case-control studies (Prentice and
    Pyke, 1979); ``random`` says that they are a random sample, which does.

    ``scores`` (n, K) are those of ``LabelScorer.alone``, ``labels`` (n, K) are -1/0/+1. To keep the thresholds:
    ``dataclasses.replace(calibration, thresholds=...)``.
    """
    found = {}
    for k, name in enumerate(names):
        known = labels[:, k] != 0
        y = (labels[known, k] == 1).double()
        if 0 < y.sum() < len(y) and 0 < calibration.threshold < 1:
            f = calibration.logit(scores[known, k])
            picked = 0.0 if random else _logit(float(y.mean())) - _logit(calibration.prevalence)
            found[name] = 1 / (1 + math.exp(_offset(f + picked, y) - _logit(calibration.threshold)))
    return found


def _offset(f: Tensor, y: Tensor) -> float:
    """The most probable b where P(y = 1) = sigma(f + b) and b ~ N(0, 1): where the slope, which falls, is 0.

    Not by Newton's method, which runs away where a label is far more frequent than the curve says.
    """
    slope = lambda b: float((y - torch.sigmoid(f + b)).sum()) - b
    return brentq(slope, -len(y), len(y))  # n examples pull b by less than n


# -- is it right? ------------------------------------------------------------------------------------------------------


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 10) -> pd.DataFrame:
    r"""What a reliability diagram shows: ``bins`` bins that promise equally many positives, the least probable first.

    Bins of equally many answers, as in scikit-learn's ``calibration_curve``, would nearly all lie where no label is.
    Columns: ``said`` (mean probability), ``true`` (share of positives), ``answers`` (their number), ``gap`` (said minus
    true). Entries labelled 0 are ignored.
    """
    known = labels != 0
    order = probabilities[known].argsort(stable=True)
    p, y = probabilities[known].double()[order], (labels[known] == 1).double()[order]
    part = ((p.cumsum(0) - p / 2) * bins / p.sum()).long().clamp(0, bins - 1)
    rows = [(float(p[part == i].mean()), float(y[part == i].mean()), int((part == i).sum())) for i in part.unique()]
    frame = pd.DataFrame(rows, columns=["said", "true", "answers"])
    return frame.assign(gap=frame["said"] - frame["true"])


def calibration_error(frame: pd.DataFrame, of: str = "answers") -> float:
    r"""Mean absolute gap of a ``reliability`` table, in 0..1: the expected calibration error over all ``answers``, most
    of which are an easy no, or over the ``positives`` that were promised."""
    weights = frame["answers"] * (frame["said"] if of == "positives" else 1)
    return float((frame["gap"].abs() * weights).sum() / weights.sum())


def summary(calibration: Calibration, scores: Tensor, labels: Tensor) -> dict:
    """How right a calibration is on other data: prevalence, ECE (two kinds), Brier score and its skill, F1 of yes."""
    known = labels != 0
    p, y = calibration.probability(scores)[known.cpu()], (labels[known] == 1).double()
    table, share, yes = reliability(p, y * 2 - 1), float(y.mean()), p >= calibration.threshold
    brier = float(brier_score_loss(y, p))
    return {
        "answers": len(y),
        "prevalence": share,
        "mean probability": float(p.mean()),
        "ECE": calibration_error(table),
        "ECE of positives": calibration_error(table, "positives"),
        "Brier": brier,
        "skill": 1 - brier / max(share * (1 - share), 1e-12),  # 0: no better than always saying the prevalence
        "F1": float(f1_score(y, yes, zero_division=0)),
    }


# -- with a model, and on disk -----------------------------------------------------------------------------------------


def fingerprint(model) -> str:
    """16 hex digits of what scores depend on beside the VLP: trained weights, reference labels, settings."""
    names = sorted(set(names_where(type(model.config), scores=True)) - fields_as_before(model.config))
    settings = {name: value for name in names if (value := getattr(model.config, name)) is not None}
    digest = hashlib.sha256(json.dumps([model.config.method, settings, model.reference_labels]).encode())
    for name, x in sorted(model.trainable_state().items()):
        digest.update(name.encode() + x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def attach(model, calibration: Calibration | None) -> None:
    """Keep a calibration with a model, which then saves it; None removes the one that is there."""
    others = {name: values for name, values in model.extras.items() if name != NAME}
    new = {} if calibration is None else {NAME: asdict(calibration)}
    model.extras = others | new  # a new dict: ``Method.under`` copies share the old one


def of_model(model) -> Calibration | None:
    """The calibration that is kept with a model, whatever it was made for, or None. Raises ``ValueError`` for a damaged
    one."""
    if (values := model.extras.get(NAME)) is None:
        return None
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(Calibration)}
    try:
        check_known(values, list(known), "it has")
        if lacking := [name for name, needed in known.items() if needed and name not in values]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        return Calibration(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the model's calibration is damaged ({error}): {ANEW}") from error


def for_model(model) -> Calibration | None:
    """The calibration of a model, or None; one made for other weights, labels or settings is ignored with a warning.

    Raises as ``of_model``.
    """
    own = of_model(model)
    if own is not None and own.made_for and own.made_for != fingerprint(model):
        tell(
            "the model's calibration was made for other weights, settings (lam, keep, ...) or reference labels: no "
            "probabilities; make it anew (python -m hrcf_lib.apply.calibration FOLDER)"
        )
        return None
    return own


def _forget_damaged(folder: Path) -> None:
    """Delete a file that would keep the model from loading; a good one stays until it is replaced."""
    try:
        if (folder / FILE).is_file():
            read_extra(folder, NAME)
    except ValueError:
        (folder / FILE).unlink()


def main(words=None) -> None:
    """The command line: calibrates a saved model on val and, if asked, says how right it is on the test splits."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.apply.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a saved model")
    parser.add_argument("--data", default="data", help="folder of prepared data sets (default: data)")
    parser.add_argument("--cache", help="folder of frozen features")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--prevalence", type=float, help="how frequent a label is where the model will be used")
    parser.add_argument("--test", action="store_true", help="also say how right it is on unseen labels of test splits")
    given = parser.parse_args(words)
    try:
        whole_number("folds", given.folds, 2)
        if given.prevalence is not None:
            _share(given.prevalence)  # before the work
        _forget_damaged(given.folder)
        model = registry.load(given.folder).to(devices.best())
        splits = benchmarks.splits(model.config, given.data)
        if "val" not in splits:
            parser.exit(2, f"{model.config.dataset} has no split val to calibrate on: use calibrate(model, data)\n")
        source = lambda split: sources.source(model, split, given.data, given.cache)
        made = calibrate(model, source("val"), given.folds)
        made = replace(made, about={"dataset": model.config.dataset, "split": "val"} | made.about)
        made = made if given.prevalence is None else made.at_prevalence(given.prevalence)
        write_json(given.folder / FILE, asdict(made))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{given.folder / FILE}: prevalence {made.prevalence:.4f}, threshold {made.threshold:.3f}")
    for split in [s for s in splits if s.startswith("test")] if given.test else []:
        data = source(split)
        if data.space.unseen:
            s = beside_reference(model, data, data.space.unseen)
            y = data.labels[:, data.space.columns("ZSL")]
            print(f"\nunseen labels of {split}:", {k: round(v, 4) for k, v in summary(made, s, y).items()})
            print(reliability(made.probability(s), y).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
