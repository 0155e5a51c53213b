r"""One whole run, from a prepared data set to a trained model and its table, on any number of processes.

::

    python -m hrcf_lib.fit nus_wide --data data --out runs/nus_wide                          # one GPU, or the CPU
    accelerate launch --multi_gpu --num_processes 8 -m hrcf_lib.fit nus_wide --out runs/nus_wide
    notebook_launcher(fit, ("nus_wide", "data", "runs/nus_wide"), num_processes=8)            # inside a notebook

``out`` then holds ``checkpoint.pt`` (a killed run continues from it), ``model/`` (``baselines.load``, of HRCF also
``HRCF.from_pretrained``), ``history.csv`` and ``record.json``.
"""

import argparse
import ast
import dataclasses
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from hrcf_lib import baselines, devices, results
from hrcf_lib import config as configs
from hrcf_lib.data import benchmarks
from hrcf_lib.data import partial as partial_labels
from hrcf_lib.data.dataset import label_matrix
from hrcf_lib.evaluation import evaluate
from hrcf_lib.features import AugmentedFeatures, FrozenFeatures, extract
from hrcf_lib.files import write_json
from hrcf_lib.names import check_known
from hrcf_lib.pictures import AugmentedView, Pictures, StreamedPictures
from hrcf_lib.training import train

STOPPED = "hrcf_lib.fit: "  # what an error of the user's begins with


def source(model, split: str, data: str | Path = "data", cache: str | Path | None = None):
    r"""What ``train`` and ``evaluate`` read of a split, as the model's config says.

    Without augmentation these are frozen features in the format ``config.cache``, stored in the folder ``cache`` where
    one is given (NUS-WIDE at ViT-B/16 in 16 bits: 49 GB for train). Otherwise pictures, augmented in training alone:
    streamed with ``config.stream``, or features of ``config.views`` views, as large each. In training, labels are
    hidden as the config says (``data.partial``); stored features do not depend on that.

    Args:
        model: an ``HRCF`` or another ``Method``, where the features are to be computed.
        split: of the data set, such as train or test.
        data: folder of prepared data sets (``benchmarks.open_split``).
        cache: folder of frozen features.

    Raises what ``open_split``, ``extract`` and ``Pictures`` raise.
    """
    config, training = model.config, split == "train"
    if config.stream and training and config.dataset != "mojiscenes":
        if partial_labels.hides(config):
            raise ValueError("labels are hidden by row, which a stream does not count: set stream to False")
        return StreamedPictures(benchmarks.folder(config, data), model.vlp, config.augment, config.workers)
    dataset = benchmarks.open_split(config, split, data, model.vlp.side)
    workers = (
        config.workers if config.workers is not None else 0 if config.dataset == "mojiscenes" else devices.workers()
    )
    stored = partial(extract, model.vlp, space=dataset.labels, folder=cache, workers=workers, precision=config.cache)
    if config.augment == "none":
        found = stored(dataset)
    elif config.views and training:
        views = [AugmentedView(dataset, model.vlp, config.augment, view) for view in range(config.views)]
        plain = Pictures(dataset, model.vlp, workers=config.workers)
        found = AugmentedFeatures([stored(view) for view in views], config.augment, plain)
    else:
        found = Pictures(dataset, model.vlp, config.augment if training else "none", config.workers)
    if training and partial_labels.hides(config):
        return relabelled(found, partial_labels.hide_as(config, dataset))
    return found


def relabelled(found, dataset):
    """What ``source`` made of a data set, with the annotation of another that has the same pictures."""
    if isinstance(found, FrozenFeatures):
        return dataclasses.replace(found, labels=label_matrix(dataset).to(found.labels.dtype))
    if isinstance(found, AugmentedFeatures):
        views = [relabelled(view, dataset) for view in found.views]
        return AugmentedFeatures(views, found.augment, relabelled(found.plain, dataset))
    return found.over(dataset)


def validation(sources: dict) -> tuple:
    r"""What choices are made on, and the tasks that are looked at: val, or 2,000 training pictures where there is none.

    Unlike in published code no choice looks at unseen labels of test: MojiScenes has others in val, elsewhere the seen
    labels decide. ``sources``: split -> what ``source`` made of it, with train and test among them.
    """
    val = sources.get("val")
    if val is None:
        train = getattr(sources["train"], "plain", None) or sources["train"]  # of stored views, the pictures themselves
        rows = np.random.default_rng(0).permutation(len(train))[:2000]
        return train.take(np.sort(rows)), ("seen",)
    own = val.space.unseen and set(val.space.unseen).isdisjoint(sources["test"].space.names)
    return val, ("ZSL", "GZSL") if own else ("seen",)


def categories(config, data: str | Path = "data") -> tuple[str, ...]:
    """Names of the seen labels of a config's data set, in the order of its columns: what ``hrcf_lib.partial`` takes."""
    return benchmarks.open_split(config, "train", data).labels.seen


def asks_unseen(config) -> bool:
    """Whether a method is asked for unseen labels: it takes them, and its training labels are complete."""
    return baselines.method(config.method).open and not partial_labels.hides(config)


def fit(preset, data="data", out=None, changes: dict | None = None, cache=None, method="hrcf") -> pd.DataFrame:
    r"""Train by a preset and evaluate on its test split; returns the table of ``evaluate``, on every process.

    Args:
        preset: name of a preset, or a ``Config``, also that of a baseline.
        data: folder of prepared data sets.
        out: folder of results, by default ``runs/<preset>``, with another method ``runs/<preset>-<method>``; several
            machines have to share it.
        changes: fields of the config to replace, such as ``{"lam": 0.5}``.
        cache: folder of frozen features, by default ``<out>/features``.
        method: ``hrcf``, or a name of ``baselines.names()`` to train in the experiment of a preset; a baseline's own
            config says itself whose it is.

    Raises what ``config.preset``, ``baselines.configure``, ``source``, ``train`` and ``evaluate`` raise.
    """
    start, state = time.time(), devices.process()
    named, changes = isinstance(preset, str), changes or {}
    config = configs.preset(preset) if named else preset
    method = config.method if method == "hrcf" else method
    config = baselines.configure(method, config, **changes)
    config = config.smoke() if named and configs.is_smoke() else config
    if getattr(config, "categories", None) == ():
        config = config.replace(categories=categories(config, data))
    out = Path(out or Path("runs") / "-".join([config.name] + [config.method] * (config.method != "hrcf")))
    cache = cache or out / "features"
    model = baselines.of(config).to(state.device)
    with state.main_process_first():  # features are computed once, and read by the others
        training = source(model, "train", data, cache)
    history = train(model, training, out)
    with state.main_process_first():
        test = source(model, "test", data, cache)
    table = evaluate(model, test, ("ZSL", "GZSL") if test.space.unseen and asks_unseen(config) else ("seen",))
    if state.is_main_process:
        model.save_pretrained(out / "model", {"test": table}, history)
        history.to_csv(out / "history.csv", index=False)
        more = {"config": config.to_dict(), "vlp_hash": model.vlp.hash, "processes": state.num_processes}
        protocol = ", ".join(table["protocol"].unique())
        results.record("record", {}, {"results": table}, time.time() - start, protocol, folder=out, **more)
        print(table.round(1).to_string())
    state.wait_for_everyone()
    return table


def launch(config: configs.Config, out: str | Path, processes: int, data="data", cache=None, words=()) -> None:
    r"""``fit`` in ``processes`` new processes of this machine, through ``accelerate launch``; of any method's config.

    Works in any notebook, also after the GPU was used; without GPUs set ``ACCELERATE_USE_CPU=true``. ``words`` are
    further options of ``accelerate launch``, such as ``("--main_process_port", "0")``. Raises ``RuntimeError`` that
    says what stopped it.
    """
    out = Path(out)
    path = out / "config.json"
    write_json(path, config.to_dict())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--multi_gpu"] * (processes > 1) + list(words)
    command += ["-m", "hrcf_lib.fit", str(path), "--data", str(data), "--out", str(out), "--method", config.method]
    command += ["--cache", str(cache)] if cache else []
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (out / "log.txt").write_text(run.stdout, encoding="utf-8")
    if run.returncode:
        said = run.stdout.partition(STOPPED)[2] or run.stdout  # what fit itself says, before what the launcher does
        lines = said.splitlines()[:12] if STOPPED in run.stdout else said.splitlines()[-30:]
        raise RuntimeError("\n".join([f"{processes} processes failed (all of it in {out / 'log.txt'}):", *lines]))


def _preset(word: str, method: str = "hrcf"):
    """A preset's name, or the config in a JSON file: HRCF's, also for another method, or the method's own."""
    if word.endswith(".json"):
        values, own = json.loads(Path(word).read_text(encoding="utf-8")), baselines.method(method).Config
        plain = values.keys() <= {field.name for field in dataclasses.fields(configs.Config)}
        return configs.from_dict(values, configs.Config if plain else own)
    check_known([word], list(configs.PRESETS), "unknown preset")
    return word


def _value(text: str):
    """A number, True, False, None or a tuple of a command line; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(words=None) -> None:
    """The command line; an error of the user's ends it with one line that says what to mend."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.fit", description="Train and evaluate by a preset.")
    parser.add_argument("preset", help=f"{', '.join(configs.PRESETS)}, or a JSON file of Config.to_dict")
    parser.add_argument("--data", default="data", help="folder of prepared data sets (default: data)")
    parser.add_argument("--out", default=None, help="folder of results (default: runs/<preset>)")
    parser.add_argument("--cache", default=None, help="folder of frozen features (default: <out>/features)")
    parser.add_argument("--method", default="hrcf", help=f"hrcf (default), {', '.join(baselines.names())}")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="config field")
    given = parser.parse_args(words)
    try:
        changes = {name: _value(text) for name, text in given.set}
        fit(_preset(given.preset, given.method), given.data, given.out, changes, given.cache, given.method)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{STOPPED}{error}\n")


if __name__ == "__main__":
    main()
