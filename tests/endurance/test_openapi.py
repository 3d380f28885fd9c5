"""Requests made from /openapi.json, right ones and wrong ones: each is answered as described, in time, without a 500.

SAPWOOD_OPENAPI_CASES is how many requests each operation gets; the default is an everyday number."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway import openapi
from services.gateway.openapi import OPERATIONS
from tests.services.gateway.served import ANSWER_S, Served, check, serving

schemathesis = pytest.importorskip("schemathesis", reason="is in the extra 'long'")
from schemathesis.specs.openapi import checks  # noqa: E402

CASES = int(os.environ.get("SAPWOOD_OPENAPI_CASES", "50"))
FUZZ = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
AS_DESCRIBED = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MODES = list(schemathesis.GenerationMode)
COMPLETIONS = ("/v1/chat/completions", "/v1/completions")


def document(model: str | None) -> Any:
    """The description. model: the only one that requests are to name."""
    said = msgspec.json.decode(msgspec.json.encode(openapi.description()))
    if model is not None:
        for kind in ("ChatRequest", "CompletionRequest"):
            said["components"]["schemas"][kind]["properties"]["model"] = {"const": model}
    return said


@pytest.fixture(scope="module")
def served(broker_url: str) -> Iterator[Served]:
    with serving(broker_url) as served:
        yield served


def test_the_description_is_served(served: Served) -> None:
    assert msgspec.json.decode(served.ask("GET", "/openapi.json", None, {})[2]) == document(None)


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        *((one.method, one.path, None) for one in OPERATIONS),
        *(("post", path, "tiny") for path in COMPLETIONS),  # so that answers are made
    ],
)
def test_every_operation_does_as_described(served: Served, method: str, path: str, model: str | None) -> None:
    statuses: Counter[int] = Counter()
    operation = schemathesis.openapi.from_dict(document(model))[path][method.upper()]

    @FUZZ
    @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in MODES]))
    def ask(case: Any) -> None:
        headers = {"Authorization": "Bearer boss"} if "admin" in path else {}
        response = case.call(base_url=f"http://127.0.0.1:{served.port}", headers=headers, timeout=ANSWER_S)
        statuses[response.status_code] += 1
        content_type = response.headers["content-type"][0]
        is_late = response.status_code == 504 and "X-Request-Timeout" in case.headers
        if not is_late and not (path == "/ready" and response.status_code == 503):
            check(response.status_code, content_type, response.content)
        is_stream = content_type.startswith("text/event-stream")  # its events are looked at above
        case.validate_response(response, checks=AS_DESCRIBED[:-1] if is_stream else AS_DESCRIBED)

    ask()
    print(f"{method} {path} {model or ''}: {dict(sorted(statuses.items()))}")
    assert statuses[200] or model is None, "no answer was made"
