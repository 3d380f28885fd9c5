"""Keeps answers that clients may come back for: begun once, readable at every gateway, for as long as they are wanted.

A record in the broker, `answer:ID`, stands for an answer. While the answer is being made its gateway and those of its
readers renew the record; without any it lapses after a grace period, and with it the answer: the gateway, or if that is
dead the tokenizer, cancels the request. Once the answer is over the record holds all of it, for some minutes. A key
`idempotency:HASH` points to the record of the request that came with that Idempotency-Key.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from services.gateway import metrics, record
from services.gateway.call import Call
from services.gateway.follower import Follower, Followers
from services.gateway.inbox import Inbox
from services.gateway.record import Record
from shared.errors import Unavailable
from shared.messages import Abort, Tokenize
from shared.streams import LOST_CONNECTION, SCHEDULE, TOKENIZE, Bus, backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

_RENEW = """
local gone = {}
for place, key in ipairs(KEYS) do
    local left = redis.call('PTTL', key)
    if left == -2 then gone[#gone + 1] = place
    elseif left < tonumber(ARGV[1]) then redis.call('PEXPIRE', key, ARGV[1]) end
end
return gone
"""

RENEWALS = 6
"""Renewals in a grace period: so many in a row may fail."""


def record_name(answer_id: str) -> str:
    return f"answer:{answer_id}"


def claim_name(owner: str, idempotency_key: str) -> str:
    """Keys of different owners never meet."""
    return "idempotency:" + hashlib.sha256(f"{owner}\0{idempotency_key}".encode()).hexdigest()[:40]


def digest_of(path: str, body: bytes) -> bytes:
    """What tells that a request is the same."""
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


@dataclass(slots=True, eq=False)
class Held:
    """An answer that is being made for this gateway. has_client: its first reader is there; resources: released when
    the answer is no longer made."""

    record: Record
    call: Call
    resources: ExitStack
    traceparent: str | None
    has_client: bool = True


@dataclass(slots=True, eq=False)
class Reading:
    """An answer begun elsewhere (or earlier) that a client reads here."""

    record: Record
    call: Call
    follower: Follower | None


class Keeper:
    """This gateway's kept answers. grace_s: how long an answer is made without a reader; keep_s: how long it is there
    once it is over, or shorter if those that ended here are more than max_bytes together. patience_s: how long a
    request waits for a broker that does not answer."""

    def __init__(
        self, bus: Bus, inbox: Inbox, *, grace_s: float, keep_s: float, max_bytes: int, patience_s: float
    ) -> None:
        self._bus = bus
        self._inbox = inbox
        self._grace_s = grace_s
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._followers = Followers(bus)
        inbox.fail_others = self._followers.fail_all
        self._held: dict[str, Held] = {}
        self._beginning: set[asyncio.Task[Record | Held]] = set()
        self._readings: set[Reading] = set()
        self._ended: deque[tuple[float, str, str, int]] = deque()  # (lapses at, name, claim, bytes), oldest first
        self._ended_bytes = 0

    # ------------------------------------------------------------------ finding and beginning

    async def find(self, answer_id: str, owner: str) -> Record | None:
        """The record of an answer, if it is there and the owner's. That of one that is being made is renewed: it does
        not lapse under who begins to read it. Raises Unavailable without a broker."""
        value = await self._ask(lambda: self._bus.get(record_name(answer_id)))
        one = _own(value, owner)
        if one is not None and one.ending is None:
            lapsed = await self._ask(lambda: self._hold([one]))
            return None if record_name(answer_id) in lapsed else one
        return one

    async def begin(
        self, one: Record, call: Call, messages: Sequence[Tokenize], resources: ExitStack, traceparent: str | None
    ) -> Record | Held:
        """Sends the request's messages and holds the answer, or returns the record of the answer that its key stands
        for already. Raises Unavailable without a broker. Takes the call (which the inbox has) and the resources, unless
        it returns a record. A client that leaves meanwhile comes too late: what it asked for is begun, and kept."""
        task = asyncio.create_task(self._begin(one, call, messages, resources, traceparent), name=f"begin {call.id}")
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._begun_for_nobody(task, call, resources))
            raise
        except Exception:
            self._inbox.close(call)
            resources.close()
            raise

    def _begun_for_nobody(self, task: "asyncio.Task[Record | Held]", call: Call, resources: ExitStack) -> None:
        if not task.cancelled() and task.exception() is None and isinstance(held := task.result(), Held):
            self.leave(held)
        else:
            self._inbox.close(call)
            resources.close()

    async def _begin(
        self, one: Record, call: Call, messages: Sequence[Tokenize], resources: ExitStack, traceparent: str | None
    ) -> Record | Held:
        value = record.encode(one)
        other = await self._ask(
            lambda: self._bus.send_once(
                one.claim,
                record_name(one.answer_id),
                value,
                self._grace_s,
                TOKENIZE,
                messages,
                traceparent=traceparent,
                deadline=one.deadline,
            )
        )
        if other is not None:
            return record.decode(other)
        held = Held(one, call, resources, traceparent)
        self._held[one.answer_id] = held
        metrics.KEPT.set(len(self._held))
        call.on_end = lambda call: self._end(one, call)
        if call.error is not None or not call.num_open:
            self._end(one, call)
        return held

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        """A command's answer; asks again while the broker is away, for a while."""
        attempt = 0
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    try:
                        return await command()
                    except LOST_CONNECTION as error:
                        log.warning("asking the broker: %s; trying again", error)
                        attempt += 1
                        await backoff(attempt)
        except TimeoutError:
            raise Unavailable("The broker does not answer; try again.", retry_after_s=1) from None

    # ------------------------------------------------------------------------------- reading

    def read(self, one: Record) -> Reading:
        """Another reader for an answer: all of it comes to the reading's call."""
        call = one.new_call()
        if one.ending is not None:
            reading = Reading(one, call, None)
            record.replay(one.ending, call)
        else:
            call.cursor = one.cursor
            call.on_end = lambda call: self._end_elsewhere(one, call)
            reading = Reading(one, call, self._followers.attach(call, one.address))
        self._readings.add(reading)
        return reading

    def stop_reading(self, reading: Reading) -> None:
        reading.call.on_end = None
        self._readings.discard(reading)
        if reading.follower is not None:
            reading.follower.detach(reading.call)

    # -------------------------------------------------------------------------------- ending

    def leave(self, held: Held) -> None:
        """Its client is gone, or has all of it. An answer that is not over is made on for a while."""
        held.has_client = False
        if held.call.error is not None or not held.call.num_open:
            self._release(held)

    def cancel(self, one: Record) -> None:
        """Ends an answer that nobody wants any more, wherever it is made."""
        self._forget(one)
        if one.ending is None:
            sequences = [choice.sequence_id for choice in one.new_call().choices]
            self._bus.outbox.post(SCHEDULE, Abort(sequence_ids=sequences))

    def _end(self, one: Record, call: Call) -> None:
        """An answer that was made for this gateway is over."""
        if _may_succeed(call):
            self._forget(one)
        else:
            self._store(record.ended(one, call))
        held = self._held.get(one.answer_id)
        if held is not None and not held.has_client:
            self._release(held)

    def _end_elsewhere(self, one: Record, call: Call) -> None:
        """An answer is over whose own gateway may be dead."""
        if call.error is None:
            self._store(record.ended(one, call))
        elif _may_succeed(call):
            self._forget(one)

    def _release(self, held: Held) -> None:
        if self._held.pop(held.record.answer_id, None) is None:
            return
        metrics.KEPT.set(len(self._held))
        self._inbox.close(held.call)
        if unfinished := held.call.open_sequences:
            self._bus.outbox.post(SCHEDULE, Abort(sequence_ids=unfinished), traceparent=held.traceparent)
        held.resources.close()

    def _store(self, one: Record) -> None:
        value = record.encode(one)
        name = record_name(one.answer_id)
        self._bus.outbox.store(name, value, self._keep_s)
        if one.claim:
            self._bus.outbox.store(one.claim, self._bus.key(name).encode(), self._keep_s)
        self._ended.append((time.monotonic() + self._keep_s, name, one.claim, len(value)))
        self._ended_bytes += len(value)
        while self._ended and (self._ended_bytes > self._max_bytes or self._ended[0][0] < time.monotonic()):
            until, name, claim, size = self._ended.popleft()
            self._ended_bytes -= size
            if until > time.monotonic():  # else it has lapsed by itself
                self._bus.outbox.forget(name, claim)

    def _forget(self, one: Record) -> None:
        self._bus.outbox.forget(record_name(one.answer_id), one.claim)

    # ------------------------------------------------------------------------------ for ever

    async def run(self) -> None:
        """Renews the records of answers with readers, and lets go of those that lapsed, for ever."""
        try:
            while True:
                await asyncio.sleep(self._grace_s / RENEWALS)
                try:
                    await self._renew()
                except LOST_CONNECTION as error:
                    log.warning("renewing kept answers: %s", error)
        finally:
            await self._followers.close()

    async def _renew(self) -> None:
        made = [held for held in self._held.values() if held.call.error is None and held.call.num_open]
        wanted = {held.record.answer_id: held.record for held in made if held.has_client}
        wanted |= {
            one.record.answer_id: one.record
            for one in self._readings
            if one.follower is not None and one.call.error is None and one.call.num_open
        }
        left = [held for held in made if not held.has_client]
        if wanted:
            for name in await self._hold(wanted.values()):
                await self._restore(name, wanted)
        for held in left:
            is_there = await self._bus.client.exists(self._bus.key(record_name(held.record.answer_id)))
            if not is_there and not held.has_client:
                log.info("nobody came back for %s", held.record.answer_id)
                self._release(held)

    async def _hold(self, records: Iterable[Record]) -> list[str]:
        """Has the records and what points to them last for a grace period at least. Returns the names that have lapsed
        already."""
        names = [name for one in records for name in (record_name(one.answer_id), one.claim) if name]
        keys = [self._bus.key(name) for name in names]
        gone: Any = await cast(Any, self._bus.client).eval(_RENEW, len(keys), *keys, int(self._grace_s * 1000))
        return [names[place - 1] for place in gone]

    async def _restore(self, name: str, wanted: Mapping[str, Record]) -> None:
        """Sets a key again that lapsed while this gateway could not renew it."""
        for one in wanted.values():
            if name == record_name(one.answer_id):
                value = record.encode(one)
            elif name == one.claim:
                value = self._bus.key(record_name(one.answer_id)).encode()
            else:
                continue
            await self._bus.client.set(self._bus.key(name), value, nx=True, px=int(self._grace_s * 1000))

    def hand_over(self) -> bool:
        """On stop: leaves the answers that are being made to the gateways that their readers go to. False: there are
        none."""
        held = list(self._held.values())
        readings = [one for one in self._readings if one.follower is not None]
        self._held.clear()
        for one in held:
            one.call.on_end = None
            one.call.hand_over()
            self._inbox.close(one.call)
            one.resources.close()
        for reading in readings:
            reading.call.on_end = None
            reading.call.hand_over()
        return bool(held)


def _may_succeed(call: Call) -> bool:
    """Whether the call failed in a way that another try may not."""
    return call.error is not None and (call.error.status >= 500 or call.error.status == 429)


def _own(value: bytes | None, owner: str) -> Record | None:
    if value is None:
        return None
    try:
        one = record.decode(value)
    except msgspec.DecodeError as error:
        log.error("a kept answer does not decode: %s", error)
        return None
    return one if one.owner == owner else None
