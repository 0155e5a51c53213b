"""Parts of messages."""

import os
from pathlib import Path

import numpy as np
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
    with pytest.raises(TypeError, match="bars takes a frame with the columns a, not a list"):
        messages.need([], ["a"], "bars")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_kind(value):
    found = messages.whole_number("top_k", value, 1, 3)
    assert found == 3 and type(found) is int
    for wrong in (0, 4, 3.0, True, "3", None, np.float64(3), np.True_):
        with pytest.raises(ValueError, match=r"top_k = .*: give a whole number from 1 to 3, or leave it out$"):
            messages.whole_number("top_k", wrong, 1, 3, ", or leave it out")


def test_names_that_are_not_utf8_can_be_printed():
    name = os.fsdecode(b"caf\xe9.png")
    assert messages.printable(name) == messages.printable(Path(name)) == "caf\\xe9.png"
    assert messages.printable("café.png") == "café.png" and messages.printable("a.png") == "a.png"


def test_a_warning_names_the_caller_outside():
    with pytest.warns(UserWarning, match="careful") as told:
        messages.tell("careful")
    assert told[0].filename == __file__


def test_a_name_in_another_case_is_the_nearest():
    assert messages.did_you_mean("vit-b-16", ["ViT-S-16", "ViT-B-16"], "") == "did you mean 'ViT-B-16'?"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "out is a NoneType: give a path"),
        (["a"], "out is a list"),
        (b"a", "out is a bytes"),
        ("", "out is an empty text"),
        (" ", "out is an empty text"),
        ("https://x.org/a", "out is the address 'https://x.org/a', and nothing is downloaded"),
        (Path("https://x.org/a"), "is the address"),
        ("www.x.org", "is the address"),
    ],
)
def test_what_is_no_path_is_told(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        messages.user_path(value, "out")
    assert messages.user_path("~", "out") == Path.home() and messages.user_path("C:/a", "out") == Path("C:/a")
