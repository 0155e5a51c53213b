r"""Where the report finds its numbers: records of notebooks, by preset, so that no data set passes for another."""

import re
from pathlib import Path

import pandas as pd

from hrcf_lib import config as configs
from hrcf_lib.studies import records

MINI, NUS = "MojiScenes mini", "NUS-WIDE"  # what a column of ours is measured on
DATASETS = {MINI: "mojiscenes", NUS: "nus_wide"}  # what a preset of theirs is on
STORED = "stored"  # folder of a batch's job with the notebook's own parameters (``studies.batch``)
METRICS = ("F1@3", "F1@5", "mAP")
TRAINED, MAIN = "04_alternate_training", "05_main_results"  # notebooks whose records the report reads
PROMPTS, HYPERPARAMETERS, SPEED = "07_ablation_prompts", "09_hyperparameters", "10_parameters_and_speed"
PARTIAL, SINGLE = "13_partial_labels", "14_single_positive"


class Missing(Exception):
    """Raised for a number that no record has; its message is the cell of a table."""


class Records:
    r"""The records of one preset below a folder, or in it.

    Args:
        folder: is searched with all folders in it; records of smoke runs are skipped.
        data: ``MINI`` or ``NUS``. A record that names another preset than this data's is never read. One that names
            none (parameters and speed, which need no data) is read for ``MINI`` only. One of the first MojiScenes
            (``of_first_benchmark``) counts as missing.

    Raises ``NotADirectoryError`` if the folder does not exist, ``ValueError`` (on reading) for two records of one name.
    """

    def __init__(self, folder: str | Path, data: str = MINI):
        self.folder, self.data, self._read, self._runs = Path(folder), data, {}, {}
        self.measured: dict = {}  # of ``effects.measure``
        if not self.folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder of records: give the one that holds <notebook>.json")

    def record(self, name: str) -> dict:
        """A record by the name of its notebook. Raises ``Missing``."""
        if name not in self._read:
            self._read[name] = self._find(name)
        return self._read[name]

    def has(self, name: str) -> bool:
        """Whether ``record`` finds one."""
        try:
            return bool(self.record(name))
        except Missing:
            return False

    def gpu(self) -> dict | None:
        """The record of a GPU (``records.gpu_record``) among these; None if there is none."""
        found = [records.gpu_record(path.parent) for path in sorted(self.folder.rglob("gpu.json"))]
        return next(filter(None, found), None)

    def _find(self, name: str) -> dict:
        paths = [
            p for p in sorted(self.folder.rglob(f"{name}.json")) if "smoke" not in p.relative_to(self.folder).parts
        ]
        found = {path: records.read_record(name, path.parent) for path in paths}
        fitting = [path for path, record in found.items() if self._fits(preset(record))]
        counted = [path for path in fitting if not of_first_benchmark(found[path])]
        if fitting and not counted:
            raise Missing(f"notebook {name[:2]} makes it (there is one of the first benchmark, which does not count)")
        fitting = counted
        if len(fitting) > 1:  # of a batch: the run with the notebook's own parameters holds those of all seeds
            fitting = [path for path in fitting if STORED in path.parts] or fitting
        if len(fitting) > 1:
            raise ValueError(f"{fitting[0]} and {fitting[1]} are both records of {name}: name the folder of one run")
        if not fitting:
            others = sorted({f"of preset {preset(r)!r}" if preset(r) else "without a preset" for r in found.values()})
            there = f" (there is one {others[0]})" if others else ""
            raise Missing(f"notebook {name[:2]} makes it" + there)
        return found[fitting[0]]

    def _fits(self, name: str | None) -> bool:
        if name is None:
            return self.data == MINI
        return name in configs.PRESETS and configs.PRESETS[name]().dataset == DATASETS[self.data]

    def table(self, name: str, title: str, columns=()) -> pd.DataFrame:
        """A table of a record. Raises ``Missing`` also for a record without it, or without a column of it."""
        tables = self.record(name)["tables"]
        if title not in tables or not set(columns) <= set(tables[title].columns):
            lack = title if title not in tables else ", ".join(sorted(set(columns) - set(tables[title].columns)))
            raise Missing(f"the record of notebook {name[:2]} has no {lack!r}")
        return tables[title]

    def runs(self, name: str) -> pd.DataFrame:
        """Tidy rows of runs on the split ``test``: variant, setting, seed, task, metrics in percent."""
        if name not in self._runs:
            self._runs[name] = self._tidy(name)
        return self._runs[name]

    def _tidy(self, name: str) -> pd.DataFrame:
        if name == TRAINED:  # calls a variant a method, and has no settings
            frame = self.table(name, "all", ["method", "seed", "split", "task", *METRICS])
            frame = frame.rename(columns={"method": "variant"}).assign(setting="")
        else:
            columns = ["variant", "setting", "seed", "split", "task", *METRICS]
            frame = self.table(name, "runs", columns)
            if "parts" in self.record(name)["tables"]:  # ablations of notebook 13
                frame = pd.concat([frame, self.table(name, "parts", columns)], ignore_index=True)
        return frame[frame["split"] == "test"]

    def scores(self, name: str, variant: str, setting: str, task: str) -> pd.DataFrame:
        """One row of metrics per seed of a variant, setting and task. Raises ``Missing``."""
        frame = self.runs(name)
        frame = frame[(frame["variant"] == variant) & (frame["setting"] == setting) & (frame["task"] == task)]
        if not len(frame):
            raise Missing(f"the record of notebook {name[:2]} has no {', '.join(filter(None, (variant, setting)))!r}")
        return frame.set_index("seed")


def preset(record: dict) -> str | None:
    """The preset that a record's numbers belong to; None where it names none."""
    return (record.get("config") or {}).get("name") or record["parameters"].get("preset")


def of_first_benchmark(record: dict) -> bool:
    """Whether its numbers are of MojiScenes as it was first: 300 drawings, 33 unseen labels at test.

    The config of a run on it has no ``coverage``, which came with stuff, words above things and 81 unseen labels.
    """
    config = record.get("config") or {}
    return config.get("dataset") == "mojiscenes" and "coverage" not in config


def printed(value: float, as_in: str) -> bool:
    """Whether a number, rounded to as many decimals as are printed in ``as_in``, is the printed one; units of it too.

    >>> printed(25_296_896, "25.3M"), printed(6144, "0.004M"), printed(18.316, "18.3")
    (True, False, True)
    """
    digits = re.match(r"[\d.]+", as_in)[0]
    scale = 1e6 if as_in.endswith("M") else 1
    return round(value / scale, len(digits.partition(".")[2])) == float(digits)
