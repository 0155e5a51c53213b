r"""Methods for missing labels: tables over p, the share of training labels that are known, and the quality of
pseudo-labels.

Papers on partial labels print the tables. n pictures, K seen labels; labels are -1 (absent), 0 (unknown), +1 (present).
"""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib.config import Config
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.engine import devices
from hrcf_lib.engine.messages import check_known, need
from hrcf_lib.labels import check_scores
from hrcf_lib.methods import registry
from hrcf_lib.studies import runs
from hrcf_lib.training import train

SHARES = tuple(p / 10 for p in range(1, 10))  # of the published tables
AT = " @ "  # between a method's name and its p, in the name of a variant

METHODS = {"ASL, unknown absent": "asl", "ASL": "asl", "CoOp": "coop", "DualCoOp": "dual_coop"}
METHODS |= {"Semantic-aware": "semantic_aware", "TRM-ML": "trm_ml", "HRCF": "hrcf"}
RATES = {  # name of a method -> the field of its rate of learning -> values, three times apart, the best not at an end
    "asl": {"prompt_lr": [3e-2, 1e-1, 3e-1]},
    "coop": {"prompt_lr": [3e-4, 1e-3, 3e-3]},
    "dual_coop": {"prompt_lr": [3e-3, 1e-2, 3e-2]},
    "semantic_aware": {"lr": [3e-4, 1e-3, 3e-3, 1e-2]},
    "trm_ml": {"lr": [1e-3, 3e-3, 1e-2]},
    "hrcf": {"lr": [3e-4, 1e-3, 3e-3, 1e-2]},
}


def searched(base: Config, categories, feats, folder: str | Path, rates: dict = RATES) -> dict[str, tuple]:
    r"""Name of a method -> what ``studies.search`` returns for it: changes of its config, chosen on val, and all rows.

    ``rates``: name -> grid, by default the rate of learning of each method alone. ``base``, ``categories`` as for
    ``methods``. Raises as ``studies.search``.
    """
    return {
        name: runs.search(registry.configure(name, base, **_own(name, categories)), grid, feats, folder)
        for name, grid in rates.items()
    }


def _own(name: str, categories) -> dict:
    """What every config of a method has here: the categories, but for HRCF, which scores any label."""
    return {} if name == "hrcf" else {"categories": tuple(categories)}


def methods(base: Config, categories, single: bool = False, chosen: dict | None = None) -> dict[str, Config]:
    r"""Title -> config of every method that is compared on missing labels, in the experiment of ``base``.

    ``categories`` are the names of the seen labels (``data.feeds.sources.categories``). With ``single`` positives no
    absent label is known, and a sigmoid learns nothing from present ones alone: all methods but the one titled ASL then
    take unknown labels for absent (TRM-ML those without a pseudo-label). HRCF's ranking loss has no pair to rank.
    ``chosen``: name of a method -> changes of its config, such as those that ``searched`` found.

    >>> from hrcf_lib import config
    >>> list(methods(config.mini(), ["owl", "bus"]))[:3]
    ['ASL, unknown absent', 'ASL', 'CoOp']
    """
    found = {}
    for title, name in METHODS.items():
        own = _own(name, categories)
        if title == "ASL, unknown absent" or single and title not in ("ASL", "HRCF"):
            own["unknown"] = "negative"
        own |= (chosen or {}).get(name, {})
        found[title] = registry.configure(name, base.replace(single_positive=True) if single else base, **own)
    return found


def parts() -> dict[str, dict[str, dict]]:
    r"""Title of a method -> name of a variant without a part, or with another -> the changes that make it.

    TRM-ML: Tables 3 (its parts one by one, up to the whole), Sec. 3.6 (pixels and whole pictures) and 6 (one kind of
    prototype; the paper has both without MMCL). Semantic-aware: Table 4 and Figs. 4, 7 and 8.

    >>> parts()["TRM-ML"]["CARL"]
    {'beta': 0.0, 'gamma': 0.0, 'pseudo_labels': False}
    """
    losses = {"BCE": {"loss": "cross_entropy"}} | {f"γ− = {g:g}": {"gamma_negative": g} for g in (1.0, 4.0)}
    without = {"beta": 0.0, "gamma": 0.0, "pseudo_labels": False}
    trm = {"baseline": without | {"matching": "mean"}, "CARL": without, "CARL, KD": without | {"beta": 0.05}}
    trm |= {kind: {"matching": kind} for kind in ("pixel", "image")}
    trm |= {"without MMCP": {"pseudo_labels": False}, "without MMCL": {"gamma": 0.0}}
    trm |= {f"{kind} prototypes, without MMCL": {"prototypes": kind, "gamma": 0.0} for kind in ("visual", "text")}
    aware = {"w/csp": {"decoupling": "none"}, "w/sd": {"category_prompts": False}}
    aware |= {"semantic attention": {"decoupling": "semantic_attention"}, "softmax": {"prediction": "softmax"}}
    aware |= losses | {"γ− = 0": {"gamma_negative": 0.0}}
    aware |= {f"γ+ = {g:g}": {"gamma_positive": g} for g in (0.0, 2.0, 4.0)}
    return {"TRM-ML": trm, "Semantic-aware": aware}


def complete_regions(config: Config, feats, folder: str | Path, resamples: int = 1000) -> runs.Outcome:
    r"""TRM-ML that begins with the regions of a model of complete labels (Table 4), without pseudo-labels and contrast.

    That model is a run of ``folder`` and is trained if need be; the regions go on learning. The checkpoint lies in
    ``folder``, too; scores are not stored. Compare with the part "CARL, KD". Raises as ``studies.run`` and
    ``TRMML.take_regions``.
    """
    own = config.replace(pseudo_labels=False, gamma=0.0)
    whole = runs.trained(own.replace(known=1.0), feats, folder)
    own = own.replace(attention_start="random")  # or the start would overwrite what is taken
    model = registry.for_config(own).to(devices.best())
    model.take_regions(whole)
    data, out = runs.with_training_data(own, feats), Path(folder) / f"{runs.run_name(own)}-complete-regions"
    history = train(model, data["train"], out)
    table, resampled = runs.score_settings(model, data, runs.AS_TRAINED, resamples)
    return runs.Outcome(table, resampled, {"training": {"seconds": float(history["seconds"].iloc[-1])}}, out)


def variants(configs: dict[str, Config], shares=SHARES) -> dict[str, Config]:
    """Variants "name @ p" for ``studies.run_all``: each config of a method at each share p.

    >>> from hrcf_lib import config
    >>> list(variants({"HRCF": config.mini()}, (0.1, 0.5)))
    ['HRCF @ 0.1', 'HRCF @ 0.5']
    """
    return {f"{name}{AT}{p:g}": own.replace(known=p) for name, own in configs.items() for p in shares}


def over_known(frame: pd.DataFrame, split: str = "test", task: str = "seen") -> pd.DataFrame:
    r"""The rows of one split and task of ``compare.table``, with ``method`` and ``known`` (p) in place of ``variant``.

    Raises ``ValueError`` for a missing column, an unknown split or task, or a variant without its p.
    """
    need(frame, ["variant", "split", "task", "seed", "mAP"], "over_known")
    check_known([split], list(dict.fromkeys(frame["split"])), "no rows of split")
    check_known([task], list(dict.fromkeys(frame["task"])), "no rows of task")
    rows = frame[frame["split"].eq(split) & frame["task"].eq(task)]
    odd = rows.loc[~rows["variant"].str.contains(AT, regex=False), "variant"]
    if len(odd):
        raise ValueError(f"variant {odd.iloc[0]!r} does not say its p: name it as variants() does, 'method{AT}0.1'")
    method, known = rows["variant"].str.rsplit(AT, n=1, expand=True).T.to_numpy()
    rows = rows.drop(columns="variant").reset_index(drop=True)
    rows.insert(0, "method", method)
    rows.insert(1, "known", pd.Series(known).astype(float))
    return rows


def by_share(rows: pd.DataFrame, metric: str = "mAP") -> pd.DataFrame:
    r"""One row per method, one column per p and one for the average over them: "mean ± spread" over seeds.

    ``rows`` are those of ``over_known``. The average is taken for each seed, then its spread. Methods keep their order.
    Raises ``ValueError`` for a missing metric, or a method that lacks a p or seed that others have.
    """
    need(rows, ["method", "known", "seed", metric], "by_share")
    wide = rows.pivot_table(index=["method", "seed"], columns="known", values=metric, sort=False).sort_index(axis=1)
    lacking = wide.isna().any(axis=1)
    if lacking.any() or wide.groupby("method").size().nunique() > 1:
        who = wide.index[lacking][0][0] if lacking.any() else wide.groupby("method").size().idxmin()
        raise ValueError(f"{who!r} has not been run at every p and seed of the others: averages would not compare")
    wide["avg"] = wide.mean(axis=1)
    grouped = wide.groupby("method", sort=False)
    mean, spread = grouped.mean(), grouped.std().fillna(0.0)
    text = mean.map("{:.1f}".format) + " ± " + spread.map("{:.1f}".format)
    return text if wide.groupby("method").size().max() > 1 else mean.round(1)


def published(frame: pd.DataFrame) -> pd.DataFrame:
    """A published table over p in long form: source (if there is one), dataset, method, known, mAP as printed.

    ``frame`` is a table such as ``records.published("partial_labels_map")``, with one column per percentage.
    """
    shares = [column for column in frame.columns if column.isdigit()]
    keys = [column for column in ("source", "dataset", "method") if column in frame]
    long = frame.melt(keys, shares, var_name="known", value_name="mAP")
    return long.assign(known=long["known"].astype(int) / 100)


KINDS = {"present": 1, "absent": -1}
COLUMNS = ("kind", "filled", "share", "precision", "recall", "chance")


def truth(config, data: str | Path = "data") -> Tensor:
    """Labels (n, K) of the seen labels of a config's training set, none of them hidden.

    Raises as ``open_split``.
    """
    dataset = benchmarks.open_split(config, "train", data)
    return label_matrix(dataset)[:, dataset.labels.columns("seen")]


def pseudo_label_quality(filled: Tensor, known: Tensor, truth: Tensor) -> pd.DataFrame:
    r"""One row per kind of pseudo-label, present and absent.

    Args:
        filled: (n, K), the labels after a method filled in unknown ones.
        known: (n, K), the labels that it was given.
        truth: (n, K); entries that are 0 take no part.

    Returns:
        kind; filled, how many unknown labels are filled with it; share, of all unknown labels; precision, the share of
        them that are right (NaN without any); recall, the share of the unknown labels of that kind that are filled
        rightly; chance, the share of that kind among unknown labels, the precision of filling at random. All in 0..1
        but ``filled``.

    Raises:
        ValueError: shapes that differ, labels other than -1, 0 and 1, or a known label that was changed.

    >>> known, found = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 1, -1, 0]])
    >>> pseudo_label_quality(found, known, torch.tensor([[1, 1, 1, -1]]))[
    ...     ["kind", "share", "precision", "recall"]
    ... ].round(2)
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
        n_made, n_right = int(made.sum()), int(right.sum())
        shares = (n_made, n), (hits, n_made), (hits, n_right), (n_right, n)
        rows.append((kind, n_made, *(a / b if b else float("nan") for a, b in shares)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@torch.no_grad()
def filled(model, data, batch: int = 64) -> tuple[Tensor, Tensor]:
    r"""Labels of ``data`` filled in by a method in its present state, and as they were given: two (n, K), on the CPU.

    In evaluation mode, from pictures that are not augmented. Raises ``ValueError`` for a method without pseudo-labels.
    """
    if not hasattr(model, "filled"):
        raise ValueError(f"{model.title} makes no pseudo-labels: take TRM-ML, or a method with estimates and filled")
    training, columns, parts = model.training, data.space.columns("seen"), []
    try:
        model.eval()
        t = model.label_embeddings(data.space.seen)
        for _, inputs, labels in data.batches(BatchOrder(batch)):
            y = labels[:, columns].to(t.device)
            with model.autocast():
                _, regions = model.image_embeddings(data.tokens(model.vlp, inputs))
            parts.append((model.filled(model.estimates(regions.float(), t), y).cpu(), y.cpu()))
    finally:
        model.train(training)
    made, given = zip(*parts, strict=True)
    return torch.cat(made), torch.cat(given)


def over_epochs(model, data, truth: Tensor, folder: str | Path, pictures: int | None = None) -> pd.DataFrame:
    r"""Train ``model`` on ``data`` in ``folder``; after each epoch measure the quality of its pseudo-labels.

    The final weights are those of ``training.train`` without stops, bit for bit; if ``folder`` is that of a run
    (``studies.run_name``), ``studies.run`` finds it trained. A folder with a checkpoint continues from there: epochs
    that were over before have no rows; a finished run has those of its last.

    Args:
        truth: (n, K) of the seen labels, from the function of that name.
        folder: of the checkpoint.
        pictures: number of pictures to measure on, the first ones; by default all.

    Returns:
        epoch, from 1, and step, then the columns of ``pseudo_label_quality``; two rows per epoch. Measured are the
        labels that the method would fill in now, also before it trains on them (``first_stage``).

    Raises what ``train``, ``filled`` and ``pseudo_label_quality`` raise, and ``ValueError`` for a truth of other shape.
    """
    if truth.shape != (len(data), data.space.n_seen):
        raise ValueError(
            f"a truth {tuple(truth.shape)} for {len(data)} pictures x {data.space.n_seen} seen labels: "
            "give truth(config) of the same config"
        )
    looked_at = data if pictures is None else data.take(range(min(pictures, len(data))))
    steps = [BatchOrder(p.batch).steps(len(data)) for p in model.config.phases for _ in range(p.epochs)]
    ends, parts = torch.tensor(steps).cumsum(0).tolist(), []
    before = len(train(model, data, folder, stop_after=0))  # steps of a checkpoint that is there already
    for epoch, end in enumerate(ends, 1):
        if end > before or epoch == len(ends):
            train(model, data, folder, stop_after=end - before)
            own = pseudo_label_quality(*filled(model, looked_at), truth[: len(looked_at)])
            parts.append(own.assign(epoch=epoch, step=end))
            before = end
    return pd.concat(parts, ignore_index=True)[["epoch", "step", *COLUMNS]]
