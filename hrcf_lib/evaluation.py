r"""One pass over a split -> scores -> a table of metrics whose protocol is named.

The image side does not depend on the labels, so it runs once (``embed``); every label set and every test-time setting
(lambda, RSS) is then scored from the stored embeddings. Scores are computed once *per label set*: ZSL scores are not
columns of GZSL scores, because softmax, ranking and norms run over the labels being scored.
"""

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hrcf_lib import protocols, scores
from hrcf_lib.features import FrozenFeatures


@dataclass
class Embedded:
    """Global embeddings (n, D) and regions (n, J, D; float16 to save memory) of a split."""

    e_g: Tensor
    regions: Tensor


@torch.no_grad()
def embed(model, features: FrozenFeatures, batch: int = 128) -> Embedded:
    """The image side of ``model`` over a split, in evaluation mode and float32."""
    model.eval()
    e_g, regions = [], []
    for rows in torch.arange(len(features)).split(batch):
        g, r = model.image_embeddings(features.batch(rows, model.vlp.mean.device)[0])
        e_g.append(g.cpu())
        regions.append(r.half().cpu())
    return Embedded(torch.cat(e_g), torch.cat(regions))


@torch.no_grad()
def score_all(embedded: Embedded, label_embeddings: Tensor, scorer, batch: int = 256) -> Tensor:
    """Scores (n, K) of a whole split; ``scorer(e_g, regions, label_embeddings) -> (B, K)``."""
    device = label_embeddings.device
    parts = []
    for rows in torch.arange(len(embedded.e_g)).split(batch):
        e_g, regions = embedded.e_g[rows].to(device), embedded.regions[rows].to(device).float()
        parts.append(scorer(e_g, regions, label_embeddings).cpu())
    return torch.cat(parts)


def measure(values: Tensor, labels: Tensor, ks=(3, 5), protocol="per_class", task="GZSL") -> dict:
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
    model, features: FrozenFeatures, tasks=("ZSL", "GZSL"), scorer=None, embedded=None, protocol="per_class"
) -> pd.DataFrame:
    """A row a task: P/R/F1@K and mAP in percent by a named protocol, each task scored for its own label set.

    ``scorer`` replaces the model's own HSA (see ``CONTROLS``); with ``embedded`` (from ``embed``) the image side does
    not run again. ``protocol`` as in ``measure``. Raises ``ValueError`` for an unknown protocol, or a task that the
    label space has no labels for.
    """
    protocol = protocols.named(protocol)  # an unknown name fails before the work
    model.eval()
    embedded = embed(model, features) if embedded is None else embedded
    scorer = model.score if scorer is None else scorer

    @torch.no_grad()
    def values(names):
        return score_all(embedded, model.label_embeddings(names), scorer)

    return _rows(features, tasks, values, model.config.ks, protocol)


def _rows(features: FrozenFeatures, tasks, values, ks, protocol="per_class") -> pd.DataFrame:
    """A row a task; ``values(names)`` -> scores (n, K) of all pictures for the task's own names."""
    rows = {}
    for task in tasks:
        view = features.space.view(task)
        if not view.names:
            raise ValueError(f"the label space has no labels for {task}: give unseen labels, or leave the task out")
        rows[task] = measure(values(view.names), features.labels[:, view.columns], ks, protocol, task)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def uniform_weights(config):
    """Control for RSA: Eq. 13 with every weight 1/K, so that a region counts alike for all labels whatever it shows."""

    def scorer(e_g, regions, t):
        if config.rss:
            regions = scores.select_regions(regions, t, scores.regions_to_keep(config, regions.shape[1]))
        s_region = regions.sum(dim=1) @ t.T / len(t)  # (B, K) = sum_j s_jk / K
        return scores.fuse(scores.global_scores(e_g, t), s_region, config.lam, config.normalize_fusion)

    return scorer


def random_selection(config, seed: int = 0):
    """Control for RSS: as many regions, drawn at random for each picture."""
    rng = torch.Generator().manual_seed(seed)

    def scorer(e_g, regions, t):
        values = torch.rand(regions.shape[:2], generator=rng).to(regions.device)
        kept = scores.take_best(regions, values, scores.regions_to_keep(config, regions.shape[1]))
        return scores.score(e_g, kept, t, config, select=False)

    return scorer


def without_rss(config):
    """All regions are scored, as in training."""
    return lambda e_g, regions, t: scores.score(e_g, regions, t, config, select=False)


CONTROLS = {"RSA with uniform weights": uniform_weights, "RSS with random selection": random_selection}


# The plain VLP ------------------------------------------------------------------------------------------------------

ZERO_SHOT_PROMPTS = {
    "name": ["{}"],
    "photo": ["a photo of a {}."],
    "drawing": ["a drawing of a {}."],
    "there is": ["there is a {}."],
    "multi-label": ["A photo for multi-label classification, there is a {}."],
    "ensemble": ["a photo of a {}.", "a drawing of a {}.", "a picture of a {}.", "there is a {}.", "this is a {}."],
}
ZERO_SHOT_SCORES = {
    "dot": lambda e, t: e @ t.T,
    "cosine": lambda e, t: torch.nn.functional.normalize(e, dim=-1) @ torch.nn.functional.normalize(t, dim=-1).T,
    "softmax": lambda e, t: (e @ t.T).softmax(dim=-1),
}


@torch.no_grad()
def zero_shot(
    vlp, features: FrozenFeatures, prompt: str, score: str, tasks=("ZSL", "GZSL"), ks=(3, 5), protocol="per_class"
) -> pd.DataFrame:
    """The plain VLP (Pre-CLIP of Table V): global embedding against a prompt of ``ZERO_SHOT_PROMPTS``. A row a task."""
    return _zero_shot(vlp, features, prompt, [score], tasks, ks, protocol)[score]


def _zero_shot(vlp, features, prompt, kinds, tasks, ks, protocol="per_class") -> dict[str, pd.DataFrame]:
    """The table of each kind of score; texts are encoded once a task."""
    encode = cache(partial(_prompted, vlp, prompt=prompt))

    def values(kind, names):
        return ZERO_SHOT_SCORES[kind](features.teacher, encode(names))

    return {kind: _rows(features, tasks, partial(values, kind), ks, protocol) for kind in kinds}


def _prompted(vlp, names, prompt: str) -> Tensor:
    """(K, D) mean embedding of each name over the texts of a prompt of ``ZERO_SHOT_PROMPTS``."""
    texts = ZERO_SHOT_PROMPTS[prompt]
    return torch.stack([vlp.encode_text([text.format(n) for n in names]) for text in texts]).mean(0).cpu()


def best_zero_shot(vlp, features: FrozenFeatures) -> tuple[str, str, pd.DataFrame]:
    """Prompt and score of highest mean mAP over both tasks on ``features`` (give it val), and the whole search."""
    search = {}
    for prompt in ZERO_SHOT_PROMPTS:
        for score, table in _zero_shot(vlp, features, prompt, ZERO_SHOT_SCORES, ("ZSL", "GZSL"), ks=()).items():
            search[prompt, score] = {f"mAP {task}": table.loc[task, "mAP"] for task in table.index}
    frame = pd.DataFrame(search).T
    prompt, score = frame.mean(axis=1).idxmax()
    return prompt, score, frame.rename_axis(["prompt", "score"]).astype(np.float64)
