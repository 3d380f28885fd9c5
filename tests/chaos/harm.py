"""What is done to the set: a seeded order of blows, each to one process."""

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.cluster import BROKER, Cluster

SERVICES = ("gpu_worker", "tokenizer", "scheduler", "gateway")
SHORT_S = 1.5
LONG_S = 8.0
"""Shorter and longer than it takes until a silent process counts as gone."""


@dataclass(frozen=True)
class Blow:
    """kind: kill, pause, freeze (a long pause), cut, stall, or crash (a kill by which the broker loses the last second
    of what it took, as when its machine goes down); process: its name."""

    kind: str
    process: str

    @property
    def label(self) -> str:
        return f"{self.kind} {self.process.partition('-')[0]}"


@dataclass(frozen=True)
class Struck:
    """A blow and when it fell, time.monotonic(). over_at: when what was done was undone."""

    blow: Blow
    at: float
    over_at: float


KINDS = {
    "kill": (*SERVICES, BROKER),
    "pause": (*SERVICES, BROKER),
    "freeze": (*SERVICES, BROKER),
    "cut": SERVICES,
    "stall": SERVICES,
}


def blows(cluster: Cluster, rng: random.Random, rounds: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Blow]:
    """Every kind against every service once a round, in an order of its own."""
    for _ in range(rounds):
        round_ = [(kind, service) for kind in kinds for service in KINDS[kind]]
        rng.shuffle(round_)
        for kind, service in round_:
            yield Blow(kind, rng.choice([process.name for process in cluster.of(service)]))


async def strike(cluster: Cluster, blow: Blow) -> Struck:
    """Does it, and undoes what can be undone."""
    process = cluster.processes[blow.process]
    at = time.monotonic()
    match blow.kind:
        case "kill":
            process.kill()
        case "crash":
            await cluster.crash_broker()
        case "pause" | "freeze":
            process.send(signal.SIGSTOP)
            await asyncio.sleep(SHORT_S if blow.kind == "pause" else LONG_S)
            process.send(signal.SIGCONT)
        case "cut":
            cluster.proxies[blow.process].cut()
        case "stall":
            cluster.proxies[blow.process].stall()
            await asyncio.sleep(SHORT_S)
            cluster.proxies[blow.process].flow()
    return Struck(blow, at, time.monotonic())
