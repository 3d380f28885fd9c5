"""Requests whose gateway is dead: cancelled, unless a client may come back to another gateway for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.tokenizer import outflow as outflow_module
from services.tokenizer import shard_output
from services.tokenizer.decode import Detokenizer
from services.tokenizer.outflow import Outflow
from shared.messages import Abort, Deltas, Open, sequence_id
from shared.registry import Registry
from shared.service import Context
from shared.streams import SCHEDULE, Bus, Stream, reply_stream, shard_stream


@pytest.fixture
async def outflow(bus: Bus, byte_level: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outflow]:
    monkeypatch.setattr(shard_output, "GATEWAY_GONE_S", 0.5)
    monkeypatch.setattr(outflow_module, "SWEEP_S", 0.05)
    context = Context("tokenizer", "t", bus, Registry(bus, "tokenizer", "t"))
    outflow = Outflow(context, Detokenizer(byte_level), 1)
    outflow.gain(0)
    task = asyncio.create_task(outflow.run())
    yield outflow
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def begin(bus: Bus, name: str, gateway: str, **fields: Any) -> int:
    one = sequence_id(name, 0)
    message = Open(
        request_id=name, reply_to=gateway, sequence_ids=[one], num_prompt_tokens=1, prompt_tail=b"", **fields
    )
    bus.outbox.post(shard_stream(0), message)
    return one


async def entries(bus: Bus, stream: Stream[Any]) -> list[Any]:
    async for batch in bus.follow(lambda: {stream: "0"}, block_s=0.01):
        return [delivery.message for delivery in batch]
    raise AssertionError


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 5
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def aborted(bus: Bus) -> set[int]:
    return {one for entry in await entries(bus, SCHEDULE) if isinstance(entry, Abort) for one in entry.sequence_ids}


async def test_a_dead_gateways_requests_are_cancelled_unless_they_are_wanted(bus: Bus, outflow: Outflow) -> None:
    await bus.client.set(bus.key("answer:b"), "1", ex=60)
    dropped = begin(bus, "a", "dead")
    wanted = begin(bus, "b", "dead", kept_while="answer:b")
    unwanted = begin(bus, "c", "dead", kept_while="answer:c")
    living = begin(bus, "d", "alive")
    for _ in range(30):
        outflow.see_gateways(["alive"], time.time())
        await asyncio.sleep(0.05)
    assert await aborted(bus) == {dropped, unwanted}
    (farewell,) = await entries(bus, reply_stream("dead"))  # for a gateway that was only stopped
    assert isinstance(farewell, Deltas)
    assert {end.sequence_id for end in farewell.finished} == {dropped, unwanted}
    assert all(end.error is not None and end.error.status == 503 for end in farewell.finished)
    assert 0 < await bus.client.ttl(bus.key("reply:dead")) <= outflow_module.FAREWELL_S

    await bus.client.delete(bus.key("answer:b"))

    async def is_cancelled() -> bool:
        outflow.see_gateways(["alive"], time.time())
        return wanted in await aborted(bus)

    await until(is_cancelled)
    assert living not in await aborted(bus)


async def test_a_time_without_a_look_makes_no_gateway_older(bus: Bus, outflow: Outflow) -> None:
    """The broker was away, or this process stopped: nobody could be heard of."""
    begin(bus, "a", "alive")
    outflow.see_gateways(["alive"], time.time() - 60)
    await asyncio.sleep(0.6)
    outflow.see_gateways([], time.time())  # the gateway's next heartbeat is on its way
    await asyncio.sleep(0.2)
    assert await aborted(bus) == set()
