"""Merging of partial attention results by their weights.

Part i is attention over some of the tokens, out_i, with log_weight_i = log2 of the sum of its exponentials. Then
    out = sum_i 2^(log_weight_i - top) * out_i / sum_i 2^(log_weight_i - top),   top = max_i log_weight_i
is attention over all of them. Parts are merged in a fixed order, so that equal inputs give equal bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def merge_reference(partials: Tensor, log_weights: Tensor) -> Tensor:
    """The definition. partials: [parts, ..., D]; log_weights: [parts, ...] -> [..., D]."""
    shares = torch.softmax(log_weights.double() * torch.log(torch.tensor(2.0, dtype=torch.float64)), 0)
    return (partials.double() * shares[..., None]).sum(0).float()


@triton.jit
def merge_partials(  # type: ignore[no-untyped-def]
    partial_ptr,  # float32 [places, Hkv, G, D]
    log_weight_ptr,  # float32 [places, Hkv, G]
    kv_head,
    first,  # the first `count` parts are in places first .. first + count - 1
    count,
    list_ptr,  # the places of the others, counted from list_base, read with HAS_LIST
    list_base,
    num_parts,
    NUM_KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    HAS_LIST: tl.constexpr,
):
    """float32 [BLOCK_R, BLOCK_D]. At least one part has to have a weight above zero."""
    parts = tl.arange(0, BLOCK_PARTS)
    rows = tl.arange(0, BLOCK_R)
    dims = tl.arange(0, BLOCK_D)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_R], tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for base in range(0, num_parts, BLOCK_PARTS):
        part = base + parts
        is_part = part < num_parts
        place = first + part
        if HAS_LIST:
            listed = tl.load(list_ptr + part - count, mask=is_part & (part >= count), other=0)
            place = tl.where(part < count, place, list_base + listed)
        place = (place * NUM_KV_HEADS + kv_head).to(tl.int64)[:, None] * G + rows[None, :]
        is_row = is_part[:, None] & (rows[None, :] < G)
        # Other programs wrote these: read past the L1 cache.
        log_weight = tl.load(log_weight_ptr + place, mask=is_row, other=float("-inf"), cache_modifier=".cg")
        offset = place[:, :, None] * D + dims[None, None, :]
        is_loaded = is_row[:, :, None] & (dims[None, None, :] < D)
        partial = tl.load(partial_ptr + offset, mask=is_loaded, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(log_weight, 0))
        anchor = tl.where(new_top == float("-inf"), 0.0, new_top)  # all weights so far are zero
        share = tl.exp2(log_weight - anchor[None, :])
        decay = tl.exp2(top - anchor)
        weight = weight * decay + tl.sum(share, 0)
        total = total * decay[:, None] + tl.sum(share[:, :, None] * partial, 0)
        top = new_top
    return total / tl.where(weight > 0.0, weight, 1.0)[:, None]
