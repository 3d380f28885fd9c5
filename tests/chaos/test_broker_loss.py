"""A broker that loses its data: what was in flight ends with a clear 503, and then everything goes on afresh."""

import asyncio
import contextlib
import random
import shutil

import pytest

from tests.chaos.client import Client, Stream, some_requests
from tests.chaos.cluster import BROKER, Cluster
from tests.chaos.ledger import assert_clean
from tests.chaos.test_chaos import faults

WITHIN_S = 30.0
"""From the loss until every client knows."""


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_requests_in_flight_end_with_a_503_and_later_ones_are_answered(cluster: Cluster) -> None:
    client = Client(cluster.urls, random.Random(1))
    requests = some_requests(random.Random(2), 8)
    with contextlib.closing(cluster.redis()) as broker:
        try:
            alone = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
            streams = [Stream(number, number) for number in range(len(requests))]
            asking = [
                asyncio.create_task(client.answer(requests[stream.request] | {"n": 1}, stream)) for stream in streams
            ]
            async with asyncio.timeout(20):
                while sum(len(stream.times) > 2 for stream in streams) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            process = cluster.processes[BROKER]
            process.is_held = True
            process.kill()
            await asyncio.to_thread(shutil.rmtree, cluster.folder / "appendonlydir")
            process.start()
            process.is_held = False
            await asyncio.wait_for(asyncio.gather(*asking), WITHIN_S)
            failed = [stream for stream in streams if stream.fault is not None]
            assert failed, "nothing was in flight"
            for stream in failed:
                assert "unavailable" in str(stream.fault), stream.fault
            assert not faults([stream for stream in streams if stream.fault is None], alone)
            await cluster.until_ready()
            again = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
            assert not faults(again, alone)
            assert not cluster.deaths()
            await assert_clean(broker)
        finally:
            await client.close()
