"""Compiled grammars of this worker: fetched from the broker by key, kept within a bound of bytes.

The event loop fetches, threads decode; the engine only looks whether a grammar is here. A grammar that is in use by
a matcher stays in memory whether it is kept here or not.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from services.gpu_worker import metrics
from services.gpu_worker.grammar.matcher import Compiled
from services.gpu_worker.grammar.vocabulary import Vocabulary
from shared.errors import InternalError, RequestError, Unavailable
from shared.grammar import INDEX_KEY, XGRAMMAR, XGRAMMAR_SOURCE, CompiledGrammar, decode
from shared.heap import settle_heap
from shared.streams import Bus, persistently

log = logging.getLogger(__name__)

MAX_ERRORS = 1024
"""Grammars of which it is remembered why they cannot be had; others are asked for again."""

DECODERS = 2
"""Threads that decode grammars: a large one does not keep all the others waiting."""


class Grammars(Protocol):
    """What the engine sees of the library."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the model; there as soon as a grammar is."""

    def get(self, key: str) -> Compiled | RequestError | None:
        """The grammar, or why there is none; None: not here yet, but it is being fetched."""


class NoGrammars:
    """A worker that has no library: every constrained sequence ends with an error."""

    @property
    def vocabulary(self) -> Vocabulary:
        raise AssertionError("there is no grammar, so nobody needs the vocabulary")

    def get(self, key: str) -> RequestError:
        return InternalError("this worker cannot constrain answers")


class GrammarLibrary:
    """`want` and `run` belong to the event loop; `get` to any thread.

    load: the vocabulary, called once, in a thread. on_arrival: called in the event loop when a grammar or an error has
    come. max_bytes: what is kept, the grammar used last in any case."""

    def __init__(
        self, bus: Bus, load: Callable[[], Vocabulary], on_arrival: Callable[[], None], max_bytes: int
    ) -> None:
        self._bus = bus
        self._load = load
        self._on_arrival = on_arrival
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._errors: OrderedDict[str, RequestError] = OrderedDict()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._decoders = ThreadPoolExecutor(DECODERS, "grammars")
        self._vocabulary: Vocabulary | None = None
        self._loading = threading.Lock()

    @property
    def vocabulary(self) -> Vocabulary:
        assert self._vocabulary is not None
        return self._vocabulary

    def warm_up(self) -> None:
        """Loads the vocabulary in the background, so that the first grammar need not wait for it."""
        self._decoders.submit(self._warm_up)

    def _warm_up(self) -> None:
        with contextlib.suppress(InternalError):  # told to whoever needs it
            self._load_vocabulary()

    def want(self, key: str) -> None:
        """Sees to it that the grammar comes. A failure before is forgotten."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return
            self._errors.pop(key, None)
        if key not in self._fetching:
            task = self._fetching[key] = self._loop.create_task(self._fetch(key), name=f"fetch {key}")
            task.add_done_callback(lambda _: self._fetching.pop(key, None))

    def get(self, key: str) -> Compiled | RequestError | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            error = self._errors.get(key)
        if error is None and key not in self._fetching:  # dropped between its arrival and now
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self.want, key)
        return error

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, key: str) -> None:
        try:
            value = await self._read(key)
            compiled = await self._loop.run_in_executor(self._decoders, self._decode, value)
            self._keep(key, compiled)
        except RequestError as error:
            log.error("grammar %s: %s", key, error)
            metrics.GRAMMAR_ERRORS.inc()
            self._note_error(key, error)
        except Exception:  # nothing that is wrong with one grammar may stop the worker
            log.exception("grammar %s cannot be decoded", key)
            metrics.GRAMMAR_ERRORS.inc()
            self._note_error(key, InternalError("the compiled grammar of this request cannot be used"))
        self._on_arrival()

    def _note_error(self, key: str, error: RequestError) -> None:
        with self._lock:
            self._errors[key] = error
            while len(self._errors) > MAX_ERRORS:
                self._errors.popitem(last=False)

    async def _read(self, key: str) -> bytes:
        value = await persistently(f"reading grammar {key}", self._read_once, key)
        if value is None:
            raise Unavailable("the compiled grammar of this request is not kept any more; try again", retry_after_s=1)
        return bytes(value)

    async def _read_once(self, key: str) -> Any:
        async with self._bus.client.pipeline(transaction=False) as pipe:
            pipe.get(self._bus.key(key))
            pipe.zadd(self._bus.key(INDEX_KEY), {key: time.time()}, xx=True)  # the next to want it may be far
            return (await pipe.execute())[0]

    def _decode(self, value: bytes) -> Compiled:
        vocabulary = self._load_vocabulary()
        try:
            record = decode(value)
        except msgspec.DecodeError as error:
            raise InternalError(f"the compiled grammar of this request does not decode: {error}") from None
        return compiled_from(record, vocabulary)

    def _load_vocabulary(self) -> Vocabulary:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load()
                settle_heap()
            return self._vocabulary

    def _keep(self, key: str, compiled: Compiled) -> None:
        with self._lock:
            self._kept[key] = compiled
            num_bytes = sum(one.num_bytes for one in self._kept.values())  # what is remembered of them has grown
            while num_bytes > self._max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                num_bytes -= dropped.num_bytes
            metrics.GRAMMAR_BYTES.set(num_bytes)


def compiled_from(record: CompiledGrammar, vocabulary: Vocabulary) -> Compiled:
    """Takes milliseconds to a second. Raises InternalError when it does not fit this worker."""
    if record.engine in (XGRAMMAR, XGRAMMAR_SOURCE):
        from services.gpu_worker.grammar import xgrammar_engine  # not before there is a grammar: it takes a while

        return xgrammar_engine.load(record, vocabulary)
    raise InternalError(f"this worker has no grammar engine {record.engine!r}")
