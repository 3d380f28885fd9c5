"""The gated activation of a Llama MLP: out = silu(gate) * up, of gate and up side by side in one row.

Reads 2NI elements, writes NI.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """The definition. gate_up [N, 2I] -> [N, I]."""
    gate, up = gate_up.chunk(2, -1)
    if gate_up.dtype is not torch.float64:
        gate, up = gate.float(), up.float()
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


@triton.jit
def _silu_and_mul_kernel(gate_up_ptr, out_ptr, width, gate_up_stride, out_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    gate = tl.load(gate_up_ptr + row * gate_up_stride + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * gate_up_stride + width + cols, mask=mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * out_stride + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_and_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """As the reference; rows may be apart."""
    rows, both = gate_up.shape
    assert both % 2 == 0 and gate_up.stride(1) == 1
    width = both // 2
    out = gate_up.new_empty((rows, width)) if out is None else out
    assert out.shape == (rows, width) and out.stride(1) == 1
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        _silu_and_mul_kernel[grid](gate_up, out, width, gate_up.stride(0), out.stride(0), BLOCK=_BLOCK, num_warps=4)
    return out
