"""Batches of running sequences over a pool whose unwritten slots are NaN."""

from dataclasses import dataclass

import torch
from torch import Tensor

from services.gpu_worker.kernels.work_list import ChunkCosts

# Cutting is cheap, so that short rows have many chunks.
CHEAP_CUTS = ChunkCosts(item=1, split=1, merge=2, part=1, tail=16)


@dataclass
class PagedBatch:
    """B rows at some seats, their queries, and a layer of the pool.

    keys, values: [Hkv, num_slots, D]; query: [B, H, D]; seats, lengths: int32 [B]; page_tables: int32
    [seats, pages]."""

    query: Tensor
    keys: Tensor
    values: Tensor
    seats: Tensor
    lengths: Tensor
    page_tables: Tensor
    page_size: int


def paged_batch(
    lengths: list[int],
    *,
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    shared: list[tuple[list[int], int]] | None = None,
    padding: tuple[int, ...] = (),
) -> PagedBatch:
    """Rows of `lengths` at shuffled seats with shuffled pages; what no row sees is NaN, and page tables end in ids
    that would be out of range.

    shared: (rows, tokens) in turn; the rows' tables begin with the pages of the first of them, for so many tokens.
    padding: rows of seat -1."""
    num_pages = [-(-length // page_size) for length in lengths]
    total = sum(num_pages) + 2
    free = torch.randperm(total).tolist()
    tables = [[free.pop() for _ in range(count)] for count in num_pages]
    for rows, tokens in shared or []:
        assert tokens % page_size == 0
        for row in rows:
            tables[row][: tokens // page_size] = tables[rows[0]][: tokens // page_size]
    kv = torch.full((2, num_kv_heads, total * page_size, head_dim), torch.nan)
    for table, length in zip(tables, lengths, strict=True):
        tokens = torch.arange(length)
        slots = torch.tensor(table, dtype=torch.long)[tokens // page_size] * page_size + tokens % page_size
        kv[:, :, slots] = torch.randn(2, num_kv_heads, length, head_dim)
    num_seats = len(lengths) + 3
    seats = torch.randperm(num_seats)[: len(lengths)].int()
    page_tables = torch.full((num_seats, max(num_pages) + 1), 1 << 29, dtype=torch.int32)
    for seat, table in zip(seats.tolist(), tables, strict=True):
        page_tables[seat, : len(table)] = torch.tensor(table, dtype=torch.int32)
    seen = torch.tensor(lengths, dtype=torch.int32)
    for row in padding:
        seats[row], seen[row] = -1, 0
    query = torch.randn(len(lengths), num_kv_heads * group_size, head_dim)
    keys, values = kv.to(device, dtype)
    return PagedBatch(
        query.to(device, dtype),
        keys,
        values,
        seats.to(device),
        seen.to(device),
        page_tables.to(device),
        page_size,
    )
