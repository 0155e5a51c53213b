"""Studies: experiments in variants and seeds, what each scores, and what the differences are worth.

The names of ``runs`` are imported when first used, so that notebooks and batches start without loading everything.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hrcf_lib.studies.runs import (
        AS_TRAINED,
        Outcome,
        choices,
        launch,
        run,
        run_all,
        run_name,
        scored,
        search,
        seconds,
        shelf,
        sources,
        trained,
    )

__all__ = ["AS_TRAINED", "Outcome", "choices", "launch", "run", "run_all", "run_name", "scored", "search", "seconds"]
__all__ += ["shelf", "sources", "trained"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hrcf_lib.studies.runs"), name)
