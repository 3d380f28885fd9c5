"""Steps run on the GPU where there is one, and under Triton's interpreter elsewhere."""

import os

import pytest
import torch

# Triton reads this when a kernel is defined, so it has to be set before any module of kernels is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
