"""The whole set on brokers of other kinds: by TLS as a user of few rights, and with sentinels that fail over."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.launcher.process import child_environment
from tests.brokers import Sentinels, Server, TlsFront, running_sentinels
from tests.chaos.client import Client, ReturningClient, Stream, some_requests
from tests.chaos.cluster import Cluster, clean_environment
from tests.chaos.test_chaos import faults, load
from tests.ports import free_ports

FAILED_OVER_S = 30.0


@asynccontextmanager
async def a_set(folder: Path, model: Path, url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, model, free_ports(2), url=url, prefix="sapwood")
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_the_recommended_user_suffices_for_everything_by_tls(
    guarded: Server, front: TlsFront, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    url = f"rediss://sapwood:s3cret@127.0.0.1:{front.port}/0?ssl_ca_certs={front.certificate}"
    requests = some_requests(random.Random(1), 8)
    async with a_set(folder, tiny_model, url) as cluster:
        clients = [Client(cluster.urls, random.Random(1)), ReturningClient(cluster.urls, random.Random(1))]
        answers = []
        for client in clients:
            streams = [Stream(number, number) for number in range(len(requests))]
            await asyncio.gather(*(client.answer(requests[one.request], one) for one in streams))
            await client.close()
            answers.append(streams)
        assert not faults(answers[1], answers[0])
        cluster.processes["scheduler-0"].kill()  # whose work another start takes over
        cluster.processes["tokenizer-0"].kill()
        await asyncio.sleep(1)
        await cluster.until_ready()
        async with asyncio.timeout(60):
            while (said := await doctor_says(url)) is not None:
                print(said)
                await asyncio.sleep(1)
        assert not cluster.deaths()
        assert "NOPERM" not in cluster.tails()


async def doctor_says(url: str) -> str | None:
    """What is wrong with the set; None when nothing is."""
    doctor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.launcher", "doctor"),
        env=child_environment() | {"SAPWOOD_REDIS_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await doctor.communicate()
    return said.decode() if doctor.returncode else None


@pytest.fixture
def sentinels(folder: Path) -> Iterator[Sentinels]:
    (folder / "brokers").mkdir()
    with running_sentinels(folder / "brokers") as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["dies", "freezes"])
async def test_streams_go_on_at_the_next_master(
    sentinels: Sentinels, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Replication is asynchronous: a request that lost a part may end with a 503. Nothing else may happen to it."""
    clean_environment(monkeypatch)
    requests = some_requests(random.Random(1), 8)
    async with a_set(folder, tiny_model, sentinels.url) as cluster:
        client = Client(cluster.urls, random.Random(1))
        alone = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
        assert not [stream.fault for stream in alone if stream.fault]
        streams: list[Stream] = []
        stop = asyncio.Event()
        users = [asyncio.create_task(load(client, requests, streams, stop)) for _ in range(6)]
        await asyncio.sleep(3)
        master = await asyncio.to_thread(lambda: sentinels.master)
        began = time.monotonic()
        if end == "dies":
            master.kill()
        else:
            master.send(signal.SIGSTOP)
        await asyncio.to_thread(sentinels.until_another_than, master)
        elected = time.monotonic()
        async with asyncio.timeout(FAILED_OVER_S):
            while not any(stream.times and stream.times[-1] > elected for stream in streams):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        goes_on = time.monotonic()
        if end == "freezes":
            await asyncio.sleep(2)
            master.send(signal.SIGCONT)  # finds that it has been replaced
        await asyncio.sleep(5)
        stop.set()
        await asyncio.gather(*users)
        lost = [stream for stream in streams if stream.fault is not None]
        print(
            f"{end}: another master after {elected - began:.1f} s, streams go on after {goes_on - began:.1f} s; "
            f"{len(streams)} streams, {len(lost)} ended with a 503"
        )
        assert all("unavailable" in str(stream.fault) for stream in lost), [stream.fault for stream in lost]
        assert len(lost) <= len(users)
        assert not faults([stream for stream in streams if stream.fault is None], alone)
        await cluster.until_ready()
        again = [await client.answer(request, Stream(number, number)) for number, request in enumerate(requests)]
        await client.close()
        assert not faults(again, alone)
        assert not cluster.deaths()
