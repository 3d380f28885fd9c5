"""A request's root span: begun when its headers are read, recorded when its answer is over."""

import asyncio
import random
import time
from types import TracebackType
from typing import Self

from opentelemetry.trace import SpanKind

from services.gateway.call import Call
from services.gateway.job import Job
from shared import telemetry
from shared.errors import RequestError
from shared.telemetry import TraceContext, Value

CLIENT_LEFT = 499


class RootSpan:
    """`with RootSpan(...) as span`; costs a coin toss where the request is not sampled.

    A caller's traceparent decides about sampling; without one, `ratio` does. status: of the answer; error: what
    ended a stream whose status had gone out."""

    def __init__(self, operation: str, route: str, traceparent: str | None, ratio: float) -> None:
        self._name = f"POST {route}"
        self._attributes: dict[str, Value | None] = {}
        self._start = time.time()
        self._parent: TraceContext | None = None
        self._own: TraceContext | None = None
        self.status = 200
        self.error: str | None = None
        if not telemetry.tracing().is_on:
            return
        self._parent, is_sampled = telemetry.parse_traceparent(traceparent)
        if self._parent is not None:
            if is_sampled:
                self._own = TraceContext(self._parent.trace_id, telemetry.new_span_id())
        elif random.random() < ratio:
            self._own = telemetry.new_trace()
        self._attributes = {
            telemetry.OPERATION: operation,
            telemetry.PROVIDER: "sapwood",
            "http.request.method": "POST",
            "http.route": route,
        }

    @property
    def traceparent(self) -> str | None:
        """For the stages after this one; None: not sampled."""
        return self._own.traceparent if self._own is not None else None

    def asked(self, job: Job, call_id: str) -> None:
        """Notes what the client asks for."""
        if self._own is None:
            return
        sampling = job.sampling
        self._attributes |= {
            telemetry.REQUEST_MODEL: job.model,
            telemetry.REQUEST_ID: call_id,
            telemetry.REQUEST_MAX_TOKENS: job.max_tokens,
            telemetry.REQUEST_TEMPERATURE: sampling.temperature,
            telemetry.REQUEST_TOP_P: sampling.top_p,
            telemetry.REQUEST_TOP_K: sampling.top_k,
            telemetry.REQUEST_SEED: sampling.seed if job.has_seed else None,
            telemetry.REQUEST_CHOICES: job.n if job.n > 1 else None,
            telemetry.REQUEST_STOP: job.stop or None,
            telemetry.REQUEST_PRESENCE_PENALTY: sampling.presence_penalty or None,
            telemetry.REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty or None,
        }

    def answered(self, call: Call) -> None:
        """Notes what came of it."""
        if self._own is None:
            return
        totals = call.totals()
        reasons = [choice.finish_reason for choice in call.choices if choice.finish_reason is not None]
        self._attributes |= {
            telemetry.RESPONSE_ID: call.id,
            telemetry.RESPONSE_MODEL: self._attributes.get(telemetry.REQUEST_MODEL),
            telemetry.RESPONSE_FINISH_REASONS: reasons or None,
            telemetry.INPUT_TOKENS: totals.prompt or None,
            telemetry.OUTPUT_TOKENS: totals.completion,
            telemetry.CACHED_TOKENS: totals.cached,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RequestError):
            self.status, self.error = error.status, error.message
        elif isinstance(error, asyncio.CancelledError | ConnectionError):
            self.status, self.error = CLIENT_LEFT, "the client left"
        elif error is not None:
            self.status, self.error = 500, repr(error)
        if self._own is None:
            return
        if self.error is not None:
            self._attributes[telemetry.ERROR_TYPE] = str(self.status) if self.status != 200 else "stream_error"
        telemetry.tracing().record(
            self._name,
            self._own,
            self._own.span_id,
            self._parent.span_id if self._parent is not None else None,
            self._start,
            time.time(),
            {**self._attributes, "http.response.status_code": self.status},
            kind=SpanKind.SERVER,
            error=self.error if self.error is not None and self.status not in range(400, 500) else None,
        )
