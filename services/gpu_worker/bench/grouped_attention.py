"""Decode attention over prefixes that rows share: read once a group, and plainly, a row at a time, beside it."""

from array import array
from collections.abc import Iterable, Sequence

import torch

from services.gpu_worker.bench.case import Case
from services.gpu_worker.bench.decode_attention import PAGE_SIZE, RunningBatch, Shape
from services.gpu_worker.kernels.group_tables import DeviceGroups
from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.prefix_groups import MAX_DEPTH, plan_groups

SHAPES: Sequence[Shape] = (
    Shape(
        "16 groups x 32, 2k shared + 192, hd 128",
        (2240,) * 512,
        shared=tuple((range(32 * group, 32 * group + 32), 2048) for group in range(16)),
    ),
    Shape("512 rows, 2k shared + 192, hd 64", (2240,) * 512, head_dim=64, shared=((range(512), 2048),)),
    Shape("8 rows, 4k shared + 200, hd 128", (4296,) * 8, shared=((range(8), 4096),)),
)
NO_GROUPS = Shape("64 x 2k, hd 128", (2048,) * 64)


def find_groups(batch: RunningBatch, tile: TileShape | None = None) -> DeviceGroups:
    """The groups of the batch's page tables, on the device."""
    shape = batch.shape
    num_rows = len(shape.lengths)
    groups = DeviceGroups(
        num_rows,
        MAX_DEPTH * num_rows,
        shape.num_kv_heads,
        shape.group_size,
        shape.head_dim,
        batch.device,
        tile=tile,
    )
    tables = [array("i", row) for row in batch.page_tables.tolist()]
    groups.load(plan_groups(tables, shape.lengths, PAGE_SIZE), list(range(num_rows)))
    return groups


def cases() -> Iterable[Case]:
    device = torch.device("cuda")
    for shape in (*SHAPES, NO_GROUPS):
        batch = RunningBatch(shape, device)
        yield _case(f"{shape.name}: plain", batch, None)
        yield _case(f"{shape.name}: {'grouped' if shape.shared else 'no groups'}", batch, find_groups(batch))


def _case(name: str, batch: RunningBatch, groups: DeviceGroups | None) -> Case:
    plan = batch.plan(groups=groups)
    return Case(name, batch.runner(plan, groups), lambda: batch.check(plan, groups), batch.shape.bytes)
