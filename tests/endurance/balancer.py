"""What stands before gateways in production: new connections go to one that is ready."""

import asyncio
import random
import time
from collections.abc import Sequence

import aiohttp

from tests.chaos.client import Client, Request, Stream

PROBE_EVERY_S = 0.5
PATIENCE_S = 120.0


class Balancer:
    """Asks each gateway for /ready, and knows which said yes last."""

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self._urls = urls
        self._rng = rng
        self._ready = set(urls)

    def choose(self, but: frozenset[str]) -> str | None:
        """A gateway that is ready; one of `but` has refused the connection."""
        there = sorted(self._ready - but)
        return self._rng.choice(there) if there else None

    async def probe(self) -> None:
        """For ever."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=5)
        ) as http:
            while True:
                for url in self._urls:
                    try:
                        async with http.get(f"{url}/ready") as response:
                            is_ready = response.status == 200
                    except (aiohttp.ClientError, TimeoutError):
                        is_ready = False
                    (self._ready.add if is_ready else self._ready.discard)(url)
                await asyncio.sleep(PROBE_EVERY_S)


class BalancedClient(Client):
    """A client behind a balancer: nothing is tried again but a connection that was refused, and that by the balancer.
    `stream.resent` counts those. A 503, however kindly worded, is a fault."""

    def __init__(self, balancer: Balancer, urls: Sequence[str], rng: random.Random) -> None:
        super().__init__(urls, rng)
        self._balancer = balancer

    async def answer(self, request: Request, stream: Stream) -> Stream:
        refusing: frozenset[str] = frozenset()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            url = self._balancer.choose(refusing)
            if url is None:
                stream.fault = "no gateway is ready"
                await asyncio.sleep(PROBE_EVERY_S)
                return stream
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    if not await self._try(url, request, stream):
                        stream.fault = "told to come back"
            except aiohttp.ClientConnectorError:
                stream.resent += 1
                refusing |= {url}
                continue
            except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
                stream.fault = f"{type(error).__name__} after {len(stream.text)} characters: {error}"
            return stream
