"""RMSNorm against its definition in float64, at widths that fill no block."""

import pytest
import torch

from services.gpu_worker.kernels.add_rms_norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)
from tests.services.gpu_worker.kernels.kernel_testing import assert_close

SIZES = [(1, 64), (7, 100), (33, 200), (2, 5000)]


@pytest.mark.parametrize(("N", "D"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sum_and_norm(N: int, D: int, dtype: torch.dtype, device: torch.device, nan_filled_empty: None) -> None:
    x, residual = (torch.randn(N, D, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(D, device=device).to(dtype)
    out, total = add_rms_norm(x, residual, weight, 1e-5)
    wanted, wanted_total = add_rms_norm_reference(x.double(), residual.double(), weight.double(), 1e-5)
    assert_close("total", total, wanted_total)
    assert_close("out", out, wanted)


@pytest.mark.parametrize(("N", "D"), SIZES)
def test_norm_alone(N: int, D: int, device: torch.device, nan_filled_empty: None) -> None:
    x = torch.randn(N, D, device=device).bfloat16()
    weight = torch.randn(D, device=device).bfloat16()
    assert_close("out", rms_norm(x, weight, 1e-5), rms_norm_reference(x.double(), weight.double(), 1e-5))


def test_many_short_rows_share_programs(
    device: torch.device, nan_filled_empty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gpu_worker.kernels.add_rms_norm._BUSY", 4)
    x = torch.randn(37, 24, device=device).bfloat16()
    weight = torch.randn(24, device=device)
    assert_close("out", rms_norm(x, weight, 1e-6), rms_norm_reference(x.double(), weight.double(), 1e-6))


def test_heads_are_normed_in_place_and_their_neighbours_left_alone(device: torch.device) -> None:
    qkv = torch.randn(5, 9, 40, device=device).bfloat16()
    before = qkv.clone()
    weight = torch.randn(40, device=device).bfloat16()
    heads = qkv[:, 2:5]
    rms_norm(heads, weight, 1e-6, out=heads)
    assert_close("heads", heads, rms_norm_reference(before[:, 2:5].double(), weight.double(), 1e-6))
    assert torch.equal(qkv[:, :2], before[:, :2]) and torch.equal(qkv[:, 5:], before[:, 5:])


def test_the_sum_may_replace_the_residual(device: torch.device) -> None:
    x = torch.randn(4, 80, device=device).bfloat16()
    residual = torch.randn(4, 96, device=device).bfloat16()[:, :80]
    weight = torch.ones(80, device=device)
    wanted, wanted_total = add_rms_norm_reference(x.double(), residual.double(), weight.double(), 1e-6)
    out, total = add_rms_norm(x, residual, weight, 1e-6, total=residual)
    assert total is residual
    assert_close("total", residual, wanted_total)
    assert_close("out", out, wanted)


def test_no_rows(device: torch.device) -> None:
    assert rms_norm(torch.empty(0, 8, device=device), torch.ones(8, device=device), 1e-6).shape == (0, 8)
