"""The description tells what is served: every route, every field, and answers as they are."""

import asyncio
from typing import Any

import jsonschema
import msgspec
import pytest

from sapwood import grammar
from services.gateway import openapi
from services.gateway.conversation import normalise
from services.gateway.openai_types import ChatRequest, CompletionRequest
from services.gateway.routes import make_app
from shared.errors import InvalidRequest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def document() -> Any:
    return msgspec.json.decode(msgspec.json.encode(openapi.description()))


def validator(document: Any, schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_described() -> None:
    app = make_app(None)  # type: ignore[arg-type]
    served = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method != "HEAD":
            served.add((route.method.lower(), route.resource.canonical))
    assert served == {(operation.method, operation.path) for operation in openapi.OPERATIONS}


@pytest.mark.parametrize(("kind", "body"), [(ChatRequest, CHAT), (CompletionRequest, {"model": "m", "prompt": "a"})])
def test_every_field_of_a_request_is_described(document: Any, kind: type, body: Any) -> None:
    schema = document["components"]["schemas"][kind.__name__]
    fields = msgspec.structs.fields(kind)
    assert set(schema["properties"]) == {field.encode_name for field in fields}
    assert set(schema["required"]) == {field.encode_name for field in fields if field.required}
    check = validator(document, schema)
    check.validate(body)
    for bad in ({"temperature": -1}, {"n": 0}, {"stop": [""]}, {"model": ""}, {"regex": 1}, {"timeout": 0}):
        assert not check.is_valid({**body, **bad}), bad


@pytest.mark.parametrize("name", ["chat", "completion"])
def test_response_formats_are_described(document: Any, name: str) -> None:
    schema, body = {"chat": ("ChatRequest", CHAT), "completion": ("CompletionRequest", {"model": "m", "prompt": "a"})}[
        name
    ]
    check = validator(document, document["components"]["schemas"][schema])
    expression = grammar.rule(lambda: "1" | grammar.seq("(", expression, ")"))
    everything = grammar.Grammar(
        grammar.gen("a", regex="a+")
        + grammar.repeat(expression, 1, 3, separator=",")
        + grammar.any_text(stop="x", max_chars=3)
        + grammar.json({"type": "null"})
    )
    formats = [{"type": "text"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}]
    formats += [everything.response_format(), grammar.Grammar("a").response_format()]
    formats += [{"type": "grammar", "grammar": 'root ::= "a"'}]
    for right in formats:
        check.validate({**body, "response_format": right})
    for wrong in ({}, {"type": "xml"}, {"type": "grammar", "grammar": {"type": "sequence", "items": []}}):
        assert not check.is_valid({**body, "response_format": wrong}), wrong


@pytest.mark.parametrize(
    ("message", "is_right"),
    [
        ({"role": "user", "content": "hi", "name": "x"}, True),
        ({"role": "developer", "content": ["a", {"type": "text", "text": "b"}]}, True),
        ({"role": "assistant"}, True),
        ({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, True),
        ({"role": "tool", "content": "4", "tool_call_id": "c"}, True),
        ({"role": "user"}, False),
        ({"role": "system", "content": None}, False),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, False),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, False),
        ({"role": "x", "content": "hi"}, False),
        ({"content": "hi"}, False),
    ],
)
def test_messages_are_described_as_they_are_taken(document: Any, message: Any, is_right: bool) -> None:
    check = validator(document, document["components"]["schemas"]["ChatRequest"])
    assert check.is_valid({"model": "m", "messages": [message]}) == is_right
    if is_right:
        normalise([message])
    else:
        with pytest.raises(InvalidRequest):
            normalise([message])


def test_references_lead_somewhere(document: Any) -> None:
    text = msgspec.json.encode(document).decode()
    names = {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(ids)) == len(ids)


async def test_answers_are_as_described(start: Any, backend: Any, document: Any) -> None:
    gateway = await start(admin_api_key="boss", max_requests_in_flight=1)
    backend.texts = ["a", "b"]

    def check(method: str, path: str, status: int, content_type: str, answer: Any) -> None:
        content = document["paths"][path][method]["responses"][str(status)]["content"]
        validator(document, content[content_type]["schema"]).validate(answer)

    keyed = {"Idempotency-Key": "k"}
    status, answer, _ = await gateway.post("/v1/chat/completions", {**CHAT, "n": 2}, headers=keyed)
    check("post", "/v1/chat/completions", status, "application/json", answer)
    async with gateway.http.get(f"/v1/streams/{answer['id']}") as response:
        check("get", "/v1/streams/{id}", response.status, "application/json", await response.json())
    async with gateway.http.delete(f"/v1/streams/{answer['id']}") as response:
        check("delete", "/v1/streams/{id}", response.status, "application/json", await response.json())
    status, answer, _ = await gateway.post("/v1/completions", {"model": "tiny", "prompt": "a"})
    check("post", "/v1/completions", status, "application/json", answer)
    for body in ({}, {"model": "nope", "prompt": "a"}):
        status, answer, _ = await gateway.post("/v1/completions", body)
        check("post", "/v1/completions", status, "application/json", answer)
    for path, url in (
        ("/v1/models", "/v1/models"),
        ("/v1/models/{model}", "/v1/models/tiny"),
        ("/v1/models/{model}", "/v1/models/nope"),
        ("/health", "/health"),
        ("/ready", "/ready"),
        ("/openapi.json", "/openapi.json"),
        ("/v1/admin/load", "/v1/admin/load"),
    ):
        headers = {"Authorization": "Bearer boss"} if "admin" in path else {}
        async with gateway.http.get(url, headers=headers) as response:
            check("get", path, response.status, response.content_type, await response.json())
    async with gateway.http.get("/openapi.json") as response:
        assert await response.json() == document


async def test_each_status_that_clients_meet_is_described(start: Any, backend: Any, document: Any) -> None:
    gateway = await start(max_requests_in_flight=1, max_body_bytes=300)
    described = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    call = asyncio.create_task(gateway.post("/v1/chat/completions", {**CHAT, "timeout": 1}))
    await backend.next()
    met = [await gateway.post("/v1/chat/completions", CHAT), await call]
    met += [await gateway.post("/v1/chat/completions", {**CHAT, **more}) for more in ({"n": 0}, {"user": "x" * 300})]
    assert [status for status, _, _ in met] == [429, 504, 400, 413]
    assert {str(status) for status, _, _ in met} <= set(described)
