"""A client process: sends its share of the sessions, and hands back how each request went."""

import asyncio
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import aiohttp
import msgspec
import uvloop

from services.launcher.bench.figures import Answer
from services.launcher.bench.workloads import CITY_SCHEMA, Ask, Session

REPORT_EVERY_S = 0.1


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go and what they have in common. concurrency: sessions of this process at once."""

    base_url: str
    model: str
    api_key: str | None
    temperature: float
    timeout_s: float
    concurrency: int


class Share(msgspec.Struct, frozen=True):
    """What a client process is to do."""

    target: Target
    sessions: list[Session]


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Event(msgspec.Struct):
    """What is read of an event of the stream."""

    choices: list[msgspec.Raw] = []
    usage: Usage | None = None
    error: object = None


_decode_event = msgspec.json.Decoder(Event).decode
_encode_answers = msgspec.msgpack.Encoder().encode


def body_of(ask: Ask, target: Target) -> dict[str, object]:
    body: dict[str, object] = {
        "model": target.model,
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": target.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.has_schema:
        schema = {"name": "city", "schema": dict(CITY_SCHEMA), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        body["ignore_eos"] = True
    return body


class Stream:
    """What is known of an answer while its events arrive."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first = self._last = 0.0
        self._gaps: list[float] = []
        self._usage = Usage()
        self._error = ""

    def event(self, data: bytes, now: float) -> None:
        """One event's data. An event without choices brings usage or an error, and does not count as a token."""
        if b'"usage"' in data or b'"error"' in data:
            event = _decode_event(data)
            self._usage = event.usage or self._usage
            if event.error is not None:
                self._error = str(event.error)[:200]
            if not event.choices:
                return
        if self._first:
            self._gaps.append(now - self._last)
        else:
            self._first = now
        self._last = now

    def answer(self) -> Answer:
        if self._error or not self._first:
            return Answer(error=self._error or "the stream ended without a token")
        details = self._usage.prompt_tokens_details
        return Answer(
            started=self._started,
            first=self._first,
            last=self._last,
            gaps=self._gaps,
            tokens_in=self._usage.prompt_tokens,
            tokens_out=self._usage.completion_tokens,
            tokens_cached=(details.cached_tokens or 0) if details is not None else 0,
        )


async def ask_server(http: aiohttp.ClientSession, ask: Ask, target: Target) -> Answer:
    """Sends one request and reads its answer to the end. Whatever goes wrong is in the answer."""
    body = msgspec.json.encode(body_of(ask, target))
    stream = Stream(time.perf_counter())
    try:
        async with http.post(target.base_url + "/v1/completions", data=body) as response:
            if response.status != 200:
                return Answer(error=f"{response.status} {' '.join((await response.text()).split())[:200]}")
            async for line in response.content:
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        break
                    stream.event(data, time.perf_counter())
    except TimeoutError:
        return Answer(error=f"no answer within {target.timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError, msgspec.DecodeError) as error:
        return Answer(error=repr(error)[:200])
    return stream.answer()


async def run_sessions(share: Share, starts_at: float, done: Callable[[Answer], None]) -> None:
    """All sessions, no more than `concurrency` at once; `done` hears of every request. starts_at: time of
    perf_counter, which all processes share, from which sessions count their start."""
    target = share.target
    headers = {"Content-Type": "application/json"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    places = asyncio.Semaphore(target.concurrency)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        read_bufsize=1 << 20,
        headers=headers,
    ) as http:

        async def run(session: Session) -> None:
            await asyncio.sleep(max(0.0, starts_at + session.start_s - time.perf_counter()))
            async with places:
                for ask in session.asks:
                    done(await ask_server(http, ask, target))

        async with asyncio.TaskGroup() as group:
            for session in share.sessions:
                group.create_task(run(session))


def client_main(pipe: Connection, encoded: bytes) -> None:
    """A process: says that it is ready, is told when to start, then sends lists of answers through `pipe` as they
    come, and closes it when all are there."""
    share = msgspec.msgpack.decode(encoded, type=Share)
    with pipe:
        pipe.send_bytes(b"ready")
        uvloop.run(_report(share, float(pipe.recv_bytes()), pipe))


async def _report(share: Share, starts_at: float, pipe: Connection) -> None:
    waiting: list[Answer] = []

    def send() -> None:
        if waiting:
            pipe.send_bytes(_encode_answers(waiting))
            waiting.clear()

    async def send_regularly() -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            send()

    sending = asyncio.create_task(send_regularly())
    try:
        await run_sessions(share, starts_at, waiting.append)
    finally:
        sending.cancel()
        send()


def split(sessions: Sequence[Session], parts: int) -> list[list[Session]]:
    """The sessions dealt out, as even as can be; no part is empty."""
    return [list(sessions[part::parts]) for part in range(min(parts, len(sessions)))]
