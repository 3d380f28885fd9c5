"""The product for few rows against its definition in float64, at sizes that fill no block."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from services.gpu_worker.kernels.skinny_linear import (
    SkinnyConfig,
    Workspace,
    skinny_linear,
    skinny_linear_reference,
)
from tests.services.gpu_worker.kernels.kernel_testing import assert_close

# Normed rows are rounded to bfloat16 before the product, and the interpreter cuts bits off where the GPU rounds.
NORMED = 1e-2
DOT = SkinnyConfig(block_n=32, block_k=64)
CONFIGS = [
    DOT,
    replace(DOT, split_k=3, block_m=8),  # with 17 rows, three tiles of them
    replace(DOT, block_n=16, block_k=32, split_k=8),  # more programs along K than blocks
    SkinnyConfig(block_n=16, block_k=128, uses_dot=False),
    SkinnyConfig(block_n=8, block_k=64, split_k=2, uses_dot=False),
]


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


@pytest.mark.parametrize("fused", ["plain", "bias", "norm", "norm silu", "residual", "all"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("rows", "outputs", "width"), [(5, 33, 200), (17, 70, 136)])
def test_matches_reference(
    rows: int,
    outputs: int,
    width: int,
    config: SkinnyConfig,
    fused: str,
    device: torch.device,
    nan_filled_empty: None,
) -> None:
    if not config.uses_dot:
        rows = 1
    silu = fused in ("norm silu", "all")
    matrix_rows = 2 * outputs if silu else outputs

    def part(is_wanted: bool, *shape: int) -> Tensor | None:
        return random(*shape, dtype=torch.bfloat16, device=device) if is_wanted else None

    x = random(rows, width, dtype=torch.bfloat16, device=device)
    weight = random(matrix_rows, width, dtype=torch.bfloat16, device=device) * width**-0.5
    bias = part(fused in ("bias", "all"), matrix_rows)
    residual = part(fused in ("residual", "all"), rows, outputs)
    norm_weight = part("norm" in fused or fused == "all", width)
    arguments = {"eps": 1e-5, "silu_and_mul": silu}
    out = skinny_linear(x, weight, config, bias=bias, residual=residual, norm_weight=norm_weight, **arguments)
    reference = skinny_linear_reference(
        x.double(),
        weight.double(),
        bias=wide(bias),
        residual=wide(residual),
        norm_weight=wide(norm_weight),
        **arguments,
    )
    assert_close("out", out, reference, None if norm_weight is None else NORMED)


@pytest.mark.parametrize("config", [DOT, replace(DOT, split_k=2)], ids=str)
def test_norm_of_huge_float16_values(config: SkinnyConfig, device: torch.device) -> None:
    x = random(3, 128, dtype=torch.float16, device=device) * 1000
    x[1, 7] = 60000
    weight = random(40, 128, dtype=torch.float16, device=device)
    norm_weight = random(128, dtype=torch.float16, device=device) * 4
    out = skinny_linear(x, weight, config, norm_weight=norm_weight)
    assert_close("out", out, skinny_linear_reference(x.double(), weight.double(), norm_weight=norm_weight.double()))


def test_float32_output(device: torch.device, nan_filled_empty: None) -> None:
    x = random(2, 64, dtype=torch.bfloat16, device=device)
    weight = random(50, 64, dtype=torch.bfloat16, device=device)
    out = skinny_linear(x, weight, DOT, out_dtype=torch.float32)
    assert out.dtype is torch.float32
    assert_close("out", out, skinny_linear_reference(x.double(), weight.double()))


@pytest.mark.parametrize("config", [DOT, replace(DOT, split_k=3)], ids=str)
def test_residual_in_place_and_rows_apart(config: SkinnyConfig, device: torch.device) -> None:
    hidden = random(4, 90, dtype=torch.bfloat16, device=device)[:, :60]
    x = random(4, 200, dtype=torch.bfloat16, device=device)[:, 8:136]
    weight = random(60, 128, dtype=torch.bfloat16, device=device)
    reference = skinny_linear_reference(x.double(), weight.double(), residual=hidden.double())
    out = skinny_linear(x, weight, config, residual=hidden, out=hidden)
    assert out is hidden
    assert_close("out", hidden, reference)


def test_a_workspace_serves_one_product_after_another(device: torch.device) -> None:
    configs = [replace(DOT, split_k=2), replace(DOT, split_k=4, block_n=16)]
    workspace = Workspace(device)
    for config in configs:
        workspace.reserve(5, 70, config)
    partials, counters = workspace.partials.fill_(torch.nan), workspace.counters
    for config in configs * 2:
        x = random(5, 256, dtype=torch.bfloat16, device=device)
        weight = random(70, 256, dtype=torch.bfloat16, device=device)
        norm_weight = random(256, dtype=torch.bfloat16, device=device)
        out = skinny_linear(x, weight, config, norm_weight=norm_weight, workspace=workspace)
        reference = skinny_linear_reference(x.double(), weight.double(), norm_weight=norm_weight.double())
        assert_close("out", out, reference, NORMED)
        assert not counters.any()
    assert workspace.partials is partials and workspace.counters is counters


def test_a_row_does_not_depend_on_other_rows(device: torch.device) -> None:
    config = replace(DOT, split_k=2)
    x = random(8, 256, dtype=torch.bfloat16, device=device)
    weight = random(40, 256, dtype=torch.bfloat16, device=device)
    alone = skinny_linear(x[3:4], weight, config, norm_weight=weight[0])
    together = skinny_linear(x, weight, config, norm_weight=weight[0])
    assert torch.equal(alone[0], together[3])


@pytest.mark.parametrize("rows", [0, 257])
def test_too_many_rows_are_refused(rows: int, device: torch.device) -> None:
    x = torch.ones(rows, 16, dtype=torch.bfloat16, device=device)
    with pytest.raises(AssertionError, match=f"{rows} rows"):
        skinny_linear(x, torch.ones(4, 16, dtype=torch.bfloat16, device=device), DOT)
