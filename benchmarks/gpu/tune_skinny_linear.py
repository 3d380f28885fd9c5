"""Chooses, by measurement on this GPU, how each product of two models is computed for up to 256 rows.

    python benchmarks/gpu/tune_skinny_linear.py [--out FILE] [--seconds 110] [--processes 14] [--rows 1,8]

Shapes are those of Llama-3.2-1B and Llama-3.1-8B with a vocabulary of 49,152. Every candidate is checked against
float32 with a poisoned output, timed in a CUDA graph over weights that outgrow the L2 cache, and run again to see
that it gives the same bits. Then all products of a model, one decode step after another without attention, by cuBLAS
and by the choices. FILE gets the table of services/gpu_worker/kernels/linear_table.json with this device's part
replaced. Kernels are compiled beforehand by several processes; what does not fit --seconds is left out, with a note.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from services.gpu_worker.bench.runner import time_us
from services.gpu_worker.bench.skinny_linear import EPS, MODELS, Inputs, Model, Product
from services.gpu_worker.kernels import skinny_linear as skinny
from services.gpu_worker.kernels.fused_linear import FusedLinear
from services.gpu_worker.kernels.linear_choice import (
    BUCKETS,
    TABLE_FILE,
    Choice,
    LinearShape,
    LinearTable,
    read_choices,
)
from services.gpu_worker.kernels.skinny_linear import SkinnyConfig, Workspace, block_rows

PROCESSORS = 132


def candidates(product: Product, bucket: int) -> list[SkinnyConfig]:
    found = []
    if bucket == 1:
        rows = ((8, 1024, 4), (4, 1024, 4), (2, 1024, 4), (4, 512, 2), (4, 2048, 8), (16, 512, 8), (8, 2048, 8))
        for block_n, block_k, warps in rows:
            found += [SkinnyConfig(block_n, block_k, split, False, warps, 1) for split in (1, 2)]
    if bucket <= 64:
        tiles = ((64, 128, 4, 4), (64, 64, 4, 6), (64, 256, 4, 3), (128, 64, 4, 4), (128, 128, 8, 3))
        for (block_n, block_k, warps, stages), split in itertools.product(tiles, (1, 2, 4, 8)):
            found.append(SkinnyConfig(block_n, block_k, split, True, warps, stages))
    else:
        large = (
            (128, 64, 8, 4, 256),
            (128, 64, 8, 4, 128),
            (256, 64, 8, 3, 128),
            (64, 64, 4, 4, 128),
            (64, 128, 4, 3, 64),
        )
        for (block_n, block_k, warps, stages, block_m), split in itertools.product(large, (1, 2, 4, 8)):
            config = SkinnyConfig(block_n, block_k, split, True, warps, stages, block_m=block_m)
            found.append(replace(config, norms_before=product.is_normed))
            if product.is_normed and block_m <= 128:
                found.append(config)
    fitting = [config for config in found if _fits(product, bucket, config)]
    return [config for config in fitting if config.block_m <= bucket or bucket <= 64]


def _fits(product: Product, bucket: int, config: SkinnyConfig) -> bool:
    columns = block_rows(bucket, config)
    programs = -(-bucket // columns) * -(-product.outputs // config.block_n) * config.split_k
    shared = 2 * config.num_stages * config.block_k * (config.block_n + columns) if config.uses_dot else 0
    steps = product.width // config.block_k // config.split_k
    if shared > 220_000 or steps < 1 or programs < 0.7 * PROCESSORS:
        return False
    # splitting is for filling the device, not beyond
    most = (3 if bucket > 64 else 8 if config.uses_dot else 16) * PROCESSORS
    return config.split_k == 1 or programs <= most


def dependent(config: SkinnyConfig) -> list[SkinnyConfig]:
    amounts = (0, 1024, 4096) if config.uses_dot else (0,)
    return [replace(config, is_dependent=True, prefetch=amount) for amount in amounts]


def compile_kernel(product: Product, bucket: int, config: SkinnyConfig) -> str:
    """Leaves the kernel in Triton's cache on disk. Returns an error, or nothing."""
    dtype = torch.bfloat16
    is_normed = product.is_normed and not config.norms_before
    outputs = product.outputs // 2 if product.silu else product.outputs
    try:
        skinny._skinny_linear_kernel.warmup(
            dtype, dtype, dtype, dtype, dtype, torch.float32 if product.is_head else dtype, torch.float32, torch.int32,
            3, outputs, product.width, product.width, outputs if product.has_residual else 0, outputs, EPS,
            HAS_BIAS=False, HAS_RESIDUAL=product.has_residual, HAS_NORM=is_normed, NORM_FIRST=False,
            SILU=product.silu, USES_DOT=config.uses_dot, EVEN_K=product.width % config.block_k == 0,
            BLOCK_M=block_rows(bucket, config), BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            SPLIT_K=config.split_k, STAGES=config.num_stages, IS_DEPENDENT=config.is_dependent,
            PREFETCH=skinny.prefetch_bytes(config, product.width) if config.is_dependent else 0,
            num_warps=config.num_warps, launch_pdl=config.is_dependent, grid=(1,),
        )  # fmt: skip
    except Exception as error:  # a config that does not compile is one candidate less
        return f"{product.name} {bucket} {config}: {error!r}"[:300]
    return ""


def compile_all(pool: ProcessPoolExecutor, wanted: list[tuple[Product, int, SkinnyConfig]]) -> None:
    kernels = {(p.kind, block_rows(b, c), p.width % c.block_k == 0, c): (p, b, c) for p, b, c in wanted}
    started = time.monotonic()
    errors = list(filter(None, pool.map(compile_kernel, *zip(*kernels.values(), strict=True), chunksize=2)))
    print(f"{len(kernels)} kernels compiled in {time.monotonic() - started:.0f} s, {len(errors)} failed", flush=True)
    for error in errors[:5]:
        print("  ", error)


@dataclass
class Result:
    library_us: float
    us: float
    choice: Choice


def tune(
    product: Product, tries: dict[int, Sequence[SkinnyConfig]], results: dict[int, Result], ends_at: float
) -> dict[int, list[tuple[float, SkinnyConfig]]]:
    """Times `tries` of every bucket -> what they took, best first. `results` keeps the best of each bucket."""
    workspace = Workspace(torch.device("cuda"))
    inputs = Inputs(product, workspace, LinearTable(PROCESSORS))
    ranking: dict[int, list[tuple[float, SkinnyConfig]]] = {}
    for bucket, configs in tries.items():
        x, residual = inputs.rows(bucket)
        wanted = inputs.reference(x, residual)
        if bucket not in results:
            library = time_us(inputs.run(None, x, residual), graph_us=1000, replays=9)
            results[bucket] = Result(library, library, None)
        ranking[bucket] = []
        for config in configs:
            if time.monotonic() > ends_at:
                print(f"{product.name}, {bucket} rows: no time for some of {len(configs)} candidates", flush=True)
                break
            try:
                inputs.check(config, x, residual, wanted)
                us = time_us(inputs.run(config, x, residual), graph_us=1000, replays=9)
            except AssertionError as error:
                print(f"{product.name}, {bucket} rows, {config}: WRONG, {error}", flush=True)
                continue
            except RuntimeError as error:
                print(f"{product.name}, {bucket} rows, {config}: {str(error)[:200]}", flush=True)
                continue
            ranking[bucket].append((us, config))
            if us < results[bucket].us:
                results[bucket] = Result(results[bucket].library_us, us, config)
        ranking[bucket].sort(key=lambda timed: timed[0])
    return ranking


def step_us(model: Model, choices: dict[tuple[LinearShape, int], Choice] | None, rows: int) -> float:
    """All products of one decode step, in a graph. choices None: cuBLAS."""
    # without an entry the table would follow a rule of thumb, so cuBLAS is written in
    by_library: dict[tuple[LinearShape, int], Choice] = {
        (product.shape, bucket): None for product in model.products for bucket in BUCKETS
    }
    table = LinearTable(PROCESSORS, by_library if choices is None else choices)
    workspace = Workspace(torch.device("cuda"))

    def linear(product: Product) -> FusedLinear:
        weight = torch.randn(product.outputs, product.width, dtype=torch.bfloat16, device="cuda")
        return FusedLinear(
            weight.mul_(product.width**-0.5),
            table=table,
            workspace=workspace,
            norm_weight=torch.ones(product.width, dtype=torch.bfloat16, device="cuda") if product.is_normed else None,
            eps=EPS,
            silu_and_mul=product.silu,
            out_dtype=torch.float32 if product.is_head else None,
        )

    *in_layer, head_product = model.products
    layers = [[linear(product) for product in in_layer] for _ in range(model.layers)]
    head = linear(head_product)
    hidden = torch.randn(rows, model.hidden, dtype=torch.bfloat16, device="cuda")

    def step() -> None:
        for qkv, o, gate_up, down in layers:
            o(qkv(hidden)[:, : model.q_width], hidden, in_place=True)
            down(gate_up(hidden), hidden, in_place=True)
        head(hidden)

    return time_us(step, graph_us=1, replays=20)


def entries(results: dict[Product, dict[int, Result]]) -> Iterator[dict[str, Any]]:
    for product, by_bucket in results.items():
        for bucket, result in by_bucket.items():
            config = None if result.choice is None else asdict(result.choice)
            yield {
                **asdict(product.shape),
                "rows": bucket,
                "config": config,
                "us": round(result.us, 2),
                "cublas_us": round(result.library_us, 2),
            }


def say(config: Choice) -> str:
    if config is None:
        return "cuBLAS"
    way = f"{'norm, ' * config.norms_before}dot {config.block_m}x" if config.uses_dot else "row "
    depend = f" dependent+{config.prefetch}" if config.is_dependent else ""
    return (
        f"{way}{config.block_n}x{config.block_k} split {config.split_k} "
        f"warps {config.num_warps} stages {config.num_stages}{depend}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(TABLE_FILE), help="default: the table in the package")
    parser.add_argument("--seconds", type=float, default=110, help="time for everything")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--rows", default=",".join(map(str, BUCKETS)), help="buckets, by commas; others are kept")
    options = parser.parse_args()
    started = time.monotonic()
    buckets = [int(rows) for rows in options.rows.split(",")]
    products = [product for model in MODELS for product in model.products]
    tries = {product: {bucket: candidates(product, bucket) for bucket in buckets} for product in products}
    # Forked before this process touches the GPU, so that the children can.
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("fork")) as pool:
        compile_all(pool, [(p, b, c) for p in products for b in buckets for c in tries[p][b]])
        results: dict[Product, dict[int, Result]] = {product: {} for product in products}
        again: dict[Product, dict[int, list[SkinnyConfig]]] = {}
        for product in products:
            ranking = tune(product, tries[product], results[product], started + 0.7 * options.seconds)
            torch.cuda.empty_cache()
            again[product] = {
                bucket: [config for _, best in ranking[bucket][:2] for config in dependent(best)] for bucket in ranking
            }
        compile_all(pool, [(p, b, c) for p in products for b in again[p] for c in again[p][b]])
    for product in products:
        tune(product, again[product], results[product], started + 0.9 * options.seconds)
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    out = Path(options.out)
    tables = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    kept = [entry for entry in tables.get(device, []) if entry["rows"] not in buckets]
    tables[device] = kept + list(entries(results))
    choices = read_choices(tables[device])
    out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    print(f"{device}, torch {torch.__version__}")
    print(f"{'product':<12} {'rows':>4} {'cuBLAS us':>9} {'best us':>8} {'GB/s':>6}  way")
    for product in products:
        for bucket, result in results[product].items():
            rate = 2 * product.outputs * product.width / result.us * 1e-3
            print(
                f"{product.name:<12} {bucket:>4} {result.library_us:9.2f} {result.us:8.2f} {rate:6.0f}  "
                f"{say(result.choice)}"
            )
    for model in MODELS:
        for rows in (1, 8, 32, 64, 128, 256):
            library, chosen = step_us(model, None, rows), step_us(model, choices, rows)
            print(
                f"{model.name}, all products, {rows:>3} rows: cuBLAS {library / 1e3:.3f} ms, chosen "
                f"{chosen / 1e3:.3f} ms, {model.bytes / chosen * 1e-3:.0f} GB/s of weights",
                flush=True,
            )
            torch.cuda.empty_cache()
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
