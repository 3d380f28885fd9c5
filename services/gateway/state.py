"""What the handlers of one gateway share."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

from services.gateway import metrics
from services.gateway.body import BodyBudget
from services.gateway.config import Settings
from services.gateway.deployment import RETRY_AFTER_S, Deployment
from services.gateway.inbox import Inbox
from services.gateway.keeper import Keeper
from services.gateway.keys import ApiKey, Keys
from services.gateway.load import Load
from services.gateway.rates import Rates
from shared.errors import Overloaded, Unavailable
from shared.streams import Bus


@dataclass(slots=True)
class Gateway:
    """A running gateway. load: what is in flight, their bodies' reading included; by_key: requests in flight of each
    API key; idle: there are none."""

    settings: Settings
    instance: str
    bus: Bus
    inbox: Inbox
    deployment: Deployment
    bodies: BodyBudget
    keys: Keys
    keeper: Keeper
    rates: Rates
    load: Load
    by_key: Counter[str] = field(default_factory=Counter)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def admitted(self, key: ApiKey) -> Iterator[None]:
        """A place among the requests in flight. Raises Overloaded when all are taken, or all that the key may take, and
        Unavailable when this gateway stops."""
        if self.deployment.is_stopping:
            raise Unavailable("This gateway is stopping; try again.", retry_after_s=RETRY_AFTER_S)
        now = time.monotonic()
        if key.max_requests_in_flight and self.by_key[key.name] >= key.max_requests_in_flight:
            metrics.TURNED_AWAY.labels("key").inc()
            raise Overloaded(
                f"This API key may have {key.max_requests_in_flight} requests in flight; try again.",
                code="rate_limit_exceeded",
                retry_after_s=1,
            )
        with _counted("requests"):
            self.load.enter(now)
        self.by_key[key.name] += 1
        self.idle.clear()
        metrics.IN_FLIGHT.inc()
        try:
            yield
        finally:
            self.load.leave(time.monotonic())
            self.by_key[key.name] -= 1
            if not self.by_key[key.name]:
                del self.by_key[key.name]
            metrics.IN_FLIGHT.dec()
            if not self.load.requests:
                self.idle.set()

    @contextlib.contextmanager
    def prompts_admitted(self, tokens: int) -> Iterator[None]:
        """Room for a request's prompts. Raises Overloaded when there is none."""
        with _counted("prompt_tokens"):
            self.load.add_prompt(tokens, time.monotonic())
        metrics.PROMPT_TOKENS_IN_FLIGHT.set(self.load.prompt_tokens)
        try:
            yield
        finally:
            self.load.remove_prompt(tokens)
            metrics.PROMPT_TOKENS_IN_FLIGHT.set(self.load.prompt_tokens)

    async def until_idle(self, patience_s: float) -> None:
        """Returns once no request is in flight, or after `patience_s`."""
        if self.load.requests:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.idle.wait(), patience_s)


@contextlib.contextmanager
def _counted(why: str) -> Iterator[None]:
    try:
        yield
    except Overloaded:
        metrics.TURNED_AWAY.labels(why).inc()
        raise


GATEWAY = web.AppKey("gateway", Gateway)
