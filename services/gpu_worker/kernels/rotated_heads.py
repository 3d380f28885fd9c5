"""Heads as attention wants them, loaded straight from a product: normed where the model norms heads, and rotated.

    x = [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin]

The same as rope_write.py does in a launch of its own, for kernels that take it in.
"""

import triton
import triton.language as tl


@triton.jit
def rotated_heads(  # type: ignore[no-untyped-def]
    heads_ptr,
    offset,  # [R, 1]: of each head
    is_head,  # [R, 1]
    angles_ptr,  # float32 [2, D / 2]: cosines and sines of the position
    norm_ptr,  # [D], read with HAS_NORM
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """float32 [R, BLOCK_D], zeros past D."""
    HALF: tl.constexpr = D // 2
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < D
    is_first = dims < HALF
    other = tl.where(is_first, dims + HALF, dims - HALF)
    angle = tl.where(is_first, dims, dims - HALF)
    cos = tl.load(angles_ptr + angle, mask=is_dim, other=0.0)
    sin = tl.load(angles_ptr + HALF + angle, mask=is_dim, other=0.0)
    sin = tl.where(is_first, -sin, sin)
    mask = is_head & is_dim[None, :]
    x = tl.load(heads_ptr + offset + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(heads_ptr + offset + other[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x *= scale * tl.load(norm_ptr + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        partner *= scale * tl.load(norm_ptr + other, mask=is_dim, other=0.0).to(tl.float32)[None, :]
    return x * cos[None, :] + partner * sin[None, :]
