"""Tile sizes and chunk costs of decode attention on this GPU: checks each, times it, prints the best.

    python -m benchmarks.gpu.tune_decode_attention [--out FILE]

Takes about a minute on an H100 beside 16 cores, most of it compiling, which goes on in as many processes. What it finds
belongs in services/gpu_worker/kernels/tile_shape.py and in ChunkCosts.of_heads."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from services.gpu_worker.bench.decode_attention import RunningBatch, Shape, unlike_lengths
from services.gpu_worker.bench.grouped_attention import find_groups
from services.gpu_worker.kernels.tile_shape import DECODE_TILES, GROUPED_TILES, TileShape
from services.gpu_worker.kernels.work_list import ChunkCosts

HEAD_DIMS = (64, 128)
COMPILERS = 12
WINDOW_S = 85.0  # what is left out after so long is said
RUN_MS = 3.0  # of a timing


def decode_tiles(head_dim: int) -> list[TileShape]:
    """Every tile with two to four blocks of 8 to 64 KB in flight."""
    tiles = []
    for block_tokens in (32, 64, 128):
        for num_warps in (2, 4, 8):
            for num_stages in (2, 3, 4, 5):
                block_bytes = 4 * block_tokens * head_dim
                shared_memory = block_bytes * max(1, num_stages - 1) + 8192
                if block_tokens < 16 * num_warps // 2 or shared_memory > 120_000 or block_bytes < 16_384 // 2:
                    continue
                if num_warps == 2 and block_tokens * head_dim > 8192:  # registers for addresses spill
                    continue
                per_sm = max(1, min(8, 227_000 // shared_memory, 16 // num_warps))
                tiles.append(TileShape(block_tokens, num_warps, num_stages, per_sm))
    return tiles


def grouped_tiles(head_dim: int) -> list[TileShape]:
    tiles = []
    for block_rows, num_warps in ((64, 4), (128, 4), (128, 8)):
        for block_tokens in (64, 128):
            for num_stages in (2, 3, 4):
                shared_memory = 4 * block_tokens * head_dim * max(1, num_stages - 1) + 4 * block_rows * head_dim
                if shared_memory < 220_000 and not (num_warps == 4 and block_rows * head_dim > 8192):
                    per_sm = max(1, min(2, 227_000 // shared_memory, 8 // num_warps))
                    tiles.append(TileShape(block_tokens, num_warps, num_stages, per_sm, block_rows))
    return tiles


DECODE_SHAPES = {
    "1x600": (600,),
    "64x2k": (2048,) * 64,
    "256 mixed": unlike_lengths(256, 64, 1984),
}


def grouped_shape(head_dim: int) -> Shape:
    count, size = (1, 512) if head_dim == 64 else (16, 32)
    shared = tuple((range(size * group, size * (group + 1)), 2048) for group in range(count))
    return Shape(f"{count} x {size} grouped", (2240,) * 512, head_dim=head_dim, shared=shared)


def compile_tile(job: tuple[str, int, TileShape]) -> str:
    """In a process of its own: one launch on a tiny batch leaves the kernel in Triton's cache."""
    kind, head_dim, tile = job
    device = torch.device("cuda")
    try:
        if kind == "decode":
            batch = RunningBatch(Shape("tiny", (40, 3), head_dim=head_dim), device)
            batch.check(batch.plan(tile=tile))
        else:
            shape = Shape("tiny", (200,) * 3, head_dim=head_dim, shared=((range(3), 128),))
            batch = RunningBatch(shape, device)
            groups = find_groups(batch, tile)
            batch.check(batch.plan(groups=groups), groups)
    except Exception as error:  # a tile that does not fit the card or is wrong: a row of the table says so
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return ""


def time_us(run: Callable[[], object]) -> float:
    """Median microseconds of a call in a captured graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    calls = 24
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < RUN_MS and len(times) < 20):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2] * 1e3 / calls


def label(tile: TileShape) -> str:
    rows = f"M{tile.block_rows} " if tile.block_rows != 16 else ""
    return f"{rows}N{tile.block_tokens} w{tile.num_warps} s{tile.num_stages} x{tile.programs_per_sm}"


def tune_decode(head_dim: int, tiles: Iterable[TileShape], deadline: float) -> tuple[TileShape, list[dict[str, Any]]]:
    """Every tile, at as many programs a multiprocessor as fit and at others; the best by the sum over shapes of its
    time against the best of that shape."""
    device = torch.device("cuda")
    batches = [RunningBatch(Shape(name, lengths, head_dim=head_dim), device) for name, lengths in DECODE_SHAPES.items()]
    rows = []
    for tile in tiles:
        for per_sm in sorted({tile.programs_per_sm, max(1, tile.programs_per_sm // 2)}):
            if time.monotonic() > deadline:
                print("out of time: tiles left out")
                break
            tried = dataclasses.replace(tile, programs_per_sm=per_sm)
            times = {batch.shape.name: time_us(batch.runner(batch.plan(tile=tried))) for batch in batches}
            rows.append({"tile": tried, "label": label(tried), **times})
    best = {name: min(row[name] for row in rows) for name in DECODE_SHAPES}
    rows.sort(key=lambda row: sum(row[name] / best[name] for name in DECODE_SHAPES))
    print(f"\ndecode, head_dim {head_dim}: us a layer (GB/s at 64x2k)")
    gigabytes = Shape("", DECODE_SHAPES["64x2k"], head_dim=head_dim).bytes * 1e-3
    for row in rows[:6]:
        times_text = "  ".join(f"{name} {row[name]:7.1f}" for name in DECODE_SHAPES)
        print(f"  {row['label']:<16} {times_text}  ({gigabytes / row['64x2k']:.0f})")
    for batch in batches:
        batch.check(batch.plan(tile=rows[0]["tile"]))
    return rows[0]["tile"], rows


def tune_costs(head_dim: int, tile: TileShape) -> list[dict[str, Any]]:
    """The chunk costs in use, and each of them at half and double, on shapes that are cut."""
    device = torch.device("cuda")
    shapes = {
        "1x600": (600,),
        "1x8k": (8192,),
        "8x1k": (1024,) * 8,
        "40x2k": (2048,) * 40,
        "skew": (16_384, *(500,) * 63),
    }
    batches = [RunningBatch(Shape(name, lengths, head_dim=head_dim), device) for name, lengths in shapes.items()]
    used = ChunkCosts.of_heads(4, head_dim)
    variants = {"in use": used}
    for name in ("item", "merge", "tail"):
        for factor in (0.25, 0.5, 2, 4):
            value = round(getattr(used, name) * factor)
            variants[f"{name} {value}"] = dataclasses.replace(used, **{name: value})
    rows = []
    print(f"\nchunk costs, head_dim {head_dim}, {label(tile)}: us a layer (chunks of the longest row)")
    for name, costs in variants.items():
        plans = [batch.plan(tile=tile, costs=costs) for batch in batches]
        times = [time_us(batch.runner(plan)) for batch, plan in zip(batches, plans, strict=True)]
        parts = [int(plan.row_count.max()) for plan in plans]
        rows.append({"costs": name, **dict(zip(shapes, times, strict=True))})
        text = "  ".join(f"{shape} {us:6.1f} ({n})" for shape, us, n in zip(shapes, times, parts, strict=True))
        print(f"  {name:<10} {text}")
    return rows


def tune_grouped(head_dim: int, tiles: Iterable[TileShape], deadline: float) -> list[dict[str, Any]]:
    batch = RunningBatch(grouped_shape(head_dim), torch.device("cuda"))
    plain = time_us(batch.runner(batch.plan()))
    rows = []
    for tile in tiles:
        if time.monotonic() > deadline:
            print("out of time: tiles left out")
            break
        groups = find_groups(batch, tile)
        plan = batch.plan(groups=groups)
        batch.check(plan, groups)
        rows.append({"label": label(tile), "us": time_us(batch.runner(plan, groups))})
    rows.sort(key=lambda row: row["us"])
    print(f"\ngrouped, head_dim {head_dim}, {batch.shape.name}: plain {plain:.1f} us; with groups, both kernels:")
    for row in rows[:5]:
        print(f"  {row['label']:<20} {row['us']:7.1f}  ({plain / row['us']:.2f}x)")
    return [{"label": "plain", "us": plain}, *rows]


def usable(jobs: Sequence[tuple[str, int, TileShape]]) -> list[tuple[str, int, TileShape]]:
    """Those that compile and are right; says what is wrong with the others."""
    with multiprocessing.get_context("spawn").Pool(min(COMPILERS, os.cpu_count() or 1)) as pool:
        errors = pool.map(compile_tile, jobs, chunksize=1)
    for (kind, head_dim, tile), error in zip(jobs, errors, strict=True):
        if error:
            print(f"left out: {kind}, head_dim {head_dim}, {label(tile)}: {error}")
    return [job for job, error in zip(jobs, errors, strict=True) if not error]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write every timing to this file, as JSON")
    options = parser.parse_args()
    deadline = time.monotonic() + WINDOW_S
    jobs = [("decode", dim, tile) for dim in HEAD_DIMS for tile in {*decode_tiles(dim), DECODE_TILES[dim]}]
    jobs += [("grouped", dim, tile) for dim in HEAD_DIMS for tile in {*grouped_tiles(dim), GROUPED_TILES[dim]}]
    started = time.monotonic()
    jobs = usable(jobs)
    took = time.monotonic() - started
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {len(jobs)} tiles compiled in {took:.0f} s")
    results: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for dim in HEAD_DIMS:
        tiles = [tile for kind, of_dim, tile in jobs if (kind, of_dim) == ("decode", dim)]
        best, rows = tune_decode(dim, tiles, deadline)
        results[f"decode {dim}"] = [{key: value for key, value in row.items() if key != "tile"} for row in rows]
        results[f"costs {dim}"] = tune_costs(dim, best)
        tiles = [tile for kind, of_dim, tile in jobs if (kind, of_dim) == ("grouped", dim)]
        results[f"grouped {dim}"] = tune_grouped(dim, tiles, deadline)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
