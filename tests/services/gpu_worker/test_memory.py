"""What malloc does with what a step frees."""

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    script = """
import resource, sys, threading
import torch
from services.gpu_worker.memory import keep_freed_memory

def work():
    for count in (3, 20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            torch.ones(2 << 20), torch.ones(1 << 20)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""

    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 500
    assert faults("return") > 5000
