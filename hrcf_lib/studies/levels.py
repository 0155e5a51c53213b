r"""What the levels of HRCF's regions contribute: their scores, entropy and votes, and what RSS leaves out.

B pictures, J regions, K labels, D embedding width.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hrcf_lib import evaluation
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.scores import region_scores, relevance, score, take_best, votes


def by_level(model, features, tasks=("ZSL", "GZSL")) -> pd.DataFrame:
    """mAP in percent of the region score of each level alone, divided by its norm if ``normalize_fusion``; no RSS."""
    embedded, config = embed(model, features), model.config.replace(lam=1.0)
    rows, end = {}, 0
    for level, side in zip(model.gather.levels, model.gather.sides, strict=True):
        part, end = slice(end, end + side**2), end + side**2
        scorer = partial(_score_part, part=part, config=config)
        rows[f"level {level}"] = evaluation.evaluate(model, features, tasks, scorer, embedded)["mAP"]
    return pd.DataFrame(rows).T.rename_axis("regions")


def _score_part(e_g, regions, t, part: slice, config) -> Tensor:
    return score(e_g, regions[:, part], t, config, select=False)


@torch.no_grad()
def level_statistics(regions: Tensor, label_embeddings: Tensor, gather) -> pd.DataFrame:
    r"""One row per level: what its regions (B, J, D) are like, beside labels (K, D), and what they add to the score.

    Columns: number of regions; norm of e_j; largest weight of Eq. 12; entropy of the weights in nats; share of votes,
    the part of $\sum_{jk} |w_{jk} s_{jk}|$ that is the level's.
    """
    s = region_scores(regions, label_embeddings)  # (B, J, K)
    w = s.softmax(dim=-1)
    values = {"norm": regions.norm(dim=-1), "largest weight": w.amax(dim=-1), "entropy": torch.special.entr(w).sum(-1)}
    mass, level = (w * s).abs().sum(dim=-1), gather.level_of()  # (B, J), (J,)
    rows = {}
    for l in gather.levels:
        own = {name: float(x[:, level == l].mean()) for name, x in values.items()}
        share = float(mass[:, level == l].sum() / mass.sum())
        rows[f"level {l}"] = {"number": int((level == l).sum())} | own | {"share of votes": share}
    return pd.DataFrame(rows).T.rename_axis("regions of")


@torch.no_grad()
def region_entropy(regions: Tensor, label_embeddings: Tensor) -> tuple[float, float]:
    """Mean entropy in nats of Eq. 12's softmax over the labels, and its largest possible value ln K."""
    p = region_scores(regions.to(label_embeddings.device), label_embeddings).softmax(dim=-1)  # (B, J, K)
    return float(-(p * p.clamp(min=1e-30).log()).sum(-1).mean()), float(np.log(p.shape[-1]))


@torch.no_grad()
def left_out_by_rss(regions: Tensor, label_embeddings: Tensor, keep: int) -> dict[str, float]:
    r"""Shares in 0..1 of the regions (B, J, D), and of the votes $|w_{jk} s_{jk}|$, that RSS leaves out."""
    mass = votes(region_scores(regions, label_embeddings)).abs().sum(dim=-1, keepdim=True)  # (B, J, 1)
    kept = take_best(mass, relevance(regions, label_embeddings), keep)
    return {"regions": 1 - keep / regions.shape[1], "votes": 1 - float(kept.sum() / mass.sum())}


@torch.no_grad()
def within_all_labels(model, data, embedded=None) -> float:
    r"""ZSL mAP in percent if unseen labels are scored among *all* labels and their columns are cut out afterwards.

    This is not the protocol: softmax and norms run over the labels that are scored. It shows whether ZSL loses anything
    by regions that show seen things and can vote for unseen labels only.
    """
    t = model.label_embeddings(data.space.names)
    scorer = lambda e_g, regions, unseen: model.score_embeddings(e_g, regions, t)[:, data.space.n_seen :]
    held = embedded or embed(model.eval(), data)
    return float(evaluation.evaluate(model, data, ("ZSL",), scorer, held).loc["ZSL", "mAP"])


def covered(scenes, sides: list[int], labels=None) -> Tensor:
    """(B, J) share of each region's cell that shows one of ``labels`` (by default any thing), in 0..1.

    ``scenes`` are of MojiScenes, whose masks say what each pixel shows.
    """
    shown = [scene.mask(*(scene.names[: scene.things] if labels is None else labels)) for scene in scenes]
    masks = torch.stack([torch.from_numpy(mask).float()[None] for mask in shown])  # (B, 1, side, side)
    return torch.cat([F.adaptive_avg_pool2d(masks, side).flatten(1) for side in sides], dim=1)


def relevance_auc(relevance: Tensor, share: Tensor, sides: list[int]) -> pd.Series:
    r"""How well the sum of Eq. 17 finds what is asked for: area under the ROC curve of r_j (B, J) for each level.

    0.5 is chance. A region shows it if more than half of its cell does (``covered``), and does not if less than a tenth
    does. NaN for a level whose regions are all of one kind.
    """
    auc, areas = {}, [side**2 for side in sides]
    for level, (r, c) in enumerate(zip(relevance.split(areas, 1), share.split(areas, 1), strict=True), 1):
        clear = (c > 0.5) | (c < 0.1)
        shown = (c > 0.5)[clear].numpy()
        auc[f"level {level}"] = (
            roc_auc_score(shown, r[clear].numpy()) if shown.any() and not shown.all() else float("nan")
        )
    return pd.Series(auc, name="AUC of relevance")
