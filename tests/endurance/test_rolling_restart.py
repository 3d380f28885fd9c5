"""Every process of a running set is replaced, one after the other, and no client notices.

`SAPWOOD_RESTART_ROUNDS` says how often each is replaced (0: one of every service), `SAPWOOD_RESTART_STREAMS` how many
streams run at once; `SAPWOOD_ENDURANCE_REPORT` names a file for the numbers.
"""

import asyncio
import contextlib
import os
import random
import time

import pytest

from tests.chaos.client import Stream, some_requests
from tests.chaos.ledger import assert_clean
from tests.chaos.test_chaos import faults, load
from tests.endurance.balancer import BalancedClient, Balancer
from tests.endurance.fleet import Fleet
from tests.endurance.report import longest_wait_s, quantiles, write_report

ROUNDS = int(os.environ.get("SAPWOOD_RESTART_ROUNDS", "0"))
AT_ONCE = int(os.environ.get("SAPWOOD_RESTART_STREAMS", "6"))
DRAIN_S = 60.0
"""Longer than any answer takes here: what is under way at a gateway ends there."""

BOUND_S = {"gateway": DRAIN_S + 5, "tokenizer": 5.0, "scheduler": 5.0, "gpu_worker": 8.0}
"""Within which a process that is asked to end does."""


@pytest.fixture
def gateway_flags() -> list[str]:
    return ["--drain-notice-s=1.5", f"--drain-timeout-s={DRAIN_S}"]


@pytest.mark.slow
@pytest.mark.timeout(240 + 240 * ROUNDS)
async def test_no_client_notices_that_every_process_is_replaced(fleet: Fleet) -> None:
    rng = random.Random(1)
    requests = some_requests(rng, 12)
    balancer = Balancer(fleet.urls, random.Random(2))
    client = BalancedClient(balancer, fleet.urls, rng)
    probing = asyncio.create_task(balancer.probe())
    streams: list[Stream] = []
    ended: dict[str, list[float]] = {}
    stop = asyncio.Event()
    with contextlib.closing(fleet.redis()) as broker:
        try:
            alone = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
            assert not [stream.fault for stream in alone if stream.fault]
            users = [asyncio.create_task(load(client, requests, streams, stop)) for _ in range(AT_ONCE)]
            try:
                await asyncio.sleep(1)
                for _ in range(max(1, ROUNDS)):
                    for service in BOUND_S:
                        for process in fleet.of(service)[: None if ROUNDS else 1]:
                            began_at = time.strftime("%H:%M:%S")
                            code, took_s = await fleet.replace(process, BOUND_S[service])
                            print(f"{began_at} {process.name} ended with {code} in {took_s:.2f} s", flush=True)
                            assert code == 0, process.tail()
                            ended.setdefault(service, []).append(took_s)
            finally:
                stop.set()
                await asyncio.gather(*users)
            report = {
                "streams": len(streams),
                "faults": sum(stream.fault is not None for stream in streams),
                "told to come back": sum(stream.refused for stream in streams),
                "connections refused": sum(stream.resent for stream in streams),
                "exit_s": {service: [round(took, 2) for took in times] for service, times in ended.items()},
                "longest_wait_s": quantiles([longest_wait_s(stream) for stream in streams]),
            }
            write_report("rolling restart", report)
            assert not faults(streams, alone), fleet.tails()
            assert not fleet.deaths()
            await assert_clean(broker)
        finally:
            probing.cancel()
            await asyncio.wait([probing])
            await client.close()
