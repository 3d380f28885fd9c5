"""Benchmarks of the kernels, one table: microseconds, GB/s or TFLOP/s, share of what the card does at best."""

import argparse
import datetime
import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from services.gpu_worker import bench
from services.gpu_worker.bench.runner import Ceilings, Timing, measure_ceilings, time_case

NOT_KERNELS = {"__main__", "case", "runner"}


def kernel_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in NOT_KERNELS)


def chosen(only: str) -> list[str]:
    """The kernels whose names contain one of the comma-separated parts of `only`; SystemExit when a part fits none."""
    names = kernel_names()
    parts = [part.strip() for part in only.split(",") if part.strip()]
    for part in parts:
        if not any(part in name for name in names):
            raise SystemExit(f"--only {part}: no such kernel; there are {', '.join(names)}")
    return [name for name in names if not parts or any(part in name for part in parts)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m services.gpu_worker.bench", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="NAME", help="kernels whose name contains this; several by commas"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to this file too")
    options = parser.parse_args(argv)
    kernels = chosen(options.only)
    if not torch.cuda.is_available():
        raise SystemExit("kernels are benchmarked on a GPU: this torch sees no CUDA device")
    ceilings = measure_ceilings()
    timings = run(kernels, ceilings)
    if options.json:
        Path(options.json).write_text(json.dumps(report(ceilings, timings), indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(timing.error for timing in timings) else 0)


def run(kernels: Sequence[str], ceilings: Ceilings) -> list[Timing]:
    """Prints a line as each case is done."""
    print(
        f"{torch.cuda.get_device_name()}: copy {ceilings.copy_gb_s:.0f} GB/s, "
        f"bfloat16 product {ceilings.matmul_tflop_s:.0f} TFLOP/s"
    )
    print(f"{'case':<64} {'us':>9} {'rate':>14} {'share':>6}", flush=True)
    timings = []
    for kernel in kernels:
        for case in importlib.import_module(f"services.gpu_worker.bench.{kernel}").cases():
            timing = time_case(kernel, case, ceilings)
            print(line(timing, ceilings), flush=True)
            timings.append(timing)
        torch.cuda.empty_cache()
    return timings


def line(timing: Timing, ceilings: Ceilings) -> str:
    name = f"{timing.kernel}: {timing.name}"
    if timing.error:
        return f"{name:<64} WRONG: {timing.error}"
    is_bound_by_memory = timing.gb_s / ceilings.copy_gb_s >= timing.tflop_s / ceilings.matmul_tflop_s
    rate = f"{timing.gb_s:.0f} GB/s" if is_bound_by_memory else f"{timing.tflop_s:.0f} TFLOP/s"
    return f"{name:<64} {timing.us:9.2f} {rate:>14} {timing.share:6.0%}"


def report(ceilings: Ceilings, timings: Sequence[Timing]) -> dict[str, object]:
    """Everything, for a file."""
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_s": ceilings.copy_gb_s,
        "matmul_tflop_s": ceilings.matmul_tflop_s,
        "cases": [timing.as_dict() for timing in timings],
    }


if __name__ == "__main__":
    main()
