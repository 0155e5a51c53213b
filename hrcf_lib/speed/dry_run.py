r"""Dry run: can my machine do it, and how long does it take? It answers before the data are there.

    python -m hrcf_lib.speed.dry_run [--datasets nus_wide,open_images] [--work FOLDER] [--steps N] [--out FILE.json]

Downloads of NUS-WIDE and Open Images are generated in the official formats with the official numbers of rows
(``speed.generated``), and everything that a user does with the real ones is done with them: prepare, load, a few steps
of each phase with the paper's batches (ViT-B/16, random weights, 925 and 7,186 labels), evaluation, metrics of a whole
test set. Each stage runs in a process of its own, so its peak of memory is its own (libraries alone: 0.5 GB). A stage
that fails is reported by name, and the others are still run. Then the cost of the whole training on one GPU is counted
from shapes (``cost.budget``).

A dry run proves that tables of this size can be read, that a step of this size fits, and what each takes on *this*
machine. It proves nothing about accuracy, about the faults of real downloads, or about disks: only a few hundred
pictures exist, and they stay in the file cache. Hours on a GPU are an estimate unless there is a GPU here, on which
steps are timed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import torch

from hrcf_lib import config as configs
from hrcf_lib import evaluation, protocols, training
from hrcf_lib.data import load, table_format
from hrcf_lib.data.feeds.pictures import Pictures
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.data.official import checks, nus_wide, open_images
from hrcf_lib.engine import devices
from hrcf_lib.engine.devices import memory_gb
from hrcf_lib.engine.files import file_argument, make_folder, write_json
from hrcf_lib.engine.messages import check_known
from hrcf_lib.model import HRCF
from hrcf_lib.speed import cost, generated
from hrcf_lib.speed.generated import Size
from hrcf_lib.speed.own_process import run_stage
from hrcf_lib.studies import records
from hrcf_lib.vlp import MINI

READERS = {"nus_wide": nus_wide, "open_images": open_images}
IMAGES = {"nus_wide": "Flickr", "open_images": "images"}  # root of the pictures in a generated tree
TASKS = ("ZSL", "GZSL")
SMOKE = Size(400, 200, 2_000, 1_400, 1_400, pictures=32)
SPACE = 5e9  # bytes of disk that the generated trees and tables of both data sets need
COLUMNS = ["stage", "seconds", "each", "unit", "peak_gb", "gpu_gb", "training_gb", "note", "error"]
say = partial(print, flush=True)
PRELOAD = (cost.__name__, evaluation.__name__, generated.__name__, records.__name__)  # this module may be __main__


@dataclass(frozen=True)
class Plan:
    """What a dry run does. Plain values, so that it can be sent to another process."""

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


# Stages: each does one piece of the real work at true shapes, in a process of its own, and returns entries of its row:
# ``note``; ``each`` and ``unit`` (seconds per step, or pictures per second); of training also ``side`` and
# ``training_gb``, what model and step hold at most. B pictures per step.


def generate(plan: Plan, dataset: str) -> dict:
    """Generate the download in the official format; no part of the library's cost."""
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
    """Load the prepared table, all splits."""
    table = load(plan.out(dataset), side=224)
    return {"note": f"{len(table):,} pictures, {len(table.labels.names):,} labels"}


def read_pictures(plan: Plan, dataset: str) -> dict:
    """Decode and augment pictures of 640 x 480, as one worker of a training does."""
    config = plan.config(dataset)
    vlp = _model(config).vlp
    data = Pictures(_first(plan, dataset, "train", plan.size.pictures, vlp.side), vlp, config.augment)
    start = time.perf_counter()
    for i in range(len(data)):
        data.view(i, seed=0)
    return _rate(len(data), start, f"{len(data)} JPEGs of 640 x 480, {config.augment}, one process")


def load_model(plan: Plan, dataset: str) -> dict:
    """Make the model with random weights, on the device that it trains on."""
    model = _model(plan.config(dataset))
    learnt = sum(p.numel() for p in model.trainable_state().values())
    note = f"{model.vlp.name}, random weights; {learnt:,} numbers beside the frozen VLP"
    return {"note": f"{note}; {_size_gb(model):.2f} GB"}


def train_image_side(plan: Plan, dataset: str) -> dict:
    """Steps of the phase that trains the image side."""
    return _train(plan, dataset, "hcg")


def train_prompts(plan: Plan, dataset: str) -> dict:
    """Steps of the phase that trains the prompts, with all seen labels."""
    return _train(plan, dataset, "prompts")


def _train(plan: Plan, dataset: str, side: str) -> dict:
    config = plan.config(dataset)
    B = next(p.batch for p in config.phases if p.trains == side)
    B = max(1, min(B, plan.size.pictures // plan.steps))
    config = config.replace(phases=((side, 1, B),))
    model = _model(config)
    table = _first(plan, dataset, "train", plan.steps * B, model.vlp.side)
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
    table = _first(plan, dataset, "test", plan.size.pictures, model.vlp.side)
    data = Pictures(table, model.vlp, workers=_workers(model.config))
    start = time.perf_counter()
    rows = evaluation.evaluate(model, data, TASKS)
    return _rate(len(table), start, f"{len(table)} pictures, tasks {' and '.join(rows.index)}, from file to metrics")


def metrics(plan: Plan, dataset: str) -> dict:
    """Metrics of random scores, for as many pictures and labels as the whole test set has."""
    table = load(plan.out(dataset), split="test")
    config, labels = plan.config(dataset), label_matrix(table)  # (n, K)
    scores = torch.rand(labels.shape, generator=torch.Generator().manual_seed(plan.size.seed))
    start = time.perf_counter()
    protocols.measure(scores, labels, config.ks, config.protocol)
    return _rate(len(table), start, f"{len(table):,} x {labels.shape[1]:,} scores, protocol {config.protocol}")


STAGES = {  # title -> stage, in order, for each data set
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


def _first(plan: Plan, dataset: str, split: str, n: int, side: int):
    """The first n pictures of a split. The whole table is in memory meanwhile, as in a training."""
    if n > plan.size.pictures:
        raise ValueError(f"{n} pictures are needed, {plan.size.pictures} exist: take fewer steps, or a larger Size")
    root = plan.source(dataset) / IMAGES[dataset]
    return load(plan.out(dataset), side=side, split=split, hide_unseen=split == "train", images=root).take(range(n))


def _model(config: configs.Config) -> HRCF:
    return HRCF(config, pretrained=False).to(devices.best())


def _workers(config: configs.Config) -> int | None:
    """None without a GPU: workers would share the cores with the model, and their memory is not counted."""
    return config.workers if torch.cuda.is_available() else 0


def _rate(n: int, start: float, note: str) -> dict:
    return {"each": n / (time.perf_counter() - start), "unit": "pictures a second", "note": note}


def _size_gb(model) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9


# The run and its record ----------------------------------------------------------------------------------------------


def dry_run(plan: Plan, datasets=tuple(READERS), tflops: float = 60.0, tflops_f32: float = 10.0, show=say) -> dict:
    r"""Run all stages for ``datasets`` and count the budget; ``show`` is called with each row as text when it is ready.

    Returns a record of plain values: ``stages`` and ``budget`` (rows of tables), settings, versions and device.
    Raises ``ValueError`` for an unknown data set, fewer than one step or no throughput, ``OSError`` for a full disk.
    """
    check_known(datasets, list(READERS), "unknown data set")
    if plan.steps < 1 or min(tflops, tflops_f32) <= 0:
        raise ValueError(f"steps = {plan.steps}, tflops = {tflops}, tflops_f32 = {tflops_f32}: all must be above 0")
    make_folder(plan.work)
    free = shutil.disk_usage(plan.work).free
    if free < SPACE and not plan.mini:
        raise OSError(f"{plan.work} has {free / 1e9:.1f} GB left, {SPACE / 1e9:g} are needed: choose another --work")
    rows, tables = [], []
    for dataset in datasets:
        seconds = {}  # of a step of each side
        for title, stage in STAGES.items():
            row = run_stage(f"{dataset}: {title}", stage, plan, dataset, preload=PRELOAD)
            rows.append({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()})
            show(line(rows[-1]))
            if "side" in row:
                seconds[row["side"]] = rows[-1]["each"]
        measured = seconds if torch.cuda.is_available() else None
        hours = cost.budget(plan.config(dataset), seen_labels(dataset), tflops, tflops_f32, measured)
        tables.append(hours.assign(dataset=dataset))
    return {
        "name": "dry_run",
        "plan": {"steps": plan.steps, "datasets": list(datasets), "mini": plan.mini, "size": vars(plan.size)},
        **records.origin(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "stages": records.plain(pd.DataFrame(rows).reindex(columns=COLUMNS)),
        "budget": records.plain(pd.concat(tables, ignore_index=True)),
    }


def seen_labels(dataset: str) -> tuple[str, ...]:
    """The seen labels of a data set, from the lists that the library ships."""
    if dataset == "open_images":
        return open_images.label_space()[0].seen
    return checks.label_list("nus_wide_seen925.txt")


def line(row: dict) -> str:
    """A row of the table as text: stage, seconds, rate, peak memory, and note or error."""
    if row.get("error"):
        return f"{row['stage']:36} FAILED after {row['seconds']:.0f} s: {row['error']}"
    rate = f"{row['each']:.4g} {row['unit']}" if row.get("each") else ""
    gpu = f", GPU {row['gpu_gb']:.1f} GB" if row.get("gpu_gb") else ""
    return f"{row['stage']:36} {row['seconds']:8.1f} s  {rate:22} {row['peak_gb']:6.2f} GB{gpu}  {row['note']}"


def report(record: dict) -> str:
    """The budget as text, with its basis."""
    hours = pd.DataFrame(record["budget"]).set_index(["dataset", "side"])
    lines = ["Whole training on one GPU" + (" (an estimate)" if "estimate" in str(hours["basis"].iloc[0]) else "")]
    lines.append(hours.to_string(float_format="{:,.3g}".format, na_rep=""))
    for row in record["stages"]:
        if row.get("training_gb"):
            lines.append(f"{row['stage']}: model and training step hold at most {row['training_gb']:.1f} GB")
    return "\n".join(lines)


def main(words=None) -> int:
    """The command line. Returns 0 if every stage worked, 1 if one failed; exits with 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.speed.dry_run", description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default=",".join(READERS), help="joined by commas")
    parser.add_argument("--work", type=Path, help="folder for 3 GB of generated data, kept; default: a temporary one")
    parser.add_argument("--steps", type=int, default=2, help="of training in each phase; the first is a warm-up")
    parser.add_argument("--out", type=file_argument, help="write the record here, as JSON")
    parser.add_argument("--tflops", type=float, default=60.0, help="bfloat16 that your GPU sustains, 10^12 / s")
    parser.add_argument("--tflops-f32", type=float, default=10.0, help="the same in float32")
    given = parser.parse_args(words)
    size = SMOKE if configs.is_smoke() else Size(pictures=max(256, 128 * given.steps))
    with tempfile.TemporaryDirectory(prefix="hrcf_dry_run_") as temporary:
        try:
            plan = Plan(str(given.work or temporary), given.steps, size, mini=configs.is_smoke())
            record = dry_run(plan, given.datasets.split(","), given.tflops, given.tflops_f32)
        except (ValueError, OSError) as error:
            parser.exit(2, f"{error}\n")
    if given.out:
        write_json(given.out, record)
    print(f"\n{report(record)}")
    return int(any(row["error"] for row in record["stages"]))


if __name__ == "__main__":
    sys.exit(main())
