r"""Scores of a method before its first step: what a number owes to where training starts, and what to training.

Many methods start from the VLP's own embeddings and score well untrained; others start from random weights. A table of
methods without this column calls the one as good as the other.

::

    python -m hrcf_lib.studies.start_scores mini_short --method trm_ml --set known 0.1       # before the first step
    python -m hrcf_lib.studies.start_scores mini_short --method biam --runs runs/trials      # and after the last
"""

import argparse

import pandas as pd

from hrcf_lib import config as configs
from hrcf_lib.data import benchmarks
from hrcf_lib.engine import devices
from hrcf_lib.engine.messages import check_known
from hrcf_lib.methods import registry
from hrcf_lib.studies import one_run, runs
from hrcf_lib.training import train


def start_scores(config: configs.Config, feats, settings=None) -> pd.DataFrame:
    r"""What ``config``'s method scores untrained: a row per setting, split but train, and task, as in ``Outcome``.

    What a method takes from the training data before its first step (``Method.begin``) has been taken. Nothing is
    written.

    Args:
        config: of the run, seed included: weights drawn at random are those that ``run`` starts from.
        feats: ``sources`` of the same data and VLP, or a ``shelf``, with train and at least one other split.
        settings: name -> changes of the config that matter at test time only, as in ``run``.

    Raises what ``train`` raises, and ``ValueError`` if there is no split to score.
    """
    feats = runs.with_training_data(config, feats)
    if not set(feats) - {"train"}:
        raise ValueError("no split but train to score before the first step: give val as well")
    model = registry.for_config(config).to(devices.best())
    train(model, feats["train"], stop_after=0)  # names of seen labels, and the checks of a run
    model.begin(feats["train"])
    return runs.score_settings(model, feats, runs.AS_TRAINED if settings is None else settings)[0]


def start_and_trained(config: configs.Config, feats, folder, settings=None) -> pd.DataFrame:
    r"""The rows of ``start_scores`` and those of ``run``, with ``steps`` in front: 0, and how many were trained.

    ``folder`` is that of all runs; the one of ``config`` is trained if it is not there yet. Raises what both raise.
    """
    start = start_scores(config, feats, settings)
    done = runs.run(config, feats, folder, settings)
    parts = {0: start, done.about["training"]["steps"]: done.table}
    table = pd.concat([part.assign(steps=steps) for steps, part in parts.items()], ignore_index=True)
    return table[["steps", *(name for name in table if name != "steps")]]


def main(words=None) -> pd.DataFrame:
    """The command line; prints the table and returns it. An error that the user can fix ends it with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.studies.start_scores", description="Score a method before its first step."
    )
    one_run.add_experiment(parser)
    parser.add_argument("--cache", default="runs/features", help="folder of frozen features (default: runs/features)")
    parser.add_argument("--split", default="val", help="which pictures are scored (default: val)")
    parser.add_argument("--runs", default=None, help="folder of runs: train there too, and score after the last step")
    given = parser.parse_args(words)
    try:
        preset, changes = one_run.experiment(given)
        config = one_run.configure(preset, given.method, changes, given.data)
        check_known([given.split], list(benchmarks.splits(config, given.data)), f"{config.dataset} has no split")
        feats = runs.sources(config, given.data, given.cache, ("train", given.split))
        table = start_and_trained(config, feats, given.runs) if given.runs else start_scores(config, feats)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"hrcf_lib.studies.start_scores: {error}\n")
    print(table.drop(columns=["setting", "protocol"]).round(1).to_string(index=False))
    return table


if __name__ == "__main__":
    main()
