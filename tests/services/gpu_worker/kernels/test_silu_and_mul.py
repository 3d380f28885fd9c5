"""The gated activation against its definition in float64."""

import pytest
import torch

from services.gpu_worker.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference
from tests.services.gpu_worker.kernels.kernel_testing import assert_close


@pytest.mark.parametrize(("N", "width"), [(1, 1), (3, 100), (5, 1025), (2, 3000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_reference(
    N: int, width: int, dtype: torch.dtype, device: torch.device, nan_filled_empty: None
) -> None:
    gate_up = torch.randn(N, 2 * width, device=device).to(dtype)
    assert_close("out", silu_and_mul(gate_up), silu_and_mul_reference(gate_up.double()))


def test_rows_apart_and_large_values(device: torch.device) -> None:
    # exp(88) is near float32's limit: the interpreter warns where the GPU goes to infinity, and 1 / infinity is right
    gate_up = (torch.randn(4, 300, device=device) * 40).clamp(-87, 87).bfloat16()[:, :260]
    out = torch.full((4, 200), torch.nan, device=device).bfloat16()
    silu_and_mul(gate_up, out[:, :130])
    assert_close("out", out[:, :130], silu_and_mul_reference(gate_up.double()))
    assert out[:, 130:].isnan().all()


def test_no_rows(device: torch.device) -> None:
    assert silu_and_mul(torch.empty(0, 8, device=device)).shape == (0, 4)
