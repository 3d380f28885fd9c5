"""Tells tokenizers and scheduler what the engine did: at most every 2 ms, at least every heartbeat.

Tokens go to the shards at once. The scheduler need not wake for each step of steady decode: it is told when anything
else happened, or after a few steps, well before a lease runs low.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from services.gpu_worker import metrics, spans
from services.gpu_worker.report import Report
from shared.messages import HEARTBEAT_S, Goodbye, Hello, Holdings, Plan
from shared.streams import EVENTS, Bus, Delivery, plan_stream, shard_stream

REPORT_EVERY_S = 0.002
HELD_STEPS = 8
HELD_S = 0.1
"""What the scheduler may not know yet of steady decode: tokens of a sequence, and for how long."""
HEARTBEAT_BACKLOG = 64
"""With so many commands unwritten the broker is away, and signs of life would only pile up."""
PLANS_KEPT_S = 3600
PLANS_RENEWED_S = 10.0
"""The plans of a worker that dies together with the scheduler go away by themselves: it says so again and again."""


class Reporter:
    """Gathers reports and posts them. Runs in the event loop's thread; nothing here waits for the broker.

    hello: this worker's introduction in an epoch."""

    def __init__(self, bus: Bus, worker: str, model: str, hello: Callable[[int], Hello]) -> None:
        self._bus = bus
        self._worker = worker
        self._model = model
        self._hello = hello
        self._loop = asyncio.get_running_loop()
        self._pending: Report | None = None
        self._held: Report | None = None
        self._held_steps = 0
        self._flushing: asyncio.TimerHandle | None = None
        self._flushed_at = self._posted_at = self._renewed_at = float("-inf")
        self._epoch: int | None = None
        self._number = 0
        self._applied = 0
        self._stalled: list[int] = []
        self._has_left = False
        self._plans: deque[tuple[int, int, str]] = deque()

    def take(self, report: Report) -> None:
        """News from the engine. After the farewell there is none: the scheduler has moved the sequences elsewhere."""
        if self._has_left:
            return
        if self._pending is not None and self._pending.epoch != report.epoch:
            self.flush()
        if self._pending is None:
            self._pending = report
        else:
            self._pending.extend(report)
        if report.holdings is not None:
            self.flush()
            return
        wait = self._flushed_at + REPORT_EVERY_S - self._loop.time()
        if wait <= 0:
            self.flush()
        elif self._flushing is None:
            self._flushing = self._loop.call_later(wait, self.flush)

    def flush(self) -> None:
        """Posts what has gathered. The shards come first: what the scheduler knows to be out must be out."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        report, self._pending = self._pending, None
        if report is None:
            return
        if report.epoch != self._epoch:
            if self._epoch is not None:
                metrics.RESETS.inc()
            self._epoch, self._number = report.epoch, 0
            self._bus.outbox.post(EVENTS, self._hello(report.epoch))
        for shard, output in report.outputs(self._worker):
            self._bus.outbox.post(shard_stream(shard), output)
            self._flushed_at = self._loop.time()  # a report of no output holds up no first token
        for stages in report.stages:
            spans.record(stages, self._model, self._worker)
        self._hold(report)

    def _hold(self, report: Report) -> None:
        """Posts the progress with what was held before, unless it is a step of steady decode and can wait."""
        is_steady = report.is_decode_alone and (report.applied, report.stalled) == (self._applied, self._stalled)
        if self._held is None or self._held.epoch != report.epoch:
            self._held = report
        else:
            self._held.extend(report)
        self._held_steps += 1
        if report.holdings is not None:
            self._post_progress(self._held)
            self._post_holdings(report)
        elif not is_steady or self._held_steps >= HELD_STEPS or self._loop.time() - self._posted_at >= HELD_S:
            self._post_progress(self._held)

    def _post_progress(self, report: Report) -> None:
        self._held, self._held_steps = None, 0
        self._number += 1
        self._bus.outbox.post(EVENTS, report.progress(self._worker, time.time(), self._number))
        self._posted_at = self._loop.time()
        self._applied, self._stalled = report.applied, report.stalled

    def _post_holdings(self, report: Report) -> None:
        """Right after the progress: what it says of outputs is what has been told until then."""
        assert report.holdings is not None
        self._bus.outbox.post(
            EVENTS,
            Holdings(
                hello=self._hello(report.epoch),
                applied=report.applied,
                number=self._number,
                sequences=report.holdings,
            ),
        )

    def beat(self) -> None:
        """A sign of life, if nothing was said lately. To be called twice a heartbeat while the engine lives."""
        now = self._loop.time()
        if self._epoch is None or self._bus.outbox.backlog >= HEARTBEAT_BACKLOG:
            return
        if now - self._posted_at > HEARTBEAT_S / 2:
            self._post_progress(self._held or Report(self._epoch, self._applied, stalled=self._stalled))
        if now - self._renewed_at > PLANS_RENEWED_S:
            self._renewed_at = now
            self._bus.outbox.expire(plan_stream(self._worker), PLANS_KEPT_S)

    def note_read(self, delivery: Delivery[Plan]) -> None:
        """A plan was read from the stream and goes to the engine."""
        self._plans.append((delivery.message.epoch, delivery.message.number, delivery.entry_id))

    def trim(self) -> None:
        """Removes from the plan stream what the engine has applied."""
        last: str | None = None
        now = (self._epoch or 0, self._applied)
        while self._plans and self._plans[0][:2] <= now:
            last = self._plans.popleft()[2]
        if last is not None:
            self._bus.outbox.trim(plan_stream(self._worker), last)

    def farewell(self) -> None:
        """The last words."""
        self.flush()
        if self._held is not None:
            self._post_progress(self._held)
        self._has_left = True
        if self._epoch is not None:
            self._bus.outbox.post(EVENTS, Goodbye(worker=self._worker, epoch=self._epoch))
        self._bus.outbox.delete(plan_stream(self._worker))
