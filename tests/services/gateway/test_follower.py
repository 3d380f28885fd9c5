"""Readers that come to a stream that is being written: each gets all of it, in order, whenever it came."""

import asyncio

import pytest

from services.gateway.call import Call
from services.gateway.follower import LINGER_S, Follower, Followers
from shared.messages import Delta, Deltas, Finished, FinishReason
from shared.streams import Bus, Wire, reply_stream

ADDRESS = "g-1.ab"
NUM_READERS = 60
NUM_DELTAS = 1200


def a_reader(sequence_of: Call) -> Call:
    return Call(sequence_of.id, 1, 1, is_streamed=True, is_kept=True, is_again=True)


async def test_none_misses_what_comes_while_it_is_handed_over(bus: Bus) -> None:
    """Writing pauses now and then, for that is when a reader is taken to be caught up."""
    call = Call("cmpl-1", 1, 1, is_streamed=True, is_kept=True)
    sequence = call.choices[0].sequence_id
    follower = Follower(bus, ADDRESS)
    follower.attach(call)
    running = asyncio.create_task(follower.run())
    readers = [call]

    async def write() -> None:
        stream = reply_stream(ADDRESS)
        for number in range(NUM_DELTAS):
            delta = Delta(sequence_id=sequence, offset=number, text="x", num_tokens=number + 1)
            bus.outbox.post(stream, Deltas(deltas=[delta]))
            await asyncio.sleep(0.013 if number % 7 == 0 else 0.0005)
        end = Finished(sequence_id=sequence, reason=FinishReason.LENGTH, num_tokens=NUM_DELTAS, num_prompt_tokens=1)
        bus.outbox.post(stream, Deltas(finished=[end]))

    writing = asyncio.create_task(write())
    while len(readers) < NUM_READERS:
        reader = a_reader(call)
        readers.append(reader)
        follower.attach(reader)
        await asyncio.sleep(0.04)
    await writing
    async with asyncio.timeout(10):
        while any(reader.num_open and reader.error is None for reader in readers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [reader.error for reader in readers if reader.error] == []
    assert {reader.choices[0].received for reader in readers} == {NUM_DELTAS}
    for reader in readers:
        follower.detach(reader)
    await asyncio.wait_for(running, 5)


@pytest.mark.parametrize("pause", [0.2, 0.5, 0.65, 0.7, 0.75, 0.9, 1.2, 2.0])
async def test_who_comes_when_the_last_one_has_left_is_read_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """At any moment of the end of reading for others, which takes a while here. Times are shares of LINGER_S: what the
    first reader waits for comes so that reading pauses next before the follower looks whether anybody is there."""
    close = Wire.close

    async def close_slowly(self: Wire) -> None:
        await asyncio.sleep(LINGER_S)
        await close(self)

    monkeypatch.setattr(Wire, "close", close_slowly)
    followers = Followers(bus)

    async def read(name: str, comes_after: float, leaves_after: float) -> None:
        call = Call(name, 1, 1, is_streamed=True, is_kept=True)
        sequence = call.choices[0].sequence_id
        follower = followers.attach(call, ADDRESS)
        await asyncio.sleep(comes_after * LINGER_S)
        delta = Delta(sequence_id=sequence, offset=0, text="x", num_tokens=1)
        end = Finished(sequence_id=sequence, reason=FinishReason.LENGTH, num_tokens=1, num_prompt_tokens=1)
        bus.outbox.post(reply_stream(ADDRESS), Deltas(deltas=[delta], finished=[end]))
        await asyncio.sleep(leaves_after * LINGER_S)
        async with asyncio.timeout(3):
            while call.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (call.error, call.choices[0].received) == (None, 1)
        follower.detach(call)

    await read("cmpl-1", 0.8, 0.4)
    await asyncio.sleep(pause * LINGER_S)
    await read("cmpl-2", 4, 0)
    await followers.close()
