"""Matrix product of two tiles with a float32 sum, the same on the GPU and under Triton's interpreter.

The interpreter keeps bfloat16 as 16-bit integers and multiplies those in `tl.dot`, which gives nonsense; there the
operands are widened to float32 first. Their values are the same, so the product differs only in the order of sums.
"""

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b):  # type: ignore[no-untyped-def]
    """a [M, K] @ b [K, N] -> float32 [M, N]; float32 operands are multiplied as float32, not as tf32."""
    if IS_INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def dot_add(a, b, total):  # type: ignore[no-untyped-def]
    """total + a @ b: float32 [M, N]."""
    if IS_INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")
