r"""What a VLP knows before HRCF touches it: accuracy on pictures of one thing, recall by size where there are many.

Also the last step of making the mini VLP, ``rescale``: CLIP's *unnormalised* embeddings have dot products with the
spread of its learnt temperature, and RSA relies on that. A VLP trained on cosines alone must be brought there.
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
from hrcf_lib.data.mojiscenes import openmoji
from hrcf_lib.data.mojiscenes import scenes as mojiscenes
from hrcf_lib.data.mojiscenes.portraits import TEMPLATES, TEXTURE_CAPTIONS, portrait
from hrcf_lib.scores import region_scores, relevance, score, take_best, votes
from hrcf_lib.vlp import VLP

PROBE_PROMPT = "a photo of a {}."
SIZES = {"small (under 25 %)": (0, 0.25), "medium (25-45 %)": (0.25, 0.45), "large (over 45 %)": (0.45, 2)}


def portraits(per_concept: int = 10, seed: int = 1, side: int = 112) -> tuple[Tensor, Tensor]:
    """Held-out pictures of one thing, no distractors, full colour: (n, 3, side, side) uint8 and (n,) concept numbers.

    Their random streams ([2, seed, concept, i]) are never used in training ([step, seed, 7]).
    """
    concepts = range(len(openmoji.vocabulary()))
    pairs = [(k, i) for k in concepts for i in range(per_concept)]
    pictures = [portrait(np.random.default_rng([2, seed, k, i]), k, side).image for k, i in pairs]
    return torch.from_numpy(np.stack(pictures)), torch.tensor([k for k, _ in pairs])


@torch.no_grad()
def embed_images(vlp: VLP, images: Tensor, batch: int = 64) -> Tensor:
    """Global embeddings (n, D)."""
    return torch.cat([vlp.encode_image(part) for part in images.split(batch)])


@torch.no_grad()
def single_object_accuracy(vlp: VLP, images: Tensor, concepts: Tensor) -> pd.DataFrame:
    """Top-1 and top-5 in percent over the *whole* vocabulary, for each split of it and for all; chance is 0.3 %."""
    vocabulary = openmoji.vocabulary()
    hit = _best_names(vlp, images, [c.name for c in vocabulary], 5) == concepts[:, None]  # (n, 5)
    frame = pd.DataFrame({"split": [vocabulary[k].split for k in concepts], "top-1": hit[:, 0], "top-5": hit.any(1)})
    table = frame.groupby("split")[["top-1", "top-5"]].mean() * 100
    table.loc["whole vocabulary"] = frame[["top-1", "top-5"]].mean() * 100
    table["pictures"] = [*frame.groupby("split").size(), len(frame)]
    return table


@torch.no_grad()
def recall_by_size(vlp: VLP, n: int = 1000, split: str = "test", k: int = 5, seed: int = 0) -> pd.DataFrame:
    """How many of the things in multi-object scenes the *global* score puts among its ``k`` best of 300, by size.

    Size is the longer side of the box as a share of the picture. Rows: size classes, then the largest thing of each
    scene against all others. In percent.
    """
    names = [c.name for c in openmoji.vocabulary() if c.openmoji]
    column = {name: i for i, name in enumerate(names)}
    scenes = [mojiscenes.draw(split, i, seed) for i in range(n)]
    images = torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in scenes]))
    best = _best_names(vlp, images, names, k).tolist()
    rows = []
    for scene, top in zip(scenes, best, strict=True):
        for i, (name, (x0, y0, x1, y1)) in enumerate(zip(scene.names, scene.boxes, strict=True)):
            if name in column:
                rows.append((max(x1 - x0, y1 - y0) / scene.image.shape[0], i == 0, column[name] in top))
    frame = pd.DataFrame(rows, columns=["size", "dominant", "found"])
    parts = {label: frame[(frame["size"] >= low) & (frame["size"] < high)] for label, (low, high) in SIZES.items()}
    parts |= {"largest of its scene": frame[frame.dominant], "all others": frame[~frame.dominant]}
    table = {label: {f"recall@{k}": 100 * part.found.mean(), "things": len(part)} for label, part in parts.items()}
    return pd.DataFrame(table).T.rename_axis("size")


def _best_names(vlp: VLP, images: Tensor, names: list[str], k: int) -> Tensor:
    """(n, k) numbers of the names nearest to each picture by cosine, best first."""
    t = F.normalize(vlp.encode_text([PROBE_PROMPT.format(name) for name in names]), dim=-1)  # (K, D)
    return (F.normalize(embed_images(vlp, images), dim=-1) @ t.T).topk(k).indices


@torch.no_grad()
def region_entropy(regions: Tensor, label_embeddings: Tensor) -> tuple[float, float]:
    """Mean entropy in nats of Eq. 12's softmax over the labels, and its largest possible value ln K."""
    p = region_scores(regions.to(label_embeddings.device), label_embeddings).softmax(dim=-1)  # (B, J, K)
    return float(-(p * p.clamp(min=1e-30).log()).sum(-1).mean()), float(np.log(p.shape[-1]))


@torch.no_grad()
def rescale(vlp: VLP, images: Tensor, texts: list[str]) -> float:
    """Scale both projections so that dot products are ``exp(logit_scale)`` times the cosine; returns that factor.

    After it both sides have a mean norm of sqrt(exp(logit_scale)), about 10 for CLIP. Cosines do not change.
    """
    target = float(vlp.model.logit_scale.exp()) ** 0.5
    vlp.model.visual.proj.mul_(target / float(embed_images(vlp, images).norm(dim=-1).mean()))
    vlp.model.text_projection.mul_(target / float(vlp.encode_text(texts).norm(dim=-1).mean()))
    return target**2


def caption_tokens(vlp: VLP) -> Tensor:
    """Sorted ids of every token that a caption of pre-training can hold: the rows of the token table that are kept."""
    texts = [t.format(name) for t in TEMPLATES for name in openmoji.names()] + list(TEXTURE_CAPTIONS.values())
    ids = {i for text in texts for i in vlp.tokenizer.encode(text)}
    return torch.tensor(sorted(ids | {vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id}))


def covered(scenes, sides: list[int]) -> Tensor:
    """(B, J) share of each region's cell that lies inside the box of some thing (not of a scene label), in 0..1."""
    picture = scenes[0].image.shape[0]
    masks = torch.zeros(len(scenes), 1, picture, picture)
    for mask, scene in zip(masks, scenes, strict=True):
        for x0, y0, x1, y1 in scene.boxes[scene.boxes[:, 2] - scene.boxes[:, 0] < picture].round().astype(int):
            mask[0, y0:y1, x0:x1] = 1
    return torch.cat([F.adaptive_avg_pool2d(masks, side).flatten(1) for side in sides], dim=1)


def relevance_auc(relevance: Tensor, share: Tensor, sides: list[int]) -> pd.Series:
    r"""Does Eq. 16 tell things from background? Area under the ROC curve of r_j (B, J) for each level, 0.5 is chance.

    A region counts as a thing if more than half of its cell is covered, as background if less than a tenth is.
    """
    auc, areas = {}, [side**2 for side in sides]
    for level, (r, c) in enumerate(zip(relevance.split(areas, 1), share.split(areas, 1), strict=True), 1):
        clear = (c > 0.5) | (c < 0.1)
        auc[f"level {level}"] = roc_auc_score((c > 0.5)[clear].numpy(), r[clear].numpy())
    return pd.Series(auc, name="AUC of relevance")


def by_level(model, features, tasks=("ZSL", "GZSL")) -> pd.DataFrame:
    """mAP in percent of the region score of each level alone, divided by its norm as in Eq. 14; no RSS."""
    embedded, config = embed(model, features), model.config.replace(lam=1.0)
    rows, end = {}, 0
    for level, side in zip(model.gather.levels, model.gather.sides, strict=True):
        part, end = slice(end, end + side**2), end + side**2
        scorer = partial(_some_regions, part=part, config=config)
        rows[f"level {level}"] = evaluation.evaluate(model, features, tasks, scorer, embedded)["mAP"]
    return pd.DataFrame(rows).T.rename_axis("regions")


def _some_regions(e_g, regions, t, part: slice, config) -> Tensor:
    return score(e_g, regions[:, part], t, config, select=False)


@torch.no_grad()
def level_statistics(regions: Tensor, label_embeddings: Tensor, gather) -> pd.DataFrame:
    r"""A row a level: what its regions (B, J, D) are like, beside labels (K, D), and what they add to the score.

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
def left_out_by_rss(regions: Tensor, label_embeddings: Tensor, keep: int) -> dict[str, float]:
    r"""Shares in 0..1 of the regions (B, J, D), and of the votes $|w_{jk} s_{jk}|$, that RSS leaves out."""
    mass = votes(region_scores(regions, label_embeddings)).abs().sum(dim=-1, keepdim=True)  # (B, J, 1)
    kept = take_best(mass, relevance(regions, label_embeddings), keep)
    return {"regions": 1 - keep / regions.shape[1], "votes": 1 - float(kept.sum() / mass.sum())}


@torch.no_grad()
def within_all_labels(model, data, embedded=None) -> float:
    r"""ZSL mAP in percent if unseen labels are scored among *all* labels, and their columns cut out afterwards.

    Not the protocol: softmax and norms belong to the labels being scored. It tells whether votes of regions that show
    seen things, and have only unseen labels to go to, cost ZSL anything.
    """
    t = model.label_embeddings(data.space.names)
    scorer = lambda e_g, regions, unseen: model.score_embeddings(e_g, regions, t)[:, data.space.n_seen :]
    held = embedded or embed(model.eval(), data)
    return float(evaluation.evaluate(model, data, ("ZSL",), scorer, held).loc["ZSL", "mAP"])
