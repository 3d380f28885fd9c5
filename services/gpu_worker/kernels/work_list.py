"""The work list of a decode step: every row's tokens cut into chunks that fill the card evenly.

Row b has tokens[b] = lengths[b] - first[b] tokens to attend to, where first[b] is the end of the prefix that its
groups read for it, or the start of its window. With a chunk size C the step has sum_b max(1, ceil(tokens[b] / C))
items, and Hkv times as many pieces of work for the S multiprocessors. Beyond the time to read all tokens, which no cut
changes, it costs (ChunkCosts):
- a tail, when some multiprocessors are done and others are not: of a chunk where the work does not divide by S, and of
  what the longest chunk is longer than the mean;
- each piece of work its start, and in a row that is cut its partial result;
- a merge, when a row is cut, and more for every chunk of the longest row.
The list is made with the cheapest C of a geometric series; each row is cut into chunks of equal numbers of blocks. The
last C of the series cuts no row of less than 4 million tokens, so that max_items >= max_rows is always enough.

One program makes it once a step for all layers, from lengths on the device. Reads and writes a few kilobytes.
"""

import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.group_tables import DeviceGroups
from services.gpu_worker.kernels.tile_shape import DECODE_TILES, TileShape, head_block, num_multiprocessors

NUM_SIZES = tl.constexpr(32)
_ROWS_AT_ONCE = 256
_ITEMS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class ChunkCosts:
    """What cutting costs, in tokens of one head that a multiprocessor reads at its share of the card's bandwidth.

    item: the start of a piece of work. split: writing and reading its partial result. merge: of a row that is cut;
    part: for each of its chunks. tail: 16ths of the time of a token in the tail, when the card is not full and a
    multiprocessor reads faster."""

    item: int
    split: int
    merge: int
    part: int
    tail: int

    @classmethod
    def of_heads(cls, group_size: int, head_dim: int) -> "ChunkCosts":
        """For an H100: a merge takes about 2 us and 60 ns a part, in which a multiprocessor reads 50 KB and 1.5 KB;
        tail by measurement."""
        tail = 14 if head_dim <= 64 else 7
        return cls(item=16, split=2 * group_size, merge=12_000 // head_dim, part=384 // head_dim, tail=tail)


def chunk_sizes(block_tokens: int) -> list[int]:
    """The series of chunk sizes: blocks times 1, 2, 3, 4, 6, 8, 12, ..."""
    blocks = [1] + [(2 + step % 2) << (step // 2) for step in range(NUM_SIZES.value - 1)]
    return [block_tokens * count for count in blocks]


def work_list_reference(
    tokens: list[int], num_kv_heads: int, num_sms: int, costs: ChunkCosts, block_tokens: int, max_items: int
) -> list[list[tuple[int, int]]]:
    """The definition: the chunks (start, end) of every row, counted from the row's first token."""

    def cost(size: int) -> float:
        num_filled = sum(-(-count // size) for count in tokens)
        if num_filled + tokens.count(0) > max_items:
            return float("inf")
        work = num_filled * num_kv_heads
        chunk = min(size, max(tokens))
        parts = -(-max(tokens) // size)
        tail = -work % num_sms * chunk + num_sms * (chunk - sum(tokens) // max(1, num_filled))
        starts = work * (costs.item + (costs.split if parts > 1 else 0))
        merging = costs.merge + costs.part * parts if parts > 1 else 0
        return tail * costs.tail + 16 * (starts + num_sms * merging)

    best = min(chunk_sizes(block_tokens), key=cost)
    rows = []
    for count in tokens:
        num_blocks, num_chunks = -(-count // block_tokens), max(1, -(-count // best))
        borders = [min(count, part * num_blocks // num_chunks * block_tokens) for part in range(num_chunks + 1)]
        rows.append(list(itertools.pairwise(borders)))
    return rows


@triton.jit
def _first_token(length, rows, is_row, group_ends_ptr, window, HAS_WINDOW: tl.constexpr, HAS_GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first token that the row's own chunks read."""
    first = tl.zeros_like(length)
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    if HAS_GROUPS:
        first = tl.minimum(tl.load(group_ends_ptr + rows, mask=is_row, other=0), length)
    return first


@triton.jit
def _length(lengths_ptr, seats_ptr, rows, is_row):  # type: ignore[no-untyped-def]
    """Tokens that rows see; 0 without a seat."""
    seat = tl.load(seats_ptr + rows, mask=is_row, other=-1)
    return tl.where(seat >= 0, tl.load(lengths_ptr + rows, mask=is_row, other=0), 0)


_RUNTIME = ["num_rows", "max_items", "window", "num_sms"]
_COSTS = ["item_cost", "split_cost", "merge_cost", "part_cost", "tail_cost"]


@triton.jit(do_not_specialize=_RUNTIME + _COSTS)
def _work_list_kernel(  # type: ignore[no-untyped-def]
    lengths_ptr,  # [B]
    seats_ptr,  # [B]
    group_ends_ptr,  # [B], read with HAS_GROUPS
    num_items_ptr,  # [1]
    items_ptr,  # [max_items, 4]: row, seat, first token, end
    row_first_ptr,  # [B]
    row_count_ptr,  # [B]
    marks_ptr,  # [max_items], scratch
    num_rows,
    max_items,
    window,
    num_sms,
    item_cost,  # see ChunkCosts
    split_cost,
    merge_cost,
    part_cost,
    tail_cost,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
):
    offsets = tl.arange(0, BLOCK_ROWS)
    # Candidates, and what each would make of the rows.
    step = tl.arange(0, NUM_SIZES)
    sizes = tl.where(step == 0, BLOCK_N, ((2 + (step + 1) % 2) << ((tl.maximum(step, 1) - 1) // 2)) * BLOCK_N)
    num_filled = tl.zeros([NUM_SIZES], tl.int32)  # chunks with tokens
    num_empty = 0  # rows without, which have an item too
    longest = tl.zeros([BLOCK_ROWS], tl.int32)
    num_tokens = 0
    for base in range(0, num_rows, BLOCK_ROWS):
        rows = base + offsets
        is_row = rows < num_rows
        length = _length(lengths_ptr, seats_ptr, rows, is_row)
        tokens = length - _first_token(length, rows, is_row, group_ends_ptr, window, HAS_WINDOW, HAS_GROUPS)
        num_filled += tl.sum((tokens[:, None] + sizes[None, :] - 1) // sizes[None, :], 0)
        num_empty += tl.sum((is_row & (tokens == 0)).to(tl.int32), 0)
        num_tokens += tl.sum(tokens, 0)
        longest = tl.maximum(longest, tokens)
    longest_row = tl.max(longest, 0)
    work = (num_filled * NUM_KV_HEADS).to(tl.int64)
    chunk = tl.minimum(sizes, longest_row)
    parts = (longest_row + sizes - 1) // sizes
    idle = (work + num_sms - 1) // num_sms * num_sms - work
    tail = idle * chunk + num_sms * (chunk - num_tokens // tl.maximum(num_filled, 1))
    starts = work * (item_cost + tl.where(parts > 1, split_cost, 0))
    merging = tl.where(parts > 1, merge_cost + part_cost * parts, 0)
    cost = tail * tail_cost + 16 * (starts + num_sms * merging)
    cost = tl.where(num_filled + num_empty > max_items, 1 << 62, cost)
    is_best = step == tl.argmin(cost, 0)
    size = tl.sum(tl.where(is_best, sizes, 0), 0)
    total = num_empty + tl.sum(tl.where(is_best, num_filled, 0), 0)
    tl.store(num_items_ptr, total)

    # Mark the first item of every row: the sum of marks up to an item then tells its row.
    places = tl.arange(0, BLOCK_ITEMS)
    for base in range(0, total, BLOCK_ITEMS):
        tl.store(marks_ptr + base + places, 0, mask=base + places < total)
    tl.debug_barrier()
    first_item = 0
    for base in range(0, num_rows, BLOCK_ROWS):
        rows = base + offsets
        is_row = rows < num_rows
        length = _length(lengths_ptr, seats_ptr, rows, is_row)
        tokens = length - _first_token(length, rows, is_row, group_ends_ptr, window, HAS_WINDOW, HAS_GROUPS)
        count = tl.where(is_row, tl.maximum((tokens + size - 1) // size, 1), 0)
        first = first_item + tl.cumsum(count, 0) - count
        tl.store(row_first_ptr + rows, first, mask=is_row)
        tl.store(row_count_ptr + rows, count, mask=is_row)
        tl.store(marks_ptr + first, 1, mask=is_row)
        first_item += tl.sum(count, 0)
    tl.debug_barrier()

    rows_before = 0
    for base in range(0, total, BLOCK_ITEMS):
        item = base + places
        is_item = item < total
        mark = tl.load(marks_ptr + item, mask=is_item, other=0)
        row = rows_before + tl.cumsum(mark, 0) - 1
        rows_before += tl.sum(mark, 0)
        length = _length(lengths_ptr, seats_ptr, row, is_item)
        start = _first_token(length, row, is_item, group_ends_ptr, window, HAS_WINDOW, HAS_GROUPS)
        seat = tl.load(seats_ptr + row, mask=is_item, other=-1)
        part = item - tl.load(row_first_ptr + row, mask=is_item, other=0)
        count = tl.load(row_count_ptr + row, mask=is_item, other=1)
        num_blocks = (length - start + BLOCK_N - 1) // BLOCK_N
        left = start + part * num_blocks // count * BLOCK_N
        right = tl.minimum(start + (part + 1) * num_blocks // count * BLOCK_N, length)
        tl.store(items_ptr + item * 4, row, mask=is_item)
        tl.store(items_ptr + item * 4 + 1, tl.where(length > 0, seat, -1), mask=is_item)
        tl.store(items_ptr + item * 4 + 2, left, mask=is_item)
        tl.store(items_ptr + item * 4 + 3, right, mask=is_item)


class DecodePlan:
    """The work list of a step and the scratch of its attention: fixed buffers, made once, used by every layer of one
    window. A captured graph of any batch up to max_rows may use them."""

    def __init__(
        self,
        max_rows: int,
        max_items: int | None,
        num_kv_heads: int,
        group_size: int,
        head_dim: int,
        device: torch.device,
        *,
        window: int | None = None,
        max_group_partials: int = 0,
        tile: TileShape | None = None,
        num_sms: int | None = None,
        costs: ChunkCosts | None = None,
    ) -> None:
        """max_items: places for chunks, at least max_rows; None for enough to fill the card a few times over.
        max_group_partials: that of the DeviceGroups that the plan is used with, 0 without groups.
        num_sms: multiprocessors to fill, None for the device's. costs: what the cut is judged by."""
        self.tile = tile or DECODE_TILES[head_block(head_dim)]
        self.costs = costs or ChunkCosts.of_heads(group_size, head_dim)
        self.num_sms = num_sms or num_multiprocessors(device)
        self.num_programs = self.num_sms * self.tile.programs_per_sm
        if max_items is None:
            max_items = max_rows + 8 * triton.cdiv(self.num_sms, num_kv_heads)
        if max_items < max_rows:
            raise ValueError(f"max_items {max_items} is less than max_rows {max_rows}: every row has an item")
        if window is not None and max_group_partials:
            raise ValueError("groups read whole prefixes and cannot serve layers with a window")
        self.max_rows, self.max_items, self.window = max_rows, max_items, window
        self.max_group_partials = max_group_partials
        self.num_kv_heads, self.group_size, self.head_dim = num_kv_heads, group_size, head_dim
        self.has_groups = False
        self.num_items = torch.zeros(1, dtype=torch.int32, device=device)
        self.items = torch.zeros(max_items, 4, dtype=torch.int32, device=device)
        self.row_first = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.row_count = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.arrived = torch.zeros(max_rows, num_kv_heads, dtype=torch.int32, device=device)
        self._marks = torch.zeros(max_items, dtype=torch.int32, device=device)
        num_places = max_items + max_group_partials
        self.partials = torch.empty(num_places, num_kv_heads, group_size, head_dim, dtype=torch.float32, device=device)
        self.log_weights = torch.empty(num_places, num_kv_heads, group_size, dtype=torch.float32, device=device)

    def update(self, lengths: Tensor, seats: Tensor, groups: DeviceGroups | None = None) -> None:
        """Makes the work list of a step, on the device. lengths, seats: int32 [B]; a row of seat -1 or length 0 is
        padding. One small launch: once a step, before the first layer."""
        num_rows = len(lengths)
        assert num_rows == len(seats) and 0 < num_rows <= self.max_rows, "the plan was made for fewer rows"
        assert lengths.dtype == seats.dtype == torch.int32 and lengths.stride(0) == seats.stride(0) == 1
        if groups is not None and groups.max_partials > self.max_group_partials:
            raise ValueError(f"the plan has {self.max_group_partials} places for groups, not {groups.max_partials}")
        self.has_groups = groups is not None
        _work_list_kernel[(1,)](
            lengths,
            seats,
            None if groups is None else groups.row_ends,
            self.num_items,
            self.items,
            self.row_first,
            self.row_count,
            self._marks,
            num_rows,
            self.max_items,
            self.window or 0,
            self.num_sms,
            self.costs.item,
            self.costs.split,
            self.costs.merge,
            self.costs.part,
            self.costs.tail,
            NUM_KV_HEADS=self.num_kv_heads,
            BLOCK_N=self.tile.block_tokens,
            BLOCK_ROWS=_ROWS_AT_ONCE,
            BLOCK_ITEMS=_ITEMS_AT_ONCE,
            HAS_WINDOW=self.window is not None,
            HAS_GROUPS=groups is not None,
            num_warps=8,
        )
