"""Both ways of a fused product against the definition, and which of them is taken."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.gpu_worker.kernels.fused_linear import FusedLinear
from services.gpu_worker.kernels.linear_choice import (
    BUCKETS,
    TABLE_FILE,
    LinearShape,
    LinearTable,
    bucket,
    read_choices,
    rule_of_thumb,
)
from services.gpu_worker.kernels.skinny_linear import SkinnyConfig, Workspace, skinny_linear_reference
from tests.services.gpu_worker.kernels.kernel_testing import assert_close

SMALL = SkinnyConfig(block_n=16, block_k=32, split_k=2)
NORMS_BEFORE = replace(SMALL, norms_before=True, block_m=8)
TOLERANCE = 1e-2  # normed rows are rounded before the product


def weights(outputs: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """weight, bias, norm weight."""
    weight = torch.randn(outputs, width, device=device) * width**-0.5
    return (
        weight.bfloat16(),
        torch.randn(outputs, device=device).bfloat16(),
        torch.randn(width, device=device).bfloat16(),
    )


@pytest.mark.parametrize("rows", [3, 10, 70])
@pytest.mark.parametrize("fused", ["qkv", "o", "o in place", "gate_up", "head"])
def test_all_ways_match_the_definition(rows: int, fused: str, device: torch.device, nan_filled_empty: None) -> None:
    weight, bias, norm_weight = weights(48, 96, device)
    silu = fused == "gate_up"
    is_normed = fused in ("qkv", "gate_up", "head")
    linear = FusedLinear(
        weight,
        bias,
        table=LinearTable(4, {(LinearShape(48, 96, silu), 8): SMALL, (LinearShape(48, 96, silu), 16): NORMS_BEFORE}),
        workspace=Workspace(device),
        norm_weight=norm_weight if is_normed else None,
        eps=1e-5,
        silu_and_mul=silu,
        out_dtype=torch.float32 if fused == "head" else None,
    )
    x = torch.randn(rows, 96, device=device).bfloat16()
    residual = torch.randn(rows, 48, device=device).bfloat16() if fused.startswith("o") else None
    wanted = skinny_linear_reference(
        x.double(),
        weight.double(),
        bias=bias.double(),
        residual=None if residual is None else residual.double(),
        norm_weight=norm_weight.double() if is_normed else None,
        eps=1e-5,
        silu_and_mul=silu,
    )
    out = linear(x, residual, in_place=fused == "o in place")
    assert out.dtype is (torch.float32 if fused == "head" else torch.bfloat16)
    assert (out is residual) == (fused == "o in place")
    assert_close("out", out, wanted, TOLERANCE)


def test_the_table_decides_per_bucket_and_large_batches_go_to_the_library() -> None:
    shape = LinearShape(64, 128)
    table = LinearTable(4, {(shape, 8): SMALL, (shape, 16): None})
    assert [table.choose(shape, rows) for rows in (2, 8, 9, 16, 257)] == [SMALL, SMALL, None, None, None]
    assert table.choose(shape, 1) == rule_of_thumb(shape, 1, 4)
    assert table.choose(LinearShape(64, 128, True), 8) == rule_of_thumb(LinearShape(64, 128, True), 8, 4)


def test_buckets_hold_every_number_of_rows() -> None:
    assert sorted({bucket(rows) for rows in range(1, 257)}) == list(BUCKETS)
    assert all(bucket(rows) >= rows for rows in range(1, 257))


@pytest.mark.parametrize("outputs", [2048, 16384, 49152])
def test_the_rule_of_thumb_fills_the_device(outputs: int) -> None:
    config = rule_of_thumb(LinearShape(outputs, 8192), 8, 132)
    alone = rule_of_thumb(LinearShape(outputs, 8192), 1, 132)
    assert config is not None and alone is not None and not alone.uses_dot
    assert -(-outputs // config.block_n) * config.split_k >= 264
    assert rule_of_thumb(LinearShape(outputs, 8192), 65, 132) is None


def test_entries_of_the_file_are_read_back() -> None:
    entries = [
        {"outputs": 64, "width": 128, "silu_and_mul": True, "rows": 8, "config": asdict(SMALL)},
        {"outputs": 64, "width": 128, "silu_and_mul": False, "rows": 1, "config": None},
    ]
    choices = read_choices(json.loads(json.dumps(entries)))
    assert choices == {(LinearShape(64, 128, True), 8): SMALL, (LinearShape(64, 128), 1): None}


def test_the_packaged_table_is_well_formed() -> None:
    assert TABLE_FILE.parent == Path(__file__).parents[4] / "services/gpu_worker/kernels"
    for entries in json.loads(TABLE_FILE.read_text(encoding="utf-8")).values():
        assert all(rows in BUCKETS for _, rows in read_choices(entries))
