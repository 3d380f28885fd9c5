"""The compile service of a tokenizer process: a constraint in, the key of its compiled grammar out.

What is in Redis is not compiled again; what is being compiled is waited for by all who ask; what failed fails again at
once, for a while.
"""

import asyncio
import hashlib
import importlib.metadata
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from services.tokenizer.config import Settings
from services.tokenizer.grammar.pool import CompilePool
from services.tokenizer.grammar.protocol import Compiled, Job, Setup
from services.tokenizer.grammar.store import GrammarStore
from services.tokenizer.model_files import ModelFiles
from shared.errors import InvalidRequest, Overloaded, RequestError
from shared.grammar import KEY_FAMILY, MAX_SOURCE_BYTES
from shared.messages import Constraint
from shared.streams import Bus, persistently

log = logging.getLogger(__name__)

STORE = "the store of grammars"

FORMAT_VERSION = 6
"""Counts changes of what constraints are turned into; part of every key."""

KINDS = frozenset({"json_object", "json_schema", "regex", "ebnf", "lark", "choice", "structural_tag", "grammar"})
FAILURE_TTL_S = 60.0
MAX_FAILURES = 1024
MAX_WAITING = 256
"""Different constraints that wait to be compiled at most."""

MEBIBYTE = 2**20

COMPILES = Counter(
    "sapwood_grammar_compiles",
    "Constraints asked for, by what came of it: compiled, cached, refused, error",
    ["outcome"],
)
COMPILE_SECONDS = Histogram(
    "sapwood_grammar_compile_seconds",
    "Time to compile a constraint, waiting included",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
WAITING = Gauge("sapwood_grammar_compiles_waiting", "Constraints that wait to be compiled")
STORED_BYTES = Gauge(
    "sapwood_grammar_stored_bytes", "Compiled grammars kept in Redis, when this process last added one"
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """key: for `Generate.grammar`. compile_ms: how long the request waited for it."""

    key: str
    compile_ms: float


class GrammarService:
    """`run` must be running."""

    def __init__(self, bus: Bus, model: ModelFiles, settings: Settings) -> None:
        self._bus = bus
        self._store = GrammarStore(bus, settings.grammar_cache_mb * MEBIBYTE)
        self._max_bytes = settings.grammar_cache_mb * MEBIBYTE // 4
        self._max_waiting = MAX_WAITING
        tokenizer = model.backend.to_str().encode()
        longest_token = max(map(len, model.backend.get_vocab(with_added_tokens=True)), default=1)
        setup = Setup(
            tokenizer=tokenizer,
            vocab_size=model.vocab_size,
            stop_token_ids=list(model.eos_token_ids),
            memory_bytes=settings.grammar_compile_memory_mb * MEBIBYTE,
            timeout_s=settings.grammar_compile_timeout_s,
            max_characters=model.max_model_len * longest_token,
        )
        self._pool = CompilePool(setup, settings.grammar_processes)
        self._fingerprint = _fingerprint(setup)
        self._failures: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._in_flight: dict[str, asyncio.Task[str | None]] = {}

    async def run(self) -> None:
        """Compiles what is asked for until cancelled."""
        try:
            await self._pool.run()
        finally:
            for task in self._in_flight.values():
                task.cancel()

    async def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidRequest for what cannot be enforced, Overloaded when too much waits already."""
        start = time.monotonic()
        try:
            key = self._key(constraint)
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"'{constraint.param}' has half of a surrogate pair.", param=constraint.param
            ) from None
        try:
            refusal = await self._refusal(key, constraint)
        except RequestError:
            COMPILES.labels("error").inc()
            raise
        if refusal is not None:
            COMPILES.labels("refused").inc()
            raise InvalidRequest(f"'{constraint.param}' {refusal}.", param=constraint.param)
        return Grammar(key, (time.monotonic() - start) * 1e3)

    def _key(self, constraint: Constraint) -> str:
        digest = hashlib.blake2b(self._fingerprint, digest_size=16)
        digest.update(f"{constraint.kind}\0{constraint.source}".encode())
        return KEY_FAMILY + digest.hexdigest()

    async def _refusal(self, key: str, constraint: Constraint) -> str | None:
        """Why the constraint cannot be enforced; None: its grammar is stored."""
        if constraint.kind not in KINDS:
            return f"is a constraint of an unknown kind, {constraint.kind!r}"
        if len(constraint.source) > MAX_SOURCE_BYTES:
            return f"is longer than {MAX_SOURCE_BYTES} bytes, which is more than can be compiled"
        known = self._known_failure(key)
        if known is not None:
            return known
        task = self._in_flight.get(key)
        if task is None:
            if len(self._in_flight) >= self._max_waiting:
                raise Overloaded("Too many grammars wait to be compiled; try again.", retry_after_s=1)
            task = asyncio.create_task(self._provide(key, Job(kind=constraint.kind, source=constraint.source)))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
            task.add_done_callback(_retrieved)
        return await asyncio.shield(task)  # one who gives up does not take it from the others

    async def _provide(self, key: str, job: Job) -> str | None:
        if await persistently(STORE, self._store.touch, key):
            COMPILES.labels("cached").inc()
            return None
        start = time.monotonic()
        with WAITING.track_inprogress():
            answer = await self._pool.compile(job)
        COMPILE_SECONDS.observe(time.monotonic() - start)
        if isinstance(answer, Compiled):
            if len(answer.grammar) <= self._max_bytes:
                STORED_BYTES.set(await persistently(STORE, self._store.put, key, answer.grammar))
                COMPILES.labels("compiled").inc()
                return None
            refusal = f"takes {len(answer.grammar) // MEBIBYTE} MiB when compiled, which is too much to keep"
        else:
            refusal = answer.message
        self._failures[key] = (refusal, time.monotonic() + FAILURE_TTL_S)
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)
        return refusal

    def _known_failure(self, key: str) -> str | None:
        message, until = self._failures.get(key, (None, 0.0))
        if message is not None and time.monotonic() > until:
            del self._failures[key]
            return None
        return message


def _retrieved(task: "asyncio.Task[str | None]") -> None:
    """An error counts as seen though all who waited for it have gone."""
    if not task.cancelled():
        task.exception()


def _fingerprint(setup: Setup) -> bytes:
    """Everything but the constraint that a compiled grammar depends on."""
    digest = hashlib.blake2b(setup.tokenizer, digest_size=16)
    versions = (FORMAT_VERSION, importlib.metadata.version("xgrammar"))
    digest.update(repr((setup.vocab_size, setup.stop_token_ids, setup.max_characters, versions)).encode())
    return digest.digest()
