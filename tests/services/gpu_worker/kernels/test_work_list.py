"""The work list that the device makes against its definition, and what any such list has to hold."""

import itertools
import random

import pytest
import torch

from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.kernels.work_list import DecodePlan, chunk_sizes, work_list_reference

TILE = TileShape(block_tokens=16, num_warps=4, num_stages=3, programs_per_sm=1)


def made_list(plan: DecodePlan, num_rows: int) -> list[list[tuple[int, int]]]:
    """The plan's chunks by row, after checking that its tables agree with each other."""
    num_items = int(plan.num_items)
    items = plan.items[:num_items].tolist()
    rows: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for place, (row, _, start, end) in enumerate(items):
        assert int(plan.row_first[row]) + len(rows[row]) == place
        rows[row].append((start, end))
    assert [len(chunks) for chunks in rows] == plan.row_count[:num_rows].tolist()
    return rows


@pytest.mark.parametrize(
    ("lengths", "num_sms", "max_items"),
    [
        ([1], 64, None),
        ([600], 64, None),
        ([600, 0, 17, 5000], 64, None),
        ([900] * 40, 96, None),
        ([16] * 700, 64, None),
        ([100_000, 3], 512, None),
        ([4000, 4000, 4000], 512, 4),
        ([4000, 4000, 4000], 512, 3),
    ],
    ids=str,
)
def test_matches_reference(
    lengths: list[int], num_sms: int, max_items: int | None, device: torch.device, nan_filled_empty: None
) -> None:
    plan = DecodePlan(len(lengths), max_items, 8, 1, 16, device, tile=TILE, num_sms=num_sms)
    seats = torch.arange(len(lengths), dtype=torch.int32, device=device)
    for _ in range(2):  # what a step leaves behind does not matter to the next
        plan.update(torch.tensor(lengths, dtype=torch.int32, device=device), seats)
        assert made_list(plan, len(lengths)) == work_list_reference(lengths, 8, num_sms, plan.costs, 16, plan.max_items)


def test_window_and_missing_seats(device: torch.device) -> None:
    plan = DecodePlan(8, None, 2, 1, 16, device, window=100, tile=TILE, num_sms=16)
    lengths = torch.tensor([150, 99, 300], dtype=torch.int32, device=device)
    plan.update(lengths, torch.tensor([4, 2, -1], dtype=torch.int32, device=device))
    rows = made_list(plan, 3)
    assert (rows[0][0][0], rows[0][-1][1]) == (50, 150)
    assert (rows[1][0][0], rows[1][-1][1]) == (0, 99)
    assert rows[2] == [(0, 0)]
    assert plan.items[int(plan.row_first[2]), 1] == -1


def test_every_token_is_in_one_chunk_whatever_the_mix(device: torch.device) -> None:
    rng = random.Random(3)
    plan = DecodePlan(20, None, 4, 1, 16, device, tile=TILE, num_sms=48)
    for _ in range(8):
        lengths = [rng.choice([0, 1, 15, 16, 17, rng.randrange(1, 3000)]) for _ in range(rng.randrange(1, 20))]
        seats = torch.arange(len(lengths), dtype=torch.int32, device=device)
        plan.update(torch.tensor(lengths, dtype=torch.int32, device=device), seats)
        for length, chunks in zip(lengths, made_list(plan, len(lengths)), strict=True):
            assert chunks[0][0] == 0 and chunks[-1][1] == length
            assert all(a[1] == b[0] and a[1] > a[0] for a, b in itertools.pairwise(chunks))


def test_sizes_double_every_other_step() -> None:
    sizes = chunk_sizes(64)
    assert sizes[:7] == [64, 128, 192, 256, 384, 512, 768]
    assert sizes[-1] >= 4_000_000


def test_too_few_places_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="max_items 3 is less than max_rows 4"):
        DecodePlan(4, 3, 1, 1, 16, device)
