"""Traces: W3C trace context, span names and attributes, spans built after the fact.

One request is one trace, a chain of spans over the services, each the parent of the next:

    POST /v1/... (gateway) > tokenize (tokenizer) > schedule.wait (scheduler) > prefill > decode (worker)
      > detokenize (tokenizer)

A stage's span id is a function of the sequence and the stage (`stage_span_id`), so the next service can name its
parent without being told, and no span object is alive while a request runs: each service notes timestamps and
records the whole span when its stage is over (`Tracing.record`). An unsampled request carries no trace context
and costs nothing.

Attribute names: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

TOKENIZE = "tokenize"
SCHEDULE_WAIT = "schedule.wait"
PREFILL = "prefill"
DECODE = "decode"
DETOKENIZE = "detokenize"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_STOP = "gen_ai.request.stop_sequences"
REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
ERROR_TYPE = "error.type"
REQUEST_ID = "sapwood.request.id"
CHOICE = "sapwood.choice"
WORKER = "sapwood.worker"
QUEUE_POSITION = "sapwood.queue.position"
ATTEMPT = "sapwood.attempt"
GRAMMAR_KIND = "sapwood.grammar.kind"
GRAMMAR_COMPILE_MS = "sapwood.grammar.compile_ms"

Value = str | bool | int | float | list[str]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A sampled trace and the span to be the parent of what comes next. Both ids as integers."""

    trace_id: int
    span_id: int

    @property
    def traceparent(self) -> str:
        """https://www.w3.org/TR/trace-context/#traceparent-header, with the sampled flag."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


def parse_traceparent(header: str | None) -> tuple[TraceContext | None, bool]:
    """(context, is_sampled) of a header; (None, False) for none or a malformed one, as the standard asks."""
    parts = header.strip().split("-") if header else []
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None, False
    if parts[0] == "00" and len(parts) != 4:
        return None, False
    try:
        trace_id, span_id, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None, False
    if not trace_id or not span_id:
        return None, False
    return TraceContext(trace_id, span_id), bool(flags & 1)


def sampled(traceparent: str | None) -> TraceContext | None:
    """The context of a stream entry's traceparent; None when the request is not traced."""
    context, is_sampled = parse_traceparent(traceparent)
    return context if is_sampled else None


def new_trace() -> TraceContext:
    return TraceContext(secrets.randbits(127) | 1 << 127, new_span_id())


def new_span_id() -> int:
    return secrets.randbits(63) | 1 << 63


def stage_span_id(sequence_id: int, stage: str, attempt: int = 0) -> int:
    """The id of the span of a sequence's stage. `tokenize` is the request's: use its choice 0. attempt counts
    admissions, for stages that happen again when a sequence is retracted or moved."""
    digest = hashlib.blake2b(f"{sequence_id}/{stage}/{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") | 1


class Tracing:
    """Where a process's finished spans go. Without an endpoint, nowhere."""

    def __init__(self, resource: Resource, exporter: SpanExporter | None) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("sapwood")
        self._processor = BatchSpanProcessor(exporter) if exporter is not None else None

    def record(
        self,
        name: str,
        trace: TraceContext,
        span_id: int,
        parent_id: int | None,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Value | None] | None = None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
    ) -> None:
        """Exports a span that is over. Times in unix seconds; attributes that are None are left out."""
        if self._processor is None:
            return
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(trace.trace_id, parent_id, is_remote=True, trace_flags=flags) if parent_id else None
        self._processor.on_end(
            ReadableSpan(
                name=name,
                context=SpanContext(trace.trace_id, span_id, is_remote=False, trace_flags=flags),
                parent=parent,
                resource=self._resource,
                attributes={key: value for key, value in (attributes or {}).items() if value is not None},
                kind=kind,
                status=Status(StatusCode.ERROR, error) if error else Status(),
                start_time=int(start_s * 1e9),
                end_time=max(int(end_s * 1e9), int(start_s * 1e9)),
                instrumentation_scope=self._scope,
            )
        )

    @property
    def is_on(self) -> bool:
        return self._processor is not None

    def shut_down(self) -> None:
        """Sends what is left, for a few seconds at most."""
        if self._processor is not None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]


_tracing = Tracing(Resource.create({}), None)


def set_up(service: str, instance: str, otlp_endpoint: str) -> Tracing:
    """Makes this process's tracing; `tracing()` returns it from then on."""
    global _tracing
    resource = Resource.create(
        {"service.name": f"sapwood-{service}", "service.namespace": "sapwood", "service.instance.id": instance}
    )
    exporter = None
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces", timeout=3)
    _tracing = Tracing(resource, exporter)
    return _tracing


def tracing() -> Tracing:
    return _tracing
