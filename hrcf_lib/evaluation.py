r"""One pass over a split -> scores -> a table of metrics whose protocol is named.

The image side does not depend on the labels, so it runs once (``embed``); every label set and every test-time setting
(lambda, RSS) is then scored from the stored embeddings. Scores are computed once *per label set*: ZSL scores are not
columns of GZSL scores, because softmax, ranking and norms run over the labels being scored.
"""

import warnings
from functools import partial

import pandas as pd
import torch
from accelerate.utils import gather
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import protocols
from hrcf_lib.data.feeds.embeddings import Embedded
from hrcf_lib.data.feeds.feed import Feed, check_feed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine.devices import process
from hrcf_lib.engine.messages import list_some


@torch.no_grad()
def score_all(embedded: Embedded, label_embeddings: Tensor, scorer, batch: int = 256) -> Tensor:
    """Scores (n, K) of a whole split; ``scorer(e_g, regions, label_embeddings) -> (B, K)``."""
    device = label_embeddings.device
    parts = []
    for rows in torch.arange(len(embedded.e_g)).split(batch):
        e_g, regions = embedded.e_g[rows].to(device), embedded.regions[rows].to(device).float()
        parts.append(scorer(e_g, regions, label_embeddings).cpu())
    return torch.cat(parts)


def metrics_row(values: Tensor, labels: Tensor, ks=(3, 5), protocol="per_class", task="GZSL") -> dict:
    """A row of metrics in percent from scores and annotation (n, K), with the protocol, and images and labels in mAP.

    ``protocol`` is a name of ``protocols.PROTOCOLS`` (or a ``Protocol``); ``PROTOCOL`` says what the default computes.
    ``task`` matters to those that treat seen, ZSL and GZSL differently. Raises what ``protocols.measure`` refuses.
    """
    protocol = protocols.named(protocol)
    row = protocols.measure(values, labels, ks, protocol, task)
    counts = {name: row.pop(name) for name in ("images", "labels")}
    return {name: 100 * value for name, value in row.items()} | {"protocol": protocol.name} | counts


PROTOCOL = (
    "P/R/F1@K: micro over all test images. mAP: a label without positives counts 0 (empty='zero'); "
    "'mAP skip' leaves such labels out. Scores are computed for each task's own label set."
)


def evaluate(
    model, data: Feed, tasks=("ZSL", "GZSL"), scorer=None, embedded=None, protocol: str | None = None
) -> pd.DataFrame:
    """One row per task: P/R/F1@K and mAP in percent by a named protocol, each task scored for its own label set.

    ``data``: ``FrozenFeatures`` or ``Pictures``. ``scorer`` replaces the model's own scores (see ``studies.controls``);
    with ``embedded`` (from ``embed``) the image side does not run again. ``protocol`` as in ``metrics_row``, by default
    that of the config. Raises ``ValueError`` for an unknown protocol, no task, a task that the label space has no
    labels for or fewer than the largest K, or features of another depth of the ViT, and ``TypeError`` for what is no
    method or no feed.

    Where several processes run this, each scores its share of the pictures, every picture is scored exactly once, and
    all of them get the same table.
    """
    return compare(model, data, {"": scorer}, tasks, embedded, protocol)[""]


def compare(
    model, data: Feed, scorers: dict, tasks=("ZSL", "GZSL"), embedded=None, protocol=None
) -> dict[str, pd.DataFrame]:
    """The table of ``evaluate`` for each of several scorers by name, in one pass over the data; None: the model's own.

    Without ``embedded``, pictures are scored batch by batch, and only the scores are kept in memory.
    """
    if embedded is None:
        check_feed(model, data)
    protocol = protocols.named(protocol or model.config.protocol)  # an unknown name fails before the work
    tasks = [tasks] if isinstance(tasks, str) else list(tasks or ())
    if not tasks:
        raise ValueError("tasks is empty: give at least one, such as ('ZSL', 'GZSL')")
    _warn_of_leaks(model, data.space)
    views = {task: label_view(data.space, task) for task in tasks}
    for task, view in views.items():
        if (most := max(model.config.ks)) > len(view.names):
            few = f"{task} has {len(view.names)} labels, too few for P/R/F1@{most}"
            raise ValueError(f"{few}: evaluate model.under(model.config.replace(ks=(1,)))")
    model.eval()
    scorers = {name: model.score_embeddings if scorer is None else scorer for name, scorer in scorers.items()}
    with torch.no_grad():
        t = {task: model.embed_names(view.names) for task, view in views.items()}
    if embedded is None:
        streamed = _score_streaming(model, data, scorers, t)
        values = lambda name, task: streamed[name, task][:, : len(views[task].names)]
    else:
        values = lambda name, task: score_all(embedded, t[task], scorers[name])[:, : len(views[task].names)]
    return {name: table_rows(data, tasks, partial(values, name), model.config.ks, protocol) for name in scorers}


def _warn_of_leaks(model, space) -> None:
    """Unseen labels that the model was trained on are not zero-shot labels, as with another ``vocabulary_seed``."""
    learnt = sorted(set(model.reference_labels) & set(space.unseen))
    if learnt:
        listed = list_some(learnt, most=3)
        warnings.warn(f"trained on labels that are called unseen here: {listed}; ZSL is not zero-shot", stacklevel=3)


@torch.no_grad()
def _score_streaming(model, data, scorers, label_embeddings, batch: int = 64) -> dict[tuple[str, str], Tensor]:
    """(scorer, task) -> scores (n, K) of all pictures on the CPU; each process computes its share of every batch."""
    state = process()
    order = BatchOrder(batch * state.num_processes, rank=state.process_index, world=state.num_processes)
    keys = [(name, task) for name in scorers for task in label_embeddings]
    values, done = {}, []
    show = tqdm(data.batches(order), "scores", order.steps(len(data)), disable=None if state.is_main_process else True)
    for rows, inputs, _ in show:
        done.append(torch.as_tensor(rows, dtype=torch.long))
        if not len(rows):
            continue
        with model.autocast():
            e_g, regions = (x.float() for x in model.image_embeddings(data.tokens(model.vlp, inputs)))
        for name, task in keys:
            values.setdefault((name, task), []).append(scorers[name](e_g, regions, label_embeddings[task]).cpu())
    done = torch.cat(done)
    for name, task in keys:
        share = torch.cat(values.pop((name, task), [torch.empty(0, len(label_embeddings[task]))]))
        values[name, task] = gather_rows(share, done, len(data))
    return values


def gather_rows(values: Tensor, rows: Tensor, n: int) -> Tensor:
    r"""Values (b, ...) of ``rows`` (b,) of this process -> (n, ...) of all of them, on every process and on the CPU.

    Processes may have different numbers of rows, also none. Raises ``RuntimeError`` unless every row from 0 to n - 1
    comes exactly once.
    """
    state = process()
    if state.num_processes > 1:
        device, parts = state.device, []
        for x in (values, rows):
            sizes = gather(torch.tensor([len(x)], device=device)).tolist()
            padded = torch.zeros(max(sizes), *x.shape[1:], dtype=x.dtype, device=device)
            padded[: len(x)] = x.to(device)
            whole = gather(padded).cpu().split(max(sizes))
            parts.append(torch.cat([part[:size] for part, size in zip(whole, sizes, strict=True)]))
        values, rows = parts
    if not torch.equal(rows.sort().values, torch.arange(n)):
        raise RuntimeError(f"{len(rows)} rows were scored, {len(rows.unique())} different ones, where there are {n}")
    out = torch.empty_like(values)
    out[rows] = values
    return out


def label_view(space, task: str):
    """The label view of a task. Raises ``ValueError`` if the label space has no labels for it."""
    view = space.view(task)
    if not view.names:
        raise ValueError(f"the label space has no labels for {task}: give unseen labels, or leave the task out")
    return view


def table_rows(data, tasks, values, ks, protocol="per_class") -> pd.DataFrame:
    """One row per task; ``values(task)`` -> scores (n, K) of all pictures for the task's own names."""
    rows = {}
    for task in tasks:
        rows[task] = metrics_row(values(task), data.labels[:, label_view(data.space, task).columns], ks, protocol, task)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")
