r"""Run a notebook headless with changed parameters; one that the notebook does not have is an error, not a warning.

python -m hrcf_lib.studies.notebooks notebooks/00_quickstart.ipynb out.ipynb -p seed 1 -p labels "owl,night"
"""

import argparse
import ast
import os
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import papermill

from hrcf_lib.engine.files import make_folder, read_json
from hrcf_lib.engine.messages import check_known
from hrcf_lib.engine.parents import end_with_parent

START = 300  # seconds that a kernel may take to start: papermill's 60 are too few on a machine full of jobs
INLINE = "module://matplotlib_inline.backend_inline"  # a shell without a screen often sets one that shows no figure


def checked(path: str | Path) -> Path:
    """The path of a notebook. Raises ``FileNotFoundError``, and ``ValueError`` where the file is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    try:
        is_one = isinstance(read_json(path).get("cells"), list)
    except ValueError as error:
        raise ValueError(f"{path} is no notebook: {error}") from error
    if not is_one:
        raise ValueError(f"{path} is no notebook: it has no list of cells")
    return Path(path)


def known_parameters(path: str | Path) -> dict[str, str]:
    """Each parameter of a notebook and its value, as the cell tagged ``parameters`` spells it.

    Raises ``FileNotFoundError``; ``ValueError`` where there is no such cell.
    """
    found = papermill.inspect_notebook(str(checked(path)))
    if not found:
        raise ValueError(f"{path} has no parameters: tag the cell that sets them with 'parameters'")
    return {name: about["default"] for name, about in found.items()}


def typed(path: str | Path, known: dict[str, str], name: str, value, word: bool = False):
    """A parameter's value in the type of the notebook's own, where a float takes an int, and a tuple a list.

    With ``word`` the value is a word of a command line: text stays text, anything else is a Python literal.

    Raises:
        ValueError: a parameter that is not ``known`` (``known_parameters``), a value of another type, or a notebook
            that stores something other than a plain value.
    """
    check_known([name], list(known), f"{path} has no parameter")
    try:
        stored = ast.literal_eval(known[name])
    except (ValueError, SyntaxError):
        reason = "in the notebook is not a plain value: write one, so that types are known"
        raise ValueError(f"{path}: {name} = {known[name]} {reason}") from None
    given = value
    if word and not isinstance(stored, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            pass  # it stays text, which is the wrong type
    if isinstance(stored, float) and type(value) is int:
        return float(value)
    if type(value) is type(stored) or isinstance(stored, tuple) and isinstance(value, list):
        return value
    raise ValueError(f"{path}: {name} = {given!r}: give a value of the kind of {stored!r}")


def run_notebook(path: str | Path, out: str | Path, parameters: dict | None = None, cwd=None, progress=False) -> Path:
    r"""Execute ``path`` with ``parameters`` and write the executed copy to ``out``; returns ``out``.

    The kernel is ``python3``. It starts in ``cwd``, by default the folder of the notebook. A tuple arrives as a list:
    papermill would write it as text. Figures are drawn into the copy, even where ``MPLBACKEND`` says otherwise.

    Raises:
        ValueError: the notebook has no such parameter (the message names the nearest and all known ones), or one of
            another type (``typed``); or ``out`` is the notebook itself.
        papermill.PapermillExecutionError: a cell failed; ``out`` shows which.
    """
    path, out, parameters = checked(path), Path(out), parameters or {}
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: give the name of the copy, such as {out / path.name}")
    if parameters:
        known = known_parameters(path)
        check_known(parameters, list(known), f"{path} has no parameter")
        parameters = {name: typed(path, known, name, value) for name, value in parameters.items()}
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out} is the notebook itself, which would be overwritten: give another name for the copy")
    parameters = {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
    make_folder(out.parent)
    how = {"kernel_name": "python3", "start_timeout": START, "progress_bar": progress}
    with patch.dict(os.environ, MPLBACKEND=INLINE):  # the kernel inherits it
        papermill.execute_notebook(str(path), str(out), parameters, cwd=str(cwd or path.parent), **how)
    return out


def in_words(failure: Exception) -> str:
    """One line on why a notebook failed, such as ``cell 4: ValueError: seed was bad``."""
    if isinstance(failure, papermill.PapermillExecutionError):
        words = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    else:
        words = f"{type(failure).__name__}: {failure}"
    return " ".join(words.split())


def main(words=None) -> None:
    """The command line. It exits with 1 if a cell fails, and with 2 for a user's error, in one line."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.studies.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path, help="the executed copy")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--end-with-parent", action="store_true", help="stop once standard input closes (for batches)")
    given = parser.parse_args(words)
    if given.end_with_parent:
        end_with_parent()  # and the kernel with it
    try:
        known = known_parameters(given.notebook) if given.p else {}
        parameters = {name: typed(given.notebook, known, name, word, word=True) for name, word in given.p}
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    try:
        run_notebook(given.notebook, given.out, parameters, progress=True)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    except Exception as failure:  # whatever a notebook raises is its outcome
        traceback.print_exc()
        sys.exit(in_words(failure))


if __name__ == "__main__":
    main()
