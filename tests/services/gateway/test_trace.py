"""The root span of a request."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from shared import telemetry

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 5, "temperature": 0.5}
URL = "/v1/chat/completions"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Spans:
    def __init__(self) -> None:
        self._kept = Kept()
        self.tracing = telemetry.Tracing(Resource.create({}), self._kept)

    def all(self) -> list[ReadableSpan]:
        self.tracing._processor.force_flush()  # type: ignore[union-attr]
        return self._kept.spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    spans = Spans()
    monkeypatch.setattr(telemetry, "_tracing", spans.tracing)
    yield spans
    spans.tracing.shut_down()


async def test_the_root_span_and_what_the_next_service_is_told(start: Any, backend: Any, spans: Spans) -> None:
    gateway = await start(trace_ratio=1.0)
    backend.texts = ["a", "b"]
    await gateway.post(URL, CHAT)
    (span,) = spans.all()
    assert (span.name, span.kind, span.parent, span.status.status_code) == (
        f"POST {URL}", SpanKind.SERVER, None, StatusCode.UNSET,
    )  # fmt: skip
    attributes = dict(span.attributes or {})
    assert (
        attributes
        | {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "tiny",
            "gen_ai.request.seed": 5,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.usage.cache_read.input_tokens": 4,
            "http.response.status_code": 200,
        }
        == attributes
    )
    delivery = await backend.next_delivery()
    context = span.get_span_context()
    assert delivery.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


async def test_a_callers_trace_goes_on(start: Any, backend: Any, spans: Spans) -> None:
    gateway = await start(trace_ratio=0.0)
    backend.texts = ["a"]
    await gateway.post(URL, CHAT, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    (span,) = spans.all()
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN  # type: ignore[union-attr]
    assert TRACE in (await backend.next_delivery()).traceparent


@pytest.mark.parametrize(("ratio", "header"), [(0.0, ""), (1.0, f"00-{TRACE}-{SPAN}-00")], ids=["ratio 0", "unsampled"])
async def test_what_is_not_sampled_leaves_no_trace(
    start: Any, backend: Any, spans: Spans, ratio: float, header: str
) -> None:
    gateway = await start(trace_ratio=ratio)
    backend.texts = ["a"]
    await gateway.post(URL, CHAT, headers={"traceparent": header})
    assert spans.all() == []
    assert (await backend.next_delivery()).traceparent is None


async def test_a_refused_request_is_a_span_too(start: Any, spans: Spans) -> None:
    gateway = await start(trace_ratio=1.0)
    await gateway.post(URL, {**CHAT, "n": 0})
    (span,) = spans.all()
    assert span.attributes is not None
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (400, "400")
