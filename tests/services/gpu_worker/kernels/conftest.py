"""Kernels run on the GPU where there is one, and under Triton's interpreter elsewhere."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.services.gpu_worker.kernels.kernel_testing import nan_filled_allocations

# Triton reads this when a kernel is defined, so it has to be set before any module of kernels is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are tested: the GPU, or the CPU under the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same inputs whatever ran before it."""
    torch.manual_seed(20)


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """torch.empty and its like hand out NaN, and an implausible number for integers, as long as the test runs."""
    with nan_filled_allocations():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
