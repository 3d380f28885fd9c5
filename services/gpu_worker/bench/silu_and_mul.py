"""Cases of `kernels/silu_and_mul.py`."""

from collections.abc import Iterator

import torch

from services.gpu_worker.bench.case import Case, assert_error_below, nbytes, rotating, sets_past_l2
from services.gpu_worker.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference


def cases() -> Iterator[Case]:
    for rows, width in ((4096, 14336), (8192, 8192), (256, 14336)):
        sets = [
            (torch.randn(rows, 2 * width, dtype=torch.bfloat16, device="cuda"),)
            for _ in range(sets_past_l2(4 * rows * width))
        ]
        yield _case(f"{rows} x {width}", sets)


def _case(name: str, sets: list[tuple[torch.Tensor]]) -> Case:
    def check() -> None:
        (gate_up,) = sets[0]
        assert_error_below(5e-3, silu_and_mul(gate_up), silu_and_mul_reference(gate_up))

    return Case(name, rotating(silu_and_mul, sets), check, nbytes(*sets[0]) * 3 // 2)
