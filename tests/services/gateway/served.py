"""A gateway that tests send anything at all, in a system that answers whatever is asked."""

import asyncio
import http.client
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from services.gateway.config import Settings
from services.gateway.main import serve
from shared.registry import Registry
from shared.service import Context
from shared.streams import Bus, connect
from tests.ports import free_port
from tests.services.gateway.conftest import Backend, an_instance, register

ANSWER_S = 10.0


class Served:
    """A gateway in a thread. faults: what went wrong in it."""

    def __init__(self, broker_url: str) -> None:
        self.port = free_port()
        self.prefix = f"fuzz-{secrets.token_hex(4)}"
        self._broker_url = broker_url
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self.faults: list[str] = []

    async def _run(self) -> None:
        client = connect(self._broker_url)
        bus = Bus(client, self.prefix)
        backend = Backend(bus)
        backend.texts = ["Hel", "lo", " wörld"]
        await register(bus, *(an_instance(one) for one in ("tokenizer", "scheduler", "gpu_worker")))
        options = Settings(port=self.port, admin_api_key="boss", resume_keep_s=5.0, max_body_bytes=100_000)
        context = Context("gateway", "g", bus, Registry(bus, "gateway", "g"))
        self._loop.set_exception_handler(lambda _, said: self.faults.append(str(said)))
        tasks = [
            asyncio.create_task(one)
            for one in (bus.outbox.run(), backend.read_requests(), backend.read_aborts(), serve(context, options))
        ]
        asyncio.get_running_loop().call_later(1.0, self._ready.set)
        ending = asyncio.create_task(self._end.wait())
        done, _ = await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
        self.faults += [repr(task.exception()) for task in done if task is not ending]
        if dead := await client.keys(f"{self.prefix}:*.dead"):
            self.faults.append(f"dead letters: {dead}")
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])
        await client.aclose()

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()


@contextmanager
def serving(broker_url: str) -> Iterator[Served]:
    """A gateway that ends with nothing in flight and without a fault, or fails the test."""
    with Served(broker_url) as served:
        yield served
        deadline_at = time.monotonic() + 10
        while b"sapwood_requests_in_flight 0.0" not in served.ask("GET", "/metrics", None, {})[2]:
            assert time.monotonic() < deadline_at, "something is still in flight"
            time.sleep(0.05)
    assert served.faults == []


def check(status: int, content_type: str, answer: bytes) -> None:
    """An answer, or a refusal in OpenAI's shape; no failure."""
    assert status < 500, (status, answer)
    if status >= 400:
        error = msgspec.json.decode(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif content_type.startswith("text/event-stream"):
        assert answer.endswith(b"data: [DONE]\n\n")
        assert b'"error":' not in answer
        for block in answer.decode().split("\n\n")[:-2]:
            msgspec.json.decode(block.rpartition("data: ")[2])
    elif content_type.startswith("application/json"):
        msgspec.json.decode(answer)
