"""A request that kills every worker it runs on ends with a 500 that names it, and is set aside; all others go on."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from services.scheduler.core.sequence import SUSPECT_CRASHES
from shared.messages import Generate
from shared.streams import SCHEDULE
from tests.chaos.client import Client, Stream, some_requests
from tests.chaos.cluster import PREFIX, Cluster, clean_environment
from tests.chaos.ledger import assert_clean
from tests.chaos.mortal_worker import MARK
from tests.chaos.test_chaos import faults
from tests.ports import free_ports

WITHIN_S = 60.0
DEAD = f"{PREFIX}:{SCHEDULE.name}.dead"
POISON = {"model": "tiny", "prompt": f"abc {MARK} def", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


@pytest.fixture
async def mortal(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """A set whose workers some requests kill."""
    clean_environment(monkeypatch)
    cluster = Cluster(folder, tiny_model, free_ports(2), worker_module="tests.chaos.mortal_worker")
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_a_request_that_kills_workers_ends_with_a_500_and_others_are_answered(mortal: Cluster) -> None:
    client = Client(mortal.urls, random.Random(1))
    requests = some_requests(random.Random(2), 8)
    with contextlib.closing(mortal.redis()) as broker:
        try:
            alone = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
            assert not [stream.fault for stream in alone if stream.fault]
            streams = [Stream(number, number) for number in range(len(requests))]
            asking = [asyncio.create_task(client.answer(requests[stream.request], stream)) for stream in streams]
            async with asyncio.timeout(20):
                while sum(len(stream.times) > 2 for stream in streams) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            timeout = aiohttp.ClientTimeout(total=WITHIN_S)
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.post(f"{mortal.urls[0]}/v1/completions", json=POISON) as response,
            ):
                error = msgspec.json.decode(await response.read())["error"]
            assert response.status == 500, error
            await asyncio.wait_for(asyncio.gather(*asking), WITHIN_S)
            assert not faults(streams, alone)
            deaths = mortal.deaths()
            assert SUSPECT_CRASHES <= len(deaths) <= SUSPECT_CRASHES + 1, "\n".join(deaths)
            assert all(death.startswith("gpu_worker") and "ended with -9" in death for death in deaths)
            entries: Any = broker.xrange(DEAD)
            ((_, buried),) = entries
            request = SCHEDULE.decode(buried[b"m"])
            assert isinstance(request, Generate)
            assert f"request {request.request_id} was running alone when its worker died" in error["message"]
            assert buried[b"why"].decode() in error["message"]
            broker.delete(DEAD)
            await mortal.until_ready()
            again = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
            assert not faults(again, alone)
            assert len(mortal.deaths()) == len(deaths)
            await assert_clean(broker)
        finally:
            await client.close()
