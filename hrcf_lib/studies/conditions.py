r"""When does a method lead? Trained models on test pictures of another kind, and asked for other sets of labels.

Training depends neither on the law of the test scenes nor on what is asked at test, so nothing is trained for it: a run
of ``studies`` is scored on *feeds* (test pictures by name: ``laws``, ``by_positives``) by *asks* (sets of labels by
name). What is found is kept in the folder of the run and never computed twice. It is an ``Outcome`` whose splits are
the feeds and whose tasks are the asks, so that ``compare`` makes its tables and differences; ``curves`` puts
differences on an axis, and ``crossings`` says where they change sign.

n pictures, K labels, R resamples.
"""

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib import config as configs
from hrcf_lib import evaluation, metrics
from hrcf_lib.config import Config
from hrcf_lib.data.feeds.embeddings import Embedded, embed
from hrcf_lib.data.feeds.feed import Feed
from hrcf_lib.data.mojiscenes.scenes import MojiScenes, SceneLaw
from hrcf_lib.engine import weights
from hrcf_lib.engine.messages import check_known, whole_number
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods import registry
from hrcf_lib.studies import bootstrap, compare, records, runs

FOLDER = "conditions"  # in that of a run
PROTOCOL = (
    "P/R/F1@K: micro over the pictures of a condition. mAP: labels without positives there are left out. Scores are "
    "computed for the labels that are asked together."
)
ORDER = 0  # seed of the order in which unseen labels are grouped, and seen ones come beside them


@dataclass(frozen=True)
class Ask:
    """Which labels a model is asked for together, and which of them are measured.

    Scores depend on what is asked together, whichever method fuses or weighs over labels. With ``together`` the unseen
    labels are divided into groups of about that size, each asked by itself, and all of them are measured: mAP is then
    of the same labels at every size of group. Seen labels come beside them in one order, so that more contain fewer.
    """

    together: int | None = None  # unseen labels at a time; None: all
    beside: int | None = 0  # seen labels that are asked beside them; None: all
    measured: str = "unseen"  # or "asked": those beside them too

    def __post_init__(self):
        for name, least in (("together", 1), ("beside", 0)):
            if (value := getattr(self, name)) is not None:
                whole_number(name, value, least, otherwise=", or None for all")
        check_known([self.measured], ("unseen", "asked"), "unknown measured")
        if self.measured == "asked" and self.together is not None:
            raise ValueError("groups of unseen labels have the seen ones in common: measure the unseen, or all at once")


TASKS = {"ZSL": Ask(), "GZSL": Ask(beside=None, measured="asked")}  # the paper's
AMONG_ALL = {"ZSL among all": Ask(beside=None)}  # unseen labels, scored among all labels


def number_asked(space: LabelSpace, ask: Ask) -> int:
    """How many labels are asked together (of groups whose sizes differ by one, the size that was wanted)."""
    return min(ask.together or math.inf, len(space.unseen)) + (space.n_seen if ask.beside is None else ask.beside)


def groups(space: LabelSpace, ask: Ask) -> list[tuple[list[int], list[int]]]:
    """Of each group of labels the columns that are asked, in their order, and the measured ones among them.

    Raises ``ValueError`` for more labels beside than are seen, and for a label space without unseen ones.
    """
    rng, unseen = np.random.default_rng(ORDER), len(space.unseen)
    if not unseen:
        raise ValueError("the label space has no unseen labels: there is nothing to ask")
    if ask.beside is not None and ask.beside > space.n_seen:
        raise ValueError(f"beside = {ask.beside}, and {space.n_seen} labels are seen: give at most that, or None")
    beside = sorted(rng.permutation(space.n_seen)[: ask.beside].tolist())
    order = space.n_seen + rng.permutation(unseen)
    parts = np.array_split(order, max(1, round(unseen / (ask.together or unseen))))
    parts = [sorted(part.tolist()) for part in parts]
    return [(beside + part, beside + part if ask.measured == "asked" else part) for part in parts]


def laws(base: Config, of: dict[str, SceneLaw], data: str | Path = "data", cache: str | Path | None = None) -> Callable:
    """config -> name -> the test scenes of each law, as the method of the config reads them; as many as in ``base``.

    Methods that leave the ViT after the same block share them, and with ``cache`` they are stored. Raises
    ``ValueError`` for pictures that are not drawn by a law.
    """
    there = {}

    def take(config: Config) -> dict[str, Feed]:
        depth = registry.for_config(config, pretrained=False).trained_blocks
        if depth not in there:
            own = config.replace(test_size=base.test_size)
            there[depth] = {n: runs.sources(own, data, cache, ("test",), law)["test"] for n, law in of.items()}
        return there[depth]

    return take


def axes(base: Config, coverage=(), things=(), size=()) -> dict[str, dict[str, tuple[float, SceneLaw]]]:
    """axis -> name of a feed -> its place on the axis and its law, which differs from that of ``base`` in this alone.

    Args:
        base: of the experiment, with its own coverage.
        coverage: chances of a region or a thing to be one that an unseen label names.
        things: numbers of things in a scene.
        size: factors on the sizes of things.
    """
    law, found = SceneLaw(coverage=base.coverage), {}
    found["coverage"] = {c: dataclasses.replace(law, coverage=c) for c in coverage}
    found["things"] = {n: dataclasses.replace(law, objects=(n, n)) for n in things}
    scaled = lambda factor, sizes: tuple(factor * x for x in sizes)
    found["size"] = {
        f: dataclasses.replace(law, dominant=scaled(f, law.dominant), others=scaled(f, law.others)) for f in size
    }
    return {axis: {f"{axis} {x:g}": (x, law) for x, law in laws.items()} for axis, laws in found.items() if laws}


def by_positives(data: Feed, of: dict[str, tuple[int, int]]) -> dict[str, Feed]:
    """name -> the pictures of ``data`` in which so many unseen labels hold, from the least to the most, both included.

    Any data set has them. Raises ``ValueError`` where there is no such picture.
    """
    counts = (data.labels[:, data.space.columns("ZSL")] == 1).sum(dim=1)  # (n,)
    rows = {name: ((counts >= low) & (counts <= high)).nonzero()[:, 0].numpy() for name, (low, high) in of.items()}
    if empty := [name for name, own in rows.items() if not len(own)]:
        most = int(counts.max())
        raise ValueError(f"no picture for {empty[0]!r}: at most {most} unseen labels hold in one, choose other bounds")
    return {name: data.take(own) for name, own in rows.items()}


def tuned(base: Config, titles: Sequence[str], record: dict | None = None) -> dict[str, Config]:
    """title -> the config of a method with what the search of notebook 05 chose on val; HRCF is one of them.

    ``record`` is that notebook's, by default the stored one. The search was by the short form of its preset, which
    takes them too. For other data or another preset they are the methods' defaults, with a warning. Raises
    ``ValueError`` for a title that is no method's.
    """
    names = {registry.method(name).title: name for name in (*registry.names("compared"), "hrcf")}
    check_known(titles, list(names), "no method is called")
    record = records.read_record("05_main_results", records.STORED) if record is None else record
    of = configs.from_dict(record["config"])
    differ = [n for n in configs.names_where(of=configs.DATA) if getattr(of, n) != getattr(base, n)]
    differ += ["preset"] * (base.name.removesuffix("_short") != of.name)
    if differ:
        warnings.warn(
            f"notebook 05 chose for another {', '.join(differ)}: the methods' defaults are taken", stacklevel=2
        )
    chosen = {} if differ else record["tuned"]
    return {t: registry.configure(names[t], base).replace(**chosen.get(t, {})) for t in titles}


def image_steps(config: Config) -> int:
    """Steps of the image side in a run of ``train_size`` pictures. Raises ``ValueError`` where that is None."""
    if config.train_size is None:
        raise ValueError("train_size is None, all pictures: set it to their number")
    return sum(p.epochs * math.ceil(config.train_size / p.batch) for p in config.phases if p.trains != "prompts")


def facts(scenes: dict[str, MojiScenes], pictures: int = 100) -> pd.DataFrame:
    """What the first scenes of each law are like, in the mean: a row for each name.

    Columns: share of the picture that unseen labels name; unseen labels, and all labels, that hold in a picture; things
    in it, and how large they are (longer side, in shares of the picture's).
    """
    found = {}
    for name, split in scenes.items():
        unseen, rows = set(split.labels.unseen), []
        for scene in map(split.scene, range(min(pictures, len(split)))):
            x0, y0, x1, y1 = scene.boxes[: scene.things].T
            row = {"covered by unseen labels": scene.covered(unseen), "unseen labels": len(unseen & {*scene.names})}
            row |= {"labels": len({*split.labels.names} & {*scene.names}), "things": scene.things}
            size = float(np.maximum(x1 - x0, y1 - y0).mean() / scene.image.shape[0])
            rows.append(row | {"size of a thing": size})
        found[name] = pd.DataFrame(rows).mean()
    return pd.DataFrame(found).T.rename_axis("law")


def run(config: Config, feats, folder: str | Path, feeds, asks: dict, settings=None, resamples: int = 1000):
    r"""The ``runs.Outcome`` of a run on every feed and by every ask; what is there already is read.

    Args:
        config, feats, folder: of the run, as ``studies.run`` takes them; it is trained if it is not there.
        feeds: name -> test pictures, or a function of the config, as of ``laws``.
        asks: name -> ``Ask``.
        settings: as of ``studies.run``.
        resamples: R of the bootstrap.

    The columns ``split`` and ``task`` of its table are names of ``feeds`` and ``asks``. mAP is the mean over the
    measured labels that have a positive, in percent. Labels of several groups are not ranked against each other:
    their asks have no P, R and F1. Raises what ``train`` and ``groups`` raise, and ``ValueError`` for a method that
    scores only the labels that it was trained on.
    """
    settings = runs.AS_TRAINED if settings is None else settings
    feeds = feeds(config) if callable(feeds) else feeds
    if not registry.asks_unseen(config):
        raise ValueError(f"{config.method} scores only the labels that it was trained on: there is no other to ask")
    wanted = {(s, a): f"{_key(setting)}|{_key(ask)}" for s, setting in settings.items() for a, ask in asks.items()}
    rows, resampled, model, embeddings = [], {}, None, {}
    with runs.exclusive(config, folder) as out:
        for name, data in feeds.items():
            path = out / FOLDER / f"{_digest(data, resamples)}.safetensors"
            known = _read(path)
            missing = {pair: key for pair, key in wanted.items() if f"{key}|mAP" not in known}
            if missing:
                model = model or _trained(config, feats, folder, out)
                asked = {key: (settings[s], asks[a]) for (s, a), key in missing.items()}
                known |= _measured(model, data, asked, resamples, embeddings)
                weights.write_tensors(known, path)
            for (setting, ask), key in wanted.items():
                found = {k.rpartition("|")[2]: v for k, v in known.items() if k.rpartition("|")[0] == key}
                resampled |= {(setting, name, ask, metric): values for metric, values in found.items()}
                row = {metric: 100 * float(values[0]) for metric, values in sorted(found.items(), key=_place)}
                rows.append({"setting": setting, "split": name, "task": ask} | row | {"images": len(data)})
    return runs.Outcome(pd.DataFrame(rows), resampled, {}, out)


def run_all(variants: dict[str, Config], seeds, feats, folder, feeds, asks, settings=None, resamples=1000) -> dict:
    """(variant, seed) -> ``run``. ``settings`` may be a function of the name of the variant. Raises as ``run``."""
    jobs, found = [(name, seed) for seed in seeds for name in variants], {}
    for name, seed in tqdm(jobs, "conditions", disable=None, leave=False):
        own = settings(name) if callable(settings) else settings
        found[name, seed] = run(variants[name].replace(seed=seed), feats, folder, feeds, asks, own, resamples)
    return found


def _trained(config: Config, feats, folder: str | Path, out: Path):
    return runs.train_run(config, runs.with_training_data(config, feats), folder, out)[0].eval()


def _measured(model, data: Feed, asked: dict, resamples: int, embeddings: dict) -> dict[str, Tensor]:
    """Key of ``asked`` and metric -> (1 + R,), of P and R (1,); all in 0..1.

    ``embeddings`` keeps those of labels from one feed to the next. Asks that differ in what is measured alone are
    scored once.
    """
    drawn, embedded, found, scored = bootstrap.draw(len(data), resamples), embed(model, data), {}, {}
    for key, (setting, ask) in asked.items():
        same, own = (_key(setting), ask.together, ask.beside), groups(data.space, ask)
        if same not in scored:
            together = [[data.space.names[c] for c in columns] for columns, _ in own]
            scored[same] = scores(model, embedded, together, setting, embeddings)
        values, columns = _columns_of(scored[same], own)
        y = data.labels[:, columns]
        found[f"{key}|mAP"] = bootstrap.resampled_map(values, y, drawn).float()
        if ask.together is None:
            for k in model.config.ks:
                p, r, _ = metrics.precision_recall_f1_at_k(values, y, k)
                found |= {f"{key}|P@{k}": torch.tensor([p]), f"{key}|R@{k}": torch.tensor([r])}
                found[f"{key}|F1@{k}"] = bootstrap.resampled_f1(values, y, drawn, k).float()
    return found


@torch.no_grad()
def scores(model, embedded: Embedded, together: list[list[str]], setting, embeddings: dict) -> list[Tensor]:
    """Scores (n, k) of the k labels of each group, which are asked by themselves, in a setting.

    ``embeddings`` is filled with those of single labels for each way of writing them, unless the method fits them to
    the group (``Method.fits_labels``).
    """
    changes = {} if callable(setting) else setting
    of_scores = configs.names_where(type(model.config), scores=True)  # others may change the prompt
    known = embeddings.setdefault(repr({n: v for n, v in changes.items() if n not in of_scores}), {})
    asked, scorer, found = model.under(model.config.replace(**changes)), runs.scorer(model, setting), []
    for names in together:
        if model.fits_labels:
            t = asked.embed_names(names)  # (k + companions, D), which the method keeps
        else:
            beside = [*names, *asked.companions(names)]
            if missing := [name for name in beside if name not in known]:
                known |= zip(missing, asked.label_embeddings(missing), strict=True)
            t = torch.stack([known[name] for name in beside])  # (k + companions, D)
        found.append(evaluation.score_all(embedded, t, scorer)[:, : len(names)])
    return found


def _columns_of(parts: list[Tensor], asked: list) -> tuple[Tensor, list[int]]:
    """Scores (n, M) of the measured labels of all groups, and their M columns."""
    kept = [part[:, [together.index(c) for c in measured]] for part, (together, measured) in zip(parts, asked)]
    return torch.cat(kept, dim=1), [c for _, measured in asked for c in measured]


def _key(value) -> str:
    """Text that tells settings, and asks, apart."""
    if isinstance(value, Ask):
        return f"{value.together}, {value.beside}, {value.measured}"
    return value.__name__ if callable(value) else json.dumps(value, sort_keys=True)


def _digest(data: Feed, resamples: int) -> str:
    """Name of the file of what is measured on a feed: other pictures or labels have another."""
    text = json.dumps([data.identity(), data.space.hash, resamples], sort_keys=True)
    unseen = data.labels[:, data.space.columns("ZSL")].to("cpu", torch.int8).contiguous().numpy()
    return hashlib.sha256(text.encode() + unseen.tobytes()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        return {}
    try:
        return weights.read_tensors(path)
    except ValueError as error:
        warnings.warn(f"{error}: this feed is scored again", stacklevel=3)
        return {}


def _place(item) -> tuple:
    """Order of metrics in a row: P, R and F1 by K, then mAP."""
    name, _, k = item[0].partition("@")
    return (int(k) if k else math.inf, ("P", "R", "F1", "mAP").index(name))


# Differences on an axis ------------------------------------------------------------------------------------------


def stacked(parts: dict[str, dict], split: str = "test") -> dict:
    """Outcomes of several experiments as one, whose splits are their names: (variant, seed) -> ``runs.Outcome``.

    ``parts``: name -> outcomes of ``studies.run_all``, such as of one length of training, of which ``split`` is taken.
    A variant and seed that one of them lacks is left out.
    """
    found = {}
    for key in set.intersection(*map(set, parts.values())):
        own = {name: outcomes[key] for name, outcomes in parts.items()}
        tables = [o.table[o.table["split"].eq(split)].assign(split=name) for name, o in own.items()]
        resampled = {
            (s, name, task, metric): values
            for name, o in own.items()
            for (s, there, task, metric), values in o.resampled.items()
            if there == split
        }
        found[key] = runs.Outcome(pd.concat(tables, ignore_index=True), resampled, {}, next(iter(own.values())).folder)
    return {key: found[key] for key in next(iter(parts.values())) if key in found}


def curves(outcomes: dict, pairs: dict, at: dict[str, float], panels: dict, by: str = "split") -> pd.DataFrame:
    """The differences of ``pairs`` on an axis, as ``figures.conditions.differences`` draws them.

    Args:
        outcomes, pairs: as of ``compare.differences`` and ``compare.labelled``.
        at: a feed, or with ``by`` = "task" an ask -> its place on the axis.
        panels: title -> (task, metric), or with ``by`` = "task" (split, metric).

    Columns: ``label``, ``panel``, ``x``, and those of ``compare.differences``; rows in the order of the axis. Raises
    ``ValueError`` for a place or a panel without rows.
    """
    other = "task" if by == "split" else "split"
    rows = compare.differences(outcomes, pairs.values(), tuple({metric for _, metric in panels.values()}))
    check_known(at, list(dict.fromkeys(rows[by])), f"no row with {by}")
    parts = []
    for label, pair in pairs.items():
        own = rows[compare.is_of(rows, pair)]
        for panel, (which, metric) in panels.items():
            part = own[own[by].isin(at) & own[other].eq(which) & own["metric"].eq(metric)]
            if not len(part):
                raise ValueError(f"no row for {panel!r}, {label!r}: {other} {which!r} with {metric} was not measured")
            parts.append(part.assign(label=label, panel=panel, x=part[by].map(at).astype(float)).sort_values("x"))
    return pd.concat(parts, ignore_index=True)


def crossings(outcomes: dict, pairs: dict, at: dict, panels: dict, by="split", log=False, level=0.95) -> pd.DataFrame:
    r"""Where the differences of ``pairs`` change sign on an axis, by straight lines between its points.

    Arguments as of ``curves``; with ``log`` lines are straight over the logarithm of the axis.

    One row per pair and panel: ``label``, ``panel``, the difference at the least and at the greatest place (``first``,
    ``last``, percentage points), ``crosses`` (the place; NaN: nowhere), ``low`` and ``high`` (its bootstrap interval;
    infinite where it may lie beyond the axis), and the same in ``words``. Of several crossings it is that nearest to
    the middle of the axis, and the words count them.
    """
    place = {name: math.log(x) if log else float(x) for name, x in sorted(at.items(), key=lambda item: item[1])}
    rows = []
    for label, pair in pairs.items():
        (a, at_a), (b, at_b) = map(compare.named, pair)
        seeds = [s for v, s in outcomes if v == a and (b, s) in outcomes]
        ours, others = ([outcomes[v, s].resampled for s in seeds] for v in (a, b))
        for panel, (which, metric) in panels.items():
            points = [(name, which) if by == "split" else (which, name) for name in place]
            sides = [([r[at_a, *p, metric] for r in ours], [r[at_b, *p, metric] for r in others]) for p in points]
            draws = [bootstrap.difference_draws(*side) for side in sides]
            y, z = 100 * np.array([d for d, _ in draws]), 100 * np.stack([drawn for _, drawn in draws])  # (P,), (P, R)
            row = _crossing(list(place.values()), y, z, level, math.exp if log else float)
            rows.append({"label": label, "panel": panel} | row)
    return pd.DataFrame(rows)


def zeros(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Where the line through the points crosses 0, from left to right.

    >>> zeros([0, 1, 2], [-1.0, 1.0, 3.0])
    [0.5]
    """
    pairs = list(zip(x, y))
    return [a + (b - a) * p / (p - q) for (a, p), (b, q) in zip(pairs, pairs[1:]) if (p < 0) != (q < 0)]


def _crossing(x, y, z, level: float, back) -> dict:
    row, middle, found = {"first": y[0], "last": y[-1]}, (x[0] + x[-1]) / 2, zeros(x, y)
    if not found:
        kind = "ahead" if y[0] >= 0 else "behind"
        return row | {"crosses": math.nan, "low": math.nan, "high": math.nan, "words": f"{kind} everywhere"}
    at = min(found, key=lambda place: abs(place - middle))
    rises = y[-1] >= y[0]
    drawn = []
    for one in z.T:
        own = zeros(x, one)
        beyond = -math.inf if (one[0] >= 0) == rises else math.inf
        drawn.append(min(own, key=lambda place: abs(place - at)) if own else beyond)
    drawn = np.sort(drawn)
    low, high = (float(drawn[min(len(drawn) - 1, int(q * len(drawn)))]) for q in ((1 - level) / 2, (1 + level) / 2))
    at, low, high = (v if math.isinf(v) else back(v) for v in (at, low, high))
    side = "above" if rises else "below"
    more = "" if len(found) == 1 else f", one of {len(found)} crossings"
    return row | {"crosses": at, "low": low, "high": high, "words": f"ahead {side} {at:.3g}{more}"}
