r"""The data sets that configs name: where each lies once it is prepared, how it is prepared, and its splits.

A prepared data set is looked for in ``<data>/<name>``, such as ``data/nus_wide``; MojiScenes needs no preparation.
"""

from pathlib import Path

import numpy as np

from hrcf_lib.data import hide_labels, table_format
from hrcf_lib.data.load import load
from hrcf_lib.data.mojiscenes import scenes
from hrcf_lib.data.official import coco, nus_wide, open_images, own_folder, voc
from hrcf_lib.engine.messages import check_known

PREPARE = {
    "nus_wide": nus_wide.prepare,
    "open_images": open_images.prepare,
    "coco_48_17": lambda source, out, **more: coco.prepare(source, out, labels="48/17", **more),
    "coco": lambda source, out, **more: coco.prepare(source, out, labels="80", **more),
    "voc": voc.prepare,
    "folder": own_folder.prepare,
}


def prepare(name: str, source, out=None, **more) -> Path:
    """The official files of a data set in the common form, in ``out``, by default ``data/<name>``.

    ``more`` are further arguments of that data set's own ``prepare``. Raises ``ValueError`` for an unknown name, and
    what it raises.
    """
    check_known([name], list(PREPARE), "unknown data set")
    return PREPARE[name](source, out or Path("data") / name, **more)


def folder(config, data="data") -> Path:
    """Where the prepared data set of a config lies. Raises ``FileNotFoundError`` that says how to make it."""
    path = Path(data) / config.dataset
    if not (path / "about.json").is_file():
        raise FileNotFoundError(
            f"no prepared {config.dataset} in {path}: run notebook 01 with dataset = {config.dataset!r}, or "
            f"hrcf_lib.data.prepare({config.dataset!r}, <folder of the downloads>, {str(path)!r})"
        )
    return path


def splits(config, data="data") -> list[str]:
    """Names of the splits of a config's data set, with val where pictures of train are held out for it.

    Raises ``ValueError`` for ``held_out`` where a val exists already.
    """
    if config.dataset == "mojiscenes":
        return list(scenes.SPLITS)
    names = list(table_format.read_about(folder(config, data))["splits"])
    if not config.held_out:
        return names
    if "val" in names:
        raise ValueError(f"held_out = {config.held_out} of {config.dataset}, which has a val of its own: set it to 0")
    return [*names, "val"]


def open_split(config, split: str, data="data", side: int = 112, law: scenes.SceneLaw | None = None):
    r"""One split of a config's data set, as items ``(picture uint8 (3, side, side), labels (K,) in -1/0/+1)``.

    Where the config has a number of pictures for the split, that many are drawn, seeded by ``data_seed``, in the order
    of the table; of MojiScenes the first ones, with ``coverage`` and the unseen labels of ``vocabulary_seed``. In
    ``train`` unseen labels read 0 (unknown). With ``held_out`` train is divided first, as Cole et al. do
    (``hide_labels.train_val``). ``law`` is another distribution of MojiScenes' val and test than that of ``coverage``.

    Raises ``FileNotFoundError`` where it is not prepared, ``ValueError`` for an unknown split, and for a ``law`` of
    pictures that are not drawn by one.
    """
    size = getattr(config, f"{split.split('-')[0]}_size", None)
    if law is not None and (config.dataset != "mojiscenes" or split == "train"):
        raise ValueError(f"a law of scenes for {split} of {config.dataset}: only val and test of mojiscenes have one")
    if config.dataset == "mojiscenes":
        train = split == "train"  # whose pictures nobody chose for unseen labels
        law = law or scenes.SceneLaw(coverage=config.coverage)
        more = {"tag_noise": config.tag_noise} if train else {"law": law}
        more |= {"vocabulary_seed": config.vocabulary_seed}
        return scenes.MojiScenes(split, size or 1500, config.data_seed, side, **more)
    if config.held_out and split in ("train", "val"):
        table = _divided(config, split, data, side)
    else:
        how = {"side": side, "resize": config.resize, "hide_unseen": split == "train"}
        table = load(folder(config, data), split=split, **how)
    if size is None or size >= len(table):
        return table
    return table.take(np.sort(np.random.default_rng(config.data_seed).permutation(len(table))[:size]))


def _divided(config, split: str, data, side: int):
    """The part of the official train that is train, or val, with ``held_out``. Raises as ``splits``."""
    splits(config, data)  # refuses a data set that has a val
    how = {"side": side, "resize": config.resize, "hide_unseen": split == "train"}
    whole = load(folder(config, data), split="train", **how)
    train, val = hide_labels.train_val(len(whole), config.held_out)
    order = hide_labels.official_order(whole, config.dataset)
    part = whole.take(np.sort(order[train if split == "train" else val]))
    part.left_out = len(whole) - len(part)
    return part
