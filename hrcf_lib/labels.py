r"""Names of labels, and which columns of a score matrix they own.

Everything that is asked about "seen" and "unseen" is asked of `LabelSpace`; no other file counts columns. The file also
holds the checks that every list of names and every pair (scores, annotations) has to pass.

Annotations are -1 (absent), 0 (unknown) or +1 (present). Symbols: B images, K labels.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hrcf_lib.engine.messages import list_some, tell

TASKS = ("ZSL", "GZSL", "seen")


INVISIBLE = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)  # no joiners: emojis have them


BROKEN = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")  # control characters; surrogates, which UTF-8 lacks


def clean_name(name: str) -> str:
    r"""A name without invisible characters and outer white space; inner white space becomes one blank.

    >>> clean_name("\u200bpolar  bear\ufeff ")
    'polar bear'
    """
    return " ".join(INVISIBLE.sub("", name).split()).strip("\u200c\u200d")


MISSING = ("nan", "none", "null", "n/a", "na", "<na>", "-", "?")  # what tables have where a name is missing


def is_number(name: str) -> bool:
    """Whether a name is a number, a row of numbers, or a truth value.

    >>> [is_number(name) for name in ("0", "1.5", "0,1, 0", "False", "7 up")]
    [True, True, True, True, False]
    """
    return re.fullmatch(r"[-+\d.,; ]*\d[-+\d.,; ]*|true|false", name.lower()) is not None


def one_or_more(names) -> list:
    """A name alone, or several, as a list; what is neither is its only item, for the caller to refuse.

    >>> one_or_more("owl"), one_or_more(name for name in ("owl", "sea")), one_or_more(None)
    (['owl'], ['owl', 'sea'], [None])
    """
    return list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in case or in the form of their letters only, in groups of two and more.

    >>> alike(["Owl", "cat", "owl"])
    [['Owl', 'owl']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def check_names(names: Iterable[str], what: str = "labels") -> list[str]:
    r"""Clean a list of label names (``clean_name``).

    Args:
        names: label names, in the order of their columns. Upper and lower case count as different.
        what: what to call the list in an error.

    Returns:
        the cleaned names, in the same order.

    Raises:
        ValueError: no names, a bare string, a set or another thing instead of a list, an item that is not a string, has
            characters that no text has (control characters, halves of surrogate pairs) or is blank, or a name that
            occurs twice. The first of these faults is reported, with all items that have it.

    >>> check_names([" polar  bear", "sea"])
    ['polar bear', 'sea']
    """
    if isinstance(names, (str, bytes)):
        one = names if isinstance(names, str) else names.decode("utf-8", "replace")
        raise ValueError(f"{what} is the single string {one!r:.80}, not a list of names; write [{one!r:.80}]")
    if not isinstance(names, Iterable) or hasattr(names, "columns"):  # a frame would give the names of its columns
        kind = "None" if names is None else f"a {type(names).__name__}"
        raise ValueError(f"{what} is {kind}, not a list of names; write them out, such as ['owl', 'polar bear']")
    if isinstance(names, (set, frozenset)):
        raise ValueError(f"{what} is a set, whose order is another in the next run: give a list, such as sorted(...)")
    names = list(names)
    if not names:
        raise ValueError(f"{what} is empty; give at least one name")
    wrong = [f"{what}[{i}] is {name!r}, not a string" for i, name in enumerate(names) if not isinstance(name, str)]
    if wrong:
        raise ValueError(list_some(wrong) + "; give every label as text")
    clean = [clean_name(name) for name in names]
    if wrong := [f"{what}[{i}] is {name!r}" for i, name in enumerate(clean) if BROKEN.search(name)]:
        raise ValueError(f"{list_some(wrong)}, with characters that no text has: write it anew")
    wrong = [f"{what}[{i}] is blank ({names[i]!r})" for i, name in enumerate(clean) if not name]
    if wrong:
        raise ValueError(list_some(wrong) + "; name the label or drop the item")
    places: dict[str, list[int]] = {}
    for i, name in enumerate(clean):
        places.setdefault(name, []).append(i)
    wrong = [
        f"{name!r} occurs {len(at)} times in {what}, at {list_some(at)}" for name, at in places.items() if len(at) > 1
    ]
    if wrong:
        raise ValueError(list_some(wrong, "; ") + "; keep one of each, or tell them apart as in 'crane (bird)'")
    return clean


class LabelView(NamedTuple):
    """The part of a `LabelSpace` that one task looks at."""

    task: str
    names: tuple[str, ...]
    columns: slice  # of a (..., K) array in the order of `LabelSpace.names`
    index: tuple[int, ...]  # the same columns, one number each


@dataclass(frozen=True)
class LabelSpace:
    r"""Seen and unseen labels, and their columns: seen first, then unseen (the order of MKT's and BiAM's code).

    The tasks are the paper's: "ZSL" asks for the unseen labels only, "GZSL" for all; "seen" is what training uses.
    A view selects *annotations* and *label embeddings*. It must not cut ZSL scores out of GZSL scores: softmax and
    norms run over the labels being scored, so each task is scored for itself.

    Args:
        seen: names with annotated training images, at least one.
        unseen: names without; may be empty, and then the ZSL view has no columns.

    Raises:
        ValueError: whatever `check_names` refuses, or a name that is both seen and unseen.

    >>> space = LabelSpace(seen=["cat", "dog"], unseen=["polar bear"])
    >>> space.names, space.n_seen
    (('cat', 'dog', 'polar bear'), 2)
    >>> space.view("ZSL")
    LabelView(task='ZSL', names=('polar bear',), columns=slice(2, 3, None), index=(2,))
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...] = ()

    def __post_init__(self):
        seen = tuple(check_names(self.seen, "seen"))
        none = hasattr(self.unseen, "__len__") and not len(self.unseen)
        unseen = () if none else tuple(check_names(self.unseen, "unseen"))
        at = {name: i for i, name in enumerate(seen)}
        both = [f"{name!r} is both seen[{at[name]}] and unseen[{j}]" for j, name in enumerate(unseen) if name in at]
        if both:
            raise ValueError(list_some(both) + "; drop one of the two, or tell them apart as in 'crane (bird)'")
        object.__setattr__(self, "seen", seen)  # frozen: the cleaned names replace the given ones once, here
        object.__setattr__(self, "unseen", unseen)

    @property
    def names(self) -> tuple[str, ...]:
        """All names in column order: seen, then unseen."""
        return self.seen + self.unseen

    @property
    def n_seen(self) -> int:
        """Number of seen labels, which is also the first unseen column."""
        return len(self.seen)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the names in column order, one per line; for records and caches."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def columns(self, task: str) -> slice:
        """Columns of `task` in a (..., K) array ordered like `names`; ValueError for a task not in `TASKS`."""
        K = len(self.names)
        slices = {"ZSL": slice(self.n_seen, K), "GZSL": slice(0, K), "seen": slice(0, self.n_seen)}
        if task not in slices:
            raise ValueError(f"unknown task {task!r}; use one of {list_some(TASKS)}")
        return slices[task]

    def view(self, task: str) -> LabelView:
        """Names, slice and column numbers of `task`; ValueError for a task not in `TASKS`."""
        columns = self.columns(task)
        return LabelView(task, self.names[columns], columns, tuple(range(columns.start, columns.stop)))


def check_scores(scores: Tensor, labels: Tensor, finite: bool = False, absent: bool = False) -> None:
    r"""Refuse scores and annotations that cannot be compared; returns nothing, changes nothing.

    Args:
        scores: (B, K), any real type.
        labels: (B, K), values -1, 0, +1; not bool, whose False could mean absent or unknown.
        finite: refuse infinite scores too, not only NaN.
        absent: warn of labels with 0 and 1 and no -1, for what compares present with absent labels.

    Raises:
        ValueError: anything but tensors, shapes that differ or are not two-dimensional, bool or other values among the
            labels, or scores that are NaN (or infinite); the message names the image and the label index.
    """
    for name, table in (("scores", scores), ("labels", labels)):
        if not isinstance(table, Tensor):
            raise ValueError(f"{name} are a {type(table).__name__}: give a tensor, as torch.as_tensor makes one")
        if table.is_complex() or table.layout != torch.strided:
            kind = "complex" if table.is_complex() else "sparse"
            raise ValueError(f"{name} are {kind}: give a dense tensor of real numbers")
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have one shape (images, labels)"
        )
    if labels.dtype == torch.bool:
        raise ValueError("labels are bool, where False may mean absent or unknown; pass -1 (absent), 0 (unknown), +1")
    step = max(1, 2**22 // max(1, labels.shape[1]))  # rows at a time, so that the masks stay small beside the input
    some_absent = some_present = not labels.numel()
    for start in range(0, len(labels), step):
        s, y = scores[start : start + step].detach(), labels[start : start + step]
        low, high = y.aminmax() if y.numel() else (y.sum(), y.sum())
        whole = (y == y.sign()).all() if y.is_floating_point() else torch.ones_like(low, dtype=torch.bool)
        # the normal case: one look at the device, no mask of scores
        looks = torch.stack([s.sum().isfinite() & whole & (low >= -1) & (high <= 1), low == -1, high == 1])
        well, *kinds = looks.tolist()
        some_absent, some_present = some_absent | kinds[0], some_present | kinds[1]
        if well:
            continue
        odd_score = ~s.isfinite() if finite else s.isnan()  # (rows, K)
        odd_label = y != y.sign()  # (rows, K)
        if not (odd_score | odd_label).any():  # a sum that overflows, or infinite scores that are allowed
            continue
        odd, table, fix = (
            (odd_score, "scores", "look for a diverged model or broken features")
            if odd_score.any()
            else (odd_label, "labels", "use -1 (absent), 0 (unknown) or +1 (present)")
        )
        i, k = odd.nonzero()[0].tolist()
        value = (s if table == "scores" else y)[i, k].item()
        raise ValueError(f"{table}[{start + i}, {k}] is {value} (image {start + i}, label index {k}); {fix}")
    if absent and some_present and not some_absent and (labels == 0).any():
        tell(
            "labels hold 0, which is unknown, and no -1, which is absent, so nothing is compared with what is present; "
            "if 0 is to mean absent, pass 2 * labels - 1"
        )
