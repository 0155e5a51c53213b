"""Statistics that notebook 01 shows."""

import numpy as np
import pytest
import torch

from hrcf_lib.data.doctor import co_occurrence, near_names
from hrcf_lib.data.official.checks import label_list
from hrcf_lib.labels import LabelSpace


class Annotated:
    def __init__(self, labels, names):
        self.rows, self.labels = torch.tensor(labels), LabelSpace(names)

    def __len__(self):
        return len(self.rows)

    def label_vector(self, index):
        return self.rows[index]


def test_near_names_by_hand():
    space = LabelSpace(["Cats", "bear", "bus stop", "car"], ["cat", "polar bear", "stop", "scar", "dog"])
    rows = near_names(space).to_records(index=False).tolist()
    assert rows == [("cat", "Cats", "final s"), ("polar bear", "bear", "words of"), ("stop", "bus stop", "words of")]


def test_the_30_plurals_of_nus_wide():
    space = LabelSpace(label_list("nus_wide_seen925.txt"), label_list("nus_wide_unseen81.txt"))
    found = near_names(space)
    assert found[found.why == "final s"].unseen.nunique() == 30
    assert ("cat", "cats") in set(zip(found.unseen, found.seen))


def test_co_occurrence_by_hand():
    data = Annotated([[1, 1, -1], [1, -1, -1], [1, 1, 0], [-1, 1, -1]], ["a", "b", "c"])
    table = co_occurrence(data, ["b", "a"])
    assert table.loc["a", "b"] == pytest.approx(2 / 3) and table.loc["b", "a"] == pytest.approx(2 / 3)
    assert table.loc["a", "a"] == 1
    assert np.isnan(co_occurrence(data, ["c"]).iloc[0, 0])
    assert co_occurrence(data, ["a", "b"], most=1).shape == (2, 2)
