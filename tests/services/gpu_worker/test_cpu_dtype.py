"""Which dtype a CPU computes in."""

from pathlib import Path

import pytest
import torch

from services.gpu_worker import cpu_dtype
from services.gpu_worker.cpu_dtype import fast_dtype, has_instructions

OLD = "model name\t: AMD EPYC\nflags\t\t: fpu fma avx avx2 avx512f\n"
NEW = "flags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
ARM = "Features\t: fp asimd asimdhp i8mm bf16\n"


@pytest.mark.parametrize(
    ("dtype", "cpuinfo", "expected"),
    [
        (torch.float32, OLD, True),
        (torch.bfloat16, OLD, False),
        (torch.bfloat16, NEW, True),
        (torch.bfloat16, ARM, True),
        (torch.float16, NEW, False),
        (torch.float16, ARM, True),
        (torch.float16, "flags : amx_fp16", True),
        (torch.bfloat16, "flags : avx512_bf16x", False),
    ],
)
def test_instructions_are_found_by_their_names(dtype: torch.dtype, cpuinfo: str, expected: bool) -> None:
    assert has_instructions(dtype, cpuinfo) == expected


def test_float32_is_taken_where_it_is_faster_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text(OLD)
    (tmp_path / "new").write_text(NEW)
    monkeypatch.setattr(cpu_dtype, "available_memory", lambda device: 8000)
    assert fast_dtype(torch.bfloat16, 1000, tmp_path / "old") is torch.float32
    assert fast_dtype(torch.bfloat16, 1001, tmp_path / "old") is torch.bfloat16
    assert fast_dtype(torch.bfloat16, 1000, tmp_path / "new") is torch.bfloat16
    assert fast_dtype(torch.float32, 10**9, tmp_path / "old") is torch.float32
