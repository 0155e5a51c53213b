r"""What a batch runs: notebooks, each with the parameters of one point of a grid. Faults are found before a start."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from hrcf_lib.engine.files import read_json
from hrcf_lib.engine.messages import check_known
from hrcf_lib.studies.notebooks import checked, known_parameters, typed

ENTRY = ("notebook", "grid", "parameters", "after")
EXAMPLE = '[{"notebook": "06_x.ipynb", "grid": {"seeds": ["0", "1"]}}]'
LONGEST = 80  # characters in the name of a job's folder


@dataclass(frozen=True)
class Job:
    """One notebook with parameters of its own."""

    notebook: Path
    parameters: dict  # those that are set; all others stay as the notebook stores them
    stage: int = 0  # it starts when all jobs of lower stages are done


def jobs(path: str | Path, grid: dict | None = None, parameters: dict | None = None, stage=0, words=False) -> list[Job]:
    r"""One job per combination of the values in ``grid``.

    Args:
        path: of the notebook.
        grid: parameter -> list of values. Without a grid there is a single job.
        parameters: parameter -> its value in all jobs.
        stage: of these jobs.
        words: the values are words of a command line, which take the types of the notebook's own.

    Raises ``ValueError`` that lists all faults: notebook missing, parameter unknown, value of another type.
    """
    path, grid, parameters = Path(path).absolute(), dict(grid or {}), dict(parameters or {})
    faults = [f"{path}: {name} is set, and in the grid: leave one out" for name in grid if name in parameters]
    lists = {name: values for name, values in grid.items() if isinstance(values, list | tuple | range) and values}
    faults += [f"{path}: the grid needs a list of values for {name}" for name in grid if name not in lists]
    values, wrong = _typed(path, lists | {name: [value] for name, value in parameters.items()}, words)
    if faults + wrong:
        raise ValueError("\n".join(faults + wrong))
    return [Job(path, dict(zip(values, chosen)), stage) for chosen in itertools.product(*values.values())]


def _typed(path: Path, given: dict[str, list], words=False) -> tuple[dict[str, list], list[str]]:
    """The values of each parameter in the types of the notebook's own, and one line per fault."""
    try:
        if not given:  # then a notebook may do without parameters
            checked(path)
            return {}, []
        known = known_parameters(path)
    except (OSError, ValueError) as error:
        return {}, [str(error)]
    values, faults = {}, []
    for name, value in ((name, value) for name, many in given.items() for value in many):
        try:
            values.setdefault(name, []).append(typed(path, known, name, value, words))
        except ValueError as error:
            faults.append(str(error))
    return values, list(dict.fromkeys(faults))


def read_grid(path: str | Path) -> list[Job]:
    r"""The jobs of a grid file: a JSON list of entries, each with the arguments of ``jobs``.

    ::

        [
            {"notebook": "06_x.ipynb", "grid": {"seeds": ["0", "1"]}, "parameters": {"lam": 0.5}},
            {"notebook": "12_report.ipynb", "after": true},
        ]

    Notebooks are found relative to the file. An entry with ``"after": true``, and those that follow it, start when all
    entries before it are done. Raises ``FileNotFoundError``; ``ValueError`` that lists all faults.
    """
    path, found, faults, stage = Path(path), [], [], 0
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such grid file")
    entries = read_json(path, list)
    if not entries:
        raise ValueError(f"{path}: give a list of entries, such as {EXAMPLE}")
    for number, entry in enumerate(entries, 1):
        stage += number > 1 and isinstance(entry, dict) and entry.get("after") is True
        try:
            found += _jobs_of_entry(entry, path.parent, stage)
        except ValueError as error:
            faults += [f"{path}, entry {number}: {line}" for line in str(error).splitlines()]
    if faults:
        raise ValueError("\n".join(faults))
    return found


def _jobs_of_entry(entry, folder: Path, stage: int) -> list[Job]:
    if not isinstance(entry, dict) or not isinstance(entry.get("notebook"), str):
        raise ValueError(f"no notebook is named; give entries such as {EXAMPLE[1:-1]}")
    check_known(entry, ENTRY, "an entry has no")
    for name, kind, shown in (("grid", dict, "{...}"), ("parameters", dict, "{...}"), ("after", bool, "true or false")):
        if not isinstance(entry.get(name, kind()), kind):
            raise ValueError(f"{name} = {entry[name]!r}: give {shown}")
    return jobs(folder / entry["notebook"], entry.get("grid"), entry.get("parameters"), stage)


def check_jobs(many: list[Job]) -> None:
    """Raise ``ValueError`` that lists the faults of all jobs, as ``jobs`` does, and notebooks that share a name."""
    faults, named = [], {}
    for path in dict.fromkeys(Path(job.notebook).absolute() for job in many):
        given = [job.parameters for job in many if Path(job.notebook).absolute() == path]
        names = dict.fromkeys(name for parameters in given for name in parameters)
        faults += _typed(path, {name: [p[name] for p in given if name in p] for name in names})[1]
        if named.setdefault(path.stem, path) != path:
            faults.append(f"{path} and {named[path.stem]} would share a folder: rename one, or run it into another")
    if faults:
        raise ValueError("\n".join(faults))


def folder_name(parameters: dict) -> str:
    """A readable name, such as ``lam=0.5__seeds=0,1``; with a hash where it would be too long or stand for two jobs."""
    pairs = [(k, v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in sorted(parameters.items())]
    text = "__".join("=".join(pair) for pair in pairs)
    if not pairs:
        return "stored"
    plain = re.fullmatch(r"[a-z0-9_.,=+-]*[a-z0-9_,=+-]", text)  # the same on disks that ignore case
    if plain and len(text) <= LONGEST and re.split("__|=", text) == [*itertools.chain(*pairs)]:
        return text
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)[: LONGEST - 9] + "-" + digest


def code_hash(path: str | Path) -> str:
    """A hash of the code cells of a notebook: it stays when outputs and text change."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]
