"""How much memory the processes of a set take, and whether that grows."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.chaos.cluster import BROKER, Cluster

BROKER_DATA = "broker data"


@dataclass(frozen=True)
class Sample:
    """done: requests that had ended; kib: by process, and what the broker says that its data take."""

    done: int
    kib: dict[str, float]


def resident_kib(pid: int, *, with_children: bool = True) -> float:
    """Of a process, and of those that it started."""
    total = 0.0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += float(line.split()[1])
    for task in Path(f"/proc/{pid}/task").iterdir() if with_children else ():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += resident_kib(int(child))
    return total


def sample(cluster: Cluster, broker: "redis.Redis", done: int) -> Sample:
    kib = {}
    for process in cluster.processes.values():
        assert process.popen is not None
        is_alone = process.name == BROKER  # what it forks now and then writes its file, and is gone again
        kib[process.name] = resident_kib(process.popen.pid, with_children=not is_alone)
    said = broker.info("memory")
    kib[BROKER_DATA] = (said["used_memory"] - said["mem_aof_buffer"]) / 1024
    return Sample(done, kib)


async def watch(
    cluster: Cluster, broker: "redis.Redis", samples: list[Sample], done: Callable[[], int], every_s: float
) -> None:
    """Samples for ever."""
    while True:
        samples.append(sample(cluster, broker, done()))
        await asyncio.sleep(every_s)


def slope(samples: list[Sample], name: str) -> float:
    """KiB for each thousand requests, by least squares."""
    done = [one.done for one in samples]
    kib = [one.kib[name] for one in samples]
    mean_done, mean_kib = sum(done) / len(done), sum(kib) / len(kib)
    spread = sum((x - mean_done) ** 2 for x in done)
    if not spread:
        return 0.0
    return 1000 * sum((x - mean_done) * (y - mean_kib) for x, y in zip(done, kib, strict=True)) / spread


def growth(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """By name: MiB at the beginning and the end of the samples and at most, and the slope."""
    return {
        name: {
            "first_mib": round(samples[0].kib[name] / 1024, 1),
            "last_mib": round(samples[-1].kib[name] / 1024, 1),
            "max_mib": round(max(one.kib[name] for one in samples) / 1024, 1),
            "kib_per_1000": round(slope(samples, name), 1),
        }
        for name in samples[0].kib
    }
