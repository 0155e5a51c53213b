r"""How much is worked on at a time: budgets of memory, and how many items of a given size fit in one.

Budgets count entries of float32, four bytes each. What is larger is computed in chunks, and the results are equal up
to rounding. Read a budget as ``chunks.LARGE`` where it is used: tests set smaller ones.
"""

import torch
from torch.utils.checkpoint import checkpoint

MIB = 2**18  # entries of float32 in a mebibyte

CACHE = 16 * MIB  # what a processor's cache holds: chunks of a large (B, J, K), and of metrics
PAIRS = 64 * MIB  # chunks of tables that compare labels with labels
COMPARISONS = 128 * MIB  # chunks of tables that compare pictures with pictures
LARGE = 256 * MIB  # the largest tensor that is made at once, or kept for the backward pass of a method's part
KEPT = 1024 * MIB  # the most scores of regions that ``scores.aggregate`` keeps for its backward pass
NAMES = 512  # names that run through the text tower together
TOKENS = 4 * MIB  # token embeddings of names that run through the text tower together: 2,048 of width 512
TEXT = 12 * TOKENS  # the same times the tower's blocks, which keep them for the backward pass: as many of CLIP's 12


def fitting(budget: int, entries: int) -> int:
    """Number of items of ``entries`` each that fit in ``budget``, at least one.

    >>> fitting(LARGE, 1000), fitting(10, 1000)
    (67108, 1)
    """
    return max(1, budget // max(1, entries))


def labels_at_a_time(number: int, entries: int) -> int:
    """How many of ``number`` labels that need ``entries`` each fit in ``LARGE``; all of them in an exported graph."""
    return number if exporting() else min(number, fitting(LARGE, entries))


def recomputed(function, *args, again: bool = True):
    """``function(*args)``, which with ``again`` the backward pass computes a second time, so that nothing is kept.

    Nothing may be drawn at random in it.
    """
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False) if again else function(*args)


def exporting() -> bool:
    """Whether a graph is being exported: chunks that depend on the size of a batch would hold for one size alone."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()  # an older torch has the second alone
