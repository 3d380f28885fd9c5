"""`sapwood bench kernels`: what it starts, and what it says without a GPU."""

import argparse
import sys

import pytest
import torch

from services.launcher.bench import kernels
from services.launcher.main import main


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    kernels.add_flags(parser)
    return parser.parse_args(flags)


def test_the_worker_s_benchmark_is_started_with_the_flags() -> None:
    start = [sys.executable, "-m", "services.gpu_worker.bench"]
    assert kernels.command(parse()) == start
    assert kernels.command(parse("--only", "rope", "--json", "out.json")) == [*start, "--only=rope", "--json=out.json"]


@pytest.mark.parametrize(
    ("only", "said"), [("no_such_kernel", "no such kernel; there are"), ("rope", "no CUDA device")]
)
def test_the_child_s_complaint_is_shown(only: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and only == "rope":
        pytest.skip("there is a GPU to complain about nothing")
    with pytest.raises(SystemExit) as end:
        main(["bench", "kernels", "--only", only])
    assert end.value.code == 1
    assert said in capfd.readouterr().err
