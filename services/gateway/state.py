"""What the handlers of one gateway share."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from services.gateway import metrics
from services.gateway.body import BodyBudget
from services.gateway.config import Settings
from services.gateway.deployment import Deployment
from services.gateway.inbox import Inbox
from shared.errors import Overloaded
from shared.streams import Bus


@dataclass(slots=True)
class Gateway:
    """A running gateway. num_requests: completion requests in flight, their bodies' reading included; idle: there
    are none."""

    settings: Settings
    instance: str
    bus: Bus
    inbox: Inbox
    deployment: Deployment
    bodies: BodyBudget
    num_requests: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests in flight. Raises Overloaded when all are taken."""
        if self.num_requests >= self.settings.max_requests_in_flight:
            raise Overloaded(
                f"{self.num_requests} requests are in flight, as many as this gateway takes; try again.",
                retry_after_s=1,
            )
        self.num_requests += 1
        self.idle.clear()
        metrics.IN_FLIGHT.inc()
        try:
            yield
        finally:
            self.num_requests -= 1
            metrics.IN_FLIGHT.dec()
            if not self.num_requests:
                self.idle.set()

    async def until_idle(self, patience_s: float) -> None:
        """Returns once no request is in flight, or after `patience_s`."""
        if self.num_requests:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.idle.wait(), patience_s)


GATEWAY = web.AppKey("gateway", Gateway)
