"""What the shards say of sequences, read from a real broker."""

import asyncio

from services.scheduler.core.effects import ReadShards
from services.scheduler.core.shard_log import ShardLog
from services.scheduler.shards import read_shards
from shared.messages import Ended, Fence, FinishReason, Open, Output
from shared.packing import pack_i32, pack_i64, unpack_i32
from shared.streams import Bus, shard_stream


def an_open(*sequence_ids: int) -> Open:
    return Open(
        request_id="r", reply_to="g", sequence_ids=list(sequence_ids), num_prompt_tokens=1, prompt_tail=pack_i32([1])
    )


def an_output(*tokens: tuple[int, int, int], epoch: int = 1, ended: list[Ended] | None = None) -> Output:
    """(sequence, index, token) each."""
    ids, indices, token_ids = zip(*tokens, strict=True) if tokens else ((), (), ())
    return Output(
        sequence_ids=pack_i64(ids),
        indices=pack_i32(indices),
        token_ids=pack_i32(token_ids),
        ended=ended or [],
        worker="w",
        epoch=epoch,
    )


def test_tokens_count_once_and_in_order() -> None:
    log = ShardLog([7, 8])
    log.take(an_open(7))
    log.take(an_output((7, 0, 10), (9, 0, 99)))
    log.take(an_output((7, 2, 12)))
    log.take(an_output((7, 0, 10), (7, 1, 11)))
    log.take(an_output((7, 4, 14)))  # the one before it never came
    assert [list(unpack_i32(log.outputs()[one])) for one in (7, 8)] == [[10, 11, 12], []]
    assert log.opened == {7}


def test_what_comes_behind_a_fence_counts_for_nothing() -> None:
    log = ShardLog([7])
    log.take(an_output((7, 0, 10)))
    log.take(Fence(worker="w", epoch=1))
    end = Ended(sequence_id=7, reason=FinishReason.LENGTH, num_tokens=2)
    log.take(an_output((7, 1, 66), ended=[end]))
    assert not log.ended
    log.take(an_output((7, 1, 11), epoch=2, ended=[end]))
    assert list(unpack_i32(log.outputs()[7])) == [10, 11]
    assert log.ended == {7: end}


async def test_every_shard_is_read_to_its_end_and_fenced(bus: Bus) -> None:
    for index in range(1500):  # more than one reading brings
        bus.outbox.post(shard_stream(1), an_output((7, index, index)))
    bus.outbox.post(shard_stream(1), an_open(7))
    await bus.outbox.flush()
    ask = ReadShards("w", 1, {1: [7], 2: [8]}, is_fenced=True)
    recovered = await asyncio.wait_for(read_shards(bus, ask), 10)
    assert list(unpack_i32(recovered.outputs[7])) == list(range(1500))
    assert recovered.opened == {7}
    assert (recovered.worker, recovered.epoch, recovered.outputs[8]) == ("w", 1, b"")
    for shard in (1, 2):
        last = [delivery.message async for batch in bus.read_log(shard_stream(shard)) for delivery in batch][-1]
        assert last == Fence(worker="w", epoch=1)


async def test_nothing_is_written_unless_asked(bus: Bus) -> None:
    recovered = await read_shards(bus, ReadShards("", 3, {1: [7]}, is_fenced=False))
    assert recovered.outputs == {7: b""}
    assert [batch async for batch in bus.read_log(shard_stream(1))] == []
