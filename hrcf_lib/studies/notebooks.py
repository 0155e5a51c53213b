r"""Run a notebook headless with changed parameters; one that the notebook does not have is an error, not a warning.

python -m hrcf_lib.studies.notebooks notebooks/00_quickstart.ipynb out.ipynb -p seed 1 -p labels "owl,night"
"""

import argparse
import ast
import os
from contextlib import contextmanager
from pathlib import Path

import papermill

from hrcf_lib.engine.messages import check_known

START = 300  # seconds that a kernel may take to start: papermill's 60 are too few on a machine full of jobs


def known_parameters(path: str | Path) -> list[str]:
    """Names set in the cell tagged ``parameters``. Raises ``FileNotFoundError``; ``ValueError`` without such a cell."""
    return list(defaults(path))


def defaults(path: str | Path) -> dict[str, str]:
    """Each parameter and its stored value as it is written in the notebook. Raises as ``known_parameters``."""
    found = papermill.inspect_notebook(str(existing(path)))
    if not found:
        raise ValueError(f"{path} has no parameters: tag the cell that sets them with 'parameters'")
    return {name: told["default"] for name, told in found.items()}


def run_notebook(path: str | Path, out: str | Path, parameters: dict | None = None, cwd=None, progress=False) -> Path:
    r"""Execute ``path`` with ``parameters`` and write the executed copy to ``out``; returns ``out``.

    The kernel is ``python3``. It starts in ``cwd``, by default the folder of the notebook. Raises ``ValueError`` for a
    parameter that the notebook does not have, naming the nearest and all known ones, before anything runs;
    ``papermill.PapermillExecutionError`` if a cell fails (``out`` then shows which). A tuple arrives as a list:
    papermill would write it as text. Figures are drawn into the copy, also where ``MPLBACKEND`` says otherwise.
    """
    path, parameters = existing(path), dict(parameters or {})
    check_known(parameters, known_parameters(path) if parameters else [], f"{path} has no parameter")
    parameters = {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _figures_inline():
        papermill.execute_notebook(
            str(path),
            str(out),
            parameters,
            kernel_name="python3",
            start_timeout=START,
            cwd=str(cwd or path.parent),
            progress_bar=progress,
        )
    return out


@contextmanager
def _figures_inline():
    """The kernel inherits ``MPLBACKEND``; a shell without a screen often sets one that shows no figure."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    try:
        yield
    finally:
        os.environ.pop("MPLBACKEND")
        if before is not None:
            os.environ["MPLBACKEND"] = before


def existing(path: str | Path) -> Path:
    """The path of a notebook. Raises ``FileNotFoundError``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    return Path(path)


def typed(path: str | Path, pairs) -> dict:
    """Parameters from words of a command line, in the types of the notebook's own; text stays text.

    Raises ``ValueError`` for an unknown parameter or a word that is not of the type.
    """
    stored = defaults(path) if pairs else {}
    check_known([name for name, _ in pairs], list(stored), f"{path} has no parameter")
    return {name: from_word(name, text, stored[name]) for name, text in pairs}


def from_word(name: str, text: str, stored: str):
    """One value from a word of a command line, where the notebook has ``stored``. Raises ``ValueError``."""
    if isinstance(_literal(name, stored), str):
        return text
    try:
        return checked(name, ast.literal_eval(text), stored)
    except (ValueError, SyntaxError, TypeError):
        raise _unfit(name, text, stored) from None


def checked(name: str, value, stored: str):
    """``value`` in the type of what the notebook has, ``stored``: a float takes an int, and a tuple a list (JSON's).

    Raises ``ValueError`` for a value of another type.
    """
    default = _literal(name, stored)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return value
    if type(value) is not type(default):
        raise _unfit(name, value, stored)
    return value


def _unfit(name: str, given, stored: str) -> ValueError:
    return ValueError(f"{name} = {given!r}: give a value of the kind of {_literal(name, stored)!r}")


def _literal(name: str, stored: str):
    try:
        return ast.literal_eval(stored)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{name} = {stored} in the notebook is not a plain value: write one, so that types are known"
        ) from None


def main(words=None) -> None:
    """The command line; an error of the user's ends it with one line that says what to mend."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.studies.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path, help="the executed copy")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    given = parser.parse_args(words)
    try:
        run_notebook(given.notebook, given.out, typed(given.notebook, given.p), progress=True)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
