"""The kernel benchmark's command line and table, as far as they need no GPU."""

import importlib
from pathlib import Path

import pytest
import torch

from services.gpu_worker.bench.__main__ import chosen, kernel_names, line
from services.gpu_worker.bench.case import assert_error_below, rotating, sets_past_l2
from services.gpu_worker.bench.runner import Ceilings, Timing

CEILINGS = Ceilings(copy_gb_s=3000, matmul_tflop_s=800)


def test_every_benchmark_is_of_a_kernel_and_has_cases() -> None:
    kernels = Path(__file__).parents[4] / "services/gpu_worker/kernels"
    assert "skinny_linear" in kernel_names() and "rope_write" in kernel_names()
    for name in kernel_names():
        assert (kernels / f"{name}.py").exists(), name
        assert callable(importlib.import_module(f"services.gpu_worker.bench.{name}").cases), name


def test_kernels_are_chosen_by_parts_of_their_names() -> None:
    assert chosen("") == kernel_names()
    assert chosen("rope, add_rms") == ["add_rms_norm", "rope_write"]
    with pytest.raises(SystemExit, match="--only roep: no such kernel; there are add_rms_norm"):
        chosen("rope,roep")


def test_a_line_shows_the_ceiling_that_binds() -> None:
    copied = line(Timing("k", "a", us=10, gb_s=2400, tflop_s=8, share=0.8), CEILINGS)
    assert copied.startswith("k: a ") and copied.endswith("10.00      2400 GB/s    80%")
    assert line(Timing("k", "b", us=10, gb_s=30, tflop_s=600, share=0.75), CEILINGS).endswith("600 TFLOP/s    75%")
    assert line(Timing("k", "c", error="relative error 1"), CEILINGS).endswith("WRONG: relative error 1")


def test_inputs_take_turns_and_outgrow_the_cache() -> None:
    seen: list[int] = []
    run = rotating(seen.append, [(1,), (2,)])
    for _ in range(3):
        run()
    assert seen == [1, 2, 1]
    assert sets_past_l2(10 << 20) * (10 << 20) >= 150 << 20
    assert (sets_past_l2(1), sets_past_l2(1 << 40)) == (64, 2)


def test_nan_is_an_error() -> None:
    assert_error_below(1e-6, torch.ones(3), torch.ones(3))
    with pytest.raises(AssertionError, match="output: relative error nan"):
        assert_error_below(1e-2, torch.tensor([1.0, torch.nan]), torch.ones(2))
