"""The inner loop of attention over pages: one tile of queries against a run of tokens, with a running softmax.

For query rows m and the tokens t of start .. end - 1, with score[m, t] = query[m] . keys[slot(t)] * scale:
    top[m] = max_t score;  weight[m] = sum_t 2^(score - top);  total[m] = sum_t 2^(score - top) * values[slot(t)]
Scores are in units of log 2 (scale includes log2(e)), so that exponentials are the hardware's 2^x.
Reads 2 * (end - start) * D elements and (end - start) page ids, which stay in the L1 cache.

Slots that were never written may hold NaN, and 0 * NaN is NaN: tokens past `end` are not loaded but taken as zeros.
"""

import triton
import triton.language as tl

from services.gpu_worker.kernels.dot import dot, dot_add

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def capped(scores, softcap):  # type: ignore[no-untyped-def]
    """softcap * tanh(scores / softcap), of scores in units of log 2; any finite or infinite score is fine."""
    decay = tl.exp2(tl.abs(scores) * (-2.0 / softcap))  # of the absolute value, so that nothing overflows
    tanh = (1.0 - decay) / (1.0 + decay)
    return tl.where(scores < 0.0, -tanh, tanh) * (softcap * LOG2_E)


@triton.jit
def nothing_seen(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """The running softmax before the first token."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return top, tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, BLOCK_D], tl.float32)


@triton.jit
def attend_span(  # type: ignore[no-untyped-def]
    top,  # the running softmax so far
    weight,
    total,
    query,  # [BLOCK_M, BLOCK_D], zeros past D
    page_table_ptr,  # the pages of the sequence that holds the tokens
    keys_ptr,  # the head's [num_slots, D]
    values_ptr,
    start,
    end,
    scale_log2,
    softcap,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_WIDE: tl.constexpr,  # num_slots * D passes 2**31
):
    """top, weight [BLOCK_M] and total [BLOCK_M, BLOCK_D], float32, with these tokens; unchanged with start >= end."""
    dims = tl.arange(0, BLOCK_D)
    tokens = tl.arange(0, BLOCK_N)
    # Pages are looked up a block ahead: a pipeline that had to wait for them would hold fewer keys in flight.
    page = tl.load(page_table_ptr + (start + tokens) // PAGE_SIZE, mask=start + tokens < end, other=0)
    for first in tl.range(start, end, BLOCK_N):
        position = first + tokens
        is_seen = position < end
        slot = page * PAGE_SIZE + position % PAGE_SIZE
        following = position + BLOCK_N
        page = tl.load(page_table_ptr + following // PAGE_SIZE, mask=following < end, other=0)
        if IS_WIDE:
            slot = slot.to(tl.int64)
        offset = slot[:, None] * D + dims[None, :]
        is_loaded = is_seen[:, None]
        if BLOCK_D != D:
            is_loaded = is_loaded & (dims[None, :] < D)
        keys = tl.load(keys_ptr + offset, mask=is_loaded, other=0.0).to(query.dtype)
        scores = dot(query, tl.trans(keys)) * scale_log2
        if HAS_SOFTCAP:
            scores = capped(scores, softcap)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores - new_top[:, None])
        decay = tl.exp2(top - new_top)
        weight = weight * decay + tl.sum(shares, 1)
        values = tl.load(values_ptr + offset, mask=is_loaded, other=0.0).to(query.dtype)
        total = dot_add(shares.to(query.dtype), values, total * decay[:, None])
        top = new_top
    return top, weight, total
