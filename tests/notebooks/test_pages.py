"""What the pages say is so: links lead somewhere, commands and names exist, numbers are those of the records."""

import ast
import fnmatch
import importlib
import importlib.util
import json
import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from hrcf_lib.data import mojiscenes

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("", "figures", "notebooks", "papers", "hrcf_lib", "hrcf_lib/*")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md".lstrip("/")))
TITLES = [str(page.relative_to(ROOT)) for page in PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHODS = {
    "plain VLP": "Pre-CLIP",
    "HRCF, open votes (ours)": "open votes",
}  # what the README calls a variant of the record


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Everything from ``python -m hrcf_lib...`` to the end of the code that it stands in, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split("  #")[0] for line in re.findall(r"python -m (hrcf_lib[^`\n)]*)", text)]


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose first header cell is ``first``."""
    table = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_links_lead_to_files_of_the_repository(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r"^\[\w+\]: (\S+)$", text, re.MULTILINE)
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_commands_name_programs_and_options_that_exist(page):
    for command in commands(page):
        name = command.split()[0].rstrip(".,;:")
        spec = importlib.util.find_spec(name)
        program = Path(spec.origin)
        if spec.submodule_search_locations:
            program = program.with_name("__main__.py")
        source = program.read_text(encoding="utf-8")
        assert program.name == "__main__.py" or '__name__ == "__main__"' in source, f"{name} is no program"
        family = "".join(path.read_text(encoding="utf-8") for path in program.parent.glob("*.py"))
        for option in re.findall(r"\s(--?[a-z][\w-]*)", command):
            assert f'"{option}"' in family, f"{command}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_python_on_a_page_uses_names_that_exist(page):
    for block in blocks(page, "python"):
        modules = {}
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("hrcf_lib"):
                home = importlib.import_module(node.module)
                for name in node.names:
                    modules[name.asname or name.name] = attribute(home, name.name)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                attribute(modules[node.value.id], node.attr)


def attribute(home, name: str):
    """An attribute or a submodule; a test that asks for another one fails."""
    if not hasattr(home, name):
        assert hasattr(home, "__path__"), f"{home} has no {name}"
        return importlib.import_module(f"{home.__name__}.{name}")
    return getattr(home, name)


@pytest.mark.parametrize("page", PAGES, ids=TITLES)
def test_modules_named_on_a_page_exist(page):
    for name in set(re.findall(r"`(hrcf_lib(?:\.[a-z_]+)+)", page.read_text(encoding="utf-8"))):
        home, _, last = name.rpartition(".")
        attribute(importlib.import_module(home), last)


def test_the_readme_can_be_read_in_a_terminal():
    lines = README.splitlines()
    assert len(lines) <= 140 and max(map(len, lines)) <= 160
    assert max(line.count("|") - 1 for line in lines if line.startswith("|")) <= 5


def test_results_of_the_readme_are_those_of_the_records():
    tables = [
        pd.DataFrame(json.loads((ROOT / f"notebooks/records/{name}.json").read_text("utf-8"))["tables"]["runs"])
        for name in ("05_main_results", "19_beyond")
    ]
    runs = pd.concat([tables[0], tables[1].query("variant == 'open votes'")])
    runs = runs[(runs["setting"] == "") & (runs["split"] == "test")]
    spread = runs.groupby(["variant", "task"])[["F1@3", "mAP"]].agg(["mean", "std"])
    table = rows(README, "method")
    assert len(table) == 6
    for name, *cells in table:
        for cell, (task, metric) in zip(cells, product(("ZSL", "GZSL"), ("F1@3", "mAP")), strict=True):
            mean, std = spread.loc[(METHODS.get(name, name), task), metric]
            assert cell.strip("*") in (f"{mean:.1f} ± {std:.1f}", f"{mean:.1f}"), f"{name}, {task} {metric}"


def test_three_lines_of_python_do_what_the_readme_says(tmp_path, monkeypatch, capsys):
    mojiscenes.export(mojiscenes.MojiScenes("test", 2), tmp_path / "moji")
    (tmp_path / "moji" / "images").rename(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    lines = blocks(ROOT / "README.md", "python")[0].splitlines()
    photographs = [line for line in lines if 'model="ViT-B-16"' in line]  # needs a download
    assert len(photographs) == 1
    exec("\n".join(line for line in lines if line not in photographs), {})
    assert "owl" in capsys.readouterr().out


def test_every_notebook_and_every_figure_is_listed():
    notebooks, figures = (ROOT / folder / "README.md" for folder in ("notebooks", "figures"))
    text = notebooks.read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "notebooks").glob("*.ipynb") if f"({path.name})" not in text]
    patterns = re.findall(r"`([\w*]+)`", figures.read_text(encoding="utf-8"))
    named = {path.stem for path in (ROOT / "figures").glob("*.*g")}
    assert not [name for name in named if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


@pytest.mark.parametrize("package", ["apply", "data", "engine", "figures", "methods", "report", "speed", "studies"])
def test_every_package_has_a_page(package):
    assert (ROOT / "hrcf_lib" / package / "README.md").is_file()
