"""One request is one trace: a chain of spans over four services."""

import time
from typing import Any

import pytest
import requests

pytestmark = pytest.mark.model

STAGES = [
    ("sapwood-gateway", "POST /v1/chat/completions"),
    ("sapwood-tokenizer", "tokenize"),
    ("sapwood-scheduler", "schedule.wait"),
    ("sapwood-gpu_worker", "prefill"),
    ("sapwood-gpu_worker", "decode"),
    ("sapwood-tokenizer", "detokenize"),
]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"


def test_a_request_is_a_chain_of_spans_over_four_services(sapwood: Any, otlp: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 8}
    response = requests.post(
        f"{sapwood.url}/v1/chat/completions",
        json={"model": "SmolLM2-135M-Instruct", **body},
        headers={"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01"},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    deadline = time.monotonic() + 20
    while len(otlp.of_trace(TRACE_ID)) < len(STAGES) and time.monotonic() < deadline:
        time.sleep(0.1)
    spans = otlp.of_trace(TRACE_ID)
    by_parent = {span.parent_id: span for span in spans}
    assert len(by_parent) == len(spans), "two spans have one parent"
    chain = []
    parent = CLIENT_SPAN
    while parent in by_parent:
        chain.append(by_parent[parent])
        parent = chain[-1].span_id
    assert [(span.service, span.name) for span in chain] == STAGES
    assert len(spans) == len(STAGES)
    starts = [span.start_ns for span in chain]
    assert starts == sorted(starts)
    assert all(span.end_ns <= chain[0].end_ns for span in chain[1:5])
    root = chain[0].attributes
    assert root["gen_ai.request.model"] == "SmolLM2-135M-Instruct"
    assert root["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert root["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert root["gen_ai.response.finish_reasons"] in (["length"], ["stop"])
