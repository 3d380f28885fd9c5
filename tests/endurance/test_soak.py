"""Many short requests, a good half of which their clients leave: nothing stays behind, and memory stays as it is.

`SAPWOOD_SOAK_REQUESTS=20000 pytest tests/endurance/test_soak.py -s` is the real thing; `SAPWOOD_ENDURANCE_REPORT` names
a file for the numbers. What grows is judged from 10,000 requests on: fewer tell nothing from noise. Before those come
others for ten minutes and more, until what is remembered for a time (of ended sequences, by the scheduler) is as much
as it will be.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable

import pytest

from services.scheduler.core.scheduler import Scheduler
from tests.chaos.ledger import assert_clean
from tests.endurance.fleet import Fleet
from tests.endurance.memory import Sample, growth, sample, watch
from tests.endurance.report import write_report
from tests.endurance.visitors import Visitors

REQUESTS = int(os.environ.get("SAPWOOD_SOAK_REQUESTS", "200"))
AT_ONCE = int(os.environ.get("SAPWOOD_SOAK_USERS", "24"))
JUDGED_FROM = 10_000
WARM_UP_S = Scheduler.REMEMBER_S + 20 if REQUESTS >= JUDGED_FROM else 2.0
ALLOWED_KIB = 80.0
"""Growth for each thousand requests, over all of the run and over its second half: 80 bytes each. What every request
left behind would be more in both; a table that is made larger, or an allocator's next megabyte, is a step in one."""


@pytest.fixture
def gateway_flags() -> list[str]:
    """Answers that are kept go in seconds, so that what is kept does not look like what leaks."""
    return ["--resume-keep-s=5", "--resume-grace-s=2"]


async def crowd(visitors: Visitors, is_over: Callable[[], bool]) -> None:
    """Visits, some at a time, until it is over."""

    async def user() -> None:
        while not is_over():
            await visitors.visit()

    async with asyncio.TaskGroup() as users:
        for _ in range(AT_ONCE):
            users.create_task(user())


@pytest.mark.slow
@pytest.mark.timeout(180 + WARM_UP_S + REQUESTS // 5)
async def test_nothing_stays_behind(fleet: Fleet) -> None:
    visitors = Visitors(fleet.urls, random.Random(1))
    samples: list[Sample] = []
    with contextlib.closing(fleet.redis()) as broker:
        warm_at = time.monotonic() + WARM_UP_S
        await crowd(visitors, lambda: time.monotonic() >= warm_at)
        warmed_up = visitors.outcomes.total()
        visitors.outcomes.clear()
        began_at = time.monotonic()
        watching = asyncio.create_task(watch(fleet, broker, samples, visitors.outcomes.total, 2.0))
        try:
            await crowd(visitors, lambda: visitors.outcomes.total() >= REQUESTS)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await visitors.close()
        samples.append(sample(fleet, broker, visitors.outcomes.total()))
        took_s = time.monotonic() - began_at
        await assert_clean(broker)
        grown, lately = growth(samples), growth(samples[len(samples) // 2 :])
        write_report(
            "soak",
            {
                "requests": visitors.outcomes.total(),
                "warm_up": warmed_up,
                "seconds": round(took_s, 1),
                "outcomes": dict(sorted(visitors.outcomes.items())),
                "faults": len(visitors.faults),
                "memory": grown,
                "second_half": lately,
                "keys_left": sorted(key.decode() for key in broker.scan_iter("*")),
            },
        )
        assert not visitors.faults, visitors.faults[:10]
        assert not fleet.deaths()
        if REQUESTS >= JUDGED_FROM:
            slopes = {name: [part[name]["kib_per_1000"] for part in (grown, lately)] for name in grown}
            leaks = {name: slope for name, slope in slopes.items() if min(slope) > ALLOWED_KIB}
            assert not leaks
