"""Reads a reply stream from the past, for readers of answers that were begun elsewhere or whose first reader left.

Calls that come while others are being caught up wait and are caught up together, so a crowd that comes back at once
after a gateway's death costs a few passes over the stream, not one each.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

from services.gateway.call import Call, Choice
from shared.errors import BusError, ErrorBody, Unavailable
from shared.messages import Deltas, Rejected
from shared.streams import Bus, ToGateway, order_of, reply_stream

log = logging.getLogger(__name__)

LINGER_S = 0.25
RENEW_S = 60.0
EXPIRE_S = 600
"""A dead gateway's stream is kept for so long after its last reader."""


class Readers:
    """Calls by the ids that replies name; several may read the same sequence."""

    def __init__(self) -> None:
        self._by_sequence: dict[int, list[Choice]] = {}
        self._by_request: dict[str, list[Call]] = {}
        self.calls: dict[int, Call] = {}

    def add(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self.calls[id(call)] = call
            for request_id in call.request_ids:
                self._by_request.setdefault(request_id, []).append(call)
            for choice in call.choices:
                self._by_sequence.setdefault(choice.sequence_id, []).append(choice)

    def remove(self, call: Call) -> None:
        if self.calls.pop(id(call), None) is None:
            return
        for request_id in call.request_ids:
            _drop(self._by_request, request_id, call)
        for choice in call.choices:
            _drop(self._by_sequence, choice.sequence_id, choice)

    def deliver(self, message: ToGateway) -> None:
        now = time.monotonic()
        match message:
            case Deltas(deltas=deltas, finished=finished):
                for delta in deltas:
                    for choice in self._by_sequence.get(delta.sequence_id, ()):
                        choice.add(delta, now)
                for end in finished:
                    for choice in self._by_sequence.get(end.sequence_id, ()):
                        choice.finish(end)
            case Rejected(request_id=request_id, error=error):
                for call in self._by_request.get(request_id, ()):
                    call.reject(request_id, error)


class Follower:
    """One reply stream's readers. Runs for as long as there are any."""

    def __init__(self, bus: Bus, address: str) -> None:
        self._bus = bus
        self._stream = reply_stream(address)
        self._cursor = "0-0"
        self._waiting: list[Call] = []  # to be caught up
        self._behind = Readers()  # being caught up
        self._live = Readers()
        self._wake = asyncio.Event()

    def attach(self, call: Call) -> None:
        """From now on the call gets what has come since its cursor, and what comes."""
        self._waiting.append(call)
        self._wake.set()

    def detach(self, call: Call) -> None:
        if call in self._waiting:
            self._waiting.remove(call)
        self._behind.remove(call)
        self._live.remove(call)

    def fail_all(self, error: ErrorBody) -> None:
        """Ends every call."""
        for call in [*self._waiting, *self._behind.calls.values(), *self._live.calls.values()]:
            call.fail(error)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._behind.calls or self._live.calls)

    async def run(self) -> None:
        """Returns when there has been nobody for a while."""
        following: asyncio.Task[None] | None = None
        try:
            while True:
                self._wake.clear()
                if self._waiting:
                    if following is not None and following.done():
                        following.result()  # raises what ended it
                    at = await self._catch_up(is_followed=following is not None)
                    if following is None:
                        self._cursor = at
                        following = asyncio.create_task(self._follow(), name=f"follow {self._stream.name}")
                    continue
                try:
                    async with asyncio.timeout(LINGER_S):
                        await self._wake.wait()
                except TimeoutError:
                    if following is not None and following.done():
                        following.result()  # raises what ended it
                    if self.is_idle:
                        return
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait([following])

    async def _catch_up(self, *, is_followed: bool) -> str:
        """Gives those that wait all that has come, and hands them over to who follows: in one step with the look at how
        far that one is, for an entry that came in between would be nobody's. Returns the last id read."""
        calls, self._waiting = self._waiting, []
        self._behind.add(calls)
        at = min((call.cursor for call in calls), key=order_of)
        while True:
            told = self._cursor
            async for batch in self._bus.read_log(self._stream, after=at):
                for delivery in batch:
                    self._behind.deliver(delivery.message)
                    at = delivery.entry_id
                await asyncio.sleep(0)  # a long stream, and others want a turn
            if is_followed:
                at = max(at, told, key=order_of)  # of what had been told by then nothing is left to read
                if order_of(at) < order_of(self._cursor):
                    continue
            there = [call for call in calls if id(call) in self._behind.calls]
            for call in there:
                self._behind.remove(call)
            self._live.add(there)
            return at

    async def _follow(self) -> None:
        """For ever: one that ended by itself when there are no readers would end under one that just came."""
        renewed_at = float("-inf")
        batches = self._bus.follow(lambda: {self._stream: self._cursor}, block_s=LINGER_S)
        try:
            async for batch in batches:
                for delivery in batch:
                    self._live.deliver(delivery.message)
                    self._cursor = delivery.entry_id
                if time.monotonic() - renewed_at > RENEW_S:
                    renewed_at = time.monotonic()
                    self._bus.outbox.expire(self._stream, EXPIRE_S)
        finally:
            await batches.aclose()


class Followers:
    """The followers of all streams that somebody reads here, each in a task of its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._running: dict[str, tuple[Follower, asyncio.Task[None]]] = {}

    def attach(self, call: Call, address: str) -> Follower:
        running = self._running.get(address)
        if running is None or running[1].done():
            follower = Follower(self._bus, address)
            follower.attach(call)
            self._running[address] = follower, asyncio.create_task(self._run(follower, address), name=f"read {address}")
            return follower
        running[0].attach(call)
        return running[0]

    async def _run(self, follower: Follower, address: str) -> None:
        try:
            while not follower.is_idle:  # one may have come while it was returning
                await follower.run()
        except BusError as error:
            log.error("reading a reply stream: %s", error)
            follower.fail_all(Unavailable("The answer cannot be read; try again.", retry_after_s=1).body())
        if self._running.get(address, (None,))[0] is follower:
            del self._running[address]

    def fail_all(self, error: ErrorBody) -> None:
        """Ends every call of every follower."""
        for follower, _ in list(self._running.values()):
            follower.fail_all(error)

    async def close(self) -> None:
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("reading a reply stream: %s", result)


def _drop(table: dict[Any, list[Any]], key: object, value: object) -> None:
    left = [one for one in table[key] if one is not value]
    if left:
        table[key] = left
    else:
        del table[key]
