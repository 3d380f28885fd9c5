"""Publishes the scheduler's books."""

import asyncio
import logging
import time

import msgspec

from services.scheduler.core.scheduler import Scheduler
from services.scheduler.core.worker_state import WorkerState
from shared.ledger import LEDGER_KEY, LEDGER_TTL_S, Ledger, WorkerLedger
from shared.streams import LOST_CONNECTION, Bus

log = logging.getLogger(__name__)

PUBLISH_S = 1.0
_encode = msgspec.json.Encoder().encode


def ledger_of(core: Scheduler, name: str, now: float) -> Ledger:
    """The books as they are between two decisions."""
    placed = sum(len(worker.running) + len(worker.retracting) + len(worker.waiting) for worker in core.workers.values())
    return Ledger(
        scheduler=name,
        at=now,
        term=core.term,
        sequences=len(core.sequences),
        unplaced=max(0, len(core.sequences) - placed),
        workers=[_of_worker(worker, now) for worker in core.workers.values()],
    )


def _of_worker(worker: WorkerState, now: float) -> WorkerLedger:
    return WorkerLedger(
        worker=worker.name,
        epoch=worker.epoch,
        pool=worker.pool.num_pages,
        free=worker.pool.num_free,
        cached=worker.index.num_evictable,
        locked=worker.index.num_pages - worker.index.num_evictable,
        private=worker.num_private,
        imbalance=worker.imbalance,
        running=len(worker.running),
        waiting=len(worker.waiting),
        silent_s=round(now - worker.last_seen, 3),
    )


async def publish(bus: Bus, core: Scheduler, name: str) -> None:
    """Writes the books once a second, for ever."""
    while True:
        try:
            await bus.client.set(bus.key(LEDGER_KEY), _encode(ledger_of(core, name, time.time())), ex=LEDGER_TTL_S)
        except LOST_CONNECTION as error:
            log.warning("publishing the ledger: %s", error)
        await asyncio.sleep(PUBLISH_S)
