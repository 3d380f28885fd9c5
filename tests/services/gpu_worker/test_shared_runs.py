"""Runs of shared pages, found in page tables."""

import random

import numpy as np
import pytest

from services.gpu_worker.shared_runs import PageTable, Run, find_runs, num_pages_in_runs, order_by_prefix


def table(*parts: range) -> PageTable:
    return np.array([page for part in parts for page in part], dtype=np.int32)


def test_a_prefix_is_a_run_of_all_that_share_it() -> None:
    tables = [table(range(40), range(100 * i, 100 * i + i)) for i in (1, 2, 3)]
    assert find_runs(tables, 16) == [Run(0, 3, 0, 40)]


def test_runs_nest() -> None:
    tables = [table(range(20), range(100, 120), range(200 + i, 201 + i)) for i in range(2)]
    tables += [table(range(20), range(300, 310), range(400 + i, 401 + i)) for i in range(3)]
    assert sorted(find_runs(tables, 16), key=lambda run: (run.first, run.first_page)) == [
        Run(0, 5, 0, 20),
        Run(0, 2, 20, 40),
        Run(2, 3, 20, 30),
    ]
    assert num_pages_in_runs(find_runs(tables, 16), 5) == [40, 40, 30, 30, 30]


def test_what_saves_too_little_is_not_a_run() -> None:
    assert find_runs([table(range(15), range(90 + i, 91 + i)) for i in range(2)], 16) == []
    assert find_runs([table(range(15), range(90 + i, 91 + i)) for i in range(3)], 16) == [Run(0, 3, 0, 15)]


def test_the_last_page_is_never_in_a_run() -> None:
    assert find_runs([table(range(30)), table(range(30))], 16) == [Run(0, 2, 0, 29)]
    assert find_runs([table(range(1)), table(range(1))], 1000) == []
    assert find_runs([], 16) == []


@pytest.mark.parametrize("seed", range(20))
def test_runs_of_random_trees_are_shared_pages_in_one_piece(seed: int) -> None:
    rng = random.Random(seed)
    tables: list[list[int]] = [[]]
    fresh = iter(range(100_000))
    for _ in range(rng.randrange(1, 30)):
        kept = rng.choice(tables)
        tables.append(kept[: rng.randrange(len(kept) + 1)] + [next(fresh) for _ in range(rng.randrange(1, 30))])
    arrays = [np.array(pages, dtype=np.int32) for pages in tables[1:]]
    order = order_by_prefix(arrays, 16)
    assert sorted(order) == list(range(len(arrays)))
    ordered = [arrays[i] for i in order]
    runs = find_runs(ordered, 16)
    covered = num_pages_in_runs(runs, len(ordered))
    assert [pages > 0 for pages in covered] == sorted(pages > 0 for pages in covered)
    for row, pages in enumerate(ordered):
        mine = sorted((run.first_page, run.stop_page) for run in runs if run.first <= row < run.first + run.count)
        assert [first for first, _ in mine] == [0, *(stop for _, stop in mine)][: len(mine)]
        assert covered[row] < len(pages)
        for run in runs:
            if run.first <= row < run.first + run.count:
                np.testing.assert_array_equal(pages[: run.stop_page], ordered[run.first][: run.stop_page])
