"""xgrammar as a grammar engine."""

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import xgrammar

from services.gpu_worker.grammar.automaton import Automaton, TooManyStates
from services.gpu_worker.grammar.matcher import Matcher
from services.gpu_worker.grammar.remembering import RememberingMatcher
from services.gpu_worker.grammar.rules import Rules, read_rules
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_matcher import XGrammarMatcher
from shared.errors import InternalError
from shared.grammar import XGRAMMAR_SOURCE, CompiledGrammar, compile_source, read_source

log = logging.getLogger(__name__)

MAX_SOURCE_BYTES = 65536
"""Of a grammar longer than this nothing is remembered: reading its rules would take too long."""
MAX_AUTOMATA = 4
"""Of one grammar: for each set of stop ids another."""


class _TokenizerMetadata(msgspec.Struct):
    vocab_size: int
    stop_token_ids: list[int]


class _Serialized(msgspec.Struct):
    """What is read of xgrammar's own form."""

    tokenizer_metadata: _TokenizerMetadata


_head = msgspec.json.Decoder(_Serialized)


def load(record: CompiledGrammar, vocabulary: Vocabulary) -> "XGrammarCompiled":
    """Takes milliseconds to a second. Raises InternalError when it does not fit this worker."""
    try:
        if record.engine == XGRAMMAR_SOURCE:
            vocab_size, stop_token_ids = record.vocab_size, record.stop_token_ids
        else:
            metadata = _head.decode(record.serialized).tokenizer_metadata
            vocab_size, stop_token_ids = metadata.vocab_size, tuple(metadata.stop_token_ids)
        if vocab_size != vocabulary.vocab_size:
            raise InternalError(
                f"the grammar was compiled for {vocab_size} tokens; the model has {vocabulary.vocab_size}"
            )
        if record.engine == XGRAMMAR_SOURCE:
            grammar = compile_source(vocabulary.compiler(stop_token_ids), record.source)
        else:
            info = vocabulary.info(stop_token_ids)
            grammar = xgrammar.CompiledGrammar.deserialize_json(record.serialized.decode(), info)
    except (msgspec.DecodeError, UnicodeDecodeError, RuntimeError) as error:  # xgrammar's errors are RuntimeErrors
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InternalError(f"the compiled grammar of this request cannot be used: {reason}") from None
    return XGrammarCompiled(grammar, vocabulary, functools.partial(_rules, record.source))


def _rules(source: str) -> Rules | None:
    if not source or len(source) > MAX_SOURCE_BYTES:
        return None
    return read_rules(read_source(source).serialize_json().encode())


def _no_rules() -> None:
    return None


def _read_or_none(read: Callable[[], Rules | None]) -> Rules | None:
    """Nobody waits for it who could be told of an error."""
    try:
        return read()
    except Exception:
        log.exception("the rules of a grammar cannot be read; nothing is remembered of it")
        return None


class XGrammarCompiled:
    """A grammar as xgrammar compiled it. `grammar` and `vocabulary` are of the same tokenizer. reading: of its rules;
    None before it is used a second time. Many grammars come once."""

    def __init__(
        self,
        grammar: xgrammar.CompiledGrammar,
        vocabulary: Vocabulary,
        read: Callable[[], Rules | None] = _no_rules,
    ) -> None:
        """read: gives the grammar's rules, None to remember nothing of it; called on another thread."""
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._read = read
        self.reading: Future[Rules | None] | None = None
        self._own_stops: Sequence[int] = grammar.tokenizer_info.stop_token_ids
        self._grammar_bytes: int = grammar.memory_size_bytes
        self._automata: OrderedDict[frozenset[int], Automaton] = OrderedDict()
        self._is_known = False

    @property
    def num_bytes(self) -> int:
        return self._grammar_bytes + sum(one.num_bytes for one in list(self._automata.values()))

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        if not self._is_known:
            self._is_known = True
            return self.plain_matcher(stop_token_ids)
        if self.reading is None:
            self.reading = _reader().submit(_read_or_none, self._read)
        stops = frozenset(stop_token_ids)
        matcher = self.plain_matcher(stop_token_ids)
        return RememberingMatcher(matcher, functools.partial(self._automaton, stops), self._vocabulary, stops)

    def plain_matcher(self, stop_token_ids: Sequence[int]) -> XGrammarMatcher:
        vocab_size = self._vocabulary.vocab_size
        if stop_token_ids:
            handle = xgrammar.GrammarMatcher(self._grammar, override_stop_tokens=list(stop_token_ids))
            return XGrammarMatcher(handle, vocab_size)
        # xgrammar wants a stop token; one that the sequence does not have is taken out of the masks
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._grammar), vocab_size, barred=self._own_stops)

    def _automaton(self, stop_token_ids: frozenset[int]) -> Automaton | None:
        """What is remembered for these stop ids. None: not known yet. Raises TooManyStates if there is nothing."""
        assert self.reading is not None
        if not self.reading.done():
            return None
        automaton = self._automata.get(stop_token_ids)
        if automaton is None or automaton.is_spent:
            rules = self.reading.result()
            if rules is None:
                raise TooManyStates
            automaton = Automaton(rules)
            self._automata[stop_token_ids] = automaton
            if len(self._automata) > MAX_AUTOMATA:
                self._automata.popitem(last=False)
        else:
            self._automata.move_to_end(stop_token_ids)
        return automaton


@functools.cache
def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "rules")
