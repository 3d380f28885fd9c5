"""Which stretches of one-token sequences' contexts are worth reading once for several sequences.

Sequences that share a prefix have the same leading pages. Ordered by their page tables, those that share stand next to
each other and what they share is a tree: a run is an edge of it, pages that a slice of the sequences has in common.
The part of a sequence that follows its last run is its tail. The last page is always of the tail, since the sequence
is still writing to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

PageTable = npt.NDArray[np.int32]

# A run may cost two matrix products of its own in each layer, about as much as attending to so many tokens.
_LEAST_SAVED = 256


@dataclass(frozen=True, slots=True)
class Run:
    """Pages first_page .. stop_page - 1 of the tables of sequences first .. first + count - 1."""

    first: int
    count: int
    first_page: int
    stop_page: int


def find_runs(tables: Sequence[PageTable], page_size: int) -> list[Run]:
    """tables: of the sequences in order. A sequence's runs follow each other from its first page on."""
    if not tables:
        return []
    runs: list[Run] = []
    common = [_num_common(table, other) for table, other in pairwise(tables)]
    pending = [(0, len(tables), 0)]
    while pending:
        first, stop, depth = pending.pop()
        if stop - first == 1:
            continue
        shared = min(common[first : stop - 1])
        if (shared - depth) * page_size * (stop - first - 1) >= _LEAST_SAVED:
            runs.append(Run(first, stop - first, depth, shared))
            depth = shared
        for last in range(first, stop - 1):
            if common[last] == shared:
                pending.append((first, last + 1, depth))
                first = last + 1
        pending.append((first, stop, depth))
    return runs


def num_pages_in_runs(runs: Sequence[Run], count: int) -> list[int]:
    """How many leading pages of each of `count` sequences are in runs."""
    covered = [0] * count
    for run in runs:
        for row in range(run.first, run.first + run.count):
            covered[row] = max(covered[row], run.stop_page)
    return covered


def order_by_prefix(tables: Sequence[PageTable], page_size: int) -> list[int]:
    """An order in which sequences that share pages are neighbours: first those without runs, then those with, both by
    number of pages, where sequences that share a run count as the longest of them."""
    order = sorted(range(len(tables)), key=lambda i: tables[i].astype(">i4").tobytes())
    runs = find_runs([tables[i] for i in order], page_size)
    covered = num_pages_in_runs(runs, len(order))
    tree_of = list(range(len(order)))  # the row where the tree of a row begins
    for run in runs:
        for row in range(run.first, run.first + run.count):
            tree_of[row] = min(tree_of[row], run.first)
    longest: dict[int, int] = {}
    for row, tree in enumerate(tree_of):
        longest[tree] = max(longest.get(tree, 0), len(tables[order[row]]))
    rows = sorted(range(len(order)), key=lambda row: (covered[row] > 0, longest[tree_of[row]], row))
    return [order[row] for row in rows]


def _num_common(table: PageTable, other: PageTable) -> int:
    """Leading pages that both tables have in common, last pages left out."""
    length = max(0, min(len(table), len(other)) - 1)
    differs = table[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
