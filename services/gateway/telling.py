"""Writes an answer to its client: whole as JSON, or as events while it comes."""

import asyncio
import logging
import re

from aiohttp import web

from services.gateway import answers
from services.gateway.answers import CHAT, COMPLETION, Events, Numbering
from services.gateway.call import Call
from services.gateway.record import Terms
from services.gateway.replies import error_response
from services.gateway.state import GATEWAY
from services.gateway.trace import RootSpan
from shared.errors import InternalError

log = logging.getLogger(__name__)

NEVER_WAITS = 16 * 1024
"""Bytes that an idle connection takes without waiting: well under the transport's high-water mark of 64 KiB."""

IGNORED_FIELDS = "x-sapwood-ignored-fields"
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


async def tell(
    request: web.Request, call: Call, terms: Terms, numbering: Numbering | None, span: RootSpan
) -> web.StreamResponse:
    """Tells the client what comes of the call until it is over. numbering: gives a stream's events ids."""
    headers = {IGNORED_FIELDS: _header_list(terms.ignored)} if terms.ignored else {}
    shape = CHAT if terms.endpoint == "chat" else COMPLETION
    if terms.is_streamed:
        events = Events(shape, call.id, terms.created, terms.model, numbering)
        return await _stream(request, call, terms, events, headers, span)
    await call.news()
    if call.error is not None:
        span.status, span.error = call.error.status, call.error.message
        return error_response(call.error)
    body = answers.plain(shape, call.id, terms.created, terms.model, call.choices, call.totals())
    return web.Response(body=body, content_type="application/json", headers=headers)


async def _stream(
    request: web.Request, call: Call, terms: Terms, events: Events, headers: dict[str, str], span: RootSpan
) -> web.StreamResponse:
    """The answer as events. Nothing goes out before the first reply, so that an early error has a status."""
    await call.news()
    if call.error is not None:
        span.status, span.error = call.error.status, call.error.message
        return error_response(call.error)
    response = web.StreamResponse(headers={**_STREAM_HEADERS, **headers})
    await response.prepare(request)
    while True:
        try:
            payload = _events(call, terms, events)
        except Exception:  # the status has gone out: the middleware could not tell the client any more
            log.exception("%s failed", call.id)
            call.fail(InternalError("An internal error.").body())
            payload = b""
        if call.is_handed_over:
            _cut(request)  # no end of the answer: its client asks another gateway for the rest
        if call.error is not None:
            span.error = call.error.message
            payload += answers.error_event(call.error)
        is_last = call.error is not None or not call.num_open
        await _send(request, response, call, payload + answers.DONE if is_last else payload, is_last)
        if is_last:
            return response
        await call.news()


def _events(call: Call, terms: Terms, events: Events) -> bytes:
    """What is new of each choice, and the usage after the last."""
    parts = []
    for choice in call.take_changed():
        # a chunk's usage needs the prompt's length, which the tokenizer says with the first text
        totals = call.totals() if terms.continuous_usage and choice.num_prompt_tokens else None
        parts.append(events.news(choice, totals))
    if terms.include_usage and not call.num_open:
        parts.append(events.usage(call.totals()))
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(request: web.Request, response: web.StreamResponse, call: Call, payload: bytes, is_last: bool) -> None:
    """Writes; while the client reads slowly this waits, and what comes meanwhile goes into the next event.

    Raises ConnectionResetError when the client is gone, reads nothing for too long, or leaves too much unread."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    timeout_s = request.app[GATEWAY].settings.send_timeout_s
    if not is_last and len(payload) < NEVER_WAITS and not transport.get_write_buffer_size():
        await response.write(payload)
        return
    call.on_flood = transport.abort
    try:
        async with asyncio.timeout(timeout_s or None):
            await response.write(payload)
            if is_last:
                await response.write_eof()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError(f"the client read nothing for {timeout_s} s") from None
    finally:
        call.on_flood = None


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()
    raise ConnectionResetError("handed over")


def _header_list(names: list[str]) -> str:
    """Names from the client's JSON, made safe for a header."""
    shown = [re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:64] for name in names[:20]]
    return ", ".join(shown + (["..."] if len(names) > 20 else []))
