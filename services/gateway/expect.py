"""The header `Expect`: a client that asks before it sends a body is told to once its key and the size are good."""

from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, web

from shared.errors import RequestError

_WAITS = web.RequestKey("waits_to_send_its_body", bool)


class ExpectationFailed(RequestError):
    """417: the client expects what no server of HTTP does."""

    status = 417
    type = "invalid_request_error"
    code = None


async def answer_later(request: web.Request) -> None:
    """In the place of aiohttp's handler of the header, which answers before any middleware has seen the request."""


@web.middleware
async def check_expect(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Raises ExpectationFailed. An HTTP/1.0 client's header means nothing (RFC 9110, 10.1.1)."""
    expected = request.headers.get("Expect")
    if expected and request.version >= HttpVersion11:
        request[_WAITS] = request.body_exists
        if expected.lower() != "100-continue":
            raise ExpectationFailed(f"The only 'Expect' that is served is 100-continue, got {expected!r:.100}.")
    return await handler(request)


def go_on(request: web.Request) -> None:
    """Has the client send its body, if it waits for that."""
    if request.get(_WAITS) and request.transport is not None:
        request[_WAITS] = False
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def waits(request: web.Request) -> bool:
    """The client has not been told to send its body: whether one comes on this connection, nobody knows."""
    return bool(request.get(_WAITS))
