r"""What to know of a data set before training on it: names that seen and unseen labels nearly share, and labels that
go together. n pictures, K labels."""

import re

import numpy as np
import pandas as pd

from hrcf_lib.labels import LabelSpace


def near_names(space: LabelSpace) -> pd.DataFrame:
    r"""Unseen labels whose name a seen label nearly has: columns unseen, seen, why.

    ``why`` is "final s" (cat, cats) or "words of" (one name holds all words of the other: bear, polar bear). Scores of
    such labels are not those of an unknown concept: NUS-WIDE's 925 / 81 split has 30 of the first kind.
    """
    stem = lambda name: re.sub("s$", "", name.lower())
    by_stem, by_word = {}, {}
    for name in space.seen:
        by_stem.setdefault(stem(name), []).append(name)
        for word in set(name.lower().split()):
            by_word.setdefault(word, []).append(name)
    rows = []
    for name in space.unseen:
        rows += [(name, other, "final s") for other in by_stem.get(stem(name), ())]
        words = set(name.lower().split())
        for other in dict.fromkeys(n for word in sorted(words) for n in by_word.get(word, ())):
            theirs = set(other.lower().split())
            if (words <= theirs or theirs <= words) and stem(other) != stem(name):
                rows.append((name, other, "words of"))
    return pd.DataFrame(rows, columns=["unseen", "seen", "why"])


def co_occurrence(dataset, names, most: int = 20_000, seed: int = 0) -> pd.DataFrame:
    r"""Share of the pictures with the row's label that also have the column's, in 0..1; NaN for a label without any.

    ``names``: labels of ``dataset``. Of a larger data set, ``most`` pictures are drawn at random.
    """
    columns = [dataset.labels.names.index(name) for name in names]
    chosen = np.arange(len(dataset))
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), most, replace=False))
    present = np.stack([dataset.label_vector(int(i)).numpy()[columns] == 1 for i in chosen]).astype(np.float64)
    both = present.T @ present  # (labels, labels) pictures with both
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(both / np.diag(both)[:, None], index=list(names), columns=list(names))
