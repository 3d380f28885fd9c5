"""Which rows share which pages, against a count by hand of every prefix."""

import random
import time
from array import array

import numpy as np
import pytest

from services.gpu_worker.prefix_groups import GroupTables, plan_groups


def table(*pages: int) -> "array[int]":
    return array("i", pages)


def members(tables: GroupTables) -> list[tuple[int, int, list[int]]]:
    return sorted((s.first, s.count, sorted(s.rows.tolist())) for s in tables.segments)


def test_rows_with_the_same_first_pages_form_a_group() -> None:
    tables = plan_groups([table(5, 6, 7), table(5, 6, 8), table(9, 6, 7)], [45, 40, 45], 16, min_tokens=16)
    assert members(tables) == [(0, 32, [0, 1])]
    assert tables.row_ends.tolist() == [32, 32, 0]


def test_groups_nest_along_the_tree() -> None:
    page_tables = [table(1, 2, 3, 10), table(1, 2, 3, 11), table(1, 2, 20), table(1, 2, 3, 12), table(1, 2, 21)]
    tables = plan_groups(page_tables, [4, 4, 3, 4, 3], 1, min_tokens=1)
    assert members(tables) == [(0, 2, [0, 1, 2, 3, 4]), (2, 1, [0, 1, 3])]
    assert tables.row_ends.tolist() == [3, 3, 2, 3, 2]
    assert tables.saved_tokens == 4 * 2 + 2 * 1


def test_parents_come_before_children() -> None:
    page_tables = [table(1, 2, 3, 10 + row) if row % 2 else table(1, 2, 4, 10 + row) for row in range(6)]
    tables = plan_groups(page_tables, [4] * 6, 1, min_tokens=1)
    ends = dict.fromkeys(range(6), 0)
    for segment in tables.segments:
        for row in segment.rows.tolist():
            assert segment.first == ends[row]
            ends[row] += segment.count
    assert list(ends.values()) == tables.row_ends.tolist()


def test_page_that_is_written_to_and_last_token_stay_own() -> None:
    same = table(1, 2, 3)
    assert plan_groups([same, same], [32, 33], 16, min_tokens=16).row_ends.tolist() == [16, 16]
    assert plan_groups([same, same], [33, 33], 16, min_tokens=16).row_ends.tolist() == [32, 32]


def test_few_rows_or_tokens_are_not_worth_a_group() -> None:
    page_tables = [table(1, 2, 10), table(1, 2, 11), table(1, 12)]
    assert members(plan_groups(page_tables, [3, 3, 2], 1, min_rows=3, min_tokens=1)) == [(0, 1, [0, 1, 2])]
    assert members(plan_groups(page_tables, [3, 3, 2], 1, min_tokens=2)) == [(0, 2, [0, 1])]
    assert members(plan_groups(page_tables, [3, 3, 2], 1, min_tokens=3)) == []


def test_depth_is_bounded() -> None:
    page_tables = [table(*range(row + 1), 100 + row) for row in range(12)]
    tables = plan_groups(page_tables, [len(pages) for pages in page_tables], 1, min_tokens=1, max_depth=3)
    depth = [sum(row in s.rows.tolist() for s in tables.segments) for row in range(12)]
    assert max(depth) == 3


def test_padding_and_empty_tables_are_in_no_group() -> None:
    tables = plan_groups([table(), table(1, 2), table(1, 2), table(1, 2)], [0, 2, 2, 0], 1, min_tokens=1)
    assert members(tables) == [(0, 1, [1, 2])]


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="min_rows 1"):
        plan_groups([], [], 16, min_rows=1)


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_cover_what_rows_share(seed: int) -> None:
    """Every segment's pages are the same in all its members; with no limits a row's cover is its longest common prefix
    with any other row."""
    rng = random.Random(seed)
    page_tables, next_page = [table(0)], 1
    for _ in range(rng.randrange(2, 30)):
        parent = rng.choice(page_tables)
        kept = rng.randrange(0, len(parent) + 1)
        fresh = rng.randrange(1, 6)
        page_tables.append(parent[:kept] + array("i", range(next_page, next_page + fresh)))
        next_page += fresh
    lengths = [len(pages) + 1 for pages in page_tables]  # the next token is on a page to come
    tables = plan_groups(page_tables, lengths, 1, min_tokens=1, max_depth=100)
    for segment in tables.segments:
        seen = {tuple(page_tables[row][segment.first : segment.first + segment.count]) for row in segment.rows}
        assert len(seen) == 1 and len(segment.rows) >= 2
    for row, pages in enumerate(page_tables):
        shared = max(
            sum(np.cumprod([a == b for a, b in zip(pages, other, strict=False)]))
            for index, other in enumerate(page_tables)
            if index != row
        )
        assert tables.row_ends[row] == shared


def test_planning_512_rows_is_quick() -> None:
    page_tables, lengths = [], []
    for row in range(512):
        prefix = row % 16
        pages = list(range(prefix * 200, prefix * 200 + 128)) + [100_000 + row * 16 + page for page in range(14)]
        page_tables.append(array("i", pages))
        lengths.append(142 * 16 - 5)
    started = time.thread_time()
    tables = plan_groups(page_tables, lengths, 16)
    elapsed = time.thread_time() - started
    assert len(tables.segments) == 16 and (tables.row_ends == 2048).all()
    assert elapsed < 0.1  # about 4 ms on one quiet core
