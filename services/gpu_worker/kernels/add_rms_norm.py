"""RMSNorm of rows or heads, alone or of a residual sum: float32 inside.

    total[n] = x[n] + residual[n]          out[n] = total[n] / rms(total[n]) * weight

Alone it reads ND + D elements and writes ND; with the sum it reads 2ND + D and writes 2ND. `total` may be `residual`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # elements of a program that takes several short rows, such as heads
_BUSY = 1024  # programs that keep a device busy


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition. x [..., D], weight [D] -> [..., D]."""
    wide = x.float() if x.dtype is not torch.float64 else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The definition. x, residual [N, D], weight [D] -> out, total [N, D]."""
    total = x.float() + residual.float() if x.dtype is not torch.float64 else x + residual
    return rms_norm_reference(total, weight, eps).to(x.dtype), total.to(x.dtype)


@triton.jit
def _add_rms_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,  # [N, H, D], x_stride and x_head_stride apart
    residual_ptr,  # [N, D], with HAS_RESIDUAL; H is 1
    weight_ptr,  # [D]
    out_ptr,  # [N, H, D]
    total_ptr,  # [N, D]
    num_rows,  # N * H
    H,
    D,
    x_stride,
    x_head_stride,
    residual_stride,
    out_stride,
    out_head_stride,
    total_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // H, row % H
    cols = tl.arange(0, BLOCK_D)
    is_col = cols < D
    mask = (row < num_rows)[:, None] & is_col[None, :]
    x = tl.load(x_ptr + (token * x_stride + head * x_head_stride)[:, None] + cols[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + (row * residual_stride)[:, None] + cols[None, :], mask=mask, other=0.0)
        tl.store(total_ptr + (row * total_stride)[:, None] + cols[None, :], x.to(total_ptr.dtype.element_ty), mask=mask)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
    weight = tl.load(weight_ptr + cols, mask=is_col, other=0.0).to(tl.float32)
    out = (x * scale[:, None] * weight[None, :]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (token * out_stride + head * out_head_stride)[:, None] + cols[None, :], out, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """As the reference. x: [N, D], or [N, H, D] to norm every head; rows and heads may be apart. out: may be x."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    assert x.dim() in (2, 3) and out.shape == x.shape
    heads = x.shape[1] if x.dim() == 3 else 1
    x_head_stride = x.stride(1) if x.dim() == 3 else 0
    out_head_stride = out.stride(1) if x.dim() == 3 else 0
    _launch(x, None, weight, out, None, heads, x_head_stride, out_head_stride, eps)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, total: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As the reference; rows may be apart. total: where to write the sum, may be `residual`."""
    total = x.new_empty(x.shape) if total is None else total
    assert x.dim() == 2 and residual.shape == x.shape and residual.stride(1) == 1
    assert total.shape == x.shape and total.stride(1) == 1
    out = x.new_empty(x.shape)
    _launch(x, residual, weight, out, total, 1, 0, 0, eps)
    return out, total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    out: Tensor,
    total: Tensor | None,
    heads: int,
    x_head_stride: int,
    out_head_stride: int,
    eps: float,
) -> None:
    width = x.shape[-1]
    assert weight.shape == (width,) and weight.is_contiguous()
    assert x.stride(-1) == 1 and out.stride(-1) == 1
    num_rows = x.shape[0] * heads
    if num_rows == 0:
        return
    block = triton.next_power_of_2(width)
    rows = max(1, min(_TILE // block, triton.next_power_of_2(triton.cdiv(num_rows, _BUSY))))
    _add_rms_norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, x if residual is None else residual, weight, out, out if total is None else total,
        num_rows, heads, width,
        x.stride(0), x_head_stride, 0 if residual is None else residual.stride(0),
        out.stride(0), out_head_stride, 0 if total is None else total.stride(0),
        eps,
        HAS_RESIDUAL=residual is not None,
        ROWS=rows,
        BLOCK_D=block,
        num_warps=max(1, min(8, rows * block // 512)),
    )  # fmt: skip
