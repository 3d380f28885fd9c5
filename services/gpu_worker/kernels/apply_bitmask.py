"""A grammar's mask: tokens that it does not allow get a logit of minus infinity.

logits[b, t] = -inf where bit t % 32 of bitmask[mask_rows[b], t // 32] is 0
Rows with a negative mask row stay as they are.
Reads and writes the logits of masked rows, and reads a bit for each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


def apply_bitmask_reference(logits: Tensor, bitmask: Tensor, mask_rows: Tensor) -> Tensor:
    """The definition. logits: [B, V]; bitmask: int32 [rows, ceil(V / 32)]; mask_rows: int32 [B] -> [B, V]."""
    tokens = torch.arange(logits.shape[1], device=logits.device)
    bits = bitmask[mask_rows.clamp(min=0).long()][:, tokens // 32] >> (tokens % 32).int() & 1
    return logits.masked_fill((bits == 0) & (mask_rows >= 0)[:, None], -torch.inf)


@triton.jit
def is_bit_set(words_ptr, tokens, is_token):  # type: ignore[no-untyped-def]
    """words_ptr: int32 words, bit t % 32 of word t // 32 is token t's."""
    words = tl.load(words_ptr + tokens // 32, mask=is_token, other=0)
    return ((words >> (tokens % 32)) & 1) != 0


@triton.jit
def _apply_bitmask_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, bitmask_ptr, mask_rows_ptr, stride_logits, stride_bitmask, vocab_size, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    mask_row = tl.load(mask_rows_ptr + row).to(tl.int64)
    if mask_row < 0:
        return
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = tokens < vocab_size
    is_allowed = is_bit_set(bitmask_ptr + mask_row * stride_bitmask, tokens, is_token)
    tl.store(logits_ptr + row * stride_logits + tokens, float("-inf"), mask=is_token & (is_allowed == 0))


def apply_bitmask(logits: Tensor, bitmask: Tensor, mask_rows: Tensor) -> Tensor:
    """In place. logits: [B, V], rows may be apart; bitmask: int32 [rows, at least ceil(V / 32)], xgrammar's layout;
    mask_rows: int32 [B], which mask is a row's, -1 for none."""
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == bitmask.stride(1) == 1 and bitmask.shape[1] * 32 >= vocab_size
    assert mask_rows.shape == (num_rows,) and bitmask.dtype == mask_rows.dtype == torch.int32
    _apply_bitmask_kernel[(triton.cdiv(vocab_size, BLOCK), num_rows)](
        logits, bitmask, mask_rows, logits.stride(0), bitmask.stride(0), vocab_size, BLOCK=BLOCK
    )
    return logits
