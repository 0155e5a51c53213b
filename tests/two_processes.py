"""What the tests of scale-out run on two processes."""

import json
from pathlib import Path

import processes
import synthetic
import torch
from accelerate import notebook_launcher

from hrcf_lib import methods
from hrcf_lib.config import Config
from hrcf_lib.data import load
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.pictures import Pictures, StreamedPictures
from hrcf_lib.engine.devices import process
from hrcf_lib.evaluation import evaluate, gather_rows
from hrcf_lib.methods import registry
from hrcf_lib.studies import one_run
from hrcf_lib.training import train

RAND = "rand-m9-mstd0.5-inc1"


def gappy() -> FrozenFeatures:
    """11 pictures, 5 of them without a positive seen label, so that ranks drop different numbers, and some all."""
    features = synthetic.features(11)
    features.labels[[1, 3, 4, 7, 9], : features.space.n_seen] = -1
    return features


def sources(model, table) -> dict:
    """The data of each run by name."""
    dataset = load(table, side=112, split="train", hide_unseen=True)
    return {
        "features": gappy(),
        "accumulated": gappy(),
        "mkt": gappy(),
        "gen_mlzsl": gappy(),
        "pictures": Pictures(dataset, model.vlp, RAND),
        "streamed": StreamedPictures(table, model.vlp, RAND, buffer=5),
    }


def config_of(name: str) -> Config:
    if name == "mkt":
        return methods.configure("mkt", synthetic.config())
    if name == "gen_mlzsl":
        return methods.configure("gen_mlzsl", synthetic.config(), hidden=16, critic_steps=1)
    changes = {"merge_starts_at_zero": False}  # at zero, the first gradients of the other convolution are rounding
    if name == "accumulated":
        changes |= {"accumulate": 3}
    if name in ("pictures", "streamed"):
        # without distillation: here student and teacher start equal, and the sign of their difference is rounding
        changes |= {"augment": RAND, "phases": (("hcg", 1, 8), ("prompts", 1, 8)), "distillation": 0.0}
    return synthetic.config(**changes)


def run(name: str, table, folder=None, **more):
    """Model and history of one training run by name."""
    model = registry.for_config(config_of(name), pretrained=False)
    return model, train(model, sources(model, table)[name], folder, **more)


def main(table: str, out: Path) -> None:
    state = process()
    assert (state.num_processes, state.backend) == (2, "gloo")
    for name in ("features", "accumulated", "pictures", "streamed", "mkt"):
        model, history = run(name, table)
        if state.is_main_process:
            torch.save(synthetic.weights(model), out / f"{name}.pt")
            history.to_csv(out / f"{name}.csv", index=False)
    torch.save(synthetic.weights(run("gen_mlzsl", table)[0]), out / f"turns-{state.process_index}.pt")
    model = synthetic.model().eval()
    dataset = load(table, side=112, split="test")
    tables = {n: evaluate(model, synthetic.features(n)) for n in (1, 7)}
    tables["pictures"] = evaluate(model, Pictures(dataset, model.vlp))
    frames = {name: frame.to_dict() for name, frame in tables.items()}
    (out / f"tables-{state.process_index}.json").write_text(json.dumps(frames))
    try:
        gather_rows(torch.zeros(2, 1), torch.tensor([0, 1]), 4)
    except RuntimeError as error:
        (out / f"twice-{state.process_index}.txt").write_text(str(error))


def killed(table: str, out: Path) -> None:
    """Die at step 7, in the middle of the prompts' epoch, after the checkpoint of step 6."""
    synthetic.die_at_step(8)
    run("features", table, out / "killed", save_every=2)


def resumed(table: str, out: Path) -> None:
    model, history = run("features", table, out / "killed")
    if process().is_main_process:
        torch.save(synthetic.weights(model), out / "resumed.pt")
        history.to_csv(out / "resumed.csv", index=False)


def notebook(config: Config, out: Path) -> None:
    """What a user's notebook does."""
    arguments = (config, "data", out)
    notebook_launcher(one_run.run, arguments, num_processes=2, use_port=str(processes.free_port()))


def lonely(out: Path) -> None:
    """One of two processes that were started, which finds no other."""
    try:
        process()
    except RuntimeError as error:
        out.write_text(str(error))
