"""A gateway on a real broker, with a scripted tokenizer behind it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from services.gateway.config import Settings
from services.gateway.main import serve
from shared.errors import ErrorBody
from shared.messages import (
    Abort,
    Delta,
    Deltas,
    Finished,
    FinishReason,
    Instance,
    Rejected,
    Tokenize,
    sequence_id,
)
from shared.registry import Registry
from shared.service import Context
from shared.streams import SCHEDULE, TOKENIZE, Bus, Delivery, reply_stream
from tests.ports import free_port

PATIENCE_S = 10


class Backend:
    """Everything behind the gateway. Reads `tokenize` and `schedule`; answers as the test says.

    With `texts` set, every choice of every request is answered with these pieces at once."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.texts: Sequence[str] | None = None
        self.stop_reason: str | int | None = None
        self.seen: list[Tokenize] = []
        self._requests: asyncio.Queue[Delivery[Tokenize]] = asyncio.Queue()
        self._aborts: asyncio.Queue[Abort] = asyncio.Queue()

    async def read_requests(self) -> None:
        async for batch in self.bus.groups.read(TOKENIZE, "fake"):
            for delivery in batch:
                self.bus.outbox.ack(delivery)
                self.seen.append(delivery.message)
                self._requests.put_nowait(delivery)
                if self.texts is not None:
                    self.answer(delivery.message, self.texts)

    async def read_aborts(self) -> None:
        async for batch in self.bus.groups.read(SCHEDULE, "fake"):
            for delivery in batch:
                assert isinstance(delivery.message, Abort)
                self._aborts.put_nowait(delivery.message)

    async def next(self) -> Tokenize:
        return (await self.next_delivery()).message

    async def next_delivery(self) -> Delivery[Tokenize]:
        return await asyncio.wait_for(self._requests.get(), PATIENCE_S)

    async def next_abort(self) -> Abort:
        return await asyncio.wait_for(self._aborts.get(), PATIENCE_S)

    @property
    def num_aborts(self) -> int:
        return self._aborts.qsize()

    def send(self, to: Tokenize, message: Deltas | Rejected) -> None:
        self.bus.outbox.post(reply_stream(to.reply_to), message)

    def reject(self, request: Tokenize, error: ErrorBody) -> None:
        self.send(request, Rejected(request_id=request.request_id, error=error))

    def delta(self, request: Tokenize, text: str, *, choice: int = 0, offset: int = 0, num_tokens: int = 1) -> None:
        self.send(request, Deltas(deltas=[self.a_delta(request, text, choice, offset, num_tokens)]))

    def finish(self, request: Tokenize, *, choice: int = 0, **fields: Any) -> None:
        self.send(request, Deltas(finished=[self.an_end(request, choice, **fields)]))

    def answer(self, request: Tokenize, texts: Sequence[str]) -> None:
        """Every choice gets the texts, one token each, and ends with `stop`."""
        offset = 0
        for place, text in enumerate(texts):
            deltas = [self.a_delta(request, text, choice, offset, place + 1) for choice in range(request.n)]
            self.send(request, Deltas(deltas=deltas))
            offset += len(text)
        ends = [
            self.an_end(request, choice, num_tokens=len(texts), stop_reason=self.stop_reason)
            for choice in range(request.n)
        ]
        self.send(request, Deltas(finished=ends))

    @staticmethod
    def a_delta(request: Tokenize, text: str, choice: int, offset: int, num_tokens: int) -> Delta:
        return Delta(
            sequence_id=sequence_id(request.request_id, choice),
            offset=offset,
            text=text,
            num_tokens=num_tokens,
            num_prompt_tokens=7,
        )

    @staticmethod
    def an_end(
        request: Tokenize, choice: int, *, reason: FinishReason = FinishReason.STOP, num_tokens: int = 1, **fields: Any
    ) -> Finished:
        fields = {"num_prompt_tokens": 7, "cached_tokens": 4, **fields}
        return Finished(
            sequence_id=sequence_id(request.request_id, choice), reason=reason, num_tokens=num_tokens, **fields
        )


@pytest.fixture
async def backend(bus: Bus) -> AsyncIterator[Backend]:
    backend = Backend(bus)
    tasks = [asyncio.create_task(backend.read_requests()), asyncio.create_task(backend.read_aborts())]
    yield backend
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, asyncio.CancelledError), result


def an_instance(service: str, **fields: Any) -> Instance:
    """A process that stays fresh for an hour."""
    now = time.time()
    fields = {"started_at": now, "at": now + 3600, "is_ready": True, **fields}
    if service == "gpu_worker":
        fields = {"model": "tiny", "max_model_len": 512, **fields}
    return Instance(service=service, instance=f"{service}-1", host="h", pid=1, **fields)


async def register(bus: Bus, *instances: Instance) -> None:
    for one in instances:
        await bus.client.hset(  # type: ignore[misc]
            bus.key("instances"), f"{one.service}/{one.instance}", msgspec.json.encode(one).decode()
        )


class Running:
    """A served gateway. settings: as it was started; http: a session whose paths are relative to it."""

    def __init__(self, settings: Settings, bus: Bus, http: aiohttp.ClientSession, task: "asyncio.Task[None]") -> None:
        self.settings = settings
        self.bus = bus
        self.http = http
        self.task = task
        self._clients: list[openai.AsyncOpenAI] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0, timeout=20, **options)
        self._clients.append(client)
        return client

    async def post(self, path: str, body: object, **options: Any) -> tuple[int, Any, aiohttp.ClientResponse]:
        async with self.http.post(path, json=body, **options) as response:
            return response.status, await response.json(content_type=None), response

    async def events(self, path: str, body: object) -> list[Any]:
        """The JSON of each event; the last one, [DONE], is checked and left out."""
        async with self.http.post(path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            text = (await response.read()).decode()
        blocks = text.split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
        return [msgspec.json.decode(block.removeprefix("data: ")) for block in blocks[:-2]]

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(bus: Bus) -> AsyncIterator[Start]:
    """start(instances=..., **settings): a gateway in a system where all is there, unless told otherwise."""
    stack = contextlib.AsyncExitStack()

    async def start(instances: Sequence[Instance] | None = None, **options: Any) -> Running:
        if instances is None:
            instances = [an_instance(service) for service in ("tokenizer", "scheduler", "gpu_worker")]
        await register(bus, *instances)
        settings = Settings(**{"port": free_port(), "instance": "g1", "drain_timeout_s": 0.0, **options})
        context = Context("gateway", settings.instance, bus, Registry(bus, "gateway", settings.instance))
        task = asyncio.create_task(serve(context, settings))
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{settings.port}"))
        running = Running(settings, bus, http, task)
        stack.push_async_callback(running.stop)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if task.done():
                task.result()
            try:
                async with http.get("/ready") as response:
                    if response.status in (200, 401) or (await response.json())["reasons"] != [
                        f"no {service}" for service in ("gateway", "tokenizer", "scheduler", "gpu_worker")
                    ]:
                        return running
            except aiohttp.ClientConnectionError:
                pass
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async with stack:
        yield start


@pytest.fixture
async def gateway(start: Start) -> Running:
    return await start()
