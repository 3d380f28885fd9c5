"""Checks and times the ways to cut extend attention on this card, and prints the best of each shape.

    python -m benchmarks.gpu.tune_extend_attention [--json FILE]

Kernels are compiled first, by several processes into Triton's cache; then every tiling is checked against the float32
definition and timed in a captured graph, one shape after another.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from services.gpu_worker.bench.extend_attention import SHAPES, Inputs, Shape
from services.gpu_worker.bench.runner import time_us
from services.gpu_worker.kernels.extend_attention import ExtendTiling

# block_m, block_n, num_warps, num_stages
_CUTS = {
    64: [
        (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 4, 2),
        (64, 64, 4, 3), (128, 32, 4, 3), (256, 64, 8, 2),
    ],
    128: [
        (128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 2),
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 32, 4, 3), (256, 64, 8, 2), (256, 64, 8, 3),
    ],
    256: [(128, 64, 8, 2), (128, 32, 8, 2), (128, 32, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2), (128, 64, 8, 1)],
}  # fmt: skip
_TILINGS = {
    head_dim: [ExtendTiling(*cut, uses_tma=uses_tma) for cut in cuts for uses_tma in (False, True)]
    for head_dim, cuts in _CUTS.items()
}


def tilings(shape: Shape) -> list[ExtendTiling]:
    """Both ways to fetch a part's own keys only where many of them are read."""
    has_long_part = any(count > 1024 for _, count in shape.parts)
    return [tiling for tiling in _TILINGS[shape.head_dim] if has_long_part or not tiling.uses_tma]


def compile_one(shape: Shape, tiling: ExtendTiling) -> str:
    """Compiles for the shape's heads, on a small batch. The error, if the card cannot run that."""
    inputs = Inputs(replace(shape, parts=((100, 100),)), torch.device("cuda"))
    try:
        inputs.run(tiling, *inputs.tiles(tiling))
        torch.cuda.synchronize()
    except Exception as error:  # whatever the compiler raises: it rules out this tiling, not the others
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return ""


def compile_all() -> dict[tuple[int, int, ExtendTiling], str]:
    jobs = {
        (shape.head_dim, shape.num_heads // shape.num_kv_heads, tiling): shape
        for shape in SHAPES
        for tiling in tilings(shape)
    }
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        errors = pool.map(compile_one, jobs.values(), [tiling for _, _, tiling in jobs])
        return dict(zip(jobs, errors, strict=True))


def tune(shape: Shape, errors: dict[tuple[int, int, ExtendTiling], str]) -> list[tuple[float, ExtendTiling, str]]:
    """Microseconds of each tiling, the fastest first; those that are wrong or do not run last, with the reason."""
    inputs = Inputs(shape, torch.device("cuda"))
    reference = inputs.reference()
    timings = []
    for tiling in tilings(shape):
        error = errors[shape.head_dim, shape.num_heads // shape.num_kv_heads, tiling]
        us = float("inf")
        if not error:
            try:
                inputs.check(tiling, reference)
                tiles = inputs.tiles(tiling)
                us = time_us(lambda tiling=tiling, tiles=tiles: inputs.run(tiling, *tiles))  # type: ignore[misc]
            except AssertionError as wrong:
                error = f"WRONG {wrong}"
        timings.append((us, tiling, error))
    return sorted(timings, key=lambda timing: timing[0])


def torch_us(shape: Shape) -> float | None:
    """PyTorch's own kernel, where a shape is one prompt with nothing cached."""
    if len(shape.parts) != 1 or shape.parts[0][0]:
        return None
    inputs = Inputs(shape, torch.device("cuda"))
    query, k, v = (part.transpose(0, 1)[None].contiguous() for part in (inputs.query, inputs.k, inputs.v))
    return time_us(lambda: F.scaled_dot_product_attention(query, k, v, is_causal=True, enable_gqa=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="", metavar="FILE", help="write every timing to this file")
    parser.add_argument("--top", type=int, default=4, help="tilings to print of each shape")
    options = parser.parse_args()
    started = time.perf_counter()
    errors = compile_all()
    print(
        f"{torch.cuda.get_device_name()}, compiled {len(errors)} in {time.perf_counter() - started:.0f} s", flush=True
    )
    everything = []
    for shape in SHAPES:
        timings = tune(shape, errors)
        own = torch_us(shape)
        print(f"{shape.name}" + (f"; torch {own:.0f} us, {shape.flops / own * 1e-6:.0f} TFLOP/s" if own else ""))
        for rank, (us, tiling, error) in enumerate(timings):
            cut = f"m {tiling.block_m} n {tiling.block_n} warps {tiling.num_warps} stages {tiling.num_stages}"
            cut += " tma" if tiling.uses_tma else ""
            if error and not error.startswith("OutOfResources"):
                print(f"  {cut:<38} {error}", flush=True)
            elif not error and rank < options.top:
                print(f"  {cut:<38} {us:8.1f} us {shape.flops / us * 1e-6:5.0f} TFLOP/s", flush=True)
            everything.append({"shape": shape.name, "us": us, "error": error, **asdict(tiling)})
        torch.cuda.empty_cache()
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
