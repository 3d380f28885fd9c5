"""What a step's rows compute, gathered from the seats of sequences that decode and from what the host gave.

A row with a seat computes the seat's newest token; one without computes the host's token, or nothing (slot -1).
    token_ids[r] = last_token[seats[r]]   positions[r] = position[seats[r]]   lengths[r] = positions[r] + 1
    slots[r] = page_tables[seats[r], positions[r] // P] * P + positions[r] % P
Reads and writes some 40 bytes a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


def begin_step_reference(
    seats: Tensor, last_token: Tensor, position: Tensor, page_tables: Tensor, host_rows: Tensor | None, page_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition: seats int32 [N] (-1 without); host_rows int32 [3, N], token, position and slot of rows without a
    seat, None for no such rows -> token_ids, positions, slots, lengths, int32 [N]. lengths is 0 without a seat."""
    has_seat = seats >= 0
    seat = seats.clamp(min=0).long()
    held = position[seat]
    pages = page_tables[seat, (held // page_size).long()]
    given = torch.zeros(3, len(seats), dtype=torch.int32, device=seats.device)
    given[2] = -1
    if host_rows is not None:
        given = host_rows
    return (
        torch.where(has_seat, last_token[seat], given[0]),
        torch.where(has_seat, held, given[1]),
        torch.where(has_seat, pages * page_size + held % page_size, given[2]),
        torch.where(has_seat, held + 1, 0),
    )


@triton.jit(do_not_specialize=["num_rows"])
def _begin_step_kernel(  # type: ignore[no-untyped-def]
    seats_ptr,
    last_token_ptr,
    position_ptr,
    page_tables_ptr,
    host_rows_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    lengths_ptr,
    num_rows,
    table_stride,
    host_stride,
    PAGE_SIZE: tl.constexpr,
    HAS_HOST_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_rows
    seat = tl.load(seats_ptr + row, mask=is_row, other=-1)
    has_seat = seat >= 0
    token = tl.load(last_token_ptr + seat, mask=has_seat, other=0)
    position = tl.load(position_ptr + seat, mask=has_seat, other=0)
    page = tl.load(page_tables_ptr + seat.to(tl.int64) * table_stride + position // PAGE_SIZE, mask=has_seat, other=0)
    slot = tl.where(has_seat, page * PAGE_SIZE + position % PAGE_SIZE, -1)
    length = tl.where(has_seat, position + 1, 0)
    if HAS_HOST_ROWS:
        is_given = is_row & (seat < 0)
        token = tl.where(has_seat, token, tl.load(host_rows_ptr + row, mask=is_given, other=0))
        position = tl.where(has_seat, position, tl.load(host_rows_ptr + host_stride + row, mask=is_given, other=0))
        slot = tl.where(has_seat, slot, tl.load(host_rows_ptr + 2 * host_stride + row, mask=is_given, other=-1))
    tl.store(token_ids_ptr + row, token, mask=is_row)
    tl.store(positions_ptr + row, position, mask=is_row)
    tl.store(slots_ptr + row, slot, mask=is_row)
    tl.store(lengths_ptr + row, length, mask=is_row)


def begin_step(
    seats: Tensor,
    last_token: Tensor,
    position: Tensor,
    page_tables: Tensor,
    host_rows: Tensor | None,
    page_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    lengths: Tensor,
) -> None:
    """As the reference, into int32 buffers [N]. Rows of host_rows may be apart."""
    num_rows = len(seats)
    assert len(token_ids) == len(positions) == len(slots) == len(lengths) == num_rows
    assert page_tables.stride(1) == 1 and (host_rows is None or host_rows.stride(1) == 1)
    _begin_step_kernel[(triton.cdiv(num_rows, _BLOCK),)](
        seats,
        last_token,
        position,
        page_tables,
        host_rows,
        token_ids,
        positions,
        slots,
        lengths,
        num_rows,
        page_tables.stride(0),
        0 if host_rows is None else host_rows.stride(0),
        PAGE_SIZE=page_size,
        HAS_HOST_ROWS=host_rows is not None,
        BLOCK=_BLOCK,
    )
