"""Studies: experiments in variants and seeds, what each scores, and what the differences are worth."""

from hrcf_lib.studies.runs import (
    AS_TRAINED,
    Outcome,
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
