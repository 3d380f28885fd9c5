"""POST /v1/chat/completions and /v1/completions: a body becomes messages, the replies become an answer.

A client that leaves cancels its handler. What is still being computed for it is aborted then, unless its request was
one to come back to: that goes on for a while (`keeper.py`).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import msgspec
from aiohttp import web

from services.gateway import answers, comeback, metrics, streams
from services.gateway.answers import Shape
from services.gateway.body import json_body
from services.gateway.call import Call
from services.gateway.comeback import Comeback
from services.gateway.deadline import timeout_of
from services.gateway.job import Job, parse_chat, parse_completion
from services.gateway.keeper import claim_name, digest_of, record_name
from services.gateway.keys import ApiKey
from services.gateway.middlewares import API_KEY, take_request
from services.gateway.record import Record, Terms
from services.gateway.state import GATEWAY, Gateway
from services.gateway.telling import tell
from services.gateway.trace import RootSpan
from shared.errors import InvalidRequest, TimedOut
from shared.messages import Abort, ChatPrompt, Tokenize, TokenPrompt
from shared.streams import SCHEDULE, TOKENIZE

log = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4
"""Of text in a prompt, about; its tokens are counted after it was taken."""

Endpoint = Literal["chat", "completion"]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, "chat", "chat", answers.CHAT, parse_chat)


async def completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, "text_completion", "completion", answers.COMPLETION, parse_completion)


async def _answer(
    request: web.Request, operation: str, endpoint: Endpoint, shape: Shape, parse: Callable[[bytes], Job]
) -> web.StreamResponse:
    gateway, key = request.app[GATEWAY], request[API_KEY]
    traceparent = request.headers.get("traceparent")
    with RootSpan(operation, request.path, traceparent, gateway.settings.trace_ratio) as span, ExitStack() as resources:
        resources.enter_context(gateway.admitted(key))
        started, arrival = time.monotonic(), time.time()
        back = comeback.read(request.headers)
        async with json_body(request, gateway.bodies) as body:
            job = parse(body)
            is_kept = job.is_resumable or bool(back.idempotency_key) or back.last_event is not None
            digest = digest_of(request.path, body) if is_kept else b""
            prompt_tokens = _estimate(job, len(body))
        del body
        timeout_s = timeout_of(request.headers, job.timeout_s, gateway.settings.request_timeout_s)
        if back.last_event is not None:
            return await streams.resume(request, back.last_event, span, digest)
        _check_served(gateway, job)
        await take_request(request, gateway.rates)
        resources.enter_context(gateway.prompts_admitted(prompt_tokens))
        call_id = shape.id_prefix + secrets.token_hex(16)
        span.asked(job, call_id)
        call = Call(call_id, len(job.prompts), job.n, is_streamed=job.is_streamed, is_kept=is_kept)
        call.most_unread = gateway.settings.max_unread_bytes
        resources.callback(_settle, gateway, key, call, started)
        if timeout_s:
            resources.callback(asyncio.get_running_loop().call_later(timeout_s, _time_out, call, timeout_s).cancel)
        deadline = arrival + timeout_s if timeout_s else None
        messages = _messages(gateway, job, call, key, arrival)
        terms = Terms(
            endpoint=endpoint,
            model=job.model,
            created=int(arrival),
            is_streamed=job.is_streamed,
            include_usage=job.include_usage,
            continuous_usage=job.continuous_usage,
            ignored=job.ignored,
        )
        gateway.inbox.open(call)
        if is_kept:
            one = _record(gateway, call, terms, back, key, digest, deadline)
            return await _kept(request, call, one, messages, resources, span)
        try:
            with _numbers_checked(messages):
                for message in messages:
                    gateway.bus.outbox.post(TOKENIZE, message, traceparent=span.traceparent, deadline=deadline)
            messages.clear()  # megabytes at times, and the request may run for minutes
            return await tell(request, call, terms, None, span)
        finally:
            gateway.inbox.close(call)
            if unfinished := call.open_sequences:
                gateway.bus.outbox.post(SCHEDULE, Abort(sequence_ids=unfinished), traceparent=span.traceparent)
            span.answered(call)


async def _kept(
    request: web.Request, call: Call, one: Record, messages: list[Tokenize], resources: ExitStack, span: RootSpan
) -> web.StreamResponse:
    """As above, for a client that may come back, or has come back."""
    gateway = request.app[GATEWAY]
    numbering = comeback.numbering_of(call, None) if one.terms.is_streamed else None
    taken = resources.pop_all()
    with _numbers_checked(messages):
        begun = await gateway.keeper.begin(one, call, messages, taken, span.traceparent)
    messages.clear()
    if isinstance(begun, Record):
        gateway.inbox.close(call)
        resources.enter_context(taken)
        comeback.check_same(begun, one.digest)
        return await streams.read(request, begun, None, span)
    try:
        return await tell(request, call, one.terms, numbering, span)
    finally:
        gateway.keeper.leave(begun)
        span.answered(call)


@contextmanager
def _numbers_checked(messages: Sequence[Tokenize]) -> Iterator[None]:
    """Encoding meets numbers that JSON has and messages have not. Only a chat's prompt has any that are not checked."""
    try:
        yield
    except OverflowError:
        [message] = messages
        assert isinstance(message.prompt, ChatPrompt)
        param = _beyond_64_bits(message.prompt)
        raise InvalidRequest(f"A number in '{param}' does not fit into 64 bits.", param=param) from None


def _beyond_64_bits(chat: ChatPrompt) -> str:
    """The field of the client's request with a number that cannot be encoded."""
    for param, value in (("tools", chat.tools), ("chat_template_kwargs", chat.template_kwargs)):
        try:
            msgspec.msgpack.encode(value)
        except OverflowError:
            return param
    return "messages"


def _record(
    gateway: Gateway, call: Call, terms: Terms, back: Comeback, key: ApiKey, digest: bytes, deadline: float | None
) -> Record:
    return Record(
        answer_id=call.id,
        owner=key.name,
        digest=digest,
        address=gateway.inbox.address,
        cursor=call.cursor,
        num_prompts=len(call.request_ids),
        n=call.n,
        terms=terms,
        deadline=deadline,
        claim=claim_name(key.name, back.idempotency_key) if back.idempotency_key else "",
    )


def _check_served(gateway: Gateway, job: Job) -> None:
    """Raises RequestError for what this deployment does not do, or cannot do now."""
    if job.enforced is not None and gateway.settings.grammar_mode == "off":
        raise InvalidRequest(
            f"'{job.enforced}' is not served here: this server runs with --grammar-mode off.",
            param=job.enforced,
            code="unsupported_parameter",
        )
    gateway.deployment.check(job.model)


def _messages(gateway: Gateway, job: Job, call: Call, key: ApiKey, arrival: float) -> list[Tokenize]:
    """One message a prompt. Takes the job's prompts."""
    messages = [
        Tokenize(
            request_id=request_id,
            reply_to=gateway.inbox.address,
            prompt=content,
            sampling=job.sampling_of(prompt),
            n=job.n,
            max_tokens=job.max_tokens,
            max_tokens_param=job.max_tokens_param,
            stop=job.stop,
            include_stop_str_in_output=job.include_stop_str_in_output,
            skip_special_tokens=job.skip_special_tokens,
            priority=job.priority,
            cache_salt=f"{key.name}\n{job.cache_salt}" if gateway.settings.isolate_keys else job.cache_salt,
            arrival=arrival,
            tool_calling=job.tool_calling,
            separate_reasoning=job.separate_reasoning,
            constraint=job.constraint,
            kept_while=record_name(call.id) if call.is_kept else "",
        )
        for prompt, (request_id, content) in enumerate(zip(call.request_ids, job.prompts, strict=True))
    ]
    job.prompts.clear()
    return messages


def _estimate(job: Job, num_bytes: int) -> int:
    """The prompts' tokens, about."""
    exact = [len(prompt.token_ids) // 4 for prompt in job.prompts if isinstance(prompt, TokenPrompt)]
    return sum(exact) if len(exact) == len(job.prompts) else num_bytes // BYTES_PER_TOKEN


def _time_out(call: Call, timeout_s: float) -> None:
    call.fail(TimedOut(f"The answer was not complete after {timeout_s:g} s.").body())


def _settle(gateway: Gateway, key: ApiKey, call: Call, started: float) -> None:
    """Counts what came of a request that is over."""
    totals = call.totals()
    gateway.rates.charge_tokens(key, totals.prompt + totals.completion)
    metrics.PROMPT_TOKENS.inc(totals.prompt)
    metrics.COMPLETION_TOKENS.inc(totals.completion)
    metrics.CACHED_TOKENS.inc(totals.cached)
    if call.first_at:
        metrics.TIME_TO_FIRST_TOKEN.observe(call.first_at - started)
    if not call.num_open:
        metrics.REQUEST_LATENCY.observe(time.monotonic() - started)
