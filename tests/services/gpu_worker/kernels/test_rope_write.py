"""Rotary embedding with the write to the pool, against its definition in float64."""

import pytest
import torch
from torch import Tensor

from services.gpu_worker.kernels.rope_write import rope_table, rope_write, rope_write_reference
from tests.services.gpu_worker.kernels.kernel_testing import assert_close

SHAPES = [(32, 8, 64), (3, 1, 80), (9, 3, 96), (4, 4, 128), (2, 2, 256)]


def case(
    tokens: int, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """qkv, positions, table, slots, keys, values. Every third token has no slot; the pool is filled with NaN."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, head_dim, 2, device=device) / head_dim)
    table = rope_table(frequencies, 1.0, 700)
    qkv = torch.randn(tokens, q_heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    positions = torch.randint(700, (tokens,), dtype=torch.int32, device=device)
    slots = torch.randperm(50, device=device)[:tokens]
    slots[2::3] = -1
    # As in the pool: one storage, heads apart by pages that belong to nobody here.
    keys, values = torch.full((2, kv_heads, 60, head_dim), torch.nan, device=device).to(dtype)[:, :, :50]
    return qkv, positions, table, slots, keys, values


def check_pool(name: str, pool: Tensor, wanted: Tensor, slots: Tensor) -> None:
    kept = slots[slots >= 0].long()
    assert_close(name, pool[:, kept], wanted[:, kept])
    others = torch.ones(pool.shape[1], dtype=torch.bool, device=pool.device)
    others[kept] = False
    assert pool[:, others].isnan().all(), f"{name}: a slot was written that nobody asked for"


@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("is_normed", [False, True], ids=["plain", "normed"])
def test_matches_reference(
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    is_normed: bool,
    device: torch.device,
    nan_filled_empty: None,
) -> None:
    qkv, positions, table, slots, keys, values = case(
        tokens, q_heads, kv_heads, head_dim, torch.bfloat16, device
    )  # fmt: skip
    norms = [torch.randn(head_dim, device=device).bfloat16() for _ in range(2)] if is_normed else [None, None]
    queries = rope_write(qkv, positions, table, slots, keys, values, *norms)
    wanted_keys, wanted_values = (
        torch.full(keys.shape, torch.nan, dtype=torch.double, device=device) for _ in range(2)
    )
    wanted = rope_write_reference(
        qkv.double(),
        positions,
        table.double(),
        slots,
        wanted_keys,
        wanted_values,
        *(None if norm is None else norm.double() for norm in norms),
    )
    assert_close("queries", queries, wanted)
    check_pool("keys", keys, wanted_keys, slots)
    check_pool("values", values, wanted_values, slots)


def test_in_place_with_rows_apart_and_int32_slots(device: torch.device) -> None:
    qkv, positions, table, slots, keys, values = case(5, 3, 1, 64, torch.float16, device)
    apart = torch.full((5, 6, 64), 7.0, device=device, dtype=torch.float16)
    apart[:, :5] = qkv
    wanted = rope_write_reference(qkv.double(), positions, table.double(), slots, keys.double(), values.double())
    keys_as_queries = torch.cat((qkv[:, 3:4], qkv[:, 3:]), 1).double()
    wanted_keys = rope_write_reference(
        keys_as_queries, positions, table.double(), slots, keys.double(), values.double()
    )
    queries = rope_write(apart[:, :5], positions, table, slots.int(), keys, values, in_place=True)
    assert queries.data_ptr() == apart.data_ptr()
    assert_close("queries", apart[:, :3], wanted)
    assert_close("keys", apart[:, 3:4], wanted_keys)
    assert torch.equal(apart[:, 4], qkv[:, 4]) and (apart[:, 5] == 7).all()


def test_float8_pool_holds_what_was_written_over_the_scale(device: torch.device) -> None:
    qkv, positions, table, slots, keys, values = case(6, 4, 3, 64, torch.bfloat16, device)
    qkv *= 30
    scales = [torch.tensor([0.25, 1.0, 4.0], device=device), torch.tensor([0.01, 0.5, 2.0], device=device)]
    pool = torch.zeros(2, 3, 50, 64, device=device).to(torch.float8_e4m3fn)
    rope_write(qkv, positions, table, slots, pool[0], pool[1], key_scales=scales[0], value_scales=scales[1])
    exact_keys, exact_values = keys.double(), values.double()
    rope_write_reference(qkv.double(), positions, table.double(), slots, exact_keys, exact_values)
    kept = slots[slots >= 0].long()
    for name, held, exact, scale in (
        ("keys", pool[0], exact_keys, scales[0]),
        ("values", pool[1], exact_values, scales[1]),
    ):
        wanted = (exact[:, kept] / scale[:, None, None]).clamp(-448, 448)
        # 3 bits of mantissa: steps of 1/8 to 1/16, and the interpreter cuts off where the GPU rounds
        assert_close(name, held[:, kept].double(), wanted, tolerance=0.08)


def test_scales_are_wanted_for_float8_alone(device: torch.device) -> None:
    arguments = case(2, 2, 1, 64, torch.bfloat16, device)
    scale = torch.ones(1, device=device)
    with pytest.raises(AssertionError, match="float8"):
        rope_write(*arguments, key_scales=scale, value_scales=scale)


def test_no_tokens(device: torch.device) -> None:
    assert rope_write(*case(0, 2, 1, 64, torch.bfloat16, device)).shape == (0, 2, 64)
