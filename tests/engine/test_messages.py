"""Parts of messages."""

import pandas as pd
import pytest

from hrcf_lib.engine import messages


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known_ones():
    messages.check_known(["cat"], ["cat", "dog"], "unknown label")
    with pytest.raises(ValueError, match="^unknown label 'cta'; did you mean 'cat'. known: cat, dog$"):
        messages.check_known(["dog", "cta"], ["cat", "dog"], "unknown label")
    with pytest.raises(ValueError, match="^unknown label 'zebra'; known: cat, dog$"):
        messages.check_known(["zebra"], ["cat", "dog"], "unknown label")


def test_long_lists_are_cut_and_counted():
    assert messages.list_some(range(5)) == "0, 1, 2, 3, 4"
    assert messages.list_some(range(7)) == "0, 1, 2, 3, 4, and 2 more"
    assert messages.list_some("abc", separator="; ", most=1) == "a; and 2 more"


def test_missing_columns_and_rows_are_named():
    frame = pd.DataFrame({"a": [1]})
    messages.need(frame, ["a"], "bars")
    with pytest.raises(ValueError, match="bars: the frame has no column 'b', only a"):
        messages.need(frame, ["a", "b"], "bars")
    with pytest.raises(ValueError, match="bars: the frame has no rows"):
        messages.need(frame[:0], ["a"], "bars")
