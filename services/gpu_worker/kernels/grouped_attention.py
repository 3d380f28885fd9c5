"""Attention of many rows to the tokens that they share, which are read once for all of them.

For a segment (prefix_groups.py) with members b and tokens t, and each query head h:
    partial[b, h] = softmax over t of (query[b, h] . keys[h // G, slot(t)] * scale), times values[h // G, slot(t)]
with the sum of exponentials beside it, so that decode_attention.py can merge it with the row's other parts. The
queries of a tile of members and the G heads that share keys are stacked into one matrix of up to block_rows rows, which
makes a decode step over a shared prefix a matrix-matrix product.

Reads 2 * Hkv * D elements per token of a segment, once for each tile of members (the other tiles find them in the L2
cache), instead of once for each member; writes H * (D + 1) float32 per member and chunk. Floating-point operations:
4 * H * D per member and token, as without groups, but on matrix units with full tiles.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.attend_span import LOG2_E, attend_span, nothing_seen
from services.gpu_worker.kernels.group_tables import ITEM_WIDTH, DeviceGroups
from services.gpu_worker.kernels.work_list import DecodePlan
from services.gpu_worker.prefix_groups import Segment


def grouped_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    segment: Segment,
    *,
    page_size: int,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, in float32, of one segment: partial [members, H, D] and log2 of the sum of exponentials
    [members, H]. query: [B, H, D]; keys, values: [Hkv, num_slots, D]; page_table: [pages] of any member."""
    tokens = torch.arange(segment.first, segment.first + segment.count, device=query.device)
    slots = page_table.long()[tokens // page_size] * page_size + tokens % page_size
    num_queries = query.shape[1] // keys.shape[0]
    seen_keys = keys[:, slots].float().repeat_interleave(num_queries, 0)  # [H, T, D]
    seen_values = values[:, slots].float().repeat_interleave(num_queries, 0)
    members = torch.from_numpy(segment.rows).long().to(query.device)
    scores = torch.einsum("bhd,htd->bht", query[members].float(), seen_keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    partial = torch.einsum("bht,htd->bhd", scores.softmax(-1), seen_values)
    return partial, scores.logsumexp(-1) * LOG2_E.value


@triton.jit(do_not_specialize=["table_stride"])
def _grouped_attention_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,  # [Hkv], read with HAS_SCALES
    value_scales_ptr,
    page_tables_ptr,
    num_items_ptr,  # [1]
    items_ptr,  # [items, 8], see DeviceGroups
    members_ptr,
    partial_ptr,  # float32 [places, Hkv, G, D], from the first place that groups have
    log_weight_ptr,  # float32 [places, Hkv, G]
    scale_log2,
    softcap,
    query_stride,  # between rows
    head_stride,  # between heads of keys, in elements
    table_stride,
    NUM_KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ITEM_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_WIDE: tl.constexpr,
):
    num_work = tl.load(num_items_ptr) * NUM_KV_HEADS
    dims = tl.arange(0, BLOCK_D)
    stacked = tl.arange(0, BLOCK_M)
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        item_ptr = items_ptr + (work // NUM_KV_HEADS) * ITEM_WIDTH
        kv_head = work % NUM_KV_HEADS
        seat = tl.load(item_ptr).to(tl.int64)
        first_member = tl.load(item_ptr + 1)
        num_members = tl.load(item_ptr + 2)
        start = tl.load(item_ptr + 3)
        end = tl.load(item_ptr + 4)
        first_place = tl.load(item_ptr + 5)
        member = stacked // G
        head = stacked % G
        is_member = member < num_members
        is_query = is_member[:, None] & (dims[None, :] < D)
        row = tl.load(members_ptr + first_member + member, mask=is_member, other=0).to(tl.int64)
        query_offset = (row * query_stride + (kv_head * G + head) * D)[:, None] + dims[None, :]
        query = tl.load(query_ptr + query_offset, mask=is_query, other=0.0)
        head_offset = kv_head.to(tl.int64) * head_stride
        score_scale = scale_log2
        if HAS_SCALES:
            score_scale = scale_log2 * tl.load(key_scales_ptr + kv_head)
        top, weight, total = nothing_seen(BLOCK_M, BLOCK_D)
        top, weight, total = attend_span(
            top,
            weight,
            total,
            query,
            page_tables_ptr + seat * table_stride,
            keys_ptr + head_offset,
            values_ptr + head_offset,
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
        place = ((first_place + member) * NUM_KV_HEADS + kv_head).to(tl.int64) * G + head
        tl.store(partial_ptr + place[:, None] * D + dims[None, :], total / weight[:, None], mask=is_query)
        tl.store(log_weight_ptr + place, top + tl.log2(weight), mask=is_member)


def grouped_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_tables: Tensor,
    plan: DecodePlan,
    groups: DeviceGroups,
    *,
    page_size: int,
    scale: float,
    softcap: float | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """Writes the partial results of all groups into the plan's places; decode_attention launches and merges it."""
    num_kv_heads, num_slots, head_dim = keys.shape
    tile, group_size = groups.tile, plan.group_size
    assert group_size <= tile.block_rows, "a row's query heads have to fit a tile"
    _grouped_attention_kernel[(groups.num_programs,)](
        query,
        keys,
        values,
        key_scales,
        value_scales,
        page_tables,
        groups.num_items,
        groups.items,
        groups.members,
        plan.partials[plan.max_items :],
        plan.log_weights[plan.max_items :],
        scale * LOG2_E.value,
        0.0 if softcap is None else softcap,
        query.stride(0),
        keys.stride(0),
        page_tables.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        G=group_size,
        D=head_dim,
        PAGE_SIZE=page_size,
        ITEM_WIDTH=ITEM_WIDTH,
        BLOCK_M=tile.block_rows,
        BLOCK_N=tile.block_tokens,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HAS_SOFTCAP=softcap is not None,
        HAS_SCALES=key_scales is not None,
        IS_WIDE=num_slots * head_dim >= 2**31,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
