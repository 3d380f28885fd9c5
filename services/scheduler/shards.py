"""Reads from the token shards what was told of sequences that are to go on elsewhere."""

import asyncio
import logging

from services.scheduler.core.effects import ReadShards, Recovered
from services.scheduler.core.shard_log import ShardLog
from shared.messages import Ended, Fence
from shared.streams import Bus, shard_stream

log = logging.getLogger(__name__)


async def read_shards(bus: Bus, ask: ReadShards) -> Recovered:
    """Returns when all is read, however long the broker is away. What a worker writes behind its fence counts for
    nobody, so what stands before it is all there is."""
    outputs: dict[int, bytes] = {}
    ended: dict[int, Ended] = {}
    opened: set[int] = set()
    for shard, sequence_ids in ask.sequences.items():
        stream = shard_stream(shard)
        if ask.is_fenced:
            await bus.add(stream, Fence(worker=ask.worker, epoch=ask.epoch))
        shard_log = ShardLog(sequence_ids)
        async for deliveries in bus.read_log(stream):
            for delivery in deliveries:
                try:
                    shard_log.take(delivery.message)
                except ValueError as error:  # a dead letter, which its reader buries
                    log.warning("%s, entry %s: %s", stream.name, delivery.entry_id, error)
            await asyncio.sleep(0)  # a shard may be long
        outputs |= shard_log.outputs()
        ended |= shard_log.ended
        opened |= shard_log.opened
    return Recovered(ask.worker, ask.epoch, outputs, ended, frozenset(opened))
