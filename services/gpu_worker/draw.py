"""One number in [0, 1) to one token of one row: lookup in the row's cumulative distribution.

Masses are float64 and relative to the likeliest token's: exp((logit - peak) / temperature). Filtered rows are sorted,
but only the tokens that can matter: each filter gives a floor under which no token that it keeps can lie.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_BLOCK = 256
_COLUMNS = 1024
"""Groups whose maxima bound the k-th largest logit from below."""
_SLACK = 1e-3
"""How far floors are lowered, so that rounding cannot put a token wrongly under one."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tokens may be drawn: the first top_k (0: all); the shortest beginning whose share of the whole mass
    reaches top_p; those with at least min_p of the likeliest one's mass. The likeliest token always may."""

    top_k: int
    top_p: float
    min_p: float


def draw_unfiltered(logits: F32, peak: float, temperature: float, u: float) -> int:
    """From the whole distribution, looked up in the vocabulary's order. logits: [V], the largest of them is peak."""
    masses = _masses(logits, peak, temperature)
    block_ends = np.add.reduceat(masses, np.arange(0, len(masses), _BLOCK)).cumsum()  # much faster than all sums
    target = u * float(block_ends[-1])
    block = int(np.searchsorted(block_ends, target, side="right"))
    start = block * _BLOCK
    sums = masses[start : start + _BLOCK].cumsum()
    return start + _look_up(sums, target - float(block_ends[block - 1]) if block else target)


def draw_filtered(logits: F32, peak: float, temperature: float, filters: Filters, u: float) -> int:
    """From what all three filters leave, looked up by descending logit and equal logits by ascending id.
    logits: [V], the largest of them is peak."""
    needed, floor = math.inf, -math.inf
    if filters.top_k:
        floor = _top_k_floor(logits, filters.top_k)
    if filters.min_p > 0:
        floor = max(floor, peak + temperature * (math.log(filters.min_p) - _SLACK))
    if filters.top_p < 1:
        total = float(_masses(logits, peak, temperature).sum())
        needed = filters.top_p * total
        # All tokens under this share together have less than 1 - top_p.
        share = (1 - filters.top_p) * total / len(logits)
        floor = max(floor, peak + temperature * (math.log(share) - _SLACK))
    ids = np.flatnonzero(logits >= min(floor, peak))
    masses = _masses(logits[ids], peak, temperature)
    descending = -np.sort(-masses)  # by value alone: several times faster than any sort that keeps the ids
    sums = descending.cumsum()
    count = min(
        filters.top_k or len(ids),
        int(np.searchsorted(sums, needed)) + 1,
        int(np.count_nonzero(masses >= filters.min_p)),
        len(ids),
    )
    sums = sums[: max(count, 1)]
    rank = _look_up(sums, u * float(sums[-1]))
    mass = descending[rank]
    num_likelier = int(np.count_nonzero(masses > mass))
    return int(ids[np.flatnonzero(masses == mass)[rank - num_likelier]])


def _masses(logits: F32, peak: float, temperature: float) -> F64:
    masses = np.subtract(logits, peak, dtype=np.float64)
    masses *= 1 / temperature
    return np.exp(masses, out=masses)


def _look_up(sums: F64, target: float) -> int:
    """The first place where the sums pass the target; the last that adds to them, if rounding put it beyond."""
    place = int(np.searchsorted(sums, target, side="right"))
    return place if place < len(sums) else int(np.searchsorted(sums, sums[-1]))


def _top_k_floor(logits: F32, k: int) -> float:
    """A value that at least k logits reach, and not many more."""
    size = len(logits)
    if k >= size:
        return -math.inf
    if k > _COLUMNS // 2 or size < 2 * _COLUMNS:
        return float(np.partition(logits, size - k)[size - k])
    maxima = logits[: size // _COLUMNS * _COLUMNS].reshape(-1, _COLUMNS).max(axis=0)
    return float(np.partition(maxima, _COLUMNS - k)[_COLUMNS - k])
