"""Tells the set that one of its processes has ended, so that the others need not wait until its silence says so."""

import asyncio
import logging

from shared.leadership import dismiss
from shared.messages import Died
from shared.registry import Registry
from shared.streams import EVENTS, LOST_CONNECTION, Bus

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""A broker that takes longer is left alone: the processes find out by themselves."""

WORKER = "gpu_worker"
SCHEDULER = "scheduler"


async def report_end(bus: Bus, service: str, instance: str) -> None:
    """To be called when the process has ended and before it is started again. A process that said goodbye is in no
    book any more, and then this changes nothing."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await Registry(bus, service, instance).mark_down()
            if service == WORKER:
                await bus.add(EVENTS, Died(worker=instance))
            if service == SCHEDULER:
                await dismiss(bus, instance)
    except (TimeoutError, *LOST_CONNECTION) as error:
        log.warning("could not tell of the end of %s: %s", instance, error)
