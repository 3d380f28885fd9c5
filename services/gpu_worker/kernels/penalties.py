"""Presence, frequency and repetition penalties, on tokens that a sequence has seen.

x'[t]  = x[t] - frequency * count[t] - presence * (count[t] > 0),  count over the output
x''[t] = x'[t] / repetition where x'[t] > 0, else x'[t] * repetition,  for tokens of the prompt or the output
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.apply_bitmask import is_bit_set


@dataclass(frozen=True, slots=True)
class Penalties:
    """What sequences with penalties have seen, and how it weighs.

    rows: int32 [seats], which row of counts and seen belongs to a seat, -1 where it has no penalties: few sequences
    have, and a row is 4 bytes for each token of the vocabulary. presence, frequency, repetition: float32 [seats].
    counts: int32 [rows, V], of output tokens; `advance` adds to them. seen: int32 [rows, ceil(V / 32)], bits of the
    prompt's tokens, all 0 where repetition is 1."""

    rows: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    counts: Tensor
    seen: Tensor

    @staticmethod
    def allocate(num_seats: int, num_rows: int, vocab_size: int, device: torch.device) -> "Penalties":
        return Penalties(
            torch.full((num_seats,), -1, dtype=torch.int32, device=device),
            torch.zeros(num_seats, dtype=torch.float32, device=device),
            torch.zeros(num_seats, dtype=torch.float32, device=device),
            torch.ones(num_seats, dtype=torch.float32, device=device),
            torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=device),
            torch.zeros(num_rows, -(-vocab_size // 32), dtype=torch.int32, device=device),
        )


def penalties_reference(logits: Tensor, seats: Tensor, penalties: Penalties) -> Tensor:
    """The definition. logits: float32 [B, V]; seats: int32 [B], negative for padding -> [B, V]."""
    out = logits.clone()
    tokens = torch.arange(logits.shape[1], device=logits.device)
    for row, seat in enumerate(seats.tolist()):
        at = int(penalties.rows[seat]) if seat >= 0 else -1
        if at < 0:
            continue
        counts = penalties.counts[at]
        is_seen = (counts > 0) | ((penalties.seen[at, tokens // 32] >> (tokens % 32).int() & 1) != 0)
        x = out[row] - penalties.frequency[seat] * counts - penalties.presence[seat] * (counts > 0)
        repetition = penalties.repetition[seat]
        out[row] = torch.where(is_seen, torch.where(x > 0, x / repetition, x * repetition), x)
    return out


@triton.jit
def penalised(  # type: ignore[no-untyped-def]
    logits, tokens, is_token, counts_ptr, seen_ptr, presence, frequency, repetition
):
    """The logits of one row's tokens; counts_ptr and seen_ptr are that row's."""
    counts = tl.load(counts_ptr + tokens, mask=is_token, other=0)
    is_output = counts > 0
    logits = logits - frequency * counts - tl.where(is_output, presence, 0.0)
    is_seen = is_output | is_bit_set(seen_ptr, tokens, is_token)
    return tl.where(is_seen, tl.where(logits > 0, logits / repetition, logits * repetition), logits)
