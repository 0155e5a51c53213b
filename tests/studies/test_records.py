"""Records: whole or not at all, the same when read back, with how they were made; published numbers; tables."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hrcf_lib import config
from hrcf_lib.studies import records
from hrcf_lib.studies.records import mean_and_spread, out_folder, published, read_record, record

PUBLISHED = sorted(p.stem for p in (records.REPOSITORY / "papers" / "published").glob("*.csv"))


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A repository of its own; the published numbers stay those of the real one."""
    for name in ("HRCF_SIZE", "HRCF_OUT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "papers").mkdir()
    for path in (records.REPOSITORY / "papers" / "published").glob("*.csv"):
        target = tmp_path / "papers" / "published" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    return tmp_path


def table():
    rows = {"ZSL": {"mAP": 25.123456789, "images": 10}, "GZSL": {"mAP": float("nan"), "images": 10}}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def test_round_trip(repository):
    path = record("04_run", {"seed": 0, "ks": (3, 5)}, {"Table V": table()}, 12.34, "mAP: zero", note="é")
    assert path == repository / "notebooks" / "records" / "04_run.json"
    back = read_record("04_run")
    assert back["parameters"] == {"seed": 0, "ks": [3, 5]}
    assert (back["seconds"], back["protocol"], back["note"]) == (12.3, "mAP: zero", "é")
    frame = back["tables"]["Table V"].set_index("task")
    pd.testing.assert_frame_equal(frame, table(), check_dtype=False)
    assert read_record("04_run", path.parent)["name"] == "04_run"


def test_a_record_says_how_it_was_made():
    back = read_record(record("r", {}, {}, 1.0, "p").stem)
    assert set(back) >= {"name", "parameters", "protocol", "seconds", "date", "device", "commit", "python", "versions"}
    assert set(back["versions"]) == set(records.PACKAGES)
    assert back["versions"]["torch"] == torch.__version__ or back["versions"]["torch"] in torch.__version__
    assert back["device"] == records.device() != ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", back["date"])


def test_commit(tmp_path):
    assert records.commit(tmp_path) == "unknown", "outside a repository"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", records.commit(root))


def test_a_record_is_whole_or_not_there(monkeypatch):
    path = record("r", {"n": 1}, {}, 1.0, "p")
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record("r", {"n": 2}, {}, 1.0, "p")
    assert path.read_bytes() == before
    monkeypatch.undo()


def test_values_that_json_does_not_know():
    path = record(
        "r", {"n": np.int64(3), "x": torch.tensor(0.5), "path": Path("a"), "many": np.arange(2)}, {}, 1.0, "p"
    )
    assert json.loads(path.read_text("utf-8"))["parameters"] == {"n": 3, "x": 0.5, "path": "a", "many": "[0 1]"}


def test_an_index_is_kept():
    many = pd.DataFrame({"mAP": [1.0, 2.0]}, index=pd.MultiIndex.from_tuples([("a", 0), ("a", 1)], names=["m", "seed"]))
    plain = pd.DataFrame({"mAP": [1.0, 2.0]})
    nameless = pd.DataFrame({"mAP": [1.0]}, index=["row"])
    record("r", {}, {"many": many, "plain": plain, "nameless": nameless}, 1.0, "p")
    tables = read_record("r")["tables"]
    assert tables["many"].columns.tolist() == ["m", "seed", "mAP"]
    assert tables["plain"].columns.tolist() == ["mAP"]
    assert tables["nameless"].columns.tolist() == ["index", "mAP"]


def test_a_missing_record_says_what_makes_it():
    with pytest.raises(FileNotFoundError, match="run the notebook 09_hyperparameters first"):
        read_record("09_hyperparameters")


def test_out_folder(repository, monkeypatch):
    assert out_folder() == repository / "figures"
    assert out_folder("records") == repository / "notebooks" / "records"
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    assert out_folder() == repository / "runs" / "smoke" / "figures"
    assert out_folder("records") == repository / "runs" / "smoke" / "records"
    with pytest.raises(ValueError, match="unknown kind 'record'"):
        out_folder("record")


def test_without_the_repository_the_working_directory_takes_its_place(repository, monkeypatch):
    monkeypatch.setattr(records, "REPOSITORY", repository / "site-packages")
    monkeypatch.chdir(repository)
    assert out_folder() == Path.cwd() / "figures"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_can_be_read(name):
    frame = published(name)
    assert len(frame) and not frame.columns.str.startswith("Unnamed").any()


def test_published_numbers_are_as_printed():
    frame = published("hrcf_table5_preclip")
    row = frame[(frame.model == "HRCF") & (frame.task == "ZSL")].iloc[0]
    assert row["mAP"] == 45.8 and row["F1@3"] == 38.7


def test_an_unknown_published_table_lists_the_known_ones(repository):
    with pytest.raises(FileNotFoundError, match="no published table 'table9'; known: .*hrcf_table1_sota"):
        published("table9")
    for path in (repository / "papers" / "published").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="not of the installed library"):
        published("hrcf_table1_sota")


# -- several seeds -----------------------------------------------------------------------------------------------------


def frames(*values):
    return [pd.DataFrame({"mAP": [v, 2 * v]}, index=pd.Index(["ZSL", "GZSL"], name="task")) for v in values]


def test_mean_and_spread():
    got = mean_and_spread(frames(1.0, 2.0, 4.5))
    assert got.loc["ZSL", "mAP"] == f"{np.mean([1, 2, 4.5]):.1f} ± {np.std([1, 2, 4.5], ddof=1):.1f}" == "2.5 ± 1.8"
    assert got.loc["GZSL", "mAP"] == "5.0 ± 3.6"
    assert got.index.name == "task"


def test_one_seed_has_no_spread():
    assert mean_and_spread(frames(1.25))["mAP"].tolist() == ["1.2", "2.5"]


def test_rows_are_matched_by_name():
    a, b = frames(1.0, 3.0)
    got = mean_and_spread([a, b.iloc[::-1]])
    assert got["mAP"].tolist() == ["2.0 ± 1.4", "4.0 ± 2.8"]
    many = [pd.concat({"HRCF": f, "plain": f + 1}, names=["model"]) for f in (a, b)]
    assert mean_and_spread(many).loc[("plain", "ZSL"), "mAP"] == "3.0 ± 1.4"


def test_different_tables_are_refused():
    a, b = frames(1.0, 3.0)
    with pytest.raises(ValueError, match="differ in their index"):
        mean_and_spread([a, b.iloc[:1]])
    with pytest.raises(ValueError, match="differ in their columns"):
        mean_and_spread([a, b.rename(columns={"mAP": "F1"})])


# -- a run of a notebook -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(repository, monkeypatch):
    """A notebook of three parameters; no run is current, before and after."""
    monkeypatch.setattr(records, "_current", None)
    lines = ["seeds = '0,1,2'  # of the weights\n", "preset = 'mini'  # of config\n", "vlp_weights = ''  # of the VLP"]
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": lines}
    (repository / "notebooks").mkdir(exist_ok=True)
    (repository / "notebooks" / "99_tiny.ipynb").write_text(json.dumps({"cells": [cell]}))
    return {"seeds": "0,1,2", "preset": "mini", "vlp_weights": ""}


def test_only_the_stored_parameters_make_the_stored_record(repository, tiny):
    assert records.start("99_tiny", tiny | {"other": 1}).parameters == tiny, "the tagged cell names the parameters"
    assert out_folder("records") == repository / "notebooks" / "records"
    records.start("99_tiny", tiny | {"seeds": "1"})
    assert out_folder("records") == repository / "runs" / "99_tiny" / "records"
    assert out_folder() == repository / "runs" / "99_tiny" / "figures"
    records.start("98_other", {"seed": 0})
    assert out_folder() == repository / "runs" / "98_other" / "figures"
    records.start("99_tiny", tiny)
    assert out_folder() == repository / "figures"


def test_a_run_reads_the_variables_of_its_caller(tiny):
    """As in a kernel, whose cells share their globals; papermill sets them in a cell after the stored one."""
    cells = tiny | {"seeds": "3,4", "start": records.start, "np": np, "_i1": "seeds = '0'"}
    exec("run = start('99_tiny')", cells)
    assert cells["run"].parameters == tiny | {"seeds": "3,4"}
    exec("run = start('98_no_such_file')", cells)
    assert cells["run"].parameters == tiny | {"seeds": "3,4"}, "all plain values, where no file names them"
    assert not cells["run"].as_stored
    with pytest.raises(ValueError, match="99_tiny: preset, vlp_weights not set: run the cell tagged 'parameters'"):
        records.start("99_tiny", {"seeds": "0"})


def test_sizes_and_folders(repository, tiny, monkeypatch):
    run = records.start("99_tiny", tiny)
    assert (run.seeds, run.pick(1000, smoke=20), run.smoke) == ([0, 1, 2], 1000, False)
    assert run.folder == repository / "runs" / "99_tiny"
    assert (run.runs, run.cache) == (repository / "runs" / "studies", repository / "runs" / "features")
    assert records.start("99_tiny", tiny | {"preset": "nus_wide"}).folder == repository / "runs" / "99_tiny-nus_wide"
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    run = records.start("99_tiny", tiny)
    assert (run.seeds, run.pick(1000, smoke=20), run.smoke) == ([0], 20, True)
    assert run.folder == repository / "runs" / "smoke" / "99_tiny"
    assert run.runs == repository / "runs" / "smoke" / "studies"


def test_the_config_has_the_parameters_that_are_named_like_its_fields(tiny):
    assert records.start("99_tiny", tiny).config() == config.mini()
    run = records.start("98_other", {"preset": "mini", "data_seed": 3, "vlp_weights": "file", "seeds": "7"})
    assert run.config() == config.mini().replace(data_seed=3, vlp_weights="file")
    assert run.config("mini_short", lam=0.1) == config.mini_short().replace(data_seed=3, vlp_weights="file", lam=0.1)


def test_save_writes_the_record_of_the_start(repository, tiny, capsys):
    run = records.start("99_tiny", tiny)
    run.save({"t": table()}, protocol="mAP: zero", note=1)
    assert capsys.readouterr().out == "record: 99_tiny.json\n"
    back = read_record("99_tiny", repository / "notebooks" / "records")
    assert (back["parameters"], back["protocol"], back["note"]) == (tiny, "mAP: zero", 1)
    assert 0 <= back["seconds"] < 60
    run.save({}, protocol="p", seconds=7.25)
    assert read_record("99_tiny")["seconds"] == 7.2


def test_a_folder_named_in_the_environment_takes_all(repository, tiny, monkeypatch):
    records.start("99_tiny", tiny | {"seeds": "1"})
    monkeypatch.setenv("HRCF_OUT", str(repository / "job"))
    for size in ("full", "smoke"):
        monkeypatch.setenv("HRCF_SIZE", size)
        assert out_folder() == repository / "job" / "figures"
        assert record("r", {}, {}, 1.0, "p") == repository / "job" / "records" / "r.json"
    with pytest.raises(ValueError, match="unknown kind 'record'"):
        out_folder("record")
    monkeypatch.setenv("HRCF_OUT", "")
    assert out_folder() == repository / "runs" / "smoke" / "figures"


@pytest.mark.parametrize("text", ["[]", "{}", '{"tables": [1]}', '{"tables": {"a": 3}}', '{"tables"', "[" * 100_000])
def test_a_record_that_is_none_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="a.json (is no record|cannot be read)"):
        records.read_record("a", tmp_path)


@pytest.mark.parametrize("record", [{"rehearsal": False, "stages": None}, {"rehearsal": False, "stages": {"a": 3}}])
def test_a_record_of_a_gpu_of_another_kind_is_named(tmp_path, record):
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="gpu.json is no record of a GPU: its stages are .*; measure again"):
        records.gpu_record(tmp_path)
    (tmp_path / "gpu.json").write_text("{}")
    assert records.gpu_record(tmp_path) is None
