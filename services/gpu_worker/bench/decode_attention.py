"""Decode attention: one sequence (latency), many (bandwidth), unlike lengths, a window, a float8 pool."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, assert_error_below, sets_past_l2
from services.gpu_worker.kernels.decode_attention import decode_attention, decode_attention_reference
from services.gpu_worker.kernels.group_tables import DeviceGroups
from services.gpu_worker.kernels.tile_shape import TileShape
from services.gpu_worker.kernels.work_list import ChunkCosts, DecodePlan

MOST_ERROR = 8e-3  # bfloat16: products of probabilities rounded to 8 bits, and the output's own rounding
CHECKED_ROWS = 48  # of a batch; the reference takes them one by one
PAGE_SIZE = 16
SCALE = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """lengths: tokens of each row. shared: (rows, tokens) whose page tables begin alike."""

    name: str
    lengths: tuple[int, ...]
    num_kv_heads: int = 8
    group_size: int = 4
    head_dim: int = 128
    window: int | None = None
    is_float8: bool = False
    shared: tuple[tuple[range, int], ...] = ()

    @property
    def bytes(self) -> int:
        """Keys and values that rows see, a shared prefix once, and queries and output."""
        seen = sum(min(length, self.window or length) for length in self.lengths)
        seen -= sum((len(rows) - 1) * tokens for rows, tokens in self.shared)
        kv = 2 * seen * self.num_kv_heads * self.head_dim * (1 if self.is_float8 else 2)
        return kv + 4 * len(self.lengths) * self.num_kv_heads * self.group_size * self.head_dim


@dataclass(slots=True)
class RunningBatch:
    """A shape's tensors, in as many layers as outgrow the cache; a sequence's pages lie anywhere in the pool."""

    shape: Shape
    device: torch.device
    layers: list[tuple[Tensor, Tensor]] = field(init=False)
    query: Tensor = field(init=False)
    out: Tensor = field(init=False)
    seats: Tensor = field(init=False)
    lengths: Tensor = field(init=False)
    page_tables: Tensor = field(init=False)
    scales: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        shape, device = self.shape, self.device
        num_rows = len(shape.lengths)
        counts = [-(-length // PAGE_SIZE) for length in shape.lengths]
        pages = torch.randperm(sum(counts), dtype=torch.int32, device=device)
        self.page_tables = torch.zeros(num_rows, max(counts), dtype=torch.int32, device=device)
        for row, part in enumerate(torch.split(pages, counts)):
            self.page_tables[row, : len(part)] = part
        for rows, tokens in shape.shared:
            shared_pages = tokens // PAGE_SIZE
            self.page_tables[rows.start : rows.stop, :shared_pages] = self.page_tables[rows.start, :shared_pages]
        heads = shape.num_kv_heads * shape.group_size
        self.query = torch.randn(num_rows, heads, shape.head_dim, dtype=torch.bfloat16, device=device)
        self.out = torch.full_like(self.query, torch.nan)
        self.seats = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.lengths = torch.tensor(shape.lengths, dtype=torch.int32, device=device)
        slots = (2, shape.num_kv_heads, sum(counts) * PAGE_SIZE, shape.head_dim)
        self.scales = torch.full((shape.num_kv_heads,), 0.7, device=device) if shape.is_float8 else None
        dtype = torch.float8_e4m3fn if shape.is_float8 else torch.bfloat16
        self.layers = []
        for _ in range(sets_past_l2(shape.bytes)):
            keys, values = torch.randn(slots, dtype=torch.bfloat16, device=device).to(dtype).unbind(0)
            self.layers.append((keys, values))

    def plan(
        self, tile: TileShape | None = None, costs: ChunkCosts | None = None, groups: DeviceGroups | None = None
    ) -> DecodePlan:
        """Updated for this batch."""
        shape = self.shape
        plan = DecodePlan(
            len(shape.lengths),
            None,
            shape.num_kv_heads,
            shape.group_size,
            shape.head_dim,
            self.device,
            window=shape.window,
            max_group_partials=0 if groups is None else groups.max_partials,
            tile=tile,
            costs=costs,
        )
        plan.update(self.lengths, self.seats, groups)
        return plan

    def runner(self, plan: DecodePlan, groups: DeviceGroups | None = None) -> Callable[[], None]:
        """Runs one layer's attention, of the next layer each time."""
        following = cycle(self.layers)
        return lambda: self._attend(*next(following), plan, groups)

    def _attend(self, keys: Tensor, values: Tensor, plan: DecodePlan, groups: DeviceGroups | None) -> None:
        decode_attention(
            self.query,
            keys,
            values,
            self.out,
            self.seats,
            self.lengths,
            self.page_tables,
            plan,
            page_size=PAGE_SIZE,
            scale=SCALE,
            window=self.shape.window,
            groups=groups,
            key_scales=self.scales,
            value_scales=self.scales,
        )

    def check(self, plan: DecodePlan, groups: DeviceGroups | None = None) -> None:
        """AssertionError unless one layer's attention is right for a sample of the rows."""
        keys, values = self.layers[0]
        self.out.fill_(torch.nan)
        self._attend(keys, values, plan, groups)
        rows = torch.randperm(len(self.shape.lengths), device=self.device)[:CHECKED_ROWS]
        if self.scales is not None:
            keys, values = (part.float() * self.scales[:, None, None] for part in (keys, values))
        reference = decode_attention_reference(
            self.query[rows],
            keys,
            values,
            self.seats[rows],
            self.lengths[rows],
            self.page_tables,
            page_size=PAGE_SIZE,
            scale=SCALE,
            window=self.shape.window,
        )
        assert not self.out.isnan().any(), "some output was not written"
        assert_error_below(MOST_ERROR, self.out[rows], reference)


def unlike_lengths(count: int, least: int, most: int) -> tuple[int, ...]:
    """Evenly spread and shuffled, the same every time."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randperm(count, generator=generator)
    return tuple((least + steps * (most - least) // max(1, count - 1)).tolist())


SHAPES: Sequence[Shape] = (
    Shape("1 x 128, hd 64", (128,), head_dim=64),
    Shape("1 x 600, hd 64", (600,), head_dim=64),
    Shape("1 x 600, hd 128", (600,)),
    Shape("1 x 32k, hd 128", (32_768,)),
    Shape("8 x 1k, hd 128", (1024,) * 8),
    Shape("64 x 2k, hd 64", (2048,) * 64, head_dim=64),
    Shape("64 x 2k, hd 128", (2048,) * 64),
    Shape("64 x 2k, hd 128, float8", (2048,) * 64, is_float8=True),
    Shape("32 x 8k, window 1k, hd 128", (8192,) * 32, window=1024),
    Shape("256 x 64..1984, hd 64", unlike_lengths(256, 64, 1984), head_dim=64),
    Shape("256 x 64..1984, hd 128", unlike_lengths(256, 64, 1984)),
    Shape("1 x 32k with 63 x 500, hd 128", (32_768, *(500,) * 63)),
    Shape("512 x 600, hd 64", (600,) * 512, head_dim=64),
    Shape("64 x 1k, 16:8 heads, hd 256", (1024,) * 64, group_size=2, head_dim=256),
)


def cases() -> Iterable[Case]:
    device = torch.device("cuda")
    for shape in SHAPES:
        batch = RunningBatch(shape, device)
        plan = batch.plan()
        yield Case(shape.name, batch.runner(plan), lambda batch=batch, plan=plan: batch.check(plan), shape.bytes)  # type: ignore[misc]
