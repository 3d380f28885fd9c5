"""Anything at all sent to a gateway: an answer or a clear refusal, in time, and never a 500.

SAPWOOD_FUZZ_CASES is how many cases each test tries; the default is an everyday one."""

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from services.gateway import comeback, deadline, keys
from services.gateway.job import parse_chat, parse_completion
from services.gateway.openai_types import ChatRequest, CompletionRequest
from services.gateway.openapi import OPERATIONS
from services.gateway.unsupported import CHAT_REFUSED, COMPLETION_REFUSED, HARMLESS
from shared.errors import ConfigError, InvalidRequest
from tests.services.gateway.served import ANSWER_S, Served, check, serving
from tests.services.gateway.sse import said_of, split

CASES = int(os.environ.get("SAPWOOD_FUZZ_CASES", "150"))
PURE = settings(max_examples=CASES * 4, deadline=None, suppress_health_check=list(HealthCheck))
OVER_HTTP = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))

numbers = (
    st.integers(-3, 130)
    | st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63), -(2**63) - 1])
    | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "tiny",
        "auto",
        "none",
        "required",
        "\x00",
        "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    ]
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
PARTS = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "a"}, {"type": "image_url"}, "a", 1]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool", "x"]) | scalars},
        optional={
            "content": texts | st.lists(st.sampled_from(PARTS) | values, max_size=3) | values,
            "tool_calls": st.lists(st.just(CALL) | values, max_size=2) | values,
            "tool_call_id": texts | scalars,
            "name": values,
        },
    )
    | values,
    max_size=3,
)
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "messages": messages,
    "tools": st.lists(st.just(TOOL) | values, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": scalars}),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema", "structural_tag", "grammar"]) | scalars},
        optional={
            "json_schema": st.fixed_dictionaries({"name": texts}, optional={"schema": values}) | values,
            "grammar": st.fixed_dictionaries({"type": texts}, optional={"items": values}) | values,
        },
    ),
    "prompt": texts | st.lists(st.integers(0, 100) | texts, min_size=1, max_size=4) | st.lists(st.lists(numbers)),
    "stop": texts | st.lists(texts, max_size=17),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(-1, 100).map(str) | texts, numbers, max_size=3),
}


def bodies(kind: type, refused: Any, base: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A request that is served, with some of its fields changed, left out or added."""
    names = [*(field.encode_name for field in msgspec.structs.fields(kind)), *refused, *HARMLESS, "zebra"]
    changes = st.dictionaries(st.sampled_from(sorted(set(names))), st.just(...), max_size=4).flatmap(
        lambda chosen: st.fixed_dictionaries({name: SENSIBLE.get(name, values) | values for name in chosen})
    )
    return st.builds(
        lambda change, cut: {**{k: v for k, v in base.items() if k not in cut}, **change},
        changes,
        st.lists(st.sampled_from(sorted(base)), max_size=1),
    )


CHATS = bodies(ChatRequest, CHAT_REFUSED, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
COMPLETIONS = bodies(CompletionRequest, COMPLETION_REFUSED, {"model": "tiny", "prompt": "a"})


def as_json(value: Any) -> bytes:
    """As the standard library writes it, which has numbers beyond 64 bits."""
    return json.dumps(value).encode()


def damaged(body: bytes, place: int, piece: bytes) -> bytes:
    place %= len(body) + 1
    return body[:place] + piece + body[place + len(piece) :]


encoded = (CHATS | COMPLETIONS).map(as_json)
raw = (
    encoded
    | st.binary(max_size=100)
    | values.map(as_json)
    | st.builds(damaged, encoded, st.integers(0, 10**4), st.binary(max_size=3))
    | st.integers(1, 3000).map(lambda depth: b'{"messages":' + b"[" * depth)
    | st.integers(1, 3000).map(
        lambda depth: (
            b'{"model":"tiny","messages":[{"role":"user","content":"a","x":%b}]}' % (b"[" * depth + b"]" * depth)
        )
    )
)


@PURE
@given(raw, st.sampled_from([parse_chat, parse_completion]))
def test_bodies_are_jobs_or_refusals(body: bytes, parse: Callable[[bytes], Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        job = parse(body)
        assert job.prompts
        assert job.n >= 1


NASTY = (
    b'{"\x80":1}',
    b'"\x80"',
    b'{"regex":"\x80"}',
    b'{"type":"json_schema","json_schema":{"name":"\x80"}}',
    b'{"type":"structural_tag","\xff":1}',
    b'["\xc3("]',
    b'"\\ud800"',
    b"[" * 2000 + b"]" * 2000,
    b'{"json":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"1e999",
    b"-0",
    b"1" * 5000,
)


@pytest.mark.parametrize(
    "name", sorted({field.encode_name for field in msgspec.structs.fields(ChatRequest)} | {"zebra"})
)
def test_every_field_bears_what_is_no_text(name: str) -> None:
    """Broken text and deep nesting, also where a decoder passes them on unread."""
    for value in NASTY:
        with contextlib.suppress(InvalidRequest):
            parse_chat(b'{"model":"m","messages":[{"role":"user","content":"a"}],"%b":%b}' % (name.encode(), value))
        with contextlib.suppress(InvalidRequest):
            parse_completion(b'{"model":"m","prompt":"a","%b":%b}' % (name.encode(), value))


header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.sampled_from("éÿ"), max_size=30)
header_values |= st.sampled_from(["chatcmpl-" + "a" * 32 + ":1", "cmpl-" + "0" * 32 + ":-,3e,0u", "1e3", "k" * 300])


@PURE
@given(header_values, header_values, header_values)
def test_headers_mean_something_or_are_refused(key: str, last: str, timeout: str) -> None:
    headers = CIMultiDictProxy(
        CIMultiDict({"Idempotency-Key": key, "Last-Event-ID": last, "X-Request-Timeout": timeout})
    )
    with contextlib.suppress(InvalidRequest):
        assert comeback.read(headers).idempotency_key
    with contextlib.suppress(InvalidRequest):
        assert 0 < deadline.timeout_of(headers, None, 0) <= 1e9


toml = st.builds(
    lambda fields: "[[key]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items()),
    st.dictionaries(
        st.sampled_from(["name", "sha256", "admin", "requests_per_minute", "x"]),
        st.sampled_from(["'a'", "1", "-1", "true", "'" + "a" * 64 + "'", "[]", "1979-05-27", "nan"])
        | st.text(max_size=5),
    ),
)


@PURE
@given(st.binary(max_size=80) | toml.map(lambda text: text.encode(errors="surrogatepass")))
def test_a_keys_file_is_read_or_refused(content: bytes) -> None:
    path = Path(f"/tmp/sapwood-fuzz-{os.getpid()}.toml")
    path.write_bytes(content)
    try:
        with contextlib.suppress(ConfigError):
            assert keys.read_file(str(path))
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def served(broker_url: str) -> Iterator[Served]:
    with serving(broker_url) as served:
        yield served


def as_told(answer: bytes, is_streamed: bool) -> Any:
    """What an answer says, however it was cut into events."""
    return said_of(split(answer)) if is_streamed else msgspec.json.decode(answer)


JSON_TYPE = {"Content-Type": "application/json"}
extra_headers = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "Last-Event-ID", "X-Request-Timeout", "traceparent", "X-Request-Id", "Authorization"]
    ),
    header_values.map(lambda text: text.encode("latin-1", "replace").decode("latin-1").strip()),
    max_size=2,
).filter(lambda headers: not headers.get("X-Request-Timeout", "").startswith("1e-"))


@OVER_HTTP
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    raw,
    extra_headers,
    st.sampled_from([JSON_TYPE, JSON_TYPE, JSON_TYPE, {}, {"Content-Type": "text/plain"}]),
)
def test_completions_are_answered_or_refused(
    served: Served, path: str, body: bytes, extra: dict[str, str], kind: dict[str, str]
) -> None:
    check(*served.ask("POST", path, body, {**kind, **extra}))


@OVER_HTTP
@given(CHATS | COMPLETIONS, st.booleans(), st.integers(0, 40), extra_headers)
def test_answers_are_come_back_for_or_refused(
    served: Served, body: Any, is_streamed: bool, cut: int, extra: dict[str, str]
) -> None:
    """A request again with the id of one of its events, or with a wrong one."""
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    sent = as_json({**body, "stream": is_streamed})
    headers = {**JSON_TYPE, "Idempotency-Key": secrets.token_hex(8)}
    status, content_type, answer = served.ask("POST", path, sent, headers)
    check(status, content_type, answer)
    again = served.ask("POST", path, sent, headers)
    if status == 200:
        assert again[:2] == (status, content_type)
        assert as_told(again[2], is_streamed) == as_told(answer, is_streamed)
        ids = [line[4:].decode() for line in answer.split(b"\n") if line.startswith(b"id: ")]
        if ids:
            last = {"Last-Event-ID": ids[cut % len(ids)]}
            status, content_type, rest = served.ask("POST", path, sent, {**headers, **last})
            check(status, content_type, rest)
            had = answer[: answer.index(b"\n\n", answer.index(b"id: " + last["Last-Event-ID"].encode() + b"\n")) + 2]
            assert said_of(split(had + rest)) == said_of(split(answer))
    check(*served.ask("POST", path, sent, {**headers, **extra}))


path_pieces = st.text(max_size=12) | st.sampled_from(["chatcmpl-" + "0" * 32, "tiny", "..", "%00", "a/b", "%ff"])


@OVER_HTTP
@given(
    st.sampled_from(sorted({operation.path for operation in OPERATIONS})) | st.just("/{x}"),
    st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH"]),
    path_pieces,
    extra_headers,
    st.booleans(),
)
def test_every_url_and_method(
    served: Served, path: str, method: str, piece: str, extra: dict[str, str], is_admin: bool
) -> None:
    url = "/".join(
        quote(piece, safe="%./", errors="surrogatepass") if "{" in part else part for part in path.split("/")
    )
    headers = {**JSON_TYPE, **extra, **({"Authorization": "Bearer boss"} if is_admin else {})}
    status, content_type, answer = served.ask(method, url or "/", b"{}" if method in ("POST", "PUT") else None, headers)
    assert status < 500
    if method != "HEAD":
        check(status, content_type, answer)


@OVER_HTTP
@given(st.binary(max_size=200) | st.sampled_from([b"GET / HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n"]))
def test_bytes_that_are_no_http(served: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=ANSWER_S) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
    assert b" 500 " not in answer.split(b"\r\n", 1)[0]
    assert served.ask("GET", "/health", None, {})[0] == 200
