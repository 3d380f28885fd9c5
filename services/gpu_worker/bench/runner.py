"""Times cases on the current CUDA device, against two ceilings measured there first."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from services.gpu_worker.bench.case import Case

GRAPH_US = 2000.0
MAX_CALLS = 256
REPLAYS = 30


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this card does at best. copy_gb_s counts bytes read and written."""

    copy_gb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """A row of the table. share: of the ceiling that binds the case. error: why the result is wrong; then no times."""

    kernel: str
    name: str
    us: float = 0.0
    gb_s: float = 0.0
    tflop_s: float = 0.0
    share: float = 0.0
    error: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure_ceilings() -> Ceilings:
    """A copy of 1 GiB, and a bfloat16 product of two 8192 x 8192 matrices of random numbers."""
    return Ceilings(_copy_gb_s(1 << 29), _matmul_tflop_s(8192))


def _copy_gb_s(elements: int) -> float:
    source = torch.randn(elements, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / time_us(lambda: target.copy_(source)) * 1e-3


def _matmul_tflop_s(size: int) -> float:
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / time_us(lambda: torch.mm(left, right, out=out)) * 1e-6


def time_case(kernel: str, case: Case, ceilings: Ceilings) -> Timing:
    """Checks the case, then times it."""
    try:
        case.check()
    except AssertionError as error:
        return Timing(kernel, case.name, error=" ".join(str(error).split())[:300] or "wrong")
    us = time_us(case.run, can_capture=case.can_capture)
    gb_s, tflop_s = case.bytes / us * 1e-3, case.flops / us * 1e-6
    share = max(gb_s / ceilings.copy_gb_s, tflop_s / ceilings.matmul_tflop_s)
    return Timing(kernel, case.name, us, gb_s, tflop_s, share)


def time_us(
    run: Callable[[], object], can_capture: bool = True, graph_us: float = GRAPH_US, replays: int = REPLAYS
) -> float:
    """Median microseconds of one call. Captured, launch gaps are those of a graph's replay.

    graph_us: calls are put in a graph until it runs so long."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    if not can_capture:
        return _median_us(run, replays)
    once = _median_us(run, 3)
    calls = max(1, min(MAX_CALLS, round(graph_us / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return _median_us(graph.replay, replays) / calls


def _median_us(run: Callable[[], object], repeat: int) -> float:
    run()
    events = [(_event(), _event()) for _ in range(repeat)]
    for started, ended in events:
        started.record()
        run()
        ended.record()
    torch.cuda.synchronize()
    return statistics.median(float(started.elapsed_time(ended)) for started, ended in events) * 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
