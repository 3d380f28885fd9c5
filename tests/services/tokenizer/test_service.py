"""The whole service on a real broker, between a test that plays gateway, scheduler and worker."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from services.tokenizer.config import Settings
from services.tokenizer.encode import shard_of
from services.tokenizer.grammar.service import GrammarService
from services.tokenizer.main import serve
from services.tokenizer.shards import Leases
from shared import telemetry
from shared.messages import (
    Abort,
    ChatPrompt,
    Constraint,
    Deltas,
    Ended,
    FinishReason,
    Generate,
    Instance,
    Open,
    Output,
    Rejected,
    TextPrompt,
    Tokenize,
    sequence_id,
)
from shared.packing import pack_i32, pack_i64, unpack_i32
from shared.registry import Registry
from shared.service import Context
from shared.streams import SCHEDULE, TOKENIZE, Bus, Delivery, Stream, connect, reply_stream, shard_stream
from shared.telemetry import stage_span_id
from tests.services.tokenizer.conftest import FolderMaker

SHARDS = 2
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class World:
    """Everything around the tokenizers: what they are asked and what they answer."""

    def __init__(self, bus: Bus, broker_url: str, folder: Path) -> None:
        self.bus = bus
        self.broker_url = broker_url
        self.folder = folder
        self.texts: dict[int, str] = {}
        self.finished: dict[int, Any] = {}
        self.rejected: dict[str, Rejected] = {}
        self._cursor = "0"
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str) -> None:
        """Runs a tokenizer in this process and waits until it says that it is ready."""
        settings = Settings(model_path=str(self.folder), token_shards=SHARDS)
        client = connect(self.broker_url)
        own = Bus(client, self.bus.prefix)  # a connection and an outbox of its own, as a process has
        context = Context("tokenizer", name, own, Registry(own, "tokenizer", name))

        async def run() -> None:
            async with contextlib.aclosing(client), asyncio.TaskGroup() as tasks:
                outbox = tasks.create_task(own.outbox.run())
                try:
                    await serve(context, settings)
                finally:
                    outbox.cancel()

        self._tasks[name] = asyncio.create_task(run())
        await self.until(lambda: self._is_ready(name))

    async def stop(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def stop_all(self) -> None:
        for name in list(self._tasks):
            await self.stop(name)

    async def _is_ready(self, name: str) -> bool:
        if self._tasks[name].done():
            self._tasks[name].result()
        return any(one.instance == name and one.is_ready for one in await self._instances())

    async def _instances(self) -> Iterable[Instance]:
        return await Registry(self.bus, "test", "test").view()

    async def until(self, condition: Callable[[], Any], within_s: float = 20) -> None:
        """Waits until the condition holds, reading replies meanwhile."""
        async with asyncio.timeout(within_s):
            while True:
                await self._read_replies()
                holds = condition()
                if asyncio.iscoroutine(holds):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.02)

    async def entries(self, stream: Stream[Any]) -> list[Delivery[Any]]:
        async for batch in self.bus.follow(lambda: {stream: "0"}, count=10_000, block_s=0.01):
            return batch
        raise AssertionError

    async def generates(self) -> list[Generate]:
        return [entry.message for entry in await self.entries(SCHEDULE) if isinstance(entry.message, Generate)]

    async def _read_replies(self) -> None:
        async for batch in self.bus.follow(lambda: {reply_stream("g"): self._cursor}, block_s=0.01):
            for delivery in batch:
                self._cursor = delivery.entry_id
                self._take(delivery.message)
            return

    def _take(self, message: Deltas | Rejected) -> None:
        if isinstance(message, Rejected):
            self.rejected[message.request_id] = message
            return
        for delta in message.deltas:
            text = self.texts.get(delta.sequence_id, "")
            assert delta.offset <= len(text)
            self.texts[delta.sequence_id] = text[: delta.offset] + delta.text
        for finished in message.finished:
            self.finished[finished.sequence_id] = finished

    def ask(self, name: str, **fields: Any) -> None:
        fields = {"prompt": TextPrompt(text="the cat")} | fields
        entry = {key: fields.pop(key) for key in ("traceparent", "deadline") if key in fields}
        self.bus.outbox.post(TOKENIZE, Tokenize(request_id=name, reply_to="g", **fields), **entry)

    def emit(self, generate: Generate, token_ids: list[int], *, start: int = 0, is_end: bool = True) -> None:
        """What a worker would write for the request's first sequence."""
        one = generate.sequence_ids[0]
        end = Ended(sequence_id=one, reason=FinishReason.LENGTH, num_tokens=start + len(token_ids), attempt=2)
        self.bus.outbox.post(
            shard_stream(generate.shard),
            Output(
                sequence_ids=pack_i64([one] * len(token_ids)),
                indices=pack_i32(range(start, start + len(token_ids))),
                token_ids=pack_i32(token_ids),
                ended=[end] if is_end else [],
            ),
        )

    async def pending(self) -> tuple[int, int]:
        """(entries left, deliveries not acknowledged) of the tokenizers' stream."""
        key = self.bus.key("tokenize")
        return await self.bus.client.xlen(key), (await self.bus.client.xpending(key, "tokenizers"))["pending"]


def moment(delivery: Delivery[Any]) -> int:
    """When an entry was written, in ms."""
    return int(delivery.entry_id.partition("-")[0])


@pytest.fixture
async def world(bus: Bus, broker_url: str, make_folder: FolderMaker) -> AsyncIterator[World]:
    world = World(bus, broker_url, make_folder())
    yield world
    await world.stop_all()


@pytest.fixture
def words(byte_level: Any) -> Callable[[str], list[int]]:
    return lambda text: list(byte_level.encode(text, add_special_tokens=False).ids)


async def test_a_request_goes_through(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    deadline = time.time() + 60
    world.ask("r", traceparent=TRACEPARENT, deadline=deadline, max_tokens=9)
    await world.until(world.generates)
    [generate] = await world.entries(SCHEDULE)
    message = generate.message
    assert (message.request_id, message.max_tokens, generate.traceparent) == ("r", 9, TRACEPARENT)
    assert generate.deadline == deadline
    assert list(unpack_i32(message.token_ids)) == [0, *words("the cat")]
    [opened] = [entry for shard in range(SHARDS) for entry in await world.entries(shard_stream(shard))]
    assert isinstance(opened.message, Open)
    assert (opened.stream.name, opened.traceparent, opened.deadline) == (
        f"tokens:{message.shard}",
        TRACEPARENT,
        deadline,
    )
    assert moment(opened) <= moment(generate)
    token_ids = words(" sat on 🎉")
    world.emit(message, token_ids[:2], is_end=False)
    world.emit(message, token_ids[2:], start=2)
    one = sequence_id("r", 0)
    await world.until(lambda: one in world.finished)
    assert world.texts == {one: " sat on 🎉"}
    assert world.finished[one].num_tokens == len(token_ids)
    assert await world.pending() == (0, 0)


async def test_a_redelivered_request_runs_once(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    world.ask("r")
    world.ask("r")

    async def both() -> bool:
        return len(await world.generates()) == 2

    await world.until(both)
    first, second = await world.generates()
    assert first == second
    world.emit(first, words(" sat"))
    one = sequence_id("r", 0)
    await world.until(lambda: one in world.finished)
    world.ask("r")  # after its end
    await asyncio.sleep(0.3)
    await world.until(lambda: True)
    assert world.texts == {one: " sat"}
    assert await world.pending() == (0, 0)


async def test_a_dead_peers_requests_are_claimed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.tokenizer.intake.CLAIM_IDLE_S", 0.2)
    world.ask("r")
    await world.bus.outbox.flush()
    async for batch in world.bus.groups.read(TOKENIZE, "dead"):
        assert len(batch) == 1
        break
    await world.start("one")
    await world.until(world.generates)

    async def is_done() -> bool:
        return await world.pending() == (0, 0)

    await world.until(is_done)


async def test_bad_and_late_requests_are_rejected(world: World) -> None:
    await world.start("one")
    world.ask("bad", prompt=ChatPrompt(messages=[]))
    world.ask("late", deadline=time.time() - 1)
    world.ask("long", prompt=TextPrompt(text="the cat " * 20_000))
    world.ask("good")
    await world.until(lambda: len(world.rejected) == 3)
    await world.until(world.generates)
    assert world.rejected["bad"].error.param == "messages"
    assert world.rejected["late"].error.code == "timeout"
    assert world.rejected["long"].error.code == "context_length_exceeded"
    assert [generate.request_id for generate in await world.generates()] == ["good"]
    assert await world.pending() == (0, 0)


async def test_a_deadline_that_passes_while_a_grammar_is_compiled_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: GrammarService, constraint: Constraint) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(GrammarService, "compile", never)
    await world.start("one")
    begun = time.time()
    world.ask("r", constraint=Constraint(kind="regex", source="a+", param="regex"), deadline=begun + 0.5)
    await world.until(lambda: world.rejected)
    assert 0.4 < time.time() - begun < 5
    assert (world.rejected["r"].error.status, world.rejected["r"].error.code) == (504, "timeout")

    async def is_done() -> bool:
        return await world.pending() == (0, 0)

    await world.until(is_done)


async def test_a_prompt_that_breaks_the_encoder_gets_an_answer_and_spares_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.tokenizer.encode import Encoder

    encode = Encoder.encode

    def fragile(self: Encoder, requests: Any, **options: Any) -> Any:
        if any(request.request_id == "poison" for request in requests):
            raise RuntimeError("boom")
        return encode(self, requests, **options)

    monkeypatch.setattr(Encoder, "encode", fragile)
    world.ask("poison")
    world.ask("good")
    await world.start("one")
    await world.until(lambda: "poison" in world.rejected)
    await world.until(world.generates)
    assert world.rejected["poison"].error.status == 500
    assert await world.pending() == (0, 0)


async def test_a_long_prompt_is_encoded_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.tokenizer.intake.LONG_PROMPT", 20)
    await world.start("one")
    world.ask("long", prompt=TextPrompt(text="the cat sat on the mat"))
    world.ask("short")

    async def both() -> bool:
        return len(await world.generates()) == 2

    await world.until(both)
    assert await world.pending() == (0, 0)


async def test_a_stop_string_aborts_at_the_scheduler(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    world.ask("r", stop=["on the"])
    await world.until(world.generates)
    [generate] = await world.generates()
    world.emit(generate, words(" sat on the mat"), is_end=False)
    one = sequence_id("r", 0)
    await world.until(lambda: one in world.finished)
    assert (world.texts[one], world.finished[one].stop_reason) == (" sat ", "on the")
    assert [entry.message for entry in await world.entries(SCHEDULE)][1:] == [Abort(sequence_ids=[one])]


async def test_a_stream_goes_on_at_another_tokenizer(world: World, words: Callable[[str], list[int]]) -> None:
    """The first owner of the shard goes in the middle; the next one rebuilds the text from the log."""
    await world.start("one")
    world.ask("r")
    await world.until(world.generates)
    [generate] = await world.generates()
    token_ids = words(" sat on 🎉 mat")
    cut = len(words(" sat on")) + 1  # inside the emoji
    one = sequence_id("r", 0)
    world.emit(generate, token_ids[:cut], is_end=False)
    await world.until(lambda: world.texts.get(one, "").startswith(" sat on"))
    await asyncio.sleep(1.2)  # the log is trimmed meanwhile, but not what is needed
    await world.stop("one")
    await world.start("two")
    world.emit(generate, token_ids[cut:], start=cut)
    await world.until(lambda: one in world.finished)
    assert world.texts == {one: " sat on 🎉 mat"}


async def test_a_stream_goes_on_when_its_tokenizer_dies(
    world: World, words: Callable[[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead process gives nothing back: its leases lapse, and a peer that runs already takes them."""

    async def nothing(self: Leases) -> None:
        pass

    monkeypatch.setattr(Leases, "release_all", nothing)
    await world.start("one")
    name = next(name for name in "abcdef" if shard_of(name, SHARDS) == 0)  # the shard that "one" keeps
    world.ask(name, stop=["mat"])
    await world.until(world.generates)
    [generate] = await world.generates()
    token_ids = words(" sat on the mat again")
    world.emit(generate, token_ids[:2], is_end=False)
    one = sequence_id(name, 0)
    await world.until(lambda: one in world.texts)
    await world.start("two")
    assert await world.bus.client.get(world.bus.key("shard:0:owner")) == b"one"
    await world.stop("one")
    died = time.monotonic()
    world.emit(generate, token_ids[2:], start=2, is_end=False)
    await world.until(lambda: one in world.finished)
    assert (world.texts[one], world.finished[one].stop_reason) == (" sat on the ", "mat")
    assert time.monotonic() - died < 6


async def test_two_tokenizers_share_requests_and_shards(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    await world.start("two")

    async def is_shared() -> bool:
        owners = await world.bus.client.mget([world.bus.key(f"shard:{shard}:owner") for shard in range(SHARDS)])
        return set(owners) == {b"one", b"two"}

    await world.until(is_shared)
    names = [f"r{number}" for number in range(40)]
    for name in names:
        world.ask(name)

    async def all_there() -> bool:
        return len(await world.generates()) == len(names)

    await world.until(all_there)
    generates = await world.generates()
    assert {generate.shard for generate in generates} == set(range(SHARDS))
    for generate in generates:
        world.emit(generate, words(f" {generate.request_id}"))
    await world.until(lambda: len(world.finished) == len(names))
    assert sorted(world.texts.values()) == sorted(f" {name}" for name in names)
    assert await world.pending() == (0, 0)


async def test_shards_are_trimmed_when_their_requests_are_over(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    for number in range(10):
        world.ask(f"r{number}")

    async def all_there() -> bool:
        return len(await world.generates()) == 10

    await world.until(all_there)
    for generate in await world.generates():
        world.emit(generate, words(" sat"))

    async def is_trimmed() -> bool:
        lengths = [await world.bus.client.xlen(world.bus.key(f"tokens:{shard}")) for shard in range(SHARDS)]
        return len(world.finished) == 10 and max(lengths) <= 1

    await world.until(is_trimmed)


async def test_an_output_that_does_not_fit_is_put_aside(world: World, words: Callable[[str], list[int]]) -> None:
    await world.start("one")
    world.ask("r")
    await world.until(world.generates)
    [generate] = await world.generates()
    world.bus.outbox.post(shard_stream(generate.shard), Output(token_ids=pack_i32([1])))
    world.emit(generate, words(" sat"))
    await world.until(lambda: sequence_id("r", 0) in world.finished)
    assert await world.bus.client.xlen(world.bus.key(f"tokens:{generate.shard}.dead")) == 1


class Spans:
    """Stands where the exporter is: keeps what is recorded."""

    is_on = True

    def __init__(self) -> None:
        self.by_name: dict[str, tuple[Any, ...]] = {}

    def record(self, name: str, *args: Any, **options: Any) -> None:
        self.by_name[name] = (*args, options)


async def test_spans_name_their_parents(
    world: World, words: Callable[[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans()
    monkeypatch.setattr(telemetry, "tracing", lambda: spans)
    await world.start("one")
    world.ask("r", traceparent=TRACEPARENT)
    world.ask("untraced")
    one = sequence_id("r", 0)

    async def both() -> bool:
        return len(await world.generates()) == 2

    await world.until(both)
    for generate in await world.generates():
        world.emit(generate, words(" sat on"))
    await world.until(lambda: len(world.finished) == 2)
    trace, span_id, parent_id, start, end, attributes, _ = spans.by_name.pop("tokenize")
    assert trace.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert (span_id, parent_id) == (stage_span_id(one, "tokenize"), 0xB7AD6B7169203331)
    assert 0 < end - start < 5
    assert attributes["gen_ai.usage.input_tokens"] == 1 + len(words("the cat"))
    trace, span_id, parent_id, start, end, attributes, _ = spans.by_name.pop("detokenize")
    assert (span_id, parent_id) == (stage_span_id(one, "detokenize"), stage_span_id(one, "decode", 2))
    assert start <= end
    assert attributes["gen_ai.usage.output_tokens"] == len(words(" sat on"))
    assert attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert spans.by_name == {}
