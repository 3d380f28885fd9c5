"""GET and DELETE /v1/streams/{id}, and requests that come back: an answer again, or the rest of it.

`id` is the answer's, as in each of its chunks. Who reads is told the answer as its first request asked for it.
"""

from aiohttp import web

from services.gateway import comeback
from services.gateway.comeback import LAST_EVENT_ID
from services.gateway.event_id import EventId
from services.gateway.middlewares import API_KEY, take_request
from services.gateway.record import Record
from services.gateway.replies import json_response
from services.gateway.state import GATEWAY
from services.gateway.telling import tell
from services.gateway.trace import RootSpan
from shared.errors import InvalidRequest, NotFound


async def get(request: web.Request) -> web.StreamResponse:
    """GET /v1/streams/{id}: the answer, or with Last-Event-ID the rest of its stream."""
    gateway = request.app[GATEWAY]
    after = comeback.last_event(request.headers)
    answer_id = request.match_info["id"]
    if after is not None and after.answer_id != answer_id:
        raise InvalidRequest(f"The header {LAST_EVENT_ID} is no event of this answer.", param=LAST_EVENT_ID)
    traceparent = request.headers.get("traceparent")
    with (
        RootSpan("resume", "/v1/streams/{id}", traceparent, gateway.settings.trace_ratio) as span,
        gateway.admitted(request[API_KEY]),
    ):
        await take_request(request, gateway.rates)
        return await read(request, await _find(request, answer_id), after, span)


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/streams/{id}: nobody will come back for it; what is being made is cancelled."""
    one = await _find(request, request.match_info["id"])
    request.app[GATEWAY].keeper.cancel(one)
    return json_response(b'{"deleted":true}')


async def resume(request: web.Request, after: EventId, span: RootSpan, digest: bytes) -> web.StreamResponse:
    """The same POST again, with the last event that its client has."""
    await take_request(request, request.app[GATEWAY].rates)
    one = await _find(request, after.answer_id)
    comeback.check_same(one, digest)
    return await read(request, one, after, span)


async def read(request: web.Request, one: Record, after: EventId | None, span: RootSpan) -> web.StreamResponse:
    """All of an answer, or what comes after an event."""
    keeper = request.app[GATEWAY].keeper
    reading = keeper.read(one)
    try:
        numbering = comeback.numbering_of(reading.call, after) if one.terms.is_streamed else None
        return await tell(request, reading.call, one.terms, numbering, span)
    finally:
        keeper.stop_reading(reading)


async def _find(request: web.Request, answer_id: str) -> Record:
    one = await request.app[GATEWAY].keeper.find(answer_id, request[API_KEY].name)
    if one is None:
        raise NotFound(
            f"There is no answer '{answer_id[:80]}' to come back to: it was not kept, is kept no longer, or failed.",
            code="stream_not_found",
        )
    return one
