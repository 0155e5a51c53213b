r"""Partial labels: the published ways to hide labels of a fully annotated training set.

* ``known_mask``: each label is known with probability p (SST, SARB, HST, DSRB). One table of random numbers is compared
  with p, so what is known at p = 0.1 is known at 0.2 too: the masks nest.
* ``single_positive``: of each picture one positive label is known and nothing else (Cole et al., 2021).

Both depend on the order of the rows. A prepared table keeps the row that each picture has in the official list
(``CommonTable.rows``), so a mask falls on the same labels when some pictures are missing. ``hide`` puts a mask over a
Dataset, ``hide_as`` that of a config. A mask covers the seen labels; unseen ones are hidden altogether. ``gaps`` finds
pictures without a known label and labels without a known positive. n pictures, K labels; labels are -1 (absent),
0 (unknown), +1 (present).
"""

import hashlib
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hrcf_lib.config import LARGEST_SEED
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.engine.messages import is_real, is_whole, list_some, whole_number

SINGLE_SEED = 1200  # of Cole et al.


def known_mask(n: int, K: int, p: float, seed: int = 0) -> np.ndarray:
    r"""Which labels are known: (n, K) bool, ``RandomState(seed).random_sample((n, K)) < p``.

    The first rows are the same for every ``n``. SARB and SST use p = 0.1 ... 0.9; 1 hides nothing.

    Raises ``ValueError`` for a proportion outside (0, 1], an empty shape or a bad seed.

    >>> known_mask(1, 4, 0.6).tolist()  # the numbers are 0.5488, 0.7152, 0.6028, 0.5449
    [[True, False, False, True]]
    """
    if not is_real(p) or not 0 < p <= 1:
        raise ValueError(f"p = {p!r}: give the share of labels that are known, above 0 and up to 1")
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    if not (is_whole(n) and is_whole(K)) or n < 1 or K < 1:
        raise ValueError(f"a mask of {n} pictures x {K} labels: give at least one of each")
    if p == 1:
        return np.ones((n, K), bool)
    generator, mask = np.random.RandomState(seed), np.empty((n, K), bool)
    step = max(1, 2**22 // K)
    for start in range(0, n, step):  # in blocks: the same numbers, without 8 bytes for each label at once
        mask[start : start + step] = generator.random_sample((min(step, n - start), K)) < p
    return mask


def single_positive(labels: np.ndarray, seed: int = SINGLE_SEED) -> np.ndarray:
    r"""Which labels are known: (n, K) bool, one positive of each row that has any, chosen as Cole's code does.

    Args:
        labels: (n, K) in -1/+1, complete: the draws depend on every label, the negatives included.
        seed: a fresh generator for each call; call it once for train and once for val.

    Raises ``ValueError`` for a table that is not of -1 and +1, or a bad seed.
    """
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"labels of shape {labels.shape}: the single-positive protocol starts from a table (n, K)")
    if len(odd := np.argwhere(~np.isin(labels, (-1, 1)))):
        i, k = odd[0]
        raise ValueError(
            f"column {k} of row {i} reads {labels[i, k]:g} ({len(odd)} such entries): the single-positive protocol "
            "starts from complete labels, -1 and +1; prepare the data so (of VOC with difficult='absent')"
        )
    generator, mask = np.random.RandomState(seed), np.zeros(labels.shape, bool)
    for i, y in enumerate(labels):
        positives, negatives = np.flatnonzero(y > 0), np.flatnonzero(y < 0)
        generator.shuffle(positives)
        mask[i, positives[:1]] = True
        generator.shuffle(negatives)  # none is taken, but the published draws went on from here
    return mask


def train_val(n: int, share: float = 0.2, seed: int = SINGLE_SEED) -> tuple[np.ndarray, np.ndarray]:
    r"""Rows for training and validation out of an official training set of ``n``, as Cole's code divides it.

    The last ``round(share * n)`` of a permutation are val; both come sorted. ``ValueError`` if one would be empty, and
    for what are no numbers.
    """
    n, seed = whole_number("n", n, 0), whole_number("seed", seed, 0, LARGEST_SEED)
    if not is_real(share) or not 0 <= share <= 1:
        raise ValueError(f"share = {share!r}: give the share of the pictures that are val, between 0 and 1")
    n_val = int(np.round(share * n))
    if not 0 < n_val < n:
        raise ValueError(f"{share} of {n} pictures leaves {n - n_val} for training and {n_val} for validation")
    order = np.random.RandomState(seed).permutation(n)
    return np.sort(order[: n - n_val]), np.sort(order[n - n_val :])


class Hidden(Dataset):
    r"""A Dataset whose labels are 0 (unknown) wherever ``known`` is False; made by ``hide`` and ``hide_all_but_one``.

    Items, ``labels``, ``side`` and ``label_vector`` are those of the Dataset below; ``known`` is (n, K) bool.
    """

    def __init__(self, dataset, known: np.ndarray):
        if known.shape != (len(dataset), len(dataset.labels.names)):
            raise ValueError(
                f"a mask {known.shape} for {len(dataset)} pictures x {len(dataset.labels.names)} labels: "
                "make it of that size"
            )
        self.dataset, self.known, self.labels, self.side = dataset, known, dataset.labels, dataset.side

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, y = self.dataset[index]
        return image, self._hide(index, y)  # (3, side, side), (K,)

    def original(self, index: int):
        """The picture in its own size, as the Dataset below gives it."""
        return self.dataset.original(index)

    def label_vector(self, index: int) -> Tensor:
        """(K,) in -1/0/+1, without reading the picture."""
        return self._hide(index, self.dataset.label_vector(index))

    def fingerprint(self) -> str:
        """That of the Dataset below, and the mask."""
        digest = hashlib.sha256(np.packbits(self.known).tobytes()).hexdigest()[:16]
        return f"{self.dataset.fingerprint()} known {digest}"

    def _hide(self, index: int, y: Tensor) -> Tensor:
        return torch.where(torch.from_numpy(self.known[index]), y, torch.zeros((), dtype=y.dtype))


def hide(dataset, p: float, seed: int = 0) -> Hidden:
    r"""The training set with the share ``p`` of its labels known (``known_mask``), drawn by rows of the official list.

    ``dataset`` is one split of a prepared table, or any Dataset with ``labels`` and ``label_vector``, whose rows are
    then its own. Raises ``ValueError`` for a table of several splits, and what ``known_mask`` raises.
    """
    rows = _official_rows(dataset)
    mask = known_mask(int(rows.max()) + 1 if len(rows) else 0, dataset.labels.n_seen, p, seed)
    return Hidden(dataset, _with_unseen(mask[rows], dataset))


def hide_all_but_one(dataset, seed: int = SINGLE_SEED, order=None) -> Hidden:
    r"""The training set in which one positive label of each picture is known (``single_positive``).

    ``order``: numbers of the pictures in the order of the draws; the default is the order of the dataset. Cole's lists
    of COCO hold annotated images only, by their ids as *text*: ``np.argsort(list(dataset.ids))`` of a table that was
    prepared with ``annotated_only=True``.

    Warns where pictures of the official list are missing: each draw depends on all rows before it, so the labels chosen
    are then not the published ones. Raises ``ValueError`` for a table of several splits, with unknown labels, or an
    ``order`` that does not name each picture once.
    """
    _official_rows(dataset)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)  # before all labels are read
    order = np.arange(len(dataset)) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(dataset))):
        raise ValueError(f"order has to name each of the {len(dataset)} pictures once, by their numbers from 0")
    if missing := _missing(dataset):
        say = f"{missing} pictures of the official list are missing: the labels drawn differ from the published ones"
        warnings.warn(say, stacklevel=2)
    labels = label_matrix(dataset, order)[:, dataset.labels.columns("seen")].numpy()  # (n, seen) in that order
    known = np.empty(labels.shape, bool)
    known[order] = single_positive(labels, seed)
    return Hidden(dataset, _with_unseen(known, dataset))


def hides(config) -> bool:
    """Whether a config hides training labels."""
    return config.known < 1 or config.single_positive


def hide_as(config, dataset):
    r"""The training set as a config has it: ``hide`` at ``known``, ``hide_all_but_one``, or the dataset itself.

    Warns of labels without a known positive, naming them, and of pictures without a known label. Raises what those two
    raise.
    """
    if not hides(config):
        return dataset
    seed = {} if config.mask_seed is None else {"seed": config.mask_seed}
    if config.single_positive:
        found = hide_all_but_one(dataset, order=official_order(dataset, config.dataset), **seed)
        if config.dataset == "coco" and (empty := int((dataset.positives_per_picture() == 0).sum())):
            say = f"{empty} pictures of coco show no label and take part in the draws, which differ from the published"
            warnings.warn(f"{say} ones: prepare it with annotated_only=True", stacklevel=2)
    else:
        found = hide(dataset, config.known, **seed)
    names = dataset.labels.seen
    pictures, labels = gaps(label_matrix(found)[:, dataset.labels.columns("seen")])
    if pictures or labels:
        listed = list_some(names[k] for k in labels)
        say = f"{len(labels)} labels have no known positive ({listed})" if labels else "each label has a known positive"
        say += f", {len(pictures)} of {len(found)} pictures have no known label"
        warnings.warn(f"{say}: a method learns nothing about them", stacklevel=2)
    return found


def official_order(dataset, name: str) -> np.ndarray:
    """Numbers of the pictures in the order of Cole's lists: that of the table; for COCO, by their ids as text."""
    return np.argsort(list(dataset.ids)) if name == "coco" else np.arange(len(dataset))


def gaps(labels) -> tuple[list[int], list[int]]:
    """Rows without a known label, and columns without a known positive, of annotations (n, K) in -1/0/+1.

    >>> gaps(torch.tensor([[1, 0], [0, 0], [-1, -1]]))
    ([1], [1])
    """
    labels = torch.as_tensor(labels)
    without = lambda known, dim: (~known.any(dim=dim)).nonzero()[:, 0].tolist()
    return without(labels != 0, 1), without(labels == 1, 0)


def _with_unseen(known: np.ndarray, dataset) -> np.ndarray:
    """A mask of the seen labels (n, seen) -> of all (n, K): training knows no unseen label."""
    return np.pad(known, ((0, 0), (0, len(dataset.labels.names) - dataset.labels.n_seen)))


def _missing(dataset) -> int:
    """Pictures of the official list that a prepared table lacks, apart from those left out by ``annotated_only`` or
    ``held_out``.
    """
    if not len(dataset) or not hasattr(dataset, "about"):
        return 0
    counts = dataset.about["splits"][dataset.splits[0]]
    return counts["listed"] - counts["problems"].get("image without annotation", 0) - len(dataset) - dataset.left_out


def _official_rows(dataset) -> np.ndarray:
    splits = set(getattr(dataset, "splits", ()))
    if len(splits) > 1:
        raise ValueError(
            f"the table holds {', '.join(sorted(splits))}: hide labels of one split, as in select('train')"
        )
    return np.asarray(getattr(dataset, "rows", np.arange(len(dataset))))
