"""Attention over shared prefixes: each segment's partial results, and whole rows merged from all their parts."""

from array import array

import pytest
import torch

from services.gpu_worker.kernels.decode_attention import decode_attention, decode_attention_reference
from services.gpu_worker.kernels.group_tables import DeviceGroups, chunk_size
from services.gpu_worker.kernels.grouped_attention import grouped_attention, grouped_attention_reference
from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.kernels.work_list import DecodePlan
from services.gpu_worker.prefix_groups import GroupTables, plan_groups
from tests.services.gpu_worker.kernels.kernel_testing import assert_close, poison
from tests.services.gpu_worker.kernels.paged_testing import CHEAP_CUTS, PagedBatch, paged_batch

TILE = TileShape(block_tokens=16, num_warps=4, num_stages=3, programs_per_sm=1)
GROUPED_TILE = TileShape(block_tokens=16, num_warps=4, num_stages=2, programs_per_sm=1, block_rows=16)
MAX_PARTIALS = 120


def make(batch: PagedBatch, device: torch.device, num_sms: int = 8) -> tuple[DecodePlan, DeviceGroups]:
    num_kv_heads, _, head_dim = batch.keys.shape
    shape = (num_kv_heads, batch.query.shape[1] // num_kv_heads, head_dim)
    max_rows = len(batch.lengths) + 1
    plan = DecodePlan(
        max_rows, None, *shape, device, max_group_partials=MAX_PARTIALS, tile=TILE, num_sms=num_sms, costs=CHEAP_CUTS
    )
    groups = DeviceGroups(max_rows, MAX_PARTIALS, *shape, device, tile=GROUPED_TILE, num_sms=num_sms)
    return plan, groups


def found_groups(batch: PagedBatch, min_tokens: int = 16) -> GroupTables:
    tables = [array("i", batch.page_tables[max(0, seat)].tolist()) for seat in batch.seats.tolist()]
    return plan_groups(tables, batch.lengths.tolist(), batch.page_size, min_tokens=min_tokens)


def check(batch: PagedBatch, plan: DecodePlan, groups: DeviceGroups, *, softcap: float | None = None) -> None:
    out = poison(torch.empty_like(batch.query))
    poison(plan.partials), poison(plan.log_weights)
    seen = (batch.seats, batch.lengths, batch.page_tables)
    options = {"page_size": batch.page_size, "scale": 0.3, "softcap": softcap}
    plan.update(batch.lengths, batch.seats, groups)
    decode_attention(batch.query, batch.keys, batch.values, out, *seen, plan, groups=groups, **options)
    assert_close("out", out, decode_attention_reference(batch.query, batch.keys, batch.values, *seen, **options))
    assert not plan.arrived.any()


# Rows 0 .. 6 share 64 tokens, and of them 2, 4, 5 and 6 another 32; rows 7 and 8 share 16; row 9 is alone.
SHARED = [(list(range(7)), 64), ([2, 4, 5, 6], 96), ([7, 8], 16)]
LENGTHS = [65, 70, 100, 300, 97, 128, 111, 17, 40, 50]


def shared_batch(
    device: torch.device, dtype: torch.dtype = torch.float32, group_size: int = 3, **options: int
) -> PagedBatch:
    shape = {"num_kv_heads": 2, "head_dim": 32, "page_size": 16} | options
    return paged_batch(LENGTHS, group_size=group_size, dtype=dtype, device=device, shared=SHARED, **shape)


def test_partial_results_of_segments_match_reference(device: torch.device, nan_filled_empty: None) -> None:
    batch = shared_batch(device)
    tables = found_groups(batch)
    assert [(s.first, s.count, len(s.rows)) for s in tables.segments if s.rows[0] < 7] == [(0, 64, 7), (64, 32, 4)]
    plan, groups = make(batch, device, num_sms=1)  # so that segments are not cut
    groups.load(tables, batch.seats.tolist())
    grouped_attention(batch.query, batch.keys, batch.values, batch.page_tables, plan, groups, page_size=16, scale=0.3)
    place = plan.max_items
    for segment in tables.segments:
        page_table = batch.page_tables[int(batch.seats[int(segment.rows[0])])]
        partial, log_weight = grouped_attention_reference(
            batch.query, batch.keys, batch.values, page_table, segment, page_size=16, scale=0.3
        )
        places = slice(place, place + len(segment.rows))
        assert_close("partial", plan.partials[places].flatten(1, 2), partial)
        assert_close("log_weight", plan.log_weights[places].flatten(1, 2), log_weight)
        place += len(segment.rows)


@pytest.mark.parametrize(
    ("dtype", "group_size", "head_dim", "page_size", "num_sms"),
    [
        (torch.float32, 3, 32, 16, 8),
        (torch.bfloat16, 4, 64, 16, 64),
        (torch.float16, 8, 80, 1, 2),
        (torch.float32, 1, 128, 16, 200),
    ],
    ids=str,
)
def test_rows_merge_their_segments_and_their_own_tokens(
    dtype: torch.dtype,
    group_size: int,
    head_dim: int,
    page_size: int,
    num_sms: int,
    device: torch.device,
    nan_filled_empty: None,
) -> None:
    batch = shared_batch(device, dtype, group_size, num_kv_heads=1, head_dim=head_dim, page_size=page_size)
    tables = found_groups(batch)
    assert tables.row_ends.tolist()[:7] == [64, 64, 96, 64, 96, 96, 96] and tables.row_ends[9] == 0
    plan, groups = make(batch, device, num_sms)
    groups.load(tables, batch.seats.tolist())
    check(batch, plan, groups)
    check(batch, plan, groups, softcap=2.0)


def test_no_groups_is_plain_attention(device: torch.device, nan_filled_empty: None) -> None:
    batch = shared_batch(device)
    plan, groups = make(batch, device)
    check(batch, plan, groups)
    groups.load(found_groups(batch), batch.seats.tolist())
    groups.clear()
    check(batch, plan, groups)


def test_groups_change_between_steps(device: torch.device, nan_filled_empty: None) -> None:
    batch = shared_batch(device)
    plan, groups = make(batch, device)
    for min_tokens in (16, 48, 1000):
        groups.load(found_groups(batch, min_tokens), batch.seats.tolist())
        check(batch, plan, groups)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the row's own NaN, under the interpreter
def test_a_member_that_left_is_zeros_and_disturbs_nobody(device: torch.device, nan_filled_empty: None) -> None:
    batch = shared_batch(device)
    plan, groups = make(batch, device)
    groups.load(found_groups(batch), batch.seats.tolist())
    batch.seats[4], batch.lengths[4] = -1, 0
    batch.query[4] = torch.nan
    check(batch, plan, groups)


def test_rows_grow_while_their_groups_stay(device: torch.device, nan_filled_empty: None) -> None:
    batch = shared_batch(device)
    plan, groups = make(batch, device)
    shorter = batch.lengths - torch.tensor([0, 3, 1, 200, 0, 9, 2, 0, 20, 49], device=device)
    grown, batch.lengths = batch.lengths, shorter.int()
    groups.load(found_groups(batch), batch.seats.tolist())
    check(batch, plan, groups)
    batch.lengths = grown
    check(batch, plan, groups)


def test_chunks_fit_the_places_for_partial_results(device: torch.device) -> None:
    batch = shared_batch(device)
    tables = found_groups(batch)
    assert chunk_size(tables, 3, 2, 1000, GROUPED_TILE, 1000) == 16
    assert chunk_size(tables, 3, 2, 1000, GROUPED_TILE, 7 + 4 + 2) == 64
    with pytest.raises(ValueError, match="13 members of groups, but places for 12"):
        chunk_size(tables, 3, 2, 1000, GROUPED_TILE, 12)


def test_groups_need_their_places_in_the_plan(device: torch.device) -> None:
    plan = DecodePlan(4, None, 1, 1, 32, device, tile=TILE, num_sms=8)
    groups = DeviceGroups(4, 16, 1, 1, 32, device, tile=GROUPED_TILE, num_sms=8)
    one = torch.ones(1, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="the plan has 0 places for groups, not 16"):
        plan.update(one, one, groups)
    with pytest.raises(ValueError, match="cannot serve layers with a window"):
        DecodePlan(4, None, 1, 1, 32, device, window=8, max_group_partials=16, tile=TILE, num_sms=8)


@pytest.mark.gpu
@pytest.mark.parametrize(("group_size", "head_dim"), [(4, 64), (4, 128), (3, 80), (2, 256)])
def test_captured_graph_follows_groups(group_size: int, head_dim: int, device: torch.device) -> None:
    """With the tiles that serving uses: one capture, replayed without groups, with some and with others."""
    lengths = [1300 + 7 * row for row in range(80)]
    shared = [(list(range(60)), 1024), (list(range(5, 25)), 1280), ([70, 71], 640)]
    batch = paged_batch(
        lengths,
        num_kv_heads=8,
        group_size=group_size,
        head_dim=head_dim,
        page_size=16,
        dtype=torch.bfloat16,
        device=device,
        shared=shared,
    )
    plan = DecodePlan(80, None, 8, group_size, head_dim, device, max_group_partials=600)
    groups = DeviceGroups(80, 600, 8, group_size, head_dim, device)
    out = torch.empty_like(batch.query)
    seen = (batch.seats, batch.lengths, batch.page_tables)

    def step() -> None:
        plan.update(batch.lengths, batch.seats, groups)
        for _ in range(3):  # layers
            decode_attention(
                batch.query, batch.keys, batch.values, out, *seen, plan, page_size=16, scale=0.1, groups=groups
            )

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    reference = decode_attention_reference(batch.query, batch.keys, batch.values, *seen, page_size=16, scale=0.1)
    for min_tokens in (10_000, 64, 1000):
        groups.load(found_groups(batch, min_tokens), batch.seats.tolist())
        poison(out), poison(plan.partials)
        graph.replay()
        assert_close(f"out, segments of {min_tokens} tokens", out, reference)
