r"""Labels for your own pictures and your own list of names, in one call."""

from functools import cache
from importlib.resources import files

import pandas as pd
import torch

from hrcf_lib.data.dataset import find_images, read_image
from hrcf_lib.explain import reference_columns
from hrcf_lib.labels import check_names
from hrcf_lib.model import HRCF


@cache
def default_model() -> HRCF:
    """The HRCF that ships with the library: trained on MojiScenes with the mini VLP, so it knows OpenMoji drawings only."""
    return HRCF.from_pretrained(str(files("hrcf_lib") / "assets" / "hrcf-mini-trained"))


@torch.no_grad()
def classify(images, labels, model: HRCF | None = None, top_k: int = 5, batch: int = 32) -> pd.DataFrame:
    r"""The best labels of each picture.

    Args:
        images: a path, a PIL image, a list of either, or a folder.
        labels: names, any number from 1. They are scored inside the model's reference vocabulary (its seen labels):
            softmax, region selection and norms run over reference and own labels together, so that a single label does
            not always score 1; only your columns come back.
        model: an ``HRCF``; by default the one that ships (``default_model``).
        top_k: labels to report for each picture.

    Returns:
        a tidy frame: image, label, score (Eq. 14, in -1..1, comparable within a picture), rank (1 is best).

    Raises:
        ValueError: empty, blank or duplicate names, a name that the text tower does not know, ``top_k`` below 1, or a
            picture that cannot be read, naming it. FileNotFoundError: a picture or folder that does not exist.
    """
    if top_k < 1:
        raise ValueError(f"top_k = {top_k}: ask for at least 1 label")
    labels = check_names(labels)
    model = default_model() if model is None else model.eval()
    items = find_images(images)
    names, columns = reference_columns(model, labels)
    t = model.label_embeddings(names)  # (K, D)
    rows = []
    for first in range(0, len(items), batch):
        part = items[first : first + batch]
        pictures = torch.stack([read_image(item, model.vlp.side) for item in part]).to(t.device)
        values = model(pictures, t)[:, columns].cpu()  # (B, K of the user)
        best = values.topk(min(top_k, len(labels)), dim=1)
        for item, scores, ks in zip(part, best.values.tolist(), best.indices.tolist(), strict=True):
            rows += [(str(item), labels[k], s, r) for r, (s, k) in enumerate(zip(scores, ks, strict=True), 1)]
    return pd.DataFrame(rows, columns=["image", "label", "score", "rank"])
