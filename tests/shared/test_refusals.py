"""A broker that refuses for now, for lack of replicas or memory or for its demotion: all wait, nothing ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from shared.messages import Abort, Deltas
from shared.registry import Registry
from shared.streams import LOST_CONNECTION, SCHEDULE, Bus, connect, reply_stream
from tests.brokers import Server, eventually
from tests.ports import free_port

REPLIES: Any = reply_stream("g")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server", free_port(), {"maxmemory-policy": "noeviction"})
    server.start()
    try:
        with contextlib.closing(server.client()) as client:
            eventually(client.ping)
        yield server
    finally:
        server.stop()


@pytest.fixture
async def own_bus(server: Server) -> AsyncIterator[Bus]:
    client = connect(f"redis://127.0.0.1:{server.port}/0")
    yield Bus(client, "x")
    await client.aclose()


def refusals(client: Any) -> dict[str, tuple[Any, Any]]:
    """What makes the broker refuse, and what ends it."""
    return {
        "replicas": (
            lambda: client.config_set("min-replicas-to-write", 1),
            lambda: client.config_set("min-replicas-to-write", 0),
        ),
        "memory": (lambda: client.config_set("maxmemory", 1), lambda: client.config_set("maxmemory", 0)),
        "demotion": (lambda: client.replicaof("127.0.0.1", str(free_port())), lambda: client.replicaof("no", "one")),
    }


class Readers:
    """Everything that speaks to the broker for ever. seen: sequence ids of aborts, and 0 for a reply."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.seen: asyncio.Queue[int] = asyncio.Queue()
        groups = bus.groups
        self.tasks = [
            asyncio.create_task(one, name=name)
            for name, one in {
                "outbox": bus.outbox.run(),
                "read": self._read(groups.read(SCHEDULE, "me", pending_first=True)),
                "claim": self._read(groups.claim(SCHEDULE, "me", min_idle_s=3600, every_s=0.05)),
                "inherit": self._read(groups.inherit(SCHEDULE, "me", every_s=0.05)),
                "renew": self._renew(),
                "follow": self._follow(),
                "registry": Registry(bus, "gateway", "g").run(),
            }.items()
        ]

    async def _read(self, batches: Any) -> None:
        async for batch in batches:
            for delivery in batch:
                self.seen.put_nowait(delivery.message.sequence_ids[0])

    async def _renew(self) -> None:
        while True:
            await self._bus.groups.renew(SCHEDULE, "me", ["1-0"])
            await asyncio.sleep(0.05)

    async def _follow(self) -> None:
        cursors = {REPLIES: "0"}
        async for batch in self._bus.follow(lambda: cursors, block_s=0.5):
            for delivery in batch:
                cursors[REPLIES] = delivery.entry_id
                self.seen.put_nowait(0)

    def check(self) -> None:
        for task in self.tasks:
            assert not task.done(), task

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("why", ["replicas", "memory", "demotion"])
async def test_a_broker_that_refuses_for_now_ends_nothing(server: Server, own_bus: Bus, why: str) -> None:
    await own_bus.groups.create(SCHEDULE)
    readers = Readers(own_bus)
    try:
        own_bus.outbox.post(SCHEDULE, Abort(sequence_ids=[1]))
        own_bus.outbox.post(REPLIES, Deltas())
        seen = {await asyncio.wait_for(readers.seen.get(), 10) for _ in range(2)}
        assert seen == {0, 1}
        with contextlib.closing(server.client()) as client:
            refuse, allow = refusals(client)[why]
            refuse()
            own_bus.outbox.post(SCHEDULE, Abort(sequence_ids=[2]))
            await asyncio.sleep(1.5)
            readers.check()
            assert readers.seen.empty()
            allow()
        assert await asyncio.wait_for(readers.seen.get(), 10) == 2
        readers.check()
    finally:
        await readers.stop()


@pytest.mark.parametrize("why", ["replicas", "memory", "demotion"])
async def test_refusals_for_now_are_told_from_others(server: Server, own_bus: Bus, why: str) -> None:
    with contextlib.closing(server.client()) as client:
        refusals(client)[why][0]()
        with pytest.raises(LOST_CONNECTION):
            await own_bus.client.set("x:a", "b")
        with pytest.raises(LOST_CONNECTION):  # by a script
            await own_bus.send_once("", "a", b"b", 1, SCHEDULE, [Abort(sequence_ids=[1])])
        refusals(client)[why][1]()
    with pytest.raises(ResponseError) as refused:
        await own_bus.client.execute_command("NONSENSE")
    assert not isinstance(refused.value, LOST_CONNECTION)
