"""Tables of the report in a notebook: under their titles, the long ones folded."""

import pandas as pd
import pytest

from hrcf_lib.report import sections


def shown(monkeypatch, *titles, **how) -> list[str]:
    seen = []
    monkeypatch.setattr(sections, "display", lambda *objects: seen.extend(objects))
    sections.section({"a": pd.DataFrame({"x": ["one", "two"]})}, *titles, **how)
    return [one.data if hasattr(one, "data") and isinstance(one.data, str) else one.to_html() for one in seen]


def test_a_table_stands_under_its_title(monkeypatch):
    title, table = shown(monkeypatch, "a")
    assert title == "**a**" and "two" in table


def test_a_folded_table_says_how_long_it_is(monkeypatch):
    (folded,) = shown(monkeypatch, "a", folded=True)
    assert folded.startswith("<details><summary><b>a</b> (2 rows)") and "two" in folded


def test_an_unknown_title_is_an_error(monkeypatch):
    with pytest.raises(KeyError, match="Table IX"):
        shown(monkeypatch, "Table IX")
