"""Cases of `kernels/add_rms_norm.py`: a prefill chunk and a large decode batch."""

from collections.abc import Iterator

import torch

from services.gpu_worker.bench.case import Case, assert_error_below, nbytes, rotating, sets_past_l2
from services.gpu_worker.kernels.add_rms_norm import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)

EPS = 1e-5


def cases() -> Iterator[Case]:
    for rows, width in ((8192, 4096), (8192, 2048), (512, 4096)):
        weight = torch.randn(width, dtype=torch.bfloat16, device="cuda")
        sets = [
            tuple(torch.randn(rows, width, dtype=torch.bfloat16, device="cuda") for _ in range(2))
            for _ in range(sets_past_l2(4 * rows * width))
        ]
        yield _sum_case(f"{rows} x {width}", weight, sets)
        yield _norm_case(f"alone, {rows} x {width}", weight, sets)


def _sum_case(name: str, weight: torch.Tensor, sets: list[tuple[torch.Tensor, ...]]) -> Case:
    def check() -> None:
        x, residual = sets[0]
        out, total = add_rms_norm(x, residual, weight, EPS)
        wanted, wanted_total = add_rms_norm_reference(x.double(), residual.double(), weight.double(), EPS)
        assert_error_below(5e-3, total, wanted_total, "total")
        assert_error_below(5e-3, out, wanted)

    run = rotating(lambda x, residual: add_rms_norm(x, residual, weight, EPS), sets)
    return Case(name, run, check, 2 * nbytes(*sets[0]))


def _norm_case(name: str, weight: torch.Tensor, sets: list[tuple[torch.Tensor, ...]]) -> Case:
    def check() -> None:
        x = sets[0][0]
        assert_error_below(5e-3, rms_norm(x, weight, EPS), rms_norm_reference(x.double(), weight.double(), EPS))

    run = rotating(lambda x: rms_norm(x, weight, EPS), [(x,) for inputs in sets for x in inputs])
    return Case(name, run, check, 2 * nbytes(sets[0][0]))
