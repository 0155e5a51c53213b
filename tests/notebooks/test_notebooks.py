"""The notebooks keep to one skeleton, and what they store is what their records say."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from hrcf_lib.studies import records

NOTEBOOKS = sorted((records.REPOSITORY / "notebooks").glob("*.ipynb"))
RECORDED = [
    path for path in NOTEBOOKS if path.stem != "03_hierarchical_region_clues"
]  # 03 explains, it measures nothing
TITLES = [path.stem for path in NOTEBOOKS]


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, "exactly one cell is tagged 'parameters'"
    return cells[0]


def test_there_are_notebooks():
    assert {"00_quickstart", "02_mini_vlp", "03_hierarchical_region_clues", "04_alternate_training"} <= set(TITLES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=TITLES)
def test_skeleton(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size <= 1_000_000
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.stem[:2]} ")
    for promise in ("**What it is.**", "**Cost.**", "**What to expect.**"):
        assert promise in first.source, f"the first cell says nothing of {promise}"
    for source in code_of(notebook):
        assert not re.search(r"^\s*[!%]", source, re.M), "no shell or magic commands"
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef), "classes belong in hrcf_lib"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} is longer than 10 lines"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=TITLES)
def test_parameters_are_commented_literals(path):
    """papermill takes names, types and help from this cell."""
    source = parameters_cell(read(path)).source
    assert source.splitlines()
    for line in source.splitlines():
        assert re.fullmatch(r"\w+ = .+  # .+", line), f"not 'name = literal  # comment': {line}"
        ast.literal_eval(line.split("  #")[0].split(" = ", 1)[1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=TITLES)
def test_outputs_are_stored_in_order_and_without_errors(path):
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run all cells once, in order"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "readers on the web see no figure"
    assert not re.search("/(work|root|home)/", json.dumps(notebook)), "a path of one machine is stored"


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_stored_parameters_are_those_of_the_record(path):
    record = json.loads(
        (records.REPOSITORY / "notebooks" / "records" / f"{path.stem}.json").read_text(encoding="utf-8")
    )
    assert record["parameters"] == records.stored_parameters(path)


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_records_name_protocol_and_versions(path):
    record = json.loads(
        (records.REPOSITORY / "notebooks" / "records" / f"{path.stem}.json").read_text(encoding="utf-8")
    )
    for key in ("protocol", "versions", "commit", "device", "seconds", "tables"):
        assert record[key], f"{path.stem}: the record lacks {key}"


def test_hrcf_trained_from_nothing_by_another_notebook_has_the_same_scores():
    first, again = (records.read_record(name)["tables"]["runs"] for name in ("05_main_results", "20_fine_tuned_clip"))
    keys = ["variant", "seed", "setting", "split", "task"]
    for variant in ("HRCF", "Pre-CLIP"):
        one, two = (t[t["variant"].eq(variant)].set_index(keys).sort_index() for t in (first, again))
        assert len(one) == 27 and one[two.columns].equals(two)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=TITLES)
def test_it_starts_under_its_own_name_and_parameters(path, monkeypatch):
    """So that a run with other parameters does not overwrite what is stored."""
    monkeypatch.delenv("HRCF_SIZE", raising=False)
    monkeypatch.delenv("HRCF_OUT", raising=False)
    monkeypatch.setattr(records, "_current", None)
    assert f'start("{path.stem}")' in code_of(read(path))[2], "the cell after the parameters starts the run"
    stored = records.stored_parameters(path)
    assert records.start(path.stem, stored).as_stored
    assert records.out_folder() == records.REPOSITORY / "figures"
    records.start(path.stem, stored | {next(iter(stored)): "another"})
    assert records.out_folder() == records.REPOSITORY / "runs" / path.stem / "figures"
