"""Running notebooks headless: parameters arrive, and an unknown one stops the run before it starts."""

import nbformat
import numpy as np
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from hrcf_lib.studies.notebooks import known_parameters, main, run_notebook, typed

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture
def notebook(tmp_path):
    parameters = new_code_cell(
        "seed = 0  # order of pictures\nname = 'mini'  # preset", metadata={"tags": ["parameters"]}
    )
    run = new_code_cell("import os\nprint(seed + 1, name, os.path.basename(os.getcwd()))\nassert seed < 100")
    cells = [new_markdown_cell("# 99 A tiny notebook"), parameters, run]
    path = tmp_path / "here" / "99_tiny.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def printed(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells if cell.cell_type == "code" for output in cell.outputs)


def test_known_parameters(notebook, tmp_path):
    assert known_parameters(notebook) == {"seed": "0", "name": "'mini'"}
    with pytest.raises(FileNotFoundError, match="98_other.ipynb: no such notebook"):
        known_parameters(tmp_path / "98_other.ipynb")
    bare = tmp_path / "bare.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1")], metadata={"kernelspec": KERNEL}), bare)
    with pytest.raises(ValueError, match="bare.ipynb has no parameters: tag the cell"):
        known_parameters(bare)


def test_parameters_arrive(notebook, tmp_path):
    out = run_notebook(notebook, tmp_path / "new" / "out.ipynb", {"seed": 41})
    assert out == tmp_path / "new" / "out.ipynb"
    assert printed(out) == "42 mini here\n"
    assert "injected-parameters" in [
        t for c in nbformat.read(out, as_version=4).cells for t in c.metadata.get("tags", [])
    ]


def test_a_tuple_arrives_as_a_list(notebook, monkeypatch):
    given = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *words, **_: given.append(words[2]))
    notebook.write_text(notebook.read_text().replace("seed = 0", "seed = (0, 1)"))
    run_notebook(notebook, notebook.with_name("out.ipynb"), {"seed": (3, 5), "name": "a"})
    assert given == [{"seed": [3, 5], "name": "a"}], "papermill writes other types as text"


@pytest.mark.parametrize("wrong", ["3", np.int64(3), 3.0])
def test_types_are_checked_before_anything_runs(notebook, monkeypatch, wrong):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *words, **_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=r"99_tiny.ipynb: seed = .*: give a value of the kind of 0"):
        run_notebook(notebook, notebook.with_name("out.ipynb"), {"seed": wrong})


def test_a_notebook_is_not_overwritten_by_its_copy(notebook, monkeypatch):
    before = notebook.read_bytes()
    monkeypatch.setattr(papermill, "execute_notebook", lambda *words, **_: pytest.fail("it ran"))
    link = notebook.with_name("link.ipynb")
    link.symlink_to(notebook)
    for out in (notebook, notebook.parent / ".." / "here" / notebook.name, link):
        with pytest.raises(ValueError, match="is the notebook itself, which would be overwritten"):
            run_notebook(notebook, out)
        with pytest.raises(SystemExit):
            main([str(notebook), str(out)])
    assert notebook.read_bytes() == before


def test_values_take_the_type_of_the_stored_ones():
    def value(stored, given, word=False):
        return typed("n.ipynb", {"x": stored}, "x", given, word)

    assert [value("0.5", given) for given in (1, 2.5)] == [1.0, 2.5] and isinstance(value("0.5", 1), float)
    assert value("(3, 5)", [1]) == [1] and value("(3, 5)", "(1, 2)", word=True) == (1, 2)
    assert value("'text'", "1", word=True) == "1" and value("0", "3", word=True) == 3
    for stored, given in (("0", True), ("0", 1.0), ("0", "1"), ("0", None), ("'a'", [1]), ("0.5", True)):
        with pytest.raises(ValueError, match="n.ipynb: x = .*: give a value of the kind of"):
            value(stored, given)
    for word in ("three", "1.5", "True", "1 +", "{[]: 1}"):
        with pytest.raises(ValueError, match="x = .*: give a value of the kind of 0"):
            value("0", word, word=True)
    with pytest.raises(ValueError, match="x = 2 [*] y in the notebook is not a plain value"):
        value("2 * y", 1)
    with pytest.raises(ValueError, match="n.ipynb has no parameter 'y'; known: x"):
        typed("n.ipynb", {"x": "0"}, "y", 1)


def test_an_unknown_parameter_is_an_error_before_anything_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", None)
    with pytest.raises(ValueError, match="has no parameter 'sede'; did you mean 'seed'. known: seed, name"):
        run_notebook(notebook, tmp_path / "out.ipynb", {"name": "mini", "sede": 1})
    with pytest.raises(ValueError, match="has no parameter 'zzz'; known: seed, name"):
        run_notebook(notebook, tmp_path / "out.ipynb", {"zzz": 1})
    with pytest.raises(FileNotFoundError):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_cell_is_an_error_and_can_be_looked_at(notebook, tmp_path):
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="AssertionError"):
        run_notebook(notebook, out, {"seed": 100}, cwd=tmp_path)
    assert printed(out).startswith(f"101 mini {tmp_path.name}")


def test_the_command_line_stops_before_anything_runs(notebook, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(notebook), str(tmp_path / "out.ipynb"), "-p", "sede", "1"])
    assert stop.value.code == 2 and "no parameter 'sede'; did you mean 'seed'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none.ipynb"), str(tmp_path / "out.ipynb")])
    assert stop.value.code == 2 and "none.ipynb: no such notebook" in capsys.readouterr().err


def test_the_command_line_says_in_one_line_why_a_notebook_failed(notebook, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([str(notebook), str(tmp_path / "out.ipynb"), "-p", "seed", "104", "-p", "name", "3,4"])
    assert stop.value.code == "cell 3: AssertionError:" and printed(tmp_path / "out.ipynb").startswith("105 3,4")


def test_files_that_are_no_notebooks(tmp_path):
    for text in ("{", "[]", "{}"):
        (tmp_path / "a.ipynb").write_text(text)
        for parameters in ({}, {"seed": 1}):
            with pytest.raises(ValueError, match="a.ipynb is no notebook: "):
                run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", parameters)
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of the copy, such as .*a.ipynb"):
        run_notebook(tmp_path / "a.ipynb", tmp_path)
