"""What is on its way to the broker."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from shared.errors import BusError
from shared.messages import PROTOCOL_VERSION
from shared.metrics import DEAD_LETTERS, ENTRIES_SENT, OUTBOX_ENTRIES
from shared.streams.broker import LOST_CONNECTION, Wire, backoff
from shared.streams.entries import Delivery, M, Stream, encoder, family, fields_of

if TYPE_CHECKING:
    from shared.streams.bus import Bus

log = logging.getLogger(__name__)

DEAD_LETTERS_KEPT = 1000

UNSURE_S = 4.0
"""A broker with `appendfsync everysec` may lose, when it dies, what it took in the last second, or two while its disk
is busy. So when a connection breaks, the messages of so long before are written again; receivers drop what they
have."""
LOOK_EVERY_S = 0.5

_Command = tuple[bytes | str | int, ...]

_FORGET = """
redis.call('DEL', KEYS[1])
if KEYS[2] and redis.call('GET', KEYS[2]) == KEYS[1] then redis.call('DEL', KEYS[2]) end
return 1
"""


class _Message(tuple[bytes | str | int, ...]):
    """A command that is to be written again if the broker may have lost it, and bears it."""


class Outbox:
    """Gathers commands and writes them in order, in as few round trips as the broker's pace allows.

    `run` must be running in a task. `post` and `ack` never wait; `flush` waits until all that was posted
    before it is written."""

    MAX_BATCH = 512

    def __init__(self, bus: "Bus") -> None:
        self._bus = bus
        self._commands: list[_Command] = []
        self._unsure: deque[tuple[float, list[_Command]]] = deque()  # (when written, messages)
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
        repeats: bool = True,
    ) -> None:
        """Queues one entry. repeats: if the stream does."""
        fields = fields_of(message, traceparent, deadline)
        ENTRIES_SENT.labels(family(stream)).inc()
        self._queue("XADD", self._bus.key(stream.name), "*", *fields, repeats=repeats and stream.repeats)

    def ack(self, delivery: Delivery[Any]) -> None:
        """Queues the acknowledgement of an entry read through a group, and its removal: a group's stream holds
        work that is open and nothing else."""
        key, group = self._bus.key(delivery.stream.name), delivery.stream.group
        assert group is not None
        self._queue("XACK", key, group, delivery.entry_id, repeats=True)
        self._queue("XDEL", key, delivery.entry_id, repeats=True)

    def quarantine(self, delivery: Delivery[Any], why: str) -> None:
        """Queues the move of an entry that was read through a group to the dead letters."""
        fields = {b"v": b"%d" % PROTOCOL_VERSION, b"m": encoder.encode(delivery.message)}
        DEAD_LETTERS.labels(family(delivery.stream)).inc()
        self.bury(delivery.stream, delivery.entry_id, fields, why)

    def trim(self, stream: Stream[Any], before: str) -> None:
        """Queues the removal of entries older than the entry id `before`."""
        self._queue("XTRIM", self._bus.key(stream.name), "MINID", "=", before)

    def delete(self, stream: Stream[Any], *, repeats: bool = False) -> None:
        """Queues the removal of a whole stream, whose only reader is gone. repeats: as what was posted to it does, and
        would make it anew."""
        self._queue("DEL", self._bus.key(stream.name), repeats=repeats)

    def expire(self, stream: Stream[Any], after_s: int) -> None:
        """Queues that the stream goes away by itself in `after_s` unless this is asked again: for a stream whose
        only reader may die."""
        self._queue("EXPIRE", self._bus.key(stream.name), after_s, repeats=True)

    def store(self, name: str, value: bytes, for_s: float) -> None:
        """Queues that a key holds a value for so long."""
        self._queue("SET", self._bus.key(name), value, "PX", int(for_s * 1000))

    def run_script(self, script: str, name: str, *arguments: str | int) -> None:
        """Queues a Lua script on one key, which has the prefix already. A script must bear to run twice."""
        self._queue("EVAL", script, 1, name, *arguments)

    def forget(self, name: str, pointer: str = "") -> None:
        """Queues the removal of a key, and of the key `pointer`, if any, unless that points to another by now."""
        keys = [self._bus.key(one) for one in (name, pointer) if one]
        self._queue("EVAL", _FORGET, len(keys), *keys, repeats=True)

    def bury(self, stream: Stream[Any], entry_id: str, fields: Mapping[bytes, bytes], why: str) -> None:
        """Queues an entry's move to the dead letters."""
        key = self._bus.key(stream.name)
        flat = [part for field in fields.items() for part in field]
        self._queue("XADD", f"{key}.dead", "MAXLEN", "~", DEAD_LETTERS_KEPT, "*", "why", why, "id", entry_id, *flat)
        if stream.group is not None:
            self._queue("XACK", key, stream.group, entry_id)
        self._queue("XDEL", key, entry_id)

    def _queue(self, *command: bytes | str | int, repeats: bool = False) -> None:
        self._commands.append(_Message(command) if repeats else command)
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
                await self._idle(wire)
                continue
            batch = self._commands[: self.MAX_BATCH]
            OUTBOX_ENTRIES.set(len(self._commands))
            try:
                results = await wire.execute(batch)
                attempt = 0
            except LOST_CONNECTION as error:
                log.warning("writing to the broker: %s; trying again", error)
                self._write_again()
                attempt += 1
                await backoff(attempt)
                continue
            written: list[_Command] = []
            again: list[_Command] = []
            for command, result in zip(batch, results, strict=True):
                if isinstance(result, LOST_CONNECTION):
                    again.append(command)  # the broker took nothing and may take it later
                elif isinstance(result, ResponseError) and str(result).startswith("NOGROUP"):
                    pass  # an acknowledgement of what a broker that lost its data no longer knows
                elif isinstance(result, Exception):
                    raise BusError(f"the broker refused {command[0]!r} {command[1]!r}: {result}") from result
                elif isinstance(command, _Message):
                    written.append(command)
            self._commands[: len(batch)] = again
            self._note_written(written)
            async with self._progress:
                self._written += len(batch) - len(again)
                self._progress.notify_all()
            if again:
                log.warning("the broker is not taking writes; %d commands wait", len(self._commands))
                attempt += 1
                await backoff(attempt)

    async def _idle(self, wire: Wire) -> None:
        """Returns when there is something to write, or some time later while the last messages may yet be lost."""
        if wire.is_broken and self._unsure:
            self._write_again()
            return
        if self._unsure and self._unsure[0][0] < time.monotonic() - UNSURE_S:
            try:
                await wire.execute([("PING",)])  # a machine that went down says nothing of it
            except LOST_CONNECTION as error:
                log.warning("the broker: %s", error)
                self._write_again()
                return
            self._forget_sure()
        self._wake.clear()
        if self._commands:
            return
        try:
            async with asyncio.timeout(LOOK_EVERY_S if self._unsure else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _note_written(self, messages: list[_Command]) -> None:
        if messages:
            self._unsure.append((time.monotonic(), messages))
        self._forget_sure()

    def _forget_sure(self) -> None:
        until = time.monotonic() - UNSURE_S
        while self._unsure and self._unsure[0][0] < until:
            self._unsure.popleft()

    def _write_again(self) -> None:
        """The broker may have died, and lost what it took last."""
        messages = [message for _, messages in self._unsure for message in messages]
        self._unsure.clear()
        self._commands[:0] = messages
        self._written -= len(messages)
