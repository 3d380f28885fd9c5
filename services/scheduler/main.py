"""Scheduler service: the I/O around the core. Reads requests and reports, applies them, writes the decisions.

A request's entry in `schedule` stays pending until its last sequence has ended, so what is in flight is what a new
scheduler finds pending, under its own name or another's. Workers that it does not know say what they hold and decode on
meanwhile; what else was told of a request stands in the token shards.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from services.scheduler.books import publish
from services.scheduler.config import Settings
from services.scheduler.core.effects import (
    Acknowledge,
    Arrived,
    Command,
    Deaf,
    ForgetWorker,
    Quarantine,
    ReadShards,
    SendOutput,
    SendPlan,
    Waited,
)
from services.scheduler.core.scheduler import Event, Scheduler, make_policy
from services.scheduler.leader import Leadership
from services.scheduler.metrics import DECISION_SECONDS, Exporter
from services.scheduler.shards import read_shards
from services.scheduler.spans import record_wait
from shared.errors import ConfigError
from shared.heap import settle_heap
from shared.messages import Abort
from shared.service import Context, run_service
from shared.streams import EVENTS, SCHEDULE, Bus, Delivery, ToScheduler, order_of, plan_stream, shard_stream

TICK_S = 0.25
DEAF_S = 2.5
"""The broker answers a read of `events` every second; when it has not for so long, not the workers are silent."""
STRANGERS_PLANS_S = 3600
"""How long the plans wait that a worker without a place in the books is to find when it comes back."""


class Desk:
    """Events in, commands out. `events` is filled by the readers and emptied by `run`.

    checks_ledger: asserts after every decision that each page is in one place."""

    def __init__(
        self, bus: Bus, core: Scheduler, leadership: Leadership, instance: str, *, checks_ledger: bool = False
    ) -> None:
        self._bus = bus
        self._core = core
        self._leadership = leadership
        self._consumer = instance
        self._events: list[Event] = []
        self._done: list[Delivery[ToScheduler]] = []  # to acknowledge once applied
        self._wake = asyncio.Event()
        self._cursor = "0"
        self._entries: dict[str, Delivery[ToScheduler]] = {}
        self._questions: asyncio.Queue[ReadShards] = asyncio.Queue()
        self._checks_ledger = checks_ledger

    async def read_requests(self) -> None:
        """What is new; what was in flight under an earlier leader; and what one read that had not noticed yet that it
        leads no more."""
        before_us = order_of(await self._bus.newest_id(SCHEDULE))
        async with asyncio.TaskGroup() as tasks:
            for source in (
                self._bus.groups.read(SCHEDULE, self._consumer, pending_first=True, count=256),
                self._bus.groups.inherit(SCHEDULE, self._consumer),
            ):
                tasks.create_task(self._take_requests(source, before_us))

    async def _take_requests(
        self, source: AsyncIterator[list[Delivery[ToScheduler]]], before_us: tuple[int, int]
    ) -> None:
        async for deliveries in source:
            for delivery in deliveries:
                if isinstance(delivery.message, Abort):
                    self._events.append(delivery.message)
                    self._done.append(delivery)
                else:
                    self._entries[delivery.entry_id] = delivery
                    self._events.append(
                        Arrived(
                            delivery.message,
                            delivery.entry_id,
                            delivery.traceparent,
                            delivery.deadline,
                            is_replayed=order_of(delivery.entry_id) <= before_us,
                        )
                    )
            self._wake.set()

    async def read_reports(self) -> None:
        """From now on: what older reports say stands in the shards too, or comes with what the workers hold."""
        self._cursor = await self._bus.newest_id(EVENTS)
        heard_at = trimmed_at = time.monotonic()
        async for deliveries in self._bus.follow(lambda: {EVENTS: self._cursor}):
            if self._bus.answered_at - heard_at > DEAF_S:
                self._events.append(Deaf())  # ahead of what comes now, which may not be all that has gathered
            heard_at = self._bus.answered_at
            if not deliveries:
                continue
            self._events += [delivery.message for delivery in deliveries]
            self._cursor = deliveries[-1].entry_id
            self._wake.set()
            if time.monotonic() - trimmed_at > 1:
                trimmed_at = time.monotonic()
                self._bus.outbox.trim(EVENTS, self._cursor)

    async def read_shards(self) -> None:
        """Answers the core's questions about what was told of sequences."""
        while True:
            recovered = await read_shards(self._bus, await self._questions.get())
            self._events.append(recovered)  # not in one line: `run` puts another list there meanwhile
            self._wake.set()

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
            if not self._leadership.is_sure:
                await self._leadership.confirm()
            events, self._events = self._events, []
            done, self._done = self._done, []
            now = max(now, time.time())
            if time.monotonic() - self._bus.answered_at > DEAF_S:
                events.append(Deaf())
            started = time.perf_counter()
            for command in self._core.apply(events, now):
                self._execute(command, now)
            if self._checks_ledger:
                self._core.check_integrity()
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
                if command.worker not in self._core.workers:
                    outbox.expire(plan_stream(command.worker), STRANGERS_PLANS_S)
            case SendOutput():
                outbox.post(shard_stream(command.shard), command.output)
            case Acknowledge():
                outbox.ack(self._entries.pop(command.entry_id))
            case Quarantine():
                outbox.quarantine(self._entries.pop(command.entry_id), command.why)
            case ReadShards():
                self._questions.put_nowait(command)
            case ForgetWorker():
                outbox.delete(plan_stream(command.worker), repeats=True)
            case Waited():
                record_wait(command, now)


async def serve(context: Context, settings: Settings) -> None:
    """Runs until cancelled. Raises ConfigError for an unknown policy."""
    try:
        make_policy(settings.policy, settings.aging)
    except ValueError as error:
        raise ConfigError(f"--policy (SAPWOOD_POLICY): {error}") from None
    leadership = Leadership(context.bus, context.instance)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(context.registry.run())
        core = Scheduler(
            lambda: make_policy(settings.policy, settings.aging),
            settings.tuning,
            worker_lapse_s=settings.worker_lapse_s,
            no_worker_patience_s=settings.no_worker_patience_s,
            term=await leadership.acquire(),
        )
        desk = Desk(context.bus, core, leadership, context.instance, checks_ledger=settings.check_ledger)
        try:
            async with asyncio.TaskGroup() as leading:
                leading.create_task(leadership.hold())
                leading.create_task(desk.read_requests())
                leading.create_task(desk.read_reports())
                leading.create_task(desk.read_shards())
                leading.create_task(desk.run(Exporter()))
                leading.create_task(publish(context.bus, core, context.instance))
                settle_heap()
                context.registry.update(is_ready=True)
        finally:
            await leadership.release()


def main() -> None:
    """Entry point of the process."""
    run_service("scheduler", Settings, serve)
