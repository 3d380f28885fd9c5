"""What a step's rows compute, gathered from the seats of sequences that decode and from what the host gave.

A row with a seat computes the seat's newest token; one without computes the host's token of a given seat, or nothing.
    token_ids[r] = last_token[seats[r]]   positions[r] = position[seats[r]]   lengths[r] = positions[r] + 1
    slots[r] = page_tables[seats[r], positions[r] // P] * P + positions[r] % P
Seats whose known tokens are computed to the end, and that do not stand there yet, are moved: after what the host gave
comes a token that is sampled. Reads and writes some 60 bytes a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GIVEN_ROWS = 3
"""Of what the host gives of rows: token, position, seat (-1 for a row that computes nothing)."""
LOGIT_ROWS = 4
"""Of what it gives of rows that are sampled: the row, its seat (-1 for none), the position where that seat stands from
now on (-1 where it stands already), and how many output tokens it has then."""

_BLOCK = 128


def begin_step_reference(
    seats: Tensor,
    last_token: Tensor,
    position: Tensor,
    output_index: Tensor,
    page_tables: Tensor,
    given: Tensor | None,
    logits: Tensor | None,
    page_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition. seats int32 [N] (-1 without); given int32 [GIVEN_ROWS, N], of rows without a seat, None for no
    such rows; logits int32 [LOGIT_ROWS, L], of seats that no row has, None for no such seats
    -> token_ids, positions, slots, lengths, int32 [N]. lengths is 0 without a seat. position and output_index are
    changed."""
    has_seat = seats >= 0
    rows = torch.zeros(GIVEN_ROWS, len(seats), dtype=torch.int32, device=seats.device)
    rows[2] = -1
    if given is not None:
        rows = given
    held = torch.where(has_seat, position[seats.clamp(min=0).long()], rows[1])
    seat = torch.where(has_seat, seats, rows[2])
    pages = page_tables[seat.clamp(min=0).long(), (held // page_size).long()]
    token_ids = torch.where(has_seat, last_token[seats.clamp(min=0).long()], rows[0])
    slots = torch.where(seat >= 0, pages * page_size + held % page_size, -1)
    if logits is not None:
        is_moved = (logits[1] >= 0) & (logits[2] >= 0)
        moved = logits[1, is_moved].long()
        position[moved], output_index[moved] = logits[2, is_moved], logits[3, is_moved]
    return token_ids, held, slots, torch.where(has_seat, held + 1, 0)


@triton.jit(do_not_specialize=["num_rows", "num_logit_rows", "stride_given"])
def _begin_step_kernel(  # type: ignore[no-untyped-def]
    seats_ptr,
    last_token_ptr,
    position_ptr,
    output_index_ptr,
    page_tables_ptr,
    given_ptr,
    logits_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    lengths_ptr,
    num_rows,
    num_logit_rows,
    stride_table,
    stride_given,
    stride_logits,
    PAGE_SIZE: tl.constexpr,
    IS_GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < num_rows
    seat = tl.load(seats_ptr + row, mask=is_row, other=-1)
    has_seat = seat >= 0
    token = tl.load(last_token_ptr + seat, mask=has_seat, other=0)
    position = tl.load(position_ptr + seat, mask=has_seat, other=0)
    length = tl.where(has_seat, position + 1, 0)
    if IS_GIVEN:
        is_given = is_row & (seat < 0)
        token = tl.where(has_seat, token, tl.load(given_ptr + row, mask=is_given, other=0))
        position = tl.where(has_seat, position, tl.load(given_ptr + stride_given + row, mask=is_given, other=0))
        seat = tl.where(has_seat, seat, tl.load(given_ptr + 2 * stride_given + row, mask=is_given, other=-1))
        is_logit_row = row < num_logit_rows
        sampled = tl.load(logits_ptr + stride_logits + row, mask=is_logit_row, other=-1)
        stands_at = tl.load(logits_ptr + 2 * stride_logits + row, mask=is_logit_row, other=-1)
        is_moved = (sampled >= 0) & (stands_at >= 0)
        tl.store(position_ptr + sampled, stands_at, mask=is_moved)
        outputs = tl.load(logits_ptr + 3 * stride_logits + row, mask=is_moved, other=0)
        tl.store(output_index_ptr + sampled, outputs, mask=is_moved)
    page = tl.load(
        page_tables_ptr + seat.to(tl.int64) * stride_table + position // PAGE_SIZE, mask=is_row & (seat >= 0), other=0
    )
    slot = tl.where(seat >= 0, page * PAGE_SIZE + position % PAGE_SIZE, -1)
    tl.store(token_ids_ptr + row, token, mask=is_row)
    tl.store(positions_ptr + row, position, mask=is_row)
    tl.store(slots_ptr + row, slot, mask=is_row)
    tl.store(lengths_ptr + row, length, mask=is_row)


def begin_step(
    seats: Tensor,
    last_token: Tensor,
    position: Tensor,
    output_index: Tensor,
    page_tables: Tensor,
    given: Tensor | None,
    logits: Tensor | None,
    page_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    lengths: Tensor,
) -> None:
    """As the reference, into int32 buffers [N]. given and logits are there both or neither; their rows may be apart."""
    num_rows = len(seats)
    assert len(token_ids) == len(positions) == len(slots) == len(lengths) == num_rows
    assert page_tables.stride(1) == 1 and (given is None) == (logits is None)
    assert given is None or (given.stride(1) == 1 and given.shape == (GIVEN_ROWS, num_rows))
    assert logits is None or (logits.stride(1) == 1 and len(logits) == LOGIT_ROWS)
    num_logit_rows = 0 if logits is None else logits.shape[1]
    _begin_step_kernel[(triton.cdiv(max(num_rows, num_logit_rows), _BLOCK),)](
        seats,
        last_token,
        position,
        output_index,
        page_tables,
        given,
        logits,
        token_ids,
        positions,
        slots,
        lengths,
        num_rows,
        num_logit_rows,
        page_tables.stride(0),
        0 if given is None else given.stride(0),
        0 if logits is None else logits.stride(0),
        PAGE_SIZE=page_size,
        IS_GIVEN=given is not None,
        BLOCK=_BLOCK,
    )
