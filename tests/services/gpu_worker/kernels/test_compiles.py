import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_kernels_compile_for_an_h100() -> None:
    """No GPU is needed for it: Triton brings its assembler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = [sys.executable, "-m", "tests.services.gpu_worker.kernels.compile_for_hopper"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 7, done.stdout
