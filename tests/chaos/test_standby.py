"""A second scheduler that waits takes over from a leader that dies, stops or is cut off, and no stream notices more
than a pause. `SAPWOOD_CHAOS_ROUNDS=20` does it twenty times over and prints how long each took."""

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from shared.leadership import LOCK
from shared.messages import HEARTBEAT_LAPSE_S
from shared.registry import stands_by
from tests.chaos.client import Client, Stream, some_requests
from tests.chaos.cluster import PREFIX, Cluster, clean_environment
from tests.chaos.harm import LONG_S, Blow, Struck
from tests.chaos.ledger import assert_clean
from tests.chaos.report import longest_gaps, quantile
from tests.chaos.test_chaos import ROUNDS, faults, load, write_report
from tests.ports import free_ports

USERS = 6
CALM_S = 3.0
STARTED_S = 60.0
WITHIN_S = HEARTBEAT_LAPSE_S + 2
"""The lock lapses, and whoever waits looks four times a second."""

KINDS = ("die alone", "die watched", "freeze", "be cut off")
"""How a leader ends. Watched: whoever supervises it tells of its death, and starts it again."""


@pytest.fixture
async def pair(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A set with two schedulers."""
    clean_environment(monkeypatch)
    cluster = Cluster(folder, tiny_model, free_ports(2), schedulers=2)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


def holder(broker: "redis.Redis") -> str:
    """The leader's instance and mark; empty without one."""
    value = broker.get(f"{PREFIX}:{LOCK}")
    return value.decode() if isinstance(value, bytes) else ""


async def until_one_waits(cluster: Cluster) -> None:
    """Returns once a scheduler stands by that runs: after a blow one is being started."""
    registry = cluster.registry()
    async with asyncio.timeout(STARTED_S):
        while True:
            now, instances = time.time(), await registry.view()
            waiting = [one for one in instances if stands_by(one, instances, now)]
            if any(one.pid == cluster.processes[one.instance].pid for one in waiting):
                return
            await asyncio.sleep(0.1)


async def until_another_leads(broker: "redis.Redis", before: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while holder(broker) in ("", before):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def depose(cluster: Cluster, broker: "redis.Redis", kind: str) -> tuple[Struck, float]:
    """Ends the leader's reign; the blow, and how many seconds there was no leader that could decide."""
    before = holder(broker)
    leader = cluster.processes[before.rpartition("/")[0]]
    proxy = cluster.proxies[leader.name]
    print(f"{time.strftime('%H:%M:%S')} {leader.name} is to {kind}", flush=True)
    at = time.monotonic()
    match kind:
        case "die alone":
            leader.is_held = True
            leader.kill()
        case "die watched":
            leader.kill()
        case "freeze":
            leader.send(signal.SIGSTOP)
        case "be cut off":
            proxy.stall()
    await until_another_leads(broker, before)
    took = time.monotonic() - at
    if kind in ("freeze", "be cut off"):
        await asyncio.sleep(max(0.0, LONG_S - took))
    leader.send(signal.SIGCONT)
    proxy.flow()
    leader.is_held = False
    return Struck(Blow(kind, leader.name), at, time.monotonic()), took


@pytest.mark.slow
@pytest.mark.timeout(200 + 60 * ROUNDS)
async def test_a_standby_takes_over_and_every_answer_is_as_without_harm(pair: Cluster) -> None:
    client = Client(pair.urls, random.Random(1))
    requests = some_requests(random.Random(2), 12)
    order = [kind for _ in range(max(1, ROUNDS)) for kind in random.Random(3).sample(KINDS, len(KINDS))]
    with contextlib.closing(pair.redis()) as broker:
        alone = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
        assert not [stream.fault for stream in alone if stream.fault]
        streams: list[Stream] = []
        stop = asyncio.Event()
        users = [asyncio.create_task(load(client, requests, streams, stop)) for _ in range(USERS)]
        took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        struck: list[Struck] = []
        try:
            for kind in order:
                await asyncio.sleep(CALM_S)
                await until_one_waits(pair)
                blow, seconds = await depose(pair, broker, kind)
                struck.append(blow)
                took[kind].append(seconds)
            await asyncio.sleep(CALM_S)
        finally:
            stop.set()
            await asyncio.gather(*users)
            await client.close()
        gaps = longest_gaps(streams, struck)
        numbers = {
            kind: {
                "blows": len(took[kind]),
                "takeover_p50_s": round(quantile(took[kind], 0.5), 3),
                "takeover_max_s": round(max(took[kind]), 3),
                "streams": len(gaps[f"{kind} scheduler"]),
                "gap_p50_s": round(quantile(gaps[f"{kind} scheduler"], 0.5), 3),
                "gap_max_s": round(max(gaps[f"{kind} scheduler"]), 3),
            }
            for kind in KINDS
        }
        print(len(streams), "streams", json.dumps(numbers, indent=1))
        write_report({"streams": len(streams), **numbers})
        assert not faults(streams, alone), pair.tails()
        deposed = [death for death in pair.deaths() if "another scheduler leads now" in death]
        assert pair.deaths() == deposed
        await pair.until_ready()
        await assert_clean(broker)
