"""Everything that changes logits before sampling, in one launch: penalties, biases, barred stop ids, grammar masks.

In this order: `penalties`; logits[b, bias id] += bias; logits[b, stop id] = -inf while the output is shorter than
min_tokens; `apply_bitmask`. Reads and writes the logits of rows with penalties or masks, and for the others only the
tokens that are named: a row without any of it costs a few loads of numbers that the cache holds.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.apply_bitmask import apply_bitmask_reference, is_bit_set
from services.gpu_worker.kernels.penalties import Penalties, penalised, penalties_reference

BLOCK = 2048
IDS = 64  # named tokens that are handled at once


@dataclass(frozen=True, slots=True)
class NamedTokens:
    """Tokens that requests name, per seat.

    bias_ids: int32 [seats, most biases], bias_values: float32, the first bias_counts int32 [seats] of them count, no
    id twice. stop_ids: int32 [seats, most stop ids], of which stop_counts count, barred while fewer than min_tokens
    int32 [seats] came out. All ids are of the vocabulary."""

    bias_ids: Tensor
    bias_values: Tensor
    bias_counts: Tensor
    stop_ids: Tensor
    stop_counts: Tensor
    min_tokens: Tensor

    @staticmethod
    def allocate(num_seats: int, most_biases: int, most_stop_ids: int, device: torch.device) -> "NamedTokens":
        def made(dtype: torch.dtype, *dims: int) -> Tensor:
            return torch.zeros(dims, dtype=dtype, device=device)

        return NamedTokens(
            made(torch.int32, num_seats, most_biases),
            made(torch.float32, num_seats, most_biases),
            made(torch.int32, num_seats),
            made(torch.int32, num_seats, most_stop_ids),
            made(torch.int32, num_seats),
            made(torch.int32, num_seats),
        )


@dataclass(frozen=True, slots=True)
class Masks:
    """bitmask: int32 [rows, ceil(V / 32)]; mask_rows: int32 [B], which of them is a batch row's, -1 for none."""

    bitmask: Tensor
    mask_rows: Tensor


def adjust_logits_reference(
    logits: Tensor,
    seats: Tensor,
    output_index: Tensor,
    named: NamedTokens,
    penalties: Penalties | None = None,
    masks: Masks | None = None,
) -> Tensor:
    """The definition. logits: float32 [B, V] -> [B, V]."""
    out = logits.clone() if penalties is None else penalties_reference(logits, seats, penalties)
    for row, seat in enumerate(seats.tolist()):
        if seat < 0:
            continue
        num_biases, num_stops = int(named.bias_counts[seat]), int(named.stop_counts[seat])
        out[row, named.bias_ids[seat, :num_biases].long()] += named.bias_values[seat, :num_biases]
        if output_index[seat] < named.min_tokens[seat]:
            out[row, named.stop_ids[seat, :num_stops].long()] = -torch.inf
    if masks is None:
        return out
    return apply_bitmask_reference(out, masks.bitmask, torch.where(seats >= 0, masks.mask_rows, -1))


@triton.jit
def _adjust_logits_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    seats_ptr,
    output_index_ptr,
    penalty_rows_ptr,  # None where the launch has no penalties
    presence_ptr,
    frequency_ptr,
    repetition_ptr,
    counts_ptr,
    seen_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    bias_counts_ptr,
    stop_ids_ptr,
    stop_counts_ptr,
    min_tokens_ptr,
    bitmask_ptr,  # None where the launch has no masks
    mask_rows_ptr,
    stride_logits,
    stride_counts,
    stride_seen,
    stride_bias,
    stride_stop,
    stride_bitmask,
    vocab_size,
    HAS_PENALTIES: tl.constexpr,
    HAS_MASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    IDS: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    seat = tl.load(seats_ptr + row).to(tl.int64)
    if seat < 0:
        return
    num_biases = tl.load(bias_counts_ptr + seat)
    num_stops = tl.load(stop_counts_ptr + seat)
    is_short = tl.load(output_index_ptr + seat) < tl.load(min_tokens_ptr + seat)
    start = tl.program_id(0) * BLOCK
    end = tl.minimum(start + BLOCK, vocab_size)
    logits_ptr += row * stride_logits

    tokens = start + tl.arange(0, BLOCK)
    is_token = tokens < end
    if HAS_PENALTIES:
        penalty_row = tl.load(penalty_rows_ptr + seat).to(tl.int64)
        if penalty_row >= 0:
            logits = tl.load(logits_ptr + tokens, mask=is_token, other=0.0).to(tl.float32)
            logits = penalised(
                logits,
                tokens,
                is_token,
                counts_ptr + penalty_row * stride_counts,
                seen_ptr + penalty_row * stride_seen,
                tl.load(presence_ptr + seat),
                tl.load(frequency_ptr + seat),
                tl.load(repetition_ptr + seat),
            )
            tl.store(logits_ptr + tokens, logits, mask=is_token)
    ids_at = tl.arange(0, IDS)
    if num_biases > 0:
        tl.debug_barrier()  # other threads than those that stored a logit may add to it
        for first in range(0, num_biases, IDS):
            at = first + ids_at
            ids = tl.load(bias_ids_ptr + seat * stride_bias + at, mask=at < num_biases, other=-1)
            is_here = (ids >= start) & (ids < end)
            values = tl.load(bias_values_ptr + seat * stride_bias + at, mask=is_here, other=0.0)
            logits = tl.load(logits_ptr + ids, mask=is_here, other=0.0).to(tl.float32)
            tl.store(logits_ptr + ids, logits + values, mask=is_here)
    if is_short & (num_stops > 0):
        tl.debug_barrier()
        for first in range(0, num_stops, IDS):
            at = first + ids_at
            ids = tl.load(stop_ids_ptr + seat * stride_stop + at, mask=at < num_stops, other=-1)
            tl.store(logits_ptr + ids, float("-inf"), mask=(ids >= start) & (ids < end))
    if HAS_MASKS:
        mask_row = tl.load(mask_rows_ptr + row).to(tl.int64)
        if mask_row >= 0:
            tl.debug_barrier()
            is_allowed = is_bit_set(bitmask_ptr + mask_row * stride_bitmask, tokens, is_token)
            tl.store(logits_ptr + tokens, float("-inf"), mask=is_token & (is_allowed == 0))


def adjust_logits(
    logits: Tensor,
    seats: Tensor,
    output_index: Tensor,
    named: NamedTokens,
    penalties: Penalties | None = None,
    masks: Masks | None = None,
) -> Tensor:
    """In place, and returned. logits: float32 [B, V], rows may be apart; seats: int32 [B], negative for padding;
    output_index: int32 [seats], tokens that came out so far."""
    num_rows, vocab_size = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1 and seats.shape == (num_rows,)
    if penalties is not None:
        assert penalties.counts.shape[1] == vocab_size and penalties.seen.shape[1] * 32 >= vocab_size
    if masks is not None:
        assert masks.bitmask.shape[1] * 32 >= vocab_size and masks.mask_rows.shape == (num_rows,)
    _adjust_logits_kernel[(triton.cdiv(vocab_size, BLOCK), num_rows)](
        logits,
        seats,
        output_index,
        None if penalties is None else penalties.rows,
        None if penalties is None else penalties.presence,
        None if penalties is None else penalties.frequency,
        None if penalties is None else penalties.repetition,
        None if penalties is None else penalties.counts,
        None if penalties is None else penalties.seen,
        named.bias_ids,
        named.bias_values,
        named.bias_counts,
        named.stop_ids,
        named.stop_counts,
        named.min_tokens,
        None if masks is None else masks.bitmask,
        None if masks is None else masks.mask_rows,
        logits.stride(0),
        0 if penalties is None else penalties.counts.stride(0),
        0 if penalties is None else penalties.seen.stride(0),
        named.bias_ids.stride(0),
        named.stop_ids.stride(0),
        0 if masks is None else masks.bitmask.stride(0),
        vocab_size,
        HAS_PENALTIES=penalties is not None,
        HAS_MASKS=masks is not None,
        BLOCK=BLOCK,
        IDS=IDS,
    )
    return logits
