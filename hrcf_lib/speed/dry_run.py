r"""Dry run: does my machine take it, and how long will it take? Asked before the data are here and days are spent.

    python -m hrcf_lib.speed.dry_run [--datasets nus_wide,open_images] [--work FOLDER] [--steps N] [--out FILE.json]

Downloads of NUS-WIDE and Open Images are generated in the official formats with the official numbers of rows
(``data.generated``), and everything that a user does with the real ones is done with them: prepare, load, a few steps
of each phase with the paper's batches (ViT-B/16, random weights, 925 and 7,186 labels), evaluation, metrics of a whole
test set. Each stage runs in a process of its own, so its peak of memory is its own (libraries alone: 0.5 GB); one that
fails is reported by name, and the others go on. Then the cost of the whole training on one GPU is counted from shapes
(``budget``).

It proves that tables of this size are read, that a step of this size fits, and what each takes on *this* machine. It
proves nothing about accuracy, about the faults of real downloads, or about disks: a few hundred pictures exist and stay
in the file cache. Hours on a GPU are an estimate unless there is a GPU here, on which steps are timed.
"""

import argparse
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import torch

from hrcf_lib.config import is_smoke
from hrcf_lib.engine.files import write_json
from hrcf_lib.engine.messages import check_known
from hrcf_lib.speed.cost import budget
from hrcf_lib.speed.dry_stages import PER_DATASET, READERS, Plan, seen_labels
from hrcf_lib.speed.generated import Size
from hrcf_lib.speed.own_process import run_stage
from hrcf_lib.studies import records

SMOKE = Size(400, 200, 2_000, 1_400, 1_400, pictures=32)
SPACE = 5e9  # bytes of disk that the generated trees and tables of both data sets need
say = partial(print, flush=True)
COLUMNS = ["stage", "seconds", "each", "unit", "peak_gb", "gpu_gb", "training_gb", "note", "error"]


def dry_run(plan: Plan, datasets=tuple(READERS), tflops: float = 60.0, tflops_f32: float = 10.0, show=say) -> dict:
    r"""Run all stages for ``datasets`` and count the budget; ``show`` is told of each row as it comes.

    Returns a record of plain values: ``stages`` and ``budget`` (rows of tables), settings, versions and device.
    Raises ``ValueError`` for an unknown data set, fewer than one step or no throughput, ``OSError`` for a full disk.
    """
    check_known(datasets, list(READERS), "unknown data set")
    if plan.steps < 1 or min(tflops, tflops_f32) <= 0:
        raise ValueError(f"steps = {plan.steps}, tflops = {tflops}, tflops_f32 = {tflops_f32}: all must be above 0")
    Path(plan.work).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.work).free
    if free < SPACE and not plan.mini:
        raise OSError(f"{plan.work} has {free / 1e9:.1f} GB left, {SPACE / 1e9:g} are needed: choose another --work")
    rows = []
    for dataset in datasets:
        for title, stage in PER_DATASET.items():
            row = run_stage(f"{dataset}: {title}", stage, plan, dataset)
            rows.append({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()})
            show(line(rows[-1]))
    tables = []
    for dataset in datasets:
        seconds = {r["side"]: r["each"] for r in rows if r["stage"].startswith(dataset) and "side" in r}
        measured = seconds if torch.cuda.is_available() else None
        hours = budget(plan.config(dataset), seen_labels(dataset), tflops, tflops_f32, measured)
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


def line(row: dict) -> str:
    """A row of the table as text: stage, seconds, rate, peak memory, and note or error."""
    if row.get("error"):
        return f"{row['stage']:36} FAILED after {row['seconds']:.0f} s: {row['error']}"
    rate = f"{row['each']:.4g} {row['unit']}" if row.get("each") else ""
    gpu = f", GPU {row['gpu_gb']:.1f} GB" if row.get("gpu_gb") else ""
    return f"{row['stage']:36} {row['seconds']:8.1f} s  {rate:22} {row['peak_gb']:6.2f} GB{gpu}  {row['note']}"


def main(words=None) -> int:
    """The command line; 0 if every stage came through, 1 if one failed, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.speed.dry_run", description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default=",".join(READERS), help="joined by commas")
    parser.add_argument("--work", type=Path, help="folder for 3 GB of generated data, kept; default: a temporary one")
    parser.add_argument("--steps", type=int, default=2, help="of training in each phase; the first is a warm-up")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    parser.add_argument("--tflops", type=float, default=60.0, help="bfloat16 that your GPU sustains, 10^12 / s")
    parser.add_argument("--tflops-f32", type=float, default=10.0, help="the same in float32")
    given = parser.parse_args(words)
    size = SMOKE if is_smoke() else Size(pictures=max(256, 128 * given.steps))
    with tempfile.TemporaryDirectory(prefix="hrcf_dry_run_") as temporary:
        try:
            plan = Plan(str(given.work or temporary), given.steps, size, mini=is_smoke())
            record = dry_run(plan, given.datasets.split(","), given.tflops, given.tflops_f32)
        except (ValueError, OSError) as error:
            parser.exit(2, f"{error}\n")
    if given.out:
        write_json(given.out, record)
    print(f"\n{report(record)}")
    return int(any(row["error"] for row in record["stages"]))


def report(record: dict) -> str:
    """The budget as text, and what it rests on."""
    hours = pd.DataFrame(record["budget"]).set_index(["dataset", "side"])
    lines = ["Whole training on one GPU" + (" (an estimate)" if "estimate" in str(hours["basis"].iloc[0]) else "")]
    lines.append(hours.to_string(float_format="{:,.3g}".format, na_rep=""))
    for row in record["stages"]:
        if row.get("training_gb"):
            lines.append(f"{row['stage']}: model and training step hold at most {row['training_gb']:.1f} GB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
