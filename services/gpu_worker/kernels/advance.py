"""The end of a step: what the sampled tokens change in the seats, so that the next step needs no word of the host.

For each row b with seat s: last_token[s] = max(token[b], 0); position[s] += 1; output_index[s] += 1;
counts[penalty row of s, token[b]] += 1 where s has penalties. history[slot, b] = token[b] for every row; then slot
moves to the next of the ring.
A token of -1 (logits that are no numbers) goes into the history, from which the host learns of it; the next step,
which may run before the host knows, must not look up an embedding that does not exist.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.penalties import Penalties


@dataclass(frozen=True, slots=True)
class SeatState:
    """last_token, position, output_index: int32 [seats]; position is where the next token's keys go.

    history: int32 [depth, most rows], a ring of the last steps' tokens; slot: int32 [1], where the next step's go."""

    last_token: Tensor
    position: Tensor
    output_index: Tensor
    history: Tensor
    slot: Tensor


def advance_reference(tokens: Tensor, seats: Tensor, state: SeatState, penalties: Penalties | None = None) -> None:
    """The definition, in place. tokens, seats: int32 [B]."""
    for token, seat in zip(tokens.tolist(), seats.tolist(), strict=True):
        if seat < 0:
            continue
        state.last_token[seat] = max(token, 0)
        state.position[seat] += 1
        state.output_index[seat] += 1
        if penalties is not None and penalties.rows[seat] >= 0 and token >= 0:
            penalties.counts[penalties.rows[seat], token] += 1
    state.history[int(state.slot), : len(tokens)] = tokens
    state.slot.copy_((state.slot + 1) % len(state.history))


@triton.jit
def _advance_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    seats_ptr,
    last_token_ptr,
    position_ptr,
    output_index_ptr,
    history_ptr,
    slot_ptr,
    penalty_rows_ptr,  # None where no seat can have penalties
    counts_ptr,
    stride_history,
    stride_counts,
    num_rows,
    depth,
    HAS_PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.arange(0, BLOCK)
    is_row = rows < num_rows
    tokens = tl.load(tokens_ptr + rows, mask=is_row, other=-1)
    seats = tl.load(seats_ptr + rows, mask=is_row, other=-1)
    slot = tl.load(slot_ptr)
    tl.store(history_ptr + slot * stride_history + rows, tokens, mask=is_row)
    is_seat = seats >= 0
    tl.store(last_token_ptr + seats, tl.maximum(tokens, 0), mask=is_seat)
    position = tl.load(position_ptr + seats, mask=is_seat, other=0)
    tl.store(position_ptr + seats, position + 1, mask=is_seat)
    output_index = tl.load(output_index_ptr + seats, mask=is_seat, other=0)
    tl.store(output_index_ptr + seats, output_index + 1, mask=is_seat)
    if HAS_PENALTIES:
        penalty_rows = tl.load(penalty_rows_ptr + seats, mask=is_seat, other=-1).to(tl.int64)
        is_counted = (penalty_rows >= 0) & (tokens >= 0)
        count_ptr = counts_ptr + penalty_rows * stride_counts + tokens
        tl.store(count_ptr, tl.load(count_ptr, mask=is_counted, other=0) + 1, mask=is_counted)
    tl.debug_barrier()  # all have read the slot
    tl.store(slot_ptr, (slot + 1) % depth)


def advance(tokens: Tensor, seats: Tensor, state: SeatState, penalties: Penalties | None = None) -> None:
    """In place, by one program. tokens, seats: int32 [B]; no seat twice, negative for padding."""
    (num_rows,) = tokens.shape
    assert seats.shape == (num_rows,) and state.history.shape[1] >= num_rows and state.history.stride(1) == 1
    _advance_kernel[(1,)](
        tokens,
        seats,
        state.last_token,
        state.position,
        state.output_index,
        state.history,
        state.slot,
        None if penalties is None else penalties.rows,
        None if penalties is None else penalties.counts,
        state.history.stride(0),
        0 if penalties is None else penalties.counts.stride(0),
        num_rows,
        state.history.shape[0],
        HAS_PENALTIES=penalties is not None,
        BLOCK=triton.next_power_of_2(num_rows),
    )
