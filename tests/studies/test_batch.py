"""Batches: all faults before a start, one folder per job, failures reported, done work kept, nothing left running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from hrcf_lib.studies import batch, grid
from hrcf_lib.studies.batch import Job, jobs, main, read_grid, records, run

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PARAMETERS = (
    'seed = 0  # order\nname = "mini"  # preset\nlam = 0.5  # weight\nks = (3, 5)  # of F1\ndeep = False  # or not'
)
# each run adds a line to count.txt beside the notebook, and a record to the folder of its job
RUN = """import json, os, pathlib, time
out = pathlib.Path(os.environ["HRCF_OUT"]); here = pathlib.Path.cwd()
with open("count.txt", "a") as file: print(name, seed, file=file)
(out / "records").mkdir()
(out / "records" / "r.json").write_text(json.dumps([seed, name, list(ks), os.environ["OMP_NUM_THREADS"]]))"""
MEET = """(here / f"{seed}.here").touch()
for _ in range(2400):
    if all((here / f"{other}.here").exists() for other in (0, 1)): break
    time.sleep(0.05)
else: raise TimeoutError("the other job never came")"""

INSTEAD = """import json, os, sys
path, out, *words, end = sys.argv[1:]
os.chdir(os.path.dirname(path))
cells = ["".join(c["source"]) for c in json.load(open(path))["cells"] if c["cell_type"] == "code"]
scope = {}
exec(cells[0], scope)
for name, value in zip(words[1::3], words[2::3]):
    scope[name] = value if isinstance(scope[name], str) else eval(value)
for cell in cells[1:]: exec(cell, scope)"""
DIE = """import psutil
if seed == 1 and not (here / "died").exists():
    (here / "died").touch()
    psutil.Process().parents()[1].kill()  # the worker of the job's process
    time.sleep(60)"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("HRCF_SIZE", "HRCF_OUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)  # main is called in this process


def write(folder: Path, *code: str, name="06_tiny") -> Path:
    tagged = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# 06 Tiny"), tagged, *(new_code_cell(text) for text in code)]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def write_grid(path: Path, *entries) -> Path:
    path.write_text(json.dumps(entries))
    return path


def counts(folder: Path) -> list[str]:
    return sorted((folder / "count.txt").read_text().splitlines())


def job_of(folder: Path) -> dict:
    return json.loads((folder / "job.json").read_text())


def refuse(*_, **__):
    raise AssertionError("a job was started")


def until(true):
    for _ in range(3600):  # three minutes: only a test that fails waits as long
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


# -- what is to run ----------------------------------------------------------------------------------------------------


def test_a_grid_is_a_product(tmp_path):
    path = write(tmp_path)
    many = jobs(path, {"seed": [0, 1], "lam": [0.5, 1]}, {"ks": [1, 2]}, stage=3)
    assert [(job.parameters["seed"], job.parameters["lam"]) for job in many] == [(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]
    assert all(job.notebook == path and job.stage == 3 and job.parameters["ks"] == [1, 2] for job in many)
    assert isinstance(many[1].parameters["lam"], float)
    words = jobs(path, {"seed": ["0", "1"]}, {"name": "1", "lam": "2", "deep": "True"}, words=True)
    assert [job.parameters for job in words] == [{"seed": i, "name": "1", "lam": 2.0, "deep": True} for i in (0, 1)]
    assert jobs(path) == [Job(path, {}, 0)]


def test_all_faults_are_reported_at_once(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ValueError) as error:
        jobs(path, {"sede": [1, 2], "seed": ["1", True], "lam": [], "name": "ab"}, {"deep": 1, "ks": 3})
    lines = str(error.value).splitlines()
    assert len(lines) == 7 and all(line.startswith(str(path)) for line in lines)
    for part in (
        "no parameter 'sede'; did you mean 'seed'?",
        "seed = '1': give a value of the kind of 0",
        "seed = True: give a value of the kind of 0",
        "the grid needs a list of values for lam",
        "the grid needs a list of values for name",
        "deep = 1: give a value of the kind of False",
        "ks = 3: give a value of the kind of (3, 5)",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="seed is set, and in the grid"):
        jobs(path, {"seed": [1]}, {"seed": 1})


def test_a_grid_file(tmp_path):
    write(tmp_path)
    write(tmp_path, name="12_all")
    entries = [
        {"notebook": "06_tiny.ipynb", "grid": {"seed": [0, 1]}, "parameters": {"lam": 1}},
        {"notebook": "12_all.ipynb", "after": True},
        {"notebook": "12_all.ipynb", "parameters": {"seed": 1}},
        {"notebook": "12_all.ipynb", "parameters": {"seed": 2}, "after": True},
    ]
    found = read_grid(write_grid(tmp_path / "grid.json", *entries))
    assert [(job.notebook.stem, job.stage) for job in found] == [
        *[("06_tiny", 0), ("06_tiny", 0), ("12_all", 1)],
        *[("12_all", 1), ("12_all", 2)],
    ]
    assert found[1].parameters == {"lam": 1.0, "seed": 1}


def test_faults_of_a_grid_file_name_their_entry(tmp_path):
    write(tmp_path)
    entries = [
        {"notebook": "06_tiny.ipynb", "grids": {}},
        {"notebook": "07_none.ipynb"},
        {"grid": {}},
        {"notebook": "06_tiny.ipynb", "grid": {"seed": 1, "nam": ["a"]}},
        {"notebook": "06_tiny.ipynb", "after": "yes"},
        7,
    ]
    with pytest.raises(ValueError) as error:
        read_grid(write_grid(tmp_path / "grid.json", *entries))
    lines = str(error.value).splitlines()
    assert [line.split("entry ")[1][0] for line in lines] == list("1234456")
    for part in (
        "did you mean 'grid'",
        "07_none.ipynb: no such notebook",
        "no notebook is named",
        "did you mean 'name'",
    ):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.json: no such grid file"):
        read_grid(tmp_path / "none.json")
    for text, what in (
        ("[", "cut, damaged or no JSON"),
        ("{}", "holds an object, where a list should be"),
        ("[]", "give a list of entries"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=what):
            read_grid(tmp_path / "bad.json")


def test_names_of_folders_are_readable_and_never_shared():
    name = grid.folder_name
    assert name({}) == "stored"
    assert name({"seeds": "0,1", "lam": 0.5, "deep": True}) == "deep=true__lam=0.5__seeds=0,1"
    many = [{"a": "x_", "b": "1"}, {"a": "x", "_b": "1"}, {"a": "x__b=1"}, {"a": "x", "b": "1"}, {"a": "X", "b": "1"}]
    many += [{"a": "../x"}, {"a": "..\\x"}, {"a": "é"}, {"a": "x" * 200}, {"a": "x" * 201}, {"a": ""}, {"a": "."}]
    names = [name(parameters) for parameters in many]
    assert len({text.lower() for text in names}) == len(many)
    assert all(len(text) <= grid.LONGEST and text.isascii() and not set(text) & set("/\\: ") for text in names)
    assert not any(text.endswith(".") for text in names)


def test_the_hash_of_the_code_ignores_text_and_outputs(tmp_path):
    path = write(tmp_path, "x = 1")
    before = grid.code_hash(path)
    book = nbformat.read(path, as_version=4)
    book.cells[0].source = "# another title"
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(book, path)
    assert grid.code_hash(path) == before
    assert grid.code_hash(write(tmp_path, "x = 2")) != before


# -- a user's errors --------------------------------------------------------------------------------------------------


def test_faults_stop_a_batch_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_run_stage", refuse)
    path, out = write(tmp_path), tmp_path / "out"
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other")
    with pytest.raises(ValueError) as error:
        run(
            [Job(path, {"seed": 1}), Job(path, {"sede": 1}), Job(twin, {"seed": "1"}), Job(tmp_path / "x.ipynb", {})],
            out,
        )
    assert [part in str(error.value) for part in ("'sede'", "seed = '1'", "x.ipynb: no such", "share a folder")] == [
        True
    ] * 4
    for workers, cluster in ((0, None), (2, "tcp://somewhere:1")):
        with pytest.raises(ValueError, match=f"workers = {workers}: give 1 or more"):
            run(jobs(path), out, workers=workers, cluster=cluster)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-g", "sede", "1", "2", "-p", "lam", "high"], "no parameter 'sede'.*\n.*lam = 'high'"),
        (["-g", "seed", "1", "-g", "seed", "2"], "given twice"),
        (["-g", "seed"], "needs a list of values for seed"),
        (["more.json"], "more.json: no such grid file"),
        ([__file__], "test_batch.py is no notebook: .*cut, damaged or no JSON"),
    ],
)
def test_the_command_line_stops_before_anything_starts(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.setattr(batch, "_run_stage", refuse)
    with pytest.raises(SystemExit) as stop:
        main([str(write(tmp_path)), *words, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.search(says, capsys.readouterr().err)


def test_parameters_of_a_command_line_are_not_for_grid_files(tmp_path, capsys):
    write(tmp_path)
    path = write_grid(tmp_path / "grid.json", {"notebook": "06_tiny.ipynb"})
    with pytest.raises(SystemExit):
        main([str(path), "-p", "seed", "1"])
    assert "write those of a grid file into the file" in capsys.readouterr().err


def test_without_dask_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(batch, "_run_stage", refuse)
    with pytest.raises(ImportError, match=r'pip install "hrcf\[cluster\]"'):
        run(jobs(write(tmp_path)), tmp_path / "out", cluster="local")


def test_a_scheduler_that_does_not_answer(tmp_path):
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        for address in ("tcp://127.0.0.1:9", "nonsense://"):
            with pytest.raises(OSError, match=f"no Dask scheduler answers at {address}"):
                run(jobs(write(tmp_path)), tmp_path / "out", cluster=address)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """In place of papermill and a kernel, which take seconds to start: the cells are run in the job's own process."""
    path = tmp_path / "runner.py"
    path.write_text(INSTEAD)
    monkeypatch.setattr(batch, "RUNNER", (str(path),))


def test_a_failure_is_reported_while_others_go_on_and_done_jobs_stay(tmp_path, capsys, runner):
    write(tmp_path, RUN, 'if name == "bad": raise ValueError("seed was bad")')
    write(tmp_path, RUN, name="12_all")
    entries = [{"notebook": "06_tiny.ipynb", "grid": {"name": ["good", "bad"]}, "parameters": {"seed": 4}}]
    entries += [{"notebook": "12_all.ipynb", "parameters": {"ks": [7]}, "after": True}]
    path, out = write_grid(tmp_path / "grid.json", *entries), tmp_path / "out"
    good, bad = out / "06_tiny" / "name=good__seed=4", out / "06_tiny" / "name=bad__seed=4"

    with pytest.raises(SystemExit) as stop:
        main([str(path), "--out", str(out), "--workers", "2"])
    printed = capsys.readouterr().out
    assert stop.value.code == 1
    assert "06_tiny/name=bad__seed=4: failed" in printed and "ValueError: seed was bad" in printed
    assert "not started: of the jobs before it 1 failed" in printed
    assert counts(tmp_path) == ["bad 4", "good 4"]
    assert json.loads((good / "records" / "r.json").read_text()) == [4, "good", [3, 5], "1"], "HRCF_OUT is its folder"
    status = job_of(bad)
    assert status["status"] == "failed" and status["error"] == "ValueError: seed was bad"
    assert status["parameters"] == {"seed": 4, "name": "bad"} and status["size"] == "full" and status["seconds"] > 0
    assert "seed was bad" in (bad / "log.txt").read_text()
    assert not (out / "12_all").exists() and [*records(out)["path"]] == [good / "records" / "r.json"]

    write(tmp_path, RUN, "pass")  # fixed; it is another notebook now
    table = run(read_grid(path), out, workers=2)
    assert [*table.status] == ["done"] * 3 and [*table.notebook] == ["06_tiny", "06_tiny", "12_all"]
    assert counts(tmp_path) == ["bad 4", "bad 4", "good 4", "good 4", "mini 0"]
    (gathered,) = (out / "12_all").iterdir()
    assert json.loads((gathered / "records" / "r.json").read_text())[2] == [7]

    table = run(read_grid(path), out)
    assert [*table.status] == ["skipped"] * 3 and len(counts(tmp_path)) == 5
    status = job_of(good)
    (good / "job.json").write_text(json.dumps(status | {"size": "smoke"}))
    (good / "stays.txt").touch()
    table = run(read_grid(path), out)
    assert [*table.status] == ["done", "skipped", "done"], "what comes after a job that ran again runs again"
    assert (good / "stays.txt").exists() and set(table.columns) == set(batch.COLUMNS)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_job_that_the_system_kills_stops_no_other(tmp_path, runner):
    path = write(tmp_path, RUN, "if seed: os.kill(os.getpid(), 9)")
    table = run(jobs(path, {"seed": [0, 1]}), tmp_path / "out", workers=1)
    assert [*table.status] == ["done", "failed"]
    assert "was killed, most likely because memory ran out" in table.error[1]


@pytest.mark.slow
def test_jobs_run_at_the_same_time_and_leave_executed_notebooks(tmp_path):
    path = write(tmp_path, RUN, MEET, 'if seed: raise ValueError("seed was bad")')
    table = run(jobs(path, {"seed": [0, 1]}), tmp_path / "out", workers=2)
    assert [*table.status] == ["done", "failed"] and [*table.error] == ["", "cell 5: ValueError: seed was bad"]
    assert [*table.folder] == [str(tmp_path / "out" / "06_tiny" / f"seed={seed}") for seed in (0, 1)]
    cells = nbformat.read(Path(table.folder[1]) / "notebook.ipynb", as_version=4).cells
    errors = [o.ename for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert errors == ["ValueError"]


def kernels(batch_process: subprocess.Popen) -> list[psutil.Process]:
    return [
        p for p in psutil.Process(batch_process.pid).children(recursive=True) if "ipykernel" in " ".join(p.cmdline())
    ]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_batch_that_was_killed_goes_on(tmp_path):
    path = write(tmp_path, RUN, "while seed and not (here / 'go').exists(): time.sleep(0.05)")
    out, command = tmp_path / "out", [sys.executable, "-m", "hrcf_lib.studies.batch", str(path), "-g", "seed", "0", "1"]
    second = out / "06_tiny" / "seed=1" / "records" / "r.json"
    for kill, times in ((signal.SIGKILL, 1), (signal.SIGTERM, 2)):
        runner = subprocess.Popen([*command, "--out", str(out), "--workers", "1"], text=True, stderr=subprocess.PIPE)
        until(lambda times=times: second.is_file() and counts(tmp_path).count("mini 1") == times)
        if kill == signal.SIGKILL:
            with pytest.raises(RuntimeError, match="another batch writes to .*out: wait until it ends"):
                run(jobs(path), out)
        (kernel,) = kernels(runner)
        runner.send_signal(kill)
        said = runner.communicate(timeout=180)[1]
        until(lambda kernel=kernel: gone(kernel))
        assert job_of(second.parent.parent)["status"] == "running"
        assert counts(tmp_path) == ["mini 0"] + times * ["mini 1"], "what was done is not run again"
        second.unlink()
    assert runner.returncode == 130 and "the same command goes on" in said
    (tmp_path / "go").touch()
    table = run(jobs(path, {"seed": [0, 1]}), out)
    assert [*table.status] == ["skipped", "done"]
    assert counts(tmp_path) == ["mini 0"] + 3 * ["mini 1"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_same_batch_on_dask(tmp_path, capfd):
    """Two workers at once; one that dies is replaced, and its job is run again; a job that fails is not."""
    pytest.importorskip("distributed")
    path = write(tmp_path, RUN, MEET, DIE, "assert seed == 1, 'only one is right'")
    table = run(jobs(path, {"seed": [0, 1]}), tmp_path / "out", cluster="local")
    assert [*table.status] == ["failed", "done"] and table.error[0] == "cell 6: AssertionError: only one is right"
    assert counts(tmp_path) == ["mini 0", "mini 1", "mini 1"]
    assert "[2/2] 06_tiny/seed=" in capfd.readouterr().out
    assert job_of(tmp_path / "out" / "06_tiny" / "seed=1")["status"] == "done"


def test_the_grid_of_the_mini_studies_is_one_that_runs():
    """Each study by seed; then all seeds together from the runs that are there; what reads them; the report last."""
    found = read_grid(Path(batch.__file__).parents[2] / "notebooks" / "mini_grid.json")
    number = lambda job: job.notebook.stem[:2]
    studies = {"05", "06", "07", "08", "09", "13", "14"}
    by_seed = [(number(job), job.parameters["seeds"]) for job in found if job.stage == 0]
    assert sorted(by_seed) == sorted((name, seed) for name in studies for seed in "012")
    later = [{number(job) for job in found if job.stage == stage and not job.parameters} for stage in (1, 2, 3)]
    assert later == [studies | {"04", "11", "17", "20"}, {"18", "19"}, set()]
    (report,) = (job for job in found if job.stage == 3)
    assert number(report) == "12" and report.parameters == {"records": "../runs/grid"}
