"""Attention of one new token per sequence over its pages, split over the card along the keys.

out[b, h] = softmax over the tokens t that row b sees of (query[b, h] . keys[h // G, slot(b, t)] * scale),
            times values[h // G, slot(b, t)]

Row b sees tokens 0 .. lengths[b] - 1, or the last `window` of them; G = H / Hkv query heads share a head of keys.
A program takes a work item (a chunk of a row's tokens, see work_list.py) and a head of keys, with the G query heads
as one tile. A row of several chunks leaves partial results, which the last of its programs merges (merge.py), so
that there is one launch a layer; chunks, grid and buffers do not depend on anything that a host would have to read.

Reads 2 * Hkv * D * sum(lengths) elements of the pool, once, and writes B * H * D; partial results are float32, D + 1
numbers for each chunk and query head, written and read once, mostly within the L2 cache.

With a NewTokens it also does what rope_write.py does in a launch of its own: the query is rotated as it is loaded, and
the program of a row's last chunk rotates the new key, stores it and the new value, and takes both from registers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.attend_span import LOG2_E, attend_span, capped, nothing_seen
from services.gpu_worker.kernels.group_tables import DeviceGroups
from services.gpu_worker.kernels.grouped_attention import grouped_attention
from services.gpu_worker.kernels.merge import merge_partials
from services.gpu_worker.kernels.rotated_heads import rotated_heads
from services.gpu_worker.kernels.work_list import DecodePlan


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The step's keys and values as they come out of their product, with what it takes to rotate them.

    keys, values: [B, Hkv, D], rows as far apart in both. rope_table: float32 [max_positions, 2, D / 2], cosines and
    sines; a row's position is its length - 1. query_norm, key_norm: [D], weights of the norm of heads, if any."""

    keys: Tensor
    values: Tensor
    rope_table: Tensor
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    eps: float = 1e-6


def decode_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seats: Tensor,
    lengths: Tensor,
    page_tables: Tensor,
    *,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition, in float32. query: [B, H, D] -> [B, H, D]; rows without a seat are zeros.

    keys, values: [Hkv, num_slots, D]; seats, lengths: [B]; page_tables: [seats, pages]."""
    out = torch.zeros_like(query)
    num_queries = query.shape[1] // keys.shape[0]
    for row, (seat, length) in enumerate(zip(seats.tolist(), lengths.tolist(), strict=True)):
        if seat < 0 or length == 0:
            continue
        seen = torch.arange(0 if window is None else max(0, length - window), length, device=query.device)
        slots = page_tables[seat].long()[seen // page_size] * page_size + seen % page_size
        row_keys = keys[:, slots].float().repeat_interleave(num_queries, 0)  # [H, T, D]
        row_values = values[:, slots].float().repeat_interleave(num_queries, 0)
        scores = torch.einsum("hd,htd->ht", query[row].float(), row_keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out[row] = torch.einsum("ht,htd->hd", scores.softmax(-1), row_values).to(query.dtype)
    return out


@triton.jit
def _item(items_ptr, item):  # type: ignore[no-untyped-def]
    """row and seat, which are int64, first token, end."""
    item_ptr = items_ptr + item * 4
    row, seat = tl.load(item_ptr).to(tl.int64), tl.load(item_ptr + 1).to(tl.int64)
    return row, seat, tl.load(item_ptr + 2), tl.load(item_ptr + 3)


@triton.jit(do_not_specialize=["table_stride", "group_base"])
def _decode_attention_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    key_scales_ptr,  # [Hkv], read with HAS_SCALES
    value_scales_ptr,
    new_keys_ptr,  # [B, Hkv, D], this and the following read with HAS_NEW
    new_values_ptr,
    rope_table_ptr,  # [max_positions, 2, D / 2]
    query_norm_ptr,  # [D], read with HAS_NORM
    key_norm_ptr,
    lengths_ptr,  # [B]
    page_tables_ptr,
    num_items_ptr,  # [1]
    items_ptr,  # [max_items, 4]: row, seat, first token, end
    row_first_ptr,  # [B]: the row's first item
    row_count_ptr,  # [B]: how many it has
    arrived_ptr,  # [B, Hkv]: items of the row that are done
    group_first_ptr,  # [B]: where the row's entries of group_list start, read with HAS_GROUPS
    group_count_ptr,
    group_list_ptr,  # places of partial results that the row has from its groups
    partial_ptr,  # float32 [places, Hkv, G, D]
    log_weight_ptr,  # float32 [places, Hkv, G]
    scale_log2,
    softcap,
    eps,
    query_stride,  # between rows
    new_stride,
    out_stride,
    head_stride,  # between heads of keys, in elements
    table_stride,
    group_base,  # the first place that groups have, and how many items there can be
    NUM_KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,  # G padded to what a matrix product takes
    BLOCK_R: tl.constexpr,  # G padded to a power of two
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_MERGE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    HAS_NEW: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    num_work = tl.load(num_items_ptr) * NUM_KV_HEADS
    heads = tl.arange(0, BLOCK_G)
    dims = tl.arange(0, BLOCK_D)
    is_query = (heads[:, None] < G) & (dims[None, :] < D)
    # An item is looked up a turn ahead, the first before it is known whether there are so many.
    following = tl.minimum(tl.program_id(0) // NUM_KV_HEADS, group_base - 1)
    next_row, next_seat, next_start, next_end = _item(items_ptr, following)
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item = work // NUM_KV_HEADS
        kv_head = work % NUM_KV_HEADS
        row, seat, start, end = next_row, next_seat, next_start, next_end
        following = tl.minimum((work + tl.num_programs(0)) // NUM_KV_HEADS, group_base - 1)
        next_row, next_seat, next_start, next_end = _item(items_ptr, following)
        count = tl.load(row_count_ptr + row)
        page_table_ptr = page_tables_ptr + tl.maximum(seat, 0) * table_stride
        head_keys_ptr = keys_ptr + kv_head.to(tl.int64) * head_stride
        head_values_ptr = values_ptr + kv_head.to(tl.int64) * head_stride
        score_scale = scale_log2
        if HAS_SCALES:
            score_scale = scale_log2 * tl.load(key_scales_ptr + kv_head)
        head_offset = row * query_stride + (kv_head * G + heads[:, None]) * D
        top, weight, total = nothing_seen(BLOCK_G, BLOCK_D)
        if HAS_NEW:
            last = tl.maximum(tl.load(lengths_ptr + row) - 1, 0)
            angles_ptr = rope_table_ptr + last.to(tl.int64) * D
            is_head = heads[:, None] < G
            query = rotated_heads(
                query_ptr, head_offset, is_head, angles_ptr, query_norm_ptr, eps, D, BLOCK_D, HAS_NORM
            )
            query = query.to(query_ptr.dtype.element_ty)
            if end > last:  # the row's last chunk
                slot = tl.load(page_table_ptr + last // PAGE_SIZE).to(tl.int64) * PAGE_SIZE + last % PAGE_SIZE
                new_offset = row * new_stride + kv_head * D
                one = tl.zeros([1, 1], tl.int64)
                key = rotated_heads(
                    new_keys_ptr, new_offset + one, one == 0, angles_ptr, key_norm_ptr, eps, D, BLOCK_D, HAS_NORM
                )
                value = tl.load(new_values_ptr + new_offset + one + dims[None, :], mask=dims[None, :] < D, other=0.0)
                value = value.to(tl.float32)
                if HAS_SCALES:  # float8 e4m3 has no infinity: what is beyond its range would be NaN
                    key = tl.clamp(key / tl.load(key_scales_ptr + kv_head), -448.0, 448.0)
                    value = tl.clamp(value / tl.load(value_scales_ptr + kv_head), -448.0, 448.0)
                key = key.to(keys_ptr.dtype.element_ty)
                value = value.to(values_ptr.dtype.element_ty)
                tl.store(head_keys_ptr + slot * D + dims[None, :], key, mask=dims[None, :] < D)
                tl.store(head_values_ptr + slot * D + dims[None, :], value, mask=dims[None, :] < D)
                top = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * score_scale
                if HAS_SOFTCAP:
                    top = capped(top, softcap)
                weight += 1.0
                total += value.to(tl.float32)
                end = last
        else:
            query = tl.load(query_ptr + head_offset + dims[None, :], mask=is_query, other=0.0)
        top, weight, total = attend_span(
            top,
            weight,
            total,
            query,
            page_table_ptr,
            head_keys_ptr,
            head_values_ptr,
            start,
            end,
            score_scale,
            softcap,
            D,
            PAGE_SIZE,
            BLOCK_N,
            BLOCK_D,
            HAS_SOFTCAP,
            IS_WIDE,
        )
        if HAS_SCALES:
            total *= tl.load(value_scales_ptr + kv_head)
        # A chunk without tokens has weight 0: a padding row, which gets zeros.
        total = total / tl.where(weight > 0.0, weight, 1.0)[:, None]
        num_partials = count
        if HAS_GROUPS:
            # A row that has left since the groups were made is padding and has no part in them.
            num_partials += tl.where(seat >= 0, tl.load(group_count_ptr + row), 0)
        if num_partials == 1:
            out_offset = row * out_stride + (kv_head * G + heads[:, None]) * D + dims[None, :]
            tl.store(out_ptr + out_offset, total.to(out_ptr.dtype.element_ty), mask=is_query)
        else:
            place = (item * NUM_KV_HEADS + kv_head).to(tl.int64) * G
            partial_offset = (place + heads[:, None]) * D + dims[None, :]
            tl.store(partial_ptr + partial_offset, total, mask=is_query)
            tl.store(log_weight_ptr + place + heads, top + tl.log2(weight), mask=heads < G)
            tl.debug_barrier()  # the whole program's stores come before its one atomic
            arrived = arrived_ptr + row * NUM_KV_HEADS + kv_head
            is_last = count == 1
            if count > 1:
                is_last = tl.atomic_add(arrived, 1, sem="acq_rel") == count - 1
            if is_last:
                tl.store(arrived, 0)  # ready for the next layer
                group_list = group_list_ptr
                if HAS_GROUPS:
                    group_list += tl.load(group_first_ptr + row)
                merged = merge_partials(
                    partial_ptr,
                    log_weight_ptr,
                    kv_head,
                    tl.load(row_first_ptr + row),
                    count,
                    group_list,
                    group_base,
                    num_partials,
                    NUM_KV_HEADS,
                    G,
                    D,
                    BLOCK_R,
                    BLOCK_D,
                    BLOCK_MERGE,
                    HAS_GROUPS,
                )
                rows = tl.arange(0, BLOCK_R)
                out_offset = row * out_stride + (kv_head * G + rows[:, None]) * D + dims[None, :]
                is_out = (rows[:, None] < G) & (dims[None, :] < D)
                tl.store(out_ptr + out_offset, merged.to(out_ptr.dtype.element_ty), mask=is_out)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    seats: Tensor,
    lengths: Tensor,
    page_tables: Tensor,
    plan: DecodePlan,
    *,
    page_size: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    groups: DeviceGroups | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    new: NewTokens | None = None,
) -> None:
    """Writes `out` [B, H, D]; the reference's contract. Rows of query and out may be apart, each is contiguous.

    `plan` must have been updated since seats, lengths or groups changed, with the same window and groups; then it
    serves every layer. With `groups`, the tokens that rows share are read once per group (grouped_attention.py),
    whose kernel is launched first; None leaves it out.
    new: the query is not rotated yet, and the rows' last keys and values are not in the pool: done here; not with
    groups.
    key_scales, value_scales: float32 [Hkv], of a pool in float8_e4m3fn, whose numbers times these are the keys and
    values."""
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, num_slots, _ = keys.shape
    num_queries = num_heads // num_kv_heads
    shape = (plan.num_kv_heads, plan.group_size, plan.head_dim)
    assert (num_kv_heads, num_queries, head_dim) == shape, "the plan was made for another model"
    assert num_rows <= plan.max_rows and len(seats) == len(lengths) == num_rows
    assert plan.window == window and plan.has_groups == (groups is not None), "the plan was made otherwise"
    assert query.stride()[1:] == out.stride()[1:] == (head_dim, 1)
    assert keys.stride() == values.stride() and keys.stride()[1:] == (head_dim, 1) and page_tables.stride(1) == 1
    assert (keys.dtype == torch.float8_e4m3fn) == (key_scales is not None) == (value_scales is not None)
    if new is not None:
        assert groups is None, "the kernel of groups takes queries that are rotated"
        assert new.keys.stride() == new.values.stride() and new.keys.stride()[1:] == (head_dim, 1)
        assert new.rope_table.shape[1:] == (2, head_dim // 2) and new.rope_table.is_contiguous()
        assert (new.query_norm is None) == (new.key_norm is None)
    tile = plan.tile
    if groups is not None:
        grouped_attention(
            query,
            keys,
            values,
            page_tables,
            plan,
            groups,
            page_size=page_size,
            scale=scale,
            softcap=softcap,
            key_scales=key_scales,
            value_scales=value_scales,
        )
    block_rows = triton.next_power_of_2(num_queries)
    block_dims = triton.next_power_of_2(head_dim)
    _decode_attention_kernel[(plan.num_programs,)](
        query,
        keys,
        values,
        out,
        key_scales,
        value_scales,
        None if new is None else new.keys,
        None if new is None else new.values,
        None if new is None else new.rope_table,
        None if new is None else new.query_norm,
        None if new is None else new.key_norm,
        lengths,
        page_tables,
        plan.num_items,
        plan.items,
        plan.row_first,
        plan.row_count,
        plan.arrived,
        None if groups is None else groups.row_first,
        None if groups is None else groups.row_count,
        None if groups is None else groups.row_partials,
        plan.partials,
        plan.log_weights,
        scale * LOG2_E.value,
        0.0 if softcap is None else softcap,
        0.0 if new is None else new.eps,
        query.stride(0),
        0 if new is None else new.keys.stride(0),
        out.stride(0),
        keys.stride(0),
        page_tables.stride(0),
        plan.max_items,
        NUM_KV_HEADS=num_kv_heads,
        G=num_queries,
        D=head_dim,
        PAGE_SIZE=page_size,
        BLOCK_G=max(16, block_rows),
        BLOCK_R=block_rows,
        BLOCK_N=tile.block_tokens,
        BLOCK_D=block_dims,
        BLOCK_MERGE=max(1, 4096 // (block_rows * block_dims)),
        HAS_SOFTCAP=softcap is not None,
        HAS_SCALES=key_scales is not None,
        HAS_GROUPS=groups is not None,
        HAS_NEW=new is not None,
        HAS_NORM=new is not None and new.query_norm is not None,
        IS_WIDE=num_slots * head_dim >= 2**31,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
