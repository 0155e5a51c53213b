"""The command for a GPU, without one: what it refuses, what it leaves in the record, and a rehearsal."""

import json
import sys
import time

import pytest
import torch

from hrcf_lib.speed import gpu


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text('{"name": "gpu", "stages": {}}')
    return path


def rows(path, name="some"):
    return json.loads(path.read_text())["stages"][name]["rows"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_at_once_and_writes_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert stopped.value.code == 2 and "no CUDA device here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wrong_argument_is_named(tmp_path, capsys):
    for words, said in ((["--stages", "chekcs"], "did you mean 'checks'"), (["--minutes", "0"], "must be above 0")):
        with pytest.raises(SystemExit) as stopped:
            gpu.main(["--out", str(tmp_path / "gpu.json"), "--rehearse", *words])
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_what_fails_is_a_row_and_the_next_one_runs(record):
    stage = gpu.Stage(record, "some", seconds=60)

    def too_large():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB.\nmore of it")

    stage.row("large, B = 471", too_large)
    stage.row("wrong", lambda: {}["missing"])
    stage.row("right", lambda: {"ms": torch.tensor(1.5)})
    stage.row("late", lambda: {"ms": 1.0}, needs=100)
    large, wrong, right, late = rows(record)
    assert large["error"] == "out of GPU memory: CUDA out of memory. Tried to allocate 96.00 GiB."
    assert large["name"] == "large, B = 471" and wrong["error"] == "KeyError: 'missing'"
    assert right["ms"] == 1.5 and late["skipped"].startswith("100 s are needed, ")


def test_a_stage_that_takes_too_long_is_cut_off_and_leaves_its_rows(record, monkeypatch):
    code = "import json, sys, time; p = sys.argv[sys.argv.index('--out') + 1]; r = json.load(open(p)); "
    code += "r['stages']['speed'] = {'rows': [1]}; json.dump(r, open(p, 'w')); time.sleep(600)"
    start = gpu.subprocess.Popen
    own = lambda command, **how: start([sys.executable, "-c", code, *command[3:]], **how)
    monkeypatch.setattr(gpu.subprocess, "Popen", own)
    before = time.monotonic()
    gpu.one_stage(record, "speed", 3.0, rehearse=True)
    assert time.monotonic() - before < 300, "it did not wait for the stage"
    stage = json.loads(record.read_text())["stages"]["speed"]
    assert stage["rows"] == [1] and stage["status"] == "cut off after 3 s"


def test_stages_share_the_time_and_the_last_gets_what_is_left(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(gpu, "one_stage", lambda out, name, share, rehearse: given.update({name: share}))
    gpu.run(tmp_path / "gpu.json", minutes=8.0, rehearse=True)
    assert list(given) == list(gpu.STAGES) == list(gpu.SHARES) and sum(gpu.SHARES.values()) == pytest.approx(1)
    assert sum(share for name, share in given.items() if name != "length") < 480 * 0.8 and given["length"] > 470


@pytest.mark.slow
def test_features_on_the_device_are_the_same_feed():
    import synthetic

    from hrcf_lib.data.feeds.order import BatchOrder
    from hrcf_lib.training import train

    stored = synthetic.features()
    found = []
    for feed in (stored, gpu.on_device(stored, "cpu")):
        assert [rows.tolist() for rows, _, _ in feed.batches(BatchOrder(4))]
        model = synthetic.model()
        train(model, feed)
        found.append(synthetic.weights(model))
    assert synthetic.same(*found)


class Here:
    """A process that has run in this one: the start of another takes longer than a stage."""

    def __init__(self, words):
        self.code = gpu.main(words)

    def poll(self):
        return self.code

    def wait(self, timeout=None):
        return self.code


@pytest.mark.slow
def test_a_rehearsal_of_stages(tmp_path, monkeypatch):
    """The first by the words that the command starts a process with, another called as it is."""
    starts, own = gpu.subprocess.Popen, [sys.executable, "-m", gpu.__name__]
    popen = lambda command, **how: Here(command[3:]) if command[:3] == own else starts(command, **how)
    monkeypatch.setattr(gpu.subprocess, "Popen", popen)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--rehearse", "--minutes", "20", "--stages", "machine"]) == 0
    monkeypatch.undo()
    gpu.inference(gpu.Stage(out, "inference", seconds=600, rehearse=True))
    found = json.loads(out.read_text())
    assert found["rehearsal"] and found["stages"]["machine"]["status"] == "done"
    assert {"rates", "float32"} <= {found["stages"]["machine"]["rows"][0]["name"], "float32"}
    rows = found["stages"]["inference"]["rows"]
    assert {row["name"] for row in rows} >= {"HRCF, bfloat16, B = 4", "MKT, float32, B = 1"}
    assert all("error" not in row for row in rows)
