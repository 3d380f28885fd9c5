"""Extend attention against its definition: parts of odd lengths over odd prefixes, in pools full of NaN."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from services.gpu_worker.kernels.extend_attention import (
    ExtendTiling,
    extend_attention,
    extend_attention_reference,
    max_tiles,
    plan_extend,
)
from tests.services.gpu_worker.kernels.kernel_testing import assert_close, poison

TILING = ExtendTiling(block_m=16, block_n=16, num_warps=4, num_stages=1)
# (cached tokens, new tokens) of each part: nothing cached, aligned, one row, more than a tile, less than a block.
PARTS = [(0, 5), (32, 16), (3, 1), (17, 23), (0, 33), (40, 7)]


@dataclass
class Batch:
    query: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    page_tables: Tensor
    seats: Tensor
    firsts: Tensor
    starts: Tensor
    counts: Tensor
    page_size: int
    num_rows: int

    def reference(self, **options: object) -> Tensor:
        return extend_attention_reference(**self._inputs(), scale=self.scale, **options)  # type: ignore[arg-type]

    def run(self, tiling: ExtendTiling = TILING, spare_tiles: int = 3, **options: object) -> Tensor:
        block = tiling.rows(self.query.shape[1] // self.k.shape[1])
        plan = plan_extend(self.starts.cpu().numpy(), self.counts.cpu().numpy(), block)
        tiles = poison(torch.empty(2, plan.shape[1] + spare_tiles, dtype=torch.int32, device=self.query.device))
        tiles[:, : plan.shape[1]] = torch.from_numpy(plan)
        num_tiles = torch.tensor([plan.shape[1]], dtype=torch.int32, device=self.query.device)
        out = poison(torch.empty_like(self.query))
        return extend_attention(
            **self._inputs(), tiles=tiles, num_tiles=num_tiles, out=out, scale=self.scale, tiling=tiling, **options
        )  # type: ignore[arg-type]

    @property
    def scale(self) -> float:
        return self.query.shape[2] ** -0.5

    def _inputs(self) -> dict[str, object]:
        names = (
            "query", "k", "v", "keys", "values", "page_tables", "seats", "firsts", "starts", "counts", "page_size"
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def a_batch(
    parts: list[tuple[int, int]],
    device: torch.device,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    padding_rows: int = 4,
) -> Batch:
    """k, v and query are slices of one product; rows of no part, and pool slots that no part may read, are NaN."""
    num_rows = sum(count for _, count in parts) + padding_rows
    product = torch.randn(num_rows, num_heads + 2 * num_kv_heads, head_dim, device=device).to(dtype)
    product[num_rows - padding_rows :] = torch.nan
    query, k, v = product.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    pages_of = [-(-(start + count) // page_size) for start, count in parts]
    num_pages, most_pages = sum(pages_of) + 2, max(pages_of)
    free = torch.randperm(num_pages).tolist()
    page_tables = poison(torch.empty(len(parts) + 2, most_pages + 1, dtype=torch.int32, device=device))
    pool = poison(torch.empty(2, num_kv_heads, num_pages * page_size, head_dim, dtype=dtype, device=device))
    seats = torch.randperm(len(parts) + 2)[: len(parts)].to(torch.int32).to(device)
    firsts, first = [], 0
    for i, (start, count) in enumerate(parts):
        pages = torch.tensor([free.pop() for _ in range(pages_of[i])], dtype=torch.int32, device=device)
        page_tables[seats[i].item(), : len(pages)] = pages
        before = torch.arange(start, device=device)
        slots = pages.long()[before // page_size] * page_size + before % page_size
        pool[:, :, slots] = torch.randn(2, num_kv_heads, start, head_dim, device=device).to(dtype)
        firsts.append(first)
        first += count
    as_int32 = [
        torch.tensor(numbers, dtype=torch.int32, device=device)
        for numbers in (firsts, [start for start, _ in parts], [count for _, count in parts])
    ]
    return Batch(query, k, v, *pool.unbind(0), page_tables, seats, *as_int32, page_size, num_rows - padding_rows)


def check(batch: Batch, out: Tensor, reference: Tensor, tolerance: float | None = None) -> None:
    assert_close("out", out[: batch.num_rows], reference[: batch.num_rows], tolerance)
    assert out[batch.num_rows :].isnan().all(), "rows of no part were written"


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_the_definition(page_size: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = a_batch(PARTS, device, page_size=page_size, dtype=dtype)
    check(batch, batch.run(), batch.reference())


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_every_head_dim(head_dim: int, device: torch.device) -> None:
    batch = a_batch([(19, 21), (0, 3)], device, head_dim=head_dim, num_heads=2, num_kv_heads=1)
    check(batch, batch.run(), batch.reference())


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (7, 1), (8, 1), (3, 3)])
def test_any_number_of_heads_shares_keys(num_heads: int, num_kv_heads: int, device: torch.device) -> None:
    batch = a_batch([(5, 19), (33, 2)], device, num_heads=num_heads, num_kv_heads=num_kv_heads)
    check(batch, batch.run(), batch.reference())


@pytest.mark.parametrize("window", [1, 7, 16, 30, 1000])
def test_rows_see_no_further_than_the_window(window: int, device: torch.device) -> None:
    batch = a_batch(PARTS, device)
    check(batch, batch.run(window=window), batch.reference(window=window))


@pytest.mark.parametrize("window", [None, 9])
def test_scores_are_capped(window: int | None, device: torch.device) -> None:
    batch = a_batch(PARTS, device)
    batch.query *= 8  # so that the cap matters
    check(batch, batch.run(softcap=3.0, window=window), batch.reference(softcap=3.0, window=window))


@pytest.mark.parametrize("block_n", [16, 64])
@pytest.mark.parametrize("block_m", [16, 32])
def test_any_tiling_gives_the_same(block_m: int, block_n: int, device: torch.device) -> None:
    tiling = ExtendTiling(block_m, block_n, num_warps=4, num_stages=1)
    batch = a_batch([(70, 41), (0, 70), (64, 5)], device, num_heads=3, num_kv_heads=1)
    check(batch, batch.run(tiling), batch.reference())


def test_own_tokens_by_tensor_descriptor(device: torch.device) -> None:
    tiling = ExtendTiling(block_m=16, block_n=16, num_warps=4, num_stages=1, uses_tma=True)
    batch = a_batch([(16, 41), (0, 70), (5, 33)], device)
    check(batch, batch.run(tiling), batch.reference())


def test_pool_of_8_bit_numbers(device: torch.device) -> None:
    batch = a_batch(PARTS, device)
    scales = {
        "key_scales": torch.tensor([0.5, 2.0], device=device),
        "value_scales": torch.tensor([3.0, 0.25], device=device),
    }
    batch.keys, batch.values = (pool.to(torch.float8_e4m3fn) for pool in (batch.keys, batch.values))
    check(batch, batch.run(**scales), batch.reference(**scales))


def test_a_sequence_of_nan_spoils_no_other(device: torch.device) -> None:
    batch = a_batch([(0, 21), (3, 11), (20, 18)], device)
    reference = batch.reference()
    batch.k[21:32] = batch.v[21:32] = torch.nan
    out = batch.run()
    assert out[21:32].isnan().all()
    for rows in (slice(0, 21), slice(32, 50)):
        assert_close("others", out[rows], reference[rows])


def test_large_scores_do_not_overflow(device: torch.device) -> None:
    batch = a_batch([(20, 20)], device)
    batch.query *= 1e4
    check(batch, batch.run(), batch.reference(), tolerance=1e-4)


def test_no_tiles_write_nothing(device: torch.device) -> None:
    batch = a_batch([(4, 4)], device)
    out = poison(torch.empty_like(batch.query))
    tiles = poison(torch.empty(2, 2, dtype=torch.int32, device=device))
    none = torch.zeros(1, dtype=torch.int32, device=device)
    extend_attention(**batch._inputs(), tiles=tiles, num_tiles=none, out=out, scale=1.0)  # type: ignore[arg-type]
    assert out.isnan().all()


def test_tiles_cover_every_row_once_and_long_ones_first() -> None:
    rng = np.random.default_rng(1)
    for block in (1, 7, 32):
        starts = rng.integers(0, 300, 20).astype(np.int32)
        counts = rng.integers(1, 90, 20).astype(np.int32)
        parts, rows = plan_extend(starts, counts, block)
        assert len(parts) <= max_tiles(int(counts.sum()), len(counts), block)
        covered = sorted(
            (part, row)
            for part, tile_row in zip(parts.tolist(), rows.tolist(), strict=True)
            for row in range(tile_row, min(tile_row + block, counts[part]))
        )
        assert covered == [(part, row) for part in range(20) for row in range(counts[part])]
        assert (np.diff((starts + counts)[parts]) <= 0).all(), "a part comes after one that sees less"
        is_same = np.diff(parts) == 0
        assert is_same.sum() == len(parts) - len(counts), "a part's tiles are apart"
        assert (np.diff(rows)[is_same] < 0).all(), "a part's last rows come after its first"


def test_a_window_levels_the_tiles() -> None:
    starts, counts = np.array([100, 0, 9000], np.int32), np.array([64, 64, 64], np.int32)
    assert plan_extend(starts, counts, 32)[0].tolist() == [2, 2, 0, 0, 1, 1]
    assert plan_extend(starts, counts, 32, window=40)[0].tolist() == [0, 0, 2, 2, 1, 1]
    assert plan_extend(starts[:0], counts[:0], 32).shape == (2, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("uses_tma", [False, True])
def test_full_size_tiles(head_dim: int, uses_tma: bool, device: torch.device) -> None:
    tiling = ExtendTiling(128, 64, num_warps=8, num_stages=2, uses_tma=uses_tma)
    parts = [(0, 700), (2048, 192), (333, 77), (16, 1)]
    batch = a_batch(parts, device, num_heads=32, num_kv_heads=8, head_dim=head_dim, dtype=torch.bfloat16)
    check(batch, batch.run(tiling), batch.reference())


@pytest.mark.gpu
def test_pool_beyond_two_billion_elements(device: torch.device) -> None:
    batch = a_batch([(64, 40)], device, num_kv_heads=1, num_heads=4, head_dim=128, dtype=torch.bfloat16)
    reference = batch.reference()
    num_slots = 17_000_000  # times 128: past 2**31 elements
    pool = torch.empty(2, 1, num_slots, 128, dtype=torch.bfloat16, device=device)
    base = num_slots // 16 - 300
    pool[:, :, base * 16 : base * 16 + batch.keys.shape[1]] = torch.stack([batch.keys, batch.values])
    batch.keys, batch.values = pool.unbind(0)
    batch.page_tables += base
    check(batch, batch.run(ExtendTiling(128, 64, 8, 2)), reference)
