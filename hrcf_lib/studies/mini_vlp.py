r"""Whether the mini VLP is like CLIP, and fit for the claims: geometry, accuracy, recall by size, wording, gates.

``LIKENESS`` and ``GATES`` have the criteria, from how CLIP's embeddings lie and how well CLIP does. They were fixed
before any method was run on the VLP, and are read by ``likeness`` and ``gates``, which look at the VLP and the data
alone.

Also the last steps of making it: ``like_clip``, which gives its embeddings CLIP's cone of texts and its temperature,
which RSA relies on and a VLP trained on cosines alone does not have; and ``caption_tokens``, the rows of its token
table that are kept.

    python -m hrcf_lib.studies.mini_vlp

prints both tables for the VLP that ships, in about two minutes.
"""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from hrcf_lib import metrics
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.data.mojiscenes.captions import TEMPLATES, portrait
from hrcf_lib.methods.plain_vlp import SIMILARITIES
from hrcf_lib.regions import HierarchicalClueGathering
from hrcf_lib.studies.by_object_size import SIZES
from hrcf_lib.vlp import VLP, mini

PROBE_PROMPT = "a photo of a {}."
cosines = SIMILARITIES["cosine"]  # (n, D), (K, D) -> (n, K)
PROMPTS = ("{}", "a photo of a {}.", "a drawing of a {}.", "there is a {}.", "a small {}.", "a {} outdoors.")
ROWS = {"small": "small (under 25 %)", "medium": "medium (25-45 %)", "large": "large (over 45 %)"}  # of ``SIZES``
SCENES = 1000  # val scenes that the tables are measured on
ASKED = 81  # labels of an entropy: NUS-WIDE's unseen ones


@dataclass(frozen=True)
class Wanted:
    """A criterion: what is measured, in which bounds it has to be, and what CLIP has (None: not known)."""

    what: str
    low: float
    high: float
    clip: float | None


LIKENESS = (
    Wanted("cosine between label texts", 0.6, 0.85, 0.765),
    Wanted("its deviation", 0.0, 0.1, 0.048),
    Wanted("cosine between pictures", 0.3, 0.75, 0.521),
    Wanted("mean / deviation over labels of a picture's scores", 5, 15, 10.0),
    Wanted("entropy / log K of a picture, K = 81", 0.45, 0.7, 0.586),
    Wanted("largest probability of a picture, K = 81", 0.2, 0.45, 0.339),
    Wanted("entropy / log K of a region before training, K = 81", 0.45, 0.7, None),
    Wanted("largest probability of a region before training, K = 81", 0.2, 0.45, None),
    Wanted("top-1 of single things (%)", 70, 100, 68.0),
    Wanted("seen less unseen top-1 (points)", -10, 10, None),
)
GATES = (
    Wanted("plain VLP, ZSL mAP on val", 20, 40, 27.6),
    Wanted("plain VLP, GZSL mAP on val", 8, 25, 10.5),
    Wanted("recall of the largest thing / of small ones", 4, float("inf"), None),
    Wanted("best less worst template, ZSL mAP on val", 0.5, float("inf"), None),
)


def table(wanted: tuple[Wanted, ...], measured: dict[str, float]) -> pd.DataFrame:
    """One row per criterion: what was measured, CLIP's number, the bounds, and whether it is met."""
    rows = {
        w.what: {
            "mini VLP": measured[w.what],
            "CLIP": w.clip,
            "from": w.low,
            "to": w.high,
            "met": w.low <= measured[w.what] <= w.high,
        }
        for w in wanted
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")


def portraits(per_concept: int = 10, seed: int = 1, side: int = 112) -> tuple[Tensor, list[str]]:
    """Held-out pictures of one thing or kind of stuff, full colour: (n, 3, side, side) uint8 and the n names.

    Their random streams ([2, seed, concept, i]) are never used in training ([step, seed, 8]).
    """
    drawn = [(k, c.name) for k, c in enumerate(vocabulary.concepts()) if c.kind != "word"]
    found = [
        (portrait(np.random.default_rng([2, seed, k, i]), name, side, plain=0.7).image, name)
        for k, name in drawn
        for i in range(per_concept)
    ]
    return torch.from_numpy(np.stack([image for image, _ in found])), [name for _, name in found]


@torch.no_grad()
def embed_images(vlp: VLP, images: Tensor, batch: int = 64) -> Tensor:
    """Global embeddings (n, D)."""
    return torch.cat([vlp.encode_image(part) for part in images.split(batch)])


def embed_names(vlp: VLP, names, prompt: str = PROBE_PROMPT) -> Tensor:
    """(K, D) of names in a prompt."""
    with torch.no_grad():
        return vlp.encode_text([prompt.format(name) for name in names])


def single_object_accuracy(vlp: VLP, images: Tensor, names: list[str]) -> pd.DataFrame:
    r"""Top-1 and top-5 in percent over the *whole* vocabulary, words included, for each part of it and for all.

    A word above the thing is true of the picture too: it counts neither as a hit nor as a miss, and is passed over.
    Rows: parts (of things alone), kinds, whole vocabulary. Chance is about 0.13 % (K = 785).
    """
    drawn, known = [c.name for c in vocabulary.concepts()], vocabulary.by_name()
    scores = cosines(embed_images(vlp, images), embed_names(vlp, drawn))  # (n, K)
    column = {name: k for k, name in enumerate(drawn)}
    for i, name in enumerate(names):
        scores[i, [column[word] for word in vocabulary.ancestors(name)]] = -torch.inf
    best = scores.topk(5).indices == torch.tensor([column[name] for name in names])[:, None]  # (n, 5)
    frame = pd.DataFrame({"top-1": best[:, 0], "top-5": best.any(1)}).astype(float) * 100
    frame["part"], frame["kind"] = [known[n].part for n in names], [known[n].kind for n in names]
    rows = {}
    for key, of in (("part", frame[frame["kind"] == "thing"]), ("kind", frame)):
        rows |= {group: own for group, own in of.groupby(key)}
    rows["whole vocabulary"] = frame
    found = {row: {**own[["top-1", "top-5"]].mean(), "pictures": len(own)} for row, own in rows.items()}
    return pd.DataFrame(found).T.rename_axis("of")


def recall_by_size(vlp: VLP, n: int = SCENES, split: str = "test", k: int = 5, seed: int = 0) -> pd.DataFrame:
    """Recall@k, by size, of things in scenes by the *global* score over the names of all things.

    Size is the longer side of the box as a share of the picture. Rows: size classes, then the largest thing of each
    scene against all others. In percent.
    """
    names = [c.name for c in vocabulary.concepts() if c.kind == "thing"]
    column = {name: i for i, name in enumerate(names)}
    scenes, images = _drawn(split, n, seed)
    best = cosines(embed_images(vlp, images), embed_names(vlp, names)).topk(k).indices.tolist()
    rows = []
    for scene, top in zip(scenes, best, strict=True):
        for i, (x0, y0, x1, y1) in enumerate(scene.boxes[: scene.things].tolist()):
            rows.append((max(x1 - x0, y1 - y0) / scene.image.shape[0], i == 0, column[scene.names[i]] in top))
    frame = pd.DataFrame(rows, columns=["size", "dominant", "found"])
    parts = {ROWS[size]: frame[(frame["size"] >= low) & (frame["size"] < high)] for size, (low, high) in SIZES.items()}
    parts |= {"largest of its scene": frame[frame.dominant], "all others": frame[~frame.dominant]}
    found = {label: {f"recall@{k}": 100 * part.found.mean(), "things": len(part)} for label, part in parts.items()}
    return pd.DataFrame(found).T.rename_axis("size")


def by_template(vlp: VLP, n: int = SCENES, split: str = "val", prompts=PROMPTS) -> pd.DataFrame:
    """ZSL and GZSL mAP in percent of the plain VLP, by cosine, for each template."""
    scenes = mojiscenes.MojiScenes(split, n)
    drawn, images = _drawn(split, n)
    e, y = embed_images(vlp, images), torch.stack([scenes.labels_of(s) for s in drawn])  # (n, D), (n, K)
    rows = {}
    for prompt in prompts:
        s = cosines(e, embed_names(vlp, scenes.labels.names, prompt))  # (n, K)
        rows[prompt] = {
            task: 100 * metrics.mean_average_precision(s[:, columns], y[:, columns], "skip")
            for task, columns in ((task, scenes.labels.columns(task)) for task in ("ZSL", "GZSL"))
        }
    return pd.DataFrame(rows).T.rename_axis("template")


@torch.no_grad()
def geometry(vlp: VLP, n: int = SCENES, split: str = "val") -> dict[str, float]:
    """How the embeddings of labels, of ``n`` scenes and of their regions lie; keys as in ``LIKENESS``."""
    _, images = _drawn(split, n)
    names, asked = vocabulary.names(), vocabulary.names("val-unseen")[:ASKED]
    t, e = embed_names(vlp, names), embed_images(vlp, images)  # (K, D), (n, D)
    s = cosines(e, t)  # (n, K)
    wide = embed_names(vlp, asked)  # (81, D)
    regions = untrained_regions(vlp, images[: n // 5])
    (text, spread), (pictures, _) = pairs(t), pairs(e)
    (picture_entropy, picture_best), (region_entropy, region_best) = softmax(e, wide), softmax(regions, wide)
    return {
        "cosine between label texts": text,
        "its deviation": spread,
        "cosine between pictures": pictures,
        "mean / deviation over labels of a picture's scores": float((s.mean(1) / s.std(1)).mean()),
        "entropy / log K of a picture, K = 81": picture_entropy,
        "largest probability of a picture, K = 81": picture_best,
        "entropy / log K of a region before training, K = 81": region_entropy,
        "largest probability of a region before training, K = 81": region_best,
    }


def likeness(vlp: VLP, n: int = SCENES, per_concept: int = 5) -> pd.DataFrame:
    """The table of CLIP-likeness: a row for each of ``LIKENESS``, on ``n`` val scenes and portraits of each concept."""
    accuracy = single_object_accuracy(vlp, *portraits(per_concept))["top-1"]
    unseen = min(accuracy["val-unseen"], accuracy["test-unseen"])
    found = geometry(vlp, n) | {
        "top-1 of single things (%)": accuracy["thing"],
        "seen less unseen top-1 (points)": accuracy["seen"] - unseen,
    }
    return table(LIKENESS, found)


def gates(vlp: VLP, n: int = SCENES) -> pd.DataFrame:
    """What has to hold before a method is run: a row for each of ``GATES``. Reads the VLP and val scenes alone."""
    templates, recall = by_template(vlp, n), recall_by_size(vlp, n, "val")["recall@5"]
    found = {
        "plain VLP, ZSL mAP on val": templates.loc[PROBE_PROMPT, "ZSL"],
        "plain VLP, GZSL mAP on val": templates.loc[PROBE_PROMPT, "GZSL"],
        "recall of the largest thing / of small ones": recall["largest of its scene"] / max(recall[ROWS["small"]], 0.1),
        "best less worst template, ZSL mAP on val": templates["ZSL"].max() - templates["ZSL"].min(),
    }
    return table(GATES, found)


def _drawn(split: str, n: int, seed: int = 0) -> tuple[list, Tensor]:
    """The first scenes of a split, and their pictures (n, 3, side, side) uint8."""
    scenes = [mojiscenes.draw(split, i, seed) for i in range(n)]
    return scenes, torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in scenes]))


def pairs(x: Tensor) -> tuple[float, float]:
    """Mean and deviation of the cosines of all pairs of rows (n, D)."""
    found = cosines(x, x)[~torch.eye(len(x), dtype=torch.bool)]
    return float(found.mean()), float(found.std())


def softmax(e: Tensor, t: Tensor) -> tuple[float, float]:
    """Of the softmax of e . t over the labels: mean entropy / log K, and mean largest probability. (..., D), (K, D)."""
    p = (e @ t.T).softmax(dim=-1)
    return float(torch.special.entr(p).sum(-1).mean() / np.log(len(t))), float(p.amax(-1).mean())


@torch.no_grad()
def untrained_regions(vlp: VLP, images: Tensor, batch: int = 64) -> Tensor:
    """Regions (n, J, D) of HCG at its start, whose merges are pooled patch tokens."""
    gather, visual = HierarchicalClueGathering(vlp.C, vlp.N), vlp.model.visual
    blocks, found = visual.transformer.resblocks[vlp.depth - vlp.trained_blocks :], []
    for part in images.split(batch):
        x = vlp.trunk(part)
        for block in blocks:
            x = block(x)
        found.append(gather(visual.ln_post(x[:, 1:])) @ visual.proj)
    return torch.cat(found)


@torch.no_grad()
def like_clip(vlp: VLP, images: Tensor, texts=0.765, pictures=0.72, entropy=0.586) -> dict[str, float]:
    r"""Give the embeddings the cones and the temperature that CLIP's have, in place: the last step of making the VLP.

    $$t' = \sigma_t\,(t + \alpha u), \qquad e' = \sigma_e\,(e - \gamma \mu)$$

    with the mean direction u of the texts and the mean embedding mu of the pictures. alpha is such that two labels have
    the mean cosine ``texts``, gamma such that two pictures have the mean cosine ``pictures``, and the scales such that
    both sides have the same mean norm and the softmax of e' t' over the 81 labels of val-unseen has ``entropy`` / log K
    for a picture (CLIP has the same at K = 81 and 1,006). Shifts go into the biases of the last layer norms, scales
    into the projections: nothing is added to the model. By dot product no label's order of pictures changes, and by
    alpha no picture's order of labels either.

    ``images`` (n, 3, side, side) uint8; the other numbers are CLIP's, but for ``pictures``, which is in the band of
    ``LIKENESS``: at CLIP's 0.52 the cosines, and with them the plain VLP, lose a third. Returns alpha, gamma and scale.
    """
    model, visual = vlp.model, vlp.model.visual
    t, e = embed_names(vlp, vocabulary.names()), embed_images(vlp, images)  # (K, D), (n, D)
    u, mu, size = F.normalize(t.mean(0), dim=0), e.mean(0), float(t.norm(dim=1).mean())
    alpha = _root(lambda a: pairs(t + a * u)[0] - texts, -0.5 * size, 5 * size)
    gamma = _root(lambda g: pictures - pairs(e - g * mu)[0], 0.0, 1.0)
    t, e = t + alpha * u, e - gamma * mu
    e_norm, t_norm = float(e.norm(dim=1).mean()), float(t.norm(dim=1).mean())
    asked = [c.part == "val-unseen" for c in vocabulary.concepts()]
    some = t[asked][:ASKED] / t_norm  # (81, D)
    flatter = lambda x: entropy - softmax(np.exp(x) * e / e_norm, some)[0]
    scale = float(np.exp(_root(flatter, 0.0, np.log(1000.0))))
    _shift(visual.ln_post.bias, visual.proj, -gamma * mu)
    _shift(model.ln_final.bias, model.text_projection, alpha * u)
    visual.proj.mul_(scale**0.5 / e_norm)
    model.text_projection.mul_(scale**0.5 / t_norm)
    model.logit_scale.fill_(np.log(scale))
    return {"alpha": alpha, "gamma": gamma, "scale": scale}


def _root(f, low: float, high: float, steps: int = 40) -> float:
    """Where a growing function crosses 0, by halving; an end of the interval if it does not."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return (low + high) / 2


def _shift(bias: Tensor, projection: Tensor, by: Tensor) -> None:
    """Change the bias (C,) in front of a projection (C, D) so that its result moves by ``by`` (D,)."""
    bias += torch.linalg.lstsq(projection.T.double(), by.double()[:, None]).solution[:, 0].float()


def caption_tokens(vlp: VLP) -> Tensor:
    """Sorted ids of every token that a caption of pre-training can hold: the rows of the token table that are kept."""
    texts = [t.format(name) for t in TEMPLATES for name in vocabulary.names()] + [" and a "]
    ids = {i for text in texts for i in vlp.tokenizer.encode(text)}
    return torch.tensor(sorted(ids | {vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id}))


def main() -> int:
    """Print both tables of the VLP that ships; 1 if a criterion is not met."""
    vlp = mini()
    print(f"hrcf-mini {vlp.hash}")
    tables = likeness(vlp), gates(vlp)
    for found in tables:
        print(found.round(3).to_string())
    return int(not all(found["met"].all() for found in tables))


if __name__ == "__main__":
    sys.exit(main())
