"""Two processes (gloo, CPU) give the numbers of one: losses, weights, evaluation, a resumed run; both launchers."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import official_formats
import pandas as pd
import processes
import psutil
import pytest
import synthetic
import torch
import two_processes

from hrcf_lib import config as configs
from hrcf_lib import training
from hrcf_lib.data import load
from hrcf_lib.data.feeds.pictures import Pictures
from hrcf_lib.data.feeds.sources import source
from hrcf_lib.data.official import nus_wide
from hrcf_lib.engine import files
from hrcf_lib.evaluation import evaluate
from hrcf_lib.methods import registry
from hrcf_lib.model import HRCF
from hrcf_lib.studies import one_run
from hrcf_lib.studies.one_run import launch, main, run

CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}  # two processes of --multi_gpu, without a GPU


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("nus")
    official_formats.nus_wide(root / "source", n=23)  # 16 in train, 7 in test
    return nus_wide.prepare(root / "source", root / "out")


@pytest.fixture(scope="module")
def two(table, tmp_path_factory):
    """Folder of what two processes left."""
    out = tmp_path_factory.mktemp("two")
    assert processes.run(two_processes.main, table, out, processes=2) == [0, 0]
    return out


def assert_same_run(name, weights, history, model, expected) -> None:
    """Losses agree, and so does what each parameter learnt: its way from the start, within a thousandth of its length.

    Not entry by entry: Adam takes a full step where a gradient is nothing but rounding.
    """
    columns = ["ranking", "distillation"]
    np.testing.assert_allclose(history[columns], expected[columns], rtol=2e-5, atol=2e-6)
    assert history[["step", "phase", "side", "lr"]].equals(expected[["step", "phase", "side", "lr"]])
    start, own = synthetic.weights(registry.for_config(two_processes.config_of(name), pretrained=False)), dict(weights)
    moved = []
    for key, value in synthetic.weights(model).items():
        way, error = (value - start[key]).float().norm(), (own[key] - value).float().norm()
        if key.endswith("attn.in_proj_bias"):  # of the keys: no gradient at all but rounding
            way, error = (torch.cat([d[:128], d[256:]]).norm() for d in (value - start[key], own[key] - value))
        assert error <= 1e-3 * way, f"{key}: {error:.2e} of a way of {way:.2e}"
        moved += [key] * bool(way)
    own_parts = {"gather"} if name != "mkt" else set()
    assert {key.split(".")[0] for key in moved} == {"block", "ln_post", "head", "prompt"} | own_parts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["features", "accumulated", "pictures", "streamed", "mkt"])
def test_two_processes_train_as_one(two, table, name):
    """Also where the ranks drop different numbers of pictures, and where gradients are accumulated."""
    model, expected = two_processes.run(name, table)
    history = pd.read_csv(two / f"{name}.csv")
    assert_same_run(name, torch.load(two / f"{name}.pt", weights_only=True), history, model, expected)
    assert expected.ranking.notna().sum() > len(expected) / 2 and not expected.ranking.eq(expected.ranking[0]).all()


def test_ranks_drop_different_numbers_of_pictures():
    """That the run above is the case it claims to be: uneven, and at least once a rank without any picture."""
    features, shares = two_processes.gappy(), []
    kept = (features.labels[:, : features.space.n_seen] == 1).any(dim=1)
    for side, epoch in (("hcg", 0), ("hcg", 1), ("prompts", 0), ("hcg", 2)):
        for rank in range(2):
            order = training.BatchOrder(4, training._seed(0, side, epoch), 0, rank, 2)
            shares.append([int(kept[rows].sum()) for rows in order.rows(11)])
    first, second = np.array(shares[::2]), np.array(shares[1::2])
    assert (first != second).sum() >= 4 and ((first == 0) ^ (second == 0)).any()


@pytest.mark.slow
def test_accumulated_parts_are_one_batch(table):
    whole, expected = two_processes.run("features", table)
    parts, history = two_processes.run("accumulated", table)
    assert_same_run("features", synthetic.weights(parts), history, whole, expected)


@pytest.mark.slow
def test_every_picture_is_scored_exactly_once(two, table):
    """1, 7 and 7 pictures on two processes: both get the table of one."""
    model = synthetic.model().eval()
    pictures = Pictures(load(table, side=112, split="test"), model.vlp)
    expected = {str(n): evaluate(model, synthetic.features(n)) for n in (1, 7)} | {
        "pictures": evaluate(model, pictures)
    }
    for rank in range(2):
        tables = json.loads((two / f"tables-{rank}.json").read_text())
        assert tables.keys() == expected.keys()
        for name, frame in expected.items():
            got = pd.DataFrame(tables[name])
            assert (got.images == frame.images).all() and (got.protocol == frame.protocol).all()
            numbers = frame.columns.drop(["protocol"])
            np.testing.assert_allclose(got[numbers].astype(float), frame[numbers].astype(float), atol=1e-3)
        assert "4 rows were scored, 2 different ones, where there are 4" == (two / f"twice-{rank}.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_of_two_processes_resumes(table, tmp_path):
    """On two processes, and from the same checkpoint on one."""
    assert processes.run(two_processes.killed, table, tmp_path, processes=2) == [-signal.SIGKILL] * 2
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 6
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert processes.run(two_processes.resumed, table, tmp_path, processes=2) == [0, 0]
    whole, expected = two_processes.run("features", table)
    history = pd.read_csv(tmp_path / "resumed.csv")
    assert len(history) == 12
    assert_same_run("features", torch.load(tmp_path / "resumed.pt", weights_only=True), history, whole, expected)
    alone, history = two_processes.run("features", table, tmp_path / "copy")
    assert_same_run("features", synthetic.weights(alone), history, whole, expected)


def test_processes_on_disks_of_their_own_are_refused():
    class Accelerator:
        device = "cpu"

        def gather(self, steps):
            return torch.tensor([int(steps), 0])

    training._agree(Accelerator(), 0, Path("checkpoint.pt"))
    with pytest.raises(ValueError, match=r"different checkpoints at checkpoint.pt \(steps \[6, 0\]\): put the folder"):
        training._agree(Accelerator(), 6, Path("checkpoint.pt"))


# -- whole runs --------------------------------------------------------------------------------------------------------

CONFIG = configs.mini().smoke().replace(train_size=20, val_size=8, test_size=12)


@pytest.mark.slow
def test_a_method_whose_steps_take_turns_has_the_same_weights_in_all_processes(two):
    """Some parameters have no gradient in some steps, and one process has no picture of its own in some."""
    first, second = (torch.load(two / f"turns-{rank}.pt", weights_only=True) for rank in range(2))
    start = synthetic.weights(registry.for_config(two_processes.config_of("gen_mlzsl"), pretrained=False))
    assert synthetic.same(first, second)
    for part in ("critic.", "generator.", "encoder."):
        assert not any(torch.equal(first[n], start[n]) for n in start if n.startswith(part) and n.endswith("weight"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder of a small run on one process."""
    out = tmp_path_factory.mktemp("alone")
    table = run(CONFIG, out=out)
    assert table.index.tolist() == ["ZSL", "GZSL"]
    return out


def record_of(out) -> dict:
    return json.loads((out / "record.json").read_text())


@pytest.mark.slow
def test_fit_leaves_a_model_its_history_and_a_record(alone):
    assert {"checkpoint.pt", "model", "history.csv", "record.json"} <= {p.name for p in alone.iterdir()}
    record = record_of(alone)
    assert record["processes"] == 1 and record["protocol"] == "per_class"
    assert configs.from_dict(record["config"]) == CONFIG
    assert [row["task"] for row in record["tables"]["results"]] == ["ZSL", "GZSL"]
    steps = {"hcg": 2, "prompts": 1}  # of 16 and of 4 pictures; of all 20
    assert len(pd.read_csv(alone / "history.csv")) == sum(steps[phase.trains] for phase in CONFIG.phases)
    model = HRCF.from_pretrained(alone / "model")
    assert model.reference_labels == source(model, "train").space.seen


def assert_same_tables(record, expected) -> None:
    rows, others = (pd.DataFrame(r["tables"]["results"]).set_index("task") for r in (record, expected))
    numbers = others.columns.drop("protocol")
    np.testing.assert_allclose(rows[numbers].astype(float), others[numbers].astype(float), atol=0.6)


@pytest.mark.slow
def test_launch_starts_processes_from_a_notebook(alone, tmp_path, monkeypatch):
    """By ``accelerate launch``, with features that are there already."""
    for name, value in CPU.items():
        monkeypatch.setenv(name, value)
    launch(CONFIG, tmp_path, 2, cache=alone / "features", words=("--main_process_port", "0"))
    record = record_of(tmp_path)
    assert record["processes"] == 2
    assert_same_tables(record, record_of(alone))


@pytest.mark.slow
def test_launch_hands_on_what_the_run_says(alone, monkeypatch, capsys):
    """The command that it starts is run here, between what a launcher would add."""

    def run_here(command):
        assert command[-1] == "--end-with-parent"
        with pytest.raises(SystemExit) as stopped:
            main(command[command.index("hrcf_lib.studies.one_run") + 1 : -1])
        return stopped.value.code, f"W1127 torch/distributed\n{capsys.readouterr().err}"

    monkeypatch.setattr(one_run, "_output", run_here)
    says = "^2 processes failed.*\n.*another run.*\n  lr: there 0.003, here 0.5"
    with pytest.raises(RuntimeError, match=says):
        launch(CONFIG.replace(lr=0.5), alone, 2)


def test_a_folder_in_use_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(one_run, "_output", lambda command: pytest.fail("it was started"))
    monkeypatch.setattr(one_run, "train", lambda *_: pytest.fail("it trains"))
    for name in (".lock", ".launch.lock"):
        with files.alone(tmp_path, name=name), ThreadPoolExecutor(1) as other:
            with pytest.raises(files.InUse, match="another run writes to"):
                other.submit(launch, CONFIG, tmp_path, 2).result()
            if name == ".lock":
                with pytest.raises(SystemExit):
                    other.submit(main, ["mini", "--out", str(tmp_path)]).result()
                assert "another run writes to" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".launch.lock"}


def start_what_waits(pid) -> None:
    """In a process that is killed while it waits for a command, which notes its process id in the file ``pid``."""
    waits = f"import os, sys; open({str(pid)!r}, 'w').write(str(os.getpid())); sys.stdin.read()"
    threading.Thread(target=one_run._output, args=([sys.executable, "-S", "-c", waits],), daemon=True).start()
    while not pid.exists() or not pid.read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_launch_starts_hears_that_its_caller_was_killed(tmp_path):
    """Its standard input closes, whereupon ``parents.end_with_parent`` ends it."""
    assert processes.run(start_what_waits, tmp_path / "pid") == [-signal.SIGKILL]
    started = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(started) and psutil.Process(started).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


@pytest.mark.slow
def test_notebook_launcher(alone, tmp_path):
    """Here the two processes make the features themselves."""
    assert processes.run(two_processes.notebook, CONFIG, tmp_path, **CPU) == [0]
    record = record_of(tmp_path)
    assert record["processes"] == 2
    assert_same_tables(record, record_of(alone))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="processes find each other on GPUs")
def test_processes_that_do_not_find_each_other_do_not_train_alone(tmp_path):
    said = tmp_path / "said.txt"
    assert processes.run(two_processes.lonely, said, WORLD_SIZE="2", ACCELERATE_USE_CPU="false") == [0]
    assert "2 processes were started, and this one knows of 1" in said.read_text()


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    for words, said in (
        (["nuswide"], "did you mean 'nus_wide'"),
        (["mini", "--set", "lambda", "0.5"], "unknown config name 'lambda'"),
        (["nus_wide", "--set", "vlp", "hrcf-mini", "--set", "vlp_weights", "None"], "no prepared nus_wide in"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
