"""Forced runs that follow the newest tokens, as further rows of the step that computes these tokens.

Row r of number g > 0 with seat s and newest token t walks from state g through the bytes of t, `follow` from one to the
next; where there is no way it comes to 0, and stays there. If the state it comes to has an entry of length k,
0 < k <= most[r], and the runs of the rows up to r have at most num_places tokens, and there is a part left for it, the
run's tokens j become rows
    first + (tokens of runs before) + j:  token run[j]  of seat s  at position[s] + 1 + j
which are a part of extend attention behind the newest token, with tiles at the end of the list; and the seat stands at
the last of them: position[s] += k, output_index[s] += k, and the next token is sampled from that row. All other rows
stay as they are. Reads some 5 bytes for each byte of a token and 64 bytes a row, writes 12 a token of a run and 24 a
run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.grammar.prediction import ENTRY, HEADER, MAX_LENGTH, MAX_NUMBERS, NOWHERE
from services.gpu_worker.grammar.vocabulary import MAX_TOKEN_BYTES

GUESS_ROWS = 2
"""Of what the host gives of rows that decode: number (0 for none), and the longest run that has pages and leave."""
BOUNDS = 3
"""Numbers of a step: the first row for runs, how many rows there are for them, and the first part for them."""

_LEAST_BLOCK = 128  # smaller ones are no faster, and every size is compiled


def predict_runs_reference(
    guesses: Tensor,
    bounds: Tensor,
    follow: Tensor,
    entries: Tensor,
    texts: Tensor,
    text_lengths: Tensor,
    seats: Tensor,
    last_token: Tensor,
    position: Tensor,
    output_index: Tensor,
    page_tables: Tensor,
    page_size: int,
    logit_rows: Tensor,
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    tiles: Tensor,
    num_tiles: Tensor,
    tile_rows: int,
) -> None:
    """The definition, in place. guesses int32 [GUESS_ROWS, B]; bounds int32 [BOUNDS]; follow, entries, texts,
    text_lengths: see `RunTable`; logit_rows int32 [>= B]; seats, token_ids, positions, slots: int32 [N]; parts: seats,
    first rows, starts and counts, int32 [P]; tiles int32 [2, T], num_tiles int32 [1]: see `plan_extend`, with
    tile_rows rows a tile."""
    first, num_places, part = bounds.tolist()
    num_tokens = 0
    for row, (number, most) in enumerate(guesses.T.tolist()):
        if number == NOWHERE:
            continue
        seat = int(seats[row])
        token = int(last_token[seat])
        text = texts[token, : text_lengths[token]].tolist()
        for byte in text:
            number = int(follow[number, byte])
        if not text or number == NOWHERE:
            continue
        entry = entries[number].tolist()
        length = entry[0]
        if not 0 < length <= most:
            continue
        num_tokens += length
        if num_tokens > num_places or part == len(parts[0]):
            continue
        start = first + num_tokens - length
        for j in range(length):
            at, place = start + j, int(position[seat]) + 1 + j
            token_ids[at], positions[at] = entry[HEADER + j], place
            slots[at] = page_tables[seat, place // page_size] * page_size + place % page_size
        for field, value in zip(parts, (seat, start, int(position[seat]) + 1, length), strict=True):
            field[part] = value
        for tile_row in range(0, length, tile_rows):
            tiles[0, num_tiles], tiles[1, num_tiles] = part, tile_row
            num_tiles += 1
        part += 1
        logit_rows[row] = start + length - 1
        position[seat] += length
        output_index[seat] += length


@triton.jit(do_not_specialize=["num_rows", "num_parts", "stride_guesses", "stride_tiles"])
def _predict_runs_kernel(  # type: ignore[no-untyped-def]
    guesses_ptr,
    bounds_ptr,
    follow_ptr,
    entries_ptr,
    texts_ptr,
    text_lengths_ptr,
    seats_ptr,
    last_token_ptr,
    position_ptr,
    output_index_ptr,
    page_tables_ptr,
    logit_rows_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    part_seats_ptr,
    part_firsts_ptr,
    part_starts_ptr,
    part_counts_ptr,
    tiles_ptr,
    num_tiles_ptr,
    num_rows,
    num_parts,
    stride_guesses,
    stride_table,
    stride_tiles,
    PAGE_SIZE: tl.constexpr,
    MAX_TOKEN_BYTES: tl.constexpr,
    ENTRY: tl.constexpr,
    HEADER: tl.constexpr,
    MAX_LENGTH: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    MAX_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, BLOCK)
    is_row = rows < num_rows
    at = tl.load(guesses_ptr + rows, mask=is_row, other=0)
    most = tl.load(guesses_ptr + stride_guesses + rows, mask=is_row, other=0)
    is_asked = at > 0
    seat = tl.load(seats_ptr + rows, mask=is_asked, other=-1)
    token = tl.load(last_token_ptr + seat, mask=is_asked, other=0)
    text_length = tl.load(text_lengths_ptr + token, mask=is_asked, other=0)
    at = tl.where(text_length > 0, at, 0)
    text_ptr = texts_ptr + token * MAX_TOKEN_BYTES
    for j in range(tl.max(text_length, 0)):
        is_on = j < text_length
        byte = tl.load(text_ptr + j, mask=is_on, other=0).to(tl.int32)
        at = tl.where(is_on, tl.load(follow_ptr + at * 256 + byte, mask=is_on, other=0), at)
    is_there = at > 0
    entry_ptr = entries_ptr + at * ENTRY
    length = tl.load(entry_ptr, mask=is_there, other=0)
    length = tl.where(length <= most, length, 0)
    end = tl.cumsum(length, 0)
    length = tl.where(end <= tl.load(bounds_ptr + 1), length, 0)
    part = tl.load(bounds_ptr + 2) + tl.cumsum((length > 0).to(tl.int32), 0) - 1
    is_found = (length > 0) & (part < num_parts)
    length = tl.where(is_found, length, 0)
    start = tl.load(bounds_ptr) + end - length
    position = tl.load(position_ptr + seat, mask=is_found, other=0)
    outputs = tl.load(output_index_ptr + seat, mask=is_found, other=0)
    table_ptr = page_tables_ptr + seat.to(tl.int64) * stride_table
    for j in range(MAX_LENGTH):
        is_in = j < length
        place = position + 1 + j
        page = tl.load(table_ptr + place // PAGE_SIZE, mask=is_in, other=0)
        tl.store(token_ids_ptr + start + j, tl.load(entry_ptr + HEADER + j, mask=is_in, other=0), mask=is_in)
        tl.store(positions_ptr + start + j, place, mask=is_in)
        tl.store(slots_ptr + start + j, page * PAGE_SIZE + place % PAGE_SIZE, mask=is_in)
    tl.store(part_seats_ptr + part, seat, mask=is_found)
    tl.store(part_firsts_ptr + part, start, mask=is_found)
    tl.store(part_starts_ptr + part, position + 1, mask=is_found)
    tl.store(part_counts_ptr + part, length, mask=is_found)
    num_own = (length + TILE_ROWS - 1) // TILE_ROWS
    before = tl.load(num_tiles_ptr)
    tile = before + tl.cumsum(num_own, 0) - num_own
    for j in range(MAX_TILES):
        tl.store(tiles_ptr + tile + j, part, mask=j < num_own)
        tl.store(tiles_ptr + stride_tiles + tile + j, tl.zeros_like(part) + j * TILE_ROWS, mask=j < num_own)
    tl.debug_barrier()  # every thread has read how many there were
    tl.store(num_tiles_ptr, before + tl.sum(num_own, 0))
    tl.store(logit_rows_ptr + rows, start + length - 1, mask=is_found)
    tl.store(position_ptr + seat, position + length, mask=is_found)
    tl.store(output_index_ptr + seat, outputs + length, mask=is_found)


def predict_runs(
    guesses: Tensor,
    bounds: Tensor,
    follow: Tensor,
    entries: Tensor,
    texts: Tensor,
    text_lengths: Tensor,
    seats: Tensor,
    last_token: Tensor,
    position: Tensor,
    output_index: Tensor,
    page_tables: Tensor,
    page_size: int,
    logit_rows: Tensor,
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    tiles: Tensor,
    num_tiles: Tensor,
    tile_rows: int,
) -> None:
    """As the reference, by one program. Rows of guesses and of tiles may be apart."""
    num_rows = guesses.shape[1]
    assert len(guesses) == GUESS_ROWS and guesses.stride(1) == 1 and len(bounds) == BOUNDS
    assert follow.shape == (MAX_NUMBERS, 256) and entries.shape == (MAX_NUMBERS, ENTRY) and page_tables.stride(1) == 1
    assert texts.shape == (len(text_lengths), MAX_TOKEN_BYTES) and texts.dtype is torch.uint8
    assert all(one.is_contiguous() for one in (follow, entries, texts, text_lengths, *parts))
    assert len(seats) == len(token_ids) == len(positions) == len(slots) and len(logit_rows) >= num_rows
    assert len({len(field) for field in parts}) == 1 and len(tiles) == 2 and tiles.stride(1) == 1
    assert all(one.dtype is torch.int32 for one in (guesses, bounds, follow, entries, text_lengths, seats, logit_rows))
    _predict_runs_kernel[(1,)](
        guesses,
        bounds,
        follow,
        entries,
        texts,
        text_lengths,
        seats,
        last_token,
        position,
        output_index,
        page_tables,
        logit_rows,
        token_ids,
        positions,
        slots,
        *parts,
        tiles,
        num_tiles,
        num_rows,
        len(parts[0]),
        guesses.stride(0),
        page_tables.stride(0),
        tiles.stride(0),
        PAGE_SIZE=page_size,
        MAX_TOKEN_BYTES=MAX_TOKEN_BYTES,
        ENTRY=ENTRY,
        HEADER=HEADER,
        MAX_LENGTH=MAX_LENGTH,
        TILE_ROWS=tile_rows,
        MAX_TILES=triton.cdiv(MAX_LENGTH, tile_rows),
        BLOCK=max(triton.next_power_of_2(num_rows), _LEAST_BLOCK),
    )
