"""Philox4x32-10: random numbers that are a pure function of (key, counter).

No state is kept or passed on, so a draw can be made again anywhere: same seed, same counter, same number.
The numbers are those of Triton's `tl.rand(seed, offset)`, so a kernel and this file agree.

Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_MULTIPLIER_A, _MULTIPLIER_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP_A, _KEY_STEP_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10

_SCALE = np.float32(4.6566127342e-10)
"""Just under 2**-31, so that the largest 31-bit number still gives less than 1 in float32."""


def philox(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Four 32-bit words for each counter, all held in uint64 arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        a, b = c0 * _MULTIPLIER_A, c2 * _MULTIPLIER_B  # 32 by 32 bits: fits 64
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _LOW, (a >> _HALF) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _KEY_STEP_A) & _LOW, (k1 + _KEY_STEP_B) & _LOW
    return c0, c1, c2, c3


def uniform(seeds: U64, offsets: U64, stream: int = 0) -> npt.NDArray[np.float32]:
    """One number in [0, 1) for each (seed, offset), both uint64 [N]; the offset counts to 2**32.

    stream: independent numbers for the same seed and offset; 0 is `tl.rand`'s."""
    zero = np.zeros_like(offsets)
    word = philox((offsets & _LOW, zero, zero + np.uint64(stream), zero), (seeds & _LOW, seeds >> _HALF))[0]
    signed = word.astype(np.uint32).view(np.int32)
    return np.where(signed < 0, ~signed, signed).astype(np.float32) * _SCALE
