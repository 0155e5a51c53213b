r"""Labels for your own pictures and your own list of names, in one call."""

from functools import cache
from importlib.resources import files

import pandas as pd
import torch

from hrcf_lib.data.dataset import find_images, read_image
from hrcf_lib.explain import reference_columns
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method
from hrcf_lib.model import HRCF
from hrcf_lib.passes import read_ahead


@cache
def default_model() -> HRCF:
    """The HRCF that ships: trained on MojiScenes with the mini VLP, so it knows OpenMoji drawings and nothing else."""
    return HRCF.from_pretrained(str(files("hrcf_lib") / "assets" / "hrcf-mini-trained"))


@torch.no_grad()
def classify(images, labels, model: Method | None = None, top_k: int = 5, batch: int = 32) -> pd.DataFrame:
    r"""The best labels of each picture.

    Args:
        images: a path, a PIL image, a list of either, or a folder.
        labels: names, any number from 1. They are scored inside the model's reference vocabulary (its seen labels):
            softmax, region selection and norms run over reference and own labels together, so that a single label does
            not always score 1; only your columns come back.
        model: an ``HRCF`` or another ``Method``; by default the HRCF that ships (``default_model``). It is left in
            evaluation mode.
        top_k: labels to report for each picture; fewer come back if there are fewer labels.
        batch: pictures at a time; a thread reads the next ones meanwhile.

    Returns:
        a tidy frame: image (its path, or ``picture 0`` and so on for a PIL image without a file), label, score (the
        model's own, comparable within a picture; of HRCF Eq. 14, in -1..1), rank (1 is best).

    Raises:
        ValueError: empty, blank or duplicate names (case does not count), a name that the text tower does not know,
            ``top_k`` below 1, or a picture that cannot be read, naming it. FileNotFoundError: a picture or folder that
            does not exist.
    """
    for name, value in (("top_k", top_k), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r}: give a whole number from 1")
    labels = check_names(labels)
    items = find_images(images)
    model = (default_model() if model is None else model).eval()
    names, columns = reference_columns(model, labels)
    t = model.label_embeddings(names)  # (K, D)
    rows = []
    starts = range(0, len(items), batch)
    read = lambda first: torch.stack([read_image(item, model.vlp.side) for item in items[first : first + batch]])
    for first, pictures in zip(starts, read_ahead(read, starts), strict=True):
        values = model.score_embeddings(*model.embed(pictures), t)[:, columns].cpu()  # (B, K of the user)
        best = values.topk(min(top_k, len(labels)), dim=1)
        for i, (scores, ks) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), first):
            name = _name(items[i], i)
            rows += [(name, labels[k], s, rank) for rank, (s, k) in enumerate(zip(scores, ks, strict=True), 1)]
    return pd.DataFrame(rows, columns=["image", "label", "score", "rank"])


def _name(item, i: int) -> str:
    """What the frame calls a picture: the path, or its number in the list."""
    if hasattr(item, "getpixel"):  # a PIL image
        return getattr(item, "filename", "") or f"picture {i}"
    return str(item)
