r"""How many pictures of one's own are worth how much: mAP of tuned models on scenes that no training saw.

Scenes of MojiScenes stand for a user's folder. They are annotated with the names that the shipped model never had an
annotated picture of, and with nothing else.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hrcf_lib import config
from hrcf_lib.apply import fine_tune
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.feeds import embeddings, features
from hrcf_lib.methods import registry

HELD_OUT_SEED, PICTURE_SEED = 70, 100  # of the scenes to measure on; of those to train on, plus the seed of the run


def write_folder(split: str, n: int, seed: int, folder: str | Path) -> Path:
    """``<folder>/<split>-<seed>-<n>``: n scenes as PNG files with a ``labels.csv`` of the split's unseen labels.

    A folder that is complete is left as it is.
    """
    out = Path(folder) / f"{split}-{seed}-{n}"
    if (out / "labels.csv").is_file():  # it is written last
        return out
    return mojiscenes.export(
        mojiscenes.MojiScenes(split, n, seed=seed), out, labels=mojiscenes.label_space(split).unseen
    )


def learning_curve(
    start, split: str, sizes: Iterable[int], seeds: Iterable[int], scenes: int, folder, passes: int | None = None
) -> pd.DataFrame:
    r"""mAP after training on 0 pictures (asking by name) and on each of ``sizes``, for each seed.

    Args:
        start: the model that goes on learning; a second one starts from scratch (preset ``mini``).
        split: of MojiScenes that the user's pictures are drawn as.
        sizes: numbers of pictures to train on; each seed has other pictures.
        seeds: of the pictures and the order of training.
        scenes: held-out scenes to measure on, of ``split`` and of ``test``.
        folder: of pictures, features and tuned models; a run that was interrupted goes on from there.
        passes: over the pictures, as in ``fine_tune.tune``.

    Returns one row per run and measurement: start (``shipped model`` or ``from scratch``), pictures, seed, labels (the
    user's and the old ones on the user's pictures, and the old ones on old pictures), mAP in percent.
    """
    folder, space = Path(folder), mojiscenes.label_space(split)
    held_out = {
        name: features.extract(
            start.vlp, mojiscenes.MojiScenes(name, scenes, seed=HELD_OUT_SEED), space, folder / "features"
        )
        for name in (split, "test")
    }
    asked = {
        "your labels, your pictures": (split, space.unseen),
        "old labels, your pictures": (split, space.seen),
        "old labels, old pictures": ("test", space.seen),
    }

    def measured(model, name: str, n: int, seed: int) -> list[dict]:
        embedded = {part: embeddings.embed(model, data) for part, data in held_out.items()}
        row = {"start": name, "pictures": n, "seed": seed}
        return [
            row | {"labels": what, "mAP": fine_tune.mean_ap(model, held_out[part], labels, embedded[part])}
            for what, (part, labels) in asked.items()
        ]

    rows = []
    for seed in seeds:
        scratch = config.preset("mini", seed=seed)
        for name, first in (("shipped model", start), ("from scratch", scratch)):
            rows += measured(registry.for_config(scratch) if first is scratch else start, name, 0, seed)
            for n in sizes:
                pictures = write_folder(split, n, PICTURE_SEED + seed, folder)
                out = folder / f"{split}-{name.replace(' ', '-')}-{n}-{seed}"
                cache = folder / "features"
                tuned = fine_tune.tune(pictures, out, first, held_out=0, passes=passes, seed=seed, cache=cache)
                rows += measured(tuned.model, name, n, seed)
    return pd.DataFrame(rows)
