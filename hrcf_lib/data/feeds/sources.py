r"""The feed that a config asks for: frozen features or pictures, with labels hidden as it says."""

from pathlib import Path

import numpy as np

from hrcf_lib.data import benchmarks, hide_labels
from hrcf_lib.data.feeds.features import extract
from hrcf_lib.data.feeds.feed import Feed
from hrcf_lib.data.feeds.pictures import Pictures, StreamedPictures
from hrcf_lib.engine import devices


def source(model, split: str, data: str | Path = "data", cache: str | Path | None = None, law=None) -> Feed:
    r"""The feed of a split, as the model's config asks for it.

    Without augmentation it consists of frozen features, stored in the folder ``cache`` if one is given (49 GB for train
    of NUS-WIDE at ViT-B/16; ``features`` says how much a picture takes). Otherwise it consists of pictures, augmented
    in training alone, and streamed with ``config.stream``. In training, labels are hidden as the config says
    (``hide_labels``); stored features do not depend on that.

    Args:
        model: an ``HRCF`` or another ``Method``, on the device that computes the features.
        split: of the data set, such as train or test.
        data: folder of prepared data sets (``benchmarks.open_split``).
        cache: folder of frozen features.
        law: of the scenes of MojiScenes' val and test, as ``open_split`` takes it.

    Raises what ``open_split``, ``extract`` and ``Pictures`` raise.
    """
    config, training = model.config, split == "train"
    if config.stream and training and config.dataset != "mojiscenes":
        if hide_labels.hides(config):
            raise ValueError("labels are hidden by row, which a stream does not count: set stream to False")
        where = benchmarks.folder(config, data)
        return StreamedPictures(where, model.vlp, config.augment, config.workers, resize=config.resize)
    dataset = benchmarks.open_split(config, split, data, model.vlp.side, law)
    if config.augment == "none":
        drawn = config.dataset == "mojiscenes"  # a scene is drawn faster than a process hands it over
        workers = config.workers if config.workers is not None else 0 if drawn else devices.workers()
        feed = extract(model.vlp, dataset, dataset.labels, cache, workers=workers)
    else:
        feed = Pictures(dataset, model.vlp, config.augment if training else "none", config.workers)
    if training and hide_labels.hides(config):
        return feed.relabel(hide_labels.hide_as(config, dataset))
    return feed


def validation(sources: dict) -> tuple:
    r"""The data and the tasks that choices are made on: val, or 2,000 training pictures where there is no val.

    No choice looks at unseen labels of test, unlike in published code: MojiScenes has other ones in val; elsewhere the
    seen labels decide. ``sources``: split -> its feed, train and test among them.
    """
    val = sources.get("val")
    if val is None:
        train = sources["train"]
        rows = np.random.default_rng(0).permutation(len(train))[:2000]
        return train.take(np.sort(rows)), ("seen",)
    own = val.space.unseen and set(val.space.unseen).isdisjoint(sources["test"].space.names)
    return val, ("ZSL", "GZSL") if own else ("seen",)


def categories(config, data: str | Path = "data") -> tuple[str, ...]:
    """Seen labels of a config's data set, in the order of its columns: what ``methods.missing_labels`` takes."""
    return benchmarks.open_split(config, "train", data).labels.seen
