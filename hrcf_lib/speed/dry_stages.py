r"""The stages of a dry run (``dry_run``): each does one piece of the real work, at true shapes, and says what it saw.

A stage is called as ``stage(plan, dataset)`` in a process of its own and returns what there is to tell: ``each`` and
``unit`` (seconds a step, or pictures a second) and ``note``; a stage of training also its ``side``, and as
``training_gb`` what model and step hold at most. B pictures a step.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from hrcf_lib import config as configs
from hrcf_lib import evaluation, protocols, training
from hrcf_lib.data import load, table_format
from hrcf_lib.data.feeds.pictures import Pictures
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.data.official import checks, nus_wide, open_images
from hrcf_lib.engine import devices
from hrcf_lib.engine.devices import memory_gb
from hrcf_lib.model import HRCF
from hrcf_lib.speed import generated
from hrcf_lib.speed.generated import Size
from hrcf_lib.vlp import MINI

READERS = {"nus_wide": nus_wide, "open_images": open_images}
IMAGES = {"nus_wide": "Flickr", "open_images": "images"}  # root of the pictures in a generated tree
TASKS = ("ZSL", "GZSL")


@dataclass(frozen=True)
class Plan:
    """What a dry run does; plain values, so that it can be sent to another process."""

    work: str  # folder for the generated trees and the tables made from them
    steps: int = 2  # of training, in each phase
    size: Size = Size()
    mini: bool = False  # the mini VLP in place of the config's, for a run of seconds

    def source(self, dataset: str) -> Path:
        return Path(self.work) / f"{dataset}_download"

    def out(self, dataset: str) -> Path:
        return Path(self.work) / dataset

    def config(self, dataset: str) -> configs.Config:
        config = configs.preset(dataset)
        return config.replace(vlp=MINI, vlp_weights=None).smoke() if self.mini else config


def generate(plan: Plan, dataset: str) -> dict:
    """The download, in the official format; no part of the product's cost."""
    folder = getattr(generated, dataset)(plan.source(dataset), plan.size)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"note": f"{size / 1e9:.2f} GB in the official format; no cost of yours"}


def prepare(plan: Plan, dataset: str) -> dict:
    """Official files -> common form, labels alone."""
    out = READERS[dataset].prepare(plan.source(dataset), plan.out(dataset), images=False)
    counts = table_format.read_about(out)["splits"].values()
    n, known = (sum(c[name] for c in counts for name in names) for names in (["rows"], ["positives", "negatives"]))
    return {"note": f"{n:,} pictures, {known:,} known labels"}


def load_table(plan: Plan, dataset: str) -> dict:
    """The prepared table, all splits, into memory."""
    table = load(plan.out(dataset), side=224)
    return {"note": f"{len(table):,} pictures, {len(table.labels.names):,} labels"}


def read_pictures(plan: Plan, dataset: str) -> dict:
    """Decode and augment pictures of 640 x 480, as one worker of a training does."""
    config = plan.config(dataset)
    vlp = _model(config).vlp
    data = Pictures(_some(plan, dataset, "train", plan.size.pictures, vlp.side), vlp, config.augment)
    start = time.perf_counter()
    for i in range(len(data)):
        data.view(i, seed=0)
    seconds = time.perf_counter() - start
    return _rate(len(data), seconds, f"{len(data)} JPEGs of 640 x 480, {config.augment}, one process")


def load_model(plan: Plan, dataset: str) -> dict:
    """The model with random weights, on the device it will train on."""
    model = _model(plan.config(dataset))
    learnt = sum(p.numel() for p in model.trainable_state().values())
    note = f"{model.vlp.name}, random weights; {learnt:,} numbers beside the frozen VLP"
    return {"note": f"{note}; {_size_gb(model):.2f} GB"}


def train_image_side(plan: Plan, dataset: str) -> dict:
    """Steps of the phase that trains the image side."""
    return _train(plan, dataset, "hcg")


def train_prompts(plan: Plan, dataset: str) -> dict:
    """Steps of the phase that trains the prompts, through all seen labels."""
    return _train(plan, dataset, "prompts")


def _train(plan: Plan, dataset: str, side: str) -> dict:
    config = plan.config(dataset)
    B = next(p.batch for p in config.phases if p.trains == side)
    config = config.replace(phases=((side, 1, B),))
    model = _model(config)
    table = _some(plan, dataset, "train", plan.steps * B, model.vlp.side)
    data = Pictures(table, model.vlp, config.augment, _workers(config))
    before, _ = memory_gb()
    history = training.train(model, data, stop_after=plan.steps)
    _, peak = memory_gb()
    took = history["seconds"].to_numpy()
    each = (took[-1] - took[0]) / (len(took) - 1) if len(took) > 1 else took[0]
    held = _size_gb(model) + peak - before
    if torch.cuda.is_available():
        held = torch.cuda.max_memory_allocated() / 1e9
    note = f"{len(took)} steps of {B} pictures, {len(model.reference_labels):,} labels; the first took {took[0]:.1f} s"
    return {"each": each, "unit": "s a step", "note": note, "side": side, "training_gb": held}


def evaluate(plan: Plan, dataset: str) -> dict:
    """ZSL and GZSL of the first pictures of test, from the file to the metrics."""
    model = _model(plan.config(dataset))
    table = _some(plan, dataset, "test", plan.size.pictures, model.vlp.side)
    data = Pictures(table, model.vlp, workers=_workers(model.config))
    start = time.perf_counter()
    rows = evaluation.evaluate(model, data, TASKS)
    seconds = time.perf_counter() - start
    return _rate(len(table), seconds, f"{len(table)} pictures, tasks {' and '.join(rows.index)}, from file to metrics")


def metrics(plan: Plan, dataset: str) -> dict:
    """Metrics alone, of random scores of as many pictures and labels as the whole test set has."""
    table = load(plan.out(dataset), split="test")
    names, rng = table.labels.names, torch.Generator().manual_seed(plan.size.seed)
    labels = label_matrix(table)  # (n, K)
    scores = torch.rand(labels.shape, generator=rng)
    config, start = plan.config(dataset), time.perf_counter()
    protocols.measure(scores, labels, config.ks, config.protocol)
    seconds = time.perf_counter() - start
    return _rate(len(table), seconds, f"{len(table):,} x {len(names):,} scores, protocol {config.protocol}")


def _some(plan: Plan, dataset: str, split: str, n: int, side: int):
    """The first pictures of a split. The whole table is in memory meanwhile, as it is in a training."""
    if n > plan.size.pictures:
        raise ValueError(f"{n} pictures are needed, {plan.size.pictures} exist: take fewer steps, or a larger Size")
    root = plan.source(dataset) / IMAGES[dataset]
    return load(plan.out(dataset), side=side, split=split, hide_unseen=split == "train", images=root).take(range(n))


def _model(config: configs.Config) -> HRCF:
    return HRCF(config, pretrained=False).to(devices.best())


def _workers(config: configs.Config) -> int | None:
    """On a CPU, workers would share the cores with the model; and their memory is not counted."""
    return config.workers if torch.cuda.is_available() else 0


def _rate(n: int, seconds: float, note: str) -> dict:
    return {"each": n / seconds, "unit": "pictures a second", "note": note}


def _size_gb(model) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9


def seen_labels(dataset: str) -> tuple[str, ...]:
    """The seen labels of a data set, from the lists that ship."""
    if dataset == "open_images":
        return open_images.label_space()[0].seen
    return checks.label_list("nus_wide_seen925.txt")


PER_DATASET = {  # title -> stage, in order
    "generate the download": generate,
    "prepare": prepare,
    "load the table": load_table,
    "read pictures": read_pictures,
    "load the model": load_model,
    "train image side": train_image_side,
    "train prompts": train_prompts,
    "evaluate": evaluate,
    "metrics, whole test set": metrics,
}
