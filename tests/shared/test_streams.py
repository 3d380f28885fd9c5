"""Streams on a real broker: what is sent arrives once decoded, in order; what is broken is put aside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from shared.messages import Abort, Generate, Output, Sampling, TextPrompt, Tokenize
from shared.packing import pack_i32, unpack_i32
from shared.streams import (
    LOST_CONNECTION,
    SCHEDULE,
    TOKENIZE,
    Bus,
    Delivery,
    Wire,
    connect,
    groups,
    outbox,
    shard_stream,
)

SHARD = shard_stream(0)


def a_request(name: str) -> Tokenize:
    return Tokenize(request_id=name, reply_to="g", prompt=TextPrompt(text="hello"))


async def first(batches: object) -> list[Delivery]:  # type: ignore[type-arg]
    async with asyncio.timeout(10):
        async for batch in batches:  # type: ignore[attr-defined]
            if batch:
                return batch
    raise AssertionError


async def test_group_delivers_in_order_and_ack_removes_the_entry(bus: Bus) -> None:
    for name in ("a", "b"):
        bus.outbox.post(TOKENIZE, a_request(name), traceparent="00-1-2-01", deadline=12.5)
    await bus.outbox.flush()
    batch = await first(bus.groups.read(TOKENIZE, "me"))
    assert [d.message.request_id for d in batch] == ["a", "b"]
    assert batch[0].message == a_request("a")
    assert (batch[0].traceparent, batch[0].deadline) == ("00-1-2-01", 12.5)
    for delivery in batch:
        bus.outbox.ack(delivery)
    await bus.outbox.flush()
    assert await bus.client.xlen(bus.key("tokenize")) == 0
    assert (await bus.client.xpending(bus.key("tokenize"), "tokenizers"))["pending"] == 0


async def test_two_consumers_share_a_group(bus: Bus) -> None:
    await bus.groups.create(TOKENIZE)
    for number in range(20):
        bus.outbox.post(TOKENIZE, a_request(str(number)))
    await bus.outbox.flush()
    one = await first(bus.groups.read(TOKENIZE, "one", count=10))
    two = await first(bus.groups.read(TOKENIZE, "two", count=10))
    assert sorted(int(d.message.request_id) for d in one + two) == list(range(20))


async def test_unacknowledged_entries_come_back_to_the_same_consumer(bus: Bus) -> None:
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[7]))
    await first(bus.groups.read(SCHEDULE, "s"))
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[8]))
    again = await first(bus.groups.read(SCHEDULE, "s", pending_first=True))
    assert [d.message for d in again] == [Abort(sequence_ids=[7])]


async def test_a_dead_consumers_entries_are_claimed(bus: Bus) -> None:
    bus.outbox.post(TOKENIZE, a_request("a"))
    await first(bus.groups.read(TOKENIZE, "dies"))
    claimed = await first(bus.groups.claim(TOKENIZE, "lives", min_idle_s=0, every_s=0.05))
    assert [d.message.request_id for d in claimed] == ["a"]


async def test_what_a_broken_connection_swallowed_is_read_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker sent it to this consumer, and it never arrived."""
    monkeypatch.setattr(groups, "RECHECK_S", 0.1)
    monkeypatch.setattr(groups, "BLOCK_MS", 20)
    reading = bus.groups.read(SCHEDULE, "me", pending_first=True)
    seen = []
    for number in range(3):
        bus.outbox.post(SCHEDULE, Abort(sequence_ids=[number]))
        await bus.outbox.flush()
        if number:
            await bus.client.xreadgroup("schedulers", "me", {bus.key("schedule"): ">"})
        batch = await asyncio.wait_for(anext(reading), 5)
        seen += [delivery.message.sequence_ids for delivery in batch]
    assert seen == [[0], [1], [2]]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(reading), 0.5)


async def test_what_the_broker_sends_to_a_connection_that_broke_is_read_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends what comes first there, for it does not know yet, and what comes later to the reader."""
    monkeypatch.setattr(groups, "RECHECK_S", 0.1)
    monkeypatch.setattr(groups, "BLOCK_MS", 1000)
    await bus.groups.create(SCHEDULE)
    stale = Wire(bus.client)
    left_behind = asyncio.create_task(
        stale.execute([("XREADGROUP", "GROUP", "schedulers", "me", "BLOCK", 1000, "STREAMS", bus.key("schedule"), ">")])
    )
    await asyncio.sleep(0.2)
    seen: list[int] = []

    async def read() -> None:
        async for batch in bus.groups.read(SCHEDULE, "me", pending_first=True):
            seen.extend(delivery.message.sequence_ids[0] for delivery in batch)  # type: ignore[union-attr]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.2)
    for number in range(6):
        bus.outbox.post(SCHEDULE, Abort(sequence_ids=[number]))
        await asyncio.sleep(0.2)
    assert await left_behind
    await asyncio.sleep(2)
    reading.cancel()
    await stale.close()
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert seen[0] != 0


async def lose_the_last_seconds(bus: Bus, *names: str) -> None:
    """As a broker that died and had not written what it took to its disk."""
    for name in names:
        await bus.client.xtrim(bus.key(name), maxlen=0, approximate=False)
    await bus.client.client_kill_filter(_type="normal", skipme=True)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(200):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError


async def tokens(bus: Bus) -> list[int]:
    found = [delivery async for batch in bus.read_log(SHARD) for delivery in batch]
    return [unpack_i32(delivery.message.token_ids)[0] for delivery in found]  # type: ignore[union-attr]


async def test_what_the_broker_lost_when_it_died_is_written_again(bus: Bus) -> None:
    for number in range(3):
        bus.outbox.post(SHARD, Output(token_ids=pack_i32([number])))
        await bus.outbox.flush()
    await lose_the_last_seconds(bus, SHARD.name)

    async def is_there() -> bool:  # though nothing more is to be written
        return await tokens(bus) == [0, 1, 2]

    await until(is_there)
    await lose_the_last_seconds(bus, SHARD.name)
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([3])))
    await asyncio.wait_for(bus.outbox.flush(), 10)
    assert await tokens(bus) == [0, 1, 2, 3]


@pytest.mark.parametrize("is_anothers", [False, True])
async def test_what_points_to_another_key_by_now_stays(bus: Bus, is_anothers: bool) -> None:
    bus.outbox.store("answer", b"1", 60)
    bus.outbox.store("claim", bus.key("other" if is_anothers else "answer").encode(), 60)
    bus.outbox.forget("answer", "claim")
    await bus.outbox.flush()
    assert await bus.get("answer") is None
    assert (await bus.get("claim") is not None) == is_anothers


async def test_a_machine_that_went_down_without_a_word_is_noticed(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing breaks on this side: what was written last is forgotten only when the broker answers again."""
    monkeypatch.setattr(outbox, "UNSURE_S", 0.3)
    monkeypatch.setattr(outbox, "LOOK_EVERY_S", 0.05)
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([0])))
    await bus.outbox.flush()
    execute = Wire.execute

    async def gone(self: Wire, commands: Any) -> Any:
        monkeypatch.setattr(Wire, "execute", execute)
        await bus.client.xtrim(bus.key(SHARD.name), maxlen=0, approximate=False)
        raise ConnectionError("timed out")

    monkeypatch.setattr(Wire, "execute", gone)

    async def is_there() -> bool:
        return await tokens(bus) == [0]

    await until(is_there)


async def test_what_asks_for_work_is_not_written_again(bus: Bus) -> None:
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[0]))
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([0])), repeats=False)
    await bus.outbox.flush()
    await lose_the_last_seconds(bus)
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([1])))
    await asyncio.wait_for(bus.outbox.flush(), 10)
    assert await bus.client.xlen(bus.key("schedule")) == 1
    assert await tokens(bus) == [0, 1]


async def test_what_was_written_long_ago_is_not_written_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "UNSURE_S", 0.2)
    monkeypatch.setattr(outbox, "LOOK_EVERY_S", 0.05)
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([0])))
    await bus.outbox.flush()
    await asyncio.sleep(0.5)
    await lose_the_last_seconds(bus)
    bus.outbox.post(SHARD, Output(token_ids=pack_i32([1])))
    await asyncio.wait_for(bus.outbox.flush(), 10)
    assert await tokens(bus) == [0, 1]


async def test_whoever_comes_next_inherits_all_that_others_read(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, consumer in (("a", "first"), ("b", "second"), ("c", "heir")):
        bus.outbox.post(TOKENIZE, a_request(name))
        await first(bus.groups.read(TOKENIZE, consumer))
    inherited = bus.groups.inherit(TOKENIZE, "heir", every_s=0.02)
    batch = [*await anext(inherited), *await anext(inherited)]
    assert [delivery.message.request_id for delivery in batch] == ["a", "b"]
    bus.outbox.post(TOKENIZE, a_request("d"))
    await first(bus.groups.read(TOKENIZE, "first"))  # does not know yet that its turn is over
    later = await asyncio.wait_for(anext(inherited), 5)
    assert [delivery.message.request_id for delivery in later] == ["d"]
    monkeypatch.setattr(groups, "RETIRED_MS", 0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(inherited), 0.3)
    consumers = await bus.client.xinfo_consumers(bus.key("tokenize"), "tokenizers")
    assert [(one["name"], one["pending"]) for one in consumers] == [(b"heir", 4)]


async def test_an_entry_that_kills_every_consumer_becomes_a_dead_letter(bus: Bus) -> None:
    bus.outbox.post(TOKENIZE, a_request("poison"))
    await first(bus.groups.read(TOKENIZE, "dies"))
    claims = bus.groups.claim(TOKENIZE, "lives", min_idle_s=0, every_s=0.01, max_deliveries=3)
    deliveries = 0

    async def count() -> None:
        nonlocal deliveries
        async for _ in claims:
            deliveries += 1

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(count(), 1)
    assert deliveries == 2  # the second and third delivery; the first was to the consumer that died
    assert await bus.client.xlen(bus.key("tokenize.dead")) == 1
    assert await bus.client.xlen(bus.key("tokenize")) == 0


@pytest.mark.parametrize(
    "fields",
    [{"v": 1, "m": b"\xc1"}, {"v": 99, "m": b"\x90"}, {"m": b"\x90"}, {"v": 1}, {"v": "x", "m": b""}],
    ids=["bad msgpack", "other version", "no version", "no body", "version no number"],
)
async def test_what_does_not_decode_is_put_aside_and_acknowledged(bus: Bus, fields: dict[str, bytes]) -> None:
    await bus.groups.create(SCHEDULE)
    await bus.client.xadd(bus.key("schedule"), fields)  # type: ignore[arg-type]
    bus.outbox.post(SCHEDULE, Abort(sequence_ids=[1]))
    batch = await first(bus.groups.read(SCHEDULE, "s"))
    assert [d.message for d in batch] == [Abort(sequence_ids=[1])]
    await bus.outbox.flush()
    assert await bus.client.xlen(bus.key("schedule.dead")) == 1
    assert (await bus.client.xpending(bus.key("schedule"), "schedulers"))["pending"] == 1


async def test_a_lost_group_is_made_again(bus: Bus) -> None:
    bus.outbox.post(TOKENIZE, a_request("a"))
    await first(bus.groups.read(TOKENIZE, "me"))
    await bus.client.delete(bus.key("tokenize"))
    bus.outbox.post(TOKENIZE, a_request("b"))
    batch = await first(bus.groups.read(TOKENIZE, "me"))
    assert [d.message.request_id for d in batch] == ["b"]


async def test_follow_reads_several_streams_from_its_cursors(bus: Bus) -> None:
    streams = [shard_stream(0), shard_stream(1)]
    cursors = dict.fromkeys(streams, "0")
    for number, stream in enumerate(streams * 2):
        bus.outbox.post(stream, Output(token_ids=pack_i32([number])))
    await bus.outbox.flush()
    seen: dict[str, list[int]] = {}
    async for batch in bus.follow(lambda: cursors, block_s=0.05):
        for delivery in batch:
            seen.setdefault(delivery.stream.name, []).extend(unpack_i32(delivery.message.token_ids))
            cursors[delivery.stream] = delivery.entry_id
        if not batch:
            break
    assert seen == {"tokens:0": [0, 2], "tokens:1": [1, 3]}


async def test_trim_drops_only_what_is_older(bus: Bus) -> None:
    stream = shard_stream(0)
    for number in range(3):
        bus.outbox.post(stream, Output(token_ids=pack_i32([number])))
    await bus.outbox.flush()
    batch = await first(bus.follow(lambda: {stream: "0"}))
    bus.outbox.trim(stream, batch[1].entry_id)
    await bus.outbox.flush()
    left = await first(bus.follow(lambda: {stream: "0"}))
    assert [list(unpack_i32(d.message.token_ids)) for d in left] == [[1], [2]]


async def test_generate_survives_the_wire(bus: Bus) -> None:
    message = Generate(
        request_id="r",
        sequence_ids=[1, 2**62],
        shard=3,
        token_ids=pack_i32([1, 2**31 - 1]),
        sampling=Sampling(logit_bias={5: -1.5}),
        stop_token_ids=[2],
        max_tokens=4,
    )
    bus.outbox.post(SCHEDULE, message)
    assert (await first(bus.groups.read(SCHEDULE, "s")))[0].message == message


async def test_sending_survives_a_cut_connection(bus: Bus) -> None:
    bus.outbox.post(TOKENIZE, a_request("a"))
    await bus.outbox.flush()
    await bus.client.client_kill_filter(_type="normal", skipme=True)
    bus.outbox.post(TOKENIZE, a_request("b"))
    async with asyncio.timeout(10):
        await bus.outbox.flush()
    batch = await first(bus.groups.read(TOKENIZE, "me"))
    assert [d.message.request_id for d in batch] == ["a", "b"]


def test_a_wire_that_broke_while_it_was_idle_connects_again(broker_url: str) -> None:
    """In the event loop that services run in, where a write to a broken connection is no OSError."""

    async def ping_twice() -> list[object]:
        client = connect(broker_url)
        wire = Wire(client)
        replies = await wire.execute([["PING"]])
        for pause_s in (0, 0.05):
            wire._connection._writer.transport.abort()
            await asyncio.sleep(pause_s)
            assert wire.is_broken
            with pytest.raises(LOST_CONNECTION):
                await wire.execute([["PING"]])
            replies += await wire.execute([["PING"]])
        await wire.close()
        await client.aclose()
        return replies

    assert uvloop.run(ping_twice()) == [b"PONG"] * 3
