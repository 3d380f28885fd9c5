"""What a client is told when it cannot be served."""

import asyncio
import gzip
import time
from typing import Any

import openai
import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
URL = "/v1/chat/completions"


def check_shape(answer: Any) -> None:
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]


async def test_a_bad_value_is_a_400_that_names_its_field(gateway: Any) -> None:
    status, answer, response = await gateway.post(URL, {**CHAT, "temperature": -1})
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, "temperature", "invalid_request_error")
    check_shape(answer)
    assert response.headers["x-request-id"]
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.openai().completions.create(model="tiny", prompt="a", logprobs=2)
    assert refused.value.param == "logprobs"


async def test_an_unknown_model_is_a_404(gateway: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.openai().chat.completions.create(model="nope", messages=CHAT["messages"])
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    status, answer, _ = await gateway.post("/v1/completions", {"model": "nope", "prompt": "a"})
    assert status == 404
    assert "tiny" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("POST", "/", 404), ("GET", URL, 405), ("DELETE", "/v1/models", 405)],
)
async def test_unknown_urls_and_methods(gateway: Any, method: str, path: str, status: int) -> None:
    async with gateway.http.request(method, path) as response:
        assert response.status == status
        check_shape(await response.json())
        assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {"Content-Type": "application/json"}),
        (b"[1]", {"Content-Type": "application/json"}),
        (b"", {"Content-Type": "application/json"}),
        (b"{}", {"Content-Type": "text/plain"}),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"{}", {}),
        (b"no gzip", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ],
)
async def test_bodies_that_are_no_json_object(gateway: Any, body: bytes, headers: dict[str, str]) -> None:
    async with gateway.http.post(URL, data=body, headers=headers, skip_auto_headers=["Content-Type"]) as response:
        assert response.status == 400
        check_shape(await response.json())


async def test_a_body_over_the_limit_is_a_413(start: Any) -> None:
    gateway = await start(max_body_bytes=1000)
    long = b'{"x":"' + b"a" * 5000 + b'"}'

    async def in_chunks() -> Any:
        for _ in range(100):
            yield long

    json_type = {"Content-Type": "application/json"}
    for data, headers in (
        (long, json_type),
        (in_chunks(), json_type),
        (gzip.compress(long), {**json_type, "Content-Encoding": "gzip"}),
    ):
        async with gateway.http.post(URL, data=data, headers=headers) as response:
            assert response.status == 413
            check_shape(await response.json())
    assert (await gateway.post(URL, {"model": "nope", "messages": CHAT["messages"]}))[0] == 404


async def test_more_bytes_than_room_are_a_429(start: Any, backend: Any) -> None:
    gateway = await start(max_body_bytes_in_flight=500)
    status, answer, response = await gateway.post(URL, {**CHAT, "user": "u" * 600})
    assert (status, response.headers["Retry-After"]) == (429, "1")
    check_shape(answer)
    backend.texts = ["x"]
    for _ in range(6):  # what was read is given back
        assert (await gateway.post(URL, CHAT))[0] == 200


async def test_a_body_that_does_not_come_is_a_408(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.body.STALL_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
    assert b" 408 " in head
    writer.close()
    await writer.wait_closed()


async def test_more_requests_than_places_are_a_429(start: Any, backend: Any) -> None:
    gateway = await start(max_requests_in_flight=1)
    first = asyncio.create_task(gateway.post(URL, CHAT))
    request = await backend.next()
    status, answer, response = await gateway.post(URL, CHAT)
    assert (status, response.headers["Retry-After"]) == (429, "1")
    check_shape(answer)
    backend.answer(request, ["x"])
    assert (await first)[0] == 200
    second = asyncio.create_task(gateway.post(URL, CHAT))
    backend.answer(await backend.next(), ["x"])
    assert (await second)[0] == 200


@pytest.mark.parametrize("missing", ["tokenizer", "scheduler", "gpu_worker"])
async def test_without_one_of_the_services_a_503_at_once(start: Any, missing: str) -> None:
    from tests.services.gateway.conftest import an_instance

    there = [an_instance(one) for one in ("tokenizer", "scheduler", "gpu_worker") if one != missing]
    gateway = await start([*there, an_instance(missing, is_ready=False)])
    begun = time.monotonic()
    status, answer, response = await gateway.post(URL, CHAT)
    assert time.monotonic() - begun < 5
    assert (status, response.headers["Retry-After"]) == (503, "1")
    assert missing in answer["error"]["message"]
    check_shape(answer)


async def test_the_api_key(start: Any, backend: Any) -> None:
    backend.texts = ["x"]
    gateway = await start(api_key="s3cret-ü")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret-ü"}, {"Authorization": "Bearer "}):
        status, answer, response = await gateway.post(URL, CHAT, headers=headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        check_shape(answer)
    assert (await gateway.post(URL, CHAT, headers={"Authorization": "Bearer s3cret-ü"}))[0] == 200
    async with gateway.http.get("/v1/models") as response:
        assert response.status == 401
    for path in ("/health", "/ready", "/metrics"):
        async with gateway.http.get(path) as response:
            assert response.status == 200, path


async def test_the_request_id_is_the_clients_if_it_is_harmless(gateway: Any) -> None:
    for given, is_kept in (("abc-123", True), ("x" * 129, False), ("a b", False), ("", False)):
        async with gateway.http.get("/health", headers={"X-Request-Id": given}) as response:
            assert (response.headers["x-request-id"] == given) == is_kept
            assert response.headers["x-request-id"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_fields_that_mean_nothing_are_told(gateway: Any, backend: Any, is_streamed: bool) -> None:
    backend.texts = ["x"]
    body = {**CHAT, "zebra": 1, "b\r\nad: ü": 2, "stream": is_streamed}
    async with gateway.http.post(URL, json=body) as response:
        assert response.status == 200
        assert response.headers["x-sapwood-ignored-fields"] == "b??ad???, zebra"
        await response.read()


async def test_our_own_faults_tell_nothing_of_the_inside(
    gateway: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the inside")

    monkeypatch.setattr("services.gateway.completions._messages", broken)
    status, answer, response = await gateway.post(URL, CHAT)
    assert status == 500
    check_shape(answer)
    assert "inside" not in answer["error"]["message"]
    assert response.headers["x-request-id"] in answer["error"]["message"]
    assert "the inside" in caplog.text


async def test_a_number_beyond_64_bits_in_a_message_is_a_400(gateway: Any) -> None:
    message = {"role": "user", "content": "x", "extra": 2**70}
    status, answer, _ = await gateway.post(URL, {"model": "tiny", "messages": [message]})
    assert (status, answer["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
@pytest.mark.parametrize("options", [{}, {"resumable": True}])
async def test_a_number_beyond_64_bits_is_told_by_its_field(gateway: Any, number: int, options: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"maximum": number}}}}}
    for fields, param in (
        ({"tools": [tool]}, "tools"),
        ({"chat_template_kwargs": {"x": [number]}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "hi", "x": number}]}, "messages"),
    ):
        status, answer, _ = await gateway.post(URL, {**CHAT, **options, **fields})
        assert (status, answer["error"]["param"]) == (400, param)
        assert f"'{param}'" in answer["error"]["message"]


async def test_the_tokenizer_is_told_which_limit_the_client_sent(gateway: Any, backend: Any) -> None:
    backend.texts = ["x"]
    await gateway.post(URL, {**CHAT, "max_completion_tokens": 5})
    await gateway.post("/v1/completions", {"model": "tiny", "prompt": "a"})
    assert [(request.max_tokens, request.max_tokens_param) for request in backend.seen] == [
        (5, "max_completion_tokens"),
        (16, None),
    ]
