"""Takes `Tokenize` requests from the group's stream, encodes them in threads, and posts what follows.

What arrives together is encoded together. A long prompt goes on in threads of its own, so that neither the
event loop nor the short prompts wait for it. A request whose answer is constrained waits for its grammar, alone.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
from prometheus_client import Counter

from services.tokenizer.encode import Encoded, Encoder, Text
from services.tokenizer.grammar.service import Grammar, GrammarService
from shared import telemetry
from shared.errors import InternalError, RequestError, TimedOut
from shared.messages import Constraint, Rejected, Tokenize, sequence_id
from shared.service import Context
from shared.streams import SCHEDULE, TOKENIZE, Delivery, reply_stream, shard_stream
from shared.telemetry import TOKENIZE as TOKENIZE_STAGE
from shared.telemetry import stage_span_id

log = logging.getLogger(__name__)

LONG_PROMPT = 32_768
"""Characters from which a prompt is encoded apart from the others."""

LONG_WAITING = 64
"""Long prompts in hand at most; while there are so many, no new requests are read."""

CLAIM_IDLE_S = 5.0
"""A request that its reader has not renewed for so long is taken over from it."""

RENEW_S = 1.0

REQUESTS = Counter("sapwood_tokenizer_requests", "Requests encoded or rejected", ["outcome"])
PROMPT_TOKENS = Counter("sapwood_tokenizer_prompt_tokens", "Prompt tokens encoded")


class Intake:
    """The encoding half of a tokenizer process."""

    def __init__(self, context: Context, encoder: Encoder, grammars: GrammarService, threads: int) -> None:
        self._context = context
        self._bus = context.bus
        self._encoder = encoder
        self._grammars = grammars
        self._in_hand: set[str] = set()  # entry ids read and not acknowledged
        self._batches = asyncio.Semaphore(threads + 1)  # one waits while the threads work
        self._long = asyncio.Semaphore(LONG_WAITING)
        self._pool = ThreadPoolExecutor(threads, "encode")
        self._long_pool = ThreadPoolExecutor(max(1, threads // 2), "encode-long")

    async def run(self) -> None:
        """Reads and encodes until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(tasks))
                tasks.create_task(self._claim(tasks))
                tasks.create_task(self._renew())
        finally:
            for pool in (self._pool, self._long_pool):
                pool.shutdown(wait=False, cancel_futures=True)

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        async for batch in self._bus.groups.read(TOKENIZE, self._context.instance, pending_first=True):
            await self._start(tasks, batch)

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        async for batch in self._bus.groups.claim(TOKENIZE, self._context.instance, min_idle_s=CLAIM_IDLE_S):
            await self._start(tasks, batch)

    async def _renew(self) -> None:
        """Keeps the others from claiming what is in hand here."""
        while True:
            await asyncio.sleep(RENEW_S)
            await self._bus.groups.renew(TOKENIZE, self._context.instance, sorted(self._in_hand))

    async def _start(self, tasks: asyncio.TaskGroup, batch: Sequence[Delivery[Tokenize]]) -> None:
        """Begins the work on a batch, once a thread is free for it."""
        batch = [delivery for delivery in batch if delivery.entry_id not in self._in_hand]
        if not batch:
            return
        self._in_hand.update(delivery.entry_id for delivery in batch)
        await self._batches.acquire()
        tasks.create_task(self._handle(tasks, batch, time.time()))

    async def _handle(self, tasks: asyncio.TaskGroup, batch: Sequence[Delivery[Tokenize]], read_at: float) -> None:
        try:
            deferred = []
            for delivery, result in await self._encode(batch):
                if isinstance(result, Text):
                    deferred.append((delivery, result))
                elif isinstance(result, Encoded) and result.constraint is not None:
                    tasks.create_task(self._handle_constrained(delivery, result, result.constraint, read_at))
                else:
                    self._answer(delivery, result, read_at)
            for delivery, prompt in deferred:
                await self._long.acquire()
                tasks.create_task(self._handle_long(delivery, prompt, read_at))
        finally:
            self._batches.release()

    async def _encode(
        self, batch: Sequence[Delivery[Tokenize]]
    ) -> list[tuple[Delivery[Tokenize], Encoded | Text | RequestError]]:
        loop = asyncio.get_running_loop()
        now = time.time()
        late: list[tuple[Delivery[Tokenize], Encoded | Text | RequestError]] = [
            (delivery, _too_late()) for delivery in batch if _is_late(delivery, now)
        ]
        timely = [delivery for delivery in batch if not _is_late(delivery, now)]
        requests = [delivery.message for delivery in timely]
        try:
            results = await loop.run_in_executor(self._pool, self._encode_some, requests)
        except Exception:  # one request broke the encoder: find out which, and let the others have their answer
            log.exception("encoding %d requests together", len(requests))
            results = [await loop.run_in_executor(self._pool, self._encode_one, request) for request in requests]
        return [*late, *zip(timely, results, strict=True)]

    def _encode_some(self, requests: Sequence[Tokenize]) -> list[Encoded | Text | RequestError]:
        return self._encoder.encode(requests, defer_above=LONG_PROMPT)

    def _encode_one(self, request: Tokenize) -> Encoded | Text | RequestError:
        try:
            return self._encode_some([request])[0]
        except Exception:  # the client is told; a request left unanswered would hang
            log.exception("encoding request %s", request.request_id)
            return InternalError("the prompt could not be encoded")

    async def _handle_long(self, delivery: Delivery[Tokenize], prompt: Text, read_at: float) -> None:
        try:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._long_pool, self._encode_long, delivery, prompt)
        finally:
            self._long.release()
        if isinstance(result, Encoded) and result.constraint is not None:
            await self._handle_constrained(delivery, result, result.constraint, read_at)
        else:
            self._answer(delivery, result, read_at)

    def _encode_long(self, delivery: Delivery[Tokenize], prompt: Text) -> Encoded | RequestError:
        if _is_late(delivery, time.time()):
            return _too_late()
        try:
            return self._encoder.encode_text(delivery.message, prompt)
        except Exception:  # as in _encode_one
            log.exception("encoding request %s", delivery.message.request_id)
            return InternalError("the prompt could not be encoded")

    async def _handle_constrained(
        self, delivery: Delivery[Tokenize], encoded: Encoded, constraint: Constraint, read_at: float
    ) -> None:
        """Answers once the grammar is there, or is known to be none."""
        result: Encoded | RequestError
        grammar = None
        try:
            async with asyncio.timeout(None if delivery.deadline is None else delivery.deadline - time.time()):
                grammar = await self._grammars.compile(constraint)
            generate = msgspec.structs.replace(encoded.generate, grammar=grammar.key)
            result = dataclasses.replace(encoded, generate=generate)
        except TimeoutError:
            result = TimedOut("the request's time was up before its grammar was compiled")
        except RequestError as error:
            result = error
        except Exception:  # as in _encode_one
            log.exception("compiling the grammar of request %s", delivery.message.request_id)
            result = InternalError("the grammar could not be compiled")
        self._answer(delivery, result, read_at, constraint, grammar)

    def _answer(
        self,
        delivery: Delivery[Tokenize],
        result: Encoded | RequestError,
        read_at: float,
        constraint: Constraint | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """Posts what a request leads to and acknowledges it, in an order that loses nothing: the shard knows the
        sequences before any token can come, and a process that dies in between leaves the request to be claimed."""
        outbox, request = self._bus.outbox, delivery.message
        traceparent, deadline = delivery.traceparent, delivery.deadline
        if isinstance(result, Encoded):
            shard = shard_stream(result.generate.shard)
            outbox.post(shard, result.open, traceparent=traceparent, deadline=deadline, repeats=False)
            outbox.post(SCHEDULE, result.generate, traceparent=traceparent, deadline=deadline)
            REQUESTS.labels("encoded").inc()
            PROMPT_TOKENS.inc(result.open.num_prompt_tokens)
        else:
            rejected = Rejected(request_id=request.request_id, error=result.body())
            outbox.post(reply_stream(request.reply_to), rejected)
            REQUESTS.labels("rejected").inc()
        outbox.ack(delivery)
        self._in_hand.discard(delivery.entry_id)
        self._record(delivery, result, read_at, constraint, grammar)

    def _record(
        self,
        delivery: Delivery[Tokenize],
        result: Encoded | RequestError,
        read_at: float,
        constraint: Constraint | None,
        grammar: Grammar | None,
    ) -> None:
        trace = telemetry.sampled(delivery.traceparent)
        if trace is None:
            return
        request = delivery.message
        telemetry.tracing().record(
            TOKENIZE_STAGE,
            trace,
            stage_span_id(sequence_id(request.request_id, 0), TOKENIZE_STAGE),
            trace.span_id,
            read_at,
            time.time(),
            {
                telemetry.REQUEST_ID: request.request_id,
                telemetry.REQUEST_CHOICES: request.n,
                telemetry.INPUT_TOKENS: result.open.num_prompt_tokens if isinstance(result, Encoded) else None,
                telemetry.REQUEST_MAX_TOKENS: result.generate.max_tokens if isinstance(result, Encoded) else None,
                telemetry.GRAMMAR_KIND: constraint.kind if constraint is not None else None,
                telemetry.GRAMMAR_COMPILE_MS: grammar.compile_ms if grammar is not None else None,
                telemetry.ERROR_TYPE: result.type if isinstance(result, RequestError) else None,
            },
            error=result.message if isinstance(result, RequestError) else None,
        )


def _is_late(delivery: Delivery[Tokenize], now: float) -> bool:
    return delivery.deadline is not None and delivery.deadline <= now


def _too_late() -> TimedOut:
    return TimedOut("the request's time was up before its prompt was encoded")
