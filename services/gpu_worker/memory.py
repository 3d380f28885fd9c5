"""How much memory a device has left, asked before anything large is allocated."""

import ctypes
from pathlib import Path

import torch

GIB = 1 << 30
MIB = 1 << 20

_MALLOPT = {  # numbers from glibc's malloc.h, https://man7.org/linux/man-pages/man3/mallopt.3.html
    -8: 1,  # M_ARENA_MAX: the engine's thread allocates where the limits below hold
    -3: 32 * MIB,  # M_MMAP_THRESHOLD, the most that glibc takes
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -2: 64 * MIB,  # M_TOP_PAD
}


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed, so that a step finds its activations' pages mapped; whether this libc can.

    By default glibc returns large blocks to the system, and every step faults them in again: of SmolLM2's 512-token
    prefill on two Zen 4 cores that was 5,000 page faults, 36 ms of system time, and 1.0 ms instead of 0.12 for each
    RMSNorm. To be called before other threads start."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([bool(mallopt(option, value)) for option, value in _MALLOPT.items()])


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU without swapping and within the cgroup."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    limits = [_mem_available(Path("/proc/meminfo")), _cgroup_available(Path("/sys/fs/cgroup"))]
    return min(limit for limit in limits if limit is not None)


def _mem_available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError(f"{meminfo} has no MemAvailable")


def _cgroup_available(root: Path) -> int | None:
    """Bytes left under this process's cgroup limit (v2, then v1), page cache that can be dropped counted as left; None
    without a limit."""
    for limit_file, usage_file, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (root / limit_file).read_text().strip()
            usage = int((root / usage_file).read_text())
            stat = (root / usage_file).with_name("memory.stat").read_text()
        except OSError:
            continue
        if limit == "max" or int(limit) >= 1 << 60:
            return None
        droppable = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == inactive), 0)
        return max(0, int(limit) - usage + droppable)
    return None


def gib(num_bytes: int) -> str:
    """Bytes for people: "1.23 GiB"."""
    return f"{num_bytes / GIB:.2f} GiB"
