"""The only module that speaks Redis streams: names, encoding, sending, reading, acknowledging.

A stream pairs a name with the union of messages it carries. An entry has the fields `m` (msgpack body), `v`
(protocol version), and if set `t` (W3C traceparent) and `d` (deadline, unix seconds). An entry that does not
decode goes to `<stream>.dead` and is acknowledged; left pending, it would come back for ever.

Sending is synchronous (`Outbox.post`) and one task writes what has gathered in one round trip, in order: so a
step's messages to several addressees cost one pipeline, and nothing on the hot path awaits the broker.
Delivery is at least once: a connection that breaks during a write makes the batch go again, and receivers
drop what they have (by sequence id and index, or by plan number).
"""

import asyncio
import logging
import math
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import hiredis
import msgspec
import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from shared import sentinel
from shared.errors import BusError, ConfigError
from shared.messages import (
    PROTOCOL_VERSION,
    Abort,
    Deltas,
    Died,
    Fence,
    Generate,
    Goodbye,
    Hello,
    Holdings,
    Open,
    Output,
    Plan,
    Profile,
    Progress,
    Rejected,
    Tokenize,
)
from shared.metrics import DEAD_LETTERS, ENTRIES_READ, ENTRIES_SENT, OUTBOX_ENTRIES

log = logging.getLogger(__name__)

M = TypeVar("M", bound=msgspec.Struct)

DEAD_LETTERS_KEPT = 1000
CONNECT_S = 5
LOST_CONNECTION = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, OSError)
"""What may pass: the broker is away, or takes no writes now."""

_encoder = msgspec.msgpack.Encoder()
_pack: Callable[[tuple[bytes | str | int, ...]], bytes] = cast(Any, hiredis).pack_command


class Stream(Generic[M]):
    """A stream's name (without the deployment's prefix) and what it carries. `M` is the union's alias."""

    def __init__(self, name: str, union: Any, group: str | None = None) -> None:
        self.name = name
        self.group = group
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)

    def decode(self, body: bytes) -> M:
        """Raises msgspec.DecodeError on bytes that are none of the union's messages."""
        return self._decoder.decode(body)


ToScheduler = Generate | Abort
FromWorker = Hello | Progress | Holdings | Goodbye | Died
ToShard = Open | Output | Fence
ToGateway = Deltas | Rejected

TOKENIZE: Stream[Tokenize] = Stream("tokenize", Tokenize, group="tokenizers")
SCHEDULE: Stream[ToScheduler] = Stream("schedule", ToScheduler, group="schedulers")
EVENTS: Stream[FromWorker] = Stream("events", FromWorker)


def plan_stream(worker: str) -> Stream[Plan]:
    return Stream(f"plan:{worker}", Plan)


def control_stream(worker: str) -> Stream[Profile]:
    """What an operator asks of a worker beside the scheduler's plans; read from its end, for it is kept briefly."""
    return Stream(f"control:{worker}", Profile)


def shard_stream(shard: int) -> Stream[ToShard]:
    return Stream(f"tokens:{shard}", ToShard)


def reply_stream(gateway: str) -> Stream[ToGateway]:
    return Stream(f"reply:{gateway}", ToGateway)


@dataclass(frozen=True, slots=True)
class Delivery(Generic[M]):
    """A message as read. entry_id: its id in the stream, `ms-n`."""

    stream: Stream[M]
    entry_id: str
    message: M
    traceparent: str | None = None
    deadline: float | None = None


def connect(url: str) -> "redis.asyncio.Redis":
    """A client for `url`. Blocking reads need no socket timeout (with one, redis-py on Python 3.11 can swallow
    a cancellation); a dead peer shows by TCP keepalive, or by its sentinels. Raises ConfigError for a malformed URL."""
    options: dict[str, Any] = {"socket_timeout": None, "decode_responses": False}
    if not url.startswith("unix:"):
        options |= {
            "socket_keepalive": True,
            "socket_keepalive_options": _keepalive(),
            "socket_connect_timeout": CONNECT_S,
        }
    try:
        if sentinel.is_sentinel_url(url):
            client = sentinel.connect(url, options)
        else:
            client = redis.asyncio.Redis.from_url(url, **options)
        pool: Any = client.connection_pool
        pool.make_connection()  # with an option that there is not, it cannot be made
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--redis-url (SAPWOOD_REDIS_URL): {error}") from None
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        file = pool.connection_kwargs.get(option)
        if file and not Path(file).is_file():
            raise ConfigError(f"--redis-url (SAPWOOD_REDIS_URL): {option}: there is no file {file}")
    return client


def _keepalive() -> dict[int, int]:
    """Socket options by which a host that has vanished shows within half a minute, where the system has them."""
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


async def backoff(attempt: int) -> None:
    """Waits 50 ms, doubling up to 2 s."""
    await asyncio.sleep(min(2.0, 0.05 * 2 ** min(attempt, 10)))


async def wait_for_broker(client: "redis.asyncio.Redis", patience_s: float = 60.0) -> None:
    """Returns once the broker answers. Raises BusError after `patience_s`, or at once if it refuses us or would
    evict our streams under memory pressure (maxmemory without noeviction)."""
    give_up = time.monotonic() + patience_s
    attempt = 0
    while True:
        try:
            memory = await client.info("memory")
            break
        except (AuthenticationError, AuthorizationError) as error:
            raise BusError(f"the broker refuses us: {error}") from None
        except LOST_CONNECTION as error:
            if time.monotonic() > give_up:
                raise BusError(f"the broker does not answer: {error}") from None
            attempt += 1
            await backoff(attempt)
        except RedisError as error:
            raise BusError(f"the broker refuses us: {error}") from None
    if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
        raise BusError(
            f"the broker has maxmemory with policy {memory.get('maxmemory_policy')}, which drops streams in use; "
            "set maxmemory-policy noeviction"
        )


class Wire:
    """A connection of one task's own, without the client's pool, retries, reply callbacks and its packing in Python:
    a third to a half of the CPU time per round trip, on the paths that run once a step."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        pool: Any = client.connection_pool
        self._connection: Any = pool.make_connection()

    async def execute(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        """The raw replies, an error reply as the exception. Raises LOST_CONNECTION; connects again when next asked."""
        connection = self._connection
        if connection.is_connected and connection._writer.transport.is_closing():
            await connection.disconnect()  # it broke while nobody read; uvloop would answer a write with a RuntimeError
        if not connection.is_connected:
            await connection.connect()
        await connection.send_packed_command(b"".join([_pack(tuple(one)) for one in commands]))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        return replies

    async def close(self) -> None:
        await self._connection.disconnect()


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


_RETIRE = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
"""
"""A consumer that is removed takes what it has pending with it; so only if it has nothing."""

RETIRED_MS = 60_000
BLOCK_MS = 5000
RECHECK_S = 2.0


class Bus:
    """A deployment's streams on one broker: where keys get their prefix."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.answered_at = time.monotonic()
        """When the broker last answered a read of `follow`."""
        self.outbox = Outbox(self)

    def key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    async def read_group(
        self, stream: Stream[M], consumer: str, *, count: int = 64, pending_first: bool = False
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of new entries for `consumer` in the stream's group, for ever; each is to be acknowledged with
        `Outbox.ack`. pending_first: begin with what this consumer had read and not acknowledged, and look again from
        time to time for what it was sent and a broken connection swallowed, which others find by `claim_group`. Several
        consumers share a group's entries. Survives lost connections and a lost group."""
        key, group = self.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        cursor = newest = "0" if pending_first else ">"
        checked_at = time.monotonic()
        attempt = 0
        wire = Wire(self.client)
        try:
            while True:
                if cursor == ">" != newest and time.monotonic() - checked_at > RECHECK_S:
                    cursor = newest
                blocking: tuple[str | int, ...] = ("BLOCK", BLOCK_MS) if cursor == ">" else ()
                try:
                    (reply,) = await wire.execute(
                        [("XREADGROUP", "GROUP", group, consumer, "COUNT", count, *blocking, "STREAMS", key, cursor)]
                    )
                    attempt = 0
                    if isinstance(reply, LOST_CONNECTION):
                        raise reply
                except LOST_CONNECTION as error:
                    log.warning("reading %s: %s; trying again", stream.name, error)
                    attempt += 1
                    await backoff(attempt)
                    continue
                if isinstance(reply, Exception):
                    if not str(reply).startswith(("NOGROUP", "UNBLOCKED")):
                        raise reply
                    await self.create_group(stream)
                    continue
                entries = _raw_entries(reply)
                if entries and pending_first:
                    newest = entries[-1][1].decode()
                if cursor != ">":
                    checked_at = time.monotonic()
                    cursor = newest if entries else ">"
                deliveries = self._deliveries({key.encode(): stream}, entries)
                if deliveries:
                    yield deliveries
        finally:
            await wire.close()

    async def claim_group(
        self, stream: Stream[M], consumer: str, *, min_idle_s: float, every_s: float = 2.0, max_deliveries: int = 5
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of entries that another consumer read and did not acknowledge for `min_idle_s`, taken over, for
        ever. One delivered more than `max_deliveries` times is a dead letter: it kills whoever takes it."""
        key, group = self.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        cursor = b"0-0"
        while True:
            await asyncio.sleep(every_s)
            try:
                reply = await self.client.xautoclaim(
                    key, group, consumer, int(min_idle_s * 1000), start_id=cursor, count=64
                )
                cursor = reply[0]
                claimed = [(key.encode(), entry_id, fields) for entry_id, fields in reply[1] if fields]
                if not claimed:
                    continue
                pending = await self.client.xpending_range(
                    key, group, min=claimed[0][1], max=claimed[-1][1], count=64, consumername=consumer
                )
                tries: dict[Any, Any] = {row["message_id"]: row["times_delivered"] for row in pending}
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self.create_group(stream)
                continue
            except LOST_CONNECTION as error:
                log.warning("claiming from %s: %s; trying again", stream.name, error)
                continue
            alive = []
            for entry in claimed:
                if tries.get(entry[1], 1) > max_deliveries:
                    self._bury(stream, entry[1], entry[2], f"delivered {tries[entry[1]]} times")
                else:
                    alive.append(entry)
            deliveries = self._deliveries({key.encode(): stream}, alive)
            if deliveries:
                yield deliveries

    async def inherit_group(
        self, stream: Stream[M], consumer: str, *, every_s: float = 1.0
    ) -> AsyncIterator[list[Delivery[M]]]:
        """Batches of entries that any other consumer read and did not acknowledge, taken over at once, for ever: for a
        group of which only `consumer` is to read now. Others that have been idle for long are taken out of it."""
        key, group = self.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        asked: list[Any] = []
        while True:
            claimed: list[Any] = []
            try:
                asked = asked or await self._held_by_others(key, group, consumer)
                if asked:
                    claimed = await self.client.xclaim(key, group, consumer, 0, asked)
                    asked = []  # else it is asked for again: it may be ours, and the reply lost
            except ResponseError as error:
                if "no such key" not in str(error) and not str(error).startswith("NOGROUP"):
                    raise
                asked = []
            except LOST_CONNECTION as error:
                log.warning("inheriting from %s: %s", stream.name, error)
            entries = [(key.encode(), entry_id, fields) for entry_id, fields in claimed if fields]
            deliveries = self._deliveries({key.encode(): stream}, entries)
            if deliveries:
                yield deliveries
            else:
                await asyncio.sleep(every_s)

    async def _held_by_others(self, key: str, group: str, consumer: str) -> list[Any]:
        """Ids of entries that one of the other consumers has pending. Retires those that have none for long."""
        for one in await self.client.xinfo_consumers(key, group):
            name = one["name"].decode()
            if name == consumer:
                continue
            pending = await self.client.xpending_range(key, group, "-", "+", 256, consumername=name)
            if pending:
                return [row["message_id"] for row in pending]
            if one["idle"] > RETIRED_MS:
                await cast(Any, self.client).eval(_RETIRE, 1, key, group, name)
        return []

    async def renew_group(self, stream: Stream[Any], consumer: str, entry_ids: Sequence[str]) -> None:
        """Says that `consumer` still works on these entries that it read: they count as just delivered, so that
        `claim_group` elsewhere leaves them alone."""
        key, group = self.key(stream.name), stream.group
        assert group is not None, f"{stream.name} has no consumer group"
        if not entry_ids:
            return
        try:
            await self.client.xclaim(key, group, consumer, 0, list(entry_ids), justid=True)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
        except LOST_CONNECTION as error:
            log.warning("renewing in %s: %s", stream.name, error)

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
        entries = [_fields_of(message, traceparent, deadline) for message in messages]
        keys = [self.key(stream.name), self.key(name), *([self.key(claim)] if claim else [])]
        arguments = [value, int(for_s * 1000), *(part for fields in entries for part in (len(fields), *fields))]
        held: Any = await cast(Any, self.client).eval(_SEND_ONCE, len(keys), *keys, *arguments)
        if held is None:
            ENTRIES_SENT.labels(_family(stream)).inc(len(messages))
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
        fields: dict[Any, Any] = {"v": PROTOCOL_VERSION, "m": _encoder.encode(message)}
        attempt = 0
        while True:
            try:
                entry_id: Any = await self.client.xadd(self.key(stream.name), fields)
                ENTRIES_SENT.labels(_family(stream)).inc()
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
            yield self._deliveries({key.encode(): stream}, [(key.encode(), *entry) for entry in entries])

    async def create_group(self, stream: Stream[Any]) -> None:
        """The stream's group, from the stream's first entry on, unless it exists."""
        assert stream.group is not None
        try:
            await self.client.xgroup_create(self.key(stream.name), stream.group, id="0", mkstream=True)
        except LOST_CONNECTION:
            await backoff(1)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

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
                    attempt = 0
                except LOST_CONNECTION as error:
                    log.warning("reading %s: %s; trying again", ", ".join(s.name for s in wanted), error)
                    attempt += 1
                    await backoff(attempt)
                    yield []
                    continue
                if isinstance(reply, Exception):
                    raise BusError(f"the broker refused to read {', '.join(s.name for s in wanted)}: {reply}")
                yield self._deliveries(by_key, _raw_entries(reply))
        finally:
            await wire.close()

    def _deliveries(
        self, by_key: Mapping[bytes, Stream[M]], entries: list[tuple[bytes, bytes, dict[bytes, bytes]]]
    ) -> list[Delivery[M]]:
        deliveries = []
        for key, entry_id, fields in entries:
            stream = by_key[key]
            try:
                if int(fields[b"v"]) != PROTOCOL_VERSION:
                    raise ValueError(f"protocol version {fields[b'v']!r}, this process speaks {PROTOCOL_VERSION}")
                deadline = float(fields[b"d"]) if fields.get(b"d") else None
                if deadline is not None and not math.isfinite(deadline):
                    raise ValueError(f"deadline {deadline}")
                trace = fields.get(b"t")
                delivery = Delivery(
                    stream,
                    entry_id.decode(),
                    stream.decode(fields[b"m"]),
                    trace.decode("ascii") if trace else None,
                    deadline,
                )
            except (KeyError, ValueError, msgspec.DecodeError, RecursionError) as error:
                self._bury(stream, entry_id, fields, repr(error))
                continue
            deliveries.append(delivery)
        if deliveries:
            ENTRIES_READ.labels(_family(deliveries[0].stream)).inc(len(deliveries))
        return deliveries

    def _bury(self, stream: Stream[Any], entry_id: bytes, fields: Mapping[bytes, bytes], why: str) -> None:
        log.error("dead letter in %s, entry %s: %s", stream.name, entry_id.decode(), why)
        DEAD_LETTERS.labels(_family(stream)).inc()
        self.outbox.bury(stream, entry_id.decode(), fields, why)


class Outbox:
    """Gathers commands and writes them in order, in as few round trips as the broker's pace allows.

    `run` must be running in a task. `post` and `ack` never wait; `flush` waits until all that was posted
    before it is written."""

    MAX_BATCH = 512

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._commands: list[tuple[bytes | str | int, ...]] = []
        self._wake = asyncio.Event()
        self._posted = 0
        self._written = 0
        self._progress = asyncio.Condition()

    def post(
        self,
        stream: Stream[M],
        message: M,
        *,
        traceparent: str | None = None,
        deadline: float | None = None,
    ) -> None:
        """Queues one entry."""
        fields = _fields_of(message, traceparent, deadline)
        ENTRIES_SENT.labels(_family(stream)).inc()
        self._queue("XADD", self._bus.key(stream.name), "*", *fields)

    def ack(self, delivery: Delivery[Any]) -> None:
        """Queues the acknowledgement of an entry read through a group, and its removal: a group's stream holds
        work that is open and nothing else."""
        key, group = self._bus.key(delivery.stream.name), delivery.stream.group
        assert group is not None
        self._queue("XACK", key, group, delivery.entry_id)
        self._queue("XDEL", key, delivery.entry_id)

    def quarantine(self, delivery: Delivery[Any], why: str) -> None:
        """Queues the move of an entry that was read through a group to the dead letters."""
        fields = {b"v": b"%d" % PROTOCOL_VERSION, b"m": _encoder.encode(delivery.message)}
        DEAD_LETTERS.labels(_family(delivery.stream)).inc()
        self.bury(delivery.stream, delivery.entry_id, fields, why)

    def trim(self, stream: Stream[Any], before: str) -> None:
        """Queues the removal of entries older than the entry id `before`."""
        self._queue("XTRIM", self._bus.key(stream.name), "MINID", "=", before)

    def delete(self, stream: Stream[Any]) -> None:
        """Queues the removal of a whole stream, whose only reader is gone."""
        self._queue("DEL", self._bus.key(stream.name))

    def expire(self, stream: Stream[Any], after_s: int) -> None:
        """Queues that the stream goes away by itself in `after_s` unless this is asked again: for a stream whose
        only reader may die."""
        self._queue("EXPIRE", self._bus.key(stream.name), after_s)

    def store(self, name: str, value: bytes, for_s: float) -> None:
        """Queues that a key holds a value for so long."""
        self._queue("SET", self._bus.key(name), value, "PX", int(for_s * 1000))

    def run_script(self, script: str, name: str, *arguments: str | int) -> None:
        """Queues a Lua script on one key, which has the prefix already. A script must bear to run twice."""
        self._queue("EVAL", script, 1, name, *arguments)

    def forget(self, *names: str) -> None:
        """Queues the removal of keys."""
        self._queue("DEL", *map(self._bus.key, names))

    def bury(self, stream: Stream[Any], entry_id: str, fields: Mapping[bytes, bytes], why: str) -> None:
        """Queues an entry's move to the dead letters."""
        key = self._bus.key(stream.name)
        flat = [part for field in fields.items() for part in field]
        self._queue("XADD", f"{key}.dead", "MAXLEN", "~", DEAD_LETTERS_KEPT, "*", "why", why, "id", entry_id, *flat)
        if stream.group is not None:
            self._queue("XACK", key, stream.group, entry_id)
        self._queue("XDEL", key, entry_id)

    def _queue(self, *command: bytes | str | int) -> None:
        self._commands.append(command)
        self._posted += 1
        self._wake.set()

    @property
    def backlog(self) -> int:
        """Commands not yet written."""
        return len(self._commands)

    async def flush(self) -> None:
        target = self._posted
        async with self._progress:
            await self._progress.wait_for(lambda: self._written >= target)

    async def run(self) -> None:
        wire = Wire(self._bus.client)
        try:
            await self._write_for_ever(wire)
        finally:
            await wire.close()

    async def _write_for_ever(self, wire: Wire) -> None:
        attempt = 0
        while True:
            if not self._commands:
                self._wake.clear()
                await self._wake.wait()
            batch = self._commands[: self.MAX_BATCH]
            OUTBOX_ENTRIES.set(len(self._commands))
            try:
                results = await wire.execute(batch)
                attempt = 0
            except LOST_CONNECTION as error:
                log.warning("writing to the broker: %s; trying again", error)
                attempt += 1
                await backoff(attempt)
                continue
            again = []
            for command, result in zip(batch, results, strict=True):
                if isinstance(result, BusyLoadingError | ReadOnlyError) or str(result).startswith("OOM"):
                    again.append(command)  # the broker took nothing and may take it later
                elif isinstance(result, ResponseError) and str(result).startswith("NOGROUP"):
                    pass  # an acknowledgement of what a broker that lost its data no longer knows
                elif isinstance(result, Exception):
                    raise BusError(f"the broker refused {command[0]!r} {command[1]!r}: {result}") from result
            self._commands[: len(batch)] = again
            async with self._progress:
                self._written += len(batch) - len(again)
                self._progress.notify_all()
            if again:
                log.warning("the broker is not taking writes; %d commands wait", len(self._commands))
                attempt += 1
                await backoff(attempt)


def _fields_of(message: msgspec.Struct, traceparent: str | None, deadline: float | None) -> list[bytes | str | int]:
    """An entry's fields and their values in turn."""
    fields: list[bytes | str | int] = ["v", PROTOCOL_VERSION, "m", _encoder.encode(message)]
    if traceparent is not None:
        fields += ["t", traceparent]
    if deadline is not None:
        fields += ["d", repr(deadline)]
    return fields


def _raw_entries(reply: Any) -> list[tuple[bytes, bytes, dict[bytes, bytes]]]:
    """(key, entry id, fields) in order, from the reply of XREAD or XREADGROUP as it came over the wire: RESP2's list or
    RESP3's map, with flat fields."""
    if not reply:
        return []
    return [
        (key, entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))
        for key, entries in (reply.items() if isinstance(reply, dict) else reply)
        for entry_id, fields in entries
        if fields
    ]


def _family(stream: Stream[Any]) -> str:
    """The stream's name without its addressee: a metric label of few values."""
    return stream.name.partition(":")[0]
