"""Reading as a consumer group: each entry goes to one of those who read, who has it until it is acknowledged."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ResponseError

from shared.streams.broker import LOST_CONNECTION, Wire, backoff
from shared.streams.entries import Delivery, Entry, M, Stream, order_of, raw_entries

if TYPE_CHECKING:
    from shared.streams.bus import Bus

log = logging.getLogger(__name__)

_RETIRE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
"""A consumer that is removed takes what it has pending with it; so only if it has nothing."""

RETIRED_MS = 60_000
BLOCK_MS = 5000
RECHECK_S = 2.0


class _Place:
    """Where a reader stands: in what is new, or again in what it was sent and may not have got.

    The broker may go on sending to a connection that broke, for as long as a read that it has from there blocks, and
    meanwhile send to its successor what comes later. So for that long what the reader has got does not tell what it has
    missed. sure: the entry up to which nothing is missing; got: entries after it that have come."""

    def __init__(self, looks_back: bool) -> None:
        self._looks_back = looks_back
        self._at = "0" if looks_back else ">"
        self._sure = self._newest = "0"
        self._got: set[bytes] = set()
        self._began_at = self._ended_at = self._doubts_until = float("-inf")  # of looking back
        if looks_back:
            self.lost(time.monotonic())  # an earlier process of our name may have left its reads behind

    def cursor(self, now: float) -> str:
        """What to read after."""
        if self._looks_back and self._at == ">" and now - self._ended_at > RECHECK_S:
            self._at = self._sure
        if self._at == self._sure:
            self._began_at = now
        return self._at

    def lost(self, now: float) -> None:
        """The connection has broken."""
        self._doubts_until = now + BLOCK_MS / 1000
        if self._looks_back:
            self._at = self._sure

    def take(self, entries: list[Entry]) -> list[Entry]:
        """Of what was read, what had not come yet."""
        is_new = self._at == ">"
        fresh = [entry for entry in entries if entry[1] not in self._got]
        if not self._looks_back:
            return fresh
        if entries:
            last = entries[-1][1].decode()
            self._newest = max(self._newest, last, key=order_of)
            self._got.update(entry[1] for entry in fresh)
            if not is_new:
                self._at = last
        elif not is_new:
            self._at = ">"
            self._ended_at = time.monotonic()
        if self._at == ">" and self._began_at > self._doubts_until:
            self._sure = self._newest
            self._got.clear()
        return fresh


class Groups:
    """The consumer groups of a bus."""

    def __init__(self, bus: "Bus") -> None:
        self._bus = bus

    async def read(
        self, stream: Stream[M], consumer: str, *, count: int = 64, pending_first: bool = False
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of new entries for `consumer` in the stream's group, for ever; each is to be acknowledged with
        `Outbox.ack`. pending_first: begin with what this consumer had read and not acknowledged, and look again from
        time to time for what it was sent and a broken connection swallowed, which others find by `claim`. Several
        consumers share a group's entries. Survives lost connections and a lost group."""
        key, group = self._bus.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        place = _Place(pending_first)
        attempt = 0
        wire = Wire(self._bus.client)
        try:
            while True:
                cursor = place.cursor(time.monotonic())
                blocking: tuple[str | int, ...] = ("BLOCK", BLOCK_MS) if cursor == ">" else ()
                try:
                    (reply,) = await wire.execute(
                        [("XREADGROUP", "GROUP", group, consumer, "COUNT", count, *blocking, "STREAMS", key, cursor)]
                    )
                    if isinstance(reply, LOST_CONNECTION):
                        raise reply
                    attempt = 0
                except LOST_CONNECTION as error:
                    log.warning("reading %s: %s; trying again", stream.name, error)
                    place.lost(time.monotonic())
                    attempt += 1
                    await backoff(attempt)
                    continue
                if isinstance(reply, Exception):
                    if not str(reply).startswith("NOGROUP"):
                        raise reply
                    await self.create(stream)
                    continue
                deliveries = self._bus.deliveries({key.encode(): stream}, place.take(raw_entries(reply)))
                if deliveries:
                    yield deliveries
        finally:
            await wire.close()

    async def claim(
        self, stream: Stream[M], consumer: str, *, min_idle_s: float, every_s: float = 2.0, max_deliveries: int = 5
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of entries that another consumer read and did not acknowledge for `min_idle_s`, taken over, for
        ever. One delivered more than `max_deliveries` times is a dead letter: it kills whoever takes it."""
        key, group = self._bus.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        cursor = b"0-0"
        while True:
            await asyncio.sleep(every_s)
            try:
                reply = await self._bus.client.xautoclaim(
                    key, group, consumer, int(min_idle_s * 1000), start_id=cursor, count=64
                )
                cursor = reply[0]
                claimed = [(key.encode(), entry_id, fields) for entry_id, fields in reply[1] if fields]
                if not claimed:
                    continue
                pending = await self._bus.client.xpending_range(
                    key, group, min=claimed[0][1], max=claimed[-1][1], count=64, consumername=consumer
                )
                tries: dict[Any, Any] = {row["message_id"]: row["times_delivered"] for row in pending}
            except LOST_CONNECTION as error:
                log.warning("claiming from %s: %s; trying again", stream.name, error)
                continue
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self.create(stream)
                continue
            alive = []
            for entry in claimed:
                if tries.get(entry[1], 1) > max_deliveries:
                    self._bus.bury(stream, entry[1], entry[2], f"delivered {tries[entry[1]]} times")
                else:
                    alive.append(entry)
            deliveries = self._bus.deliveries({key.encode(): stream}, alive)
            if deliveries:
                yield deliveries

    async def inherit(
        self, stream: Stream[M], consumer: str, *, every_s: float = 1.0
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of entries that any other consumer read and did not acknowledge, taken over at once, for ever: for a
        group of which only `consumer` is to read now. Others that have been idle for long are taken out of it."""
        key, group = self._bus.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        asked: list[Any] = []
        while True:
            claimed: list[Any] = []
            try:
                asked = asked or await self._held_by_others(key, group, consumer)
                if asked:
                    claimed = await self._bus.client.xclaim(key, group, consumer, 0, asked)
                    asked = []  # else it is asked for again: it may be ours, and the reply lost
            except LOST_CONNECTION as error:
                log.warning("inheriting from %s: %s", stream.name, error)
            except ResponseError as error:
                if "no such key" not in str(error) and not str(error).startswith("NOGROUP"):
                    raise
                asked = []
            entries = [(key.encode(), entry_id, fields) for entry_id, fields in claimed if fields]
            deliveries = self._bus.deliveries({key.encode(): stream}, entries)
            if deliveries:
                yield deliveries
            else:
                await asyncio.sleep(every_s)

    async def _held_by_others(self, key: str, group: str, consumer: str) -> list[Any]:
        """Ids of entries that one of the other consumers has pending. Retires those that have none for long."""
        for one in await self._bus.client.xinfo_consumers(key, group):
            name = one["name"].decode()
            if name == consumer:
                continue
            pending = await self._bus.client.xpending_range(key, group, "-", "+", 256, consumername=name)
            if pending:
                return [row["message_id"] for row in pending]
            if one["idle"] > RETIRED_MS:
                await cast(Any, self._bus.client).eval(_RETIRE, 1, key, group, name)
        return []

    async def renew(self, stream: Stream[Any], consumer: str, entry_ids: Sequence[str]) -> None:
        """Says that `consumer` still works on these entries that it read: they count as just delivered, so that
        `claim` elsewhere leaves them alone."""
        key, group = self._bus.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        if not entry_ids:
            return
        try:
            await self._bus.client.xclaim(key, group, consumer, 0, list(entry_ids), justid=True)
        except LOST_CONNECTION as error:
            log.warning("renewing in %s: %s", stream.name, error)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise

    async def create(self, stream: Stream[Any]) -> None:
        """The stream's group, from the stream's first entry on, unless it exists."""
        assert stream.group is not None
        try:
            await self._bus.client.xgroup_create(self._bus.key(stream.name), stream.group, id="0", mkstream=True)
        except LOST_CONNECTION:
            await backoff(1)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
