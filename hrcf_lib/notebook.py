r"""Run a notebook headless with changed parameters; one that the notebook does not have is an error, not a warning."""

from pathlib import Path

import papermill

from hrcf_lib.names import check_known


def known_parameters(path: str | Path) -> list[str]:
    """Names set in the cell tagged ``parameters``. Raises ``FileNotFoundError``; ``ValueError`` without such a cell."""
    names = list(papermill.inspect_notebook(str(_existing(path))))
    if not names:
        raise ValueError(f"{path} has no parameters: tag the cell that sets them with 'parameters'")
    return names


def run_notebook(path: str | Path, out: str | Path, parameters: dict | None = None, cwd=None, progress=False) -> Path:
    r"""Execute ``path`` with ``parameters`` and write the executed copy to ``out``; returns ``out``.

    The kernel is ``python3``. It starts in ``cwd``, by default the folder of the notebook. Raises ``ValueError`` for a
    parameter that the notebook does not have, naming the nearest and all known ones, before anything runs;
    ``papermill.PapermillExecutionError`` if a cell fails (``out`` then shows which).
    """
    path, parameters = _existing(path), dict(parameters or {})
    check_known(parameters, known_parameters(path) if parameters else [], f"{path} has no parameter")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(path),
        str(out),
        parameters,
        kernel_name="python3",
        cwd=str(cwd or path.parent),
        progress_bar=progress,
    )
    return out


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    return Path(path)
