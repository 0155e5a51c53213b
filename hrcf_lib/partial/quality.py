r"""How good pseudo-labels are, epoch after epoch: of data whose hidden labels are known, as those of MojiScenes.

>>> model = baselines.build("trm_ml", base, categories=fit.categories(base))  # doctest: +SKIP
>>> data = fit.source(model, "train")  # doctest: +SKIP
>>> frame = quality.over_epochs(model, data, quality.truth(base), "runs/quality")  # doctest: +SKIP

n pictures, K seen labels; labels are -1 (absent), 0 (unknown), +1 (present).
"""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib.data import benchmarks
from hrcf_lib.data.dataset import label_matrix
from hrcf_lib.labels import check_scores
from hrcf_lib.passes import Pass
from hrcf_lib.training import train

KINDS = {"present": 1, "absent": -1}
COLUMNS = ("kind", "filled", "share", "precision", "recall", "chance")


def truth(config, data: str | Path = "data") -> Tensor:
    """Annotation (n, K) of the seen labels of a config's training set before any is hidden.

    Raises as ``open_split``.
    """
    dataset = benchmarks.open_split(config, "train", data)
    return label_matrix(dataset)[:, dataset.labels.columns("seen")]


def measure(filled: Tensor, known: Tensor, truth: Tensor) -> pd.DataFrame:
    r"""A row for each kind of pseudo-label, present and absent.

    Args:
        filled: (n, K), what a method makes of ``known``.
        known: (n, K), what it was given.
        truth: (n, K); where it is 0 nobody knows, and the entry takes no part.

    Returns:
        kind; filled, how many unknown labels are filled with it; share, of all unknown labels; precision, the share of
        them that are right (NaN without any); recall, the share of the unknown labels of that kind that are filled
        rightly; chance, the share of that kind among unknown labels, the precision of filling at random. All in 0..1
        but ``filled``.

    Raises:
        ValueError: shapes that differ, labels other than -1, 0 and 1, or a known label that was changed.

    >>> known, found = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 1, -1, 0]])
    >>> measure(found, known, torch.tensor([[1, 1, 1, -1]]))[["kind", "share", "precision", "recall"]].round(2)
          kind  share  precision  recall
    0  present   0.33        1.0     0.5
    1   absent   0.33        0.0     0.0
    """
    for labels in (known, truth):
        check_scores(filled.float(), labels)
    if (changed := (known != 0) & (filled != known)).any():
        i, k = changed.nonzero()[0].tolist()
        raise ValueError(f"the known label {k} of picture {i} was changed: pseudo-labels are for unknown ones")
    unknown, rows = (known == 0) & (truth != 0), []
    for kind, value in KINDS.items():
        made, right = unknown & (filled == value), unknown & (truth == value)
        hits, n = int((made & right).sum()), int(unknown.sum())
        part = lambda a, b: a / b if b else float("nan")
        row = (
            kind,
            int(made.sum()),
            part(int(made.sum()), n),
            part(hits, int(made.sum())),
            part(hits, int(right.sum())),
        )
        rows.append((*row, part(int(right.sum()), n)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@torch.no_grad()
def filled(model, data, batch: int = 64) -> tuple[Tensor, Tensor]:
    r"""What a method makes of the labels of ``data`` as it is now, and what it is given: two (n, K), on the CPU.

    In evaluation mode, from pictures as they are, not augmented. Raises ``ValueError`` for a method without
    pseudo-labels.
    """
    if not hasattr(model, "filled"):
        raise ValueError(f"{model.title} makes no pseudo-labels: take TRM-ML, or a method with estimates and filled")
    training, columns, parts = model.training, data.space.columns("seen"), []
    try:
        model.eval()
        t = model.label_embeddings(data.space.seen)
        for _, inputs, labels in data.batches(Pass(batch)):
            y = labels[:, columns].to(t.device)
            with model.autocast():
                _, regions = model.image_embeddings(data.tokens(model.vlp, inputs))
            parts.append((model.filled(model.estimates(regions.float(), t), y).cpu(), y.cpu()))
    finally:
        model.train(training)
    made, given = zip(*parts, strict=True)
    return torch.cat(made), torch.cat(given)


def over_epochs(model, data, truth: Tensor, folder: str | Path, pictures: int | None = None) -> pd.DataFrame:
    r"""Train ``model`` on ``data`` in ``folder``, stopping after each epoch to ``measure`` its pseudo-labels.

    The weights in the end are those of ``training.train`` without stops, bit for bit; where ``folder`` is that of a run
    (``studies.run_name``), ``studies.run`` then finds it trained. A folder with a checkpoint goes on from there, and
    epochs that were over before have no rows; a finished run has those of its last.

    Args:
        truth: (n, K) of the seen labels, as ``truth`` gives them.
        folder: of the checkpoint.
        pictures: the first ones are looked at, by default all.

    Returns:
        the columns of ``measure`` behind epoch, from 1, and step; two rows an epoch. What is measured is what the
        method would fill in now, also while it does not train on that yet (``pseudo_after``).

    Raises what ``train``, ``filled`` and ``measure`` raise, and ``ValueError`` for a truth of other shape.
    """
    if truth.shape != (len(data), data.space.n_seen):
        raise ValueError(
            f"a truth {tuple(truth.shape)} for {len(data)} pictures x {data.space.n_seen} seen labels: "
            "give quality.truth of the same config"
        )
    looked_at = data if pictures is None else data.take(range(min(pictures, len(data))))
    steps = [Pass(p.batch).steps(len(data)) for p in model.config.phases for _ in range(p.epochs)]
    ends, parts = torch.tensor(steps).cumsum(0).tolist(), []
    before = len(train(model, data, folder, stop_after=0))  # steps of a checkpoint that is there already
    for epoch, end in enumerate(ends, 1):
        if end > before or epoch == len(ends):
            train(model, data, folder, stop_after=end - before)
            own = measure(*filled(model, looked_at), truth[: len(looked_at)])
            parts.append(own.assign(epoch=epoch, step=end))
            before = end
    return pd.concat(parts, ignore_index=True)[["epoch", "step", *COLUMNS]]
