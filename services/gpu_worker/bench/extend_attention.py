"""Extend attention: whole prompts, chunks behind a cached beginning, and agents' turns (short parts, long prefixes)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, assert_error_below
from services.gpu_worker.kernels.extend_attention import (
    ExtendTiling,
    choose_tiling,
    extend_attention,
    extend_attention_reference,
    plan_extend,
)

MOST_ERROR = 8e-3  # bfloat16: products of probabilities rounded to 8 bits, and the output's own rounding


@dataclass(frozen=True, slots=True)
class Shape:
    """parts: cached and new tokens of each."""

    name: str
    parts: tuple[tuple[int, int], ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16

    @property
    def flops(self) -> int:
        seen = sum(start * count + count * (count + 1) // 2 for start, count in self.parts)
        return 4 * self.num_heads * self.head_dim * seen

    @property
    def bytes(self) -> int:
        """Queries, output, and every token's key and value once, in 16-bit numbers."""
        rows = sum(count for _, count in self.parts)
        tokens = rows + sum(start for start, _ in self.parts)
        return 2 * self.head_dim * (2 * rows * self.num_heads + 2 * tokens * self.num_kv_heads)


SHAPES = (
    Shape("8k causal, 32:8 heads, hd 128", ((0, 8192),)),
    Shape("8k causal, 32:8 heads, hd 64", ((0, 8192),), head_dim=64),
    Shape("2k behind 6k cached, hd 128", ((6144, 2048),)),
    Shape("64 x 192 behind 2k cached, hd 128", ((2048, 192),) * 64),
    Shape("64 x 192 behind 2k cached, hd 64", ((2048, 192),) * 64, head_dim=64),
    Shape("4k causal, 16:8 heads, hd 256", ((0, 4096),), num_heads=16, head_dim=256),
    Shape("8 x 1k causal, hd 128", ((0, 1024),) * 8),
    Shape("32 x 256 causal, hd 128", ((0, 256),) * 32),
    Shape("64 x 192 behind 2k cached, pages of 64, hd 128", ((2048, 192),) * 64, page_size=64),
)


@dataclass(slots=True)
class Inputs:
    """A shape's tensors: random queries, keys and values; a sequence's pages lie anywhere in the pool."""

    shape: Shape
    device: torch.device
    query: Tensor = field(init=False)
    k: Tensor = field(init=False)
    v: Tensor = field(init=False)
    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)
    page_tables: Tensor = field(init=False)
    numbers: Tensor = field(init=False)
    out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape, num_parts = self.shape, len(self.shape.parts)
        starts, counts = (torch.tensor(column, dtype=torch.int32) for column in zip(*shape.parts, strict=True))
        rows = int(counts.sum())
        groups_end, keys_end = shape.num_heads, shape.num_heads + shape.num_kv_heads
        product = self._random(rows, keys_end + shape.num_kv_heads, shape.head_dim)
        self.query, self.k, self.v = product[:, :groups_end], product[:, groups_end:keys_end], product[:, keys_end:]
        self.out = torch.empty(rows, shape.num_heads, shape.head_dim, dtype=product.dtype, device=self.device)
        pages = int((starts + counts).max()) // shape.page_size + 1
        order = torch.randperm(pages * num_parts, dtype=torch.int32)
        self.page_tables = order.view(num_parts, pages).to(self.device)
        pool = self._random(2, shape.num_kv_heads, pages * num_parts * shape.page_size, shape.head_dim)
        self.keys, self.values = pool.unbind(0)
        self.numbers = torch.stack(
            [torch.arange(num_parts, dtype=torch.int32), counts.cumsum(0).int() - counts, starts, counts]
        ).to(self.device)

    def _random(self, *dims: int) -> Tensor:
        return torch.randn(*dims, device=self.device, dtype=torch.bfloat16)

    def tiles(self, tiling: ExtendTiling) -> tuple[Tensor, Tensor]:
        starts, counts = (numbers.cpu().numpy() for numbers in self.numbers[2:])
        plan = plan_extend(starts, counts, tiling.rows(self.shape.num_heads // self.shape.num_kv_heads))
        return torch.from_numpy(plan).to(self.device), torch.tensor([plan.shape[1]], dtype=torch.int32).to(self.device)

    def run(self, tiling: ExtendTiling, tiles: Tensor, num_tiles: Tensor) -> Tensor:
        shape = self.shape
        seats, firsts, starts, counts = self.numbers.unbind(0)
        return extend_attention(
            self.query,
            self.k,
            self.v,
            self.keys,
            self.values,
            self.page_tables,
            seats,
            firsts,
            starts,
            counts,
            tiles=tiles,
            num_tiles=num_tiles,
            out=self.out,
            page_size=shape.page_size,
            scale=shape.head_dim**-0.5,
            tiling=tiling,
        )

    def reference(self) -> dict[int, Tensor]:
        """Of the first and the last head of keys and values: their query heads' outputs [N, G, D]."""
        shape = self.shape
        num_groups = shape.num_heads // shape.num_kv_heads
        seats, firsts, starts, counts = self.numbers.unbind(0)
        return {
            head: extend_attention_reference(
                self.query[:, head * num_groups : (head + 1) * num_groups],
                self.k[:, head : head + 1],
                self.v[:, head : head + 1],
                self.keys[head : head + 1],
                self.values[head : head + 1],
                self.page_tables,
                seats,
                firsts,
                starts,
                counts,
                page_size=shape.page_size,
                scale=shape.head_dim**-0.5,
            )
            for head in (0, shape.num_kv_heads - 1)
        }

    def check(self, tiling: ExtendTiling, reference: dict[int, Tensor]) -> None:
        self.out.fill_(torch.nan)
        out = self.run(tiling, *self.tiles(tiling))
        assert bool(out.isfinite().all()), "elements that were not written, or NaN"
        num_groups = self.shape.num_heads // self.shape.num_kv_heads
        for head, wanted in reference.items():
            assert_error_below(MOST_ERROR, out[:, head * num_groups : (head + 1) * num_groups], wanted, f"head {head}")


def cases() -> Iterable[Case]:
    for shape in SHAPES:
        inputs = Inputs(shape, torch.device("cuda"))
        tiling = choose_tiling(shape.head_dim, max(start + count for start, count in shape.parts))
        tiles = inputs.tiles(tiling)

        def run(inputs: Inputs = inputs, tiling: ExtendTiling = tiling, tiles: tuple[Tensor, Tensor] = tiles) -> None:
            inputs.run(tiling, *tiles)

        def check(inputs: Inputs = inputs, tiling: ExtendTiling = tiling) -> None:
            inputs.check(tiling, inputs.reference())

        yield Case(shape.name, run, check, shape.bytes, shape.flops)
