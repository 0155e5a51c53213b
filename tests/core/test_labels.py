"""Label names are checked, and every column belongs to exactly one side."""

import dataclasses
import doctest
import hashlib

import pytest
import torch

import hrcf_lib.labels
from hrcf_lib.labels import TASKS, LabelSpace, check_names, check_scores

SPACE = LabelSpace(seen=["cat", "dog", "sea"], unseen=("polar bear", "kite"))


def test_names_are_seen_then_unseen():
    assert SPACE.names == ("cat", "dog", "sea", "polar bear", "kite")
    assert SPACE.seen == ("cat", "dog", "sea") and SPACE.unseen == ("polar bear", "kite")
    assert SPACE.n_seen == 3


@pytest.mark.parametrize(
    ("task", "names", "index"),
    [("ZSL", SPACE.unseen, (3, 4)), ("seen", SPACE.seen, (0, 1, 2)), ("GZSL", SPACE.names, (0, 1, 2, 3, 4))],
)
def test_views(task, names, index):
    view = SPACE.view(task)
    assert view.task == task and view.names == names and view.index == index
    assert view.columns == SPACE.columns(task)
    columns = torch.arange(5).expand(2, 5)
    assert torch.equal(columns[:, view.columns], columns[:, list(view.index)])
    assert [SPACE.names[i] for i in view.index] == list(view.names)


def test_seen_and_zsl_columns_split_gzsl():
    assert SPACE.view("seen").index + SPACE.view("ZSL").index == SPACE.view("GZSL").index


@pytest.mark.parametrize("method", ["columns", "view"])
@pytest.mark.parametrize("task", ["zsl", "unseen", "", None])
def test_unknown_task(method, task):
    with pytest.raises(ValueError, match="unknown task .*; use one of ZSL, GZSL, seen"):
        getattr(SPACE, method)(task)


def test_no_unseen_labels_is_allowed_and_gives_an_empty_view():
    space = LabelSpace(["cat"])
    assert space.view("ZSL").names == () and space.view("ZSL").index == ()
    assert space.view("GZSL").names == space.view("seen").names == ("cat",)
    assert space == LabelSpace(["cat"], [])
    with pytest.raises(ValueError, match="unseen is None, not a list of names"):
        LabelSpace(["cat"], None)


def test_hash_depends_on_names_and_order():
    assert SPACE.hash == hashlib.sha256(b"cat\ndog\nsea\npolar bear\nkite").hexdigest()[:16]
    assert SPACE.hash == LabelSpace([" cat", "dog ", "sea"], ["polar   bear", "kite"]).hash
    assert SPACE.hash != LabelSpace(["dog", "cat", "sea"], SPACE.unseen).hash
    assert LabelSpace(["a b", "c"]).hash != LabelSpace(["a", "b c"]).hash


def test_is_a_frozen_dataclass():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPACE.seen = ("x",)
    assert dataclasses.replace(SPACE, unseen=("x",)).names == ("cat", "dog", "sea", "x")
    assert {SPACE: 1}[LabelSpace(SPACE.seen, SPACE.unseen)] == 1  # hashable, equal by value


def test_check_names_cleans():
    assert check_names(["\tcat ", "polar \n bear", "Cat"]) == ["cat", "polar bear", "Cat"]
    assert check_names(name for name in ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "labels is empty; give at least one name"),
        ("cat", r"labels is the single string 'cat', not a list of names; write \['cat'\]"),
        (["cat", ""], r"labels\[1\] is blank \(''\); name the label"),
        (["cat", " \t", "dog", ""], r"labels\[1\] is blank .*, labels\[3\] is blank"),
        (
            ["cat", 7, None],
            r"labels\[1\] is 7, not a string, labels\[2\] is None, not a string; give every label as text",
        ),
        (["cat", "dog", "cat "], "'cat' occurs 2 times in labels, at 0, 2; keep one of each"),
        (
            ["a b", "x", "a  b", "x", "x"],
            "'a b' occurs 2 times in labels, at 0, 2; 'x' occurs 3 times in labels, at 1, 3, 4",
        ),
        ([f"n{i // 2}" for i in range(16)], "'n4' occurs 2 times in labels, at 8, 9; and 3 more"),
    ],
)
def test_check_names_says_what_and_where(names, message):
    with pytest.raises(ValueError, match=message):
        check_names(names)


@pytest.mark.parametrize(
    ("seen", "unseen", "message"),
    [
        ([], ["cat"], "seen is empty"),
        (["cat", "cat"], [], "'cat' occurs 2 times in seen, at 0, 1"),
        (["cat"], ["dog", "dog"], "'dog' occurs 2 times in unseen, at 0, 1"),
        (["cat"], ["dog", " "], r"unseen\[1\] is blank"),
        ("cat", [], "seen is the single string 'cat'"),
        (["cat"], "dog", "unseen is the single string 'dog'"),
        (["cat", "dog"], ["sea", " dog"], r"'dog' is both seen\[1\] and unseen\[1\]; drop one of the two"),
    ],
)
def test_label_space_says_what_and_where(seen, unseen, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(seen, unseen)


SCORES, LABELS = torch.zeros(3, 4), torch.tensor([[1, -1, 0, 1]]).repeat(3, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_odd_scores_are_located(value):
    scores = SCORES.clone()
    scores[1, 2] = value
    with pytest.raises(ValueError, match=rf"scores\[1, 2\] is {value} \(image 1, label index 2\)"):
        check_scores(scores, LABELS, finite=True)
    if value == value:
        check_scores(scores, LABELS)  # a ranking can cope with an infinite score
    else:
        with pytest.raises(ValueError, match="image 1, label index 2"):
            check_scores(scores, LABELS)


def test_odd_entries_are_located_behind_the_first_block_of_rows():
    scores, labels = torch.zeros(2**21 + 7, 4), torch.zeros(2**21 + 7, 4, dtype=torch.int8)
    labels[2**21 + 3, 1] = 2
    with pytest.raises(ValueError, match=rf"labels\[{2**21 + 3}, 1\] is 2 "):
        check_scores(scores, labels)


def test_finite_scores_whose_sum_is_not_are_accepted():
    scores = torch.full((3, 4), 6e4, dtype=torch.float16)
    assert scores.sum().isinf()
    check_scores(scores, LABELS, finite=True)
    scores[0] = -scores[0]
    scores[1:] = torch.tensor([torch.inf, -torch.inf, 0, 1])
    check_scores(scores, LABELS)
    with pytest.raises(ValueError, match=r"scores\[1, 0\] is inf"):
        check_scores(scores, LABELS, finite=True)


@pytest.mark.parametrize("value", [2.0, -2.0, 0.5, float("nan")])
def test_odd_labels_are_located(value):
    labels = LABELS.float()
    labels[2, 3] = value
    with pytest.raises(ValueError, match=rf"labels\[2, 3\] is {value} .*use -1 \(absent\), 0 \(unknown\) or \+1"):
        check_scores(SCORES, labels)


def test_bool_labels_and_shapes_are_refused():
    with pytest.raises(ValueError, match="labels are bool"):
        check_scores(SCORES, LABELS > 0)
    for labels in (LABELS[:2], LABELS[:, :3], LABELS.T, LABELS[0]):
        with pytest.raises(ValueError, match=r"scores \(3, 4\) and labels .* must have one shape"):
            check_scores(SCORES, labels)
    with pytest.raises(ValueError, match=r"scores \(4,\) and labels \(4,\)"):
        check_scores(SCORES[0], LABELS[0])


def test_tasks_are_those_of_the_views():
    assert [SPACE.view(task).task for task in TASKS] == ["ZSL", "GZSL", "seen"]


def test_doctests():
    result = doctest.testmod(hrcf_lib.labels)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\x07"])
def test_names_that_no_text_has(name):
    with pytest.raises(ValueError, match="labels.1. is .*, with characters that no text has: write it anew"):
        check_names(["owl", name])


def test_a_set_has_no_order_of_columns():
    for given in ({"seen": {"cat", "dog"}}, {"seen": ["cat"], "unseen": frozenset({"dog", "owl"})}):
        with pytest.raises(ValueError, match="is a set, whose order is another in the next run: give a list"):
            LabelSpace(**given)


def test_unseen_labels_from_any_iterable():
    assert LabelSpace(["cat"], (name for name in ["dog"])).unseen == ("dog",)
