"""Reads the token shards that this process owns and tells the gateways what came of it."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Set

from prometheus_client import Counter, Gauge

from services.tokenizer.decode import Detokenizer
from services.tokenizer.sequence import SequenceOutput
from services.tokenizer.shard_output import GATEWAY_GONE_S, Replies, ShardOutput
from shared import telemetry
from shared.messages import HEARTBEAT_LAPSE_S, Abort, Fence, Open, Output, sequence_id
from shared.service import Context
from shared.streams import LOST_CONNECTION, SCHEDULE, Delivery, Stream, ToShard, reply_stream, shard_stream
from shared.telemetry import DECODE, DETOKENIZE, stage_span_id

log = logging.getLogger(__name__)

BLOCK_S = 0.25
"""A shard that was just taken is first read after at most so long."""

SWEEP_S = 1.0

FAREWELL_S = 600
"""A dead gateway's stream goes away by itself so long after the last word to it."""

TOKENS_BETWEEN_PAUSES = 8192
"""Tokens taken before other tasks get a turn."""

OUTPUT_TOKENS = Counter("sapwood_tokenizer_output_tokens", "Output tokens read from the shards")
IN_FLIGHT = Gauge("sapwood_tokenizer_sequences", "Sequences in flight in the shards that this process reads")


class Outflow:
    """The detokenising half of a tokenizer process."""

    def __init__(self, context: Context, detokenizer: Detokenizer, token_shards: int) -> None:
        self._context = context
        self._bus = context.bus
        self._detokenizer = detokenizer
        self._streams = [shard_stream(shard) for shard in range(token_shards)]
        self._owned: dict[Stream[ToShard], ShardOutput] = {}
        self._asked: dict[Stream[ToShard], ShardOutput] = {}  # what the read under way is for
        self._trimmed: dict[Stream[ToShard], str] = {}
        self._gateways: dict[str, float] = {}  # address -> when last heard of
        self._looked_at = time.time()

    def gain(self, shard: int) -> None:
        """Starts to read a shard, from its beginning: what another owner knew is in the log."""
        self._owned[self._streams[shard]] = ShardOutput(self._detokenizer)

    def lose(self, shard: int) -> None:
        """Forgets a shard that another process reads from now on."""
        self._owned.pop(self._streams[shard], None)
        self._trimmed.pop(self._streams[shard], None)

    def see_gateways(self, addresses: Iterable[str], now: float) -> None:
        """Which gateways live. After a time without a look (no broker, a process stopped) none is older than before."""
        gap = now - self._looked_at
        self._looked_at = now
        if gap > HEARTBEAT_LAPSE_S:
            self._gateways = {address: seen + gap for address, seen in self._gateways.items()}
        self._gateways.update(dict.fromkeys(addresses, now))
        for gateway, seen in list(self._gateways.items()):
            if now - seen > 2 * GATEWAY_GONE_S:
                del self._gateways[gateway]

    async def run(self) -> None:
        """Reads and replies until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            async for batch in self._bus.follow(self._cursors, block_s=BLOCK_S):
                if batch:
                    await self._take(batch)

    def _cursors(self) -> Mapping[Stream[ToShard], str]:
        self._asked = dict(self._owned)
        return {stream: output.cursor for stream, output in self._asked.items()}

    async def _take(self, batch: list[Delivery[ToShard]]) -> None:
        tokens = 0
        for delivery in batch:
            output = self._owned.get(delivery.stream)
            if output is None or output is not self._asked[delivery.stream]:
                continue  # lost, or lost and taken again, since the read began
            output.cursor = delivery.entry_id
            tokens += self._apply(output, delivery)
            if tokens >= TOKENS_BETWEEN_PAUSES:
                OUTPUT_TOKENS.inc(tokens)
                tokens = 0
                self._reply()
                await asyncio.sleep(0)
        OUTPUT_TOKENS.inc(tokens)
        self._reply()

    def _apply(self, output: ShardOutput, delivery: Delivery[ToShard]) -> int:
        """Returns the number of tokens."""
        now = time.time()
        try:
            match delivery.message:
                case Open() as message:
                    output.open(message, delivery.entry_id, now, delivery.traceparent, delivery.deadline)
                    return 0
                case Output() as message:
                    return output.output(message, now)
                case Fence() as message:
                    output.fence(message)
                    return 0
        except ValueError as error:
            log.error("dead letter in %s, entry %s: %s", delivery.stream.name, delivery.entry_id, error)
            self._bus.outbox.bury(delivery.stream, delivery.entry_id, {}, str(error))
            return 0

    def _reply(self) -> None:
        replies = Replies()
        for output in self._owned.values():
            output.take(replies)
        for gateway, deltas in replies.by_gateway().items():
            self._bus.outbox.post(reply_stream(gateway), deltas)
        if replies.aborts:
            self._bus.outbox.post(SCHEDULE, Abort(sequence_ids=replies.aborts))
        for sequence in replies.over:
            self._record(sequence, time.time())

    async def _sweep(self) -> None:
        """Trims what nobody needs and gives up what nobody will end."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._cancel_orphans()
            for stream, output in self._owned.items():
                if late := output.late(time.time()):
                    log.warning("%d sequences of %s given up", len(late), stream.name)
                    output.cancel(late, "the answer stopped coming")
                if torn := output.torn(time.time()):
                    log.error("%d sequences of %s have lost a part of their output", len(torn), stream.name)
                    output.cancel(torn, "a part of the answer was lost by the broker")
            self._reply()
            for stream, output in self._owned.items():
                needed = output.oldest_needed()
                if needed != "0" and self._trimmed.get(stream) != needed:
                    self._bus.outbox.trim(stream, needed)
                    self._trimmed[stream] = needed
            IN_FLIGHT.set(sum(map(len, self._owned.values())))

    async def _cancel_orphans(self) -> None:
        """Cancels the sequences of dead gateways, but for those that clients may come back for to another one."""
        orphans = [
            (output, sequence)
            for output in self._owned.values()
            for sequence in output.orphans(min(time.time(), self._looked_at + HEARTBEAT_LAPSE_S), self._gateways)
        ]
        if not orphans:
            return
        wanted = await self._that_exist({sequence.open.kept_while for _, sequence in orphans} - {""})
        addresses = set()
        for output, sequence in orphans:
            if sequence.open.kept_while not in wanted and output.is_in_flight(sequence):
                output.cancel([sequence], "the gateway of this request is gone")
                addresses.add(sequence.open.reply_to)
        if addresses:
            log.warning("gateways %s are gone: their requests are cancelled", ", ".join(sorted(addresses)))
            self._reply()
            for address in addresses:  # the farewell may have made the stream anew
                self._bus.outbox.expire(reply_stream(address), FAREWELL_S)

    async def _that_exist(self, keys: Set[str]) -> Set[str]:
        """Those of the keys that are in the broker; all of them while it does not answer."""
        if not keys:
            return keys
        names = sorted(keys)
        pipeline = self._bus.client.pipeline(transaction=False)
        for name in names:
            pipeline.exists(self._bus.key(name))
        try:
            return {name for name, there in zip(names, await pipeline.execute(), strict=True) if there}
        except LOST_CONNECTION as error:
            log.warning("asking whose requests are wanted: %s", error)
            return keys

    def _record(self, sequence: SequenceOutput, now: float) -> None:
        trace, finished = telemetry.sampled(sequence.traceparent), sequence.finished
        if trace is None or finished is None:
            return
        first_id = sequence_id(sequence.open.request_id, 0)
        has_tokens = sequence.first_token_at is not None
        telemetry.tracing().record(
            DETOKENIZE,
            trace,
            stage_span_id(sequence.sequence_id, DETOKENIZE),
            stage_span_id(sequence.sequence_id, DECODE, sequence.attempt)
            if has_tokens
            else stage_span_id(first_id, telemetry.TOKENIZE),
            sequence.first_token_at or now,
            now,
            {
                telemetry.REQUEST_ID: sequence.open.request_id,
                telemetry.CHOICE: sequence.open.sequence_ids.index(sequence.sequence_id),
                telemetry.INPUT_TOKENS: finished.num_prompt_tokens,
                telemetry.OUTPUT_TOKENS: finished.num_tokens,
                telemetry.CACHED_TOKENS: finished.cached_tokens,
                telemetry.RESPONSE_FINISH_REASONS: [finished.reason.value],
            },
            error=finished.error.message if finished.error else None,
        )
