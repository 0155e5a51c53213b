r"""One whole run, from a prepared data set to a trained model and its table, on any number of processes.

::

    python -m hrcf_lib.studies.one_run nus_wide --data data --out runs/nus_wide     # one GPU, or the CPU
    accelerate launch --multi_gpu --num_processes 8 -m hrcf_lib.studies.one_run nus_wide --out runs/nus_wide
    notebook_launcher(run, ("nus_wide", "data", "runs/nus_wide"), num_processes=8)  # inside a notebook

``out`` then holds ``checkpoint.pt`` (a killed run continues from it), ``model/`` (for ``methods.load``, an HRCF also
for ``HRCF.from_pretrained``), ``history.csv`` and ``record.json``.
"""

import argparse
import ast
import dataclasses
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd

from hrcf_lib import config as configs
from hrcf_lib.data.feeds.sources import categories, source
from hrcf_lib.engine import devices, files, parents
from hrcf_lib.engine.messages import check_known
from hrcf_lib.evaluation import evaluate
from hrcf_lib.methods import registry
from hrcf_lib.methods.registry import asks_unseen
from hrcf_lib.studies import records
from hrcf_lib.training import train

STOPPED = "hrcf_lib.studies.one_run: "  # the beginning of a message of an error that the user can fix


def run(preset, data="data", out=None, changes: dict | None = None, cache=None, method="hrcf") -> pd.DataFrame:
    r"""Train by a preset and evaluate on its test split; returns the table of ``evaluate``, on every process.

    Args:
        preset: name of a preset, or a ``Config``, also that of another method.
        data: folder of prepared data sets.
        out: folder of results, by default ``runs/<preset>``, with another method ``runs/<preset>-<method>``; several
            machines have to share it.
        changes: fields of the config to replace, such as ``{"lam": 0.5}``.
        cache: folder of frozen features, by default ``<out>/features``.
        method: a name of ``methods.names()``, to be trained in the experiment of a preset; a method's own config names
            its method itself.

    Raises what ``config.preset``, ``methods.configure``, ``source``, ``train`` and ``evaluate`` raise, and
    ``files.InUse`` if another run writes to ``out``.
    """
    start, state = time.time(), devices.process()
    config = configure(preset, method, changes, data)
    out = Path(out or Path("runs") / "-".join([config.name] + [config.method] * (config.method != "hrcf")))
    cache = cache or out / "features"
    model = registry.for_config(config).to(state.device)
    with files.alone(out) if state.is_main_process else nullcontext():
        with state.main_process_first():  # features are computed once, and read by the others
            training = source(model, "train", data, cache)
        history = train(model, training, out)
        with state.main_process_first():
            test = source(model, "test", data, cache)
        table = evaluate(model, test, ("ZSL", "GZSL") if test.space.unseen and asks_unseen(config) else ("seen",))
        if state.is_main_process:
            model.save_pretrained(out / "model", {"test": table}, history)
            files.write_text(out / "history.csv", history.to_csv(index=False))
            more = {"config": config.to_dict(), "vlp_hash": model.vlp.hash, "processes": state.num_processes}
            protocol = ", ".join(table["protocol"].unique())
            records.record("record", {}, {"results": table}, time.time() - start, protocol, folder=out, **more)
            print(table.round(1).to_string())
            files.remove_abandoned(out)
        state.wait_for_everyone()
    return table


def configure(preset, method="hrcf", changes: dict | None = None, data="data") -> configs.Config:
    """The config of a run, by the arguments of ``run``, with the names of its labels if its method needs them."""
    named = isinstance(preset, str)
    config = configs.preset(preset) if named else preset
    method = config.method if method == "hrcf" else method
    config = registry.configure(method, config, **changes or {})
    config = config.smoke() if named and configs.is_smoke() else config
    if getattr(config, "categories", None) == ():
        config = config.replace(categories=categories(config, data))
    return config


def launch(config: configs.Config, out: str | Path, processes: int, data="data", cache=None, words=()) -> None:
    r"""``run`` in ``processes`` new processes of this machine, through ``accelerate launch``, for any method's config.

    It works in any notebook, also after the GPU was used; without GPUs set ``ACCELERATE_USE_CPU=true``. ``words`` are
    further options of ``accelerate launch``, such as ``("--main_process_port", "0")``. The processes end with this one,
    however it ends. Raises ``RuntimeError`` with the message of the process that failed, ``files.InUse`` if another run
    writes to ``out``.
    """
    out = Path(out)
    with files.alone(out, name=".launch.lock"):
        with files.alone(out):  # which the run itself holds from here on
            files.write_json(out / "config.json", config.to_dict())
        _launch(config, out, processes, data, cache, words)


def _launch(config: configs.Config, out: Path, processes: int, data, cache, words) -> None:
    path = out / "config.json"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--multi_gpu"] * (processes > 1) + [*words, "-m", "hrcf_lib.studies.one_run", str(path)]
    options = {"--data": data, "--out": out, "--method": config.method} | ({"--cache": cache} if cache else {})
    command += [str(word) for option in options.items() for word in option]
    code, log = _output([*command, "--end-with-parent"])
    files.write_text(out / "log.txt", log)
    if code:
        said = log.partition(STOPPED)[2] or log  # the run's own message, not the launcher's
        lines = said.splitlines()[:12] if STOPPED in log else said.splitlines()[-30:]
        raise RuntimeError("\n".join([f"{processes} processes failed (the whole log: {out / 'log.txt'}):", *lines]))


def _output(command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command, whose standard input closes when this process ends."""
    how = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **how) as process, process.stdin:
        said = process.stdout.read()
        return process.wait(), said


def _preset(word: str, method: str = "hrcf"):
    """A preset's name, or the config of a JSON file: HRCF's, also for another method, or the method's own."""
    if word.endswith(".json"):
        values = files.read_json(Path(word).expanduser())
        own = registry.saved(method, values).Config
        plain = values.keys() <= {field.name for field in dataclasses.fields(configs.Config)}
        return configs.from_dict(values, configs.Config if plain else own)
    check_known([word], list(configs.PRESETS), "unknown preset")
    return word


def _value(text: str):
    """The number, True, False, None or tuple that ``text`` spells; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The words of a command line that say what is run: preset, data, method, and changed fields of its config."""
    parser.add_argument("preset", help=f"{', '.join(configs.PRESETS)}, or a JSON file of Config.to_dict")
    parser.add_argument("--data", default="data", help="folder of prepared data sets (default: data)")
    parser.add_argument("--method", default="hrcf", help=f"hrcf (default), {', '.join(registry.names('all')[1:])}")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="config field")


def experiment(given: argparse.Namespace) -> tuple:
    """What ``run`` takes as preset and changes, from the words of ``add_experiment``."""
    return _preset(given.preset, given.method), {name: _value(text) for name, text in given.set}


def main(words=None) -> None:
    """The command line; an error that the user can fix ends it with one line that says how."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.studies.one_run", description="Train and evaluate by a preset."
    )
    add_experiment(parser)
    parser.add_argument("--out", default=None, help="folder of results (default: runs/<preset>)")
    parser.add_argument("--cache", default=None, help="folder of frozen features (default: <out>/features)")
    parser.add_argument("--end-with-parent", action="store_true", help="stop once standard input closes (for launch)")
    given = parser.parse_args(words)
    if given.end_with_parent:
        parents.end_with_parent()
    try:
        preset, changes = experiment(given)
        run(preset, given.data, given.out, changes, given.cache, given.method)
    except (ValueError, OSError, FloatingPointError, files.InUse) as error:
        parser.exit(2, f"{STOPPED}{error}\n")


if __name__ == "__main__":
    main()
