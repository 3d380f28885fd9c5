"""What happens to queries, keys and values between their product and attention, in one pass.

    q, k = norm(q), norm(k)                 where the model norms heads (Qwen3)
    x = [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin]     of queries and keys, at the token's position
    keys[:, slot], values[:, slot] = k, v   in the layer's paged pool, divided by a head's scale if it is of float8

Reads N (Hq + 2 Hkv) D elements and N D float32 of the table, writes N (Hq + 2 Hkv) D.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.gpu_worker.kernels.add_rms_norm import rms_norm_reference

_HEADS = 8  # heads in a program


def rope_table(inverse_frequencies: Tensor, scale: float, max_positions: int) -> Tensor:
    """float32 [max_positions, 2, D / 2]: cosines and sines of position times frequency, times `scale`."""
    positions = torch.arange(max_positions, dtype=torch.float32, device=inverse_frequencies.device)
    angles = torch.outer(positions, inverse_frequencies.float())
    return torch.stack((angles.cos(), angles.sin()), 1) * scale


def rope_write_reference(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """The definition. qkv [N, Hq + 2 Hkv, D], positions and slots [N], table [max_positions, 2, D / 2], keys and
    values [Hkv, num_slots, D], written in place where the slot is not -1 -> queries [N, Hq, D]."""
    kv_heads = keys.shape[0]
    q, k, v = qkv[:, : -2 * kv_heads], qkv[:, -2 * kv_heads : -kv_heads], qkv[:, -kv_heads:]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm_reference(q, q_norm, eps), rms_norm_reference(k, k_norm, eps)
    cos, sin = table[positions.long()].unsqueeze(2).unbind(1)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    is_kept = slots >= 0
    kept = slots[is_kept].long()
    keys[:, kept] = rotate(k)[is_kept].transpose(0, 1).to(keys.dtype)
    values[:, kept] = v[is_kept].transpose(0, 1).to(values.dtype)
    return rotate(q).to(qkv.dtype)


@triton.jit
def _rotated(ptrs, mask, cos, sin, norm_ptr, cols, is_col, D, eps, HALF: tl.constexpr, HAS_NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The halves of heads at [HEADS, BLOCK] pointers to their first elements, normed and rotated, float32."""
    first = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.rsqrt(squares / D + eps)[:, None]
        first *= scale * tl.load(norm_ptr + cols, mask=is_col, other=0.0).to(tl.float32)[None, :]
        second *= scale * tl.load(norm_ptr + HALF + cols, mask=is_col, other=0.0).to(tl.float32)[None, :]
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _stored(x, scale, SCALED: tl.constexpr, ELEMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """x as the pool holds it."""
    if SCALED:
        x = tl.clamp(x / scale, -448.0, 448.0)  # e4m3 has no infinity: what is beyond would be NaN
    return x.to(ELEMENT)


@triton.jit
def _rope_write_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,  # [N, q_heads + 2 kv_heads, D]
    q_out_ptr,  # [N, q_heads, D]
    positions_ptr,  # [N]
    table_ptr,  # [max_positions, 2, HALF]
    slots_ptr,  # [N]
    keys_ptr,  # [kv_heads, num_slots, D], heads apart by keys_stride
    values_ptr,  # [kv_heads, num_slots, D], heads apart by values_stride
    q_norm_ptr,  # [D]
    k_norm_ptr,  # [D]
    key_scales_ptr,  # [kv_heads]
    value_scales_ptr,  # [kv_heads]
    q_heads,
    kv_heads,
    qkv_stride,
    q_out_stride,
    keys_stride,
    values_stride,
    eps,
    D: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SCALED: tl.constexpr,
    IN_PLACE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    token = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    is_col = cols < HALF
    angles = table_ptr + tl.load(positions_ptr + token).to(tl.int64) * D + cols
    cos = tl.load(angles, mask=is_col, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=is_col, other=0.0)[None, :]
    row = qkv_ptr + token * qkv_stride
    q_blocks = tl.cdiv(q_heads, HEADS)
    block = tl.program_id(1)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if block < q_blocks:
        head = block * HEADS + tl.arange(0, HEADS)
        mask = (head < q_heads)[:, None] & is_col[None, :]
        inside = head[:, None] * D + cols[None, :]
        first, second = _rotated(row + inside, mask, cos, sin, q_norm_ptr, cols, is_col, D, eps, HALF, HAS_NORM)
        out = q_out_ptr + token * q_out_stride + inside
        tl.store(out, first.to(q_out_ptr.dtype.element_ty), mask=mask)
        tl.store(out + HALF, second.to(q_out_ptr.dtype.element_ty), mask=mask)
    elif IN_PLACE or slot >= 0:
        head = (block - q_blocks) * HEADS + tl.arange(0, HEADS)
        mask = (head < kv_heads)[:, None] & is_col[None, :]
        k = row + (q_heads + head)[:, None] * D + cols[None, :]
        first, second = _rotated(k, mask, cos, sin, k_norm_ptr, cols, is_col, D, eps, HALF, HAS_NORM)
        if IN_PLACE:
            tl.store(k, first.to(qkv_ptr.dtype.element_ty), mask=mask)
            tl.store(k + HALF, second.to(qkv_ptr.dtype.element_ty), mask=mask)
            mask = mask & (slot + head * 0 >= 0)[:, None]
        scale = tl.full([HEADS, 1], 1.0, tl.float32)
        if SCALED:
            scale = tl.load(key_scales_ptr + head, mask=head < kv_heads, other=1.0)[:, None]
        out = keys_ptr + head.to(tl.int64)[:, None] * keys_stride + slot * D + cols[None, :]
        tl.store(out, _stored(first, scale, SCALED, keys_ptr.dtype.element_ty), mask=mask)
        tl.store(out + HALF, _stored(second, scale, SCALED, keys_ptr.dtype.element_ty), mask=mask)
        v = k + kv_heads * D
        first = tl.load(v, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(v + HALF, mask=mask, other=0.0).to(tl.float32)
        if SCALED:
            scale = tl.load(value_scales_ptr + head, mask=head < kv_heads, other=1.0)[:, None]
        out = values_ptr + head.to(tl.int64)[:, None] * values_stride + slot * D + cols[None, :]
        tl.store(out, _stored(first, scale, SCALED, values_ptr.dtype.element_ty), mask=mask)
        tl.store(out + HALF, _stored(second, scale, SCALED, values_ptr.dtype.element_ty), mask=mask)


def rope_write(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """As the reference -> queries [N, Hq, D]; in_place: those of qkv itself, and its keys are replaced too.

    qkv: [N, Hq + 2 Hkv, D], rows may be apart; positions, slots: int32 or int64; keys, values: [Hkv, num_slots, D],
    heads may be apart. A pool of float8_e4m3fn wants key_scales and value_scales, float32 [Hkv]: it holds what was
    written divided by its head's scale."""
    tokens, heads, head_dim = qkv.shape
    kv_heads = keys.shape[0]
    q_heads = heads - 2 * kv_heads
    assert q_heads > 0 and head_dim % 2 == 0 and qkv.stride()[1:] == (head_dim, 1)
    assert table.dtype is torch.float32 and table.is_contiguous() and table.shape[1:] == (2, head_dim // 2)
    assert positions.shape == slots.shape == (tokens,) and positions.is_contiguous() and slots.is_contiguous()
    assert keys.shape == values.shape and keys.dtype is values.dtype
    assert keys.stride()[1:] == values.stride()[1:] == (head_dim, 1)
    assert (q_norm is None) == (k_norm is None)
    is_scaled = keys.dtype is torch.float8_e4m3fn
    assert is_scaled == (key_scales is not None) == (value_scales is not None), "scales belong to a pool of float8"
    queries = qkv[:, :q_heads] if in_place else qkv.new_empty((tokens, q_heads, head_dim))
    if tokens == 0:
        return queries
    grid = (tokens, triton.cdiv(q_heads, _HEADS) + triton.cdiv(kv_heads, _HEADS))
    _rope_write_kernel[grid](
        qkv, queries, positions, table, slots, keys, values,
        table if q_norm is None else q_norm,
        table if k_norm is None else k_norm,
        table if key_scales is None else key_scales,
        table if value_scales is None else value_scales,
        q_heads, kv_heads,
        qkv.stride(0), queries.stride(0), keys.stride(0), values.stride(0),
        eps,
        D=head_dim,
        HAS_NORM=q_norm is not None,
        SCALED=is_scaled,
        IN_PLACE=in_place,
        HEADS=_HEADS,
        BLOCK=triton.next_power_of_2(head_dim // 2),
        num_warps=2,
    )  # fmt: skip
    return queries
