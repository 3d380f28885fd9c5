"""Which running sequences share a prefix of pages, so that a step may read it once for all of them.

Page tables that begin with the same page ids share those tokens, and nothing else is shared (docs/decisions/0004).
The common beginnings of all tables form a tree; each of its nodes that enough sequences run through, and that adds
enough tokens to what lies above it, becomes a segment. A sequence belongs to the segments on its path, one after
another from token 0 on; what follows the last is its own.
"""

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A sequence has a partial result for each of its segments, which costs memory and merging: deeper segments are not
# made, their tokens stay the sequence's own.
MAX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens first .. first + count - 1 of every row in `rows` [members], which has at least two; multiples of the
    page size. Any of them can lend its page table."""

    first: int
    count: int
    rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class GroupTables:
    """segments: parents before children. row_ends: [B] tokens of each row that its segments cover, 0 without any."""

    segments: list[Segment]
    row_ends: NDArray[np.int32]

    @property
    def saved_tokens(self) -> int:
        """How many tokens less a step reads: what says whether launching for groups is worth it."""
        return sum(segment.count * (len(segment.rows) - 1) for segment in self.segments)


def plan_groups(
    page_tables: "Sequence[array[int]]",
    lengths: Sequence[int],
    page_size: int,
    min_rows: int = 2,
    min_tokens: int = 64,
    max_depth: int = MAX_DEPTH,
) -> GroupTables:
    """page_tables[b], int32, and lengths[b], tokens with the new one, of row b; length 0 is padding.

    min_rows, at least 2, and min_tokens: of a segment. The last token of a row is never in one, and neither is a
    page that it may still write to, so the tables hold until a row joins, leaves or is given another page table."""
    if min_rows < 2:
        raise ValueError(f"min_rows {min_rows}: a group has at least 2 rows")
    num_pages = [(length - 1) // page_size if length > 0 else 0 for length in lengths]
    by_first_page: dict[int, list[int]] = {}
    for row, (table, count) in enumerate(zip(page_tables, num_pages, strict=True)):
        if count > 0:
            by_first_page.setdefault(table[0], []).append(row)
    tables = GroupTables([], np.zeros(len(page_tables), dtype=np.int32))
    min_pages = max(1, -(-min_tokens // page_size))
    for rows in by_first_page.values():
        if len(rows) >= min_rows:
            _add_segments(tables, page_tables, num_pages, rows, page_size, min_rows, min_pages, max_depth)
    return tables


def _add_segments(
    tables: GroupTables,
    page_tables: "Sequence[array[int]]",
    num_pages: list[int],
    rows: list[int],
    page_size: int,
    min_rows: int,
    min_pages: int,
    max_depth: int,
) -> None:
    """The segments of rows that share their first page.

    In order of their tables' bytes, rows with a common beginning stand together, and what a run of rows has in
    common is the least of what neighbours have."""
    views = {row: np.frombuffer(page_tables[row], dtype=np.int32)[: num_pages[row]] for row in rows}
    order = sorted(rows, key=lambda row: views[row].tobytes())
    ordered = np.array(order, dtype=np.int32)
    common = np.array([_common_pages(views[a], views[b]) for a, b in itertools.pairwise(order)])
    pending = [(0, len(order), 0, 0)]
    while pending:
        low, high, above, depth = pending.pop()
        inner = common[low : high - 1]
        shared = int(inner.min())
        if shared - above >= min_pages:
            members = ordered[low:high]
            tables.segments.append(Segment(above * page_size, (shared - above) * page_size, members))
            tables.row_ends[members] = shared * page_size
            above, depth = shared, depth + 1
        if depth == max_depth:
            continue
        borders = [low, *(low + 1 + np.flatnonzero(inner == shared)).tolist(), high]
        pending += [
            (left, right, above, depth) for left, right in itertools.pairwise(borders) if right - left >= min_rows
        ]


def _common_pages(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many pages two tables begin with alike."""
    shortest = min(len(a), len(b))
    is_different = a[:shortest] != b[:shortest]
    first = int(is_different.argmax()) if shortest else 0
    return first if shortest and is_different[first] else shortest
