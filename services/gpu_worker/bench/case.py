"""What a kernel's benchmark consists of: cases, each with a check and the work that no version can avoid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

L2_BYTES = 50 << 20  # of an H100; more than other cards of its time have


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape.

    run: launches it once, without waiting for it; called many times, and captured in a CUDA graph.
    check: compares one run with the reference, and raises AssertionError when it is wrong.
    bytes: the fewest that it moves through device memory: each input read once, each output written once.
    flops: the fewest floating-point operations, for kernels that matrix units bound; 0: memory bound.
    can_capture: whether `run` may live in a CUDA graph; otherwise it is timed with its launch."""

    name: str
    run: Callable[[], object]
    check: Callable[[], object]
    bytes: int
    flops: int = 0
    can_capture: bool = True


def rotating(run: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> Callable[[], object]:
    """A `Case.run` that calls `run` with the next of `inputs` each time, so that a cache holds none of them."""
    following = cycle(inputs)
    return lambda: run(*next(following))


def sets_past_l2(bytes_of_one: int) -> int:
    """How many input sets of that many bytes outgrow the L2 cache three times over (and at most 64)."""
    return max(2, min(64, -(-3 * L2_BYTES // max(1, bytes_of_one))))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference|| in float64; NaN when either has one."""
    difference = (out.double() - reference.double()).norm()
    return float(difference / reference.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def assert_error_below(bound: float, out: Tensor, reference: Tensor, what: str = "output") -> None:
    """AssertionError when the relative error is not below `bound`, or NaN."""
    error = relative_error(out, reference)
    assert error < bound, f"{what}: relative error {error:.2e}, allowed {bound:.0e}"


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
