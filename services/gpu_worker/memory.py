"""How much memory a device has left, asked before anything large is allocated."""

from pathlib import Path

import torch

GIB = 1 << 30


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
