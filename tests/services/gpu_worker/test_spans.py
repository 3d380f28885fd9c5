"""A sequence's spans: names, edges, times and attributes."""

from collections.abc import Iterator

import pytest
from msgspec import structs
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.status import StatusCode

from services.gpu_worker import spans
from services.gpu_worker.report import Stages
from shared import telemetry
from shared.errors import InternalError
from shared.messages import Ended, FinishReason
from shared.telemetry import stage_span_id

TRACE = telemetry.TraceContext(0xABC, 0x123)
ENDED = Ended(sequence_id=7, reason=FinishReason.STOP, num_tokens=5, attempt=1)


class Exported:
    """The spans that went out, by name."""

    def __init__(self, tracing: telemetry.Tracing, exporter: InMemorySpanExporter) -> None:
        self._tracing = tracing
        self._exporter = exporter

    def spans(self) -> dict[str, ReadableSpan]:
        self._tracing.shut_down()
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    exporter = InMemorySpanExporter()
    tracing = telemetry.Tracing(Resource.create({}), exporter)
    monkeypatch.setattr(telemetry, "_tracing", tracing)
    yield Exported(tracing, exporter)
    tracing.shut_down()


def some_stages(ended: Ended | None, first_token_at: float | None, traceparent: str = TRACE.traceparent) -> Stages:
    return Stages(
        sequence_id=7,
        traceparent=traceparent,
        attempt=1,
        num_prompt=20,
        num_outputs=5,
        cached=16,
        admitted_at=100.0,
        first_token_at=first_token_at,
        over_at=103.0,
        ended=ended,
    )


def test_prefill_and_decode_are_a_chain_under_the_wait(exported: Exported) -> None:
    spans.record(some_stages(ENDED, 101.0), "tiny", "w1")
    found = exported.spans()
    prefill, decode = found["prefill"], found["decode"]
    assert prefill.context.trace_id == decode.context.trace_id == 0xABC
    assert prefill.parent is not None
    assert prefill.parent.span_id == stage_span_id(7, "schedule.wait", 1)
    assert prefill.context.span_id == stage_span_id(7, "prefill", 1)
    assert decode.parent is not None
    assert decode.parent.span_id == prefill.context.span_id
    assert decode.context.span_id == stage_span_id(7, "decode", 1)
    assert (prefill.start_time, prefill.end_time) == (100_000_000_000, 101_000_000_000)
    assert (decode.start_time, decode.end_time) == (101_000_000_000, 103_000_000_000)
    assert dict(decode.attributes or {}) == {
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.response.finish_reasons": ["stop"],
        "sapwood.worker": "w1",
        "sapwood.attempt": 1,
    }


def test_a_sequence_taken_away_before_its_first_token_has_no_decode(exported: Exported) -> None:
    spans.record(some_stages(None, None), "tiny", "w1")
    found = exported.spans()
    assert found.keys() == {"prefill"}
    assert found["prefill"].end_time == 103_000_000_000


def test_a_sequence_taken_away_later_has_both(exported: Exported) -> None:
    spans.record(some_stages(None, 101.0), "tiny", "w1")
    found = exported.spans()
    assert found.keys() == {"prefill", "decode"}
    assert "gen_ai.response.finish_reasons" not in (found["decode"].attributes or {})


def test_a_failure_is_marked(exported: Exported) -> None:
    failed = structs.replace(ENDED, reason=FinishReason.ERROR, error=InternalError("broken").body())
    spans.record(some_stages(failed, None), "tiny", "w1")
    found = exported.spans()
    for span in found.values():
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "broken"
    assert found.keys() == {"prefill", "decode"}


def test_an_unsampled_request_has_no_spans(exported: Exported) -> None:
    spans.record(some_stages(ENDED, 101.0, TRACE.traceparent[:-1] + "0"), "tiny", "w1")
    assert exported.spans() == {}
