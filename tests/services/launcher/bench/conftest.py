"""A small server that speaks as much of the API as the benchmark asks for."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from services.launcher.preflight import claim_port


class FakeServer:
    """Answers with max_tokens events and usage, in which every prompt's first half was cached. A prompt of 77 tokens
    is refused, one of 78 breaks off with an error in the stream."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most_running = 0

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        length = len(body["prompt"])
        if length == 77:
            return web.json_response({"error": {"message": "too odd"}}, status=400)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await response.write(b'data: {"choices": [{"index": 0, "text": "x"}]}\n\n')
            await asyncio.sleep(0.002)
        if length == 78:
            await response.write(b'data: {"error": {"message": "worker gone"}}\n\n')
        usage = {
            "prompt_tokens": length,
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": length // 2},
        }
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        self.running -= 1
        return response


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/completions", fake.completions)
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
