r"""How good the mini VLP is: accuracy on pictures of one thing, recall by size where there are many.

Also the last steps of making it: ``rescale``, because CLIP's *unnormalised* embeddings have dot products with the
spread of its learnt temperature, which RSA relies on and a VLP trained on cosines alone does not have; and
``caption_tokens``, the rows of its token table that are kept.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from hrcf_lib.data.mojiscenes import openmoji
from hrcf_lib.data.mojiscenes import scenes as mojiscenes
from hrcf_lib.data.mojiscenes.portraits import TEMPLATES, TEXTURE_CAPTIONS, portrait
from hrcf_lib.studies.by_object_size import SIZES
from hrcf_lib.vlp import VLP

PROBE_PROMPT = "a photo of a {}."
ROWS = {"small": "small (under 25 %)", "medium": "medium (25-45 %)", "large": "large (over 45 %)"}  # of ``SIZES``


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
    """Recall@k, by size, of things in multi-object scenes by the *global* score over 300 names.

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
    parts = {ROWS[size]: frame[(frame["size"] >= low) & (frame["size"] < high)] for size, (low, high) in SIZES.items()}
    parts |= {"largest of its scene": frame[frame.dominant], "all others": frame[~frame.dominant]}
    table = {label: {f"recall@{k}": 100 * part.found.mean(), "things": len(part)} for label, part in parts.items()}
    return pd.DataFrame(table).T.rename_axis("size")


def _best_names(vlp: VLP, images: Tensor, names: list[str], k: int) -> Tensor:
    """(n, k) indices of the names nearest to each picture by cosine, best first."""
    t = F.normalize(vlp.encode_text([PROBE_PROMPT.format(name) for name in names]), dim=-1)  # (K, D)
    return (F.normalize(embed_images(vlp, images), dim=-1) @ t.T).topk(k).indices


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
