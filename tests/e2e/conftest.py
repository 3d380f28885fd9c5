"""The whole system as a user starts it: `sapwood serve` as a child process, spoken to over HTTP."""

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from services.launcher import default_model

ROOT = Path(__file__).parents[2]
READY_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_ports() -> Callable[[int], int]:
    """The first of so many ports in a row that nobody listens on."""

    def first(count: int) -> int:
        while True:
            start = free_port()
            with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
                for port in range(start, start + count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
                return start

    return first


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.launcher", *arguments]


def descendants(pid: int) -> set[int]:
    """All processes below `pid` that are no zombies."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, frontier = set(), [pid]
    while frontier:
        below = children.get(frontier.pop(), [])
        found.update(below)
        frontier += below
    return found


@dataclass
class Served:
    """A running `sapwood serve`. output: its lines so far, both streams."""

    process: "subprocess.Popen[str]"
    url: str
    output: list[str] = field(default_factory=list)

    @property
    def children(self) -> set[int]:
        return descendants(self.process.pid)

    def stop(self, with_signal: int = signal.SIGTERM, within_s: float = 15) -> int:
        """Its exit code. Kills it, and fails, when it does not end in time."""
        self.process.send_signal(with_signal)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            pytest.fail(f"sapwood serve did not stop within {within_s} s:\n" + "\n".join(self.output))


def start(*arguments: str) -> Served:
    """`sapwood serve` on a free port, once it says that it is ready."""
    port = free_port()
    process = subprocess.Popen(
        command("serve", "--port", str(port), *arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    served = Served(process, f"http://127.0.0.1:{port}")
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                served.output.append(line.rstrip())
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + READY_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            served.stop()
            pytest.fail(f"not ready within {READY_S} s:\n" + "\n".join(served.output))
        if line is None:
            pytest.fail(f"sapwood serve ended with {process.wait(5)}:\n" + "\n".join(served.output))
        if line.startswith("Sapwood is ready"):
            return served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts `sapwood serve` with the flags given; stops what the test leaves running."""
    started: list[Served] = []

    def start_one(*arguments: str) -> Served:
        started.append(start(*arguments))
        return started[-1]

    yield start_one
    for served in started:
        if served.process.poll() is None:
            served.stop()


@pytest.fixture(scope="session")
def default_model_folder() -> Path:
    """Made on first use."""
    return asyncio.run(default_model.prepare())


@pytest.fixture(scope="session")
def sapwood(otlp: "Otlp") -> Iterator[Served]:
    """The default model in float32 (so that a prompt's text does not depend on how it was batched), traced."""
    served = start("--dtype", "float32", "--otlp-endpoint", otlp.url)
    yield served
    if served.process.poll() is None:
        assert served.stop() == 0, "\n".join(served.output)


@dataclass(frozen=True)
class Span:
    """A span as it was exported, with the service that its resource names. Ids in hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, object]


class Otlp:
    """What arrived. `oteltap` receives; it hands the requests on to a recorder that also keeps their resources."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tapped: set[str] = set()
        self.spans: list[Span] = []

    def of_trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id and span.span_id in self.tapped]

    def record(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(item.value.string_value for item in group.resource.attributes if item.key == "service.name")
            for scope in group.scope_spans:
                self.spans += [
                    Span(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        {item.key: _value(item.value) for item in span.attributes},
                    )
                    for span in scope.spans
                ]


def _value(value: object) -> object:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]  # type: ignore[attr-defined]
    return getattr(value, kind)


@pytest.fixture(scope="session")
def otlp() -> Iterator[Otlp]:
    received = Otlp(f"http://127.0.0.1:{free_port()}")

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.record(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    recorder = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=recorder.serve_forever, daemon=True).start()
    up = threading.Event()
    loop = asyncio.new_event_loop()

    async def tap() -> None:
        settings = OtelTapHttpProtobufReceiverSettings(
            http_port=int(received.url.rpartition(":")[2]),
            reemit_traces_to_url=f"http://127.0.0.1:{recorder.server_port}/v1/traces",
        )
        async with OtelTapHttpProtobufReceiver(settings) as receiver:
            up.set()
            async for span in receiver.stream_traces():
                received.tapped.add(span.span_id.hex())

    def run() -> None:
        asyncio.set_event_loop(loop)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(tapping)

    tapping = loop.create_task(tap())
    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(10), "oteltap did not start"
    yield received
    loop.call_soon_threadsafe(tapping.cancel)
    thread.join(10)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    recorder.shutdown()
    recorder.server_close()
