"""The work of grouped attention in fixed device buffers, so that a captured graph can serve any groups.

A segment's members are cut into tiles that fill a matrix product's rows, and its tokens into chunks of one size for
all segments; a tile and a chunk are an item. An item leaves a partial result for each of its members, and each row has
the list of its own. The chunk size balances filling the card against the partial results, whose writing and reading
costs as much as reading 2 * G tokens each.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from services.gpu_worker.kernels.tile_shape import GROUPED_TILES, TileShape, head_block, num_multiprocessors
from services.gpu_worker.prefix_groups import GroupTables

# What an item costs before its first token, in tokens that a program reads in that time.
_ITEM_TOKENS = 128
ITEM_WIDTH = 8


def chunk_size(
    tables: GroupTables, group_size: int, num_kv_heads: int, num_programs: int, tile: TileShape, max_partials: int
) -> int:
    """Tokens of a chunk: the cheapest of a geometric series, and of those whose partial results have a place."""
    counts = np.array([segment.count for segment in tables.segments])
    members = np.array([len(segment.rows) for segment in tables.segments])
    tiles = -(-members // members_per_tile(tile, group_size))
    longest = int(counts.max())
    best, least = 0, float("inf")
    for power in range(32):
        size = tile.block_tokens << power
        chunks = -(-counts // size)
        num_partials = int((chunks * members).sum())
        if num_partials <= max_partials:
            waves = -(-int((chunks * tiles).sum()) * num_kv_heads // num_programs)
            merging = num_partials * num_kv_heads * 2 * group_size / num_programs
            cost = waves * (min(size, longest) + _ITEM_TOKENS) + merging
            if cost < least:
                best, least = size, cost
        if size >= longest:
            break
    if best == 0:
        raise ValueError(f"{int(members.sum())} members of groups, but places for {max_partials} partial results")
    return best


def members_per_tile(tile: TileShape, group_size: int) -> int:
    return max(1, tile.block_rows // group_size)


class DeviceGroups:
    """The groups of the rows that are running, for one plan and all its layers.

    row_ends: [max_rows] tokens that groups read for a row. row_first, row_count: [max_rows] its part of row_partials
    [max_partials], which holds places of partial results. members: [max_partials] rows. num_items: [1]; items:
    [max_partials, 8]: seat, first member, members, first token, end, place of the first member's partial result."""

    def __init__(
        self,
        max_rows: int,
        max_partials: int,
        num_kv_heads: int,
        group_size: int,
        head_dim: int,
        device: torch.device,
        *,
        tile: TileShape | None = None,
        num_sms: int | None = None,
    ) -> None:
        """max_partials: MAX_DEPTH * max_rows is always enough; more lets few large groups be cut into more chunks."""
        self.tile = tile or GROUPED_TILES[head_block(head_dim)]
        self.num_programs = (num_sms or num_multiprocessors(device)) * self.tile.programs_per_sm
        self.max_rows, self.max_partials = max_rows, max_partials
        self.num_kv_heads, self.group_size, self.head_dim = num_kv_heads, group_size, head_dim
        parts = {
            "num_items": ITEM_WIDTH,
            "row_ends": max_rows,
            "row_first": max_rows,
            "row_count": max_rows,
            "row_partials": max_partials,
            "members": max_partials,
            "items": max_partials * ITEM_WIDTH,
        }
        is_cuda = device.type == "cuda"
        self._storage = torch.zeros(sum(parts.values()), dtype=torch.int32, device=device)
        self._staging = torch.zeros(sum(parts.values()), dtype=torch.int32, pin_memory=is_cuda)
        self._is_copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        views = dict(zip(parts, torch.split(self._storage, list(parts.values())), strict=True))
        staging = torch.split(self._staging, list(parts.values()))
        self._host = {name: part.numpy() for name, part in zip(parts, staging, strict=True)}
        self.num_items, self.row_ends, self.row_first = views["num_items"], views["row_ends"], views["row_first"]
        self.row_count, self.row_partials = views["row_count"], views["row_partials"]
        self.members, self.items = views["members"], views["items"]

    def load(self, tables: GroupTables, seats: Sequence[int]) -> None:
        """Puts groups in place for the launches that follow on the current stream. seats: of every row.

        They hold until a row joins, leaves, moves or has its page table rewritten."""
        if len(tables.row_ends) != len(seats) or len(seats) > self.max_rows:
            raise ValueError(f"groups of {len(tables.row_ends)} rows, {len(seats)} seats, at most {self.max_rows} rows")
        if self._is_copied is not None:
            self._is_copied.synchronize()  # the staging buffer may still be on its way
        self._fill(tables, seats)
        self._storage.copy_(self._staging, non_blocking=True)
        if self._is_copied is not None:
            self._is_copied.record()

    def clear(self) -> None:
        """No groups: every row reads all its tokens itself."""
        self._storage.zero_()

    def _fill(self, tables: GroupTables, seats: Sequence[int]) -> None:
        host = self._host
        host["row_ends"].fill(0)
        host["row_ends"][: len(seats)] = tables.row_ends
        host["row_first"].fill(0)
        host["row_count"].fill(0)
        host["num_items"].fill(0)
        if not tables.segments:
            return
        members = np.concatenate([segment.rows for segment in tables.segments])
        items, owners = self._items(tables, seats)
        order = np.argsort(owners, kind="stable")  # places by row, in the order of items
        counts = np.bincount(owners, minlength=len(seats))
        host["members"][: len(members)] = members
        host["items"][: items.size] = items.reshape(-1)
        host["num_items"][0] = len(items)
        host["row_partials"][: len(owners)] = order
        host["row_count"][: len(seats)] = counts
        host["row_first"][: len(seats)] = np.cumsum(counts) - counts

    def _items(self, tables: GroupTables, seats: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The items [items, 8], and the row that owns each place [places]."""
        size = chunk_size(tables, self.group_size, self.num_kv_heads, self.num_programs, self.tile, self.max_partials)
        per_tile = members_per_tile(self.tile, self.group_size)
        items: list[tuple[int, ...]] = []
        owners: list[NDArray[np.int32]] = []
        first_member = place = 0
        for segment in tables.segments:
            seat, num_members = seats[segment.rows[0]], len(segment.rows)
            end = segment.first + segment.count
            for start in range(segment.first, end, size):
                for tile in range(0, num_members, per_tile):
                    count = min(per_tile, num_members - tile)
                    items.append((seat, first_member + tile, count, start, min(start + size, end), place, 0, 0))
                    owners.append(segment.rows[tile : tile + count])
                    place += count
            first_member += num_members
        return np.array(items, dtype=np.int32), np.concatenate(owners)
