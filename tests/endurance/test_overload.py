"""Five times as many requests as there is room for: those that are taken are answered as fast as under a full load, the
others are told when to come back, nothing grows, and a request after that is answered as before.

`SAPWOOD_OVERLOAD_S=60 pytest tests/endurance/test_overload.py -s` is the real thing; `SAPWOOD_ENDURANCE_REPORT` names a
file for the numbers.
"""

import asyncio
import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.chaos.ledger import assert_clean
from tests.endurance.fleet import Fleet
from tests.endurance.memory import Sample, growth, sample, watch
from tests.endurance.report import quantiles, write_report

FOR_S = float(os.environ.get("SAPWOOD_OVERLOAD_S", "5"))
MEASURE_S = min(15.0, FOR_S)
PLACES = 8
"""Requests in flight at each gateway."""

TIMES = 5
BOUND = 4.0
LEEWAY_S = 1.0
"""How much longer the slowest of a hundred that are taken may be under way than when the places are just full. It would
be no longer, did not those who are turned away, their clients and the workers share the cores of one machine here."""

ALLOWED_MIB = 8.0
"""Growth of a process over the run; a queue without a bound would take more within seconds."""

WORKER_ALLOWED_MIB = 64.0
"""Of a worker, whose torch makes room for each shape that it meets first; the soak shows where that ends."""


@pytest.fixture
def gateway_flags() -> list[str]:
    return [f"--max-requests-in-flight={PLACES}"]


@dataclass
class Tally:
    """What came of requests. took_s: of those that were answered; told_s: what Retry-After said to the others."""

    took_s: list[float] = field(default_factory=list)
    told_s: list[int] = field(default_factory=list)
    refused_in_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.took_s) + len(self.told_s) + len(self.faults)


async def ask(http: aiohttp.ClientSession, url: str, rng: random.Random, tally: Tally) -> None:
    """One request, and what came of it."""
    prompt = "".join(rng.choices("abcdefgh ", k=24))
    body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 48, "ignore_eos": True, "temperature": 0}
    began_at = time.monotonic()
    try:
        async with http.post(f"{url}/v1/completions", json=body) as response:
            answer = await response.json()
    except (aiohttp.ClientError, OSError) as error:
        tally.faults.append(repr(error))
        return
    took_s = time.monotonic() - began_at
    if response.status == 200:
        tally.took_s.append(took_s)
    elif response.status == 429:
        tally.refused_in_s.append(took_s)
        tally.told_s.append(int(response.headers["Retry-After"]))
    else:
        tally.faults.append(f"{response.status}: {answer}")


async def fill(http: aiohttp.ClientSession, urls: list[str], rng: random.Random) -> Tally:
    """Every place taken, and nobody turned away: what there is capacity for."""
    tally = Tally()
    until = time.monotonic() + MEASURE_S

    async def user(url: str) -> None:
        while time.monotonic() < until:
            await ask(http, url, rng, tally)

    async with asyncio.TaskGroup() as users:
        for number in range(PLACES * len(urls)):
            users.create_task(user(urls[number % len(urls)]))
    return tally


async def flood(http: aiohttp.ClientSession, urls: list[str], rng: random.Random, per_s: float, tally: Tally) -> None:
    """Requests that come whether or not others are answered, at random moments; returns when the last has come."""
    next_at = time.monotonic()
    until = next_at + FOR_S
    async with asyncio.TaskGroup() as requests:
        while next_at < until:
            await asyncio.sleep(next_at - time.monotonic())
            requests.create_task(ask(http, rng.choice(urls), rng, tally))
            next_at += rng.expovariate(per_s)


@pytest.mark.slow
@pytest.mark.timeout(180 + 3 * FOR_S)
async def test_five_times_the_load_slows_nobody_who_is_taken(fleet: Fleet) -> None:
    rng = random.Random(1)
    samples: list[Sample] = []
    tally = Tally()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        with contextlib.closing(fleet.redis()) as broker:
            alone = Tally()
            for number in range(12):
                await ask(http, fleet.urls[number % 2], rng, alone)
            full = await fill(http, fleet.urls, rng)
            assert not full.faults and not full.told_s, full
            capacity = len(full.took_s) / MEASURE_S
            watching = asyncio.create_task(watch(fleet, broker, samples, lambda: tally.total, 1.0))
            try:
                await flood(http, fleet.urls, rng, TIMES * capacity, tally)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
            after = Tally()
            for number in range(12):
                await ask(http, fleet.urls[number % 2], rng, after)
            samples.append(sample(fleet, broker, tally.total))
            grown = growth(samples)
            write_report(
                "overload",
                {
                    "capacity_per_s": round(capacity, 1),
                    "offered_per_s": round(tally.total / FOR_S, 1),
                    "seconds": FOR_S,
                    "taken": len(tally.took_s),
                    "turned_away": len(tally.told_s),
                    "faults": len(tally.faults),
                    "alone_s": quantiles(alone.took_s),
                    "full_s": quantiles(full.took_s),
                    "taken_s": quantiles(tally.took_s),
                    "refused_in_s": quantiles(tally.refused_in_s),
                    "retry_after_s": quantiles(tally.told_s),
                    "after_s": {"first": round(after.took_s[0], 3), **quantiles(after.took_s)},
                    "memory": grown,
                },
            )
            assert not tally.faults, tally.faults[:10]
            assert tally.total > 0.9 * TIMES * capacity * FOR_S
            assert len(tally.took_s) > 0.2 * capacity * FOR_S  # those turned away take the same two cores their time
            assert all(1 <= told <= 60 for told in tally.told_s)
            assert len(set(tally.told_s)) > 1, "all are told the same"
            assert quantiles(tally.took_s)["p99"] < BOUND * quantiles(full.took_s)["p99"] + LEEWAY_S
            assert not after.told_s and not after.faults
            assert max(after.took_s) < BOUND * max(alone.took_s) + LEEWAY_S
            for name, numbers in grown.items():
                allowed = WORKER_ALLOWED_MIB if name.startswith("gpu_worker") else ALLOWED_MIB
                assert numbers["max_mib"] - numbers["first_mib"] < allowed, (name, numbers)
            assert not fleet.deaths()
            await assert_clean(broker)
