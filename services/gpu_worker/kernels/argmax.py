"""Greedy sampling: the likeliest token of each row, the lowest id among equals.

token[b] = min { t : logits[b, t] = max logits[b] }, -1 where a logit is NaN or the largest is infinite
Reads B * V logits. A row is cut into blocks, each a program; the last of a row's programs compares the blocks' maxima,
so that one launch does it and a single row uses the whole card.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.arrival import is_last

BLOCK = 2048
NO_TOKEN = tl.constexpr(2147483647)


@dataclass(frozen=True, slots=True)
class ArgmaxScratch:
    """tops, ids: [rows, blocks], a block's largest logit and its token; arrived: [rows], zeros between launches."""

    block: int
    tops: Tensor
    ids: Tensor
    arrived: Tensor

    @staticmethod
    def allocate(num_rows: int, vocab_size: int, device: torch.device, block: int = BLOCK) -> "ArgmaxScratch":
        num_blocks = triton.cdiv(vocab_size, block)
        return ArgmaxScratch(
            block,
            torch.empty(num_rows, num_blocks, dtype=torch.float32, device=device),
            torch.empty(num_rows, num_blocks, dtype=torch.int32, device=device),
            torch.zeros(num_rows, dtype=torch.int32, device=device),
        )


def argmax_reference(logits: Tensor, seats: Tensor) -> Tensor:
    """The definition. logits: [B, V]; seats: int32 [B], negative for padding -> int32 [B]."""
    peaks, tokens = logits.float().max(-1)
    first = (logits.float() == peaks[:, None]).int().argmax(-1)
    is_token = peaks.isfinite() & (seats >= 0)
    return torch.where(is_token, first, -torch.ones_like(tokens)).int()


@triton.jit
def load_logits(row_ptr, tokens, vocab_size):  # type: ignore[no-untyped-def]
    """float32; -inf past the vocabulary, +inf for NaN, so that the largest tells whether all are numbers."""
    logits = tl.load(row_ptr + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(logits != logits, float("inf"), logits)


@triton.jit
def likeliest(tops_ptr, ids_ptr, num_blocks, NUM_BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest of the blocks' logits, and its token: -1 where it is infinite."""
    blocks = tl.arange(0, NUM_BLOCKS)
    is_block = blocks < num_blocks
    tops = tl.load(tops_ptr + blocks, mask=is_block, other=float("-inf"), cache_modifier=".cg")
    ids = tl.load(ids_ptr + blocks, mask=is_block, other=NO_TOKEN, cache_modifier=".cg")
    peak = tl.max(tops, 0)
    token = tl.min(tl.where(tops == peak, ids, NO_TOKEN), 0)
    return peak, tl.where(tl.abs(peak) < float("inf"), token, -1)


@triton.jit
def _argmax_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    logits_ptr,
    seats_ptr,
    tops_ptr,
    ids_ptr,
    arrived_ptr,
    stride_logits,
    vocab_size,
    num_blocks,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    block = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    if tl.load(seats_ptr + row) < 0:
        tl.store(tokens_ptr + row, -1)
        return
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    logits = load_logits(logits_ptr + row * stride_logits, tokens, vocab_size)
    top = tl.max(logits, 0)
    tl.store(tops_ptr + row * num_blocks + block, top)
    tl.store(ids_ptr + row * num_blocks + block, tl.min(tl.where(logits == top, tokens, NO_TOKEN), 0))
    if is_last(arrived_ptr + row, num_blocks):
        _, token = likeliest(tops_ptr + row * num_blocks, ids_ptr + row * num_blocks, num_blocks, NUM_BLOCKS)
        tl.store(tokens_ptr + row, token)


def argmax(logits: Tensor, seats: Tensor, scratch: ArgmaxScratch, tokens: Tensor) -> Tensor:
    """Fills tokens int32 [B]; padding rows (seat below 0) get -1. logits: [B, V], float, rows may be apart."""
    num_rows, vocab_size = logits.shape
    num_blocks = triton.cdiv(vocab_size, scratch.block)
    assert logits.stride(1) == 1 and seats.shape == tokens.shape == (num_rows,)
    assert scratch.tops.shape[0] >= num_rows and scratch.tops.shape[1] == num_blocks
    _argmax_kernel[(num_blocks, num_rows)](
        tokens,
        logits,
        seats,
        scratch.tops,
        scratch.ids,
        scratch.arrived,
        logits.stride(0),
        vocab_size,
        num_blocks,
        BLOCK=scratch.block,
        NUM_BLOCKS=triton.next_power_of_2(num_blocks),
    )
    return tokens
