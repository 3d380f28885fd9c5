"""The gateway's end of its reply stream: hands deltas to the calls that wait for them.

Replies name sequences; those that nobody waits for (any more) are left. The stream is kept for a minute, for as
long as the oldest call needs, and goes away by itself when this process dies.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from services.gateway.call import Call, Choice
from shared.errors import ErrorBody, Unavailable
from shared.messages import Deltas, Rejected
from shared.streams import LOST_CONNECTION, Bus, ToGateway, reply_stream

log = logging.getLogger(__name__)

KEPT_S = 60
TRIM_EVERY_S = 10.0
EXPIRE_S = 600
FAREWELL_S = 30
WATCH_EVERY_S = 1.0


class Inbox:
    """Calls in flight, by the ids that replies name."""

    def __init__(self, bus: Bus, address: str) -> None:
        self._bus = bus
        self._marker = bus.key(f"reply:{address}:marker")
        self._by_sequence: dict[int, Choice] = {}
        self._by_request: dict[str, Call] = {}
        self._calls: dict[str, Call] = {}  # oldest first
        self._lately: deque[tuple[float, int]] = deque()  # kept calls that ended: (until, ms of their cursor)
        self.address = address
        self.fail_others: Callable[[ErrorBody], None] = lambda _: None
        self.stream = reply_stream(address)
        self.cursor = "0-0"

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    def open(self, call: Call) -> None:
        """From now on the call gets its replies."""
        call.cursor = self.cursor
        self._calls[call.id] = call
        for request_id in call.request_ids:
            self._by_request[request_id] = call
        for choice in call.choices:
            self._by_sequence[choice.sequence_id] = choice

    def close(self, call: Call) -> None:
        """The call gets no more. What it had is in the stream for a while yet, for those who began to read it again."""
        if self._calls.pop(call.id, None) is not None and call.is_kept:
            self._lately.append((time.monotonic() + KEPT_S, _milliseconds(call.cursor)))
        for request_id in call.request_ids:
            self._by_request.pop(request_id, None)
        for choice in call.choices:
            self._by_sequence.pop(choice.sequence_id, None)

    def fail_all(self, error: ErrorBody) -> None:
        """Ends every call in flight, and those that read other streams."""
        for call in list(self._calls.values()):
            call.fail(error)
        self.fail_others(error)

    def deliver(self, message: ToGateway, now: float) -> None:
        """now: time.monotonic()."""
        match message:
            case Deltas(deltas=deltas, finished=finished):
                choices = self._by_sequence
                for delta in deltas:
                    choice = choices.get(delta.sequence_id)
                    if choice is not None:
                        choice.add(delta, now)
                for end in finished:
                    choice = choices.get(end.sequence_id)
                    if choice is not None:
                        choice.finish(end)
            case Rejected(request_id=request_id, error=error):
                call = self._by_request.get(request_id)
                if call is not None:
                    call.reject(request_id, error)

    async def run(self) -> None:
        """Reads the stream for ever."""
        async for batch in self._bus.follow(lambda: {self.stream: self.cursor}):
            now = time.monotonic()
            for delivery in batch:
                self.deliver(delivery.message, now)
                self.cursor = delivery.entry_id

    async def keep(self) -> None:
        """Trims the stream, and ends the calls in flight when the broker has lost its data, for ever.

        A marker beside the stream tells: a broker that comes back without it has lost what was on its way."""
        is_marked = False
        next_trim = 0.0
        while True:
            try:
                if not await self._bus.client.expire(self._marker, EXPIRE_S):
                    await self._bus.client.set(self._marker, "1", ex=EXPIRE_S)
                    if is_marked:
                        log.error("the broker lost its data; %d requests end", len(self._calls))
                        self.fail_all(Unavailable("The broker lost its data; try again.", retry_after_s=1).body())
                    is_marked = True
            except LOST_CONNECTION as error:
                log.warning("the broker does not answer: %s", error)
            if time.monotonic() >= next_trim:
                next_trim = time.monotonic() + TRIM_EVERY_S
                self._bus.outbox.trim(self.stream, self.trim_before())
                self._bus.outbox.expire(self.stream, EXPIRE_S)
            await asyncio.sleep(WATCH_EVERY_S)

    def trim_before(self) -> str:
        """Entries older than this id are of no more use. By the broker's clock, which made the ids."""
        kept = max(0, _milliseconds(self.cursor) - KEPT_S * 1000)
        oldest = next(iter(self._calls.values()), None)
        if oldest is not None:
            kept = min(kept, _milliseconds(oldest.cursor))
        while self._lately and self._lately[0][0] < time.monotonic():
            self._lately.popleft()
        kept = min([kept, *(at for _, at in self._lately)])
        return f"{kept}-0"

    def create(self) -> None:
        """Makes the stream, with a time to live that outlasts neither this process nor late replies to it."""
        self._bus.outbox.post(self.stream, Deltas())
        self._bus.outbox.expire(self.stream, EXPIRE_S)

    async def leave(self, *, is_needed: bool = False) -> None:
        """Empties the stream and lets it expire: late replies to a stream removed at once would make it again, for
        ever. is_needed: leaves it whole for a while, to those who read it from elsewhere. A broker that is gone needs
        no farewell."""
        if not is_needed:
            self._bus.outbox.trim(self.stream, f"{2**63}-0")
        self._bus.outbox.expire(self.stream, EXPIRE_S if is_needed else FAREWELL_S)
        try:
            await asyncio.wait_for(self._bus.client.delete(self._marker), 1)
        except (TimeoutError, *LOST_CONNECTION) as error:
            log.warning("could not remove the marker: %s", error)


def _milliseconds(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])
