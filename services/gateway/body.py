"""Reading request bodies within their limits: of one, and of all that are being read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from services.gateway.expect import go_on
from shared.errors import InvalidRequest, Overloaded, PromptTooLarge

STALL_S = 30.0
"""A client that sends nothing of its body for so long gets a 408."""


@dataclass(slots=True)
class BodyBudget:
    """Bytes of bodies in memory. one: limit of a body; all: limit of all together, used: of it."""

    one: int
    all: int
    used: int = 0

    def check(self, size: int) -> None:
        """Raises PromptTooLarge for a body of that size."""
        if size > self.one:
            raise PromptTooLarge(f"The body is larger than {self.one} bytes.")

    def take(self, size: int) -> None:
        """Counts more bytes. Raises Overloaded when there is no room for them."""
        if self.used + size > self.all:
            raise Overloaded("As much is being read as this gateway takes; try again.", retry_after_s=1)
        self.used += size


@asynccontextmanager
async def json_body(request: web.Request, budget: BodyBudget) -> AsyncIterator[bytes]:
    """The body of a JSON request, decompressed; it counts against the budget until the block is left.

    aiohttp's own `read` would keep it for as long as the request."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        given = request.headers.get("Content-Type", "none")
        raise InvalidRequest(f"The content type must be application/json, got {given!r:.100}.")
    budget.check(request.content_length or 0)
    go_on(request)
    chunks: list[bytes] = []
    taken = 0
    try:
        while chunk := await _next_chunk(request):
            budget.check(taken + len(chunk))
            budget.take(len(chunk))
            taken += len(chunk)
            chunks.append(chunk)
        yield b"".join(chunks)
    finally:
        budget.used -= taken


async def _next_chunk(request: web.Request) -> bytes:
    """What has come of the body; empty at its end."""
    try:
        async with asyncio.timeout(STALL_S):
            return await request.content.readany()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason="The body did not arrive in time.") from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"The body cannot be read: {' '.join(str(error).split())}.") from None
