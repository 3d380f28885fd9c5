"""How a kernel's output is compared with its reference, and how outputs that nobody wrote are found."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

# Relative RMS error allowed by the output's dtype. bfloat16 keeps 8 bits, so rounding the output alone costs about
# 1.7e-3 and rounding probabilities before a product as much again. A wrong mask or a lost block costs 1e-2 and more.
# The interpreter cuts numbers off where the GPU rounds them, which is twice as far from the truth.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 5e-3 if torch.cuda.is_available() else 1e-2,
}
# Read as an index it is out of every range, and as a number it is nobody's answer.
POISON_INTEGER = 0x3A3A3A3A


def assert_close(name: str, out: Tensor, reference: Tensor, tolerance: float | None = None) -> None:
    """||out - reference|| / ||reference|| is within `tolerance`, by default that of out's dtype; NaN never is.

    The reference may be of a wider dtype than the output; integers and booleans have to be equal."""
    assert out.shape == reference.shape, f"{name}: shape {tuple(out.shape)} instead of {tuple(reference.shape)}"
    if not out.dtype.is_floating_point:
        different = (out != reference.to(out.device)).nonzero()
        assert not len(different), f"{name}: {len(different)} elements differ, the first at {different[0].tolist()}"
        return
    got, wanted = out.detach().double().cpu(), reference.detach().double().cpu()
    assert wanted.isfinite().all(), f"{name}: the reference itself has values that are not finite"
    is_bad = ~got.isfinite()
    assert not is_bad.any(), (
        f"{name}: {int(is_bad.sum())} values not finite, the first at {is_bad.nonzero()[0].tolist()}"
    )
    limit = TOLERANCES[out.dtype] if tolerance is None else tolerance
    error = (got - wanted).norm().item()
    norm = wanted.norm().item()
    assert error <= limit * norm, f"{name}: relative error {error / norm if norm else error:.2e}, allowed {limit:.0e}"


def poison(tensor: Tensor) -> Tensor:
    """Fills a tensor in place with what cannot pass for an answer, and returns it."""
    if tensor.dtype.is_floating_point:
        return tensor.fill_(torch.nan)
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(min(POISON_INTEGER, torch.iinfo(tensor.dtype).max))


@contextlib.contextmanager
def nan_filled_allocations() -> Iterator[None]:
    """torch.empty, torch.empty_like and Tensor.new_empty return poisoned memory inside this context."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            return poison(allocate(*args, **kwargs))

        return wrapper

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
    ):
        yield
