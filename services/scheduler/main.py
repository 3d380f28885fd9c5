"""Scheduler service: the I/O around the core. Reads requests and reports, applies them, writes the decisions.

A request's entry in `schedule` stays pending until its last sequence has ended, so what is in flight is what a new
scheduler finds pending; workers that it does not know start over and their requests are admitted again.
"""

import asyncio
import time

from services.scheduler.config import Settings
from services.scheduler.core.effects import Acknowledge, Arrived, Command, ForgetWorker, SendOutput, SendPlan, Waited
from services.scheduler.core.scheduler import Event, Scheduler, make_policy
from services.scheduler.leader import Leadership
from services.scheduler.metrics import DECISION_SECONDS, Exporter
from services.scheduler.spans import record_wait
from shared.errors import ConfigError
from shared.messages import Abort
from shared.service import Context, run_service
from shared.streams import EVENTS, SCHEDULE, Bus, Delivery, ToScheduler, plan_stream, shard_stream

TICK_S = 0.25
CONSUMER = "scheduler"
"""The one consumer of the group, under every leader: what one leaves pending, the next one finds."""


class Desk:
    """Events in, commands out. `events` is filled by the readers and emptied by `run`."""

    def __init__(self, bus: Bus, core: Scheduler) -> None:
        self._bus = bus
        self._core = core
        self._events: list[Event] = []
        self._done: list[Delivery[ToScheduler]] = []  # to acknowledge once applied
        self._wake = asyncio.Event()
        self._cursor = "0"
        self._entries: dict[str, Delivery[ToScheduler]] = {}

    async def read_requests(self) -> None:
        async for deliveries in self._bus.read_group(SCHEDULE, CONSUMER, pending_first=True, count=256):
            for delivery in deliveries:
                if isinstance(delivery.message, Abort):
                    self._events.append(delivery.message)
                    self._done.append(delivery)
                else:
                    self._entries[delivery.entry_id] = delivery
                    self._events.append(
                        Arrived(delivery.message, delivery.entry_id, delivery.traceparent, delivery.deadline)
                    )
            self._wake.set()

    async def read_reports(self) -> None:
        """From now on: older reports are of epochs that are over, or of workers that report again soon."""
        self._cursor = await self._bus.newest_id(EVENTS)
        trimmed_at = time.monotonic()
        async for deliveries in self._bus.follow(lambda: {EVENTS: self._cursor}):
            if not deliveries:
                continue
            self._events += [delivery.message for delivery in deliveries]
            self._cursor = deliveries[-1].entry_id
            self._wake.set()
            if time.monotonic() - trimmed_at > 1:
                trimmed_at = time.monotonic()
                self._bus.outbox.trim(EVENTS, self._cursor)

    async def run(self, exporter: Exporter) -> None:
        now = 0.0
        exported_at = 0.0
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            events, self._events = self._events, []
            done, self._done = self._done, []
            now = max(now, time.time())
            started = time.perf_counter()
            for command in self._core.apply(events, now):
                self._execute(command, now)
            for delivery in done:
                self._bus.outbox.ack(delivery)
            DECISION_SECONDS.inc(time.perf_counter() - started)
            if now - exported_at > 1:
                exported_at = now
                exporter.export(self._core)

    def _execute(self, command: Command, now: float) -> None:
        outbox = self._bus.outbox
        match command:
            case SendPlan():
                outbox.post(plan_stream(command.worker), command.plan)
            case SendOutput():
                outbox.post(shard_stream(command.shard), command.output)
            case Acknowledge():
                outbox.ack(self._entries.pop(command.entry_id))
            case ForgetWorker():
                outbox.delete(plan_stream(command.worker))
            case Waited():
                record_wait(command, now)


async def serve(context: Context, settings: Settings) -> None:
    """Runs until cancelled. Raises ConfigError for an unknown policy."""
    try:
        make_policy(settings.policy, settings.aging)
    except ValueError as error:
        raise ConfigError(f"--policy (SAPWOOD_POLICY): {error}") from None
    core = Scheduler(
        lambda: make_policy(settings.policy, settings.aging),
        settings.tuning,
        worker_lapse_s=settings.worker_lapse_s,
        no_worker_patience_s=settings.no_worker_patience_s,
    )
    desk = Desk(context.bus, core)
    leadership = Leadership(context.bus, context.instance)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(context.registry.run())
        await leadership.acquire()
        try:
            async with asyncio.TaskGroup() as leading:
                leading.create_task(leadership.hold())
                leading.create_task(desk.read_requests())
                leading.create_task(desk.read_reports())
                leading.create_task(desk.run(Exporter()))
                context.registry.update(is_ready=True)
        finally:
            await leadership.release()


def main() -> None:
    """Entry point of the process."""
    run_service("scheduler", Settings, serve)
