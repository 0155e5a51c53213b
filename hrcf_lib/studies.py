r"""Ablations: one experiment in several variants and seeds, what each scores, and what the differences are worth.

A *variant* is a set of changes to a config, and is trained; a *setting* changes a trained model at test time only, and
is scored from the stored global embeddings and regions of the same pass. Each trained run is a folder with its
checkpoint, its record and its resampled metrics: it is never computed twice, whichever notebook or process asks for it,
and an interrupted one goes on where it was.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import config as configs
from hrcf_lib import devices, evaluation, fit, resampling, results, weights
from hrcf_lib.comparison import KEYS
from hrcf_lib.config import TRAINABLE, Config
from hrcf_lib.data import benchmarks
from hrcf_lib.embeddings import embed
from hrcf_lib.labels import TASKS
from hrcf_lib.model import HRCF
from hrcf_lib.scores import score
from hrcf_lib.training import train

RESAMPLED = "resampled.safetensors"
AS_TRAINED = {"": {}}  # the setting that changes nothing


@dataclass
class Outcome:
    """What a trained run scores. ``resampled``: (setting, split, task, metric) -> (1 + R,), see ``resampling.draw``."""

    table: pd.DataFrame  # a row for each setting, split and task; P/R/F1@K and mAP in percent
    resampled: dict[tuple[str, str, str, str], Tensor]
    about: dict  # the record without its tables: config, seed, versions, commit, device, time, parameters, ...
    folder: Path


def sources(config: Config, data: str | Path = "data", cache: str | Path | None = None) -> dict:
    """split -> what ``fit.source`` gives. Processes that ask at the same time compute stored features once."""
    model = HRCF(config).to(devices.best())
    splits = benchmarks.splits(config, data)
    if cache is None:
        return {split: fit.source(model, split, data) for split in splits}
    Path(cache).mkdir(parents=True, exist_ok=True)
    with FileLock(Path(cache) / "features.lock"):
        return {split: fit.source(model, split, data, cache) for split in splits}


def run(config: Config, feats: dict, folder: str | Path, settings=None, resamples: int = 1000) -> Outcome:
    r"""Train ``config`` (or take up what is there) and score it in every setting on every split but train.

    Args:
        config: of the run, seed included.
        feats: what ``sources`` gave for the same data and VLP; of a longer ``train`` the first ``config.train_size``
            pictures are taken.
        folder: of all runs; this one has a folder in it, named after what its config changes.
        settings: name -> changes of the config that matter at test time only (lam, keep, rss, topk, ...), or a function
            config -> scorer as in ``evaluation.CONTROLS``. Those already scored are read from the record.
        resamples: R of the bootstrap, on test splits.

    Raises what ``train`` and ``evaluate`` raise, ``ValueError`` for a record of another VLP or other data.
    """
    settings = AS_TRAINED if settings is None else settings
    feats = feats | {"train": _training_data(config, feats)}
    belongs = {"resamples": resamples, "data": {s: d.identity() for s, d in feats.items() if hasattr(d, "identity")}}
    with _alone(config, folder) as out:
        known = _read(out, belongs)
        missing = {name: setting for name, setting in settings.items() if name not in set(known.table["setting"])}
        if missing:
            model = HRCF(config).to(devices.best())
            history = train(model, feats["train"], out)
            _measure(known, model, feats, missing, resamples)
            known.about["training"] = _training(history)
            _write(known, config, model, belongs)
    chosen = known.table[known.table["setting"].isin(settings)].reset_index(drop=True)
    return Outcome(chosen, known.resampled, known.about, out)


def run_all(base: Config, variants: dict, seeds, feats: dict, folder, settings=None, resamples: int = 1000) -> dict:
    r"""(variant, seed) -> ``Outcome`` of ``run``, for every variant (name -> changes of ``base``) and seed."""
    jobs = [(name, seed) for seed in seeds for name in variants]
    show = tqdm(jobs, "runs", disable=None, leave=False)
    return {
        (name, seed): run(_sized(base.replace(**{"seed": seed} | variants[name])), feats, folder, settings, resamples)
        for name, seed in show
    }


def run_name(config: Config) -> str:
    """Folder of a run: the preset, what differs from it, the seed, and a hash of the whole config."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    words = [f"{name}-{value}" for name, value in changes(config).items() if name != "seed"]
    changed = re.sub(r"[^\w.-]+", "-", "-".join(words))[:60].strip("-")
    return "-".join(filter(None, [config.name, changed, f"seed-{config.seed}", digest]))


def changes(config: Config) -> dict:
    """The fields in which a config differs from its preset (or, without one, from a field's default)."""
    values = config.to_dict()
    preset = configs.PRESETS[config.name]().to_dict() if config.name in configs.PRESETS else {}
    defaults = {f.name: f.default for f in dataclasses.fields(config)} | preset
    return {name: value for name, value in values.items() if value != defaults[name]}


@contextmanager
def _alone(config: Config, folder: str | Path):
    """The folder of a run, which no other process may train or score meanwhile."""
    out = Path(folder) / run_name(config)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "run.lock"):
        yield out


def _training_data(config: Config, feats: dict):
    n, data = config.train_size, feats["train"]
    return data.take(range(n)) if n and n < len(data) else data


def _sized(config: Config) -> Config:
    return config.smoke() if configs.is_smoke() else config


def trained(config: Config, feats: dict, folder: str | Path):
    """The model of a run, in evaluation mode; trains it if need be."""
    model = HRCF(config).to(devices.best())
    with _alone(config, folder) as out:
        train(model, _training_data(config, feats), out)
    return model


def _measure(known: Outcome, model, feats: dict, settings: dict, resamples: int) -> None:
    """Score a trained model in every setting on every split but train, and add that to what is ``known``."""
    rows = []
    for split, data in feats.items():
        if split == "train":
            continue
        tasks = [task for task in TASKS if data.space.view(task).names]
        embedded = embed(model.eval(), data)
        drawn = resampling.draw(len(data), resamples) if split.startswith("test") else None
        for task in tasks:
            view = data.space.view(task)
            with torch.no_grad():
                t, y = model.label_embeddings(view.names), data.labels[:, view.columns]
            for name, setting in settings.items():
                values = evaluation.score_all(embedded, t, scorer(model.config, setting))
                row = evaluation.measure(values, y, model.config.ks, model.config.protocol, task)
                rows.append({"setting": name, "split": split, "task": task} | row)
                if drawn is not None:
                    known.resampled |= _resampled(values, y, drawn, model.config.ks, (name, split, task))
    known.table = pd.concat([part for part in (known.table, pd.DataFrame(rows)) if len(part)], ignore_index=True)


def scorer(config: Config, setting: dict | Callable) -> Callable:
    """(e_g, regions, label embeddings) -> scores of a setting, by HSA with RSS if the changed config has it."""
    if callable(setting):
        return setting(config)
    changed = config.replace(**setting)
    return lambda e_g, regions, t: score(e_g, regions, t, changed, select=changed.rss)


def _resampled(values, labels, drawn, ks, key) -> dict:
    found = {(*key, "mAP"): resampling.resampled_map(values, labels, drawn).float()}
    return found | {(*key, f"F1@{k}"): resampling.resampled_f1(values, labels, drawn, k).float() for k in ks}


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
    last = {name: float(history[name].tail(50).mean()) for name in ("ranking", "distillation")}
    return {"steps": len(history), "seconds": float(took[took.gt(0)].sum()), "sides": sides, "last": last}


def seconds(outcomes: dict) -> dict[str, float]:
    """ "variant seed" -> seconds of training, on as many cores as it had."""
    return {f"{variant} {seed}": round(o.about["training"]["seconds"], 1) for (variant, seed), o in outcomes.items()}


def parameters(model) -> dict[str, int]:
    """How many numbers each side trains."""
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    return {
        side: sum(size for n, size in sizes.items() if n.startswith(TRAINABLE[side])) for side in ("hcg", "prompts")
    }


def _write(known: Outcome, config: Config, model, belongs: dict) -> None:
    about = {"config": config.to_dict(), "seed": config.seed, "vlp_hash": model.vlp.hash}
    about |= {"training": known.about["training"], "trained_parameters": parameters(model)}
    about |= {"belongs_to": belongs}
    weights.write({"|".join(key): value for key, value in known.resampled.items()}, known.folder / RESAMPLED)
    seconds, protocol = about["training"]["seconds"], f"{config.protocol}: {evaluation.PROTOCOL}"
    tables = {"metrics": known.table}
    results.record("record", changes(config), tables, seconds, protocol, folder=known.folder, **about)
    known.about = results.read("record", known.folder)
    del known.about["tables"]


def _read(folder: Path, belongs: dict) -> Outcome:
    """What a run has already, which may be nothing. Raises ``ValueError`` if it belongs to other data."""
    if not (folder / "record.json").is_file():
        return Outcome(pd.DataFrame(columns=KEYS), {}, {}, folder)
    record = results.read("record", folder)
    if record["belongs_to"] != json.loads(json.dumps(belongs)):
        raise ValueError(
            f"{folder} was scored on other data or with other resamples: remove it, or choose another folder of runs"
        )
    tensors = weights.read(folder / RESAMPLED)
    found = {tuple(key.split("|")): value for key, value in tensors.items()}
    return Outcome(record.pop("tables")["metrics"], found, record, folder)
