r"""Ablations: train and score one experiment in several variants and seeds.

A *variant* is a set of changes to a config, and is trained; a *setting* changes a trained model at test time only, and
is scored from the global embeddings and regions of one pass. Each trained run is a folder with its checkpoint, its
record and its resampled metrics: it is never computed twice, whichever notebook or process asks for it, and an
interrupted one continues.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import config as configs
from hrcf_lib import evaluation, metrics
from hrcf_lib.config import Config
from hrcf_lib.data import benchmarks, hide_labels
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.feeds.sources import source, validation
from hrcf_lib.engine import devices, hashes, weights
from hrcf_lib.engine.files import make_folder
from hrcf_lib.labels import TASKS
from hrcf_lib.methods import registry
from hrcf_lib.studies import bootstrap, one_run, records
from hrcf_lib.studies.compare import KEYS
from hrcf_lib.training import train

RESAMPLED = "resampled.safetensors"
COMPLETE = {name: configs.DEFAULTS[name] for name in configs.names_where(of=configs.MASK)}  # no label is hidden
AS_TRAINED = {"": {}}  # the setting that changes nothing


@dataclass
class Outcome:
    """What a trained run scores. ``resampled``: (setting, split, task, metric) -> (1 + R,), see ``bootstrap.draw``."""

    table: pd.DataFrame  # one row per setting, split and task; P/R/F1@K and mAP in percent
    resampled: dict[tuple[str, str, str, str], Tensor]
    about: dict  # the record without its tables: config, seed, versions, commit, device, time, parameters, ...
    folder: Path


def sources(config: Config, data: str | Path = "data", cache: str | Path | None = None, splits=None, law=None) -> dict:
    """split -> the ``source`` that the method of ``config`` reads, of some ``splits`` or of all; ``law`` as it says.

    Processes that ask at the same time compute stored features once.
    """
    model = registry.for_config(config).to(devices.best())
    splits = benchmarks.splits(config, data) if splits is None else splits
    if cache is None:
        return {split: source(model, split, data, law=law) for split in splits}
    make_folder(cache)
    with FileLock(Path(cache) / "features.lock"):
        return {split: source(model, split, data, cache, law) for split in splits}


def shelf(base: Config, data: str | Path = "data", cache: str | Path | None = None) -> Callable[[Config], dict]:
    r"""config -> the ``sources`` of the experiment of ``base``, as the method of the config reads them.

    Methods that leave the ViT after the same block share them. Sizes are those of ``base``: a config with a shorter
    ``train`` takes its first pictures (``run``). Raises ``ValueError`` for a config of another experiment: other data,
    VLP or format of features, or a longer ``train``.
    """
    there, depths, hidden = {}, {}, {}

    def take(config: Config) -> dict:
        config = config.replace(val_size=base.val_size, test_size=base.test_size)
        differ = [n for n in configs.names_where(type(base), of=configs.DATA) if getattr(config, n) != getattr(base, n)]
        if config.train_size != base.train_size and (config.train_size or math.inf) > (base.train_size or math.inf):
            differ.append("train_size")
        if differ:
            words = ", ".join(f"{n} = {getattr(config, n)!r}, here {getattr(base, n)!r}" for n in differ)
            raise ValueError(f"this shelf holds the data of another experiment ({words}): make one of this config")
        kind = config.method, getattr(config, "blocks", None)
        if kind not in depths:
            depths[kind] = registry.for_config(config, pretrained=False).trained_blocks
        depth = depths[kind]
        config = config.replace(train_size=base.train_size)
        if depth not in there:
            there[depth] = sources(config.replace(**COMPLETE), data, cache)
        if not hide_labels.hides(config):
            return there[depth]
        mask = depth, *(getattr(config, name) for name in COMPLETE)
        if mask not in hidden:
            dataset = benchmarks.open_split(config, "train", data)
            hidden[mask] = there[depth]["train"].relabel(hide_labels.hide_as(config, dataset))
        return there[depth] | {"train": hidden[mask]}

    return take


def run(config: Config, feats: dict, folder: str | Path, settings=None, resamples: int = 1000) -> Outcome:
    r"""Train ``config`` (or continue what is there) and score it in every setting on every split but train.

    Args:
        config: of the run, seed included.
        feats: ``sources`` of the same data and VLP, or a ``shelf``; of a longer ``train`` the first
            ``config.train_size`` pictures are taken.
        folder: of all runs; each has a folder in it, named after what its config changes. Runs that differ at test time
            alone share one training (``weights_config``).
        settings: name -> changes of the config that matter at test time only (lam, keep, rss, topk, ...), or a function
            config -> scorer as in ``controls.CONTROLS``. Those already scored are read from the record.
        resamples: R of the bootstrap, on test splits.

    Raises what ``train`` and ``evaluate`` raise, ``ValueError`` for a record of another VLP, other data or another
    ``resamples``.
    """
    settings = AS_TRAINED if settings is None else settings
    feats = with_training_data(config, feats)
    belongs = {"resamples": resamples, "data": {s: d.identity() for s, d in feats.items()}}
    with exclusive(config, folder) as out:
        known = _read_outcome(out, belongs)
        missing = {name: setting for name, setting in settings.items() if name not in set(known.table["setting"])}
        if missing:
            model, history = train_run(config, feats, folder, out)
            rows, resampled = score_settings(model, feats, missing, resamples)
            known.table = pd.concat([part for part in (known.table, rows) if len(part)], ignore_index=True)
            known.resampled |= resampled
            known.about["training"] = _training(history)
            _write_outcome(known, config, model, belongs)
    chosen = known.table[known.table["setting"].isin(settings)].reset_index(drop=True)
    return Outcome(chosen, known.resampled, known.about, out)


def run_all(base: Config, variants: dict, seeds, feats: dict, folder, settings=None, resamples: int = 1000) -> dict:
    r"""(variant, seed) -> ``Outcome`` of ``run``, for every variant and seed.

    ``variants``: name -> changes of ``base``, or the whole config of a method. ``settings`` may be a function of the
    config. Raises as ``run``.
    """
    jobs = [(name, seed) for seed in seeds for name in variants]
    found = {}
    for name, seed in tqdm(jobs, "runs", disable=None, leave=False):
        own = variants[name]
        config = own.replace(seed=seed) if isinstance(own, Config) else base.replace(**{"seed": seed} | own)
        chosen = settings(config) if callable(settings) else settings
        found[name, seed] = run(_sized(config), feats, folder, chosen, resamples)
    return found


def launch(config: Config, folder: str | Path, processes: int, data: str | Path = "data", cache=None, words=()) -> None:
    r"""Train a run in ``processes`` new processes (``one_run.launch``), for ``run`` to take up, unless it has begun.

    ``folder`` is that of all runs, ``cache`` that of stored features. Raises as ``one_run.launch``.
    """
    config = weights_config(config)
    with exclusive(config, folder) as out:
        if not (out / "checkpoint.pt").is_file():
            one_run.launch(config, out / "launched", processes, data, cache, words)
            (out / "launched" / "checkpoint.pt").replace(out / "checkpoint.pt")


def search(base: Config, grid: dict, feats, folder, settings=None) -> tuple[dict, pd.DataFrame]:
    r"""The best values on val, one field at a time, and the whole search.

    The fields of ``grid`` (name -> values) are searched in order: each value is trained once, with the seed of ``base``
    and the fields before it at their best, and scored in every setting. Best is the highest mean mAP over the tasks of
    ``validation``. Returns the changes of the config (those of the best setting too), and a frame with one row per
    value and setting: field, value, setting, mAP of each task, mean, chosen. Test splits are not read. If training
    diverges with a value, its rows are NaN and a warning names it. Raises ``FloatingPointError`` if training diverges
    with every value of a field, and what ``run`` raises.
    """
    settings, best, parts = AS_TRAINED if settings is None else settings, {}, []
    for field, values in grid.items():
        rows = []
        for value in values:
            config = _sized(base.replace(**best | {field: value}))
            try:
                found = _on_val(config, feats, folder, settings)
            except FloatingPointError as error:
                warnings.warn(f"{field} = {value!r} is left out of the search: {error}", stacklevel=2)
                found = [{"setting": setting, "mean": math.nan} for setting in settings]
            rows += [{"field": field, "value": value} | row for row in found]
        given = pd.Series([row["value"] for row in rows], dtype=object)  # None is a value, and no missing number
        parts.append(pd.DataFrame(rows).assign(value=given))
        if parts[-1]["mean"].isna().all():
            raise FloatingPointError(f"training diverges with every {field} of {list(values)}: give smaller ones")
        at = parts[-1]["mean"].idxmax()
        parts[-1]["chosen"] = parts[-1].index == at
        best[field], setting = rows[at]["value"], rows[at]["setting"]
    return best | dict(settings[setting]), pd.concat(parts, ignore_index=True)


def choices(searched: dict, grids: dict) -> pd.DataFrame:
    """One row per name of ``searched``, which has what ``search`` returned, in few words.

    ``grids``: name -> grid. Columns: ``chosen`` (field = value), the metrics on val of what was chosen, and ``at the
    edge``: fields whose best number is the lowest or highest of three or more, so that others may be better yet.
    """
    rows = {}
    for name, (best, frame) in searched.items():
        at_best = frame[frame["chosen"]].iloc[-1]
        row = {"chosen": ", ".join(f"{field} = {value}" for field, value in best.items())}
        row |= {f"{metric} on val": at_best[metric] for metric in frame if metric.startswith("mAP")}
        rows[name] = row | {"at the edge": ", ".join(_at_edge(best, grids[name]))}
    return pd.DataFrame.from_dict(rows, orient="index")


def _at_edge(best: dict, grid: dict) -> list[str]:
    numbers = {name: [v for v in values if isinstance(v, (int, float))] for name, values in grid.items()}
    return [name for name, tried in numbers.items() if len(tried) > 2 and best[name] in (min(tried), max(tried))]


def _on_val(config: Config, feats, folder, settings) -> list[dict]:
    """One row per setting of a run that is scored on val alone."""
    own = with_training_data(config, feats)
    if hide_labels.hides(config) and "val" not in own:
        raise ValueError(
            f"{config.dataset} has no val, and labels of its train are hidden: choices need complete labels, "
            "set held_out, such as 0.2"
        )
    val, tasks = validation(own)
    tasks = tasks if registry.asks_unseen(config) else ("seen",)
    table = run(config, {"train": own["train"], "val": val}, folder, settings).table
    rows = []
    for setting in settings:
        maps = table[table["setting"].eq(setting) & table["task"].isin(tasks)].set_index("task")["mAP"]
        rows.append({"setting": setting} | {f"mAP {task}": maps[task] for task in tasks} | {"mean": maps.mean()})
    return rows


def run_name(config: Config) -> str:
    """Folder of a run: the preset, what differs from it, the seed, and a hash of the whole config."""
    values = config.to_dict() | configs.RETIRED
    for name in configs.fields_as_before(config):  # left out: older runs keep their names
        del values[name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    kind = "" if config.method == "hrcf" else config.method
    words = [f"{name}-{value}" for name, value in config.changes().items() if name not in ("seed", "categories")]
    changed = re.sub(r"[^\w.-]+", "-", "-".join(words))[:60].strip("-")
    return "-".join(filter(None, [config.name, kind, changed, f"seed-{config.seed}", digest]))


def weights_config(config: Config) -> Config:
    """The config whose training ``config`` takes up: settings of test time alone are as in its preset.

    So a run with another lambda or selection at test time has its own record, and nothing is trained twice.
    """
    if config.name not in configs.PRESETS:
        return config
    form = {"settings": config.settings} if hasattr(config, "settings") else {}  # of a method that has two
    preset = registry.configure(config.method, configs.PRESETS[config.name](), **form)
    at_test = configs.names_where(type(config), weights=False, scores=True)
    return config.replace(**{name: getattr(preset, name) for name in at_test})


def train_run(config: Config, feats: dict, folder: str | Path, locked: Path | None = None):
    """The model of a run and its history; it is trained if need be, in the folder of ``weights_config``.

    ``locked`` is the run's own folder, if the caller holds it.
    """
    model = registry.for_config(config).to(devices.best())
    weights_of = weights_config(config)
    if locked == Path(folder) / run_name(weights_of):
        return model, train(model, feats["train"], locked)
    with exclusive(weights_of, folder) as out:
        return model, train(model, feats["train"], out)


@contextmanager
def exclusive(config: Config, folder: str | Path):
    """The folder of a run, locked: no other process trains or scores it meanwhile."""
    out = make_folder(Path(folder) / run_name(config))
    with FileLock(out / "run.lock"):
        yield out


def with_training_data(config: Config, feats) -> dict:
    """split -> its feed, of ``sources`` or a ``shelf``; of a longer train the first ``train_size`` pictures."""
    feats = feats(config) if callable(feats) else feats
    n, data = config.train_size, feats["train"]
    return feats | {"train": data.take(range(n)) if n and n < len(data) else data}


def _sized(config: Config) -> Config:
    return config.smoke() if configs.is_smoke() else config


def trained(config: Config, feats: dict, folder: str | Path):
    """The model of a run, in evaluation mode; it is trained if need be."""
    return train_run(config, with_training_data(config, feats), folder)[0]


def scored(config: Config, feats, folder: str | Path, split: str = "test", setting=None) -> dict[str, Tensor]:
    """Task -> scores (n, K) of a split by the model of a run, in a setting; it is trained if need be."""
    model = trained(config, feats, folder)
    data = (feats(config) if callable(feats) else feats)[split]
    held, found = embed(model, data), {}
    for task in _tasks(model, data):
        names = data.space.view(task).names
        t = _label_embeddings(model, setting or {}, names, {})
        found[task] = evaluation.score_all(held, t, scorer(model, setting or {}))[:, : len(names)]
    return found


def _tasks(model, data) -> list[str]:
    """The tasks whose labels the data have and the method scores."""
    return [task for task in TASKS if data.space.view(task).names and (model.open_vocabulary or task == "seen")]


def score_settings(model, feats: dict, settings: dict, resamples: int = 0) -> tuple[pd.DataFrame, dict]:
    """Rows and ``resampled`` of an ``Outcome``: a model in every setting on every split but train, as it is now."""
    rows, resampled, limits, known = [], {}, {}, {}
    for split, data in feats.items():
        if split == "train":
            continue
        tasks = _tasks(model, data)
        embedded = embed(model.eval(), data)
        drawn = bootstrap.draw(len(data), resamples) if resamples and split.startswith("test") else None
        for task in tasks:
            view = data.space.view(task)
            y = data.labels[:, view.columns]
            for name, setting in settings.items():
                t = _label_embeddings(model, setting, view.names, known)
                values = evaluation.score_all(embedded, t, scorer(model, setting))[:, : len(view.names)]
                row = evaluation.metrics_row(values, y, model.config.ks, model.config.protocol, task)
                if hide_labels.hides(model.config) or not model.open_vocabulary:
                    row |= _decisions(values, y, model.threshold, limits, split, (name, task))
                rows.append({"setting": name, "split": split, "task": task} | row)
                if drawn is not None:
                    resampled |= _resampled(values, y, drawn, model.config.ks, (name, split, task))
    return pd.DataFrame(rows), resampled


def _decisions(values, labels, threshold: float | None, limits: dict, split: str, key) -> dict:
    """OP to CF1 at the method's own threshold, and, called "... val", at the one of best OF1 on val."""
    if split == "val":
        limits[key] = metrics.best_threshold(values, labels)
    row = {} if threshold is None else metrics.precision_recall_f1_at_threshold(values, labels, threshold)
    if key in limits:
        row |= {
            f"{name} val": value
            for name, value in metrics.precision_recall_f1_at_threshold(values, labels, limits[key]).items()
        }
    return row


def scorer(model, setting: dict | Callable) -> Callable:
    """(e_g, regions, label embeddings) -> scores of a setting, by the method itself under the changed config."""
    if callable(setting):
        return setting(model.config)
    return model.under(model.config.replace(**setting)).score_embeddings


def _label_embeddings(model, setting: dict | Callable, names, known: dict) -> Tensor:
    """``embed_names`` of the model under a setting, computed once for the splits and settings that share ``known``."""
    changes = {} if callable(setting) else setting
    asked = model.under(model.config.replace(**changes))
    of_scores = () if model.fits_labels else configs.names_where(type(model.config), scores=True)  # others: the prompt
    own = {n: v for n, v in changes.items() if n not in of_scores}
    key = repr(own), tuple(names), tuple(asked.companions(names))
    if key not in known:
        known[key] = asked.embed_names(names)
    return known[key]


def _resampled(values, labels, drawn, ks, key) -> dict:
    found = {(*key, "mAP"): bootstrap.resampled_map(values, labels, drawn).float()}
    return found | {(*key, f"F1@{k}"): bootstrap.resampled_f1(values, labels, drawn, k).float() for k in ks}


def _training(history: pd.DataFrame) -> dict:
    """Steps, seconds, and for each side the seconds of an epoch (the median step times the steps of an epoch)."""
    took = history["seconds"].diff()
    same = history["phase"].diff().eq(0) & took.gt(0)
    sides = {}
    for side, part in history.groupby("side", sort=False):
        steps = part["epoch"].floordiv(1).value_counts().max()
        sides[side] = {
            "steps": len(part),
            "epoch_seconds": float(took[same & history["side"].eq(side)].median() * steps),
        }
    parts = history.columns[history.columns.get_loc("lr") + 1 : history.columns.get_loc("seconds")]
    last = {name: float(history[name].tail(50).mean()) for name in parts if len(history)}
    return {"steps": len(history), "seconds": float(took[took.gt(0)].sum()), "sides": sides, "last": last}


def seconds(outcomes: dict) -> dict[str, float]:
    """ "variant seed" -> seconds of training, on as many cores as it had."""
    return {f"{variant} {seed}": round(o.about["training"]["seconds"], 1) for (variant, seed), o in outcomes.items()}


def _write_outcome(known: Outcome, config: Config, model, belongs: dict) -> None:
    about = {"config": config.to_dict(), "seed": config.seed, "vlp_hash": model.vlp.hash}
    about |= {"training": known.about["training"], "trained_parameters": model.trained_parameters()}
    about |= {"belongs_to": belongs}
    resampled = {"|".join(key): value for key, value in known.resampled.items()}
    about |= {"resampled_hash": weights.write_tensors(resampled, known.folder / RESAMPLED)}
    seconds, protocol = about["training"]["seconds"], f"{config.protocol}: {evaluation.PROTOCOL}"
    tables = {"metrics": known.table}
    records.record("record", config.changes(), tables, seconds, protocol, folder=known.folder, **about)
    known.about = records.read_record("record", known.folder)
    del known.about["tables"]


def _read_outcome(folder: Path, belongs: dict) -> Outcome:
    """The outcome that a run has already, perhaps empty, as where its resampled metrics are damaged (with a warning).

    Raises ``ValueError`` if it belongs to other data.
    """
    if not (folder / "record.json").is_file():
        return Outcome(pd.DataFrame(columns=KEYS), {}, {}, folder)
    record = records.read_record("record", folder)
    if record["belongs_to"] != json.loads(json.dumps(belongs)):
        raise ValueError(
            f"{folder} was scored on other data or with other resamples: remove it, or choose another folder of runs"
        )
    try:
        tensors = weights.read_tensors(folder / RESAMPLED)
        hashes.check_tensors(tensors, folder / RESAMPLED, record.get("resampled_hash"))
    except (ValueError, FileNotFoundError) as error:
        warnings.warn(f"{error}: the run is scored again", stacklevel=3)
        return Outcome(pd.DataFrame(columns=KEYS), {}, {}, folder)
    found = {tuple(key.split("|")): value for key, value in tensors.items()}
    return Outcome(record.pop("tables")["metrics"], found, record, folder)
