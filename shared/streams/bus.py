"""A deployment's streams on one broker: sending once, looking at a stream, following it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import redis.asyncio

from shared.errors import BusError
from shared.messages import PROTOCOL_VERSION
from shared.metrics import DEAD_LETTERS, ENTRIES_READ, ENTRIES_SENT
from shared.streams.broker import LOST_CONNECTION, Wire, backoff
from shared.streams.entries import (
    UNREADABLE,
    Delivery,
    Entry,
    Fields,
    M,
    Stream,
    delivery_of,
    encoder,
    family,
    fields_of,
    raw_entries,
)
from shared.streams.groups import Groups
from shared.streams.outbox import Outbox

log = logging.getLogger(__name__)

_SEND_ONCE = """
local held = KEYS[3] and redis.call('GET', KEYS[3]) or KEYS[2]
local value = redis.call('GET', held)
if value then
    for _, key in ipairs({held, KEYS[3]}) do
        if redis.call('PTTL', key) < tonumber(ARGV[2]) then redis.call('PEXPIRE', key, ARGV[2]) end
    end
    return value
end
if KEYS[3] then redis.call('SET', KEYS[3], KEYS[2], 'PX', ARGV[2]) end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local at = 3
while at <= #ARGV do
    local size = tonumber(ARGV[at])
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + size))
    at = at + size + 1
end
return nil
"""


class Bus:
    """A deployment's streams on one broker: where keys get their prefix."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.answered_at = time.monotonic()
        """When the broker last answered a read of `follow`."""
        self.outbox = Outbox(self)
        self.groups = Groups(self)

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    async def get(self, name: str) -> bytes | None:
        """A key's value. Raises LOST_CONNECTION."""
        value: Any = await self.client.get(self.key(name))
        return None if value is None else bytes(value)

    async def send_once(
        self,
        claim: str,
        name: str,
        value: bytes,
        for_s: float,
        stream: Stream[M],
        messages: Sequence[M],
        *,
        traceparent: str | None = None,
        deadline: float | None = None,
    ) -> bytes | None:
        """In one step that happens whole or not at all: keeps `value` under the key `name` and sends the messages,
        unless the key `claim` points to a key that is still there, whose value is returned then. Both keys last for
        `for_s`, also those that are there already. claim empty: nothing is looked for. Raises LOST_CONNECTION; asked
        again after that, with the same value, it sends nothing twice and returns None or another's value."""
        entries = [fields_of(message, traceparent, deadline) for message in messages]
        keys = [self.key(stream.name), self.key(name), *([self.key(claim)] if claim else [])]
        arguments = [value, int(for_s * 1000), *(part for fields in entries for part in (len(fields), *fields))]
        held: Any = await cast(Any, self.client).eval(_SEND_ONCE, len(keys), *keys, *arguments)
        if held is None:
            ENTRIES_SENT.labels(family(stream)).inc(len(messages))
        return None if held is None or held == value else bytes(held)

    async def newest_id(self, stream: Stream[Any]) -> str:
        """The id of the stream's last entry, "0" if it has none."""
        attempt = 0
        while True:
            try:
                newest: Any = await self.client.xrevrange(self.key(stream.name), count=1)
                return newest[0][0].decode() if newest else "0"
            except LOST_CONNECTION as error:
                log.warning("reading %s: %s; trying again", stream.name, error)
                attempt += 1
                await backoff(attempt)

    async def add(self, stream: Stream[M], message: M) -> str:
        """Writes one entry past the outbox and returns its id; it may stand there twice."""
        fields: dict[Any, Any] = {"v": PROTOCOL_VERSION, "m": encoder.encode(message)}
        attempt = 0
        while True:
            try:
                entry_id: Any = await self.client.xadd(self.key(stream.name), fields)
                ENTRIES_SENT.labels(family(stream)).inc()
                return str(entry_id, "ascii")
            except LOST_CONNECTION as error:
                log.warning("writing to %s: %s; trying again", stream.name, error)
                attempt += 1
                await backoff(attempt)

    async def read_log(
        self, stream: Stream[M], *, after: str = "", count: int = 512
    ) -> AsyncIterator[list[Delivery[M]]]:
        """All entries that the stream has now, or those after an id, in batches; it is only looked at."""
        key, last = self.key(stream.name), await self.newest_id(stream)
        start, attempt = f"({after}" if after else "-", 0
        while last != "0":
            try:
                entries: Any = await self.client.xrange(key, start, last, count)
                attempt = 0
            except LOST_CONNECTION as error:
                log.warning("reading %s: %s; trying again", stream.name, error)
                attempt += 1
                await backoff(attempt)
                continue
            if not entries:
                return
            start = "(" + entries[-1][0].decode()
            yield self.deliveries({key.encode(): stream}, [(key.encode(), *entry) for entry in entries])

    async def follow(
        self,
        cursors: Callable[[], Mapping[Stream[M], str]],
        *,
        count: int = 256,
        block_s: float = 1.0,
    ) -> AsyncGenerator[list[Delivery[M]], None]:
        """Batches of entries after the cursors, for a reader that owns its streams. `cursors` is asked before each
        read for the streams to read and the last id seen in each ("0" from the start, "$" is not for use: it
        loses entries between reads); the caller moves them on. Yields an empty batch when `block_s` passes
        without an entry, so that the caller can change its mind about the streams."""
        wire = Wire(self.client)
        attempt = 0
        try:
            while True:
                wanted = cursors()
                if not wanted:
                    await asyncio.sleep(block_s)
                    yield []
                    continue
                by_key = {self.key(stream.name).encode(): stream for stream in wanted}
                command: list[Any] = [
                    "XREAD",
                    "COUNT",
                    count,
                    "BLOCK",
                    int(block_s * 1000),
                    "STREAMS",
                    *by_key,
                    *wanted.values(),
                ]
                try:
                    (reply,) = await wire.execute([command])
                    self.answered_at = time.monotonic()
                    if isinstance(reply, LOST_CONNECTION):
                        raise reply
                    attempt = 0
                except LOST_CONNECTION as error:
                    log.warning("reading %s: %s; trying again", ", ".join(s.name for s in wanted), error)
                    attempt += 1
                    await backoff(attempt)
                    yield []
                    continue
                if isinstance(reply, Exception):
                    raise BusError(f"the broker refused to read {', '.join(s.name for s in wanted)}: {reply}")
                yield self.deliveries(by_key, raw_entries(reply))
        finally:
            await wire.close()

    def deliveries(self, by_key: Mapping[bytes, Stream[M]], entries: Sequence[Entry]) -> list[Delivery[M]]:
        """The messages of entries; those that are unreadable go to the dead letters."""
        deliveries = []
        for key, entry_id, fields in entries:
            stream = by_key[key]
            try:
                deliveries.append(delivery_of(stream, entry_id, fields))
            except UNREADABLE as error:
                self.bury(stream, entry_id, fields, repr(error))
        if deliveries:
            ENTRIES_READ.labels(family(deliveries[0].stream)).inc(len(deliveries))
        return deliveries

    def bury(self, stream: Stream[Any], entry_id: bytes, fields: Fields, why: str) -> None:
        log.error("dead letter in %s, entry %s: %s", stream.name, entry_id.decode(), why)
        DEAD_LETTERS.labels(family(stream)).inc()
        self.outbox.bury(stream, entry_id.decode(), fields, why)
