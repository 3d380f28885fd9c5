"""Decode attention against its definition: odd shapes, poisoned outputs, NaN in every slot that no row sees."""

import pytest
import torch

from services.gpu_worker.kernels.decode_attention import NewTokens, decode_attention, decode_attention_reference
from services.gpu_worker.kernels.rope_write import rope_table, rope_write_reference
from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.kernels.work_list import DecodePlan
from tests.services.gpu_worker.kernels.kernel_testing import assert_close, poison
from tests.services.gpu_worker.kernels.paged_testing import CHEAP_CUTS, PagedBatch, paged_batch

TILE = TileShape(block_tokens=16, num_warps=4, num_stages=3, programs_per_sm=1)


def make_plan(batch: PagedBatch, device: torch.device, *, window: int | None = None, num_sms: int = 8) -> DecodePlan:
    num_kv_heads, _, head_dim = batch.keys.shape
    group_size = batch.query.shape[1] // num_kv_heads
    max_rows = len(batch.lengths) + 1
    return DecodePlan(
        max_rows,
        None,
        num_kv_heads,
        group_size,
        head_dim,
        device,
        window=window,
        tile=TILE,
        num_sms=num_sms,
        costs=CHEAP_CUTS,
    )


def check(batch: PagedBatch, plan: DecodePlan, *, window: int | None = None, softcap: float | None = None) -> None:
    out = poison(torch.empty_like(batch.query))
    scale = 1.7 / batch.query.shape[2] ** 0.5
    seen = (batch.seats, batch.lengths, batch.page_tables)
    options = {"page_size": batch.page_size, "scale": scale, "window": window, "softcap": softcap}
    plan.update(batch.lengths, batch.seats)
    decode_attention(batch.query, batch.keys, batch.values, out, *seen, plan, **options)
    reference = decode_attention_reference(batch.query, batch.keys, batch.values, *seen, **options)
    assert_close("out", out, reference)
    assert not plan.arrived.any(), "counters are not ready for the next layer"


@pytest.mark.parametrize(
    ("num_kv_heads", "group_size", "head_dim", "page_size", "dtype"),
    [
        (2, 4, 64, 16, torch.bfloat16),
        (1, 3, 80, 1, torch.float32),
        (3, 1, 96, 16, torch.float16),
        (1, 8, 128, 64, torch.bfloat16),
        (1, 2, 256, 16, torch.float32),
    ],
    ids=str,
)
def test_matches_reference(
    num_kv_heads: int,
    group_size: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    nan_filled_empty: None,
) -> None:
    batch = paged_batch(
        [1, 300, 17, 64, 15],
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        device=device,
        padding=(3,),
    )
    check(batch, make_plan(batch, device))


@pytest.mark.parametrize("window", [1, 20, 33, 500])
def test_window_hides_older_tokens(window: int, device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [350, 5, 33, 34, 1],
        num_kv_heads=1,
        group_size=2,
        head_dim=32,
        page_size=16,
        dtype=torch.float32,
        device=device,
    )
    check(batch, make_plan(batch, device, window=window, num_sms=64), window=window)


def test_softcap_bounds_scores(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [310, 40], num_kv_heads=2, group_size=2, head_dim=32, page_size=16, dtype=torch.float32, device=device
    )
    batch.query *= 50  # far into the flat part of the tanh, where its exponential overflows
    check(batch, make_plan(batch, device, num_sms=64), softcap=5.0)


def test_rows_are_cut_where_programs_are_idle(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [700, 3], num_kv_heads=1, group_size=5, head_dim=32, page_size=16, dtype=torch.float32, device=device
    )
    plan = make_plan(batch, device, num_sms=32)
    check(batch, plan)
    assert plan.row_count.tolist()[0] > 8


def test_one_plan_serves_changing_lengths_and_batch_sizes(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [400, 90, 30], num_kv_heads=1, group_size=2, head_dim=32, page_size=16, dtype=torch.float32, device=device
    )
    plan = make_plan(batch, device, num_sms=16)
    check(batch, plan)
    batch.lengths[0] = 7
    batch.lengths[1] -= 1
    check(batch, plan)
    check(
        PagedBatch(
            batch.query[1:], batch.keys, batch.values, batch.seats[1:], batch.lengths[1:], batch.page_tables, 16
        ),
        plan,
    )


def test_all_rows_padding_gives_zeros(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [20, 30],
        num_kv_heads=1,
        group_size=2,
        head_dim=32,
        page_size=16,
        dtype=torch.float32,
        device=device,
        padding=(0, 1),
    )
    check(batch, make_plan(batch, device))


def test_query_may_be_a_slice_of_a_wider_row(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [40, 25], num_kv_heads=2, group_size=2, head_dim=32, page_size=1, dtype=torch.float32, device=device
    )
    joined = torch.randn(2, 4 + 2 + 2, 32, device=device)
    batch.query = joined[:, :4]
    check(batch, make_plan(batch, device))


def test_plan_of_another_window_is_refused(device: torch.device) -> None:
    batch = paged_batch([5], num_kv_heads=1, group_size=1, head_dim=32, page_size=1, dtype=torch.float32, device=device)
    with pytest.raises(AssertionError, match="the plan was made otherwise"):
        check(batch, make_plan(batch, device, window=3))


def test_fp8_pool_is_read_with_its_scales(device: torch.device, nan_filled_empty: None) -> None:
    batch = paged_batch(
        [130, 9], num_kv_heads=2, group_size=2, head_dim=64, page_size=16, dtype=torch.bfloat16, device=device
    )
    key_scales, value_scales = (torch.rand(2, 2, device=device) + 0.5).unbind(0)
    keys, values = batch.keys.to(torch.float8_e4m3fn), batch.values.to(torch.float8_e4m3fn)
    plan = make_plan(batch, device)
    plan.update(batch.lengths, batch.seats)
    out = poison(torch.empty_like(batch.query))
    seen = (batch.seats, batch.lengths, batch.page_tables)
    decode_attention(
        batch.query,
        keys,
        values,
        out,
        *seen,
        plan,
        page_size=16,
        scale=0.1,
        key_scales=key_scales,
        value_scales=value_scales,
    )
    wide_keys = keys.float() * key_scales[:, None, None]
    wide_values = values.float() * value_scales[:, None, None]
    reference = decode_attention_reference(batch.query, wide_keys, wide_values, *seen, page_size=16, scale=0.1)
    assert_close("out", out, reference)


@pytest.mark.parametrize(
    ("has_norm", "is_float8", "head_dim", "dtype", "window"),
    [
        (False, False, 64, torch.bfloat16, None),
        (True, False, 80, torch.float32, None),
        (False, True, 64, torch.bfloat16, None),
        (True, False, 32, torch.float32, 20),
    ],
    ids=str,
)
def test_new_tokens_are_rotated_written_and_seen(
    has_norm: bool,
    is_float8: bool,
    head_dim: int,
    dtype: torch.dtype,
    window: int | None,
    device: torch.device,
    nan_filled_empty: None,
) -> None:
    """As rope_write's definition followed by plain decode attention, over a pool where the new tokens are still NaN."""
    batch = paged_batch(
        [1, 130, 33, 20, 64],
        num_kv_heads=2,
        group_size=3,
        head_dim=head_dim,
        page_size=16,
        dtype=dtype,
        device=device,
        padding=(3,),
    )
    qkv = torch.randn(5, 6 + 2 + 2, head_dim, device=device).to(dtype)
    qkv[3] = torch.nan  # what padding holds is nobody's business
    table = rope_table(1e4 ** -torch.linspace(0, 1, head_dim // 2, device=device), 1.0, 140)
    norms = {"query_norm": torch.rand(head_dim, device=device), "key_norm": torch.rand(head_dim, device=device)}
    new = NewTokens(qkv[:, 6:8], qkv[:, 8:], table, **norms if has_norm else {})
    positions = (batch.lengths - 1).clamp(min=0)
    page_of = batch.page_tables[batch.seats.clamp(min=0).long(), positions.long() // 16]
    slots = torch.where(batch.seats >= 0, page_of * 16 + positions % 16, -1)
    scales = torch.tensor([0.6, 1.3], device=device)
    keys, values = batch.keys, batch.values
    keys[:, slots[slots >= 0].long()] = torch.nan
    values[:, slots[slots >= 0].long()] = torch.nan
    if is_float8:
        keys, values = keys.to(torch.float8_e4m3fn), values.to(torch.float8_e4m3fn)
    scaling = scales[:, None, None] if is_float8 else torch.ones(1, device=device)
    wide_keys, wide_values = keys.float(), values.float()
    normed = (new.query_norm, new.key_norm)
    query = rope_write_reference(qkv, positions, table, slots, wide_keys, wide_values, *normed)
    wide_keys[:, slots[slots >= 0].long()] /= scaling
    wide_values[:, slots[slots >= 0].long()] /= scaling
    stored = (wide_keys.to(keys.dtype), wide_values.to(keys.dtype))

    plan = make_plan(batch, device, window=window)
    plan.update(batch.lengths, batch.seats)
    out = poison(torch.empty_like(batch.query))
    seen = (batch.seats, batch.lengths, batch.page_tables)
    options = {"page_size": 16, "scale": 0.2, "window": window}
    pool_scales = {"key_scales": scales, "value_scales": scales} if is_float8 else {}
    decode_attention(qkv[:, :6], keys, values, out, *seen, plan, **options, **pool_scales, new=new)

    kept = [part[:, slots[slots >= 0].long()].float() for part in (keys, values, *stored)]
    one_rounding = 1e-1 if is_float8 else 1e-2  # the interpreter cuts off, to 4 or 8 bits, where PyTorch rounds
    assert_close("keys", kept[0], kept[2], one_rounding)
    assert_close("values", kept[1], kept[3], one_rounding)
    keys, values = keys.float() * scaling, values.float() * scaling
    reference = decode_attention_reference(query, keys, values, *seen, **options)
    assert_close("out", out, reference)
    untouched = torch.ones(keys.shape[1], dtype=torch.bool, device=device)
    untouched[slots[slots >= 0].long()] = False
    assert torch.equal(keys[:, untouched].isnan(), (batch.keys.float() * scaling)[:, untouched].isnan())


@pytest.mark.gpu
@pytest.mark.parametrize(("group_size", "head_dim"), [(4, 64), (4, 128), (7, 128), (2, 256)])
def test_captured_graph_follows_lengths(group_size: int, head_dim: int, device: torch.device) -> None:
    """With the tiles that serving uses: one capture, replayed with other lengths and seats."""
    lengths = torch.randint(1, 3000, (37,)).tolist()
    batch = paged_batch(
        lengths,
        num_kv_heads=8,
        group_size=group_size,
        head_dim=head_dim,
        page_size=16,
        dtype=torch.bfloat16,
        device=device,
    )
    plan = DecodePlan(40, None, 8, group_size, head_dim, device)
    out = torch.empty_like(batch.query)
    seen = (batch.seats, batch.lengths, batch.page_tables)

    def step() -> None:
        plan.update(batch.lengths, batch.seats)
        for _ in range(3):  # layers
            decode_attention(batch.query, batch.keys, batch.values, out, *seen, plan, page_size=16, scale=0.1)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for factor in (1.0, 0.7, 0.1):
        batch.lengths.copy_((torch.tensor(lengths) * factor).int().clamp(min=1))
        poison(out)
        graph.replay()
        reference = decode_attention_reference(batch.query, batch.keys, batch.values, *seen, page_size=16, scale=0.1)
        assert_close(f"out at {factor}", out, reference)


@pytest.mark.gpu
@pytest.mark.parametrize(("group_size", "head_dim", "has_norm"), [(4, 64, False), (4, 128, False), (2, 128, True)])
def test_new_tokens_with_the_tiles_that_serving_uses(
    group_size: int, head_dim: int, has_norm: bool, device: torch.device
) -> None:
    lengths = torch.randint(1, 3000, (21,)).tolist()
    shape = {"num_kv_heads": 8, "group_size": group_size, "head_dim": head_dim, "page_size": 16}
    batch = paged_batch(lengths, dtype=torch.bfloat16, device=device, **shape)
    heads = 8 * group_size
    qkv = torch.randn(21, heads + 16, head_dim, device=device).bfloat16()
    table = rope_table(1e4 ** -torch.linspace(0, 1, head_dim // 2, device=device), 1.0, 3000)
    norms = [torch.rand(head_dim, device=device).bfloat16() for _ in range(2)] if has_norm else [None, None]
    new = NewTokens(qkv[:, heads:-8], qkv[:, -8:], table, *norms)
    positions = batch.lengths - 1
    slots = batch.page_tables[batch.seats.long(), positions.long() // 16] * 16 + positions % 16
    keys, values = batch.keys.clone(), batch.values.clone()
    query = rope_write_reference(qkv, positions, table, slots, keys, values, *norms)
    batch.keys[:, slots.long()] = torch.nan
    batch.values[:, slots.long()] = torch.nan
    seen = (batch.seats, batch.lengths, batch.page_tables)
    reference = decode_attention_reference(query, keys, values, *seen, page_size=16, scale=0.1)
    plan = DecodePlan(21, None, 8, group_size, head_dim, device)
    plan.update(batch.lengths, batch.seats)
    out = poison(torch.empty_like(query))
    decode_attention(qkv[:, :heads], batch.keys, batch.values, out, *seen, plan, page_size=16, scale=0.1, new=new)
    assert_close("keys", batch.keys[:, slots.long()], keys[:, slots.long()])
    assert_close("values", batch.values[:, slots.long()], values[:, slots.long()])
    assert_close("out", out, reference)
