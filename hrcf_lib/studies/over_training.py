r"""What a method scores while it trains: a run that stops every so many steps, is scored on val, and goes on.

Its weights are those of ``runs.run`` on the same machine, which does not stop; it has a folder of its own, as that one
keeps its last step alone.
"""

import json

import pandas as pd

from hrcf_lib import evaluation
from hrcf_lib.config import Config
from hrcf_lib.data.feeds.sources import validation
from hrcf_lib.engine import devices
from hrcf_lib.methods import registry
from hrcf_lib.studies import records, runs
from hrcf_lib.studies.start_scores import start_scores
from hrcf_lib.training import train

RECORD = "over_training"


def over_training(config: Config, feats, folder, every: int = 125, settings=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Scores on val before the first step, after every ``every`` steps and after the last; and the history of steps.

    Args:
        config: of the run, seed included.
        feats: ``sources`` of the same data and VLP, or a ``shelf``.
        folder: of such runs; each has a folder in it, from which a run that was stopped goes on.
        every: steps between two scores. A checkpoint is written as often.
        settings: name -> changes at test time only, as in ``runs.run``.

    Returns the scores on the pictures of ``sources.validation``, rows as in ``runs.Outcome`` with ``step`` in front,
    and what ``train`` returns. Raises what ``train`` raises, and ``ValueError`` for a folder that holds a run scored on
    other pictures, after other steps or in other settings.
    """
    settings = runs.AS_TRAINED if settings is None else settings
    feats = runs.with_training_data(config, feats)
    val = validation(feats)[0]
    belongs = {"every": every, "settings": list(settings), "val": val.identity()}
    with runs.exclusive(config, folder) as out:
        rows = _read(out, belongs)
        if not len(rows):
            rows = start_scores(config, {"train": feats["train"], "val": val}, settings).assign(step=0)
        model = registry.for_config(config).to(devices.best())
        history = train(model, feats["train"], out, stop_after=0)  # what is there already
        while True:
            if (step := len(history)) not in set(rows["step"]):
                scored = runs.score_settings(model, {"val": val}, settings)[0].assign(step=step)
                rows = pd.concat([rows, scored], ignore_index=True)
                _write(rows, history, config, out, belongs)
            before, history = history, train(model, feats["train"], out, save_every=every, stop_after=every)
            if len(history) == len(before):
                break
    return rows[["step", *(name for name in rows if name != "step")]], history


def _read(folder, belongs: dict) -> pd.DataFrame:
    if not (folder / f"{RECORD}.json").is_file():
        return pd.DataFrame()
    record = records.read_record(RECORD, folder)
    if record["belongs_to"] != json.loads(json.dumps(belongs)):
        raise ValueError(f"{folder} was scored otherwise or on other pictures: remove it, or choose another folder")
    return record["tables"]["metrics"]


def _write(rows: pd.DataFrame, history: pd.DataFrame, config: Config, folder, belongs: dict) -> None:
    seconds, protocol = float(history["seconds"].iloc[-1]), f"{config.protocol}: {evaluation.PROTOCOL}"
    about = {"config": config.to_dict(), "belongs_to": belongs}
    records.record(RECORD, config.changes(), {"metrics": rows}, seconds, protocol, folder=folder, **about)
