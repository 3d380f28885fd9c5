"""POST /v1/chat/completions and /v1/completions: a body becomes messages, the replies become an answer.

A client that leaves cancels its handler; whichever way a handler ends, what is still being computed for it is
aborted.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable

from aiohttp import web

from services.gateway import answers, metrics
from services.gateway.answers import Events, Shape
from services.gateway.body import json_body
from services.gateway.call import Call
from services.gateway.job import Job, parse_chat, parse_completion
from services.gateway.middlewares import error_response
from services.gateway.state import GATEWAY, Gateway
from services.gateway.trace import RootSpan
from shared.errors import InternalError, InvalidRequest, TimedOut
from shared.messages import Abort, Tokenize
from shared.streams import SCHEDULE, TOKENIZE

log = logging.getLogger(__name__)

NEVER_WAITS = 16 * 1024
"""Bytes that an idle connection takes without waiting: well under the transport's high-water mark of 64 KiB."""

IGNORED_FIELDS = "x-sapwood-ignored-fields"
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, "chat", answers.CHAT, parse_chat)


async def completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, "text_completion", answers.COMPLETION, parse_completion)


async def _answer(
    request: web.Request, operation: str, shape: Shape, parse: Callable[[bytes], Job]
) -> web.StreamResponse:
    gateway = request.app[GATEWAY]
    started = time.monotonic()
    traceparent = request.headers.get("traceparent")
    with RootSpan(operation, request.path, traceparent, gateway.settings.trace_ratio) as span, gateway.admitted():
        arrival = time.time()
        async with json_body(request, gateway.bodies) as body:
            job = parse(body)
        del body
        if job.enforced is not None and gateway.settings.grammar_mode == "off":
            raise InvalidRequest(
                f"'{job.enforced}' is not served here: this server runs with --grammar-mode off.",
                param=job.enforced,
                code="unsupported_parameter",
            )
        call_id = shape.id_prefix + secrets.token_hex(16)
        span.asked(job, call_id)
        gateway.deployment.check(job.model)
        call = Call(call_id, len(job.prompts), job.n, is_streamed=job.is_streamed)
        timeout_s = gateway.settings.request_timeout_s
        timer = asyncio.get_running_loop().call_later(timeout_s, _time_out, call, timeout_s) if timeout_s else None
        gateway.inbox.open(call)
        try:
            _post(gateway, job, call, arrival, span.traceparent)
            headers = {IGNORED_FIELDS: _header_list(job.ignored)} if job.ignored else {}
            if job.is_streamed:
                return await _stream(request, call, job, Events(shape, call_id, int(arrival), job.model), headers, span)
            return await _plain(call, job, shape, int(arrival), headers, span)
        finally:
            if timer is not None:
                timer.cancel()
            gateway.inbox.close(call)
            if unfinished := call.open_sequences:
                gateway.bus.outbox.post(SCHEDULE, Abort(sequence_ids=unfinished), traceparent=span.traceparent)
            span.answered(call)
            _count(call, started)


def _post(gateway: Gateway, job: Job, call: Call, arrival: float, traceparent: str | None) -> None:
    """One message a prompt."""
    timeout_s = gateway.settings.request_timeout_s
    deadline = arrival + timeout_s if timeout_s else None
    for prompt, (request_id, content) in enumerate(zip(call.request_ids, job.prompts, strict=True)):
        message = Tokenize(
            request_id=request_id,
            reply_to=gateway.instance,
            prompt=content,
            sampling=job.sampling_of(prompt),
            n=job.n,
            max_tokens=job.max_tokens,
            stop=job.stop,
            include_stop_str_in_output=job.include_stop_str_in_output,
            skip_special_tokens=job.skip_special_tokens,
            priority=job.priority,
            cache_salt=job.cache_salt,
            arrival=arrival,
            tool_calling=job.tool_calling,
            separate_reasoning=job.separate_reasoning,
            constraint=job.constraint,
        )
        try:
            gateway.bus.outbox.post(TOKENIZE, message, traceparent=traceparent, deadline=deadline)
        except OverflowError:
            raise InvalidRequest("A number in the messages does not fit into 64 bits.", param="messages") from None
    job.prompts.clear()  # megabytes at times, and the request may run for minutes


async def _plain(
    call: Call, job: Job, shape: Shape, created: int, headers: dict[str, str], span: RootSpan
) -> web.StreamResponse:
    await call.news()
    if call.error is not None:
        span.status, span.error = call.error.status, call.error.message
        return error_response(call.error)
    body = answers.plain(shape, call.id, created, job.model, call.choices, call.totals())
    return web.Response(body=body, content_type="application/json", headers=headers)


async def _stream(
    request: web.Request, call: Call, job: Job, events: Events, headers: dict[str, str], span: RootSpan
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
            payload = _events(call, job, events)
        except Exception:  # the status has gone out: the middleware could not tell the client any more
            log.exception("%s failed", call.id)
            call.fail(InternalError("An internal error.").body())
            payload = b""
        if call.error is not None:
            span.error = call.error.message
            payload += answers.error_event(call.error)
        is_last = call.error is not None or not call.num_open
        await _send(request, response, payload + answers.DONE if is_last else payload, is_last)
        if is_last:
            return response
        await call.news()


def _events(call: Call, job: Job, events: Events) -> bytes:
    """What is new of each choice, and the usage after the last."""
    parts = []
    for choice in call.take_changed():
        # a chunk's usage needs the prompt's length, which the tokenizer says with the first text
        totals = call.totals() if job.continuous_usage and choice.num_prompt_tokens else None
        parts.append(events.news(choice, totals))
    if job.include_usage and not call.num_open:
        parts.append(events.usage(call.totals()))
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(request: web.Request, response: web.StreamResponse, payload: bytes, is_last: bool) -> None:
    """Writes; while the client reads slowly this waits, and what comes meanwhile goes into the next event.

    Raises ConnectionResetError when the client is gone or reads nothing for too long."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    timeout_s = request.app[GATEWAY].settings.send_timeout_s
    if not is_last and len(payload) < NEVER_WAITS and not transport.get_write_buffer_size():
        await response.write(payload)
        return
    try:
        async with asyncio.timeout(timeout_s or None):
            await response.write(payload)
            if is_last:
                await response.write_eof()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError(f"the client read nothing for {timeout_s} s") from None


def _time_out(call: Call, timeout_s: float) -> None:
    call.fail(TimedOut(f"The answer was not complete after {timeout_s:g} s.").body())


def _count(call: Call, started: float) -> None:
    totals = call.totals()
    metrics.PROMPT_TOKENS.inc(totals.prompt)
    metrics.COMPLETION_TOKENS.inc(totals.completion)
    metrics.CACHED_TOKENS.inc(totals.cached)
    if call.first_at:
        metrics.TIME_TO_FIRST_TOKEN.observe(call.first_at - started)
    if not call.num_open:
        metrics.REQUEST_LATENCY.observe(time.monotonic() - started)


def _header_list(names: list[str]) -> str:
    """Names from the client's JSON, made safe for a header."""
    shown = [re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:64] for name in names[:20]]
    return ", ".join(shown + (["..."] if len(names) > 20 else []))
