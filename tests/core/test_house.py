"""How the library is built: the paper at the top, and imports that can be read at the head of a file."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "hrcf_lib"
PAPER = ("config", "labels", "vlp", "regions", "prompts", "scores", "losses", "method", "model", "training", "metrics")
PAPER += ("protocols", "evaluation", "pretrained")


def test_the_top_level_is_the_paper_and_nothing_else():
    assert {path.stem for path in LIBRARY.glob("*.py")} == {*PAPER, "__init__"}


def test_each_package_has_a_page_and_a_folder_of_tests():
    packages = [path for path in LIBRARY.iterdir() if (path / "__init__.py").is_file()]
    assert {path.name for path in packages} == {
        *("engine", "data", "methods", "studies", "apply", "figures", "report", "speed")
    }
    for path in packages:
        assert (path / "README.md").is_file(), f"{path.name} has no README.md"
        assert any((LIBRARY.parent / "tests" / path.name).glob("test_*.py")), f"tests/{path.name} has no test"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_no_function_imports_a_part_of_the_library(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name.split(".")[0] == "hrcf_lib"
    ]
    assert not late, f"lines {late}: import at the head of the file"
