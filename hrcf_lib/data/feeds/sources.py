r"""The feed that a config asks for: frozen features or pictures, with labels hidden as it says."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from hrcf_lib.data import benchmarks, hide_labels
from hrcf_lib.data.feeds.features import AugmentedFeatures, FrozenFeatures, extract
from hrcf_lib.data.feeds.pictures import Pictures, StreamedPictures
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.engine import devices


def source(model, split: str, data: str | Path = "data", cache: str | Path | None = None):
    r"""What ``train`` and ``evaluate`` read of a split, as the model's config says.

    Without augmentation these are frozen features in the format ``config.cache``, stored in the folder ``cache`` where
    one is given (NUS-WIDE at ViT-B/16 in 16 bits: 49 GB for train). Otherwise pictures, augmented in training alone:
    streamed with ``config.stream``, or features of ``config.views`` views, as large each. In training, labels are
    hidden as the config says (``data.partial``); stored features do not depend on that.

    Args:
        model: an ``HRCF`` or another ``Method``, where the features are to be computed.
        split: of the data set, such as train or test.
        data: folder of prepared data sets (``benchmarks.open_split``).
        cache: folder of frozen features.

    Raises what ``open_split``, ``extract`` and ``Pictures`` raise.
    """
    config, training = model.config, split == "train"
    if config.stream and training and config.dataset != "mojiscenes":
        if hide_labels.hides(config):
            raise ValueError("labels are hidden by row, which a stream does not count: set stream to False")
        return StreamedPictures(benchmarks.folder(config, data), model.vlp, config.augment, config.workers)
    dataset = benchmarks.open_split(config, split, data, model.vlp.side)
    workers = (
        config.workers if config.workers is not None else 0 if config.dataset == "mojiscenes" else devices.workers()
    )
    stored = partial(extract, model.vlp, space=dataset.labels, folder=cache, workers=workers)
    if config.augment == "none":
        found = stored(dataset)
    else:
        found = Pictures(dataset, model.vlp, config.augment if training else "none", config.workers)
    if training and hide_labels.hides(config):
        return relabelled(found, hide_labels.hide_as(config, dataset))
    return found


def relabelled(found, dataset):
    """What ``source`` made of a data set, with the annotation of another that has the same pictures."""
    if isinstance(found, FrozenFeatures):
        return dataclasses.replace(found, labels=label_matrix(dataset).to(found.labels.dtype))
    if isinstance(found, AugmentedFeatures):
        views = [relabelled(view, dataset) for view in found.views]
        return AugmentedFeatures(views, found.augment, relabelled(found.plain, dataset))
    return found.over(dataset)


def validation(sources: dict) -> tuple:
    r"""What choices are made on, and the tasks that are looked at: val, or 2,000 training pictures where there is none.

    Unlike in published code no choice looks at unseen labels of test: MojiScenes has others in val, elsewhere the seen
    labels decide. ``sources``: split -> what ``source`` made of it, with train and test among them.
    """
    val = sources.get("val")
    if val is None:
        train = getattr(sources["train"], "plain", None) or sources["train"]  # of stored views, the pictures themselves
        rows = np.random.default_rng(0).permutation(len(train))[:2000]
        return train.take(np.sort(rows)), ("seen",)
    own = val.space.unseen and set(val.space.unseen).isdisjoint(sources["test"].space.names)
    return val, ("ZSL", "GZSL") if own else ("seen",)


def categories(config, data: str | Path = "data") -> tuple[str, ...]:
    """Seen labels of a config's data set, in the order of its columns: what ``methods.missing_labels`` takes."""
    return benchmarks.open_split(config, "train", data).labels.seen
