"""Attention of prefill chunks over their cached prefixes and themselves: many parts of different lengths in one launch.

Part i is rows firsts[i] .. firsts[i] + counts[i] - 1 of the batch, at positions starts[i] .. of the sequence in seat
seats[i]. For a row at position p, with G = H / Hkv query heads to a head of keys and values:

    score[h, t] = query[h] . key[h // G, t] * scale,  t in max(0, p - window + 1) .. p
    out[h] = softmax(score[h]) . value[h // G]

Keys before starts[i] come from the pool's pages, a part's own from the step's dense k and v, which cost no look-up in
a page table. One program takes G heads of a run of rows ("tile") for one head of keys and values, as one matrix of
BLOCK_M queries. Blocks of keys that all of its rows see whole need no mask; the rest is masked. The tiles are listed
in device memory, the longest first, and the grid is the most there can be, so that a launch can live in a captured
graph.

4 * D * H operations for each row and token that it sees. A tile reads 2 * D elements of every token it sees, so each
byte of keys and values serves BLOCK_M queries; neighbouring programs read the same tokens from the L2 cache.

Pool slots that were never written may hold NaN, and 0 * NaN is NaN: such slots are not loaded but taken as zeros.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from services.gpu_worker.kernels.attend_span import LOG2_E, capped
from services.gpu_worker.kernels.dot import IS_INTERPRETED, dot, dot_add

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ExtendTiling:
    """How the kernel is cut. block_m: queries (rows times heads) of a program; block_n: tokens of a step of its loop.

    uses_tma: a part's own keys and values are fetched by the card's tensor memory accelerator (Hopper and later)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    uses_tma: bool = False

    def rows(self, num_groups: int) -> int:
        """Rows of a tile, each with the `num_groups` heads that share a head of keys and values."""
        return self.block_m // num_groups


def choose_tiling(head_dim: int, longest: int | None = None) -> ExtendTiling:
    """By measurement on an H100, `benchmarks/gpu/tune_extend_attention.py`. longest: the most tokens that a row sees,
    if that is known: few tokens are read sooner by small programs, several of which fit a multiprocessor at once."""
    if IS_INTERPRETED.value:
        return ExtendTiling(block_m=32, block_n=16, num_warps=4, num_stages=1)
    if head_dim <= 64:
        return ExtendTiling(block_m=128, block_n=64, num_warps=4, num_stages=3, uses_tma=True)
    if head_dim <= 128:
        if longest is not None and longest <= 512:
            return ExtendTiling(block_m=128, block_n=32, num_warps=4, num_stages=3)
        return ExtendTiling(block_m=128, block_n=128, num_warps=8, num_stages=3, uses_tma=True)
    return ExtendTiling(block_m=128, block_n=64, num_warps=8, num_stages=2, uses_tma=True)


def plan_extend(starts: I32, counts: I32, block: int, window: int | None = None) -> I32:
    """The tiles of parts with `counts` rows after `starts` cached tokens: int32 [2, T], part and first row in it.

    block: rows of a tile, `ExtendTiling.rows`. The parts whose rows see most tokens come first, and a part's last rows
    before its first: so the card does not wait for a long tile at the end. A part's tiles stay together, because they
    read the same tokens, from the L2 cache if they run at about the same time."""
    seen = starts + counts
    if window is not None:
        seen = np.minimum(seen, window + block)
    order = np.argsort(-seen, kind="stable")
    per_part = -(-counts[order] // block)
    parts = np.repeat(order, per_part)
    left = np.repeat(np.cumsum(per_part), per_part) - np.arange(len(parts)) - 1
    return np.stack([parts, left * block]).astype(np.int32)


def max_tiles(num_rows: int, num_parts: int, block: int) -> int:
    """The most tiles that so many rows in at most `num_parts` parts can make."""
    return (num_rows + min(num_parts, num_rows) * (block - 1)) // block


def extend_attention_reference(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    page_tables: Tensor,
    seats: Tensor,
    firsts: Tensor,
    starts: Tensor,
    counts: Tensor,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """The definition in float32. Shapes as for `extend_attention`; rows that no part names are zero."""
    out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    num_groups = query.shape[1] // k.shape[1]
    parts = zip(seats.tolist(), firsts.tolist(), starts.tolist(), counts.tolist(), strict=True)
    for seat, first, start, count in parts:
        before = torch.arange(start, device=query.device)
        slots = page_tables[seat].long()[before // page_size] * page_size + before % page_size
        rows = slice(first, first + count)
        old_keys, old_values = keys[:, slots].float(), values[:, slots].float()
        if key_scales is not None and value_scales is not None:
            old_keys, old_values = old_keys * key_scales[:, None, None], old_values * value_scales[:, None, None]
        seen_keys = torch.cat([old_keys, k[rows].float().transpose(0, 1)], 1)
        seen_values = torch.cat([old_values, v[rows].float().transpose(0, 1)], 1)
        seen_keys = seen_keys.repeat_interleave(num_groups, 0)
        seen_values = seen_values.repeat_interleave(num_groups, 0)
        scores = query[rows].float().transpose(0, 1) @ seen_keys.transpose(1, 2) * scale  # [H, count, start + count]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = start + torch.arange(count, device=query.device)[:, None]
        token = torch.arange(start + count, device=query.device)
        is_hidden = token > position
        if window is not None:
            is_hidden = is_hidden | (token <= position - window)
        scores = scores.masked_fill(is_hidden, -torch.inf)
        out[rows] = (scores.softmax(-1) @ seen_values).transpose(0, 1)
    return out


@triton.jit
def _attend_block(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    is_seen,
    top,
    weight,
    total,
    scale_log2,
    softcap,
    MASKED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """One block of tokens into the running softmax. top starts at a finite number, so that a row that sees nothing of
    a block gets shares 2^-inf = 0 and a decay of 1."""
    scores = dot(query, tl.trans(keys))
    if HAS_SOFTCAP:
        scores = capped(scores * scale_log2, softcap)
    if MASKED:
        scores = tl.where(is_seen, scores, float("-inf"))
    if HAS_SOFTCAP:
        new_top = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores - new_top[:, None])
    else:  # the scale is one multiplication with the subtraction: it need not be applied to the scores
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        shares = tl.exp2(scores * scale_log2 - new_top[:, None])
    decay = tl.exp2(top - new_top)
    weight = weight * decay + tl.sum(shares, 1)
    total = dot_add(shares.to(query.dtype), values.to(query.dtype), total * decay[:, None])
    return new_top, weight, total


@triton.jit
def _slots(page_table_ptr, position, is_loaded, PAGE_SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    page = tl.load(page_table_ptr + position // PAGE_SIZE, mask=is_loaded, other=0)
    return page.to(tl.int64) * PAGE_SIZE + position % PAGE_SIZE


@triton.jit
def _block_slots(  # type: ignore[no-untyped-def]
    page_table_ptr, block, tokens, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Slots of tokens block .. block + BLOCK_N - 1, where block is a multiple of BLOCK_N and all of them exist. Where
    pages fit into blocks, or blocks into pages, a token's place in its page is the same in all blocks."""
    if PAGE_SIZE % BLOCK_N == 0:
        page = tl.load(page_table_ptr + block // PAGE_SIZE).to(tl.int64)
        return page * PAGE_SIZE + block % PAGE_SIZE + tokens
    elif BLOCK_N % PAGE_SIZE == 0:
        page = tl.load(page_table_ptr + block // PAGE_SIZE + tokens // PAGE_SIZE).to(tl.int64)
        return page * PAGE_SIZE + tokens % PAGE_SIZE
    else:
        page = tl.load(page_table_ptr + (block + tokens) // PAGE_SIZE).to(tl.int64)
        return page * PAGE_SIZE + (block + tokens) % PAGE_SIZE


@triton.jit
def _load(ptr, offset, is_row, is_dim, MASKED: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of keys or values, with zeros where a row or dimension is not there."""
    if MASKED and PADDED:
        return tl.load(ptr + offset, mask=is_row[:, None] & is_dim[None, :], other=0.0)
    if MASKED:
        return tl.load(ptr + offset, mask=is_row[:, None], other=0.0)
    if PADDED:
        return tl.load(ptr + offset, mask=is_dim[None, :], other=0.0)
    return tl.load(ptr + offset)


@triton.jit
def _is_seen(token, position, WINDOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK_M, BLOCK_N]: whether the row at `position` sees the token (positions of one sequence)."""
    is_seen = token[None, :] <= position[:, None]
    if WINDOW > 0:
        is_seen = is_seen & (token[None, :] > position[:, None] - WINDOW)
    return is_seen


# Sizes of buffers, which differ from caller to caller, are no reason to compile again.
@triton.jit(do_not_specialize=["stride_seat", "stride_tiles"])
def _extend_attention_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    query_ptr,
    k_ptr,
    v_ptr,
    k_blocks,  # tensor descriptors of k and v with blocks [BLOCK_N, D], or None
    v_blocks,
    keys_ptr,
    values_ptr,
    key_scales_ptr,  # of a pool of 8-bit numbers, or None
    value_scales_ptr,
    page_tables_ptr,
    seats_ptr,
    firsts_ptr,
    starts_ptr,
    counts_ptr,
    tiles_ptr,
    num_tiles_ptr,
    stride_out,
    stride_query,
    stride_k,
    stride_v,
    stride_head,  # of the pool
    stride_seat,  # of the page tables
    stride_tiles,
    scale_log2,
    softcap,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    USES_TMA: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles_ptr):
        return
    part = tl.load(tiles_ptr + tile)
    tile_row = tl.load(tiles_ptr + stride_tiles + tile)
    first = tl.load(firsts_ptr + part).to(tl.int64)
    start = tl.load(starts_ptr + part)
    end_row = tl.minimum(tl.load(counts_ptr + part), tile_row + ROWS)
    page_table_ptr = page_tables_ptr + tl.load(seats_ptr + part).to(tl.int64) * stride_seat
    keys_ptr += head.to(tl.int64) * stride_head
    values_ptr += head.to(tl.int64) * stride_head
    k_ptr += first * stride_k + head * D
    v_ptr += first * stride_v + head * D

    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < D
    PADDED: tl.constexpr = BLOCK_D != D
    tokens = tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_M)
    row = tile_row + lane // G
    position = start + row
    is_row = row < end_row
    query_head = head * G + lane % G
    query = _load(
        query_ptr,
        ((first + row) * stride_query + query_head * D)[:, None] + dims[None, :],
        is_row,
        is_dim,
        True,
        PADDED,
    )

    top = tl.full([BLOCK_M], -1e30, tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # What the pool holds: blocks that every row sees whole, then what is left.
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(start + tile_row - (WINDOW - 1), 0)
        whole_end = lowest
    else:
        whole_end = start // BLOCK_N * BLOCK_N
    pool_scale = scale_log2
    if HAS_SCALES:
        pool_scale = scale_log2 * tl.load(key_scales_ptr + head)
    for block in tl.range(lowest, whole_end, BLOCK_N):
        offset = _block_slots(page_table_ptr, block, tokens, PAGE_SIZE, BLOCK_N)[:, None] * D + dims[None, :]
        keys = _load(keys_ptr, offset, is_row, is_dim, False, PADDED).to(query.dtype)
        values = _load(values_ptr, offset, is_row, is_dim, False, PADDED)
        top, weight, total = _attend_block(
            query, keys, values, is_row, top, weight, total, pool_scale, softcap, False, HAS_SOFTCAP
        )
    for block in tl.range(whole_end, start, BLOCK_N):
        token = block + tokens
        is_token = token < start
        offset = _slots(page_table_ptr, token, is_token, PAGE_SIZE)[:, None] * D + dims[None, :]
        keys = _load(keys_ptr, offset, is_token, is_dim, True, PADDED).to(query.dtype)
        values = _load(values_ptr, offset, is_token, is_dim, True, PADDED)
        is_seen = is_token[None, :] & _is_seen(token, position, WINDOW)
        top, weight, total = _attend_block(
            query, keys, values, is_seen, top, weight, total, pool_scale, softcap, True, HAS_SOFTCAP
        )
    if HAS_SCALES:
        total *= tl.load(value_scales_ptr + head)

    # The part's own tokens, counted from its first.
    lowest = tl.maximum(lowest - start, 0)
    if WINDOW > 0:
        whole_end = lowest
    else:
        whole_end = (tile_row + 1) // BLOCK_N * BLOCK_N
    for block in tl.range(lowest, whole_end, BLOCK_N):
        if USES_TMA:
            keys = k_blocks.load([first.to(tl.int32) + block, head * D])
            values = v_blocks.load([first.to(tl.int32) + block, head * D])
        else:
            token = (block + tokens).to(tl.int64)
            keys = _load(k_ptr, (token * stride_k)[:, None] + dims[None, :], is_row, is_dim, False, PADDED)
            values = _load(v_ptr, (token * stride_v)[:, None] + dims[None, :], is_row, is_dim, False, PADDED)
        top, weight, total = _attend_block(
            query, keys, values, is_row, top, weight, total, scale_log2, softcap, False, HAS_SOFTCAP
        )
    for block in tl.range(whole_end, end_row, BLOCK_N):
        token = block + tokens
        is_token = token < end_row
        offset = token.to(tl.int64)
        keys = _load(k_ptr, (offset * stride_k)[:, None] + dims[None, :], is_token, is_dim, True, PADDED)
        values = _load(v_ptr, (offset * stride_v)[:, None] + dims[None, :], is_token, is_dim, True, PADDED)
        is_seen = _is_seen(token, row, WINDOW)
        top, weight, total = _attend_block(
            query, keys, values, is_seen, top, weight, total, scale_log2, softcap, True, HAS_SOFTCAP
        )

    total = total / weight[:, None]
    offset = ((first + row) * stride_out + query_head * D)[:, None] + dims[None, :]
    tl.store(out_ptr + offset, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_dim[None, :])


def extend_attention(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    page_tables: Tensor,
    seats: Tensor,
    firsts: Tensor,
    starts: Tensor,
    counts: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    out: Tensor,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    tiling: ExtendTiling | None = None,
) -> Tensor:
    """Fills out [N, H, D] at the rows of the parts that `tiles` names, leaves the others, and returns it.

    query: [N, H, D]; k, v: [N, Hkv, D], the step's own; all rows may be apart in memory (a slice of a product), heads
    follow each other. keys, values: [Hkv, num_slots, D], a layer of the pool, with tokens following each other;
    of query's dtype, or float8_e4m3fn with key_scales and value_scales float32 [Hkv] to multiply them by.
    page_tables: int32 [seats, pages]. seats, firsts, starts, counts: int32 [parts]. tiles: int32 [2, most tiles], of
    which the first num_tiles int32 [1] count: `plan_extend` with `tiling.rows(H // Hkv)`; the grid covers them all.
    window: tokens that a row sees, itself included. softcap c replaces scores s by c * tanh(s / c)."""
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = k.shape[1]
    num_groups = num_heads // num_kv_heads
    if tiling is None:
        tiling = choose_tiling(head_dim)
    assert num_groups * num_kv_heads == num_heads and num_groups <= tiling.block_m
    assert k.shape == v.shape == (query.shape[0], num_kv_heads, head_dim) and out.shape == query.shape
    for heads in (query, k, v, out):
        assert heads.stride(1) == head_dim and heads.stride(2) == 1
    for pool in (keys, values):
        assert pool.shape[0] == num_kv_heads and pool.stride()[1:] == (head_dim, 1)
    assert keys.stride() == values.stride()
    assert (keys.element_size() == 1) == (key_scales is not None) == (value_scales is not None)
    assert page_tables.stride(1) == 1 and tiles.stride(1) == 1 and tiles.shape[0] == 2
    assert window is None or window > 0
    block_d = triton.next_power_of_2(head_dim)
    uses_tma = tiling.uses_tma and block_d == head_dim and window is None
    _extend_attention_kernel[(num_kv_heads, tiles.shape[1])](
        out,
        query,
        k,
        v,
        _blocks(k, tiling.block_n) if uses_tma else None,
        _blocks(v, tiling.block_n) if uses_tma else None,
        keys,
        values,
        key_scales,
        value_scales,
        page_tables,
        seats,
        firsts,
        starts,
        counts,
        tiles,
        num_tiles,
        out.stride(0),
        query.stride(0),
        k.stride(0),
        v.stride(0),
        keys.stride(0),
        page_tables.stride(0),
        tiles.stride(0),
        scale * LOG2_E.value,
        1.0 if softcap is None else softcap,
        G=num_groups,
        D=head_dim,
        PAGE_SIZE=page_size,
        WINDOW=window or 0,
        HAS_SOFTCAP=softcap is not None,
        HAS_SCALES=key_scales is not None,
        USES_TMA=uses_tma,
        ROWS=tiling.rows(num_groups),
        BLOCK_M=tiling.block_m,
        BLOCK_N=tiling.block_n,
        BLOCK_D=block_d,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out


def _blocks(heads: Tensor, block_n: int) -> TensorDescriptor:
    """[N, Hkv, D] as a matrix of N rows, to be read in blocks of one head of `block_n` rows."""
    num_rows, num_heads, head_dim = heads.shape
    return TensorDescriptor(heads, [num_rows, num_heads * head_dim], [heads.stride(0), 1], [block_n, head_dim])
