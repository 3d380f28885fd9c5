"""The terminal conversation, against a small server that speaks the API."""

import argparse
import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from services.launcher import chat
from services.launcher.chat import Conversation, text_of_event
from services.launcher.preflight import claim_port
from shared.errors import ConfigError


class FakeServer:
    """Answers every question with its number of messages, in two pieces; keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["messages"][-1]["content"] == "fail":
            return web.json_response({"error": {"message": "no such thing", "param": "messages"}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[dict[str, str]] = [{"role": "assistant"}, {"content": "heard "}, {"content": "nr. "}]
        deltas.append({"content": str(len(body["messages"]))})
        for delta in deltas:
            event = {"choices": [{"index": 0, "delta": delta}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')
        return response


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fake.completions)
    port = claim_port("127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{port}"
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield fake
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def converse(monkeypatch: pytest.MonkeyPatch, url: str, lines: list[str], *flags: str) -> None:
    waiting = iter(lines)

    def read(prompt: str = "") -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    parser = argparse.ArgumentParser()
    chat.add_flags(parser)
    chat.run(parser.parse_args(["--url", url, *flags]))


def test_an_answer_is_streamed_and_remembered(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(monkeypatch, server.url, ["hello", "", "again"], "--system", "be brief", "--temperature", "0")
    assert capsys.readouterr().out == "heard nr. 2\nheard nr. 4\n"
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert server.bodies[0]["model"] == "tiny"
    assert server.bodies[0]["temperature"] == 0
    assert "max_tokens" not in server.bodies[0]


def test_reset_starts_over_and_exit_leaves(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    converse(monkeypatch, server.url, ["one", "/reset", "two", "/exit", "three"])
    assert [[message["content"] for message in body["messages"]] for body in server.bodies] == [["one"], ["two"]]


def test_a_refusal_is_told_in_one_line(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the server says 400: no such thing"):
        converse(monkeypatch, server.url, ["fail"])


def test_no_server_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{claim_port('127.0.0.1', 0)}"
    with pytest.raises(ConfigError, match=f"no server at {url}; start one with: sapwood serve"):
        converse(monkeypatch, url, ["hello"])


def test_a_stopped_answer_is_kept_and_an_empty_one_forgotten() -> None:
    conversation = Conversation("m", None, {})
    conversation.ask("a")
    conversation.answered("part")
    conversation.ask("b")
    conversation.answered("")
    assert [message["content"] for message in conversation.messages] == ["a", "part"]


def test_an_error_in_the_stream_is_told() -> None:
    with pytest.raises(ConfigError, match="worker gone"):
        text_of_event(b'data: {"error": {"message": "worker gone"}}\n')


@pytest.mark.parametrize("line", [b"\n", b": ping\n", b"id: 3\n", b"data: [DONE]\n"])
def test_lines_without_text_are_skipped(line: bytes) -> None:
    assert text_of_event(line) == ""
