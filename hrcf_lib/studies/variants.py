r"""Variants of HRCF that are ours, each one idea, at test time alone (notebook 19).

Every variant has open votes (``methods.open_votes``), and one change more. They are scored from trained models, on val,
where one is chosen. B pictures, J regions, K labels, D embedding width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib import evaluation, scores
from hrcf_lib.config import Config
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.feeds.feed import Feed
from hrcf_lib.methods import registry
from hrcf_lib.studies import controls


@dataclass(frozen=True)
class Variant:
    """What is scored in place of HRCF as it was trained."""

    changes: dict  # of the config, at test time
    scorer: Callable | None = None  # config -> scorer, in place of HSA's own
    trained: float = 1.0  # weights this far from the start (the VLP's own) to where training ended


def sharpened(config: Config, temperature: float) -> Callable:
    r"""Eq. 12 with a temperature, $w_{jk} = \mathrm{softmax}_k(s_{jk} / \tau)$: a scorer. At 1 it is HSA."""
    return controls.aggregate_by(config, partial(_votes, temperature=temperature))


def best_votes(config: Config, most: int) -> Callable:
    r"""Eq. 13 with each label's ``most`` largest votes in place of the sum over all regions: a scorer."""
    return controls.aggregate_by(config, partial(_votes, most=most))


def _votes(regions: Tensor, t: Tensor, temperature: float = 1.0, most: int | None = None) -> Tensor:
    parts = []
    for rows in regions.split(32):  # (b, J, K) at a time
        s = scores.region_scores(rows, t)
        v = (s / temperature).softmax(dim=-1) * s  # (b, J, K)  Eq. 12
        parts.append((v if most is None else v.topk(min(most, v.shape[1]), dim=1).values).sum(dim=1))  # Eq. 13
    return torch.cat(parts)  # (B, K)


VARIANTS = {
    "HRCF": Variant({}),
    "open votes": Variant({"votes": "open"}),
    "... Eq. 14 as printed at test": Variant({"votes": "open", "normalize_at_test": False}),
    "... all regions": Variant({"votes": "open", "rss": False}),
    "... temperature 1/2": Variant({"votes": "open"}, partial(sharpened, temperature=0.5)),
    "... temperature 2": Variant({"votes": "open"}, partial(sharpened, temperature=2.0)),
    "... 24 best votes": Variant({"votes": "open"}, partial(best_votes, most=24)),
    "... 9/10 of the way": Variant({"votes": "open"}, trained=0.9),
}


def part_of_the_way(model, share: float):
    """A copy of a trained model with weights between its start and its end: 0 is the start, 1 the end.

    Interpolated weights keep more of what the VLP knew (Wortsman et al., CVPR 2022, for fine-tuned CLIP). Raises
    ``ValueError`` for a share out of 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share!r} of the way of training: choose a number from 0 to 1")
    start, made = registry.for_config(model.config).trainable_state(), copy.deepcopy(model)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name in start and p.is_floating_point():
                p.lerp_(start[name].to(p), 1 - share)
    return made


def measured(model, data: Feed, variants: dict[str, Variant] | None = None, tasks=("ZSL", "GZSL")) -> pd.DataFrame:
    """``evaluation.evaluate`` of each variant of a trained HRCF: rows (variant, task), metrics in percent."""
    found, held = {}, {}
    for name, variant in (VARIANTS if variants is None else variants).items():
        if variant.trained not in held:
            own = model if variant.trained == 1 else part_of_the_way(model, variant.trained)
            held = {variant.trained: (own, embed(own.eval(), data))}  # one at a time: regions are large
        own, embedded = held[variant.trained]
        own = own.under(own.config.replace(**variant.changes))
        scorer = variant.scorer and variant.scorer(own.config)
        found[name] = evaluation.evaluate(own, data, tasks, scorer, embedded)
    return pd.concat(found, names=["variant"])


def of_runs(runs: dict, data: Feed, variants: dict[str, Variant] | None = None) -> pd.DataFrame:
    """``measured`` of trained models by seed: rows (seed, variant, task)."""
    return pd.concat({seed: measured(model, data, variants) for seed, model in runs.items()}, names=["seed"])


def choose(table: pd.DataFrame, worth: float = 0.5, metrics=("mAP", "F1@3")) -> tuple[str, pd.DataFrame]:
    r"""The first variant that none of the table is better than by more than ``worth`` points, and what was compared.

    Good is the mean of ``metrics`` over tasks and seeds of a table of ``of_runs``, which lists simple variants first: a
    further change has to be worth its concept. The frame has a row per variant: the mean of each task and metric, their
    ``mean`` with its deviation over seeds, ``spread`` (0 for one seed), and ``chosen``.
    """
    wide = table[list(metrics)].unstack("task")  # rows (seed, variant)
    order = list(dict.fromkeys(table.index.get_level_values("variant")))
    good = wide.mean(axis=1).groupby("variant").agg(["mean", "std"]).fillna(0.0).loc[order]
    chosen = good.index[good["mean"] >= good["mean"].max() - worth][0]
    shown = wide.groupby("variant").mean().loc[order]
    shown.columns = [f"{task} {metric}" for metric, task in shown.columns]
    return chosen, shown.assign(mean=good["mean"], spread=good["std"], chosen=good.index == chosen)


@torch.no_grad()
def where_votes_go(model, data: Feed, pictures: int = 300) -> pd.DataFrame:
    """Shares, in percent, of the weights of Eq. 12 that go to each kind of label when unseen labels are asked for.

    One row per kind of ``config.votes``; columns: part of the labels, and whether they are in the picture. The mean
    over kept regions of the first ``pictures``.
    """
    space, some, rows = data.space, data.take(range(min(pictures, len(data)))), {}
    held = embed(model.eval(), some)
    columns = {name: i for i, name in enumerate(space.names)}
    for kind in ("asked", "open"):
        own = model.under(model.config.replace(votes=kind))
        names = [*space.unseen, *own.companions(space.unseen)]
        t, present = own.label_embeddings(names), some.labels[:, [columns[name] for name in names]] == 1  # (n, V)
        regions = held.regions.float().to(t.device)
        if own.config.rss:
            regions = scores.select_regions(regions, t, scores.regions_to_keep(own.config, regions.shape[1]))
        parts = [scores.region_scores(part, t).softmax(dim=-1).mean(dim=1).cpu() for part in regions.split(32)]
        share = torch.cat(parts)  # (n, V)  weights of Eq. 12, in the mean over regions
        unseen = torch.arange(len(names)) < len(space.unseen)
        found = {}
        for part, of in (("unseen", unseen), ("seen", ~unseen)):
            for state, there in (("in the picture", present), ("not in it", ~present)):
                found[part, state] = 100 * float((share * (there & of)).sum(dim=1).mean())
        rows[kind] = found
    return pd.DataFrame(rows).T.rename_axis("votes among")
