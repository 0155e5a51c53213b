r"""What a GPU does with this library: whether its paths are right, how fast they are, what the paper's training costs.

    python -m hrcf_lib.speed.gpu --out gpu.json [--minutes 8] [--stages machine,checks] [--rehearse]

It needs one CUDA device and no network, and ends within ``--minutes``. Each stage runs in a process of its own for as
long as its share of the time allows (``SHARES``), and every result is written to the file as soon as it is there, so
that a run that is cut off leaves what it has. What does not fit into the GPU's memory is recorded as an error with its
size, and the next one runs.

``machine``    device, driver, versions, and the rates of a large matrix product and a large copy
``checks``     ``pytest -m cuda``: each path on CUDA against the CPU; needs a checkout with ``tests/``
``speed``      rows of the speed table (``table.ROWS``) on the GPU: the fast form beside the plain one
``inference``  picture to scores for 1 to 471 pictures (the paper's test batch): plain ViT, MKT and HRCF
``training``   steps of the paper's two trainings at true shapes with random weights: hours, memory, where time goes
``length``     as many steps of the paper's 126,000 on the embedded benchmark as the time that is left allows: metrics
               on val every tenth of the way, of HRCF, HRCF without HCG, and MKT

``--rehearse`` runs the same on the CPU at sizes of seconds, which proves that the command works and nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hrcf_lib import config as configs
from hrcf_lib import evaluation, training
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.feeds.sources import source
from hrcf_lib.engine import devices
from hrcf_lib.engine.files import file_argument, write_json
from hrcf_lib.engine.messages import check_known
from hrcf_lib.methods import registry
from hrcf_lib.speed import cost, images, table
from hrcf_lib.speed.compare import REPEATS, median_and_spread, seconds
from hrcf_lib.speed.inputs import Sizes, label_names, random_images, random_normal
from hrcf_lib.studies import records

SHARES = {
    "machine": 0.04,
    "checks": 0.3,
    "speed": 0.18,
    "inference": 0.14,
    "training": 0.12,
    "length": 0.22,
}  # of the time
STEPS = 126_000  # of the image side in the paper: 50 epochs of NUS-WIDE in batches of 64
PAPER = "on an RTX 3090: 12.5 ms a picture; 167 s for 107,859 pictures, MKT 121 s (HRCF paper, Sec. IV-F)"
say = partial(print, flush=True)


@dataclass
class Stage:
    """What a stage writes to, how long it has, and whether it is rehearsed on the CPU."""

    path: Path  # the record
    name: str
    seconds: float
    rehearse: bool = False
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    @property
    def sizes(self) -> Sizes:
        """Of the speed table, with the batch of NUS-WIDE."""
        return Sizes.of(True) if self.rehearse else Sizes(B=64)

    def write(self, **values) -> None:
        """Add values to the stage's entry of the record."""
        record = read(self.path)
        record["stages"].setdefault(self.name, {}).update(values)
        write_json(self.path, record, default=_value)

    def row(self, title: str, run: Callable[[], dict], needs: float = 0.0) -> dict:
        """Add a row: ``title``, seconds and what ``run`` returns, its error, or that ``needs`` seconds are not left."""
        row = {"name": title}
        if self.left() < needs:
            row["skipped"] = f"{needs:.0f} s are needed, {max(0, self.left()):.0f} are left"
        else:
            begin = time.monotonic()
            try:
                row |= run()
            except torch.cuda.OutOfMemoryError as error:
                row["error"] = f"out of GPU memory: {str(error).splitlines()[0]}"
            except Exception as error:  # whatever it is belongs into the record, and the next row runs
                row["error"] = f"{type(error).__name__}: {error}"
            row["took"] = round(time.monotonic() - begin, 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        rows = read(self.path)["stages"].get(self.name, {}).get("rows", [])
        self.write(rows=[*rows, row])
        say(f"  {line(row)}")
        return row


def read(path: Path) -> dict:
    """The record as it is now."""
    return json.loads(path.read_text(encoding="utf-8"))


def _value(value):
    """What JSON does not know: a table, or a number of NumPy or PyTorch."""
    return records.plain(value) if isinstance(value, pd.DataFrame) else value.item()


def line(row: dict) -> str:
    """A row as text."""
    values = [
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in ("name", "parts")
    ]
    return f"{row['name']}: " + ", ".join(values)


# Stages ---------------------------------------------------------------------------------------------------------------


def machine(stage: Stage) -> None:
    """Device, driver, versions, and rates."""
    about = records.origin() | {"cores": os.cpu_count(), "tf32 in convolutions": torch.backends.cudnn.allow_tf32}
    about |= {"tf32 in products": torch.backends.cuda.matmul.allow_tf32}
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        about |= {
            "memory_gb": one.total_memory / 1e9,
            "CUDA": torch.version.cuda,
            "capability": f"{one.major}.{one.minor}",
        }
        about["driver"] = _driver()
    stage.write(**about)
    stage.row("rates", lambda: cost.machine(*((256, 8) if stage.rehearse else (8192, 4096))))


def _driver() -> str | None:
    """Version of the driver, as nvidia-smi gives it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def checks(stage: Stage) -> None:
    """Every test marked ``cuda``, as a row each."""
    tests = records.REPOSITORY / "tests" / "cuda"
    try:
        import pytest
    except ImportError:
        pytest = None
    if pytest is None or not tests.is_dir():
        lacking = "pytest" if pytest is None else str(tests.name)
        stage.write(skipped=f"{lacking} is not here: run from a checkout whose environment has the extra 'test'")
        return
    os.environ["HRCF_CUDA_TESTS"] = "rehearse" if stage.rehearse else "run"
    code = pytest.main(["-q", "-m", "cuda", "-p", "no:cacheprovider", "--no-header", str(tests)], plugins=[Rows(stage)])
    rows = read(stage.path)["stages"][stage.name].get("rows", [])
    stage.write(passed=sum(row["outcome"] == "passed" for row in rows), tests=len(rows), code=int(code))


class Rows:
    """A plugin of pytest that writes each test's outcome as it is known."""

    def __init__(self, stage: Stage):
        self.stage = stage

    def pytest_runtest_logreport(self, report) -> None:
        """One row per test: of its call, or of what kept it from being called."""
        if report.when == "call" or report.outcome != "passed" and report.when == "setup":
            values = {"outcome": report.outcome, "test_s": round(report.duration, 2)}
            if report.failed:
                values["why"] = str(report.longrepr)[-1500:]
            self.stage.row(report.nodeid.partition("::")[2], lambda: values)


def speed(stage: Stage) -> None:
    """Rows of the speed table whose computation runs on the GPU."""
    sizes = stage.sizes
    everything = sizes if stage.rehearse else replace(sizes, K=sizes.K_all, part=256)
    for name, own in (
        ("prompt_prefix", sizes),
        ("ranking_loss_large", sizes),
        ("hsa_memory", sizes),
        ("hsa_training", sizes),
        ("feature_cache", sizes),
        ("shared_trunk", sizes),
        ("prompt_phase", replace(sizes, B=min(16, sizes.B))),
        ("prompt_prefix", everything),
        ("loader", sizes),
    ):
        what = f"{name}, K = {own.K:,}" if name == "prompt_prefix" else name
        stage.row(what, lambda name=name, own=own: table.ROWS[name](own), needs=0 if stage.rehearse else 8)


def inference(stage: Stage) -> None:
    """Milliseconds per picture, from uint8 pixels on the GPU to scores of K labels."""
    sizes, small = stage.sizes, stage.rehearse
    stage.write(labels=sizes.K_test, paper=PAPER)
    plain = {"plain ViT": None, "MKT": "mkt", "HRCF": "hrcf"}
    preset = configs.PRESETS["nus_wide"]().replace(vlp=sizes.vlp, vlp_weights=None, augment="none")
    models = {
        title: registry.build(name or "hrcf", preset, pretrained=False).to(devices.best()).eval()
        for title, name in plain.items()
    }
    t = random_normal(sizes.K_test, models["HRCF"].vlp.D, scale=0.05)
    batches = (1, 4) if small else (1, 32, 256, 471)
    for B in batches:
        for title, model in models.items():
            for precision in ("float32", "bfloat16"):
                form = _scorer(model.under(model.config.replace(bf16=precision != "float32")), t, title == "plain ViT")
                stage.row(f"{title}, {precision}, B = {B}", partial(_per_picture, form, B, model.vlp.side))
    hrcf = models["HRCF"]
    hrcf.gather.to(memory_format=torch.channels_last)
    stage.row(
        f"HRCF, bfloat16, channels-last, B = {batches[-1]}",
        partial(_per_picture, _scorer(hrcf, t), batches[-1], hrcf.vlp.side),
    )
    hrcf.gather.to(memory_format=torch.contiguous_format)
    if not small:  # compiling takes a compiler and up to a minute
        hrcf.embed = torch.compile(hrcf.embed)
        for B in (1, 471):
            title = f"HRCF, bfloat16, torch.compile, B = {B}"
            stage.row(title, partial(_per_picture, _scorer(hrcf, t), B, hrcf.vlp.side), needs=20)


def _scorer(model, t: Tensor, plain: bool = False) -> Callable[[Tensor], Tensor]:
    """Pictures -> scores; of the plain VLP by its global embedding alone."""

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        if not plain:
            return model.score_embeddings(*model.embed(images), t)
        with model.autocast():
            return model.vlp.encode_image(images) @ t.T

    return score


def _per_picture(form: Callable, B: int, side: int) -> dict:
    pictures = random_images(B, side)
    form(pictures)  # warm up
    _reset_memory()
    middle, spread = median_and_spread(seconds(lambda: form(pictures)) / B for _ in range(REPEATS))
    return {"ms": 1e3 * middle, "spread": spread} | _memory()


def _reset_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory() -> dict:
    """What the GPU held at most since ``_reset_memory``, GB; nothing without one."""
    return {"gpu_gb": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}


def train(stage: Stage) -> None:
    """Steps of both trainings of the paper; from pixels and from stored features."""
    for name in ("nus_wide", "open_images"):
        preset = configs.PRESETS[name]()
        if stage.rehearse:
            preset = preset.replace(vlp=stage.sizes.vlp, phases=(("hcg", 1, 4), ("prompts", 1, 4)))
        names = label_names(stage.sizes.K if name == "nus_wide" else stage.sizes.K_large)
        model = registry.build("hrcf", preset.replace(vlp_weights=None, augment="none"), pretrained=False)
        model, took = model.to(devices.best()), {}
        for side in ("hcg", "prompts"):
            B = next(phase.batch for phase in preset.phases if phase.trains == side)
            for stored in (False, True):
                title = f"{name}, {side}, B = {B}, " + ("stored features" if stored else "pixels")
                row = stage.row(title, partial(_step, model, side, B, names, stored))
                took |= {} if stored or "error" in row else {side: row["step_s"]}
        hours = cost.budget(preset, names, measured=took)[["side", "steps", "seconds a step", "hours", "basis"]]
        stage.write(**{f"hours of {name}": hours})
    sizes = replace(stage.sizes, B=min(64, stage.sizes.B))
    rates = cost.machine(256, 8) if stage.rehearse else cost.machine()
    stage.row(
        "where the time goes, nus_wide", lambda: {"parts": cost.cost(sizes, rates)}, needs=0 if stage.rehearse else 5
    )


def _step(model, side: str, B: int, names, stored: bool) -> dict:
    """Median seconds of an update, from random pictures or from their stored features."""
    frozen, update = images.step(model, side, B, names)
    kept = frozen()
    run = lambda: update(*(kept if stored else frozen()))
    run()
    _reset_memory()
    middle, spread = median_and_spread(seconds(run) for _ in range(REPEATS))
    row = {"step_s": middle, "spread": spread, "pictures_per_s": B / middle} | _memory()
    model.zero_grad(set_to_none=True)
    return row


class OnDevice(FrozenFeatures):
    """Frozen features that lie on the device as a whole, so that a step waits for no copy."""

    def batches(self, order: BatchOrder):
        """(rows, (tokens, e_p), labels (b, K)) of this process; tokens and e_p are on the device."""
        (tokens,), device = self.trunk.parts, self.teacher.device
        for rows in order.rows(len(self)):
            at = rows.to(device)
            yield rows, (tokens[at], self.teacher[at]), self.labels[rows]


def on_device(feed: FrozenFeatures, device) -> OnDevice:
    """The same features on ``device``."""
    trunk = feed.trunk[torch.arange(len(feed))].to(device)
    return OnDevice(trunk, feed.teacher.to(device), feed.labels, feed.space, feed.trained_blocks)


def length(stage: Stage) -> None:
    """HRCF, HRCF without HCG and MKT, trained as long as the time allows; the last step ends each one's schedule."""
    base = configs.PRESETS["mini"]()
    base = base.smoke() if stage.rehearse else base.replace(phases=configs.alternate(2, 1, 5, 64, 16))
    systems = {"HRCF": {}, "HRCF without HCG": {"hcg": False}, "MKT": None}
    feeds = {}
    for number, (title, changes) in enumerate(systems.items()):
        config = registry.configure("mkt", base) if changes is None else base.replace(**changes)
        model = registry.for_config(config).to(devices.best())
        if model.trained_blocks not in feeds:
            begin = time.monotonic()
            own = {split: source(model, split) for split in ("train", "val")}
            feeds[model.trained_blocks] = {split: on_device(feed, devices.best()) for split, feed in own.items()}
            stage.write(**{f"features, {model.trained_blocks} blocks after them": time.monotonic() - begin})
        share = stage.left() / (len(systems) - number)
        stage.row(title, partial(_long, stage, title, config, feeds[model.trained_blocks], share))


def _long(stage: Stage, title: str, config, feeds: dict, share: float) -> dict:
    """Train for ``share`` seconds: first a trial that says how many epochs that is, then all of them."""
    train_data = feeds["train"]
    trial = registry.for_config(config).to(devices.best())
    history = training.train(trial, train_data, stop_after=4 if stage.rehearse else 60)
    each = history["seconds"].diff().iloc[-len(history) // 2 :].median()
    once = sum(-(-len(train_data) // phase.batch) * phase.epochs for phase in config.phases)  # steps of these phases
    allowed = min(STEPS, 0.7 * share / max(each, 1e-6))
    times = 1 if stage.rehearse else max(1, int(allowed / once))
    config = config.replace(phases=[replace(phase, epochs=phase.epochs * times) for phase in config.phases])
    model, steps, ways = registry.for_config(config).to(devices.best()), once * times, 2 if stage.rehearse else 10
    points = []
    with tempfile.TemporaryDirectory() as folder:
        for tenth in range(1, ways + 1):
            done = round(steps * tenth / ways)
            training.train(model, train_data, folder, save_every=steps, stop_after=done)
            found = evaluation.evaluate(model, feeds["val"])
            k = f"F1@{config.ks[0]}"
            points.append(
                {"step": done} | {f"{m} {task}": found.loc[task, m] for task in found.index for m in ("mAP", k)}
            )
            stage.write(**{f"{title} on val": points})
    return {"steps": steps, "ms_per_step": 1e3 * float(each), "batch": config.phases[0].batch, "split": "val"}


STAGES = {
    "machine": machine,
    "checks": checks,
    "speed": speed,
    "inference": inference,
    "training": train,
    "length": length,
}


# The command ----------------------------------------------------------------------------------------------------------


def run(out: Path, names=tuple(STAGES), minutes: float = 8.0, rehearse: bool = False) -> dict:
    r"""Run stages in turn, each in a process of its own that ends with its share of the time; returns the record.

    The time that a stage does not need goes to the last. Raises ``ValueError`` for an unknown stage or no time.
    """
    check_known(names, list(STAGES), "unknown stage")
    if not minutes > 0:
        raise ValueError(f"minutes = {minutes}: must be above 0")
    begin, total = time.monotonic(), 60 * minutes
    write_json(out, {"name": "gpu", "rehearsal": rehearse, "minutes": minutes, **records.origin(), "stages": {}})
    whole = sum(SHARES[name] for name in names)
    for name in names:
        left = total - (time.monotonic() - begin)
        share = left if name == names[-1] else min(left, total * SHARES[name] / whole)
        say(f"{name}, at most {share:.0f} s")
        one_stage(out, name, share, rehearse)
    return read(out)


def one_stage(out: Path, name: str, share: float, rehearse: bool) -> None:
    """A stage in a process of its own; however it ends, the record says so."""
    words = ["--stage", name, "--seconds", f"{share:.1f}", "--out", str(out), *(["--rehearse"] if rehearse else [])]
    begin = time.monotonic()
    surroundings = os.environ | ({"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if rehearse else {})
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name if __spec__ else "hrcf_lib.speed.gpu", *words],
        env=surroundings,
        start_new_session=os.name != "nt",
    )
    try:
        code = process.wait(timeout=share)
        status = "done" if code == 0 else f"failed with code {code}"
    except subprocess.TimeoutExpired:
        status = f"cut off after {share:.0f} s"
    finally:
        _end(process)
    stage = Stage(out, name, share)
    stage.write(status=status, seconds=round(time.monotonic() - begin, 1))
    say(f"{name}: {status}")


def _end(process: subprocess.Popen) -> None:
    """End a process and whatever it started."""
    if process.poll() is None:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(words=None) -> int:
    """The command line. Returns 0 if every stage is done, 1 if one is not; exits with 2 without a GPU or for a wrong
    argument."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.speed.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=file_argument, required=True, help="the record, JSON")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which it has ended")
    parser.add_argument("--stages", default=",".join(STAGES), help="joined by commas")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at sizes of seconds")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)  # what the command starts itself with
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if not (given.rehearse or torch.cuda.is_available()):
        parser.exit(2, "no CUDA device here: run this where there is one, or add --rehearse to try it on the CPU\n")
    if given.stage:
        STAGES[given.stage](Stage(given.out, given.stage, given.seconds, given.rehearse))
        return 0
    try:
        record = run(given.out, given.stages.split(","), given.minutes, given.rehearse)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    return int(any(stage.get("status") != "done" for stage in record["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
