"""Brokers that fail over, with real sentinels."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shared import sentinel
from shared.errors import ConfigError
from shared.messages import Abort
from shared.streams import EVENTS, SCHEDULE, Bus, connect, wait_for_broker
from tests.brokers import Sentinels, running_sentinels

WITHIN_S = 20.0


def test_the_url_names_sentinels_service_and_options() -> None:
    url = "redis+sentinel://sap:w%40od@a,[::1]:77,10.0.0.3:26380/main/3?sentinel_password=x&health_check_interval=9"
    parsed = sentinel.parse(url)
    assert parsed.sentinels == [("a", 26379), ("::1", 77), ("10.0.0.3", 26380)]
    assert parsed.service == "main"
    assert parsed.options == {"username": "sap", "password": "w@od", "db": 3, "health_check_interval": 9, "ssl": False}
    assert parsed.sentinel_options == {"username": None, "password": "x", "ssl": False}


def test_tls_is_spoken_to_the_sentinels_too(tmp_path: Path) -> None:
    parsed = sentinel.parse("rediss+sentinel://a/main?ssl_ca_certs=/ca.pem")
    for options in (parsed.options, parsed.sentinel_options):
        assert (options["ssl"], options["ssl_ca_certs"]) == (True, "/ca.pem")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a:26379", "ends with the name of the service"),
        ("redis+sentinel:///main", "'' is no HOST:PORT"),
        ("redis+sentinel://a,,b/main", "'' is no HOST:PORT"),
        ("redis+sentinel://a:b/main", "'a:b' is no HOST:PORT"),
        ("redis+sentinel://a/main/x", "database must be a number"),
        ("redis+sentinel://a/main?nonsense=1", "nonsense"),
        ("redis://a?nonsense=1", "nonsense"),
        ("rediss://a?ssl_ca_certs=/no/such/file", "no file /no/such/file"),
        ("http://a", "redis://, rediss://, unix://"),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_by_name(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"--redis-url \(SAPWOOD_REDIS_URL\): .*" + why):
        connect(url)


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Sentinels]:
    with running_sentinels(tmp_path) as sentinels:
        yield sentinels


@pytest.fixture
async def failing_over(brokers: Sentinels) -> AsyncIterator[Bus]:
    """A bus by sentinels, its outbox and its watch running."""
    client = connect(brokers.url)
    bus = Bus(client, "test")
    await wait_for_broker(client)
    tasks = [asyncio.create_task(bus.outbox.run()), asyncio.create_task(sentinel.watch(client))]
    yield bus
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result
    await client.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["dies", "freezes"])
async def test_what_is_sent_arrives_although_the_master_goes(
    brokers: Sentinels, failing_over: Bus, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every way of reading and writing is under way when it goes; a frozen one keeps its connections open."""
    bus = failing_over
    followed: set[int] = set()
    grouped: set[int] = set()
    cursors = {SCHEDULE: "0"}

    async def follow() -> None:
        async for batch in bus.follow(lambda: cursors):
            for delivery in batch:
                followed.update(delivery.message.sequence_ids)
                cursors[SCHEDULE] = delivery.entry_id

    async def read() -> None:
        async for batch in bus.groups.read(SCHEDULE, "me", pending_first=True):
            for delivery in batch:
                grouped.update(delivery.message.sequence_ids)

    reading = [asyncio.create_task(follow()), asyncio.create_task(read())]
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[1]))
    await until(lambda: followed == grouped == {1})
    master = brokers.master
    began = time.monotonic()
    if end == "dies":
        master.kill()
    else:
        master.send(signal.SIGSTOP)
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[2]))
    await until(lambda: 2 in followed and 2 in grouped)
    took = time.monotonic() - began
    assert brokers.master is not master
    with capsys.disabled():
        print(f" {end}: {took:.1f} s ", end="")
    if end == "freezes":
        master.send(signal.SIGCONT)
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[3]))
    await until(lambda: 3 in followed and 3 in grouped)
    assert await bus.newest_id(EVENTS) == "0"  # the client's pool goes on too
    for task in reading:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*reading)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
