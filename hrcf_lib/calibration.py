r"""Probabilities from scores: what share of labels with such a score are really in the picture?

A label's score *alone inside the reference vocabulary* (``alone.py``) goes through a logistic curve,

$$P(y_k = 1) = \sigma(a\, S_k(R \cup \{k\}) + b)$$

so that the probability depends on picture, label and reference vocabulary and on no other label of the user's. The two
numbers are fitted once (Platt, 1999) on labels that were held out of the vocabulary: the seen labels are dealt into
folds, and each fold is scored beside the others. The probability is one for the pictures it was fitted on: where things
are rarer or more frequent than there, so they are here. n pictures, K labels, R reference labels.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hrcf_lib.alone import score_alone
from hrcf_lib.embeddings import Embedded, embed


@dataclass(frozen=True)
class Calibration:
    """A logistic curve and what to act on: a threshold for all labels, and others for some."""

    slope: float  # a
    intercept: float  # b
    threshold: float  # probability from which the answer is yes, in 0..1
    thresholds: dict[str, float] = field(default_factory=dict)  # label -> its own, instead

    def probability(self, scores: Tensor) -> Tensor:
        """Scores of ``score_among``, any shape -> probabilities in 0..1."""
        return torch.sigmoid(self.slope * scores + self.intercept)

    def of(self, labels) -> Tensor:
        """The threshold of each label (K,)."""
        return torch.tensor([self.thresholds.get(name, self.threshold) for name in labels])

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def held_out(model, data, folds: int = 5, seed: int = 0, batch: int = 64) -> tuple[Tensor, Tensor]:
    r"""Scores (n, R) of the seen labels, each alone beside those of the other folds, and their annotation (n, R).

    Raises ``ValueError`` for fewer seen labels than folds, or fewer than two folds.
    """
    names, space = list(data.space.seen), data.space
    if not 2 <= folds <= len(names):
        raise ValueError(f"folds = {folds} of {len(names)} seen labels: choose a number from 2 to that")
    t, held = model.label_embeddings(names), embed(model.eval(), data)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    found = torch.empty(len(data), len(names))
    for fold in order.chunk(folds):
        rest = torch.ones(len(names), dtype=torch.bool).index_fill(0, fold, False)
        found[:, fold] = _in_batches(model, held, t[rest], t[fold], batch)
    return found, data.labels[:, space.columns("seen")]


@torch.no_grad()
def beside_reference(model, data, names, batch: int = 64) -> Tensor:
    """Scores (n, K) of labels that are not in the model's reference vocabulary, each alone beside it."""
    held = embed(model.eval(), data)
    reference = model.label_embeddings(model.reference_labels)
    return _in_batches(model, held, reference, model.label_embeddings(names), batch)


def _in_batches(model, held: Embedded, reference: Tensor, own: Tensor, batch: int) -> Tensor:
    parts = []
    for rows in torch.arange(len(held.e_g)).split(batch):
        e_g, regions = held.e_g[rows].to(own.device), held.regions[rows].to(own.device).float()
        parts.append(score_alone(model, e_g, regions, reference, own).cpu())
    return torch.cat(parts)


def fit(scores: Tensor, labels: Tensor) -> Calibration:
    r"""The curve that fits scores to annotation (any shape; entries labelled 0 take no part), and the threshold of
    highest F1 over all of them together.

    Raises ``ValueError`` if there is no positive or no negative, or scores that are not finite.
    """
    known = labels != 0
    s, y = scores[known].double().numpy(), (labels[known] == 1).numpy()
    if not np.isfinite(s).all():
        raise ValueError("scores are NaN or infinite: look at the pictures, or at the weights")
    if y.all() or not y.any():
        raise ValueError(f"{y.sum()} positives among {len(y)} answers: a curve needs both kinds; give more pictures")
    centre, spread = s.mean(), s.std() or 1.0  # lbfgs wants numbers around 1
    curve = LogisticRegression(C=np.inf).fit(((s - centre) / spread)[:, None], y)
    slope = float(curve.coef_[0, 0] / spread)
    made = Calibration(slope, float(curve.intercept_[0] - slope * centre), 0.5)
    return Calibration(
        made.slope, made.intercept, best_threshold(made.probability(torch.from_numpy(s)), torch.from_numpy(y))
    )


def best_threshold(probabilities: Tensor, truth: Tensor) -> float:
    """The probability from which yes has the highest F1: (m,), (m,) bool -> float, half way to the next lower one.

    Without a positive it is just above the highest probability. Ties go to the higher threshold.
    """
    order = probabilities.sort(descending=True, stable=True)
    p, y = order.values.double(), truth[order.indices].double()
    if not y.any():
        return float(min(1.0, p.max() + 1e-6)) if len(p) else 0.5
    hits, said = y.cumsum(0), torch.arange(1, len(y) + 1)
    f1 = 2 * hits / (said + y.sum())
    f1[:-1][p[:-1] == p[1:]] = -1  # a threshold cannot part equal probabilities
    at = int(f1.argmax())
    below = float(p[at + 1]) if at + 1 < len(p) else 0.0
    return (float(p[at]) + below) / 2


def own_thresholds(calibration: Calibration, scores: Tensor, labels: Tensor, names) -> Calibration:
    r"""A copy with a threshold of its own for each label with a positive and a negative among a handful of examples.

    ``scores`` (n, K) are those of ``score_among``, ``labels`` (n, K) -1/0/+1. Others keep the global threshold.
    """
    found = dict(calibration.thresholds)
    for k, name in enumerate(names):
        known = labels[:, k] != 0
        y = labels[known, k] == 1
        if y.any() and not y.all():
            found[name] = best_threshold(calibration.probability(scores[known, k]), y)
    return replace(calibration, thresholds=found)


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 10) -> pd.DataFrame:
    r"""What a reliability diagram shows: ``bins`` parts of equally many answers, from the lowest probability up.

    Columns: ``said`` (mean probability), ``true`` (share of positives), ``answers``, and ``gap``, the first minus the
    second; entries labelled 0 take no part. The weighted mean of the absolute gaps is the expected calibration error.
    """
    known = labels != 0
    p, y = probabilities[known].double(), (labels[known] == 1).double()
    parts = [rows for rows in p.argsort(stable=True).tensor_split(bins) if len(rows)]
    rows = [{"said": float(p[part].mean()), "true": float(y[part].mean()), "answers": len(part)} for part in parts]
    frame = pd.DataFrame(rows, columns=["said", "true", "answers"])
    return frame.assign(gap=frame["said"] - frame["true"])


def calibration_error(frame: pd.DataFrame) -> float:
    """Expected calibration error of a ``reliability`` table, in 0..1."""
    return float((frame["gap"].abs() * frame["answers"]).sum() / frame["answers"].sum())
