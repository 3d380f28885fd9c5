"""Grammars that come from the broker: there, gone, broken, for another model, more than may be kept."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from services.gpu_worker.grammar.library import GrammarLibrary
from services.gpu_worker.grammar.matcher import Compiled, empty_mask
from services.gpu_worker.grammar.vocabulary import Vocabulary
from shared.errors import InternalError, RequestError, Unavailable
from shared.grammar import INDEX_KEY, CompiledGrammar, encode
from shared.streams import Bus
from tests.services.gpu_worker.grammar import toy


class Shelf:
    """A library and what it told."""

    def __init__(self, bus: Bus, max_bytes: int = 1 << 30) -> None:
        self.bus = bus
        self.loads = 0
        self.load_error: InternalError | None = None
        self.arrivals = asyncio.Event()
        self.library = GrammarLibrary(bus, self._load, self.arrivals.set, max_bytes)

    def _load(self) -> Vocabulary:
        assert threading.current_thread() is not threading.main_thread()
        self.loads += 1
        if self.load_error is not None:
            raise self.load_error
        return toy.vocabulary()

    async def put(self, key: str, pattern: str) -> None:
        serialized = toy.compiler().compile_regex(pattern).serialize_json()
        await self.put_record(key, CompiledGrammar(engine="xgrammar", serialized=serialized.encode()))

    async def put_record(self, key: str, record: CompiledGrammar) -> None:
        await self.bus.client.set(self.bus.key(key), encode(record))

    async def get(self, key: str) -> Compiled | RequestError:
        """As the engine asks: from another thread, again and again."""
        for _ in range(50):
            self.arrivals.clear()
            found = await asyncio.to_thread(self.library.get, key)
            if found is not None:
                return found
            await asyncio.wait_for(self.arrivals.wait(), 10)
        raise AssertionError("neither a grammar nor an error")


@pytest.fixture
async def shelf(bus: Bus) -> AsyncIterator[Shelf]:
    shelf = Shelf(bus)
    yield shelf
    await shelf.library.close()


async def test_a_grammar_comes_once_and_stays(shelf: Shelf) -> None:
    await shelf.put("grammar:a", "[0-9]+")
    shelf.library.want("grammar:a")
    found = await shelf.get("grammar:a")
    assert not isinstance(found, RequestError)
    mask = empty_mask(toy.vocabulary().vocab_size)
    found.matcher([toy.END]).fill(mask)
    assert toy.encode("7")[0] in toy.allowed(mask)
    assert toy.encode("a")[0] not in toy.allowed(mask)
    await shelf.bus.client.delete(shelf.bus.key("grammar:a"))
    shelf.library.want("grammar:a")
    assert await shelf.get("grammar:a") is found
    assert shelf.loads == 1
    assert shelf.library.vocabulary is toy.vocabulary()


async def test_a_grammar_that_is_fetched_counts_as_used(shelf: Shelf) -> None:
    for key in ("grammar:a", "grammar:b"):
        await shelf.put(key, "x")
    index = shelf.bus.key(INDEX_KEY)
    await shelf.bus.client.zadd(index, {"grammar:a": 1.0})
    await shelf.get("grammar:a")
    await shelf.get("grammar:b")
    assert await shelf.bus.client.zscore(index, "grammar:a") > 1.0
    assert await shelf.bus.client.zscore(index, "grammar:b") is None  # of no use without its size


async def test_asking_for_a_grammar_brings_it_without_an_announcement(shelf: Shelf) -> None:
    await shelf.put("grammar:a", "x")
    assert not isinstance(await shelf.get("grammar:a"), RequestError)


async def test_a_key_that_is_gone_is_an_error_until_it_is_wanted_again(shelf: Shelf) -> None:
    shelf.library.want("grammar:a")
    error = await shelf.get("grammar:a")
    assert isinstance(error, Unavailable)
    assert "try again" in error.message
    await shelf.put("grammar:a", "x")
    assert await shelf.get("grammar:a") is error
    shelf.library.want("grammar:a")
    assert not isinstance(await shelf.get("grammar:a"), RequestError)


async def test_what_cannot_be_used_is_an_error_that_says_why(shelf: Shelf) -> None:
    other = toy.compiler().compile_regex("x").serialize_json().replace('"vocab_size":', '"vocab_size":1')
    records = {
        "grammar:engine": (CompiledGrammar(engine="other", serialized=b"x"), "no grammar engine 'other'"),
        "grammar:text": (CompiledGrammar(engine="xgrammar", serialized=b"{}"), "cannot be used"),
        "grammar:bytes": (CompiledGrammar(engine="xgrammar", serialized=b"\xff"), "cannot be used"),
        "grammar:other": (CompiledGrammar(engine="xgrammar", serialized=other.encode()), "was compiled for"),
        "grammar:cut": (
            CompiledGrammar(
                engine="xgrammar",
                serialized=toy.compiler().compile_regex("x").serialize_json().replace("v16", "v0").encode(),
            ),
            "cannot be used",
        ),
    }
    for key, (record, _) in records.items():
        await shelf.put_record(key, record)
    await shelf.bus.client.set(shelf.bus.key("grammar:junk"), b"\x00junk")
    for key, (_, said) in {**records, "grammar:junk": (None, "does not decode")}.items():
        error = await shelf.get(key)
        assert isinstance(error, InternalError), key
        assert said in error.message


async def test_a_worker_without_a_tokenizer_says_so_each_time(shelf: Shelf) -> None:
    shelf.load_error = InternalError("the worker has no tokenizer")
    shelf.library.warm_up()
    await shelf.put("grammar:a", "x")
    assert await shelf.get("grammar:a") is shelf.load_error


async def test_only_so_many_bytes_are_kept_the_longest_unused_first(bus: Bus) -> None:
    size = toy.regex("x").num_bytes
    shelf = Shelf(bus, max_bytes=size * 2 + size // 2)
    for name in "abc":
        await shelf.put(f"grammar:{name}", "x")
    first = await shelf.get("grammar:a")
    await shelf.get("grammar:b")
    assert await shelf.get("grammar:a") is first
    await shelf.get("grammar:c")  # drops b
    assert await shelf.get("grammar:a") is first
    assert shelf.library.get("grammar:b") is None
    assert not isinstance(await shelf.get("grammar:b"), RequestError)
    await shelf.library.close()
