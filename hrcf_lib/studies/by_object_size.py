r"""Where a method wins: results by the size of the object, by the number of objects, and by label.

HRCF claims to help with small objects, so sizes are measured. MojiScenes knows the box of everything it draws; the
tables need only the scores of any method and the annotation.
Symbols: n images, K labels. Annotations are -1 (absent), 0 (unknown), +1 (present).
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib import metrics

SIZES = {"small": (0, 0.25), "medium": (0.25, 0.45), "large": (0.45, 2)}  # from, below, in shares of the side
SCENE = "stuff and words"  # the row of labels that are not a thing


def check_scenes(scenes) -> None:
    """Raise ``TypeError`` for data without boxes."""
    if not hasattr(scenes, "scene") or not hasattr(scenes, "labels"):
        raise TypeError(f"{type(scenes).__name__} has no scenes with boxes: give a split of MojiScenes")


def objects(scenes) -> tuple[Tensor, Tensor]:
    """Sizes (n, K) float32 and numbers (n,) int64 of the things that a MojiScenes split draws; about 2 ms per scene.

    A size is the longer side of a thing's box as a share of the picture's side, in (0, 1], in the columns of the label
    space. It is NaN for a label that is not drawn as a thing: for stuff, and for words above what is drawn. Everything
    drawn counts, annotated or not; the number includes things that are not labels. Raises ``TypeError`` for data
    without scenes.
    """
    check_scenes(scenes)
    column = {name: k for k, name in enumerate(scenes.labels.names)}
    sizes, numbers = torch.full((len(scenes), len(column)), torch.nan), []  # (n, K)
    for i in range(len(scenes)):
        scene = scenes.scene(i)
        numbers.append(scene.things)
        for name, (x0, y0, x1, y1) in zip(scene.names[: scene.things], scene.boxes.tolist(), strict=False):
            if name in column:
                sizes[i, column[name]] = max(x1 - x0, y1 - y0) / scene.image.shape[0]
    return sizes, torch.tensor(numbers)


def by_size(scores: Tensor, labels: Tensor, sizes: Tensor, k: int = 5) -> pd.DataFrame:
    r"""One row each for small, medium and large things, and for stuff and words.

    Positives of the other rows are set to 0, unknown: they take no part in AP. Compare methods within a row: rows have
    different labels and numbers of positives among the same negatives, and a rare label's AP is low for any method.

    Args:
        scores, labels: (n, K).
        sizes: (n, K), the same columns of ``objects``; a positive without a size is stuff or a word.
        k: labels predicted per image, for the recall.

    Returns:
        ``mAP`` in percent over the labels with a positive of that size, ``recall@k`` in percent (share of these
        positives among the k best of their image), ``positives``, and ``labels`` that have one; NaN where none has.

    Raises:
        ValueError: shapes that differ, sizes outside (0, 1], and what ``metrics`` refuses.
    """
    metrics.check(scores, labels)
    if sizes.shape != scores.shape:
        raise ValueError(
            f"sizes {tuple(sizes.shape)} must have the shape of the scores {tuple(scores.shape)}: "
            "take the columns of the task, such as sizes[:, space.columns('ZSL')]"
        )
    known = sizes[~sizes.isnan()]
    if ((known <= 0) | (known > 1)).any():
        raise ValueError("sizes are shares of the picture's side, in (0, 1] or NaN; divide pixels by the side")
    masks = {name: (sizes >= low) & (sizes < high) for name, (low, high) in SIZES.items()} | {SCENE: sizes.isnan()}
    rows = {name: _metrics_of_part(scores, labels, mask.to(labels.device), k) for name, mask in masks.items()}
    return _typed(pd.DataFrame.from_dict(rows, orient="index").rename_axis("size"))


def _metrics_of_part(scores: Tensor, labels: Tensor, part: Tensor, k: int) -> dict:
    """Metrics where positives outside ``part`` (n, K) are unknown."""
    present = (labels == 1) & part  # (n, K)
    y = torch.where((labels == 1) & ~part, 0, labels)  # (n, K), a new tensor
    n = int(present.sum())
    recall = 100 * metrics.precision_recall_f1_at_k(scores, y, k)[1] if n else float("nan")
    row = {"mAP": 100 * metrics.mean_average_precision(scores, y, "skip"), f"recall@{k}": recall}
    return row | {"positives": n, "labels": int(present.any(dim=0).sum())}


def by_number(scores: Tensor, labels: Tensor, counts: Tensor, k: int = 3) -> pd.DataFrame:
    r"""One row per number of things in a scene (``counts`` (n,), as ``objects`` gives them).

    ``mAP`` over the labels with positives among these images and ``F1@k`` (micro), in percent; ``images``; ``labels``.
    Fuller scenes have more positives, which alone raises both metrics: compare methods within a row.

    Raises ``ValueError`` for counts of another number of images, and what ``metrics`` refuses.
    """
    metrics.check(scores, labels)
    if counts.shape != scores.shape[:1]:
        raise ValueError(f"counts {tuple(counts.shape)} must be one number for each of {len(scores)} images")
    rows = {}
    for count in counts.unique().tolist():
        here = (counts == count).to(scores.device)  # (n,)
        s, y = scores[here], labels[here.to(labels.device)]
        f1 = 100 * metrics.precision_recall_f1_at_k(s, y, k)[2]
        row = {"mAP": 100 * metrics.mean_average_precision(s, y, "skip"), f"F1@{k}": f1, "images": len(s)}
        rows[count] = row | {"labels": int((y == 1).any(dim=0).sum())}
    return _typed(pd.DataFrame.from_dict(rows, orient="index").rename_axis("things"))


def per_label(scores: dict[str, Sequence[Tensor]], labels: Tensor, names: Sequence[str]) -> pd.DataFrame:
    r"""One row per label with positives: ``label``, the AP in percent of each method, ``positives``.

    Args:
        scores: method -> its scores (n, K), one table per seed; AP is the mean over them.
        labels: (n, K).
        names: K names, in the order of the columns.

    Raises:
        ValueError: no method, a method without scores, another number of names than columns, and what ``metrics``
            refuses.
    """
    if len(names) != labels.shape[-1]:
        raise ValueError(f"{len(names)} names for {labels.shape[-1]} columns of labels: give one each, in their order")
    empty = [method for method, runs in scores.items() if not len(runs)]
    if not scores or empty:
        raise ValueError(f"{f'{empty[0]!r} has' if empty else 'there are'} no scores: give one table (n, K) per seed")
    frame = pd.DataFrame({"label": list(names)})
    for method, runs in scores.items():
        ap = torch.stack([metrics.average_precision(s, labels).double().cpu() for s in runs])  # (seeds, K)
        frame[method] = (100 * ap.mean(dim=0)).numpy()
    frame["positives"] = (labels == 1).sum(dim=0).cpu().numpy()
    return frame[frame["positives"] > 0].reset_index(drop=True)


def frequency_bias(scores: Tensor, labels: Tensor) -> float:
    r"""How closely a label's mean score over pictures follows its frequency in training.

    Pearson's correlation over labels, in -1..1: mean of ``scores`` (n, K) against the share of positives in ``labels``
    (m, K) of ``train``. Near 1, common labels score high on every picture, whatever it shows. NaN if either is the same
    for all labels. Raises ``ValueError`` for another number of labels.
    """
    if scores.shape[1] != labels.shape[1]:
        raise ValueError(
            f"scores of {scores.shape[1]} labels and annotation of {labels.shape[1]}: give the same labels"
        )
    pair = torch.stack([scores.double().mean(dim=0).cpu(), (labels == 1).double().mean(dim=0).cpu()])  # (2, K)
    return float(torch.corrcoef(pair)[0, 1])


def of_runs(runs: dict[str, Sequence[dict[str, Tensor]]], scenes, labels: Tensor) -> dict[str, pd.DataFrame]:
    r"""``by_size`` and ``by_number`` of several methods, seeds and tasks.

    Args:
        runs: method -> one dictionary per seed, task -> scores (n, K of the task), as ``studies.scored`` gives them.
        scenes: the MojiScenes split that was scored.
        labels: (n, K) of all labels.

    Returns ``size`` and ``things``: the rows of either function with ``method``, ``seed`` (the place in the list) and
    ``task``. Raises what they and ``objects`` raise.
    """
    (sizes, numbers), space, parts = objects(scenes), scenes.labels, {"size": [], "things": []}
    for method, seeds in runs.items():
        for seed, of_task in enumerate(seeds):
            for task, scores in of_task.items():
                columns, about = space.columns(task), {"method": method, "seed": seed, "task": task}
                y = labels[:, columns]
                frames = by_size(scores, y, sizes[:, columns]), by_number(scores, y, numbers)
                for kind, frame in zip(parts, frames, strict=True):
                    parts[kind].append(frame.reset_index().assign(**about))
    return {kind: pd.concat(frames, ignore_index=True) for kind, frames in parts.items()}


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers; rows of mixed types make them floats."""
    return frame.astype({name: int for name in ("positives", "images", "labels") if name in frame})
