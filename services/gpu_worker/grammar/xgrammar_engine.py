"""xgrammar as a grammar engine."""

from collections import OrderedDict
from collections.abc import Sequence

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
        rules = _rules(record.source)
    except (msgspec.DecodeError, UnicodeDecodeError, RuntimeError) as error:  # xgrammar's errors are RuntimeErrors
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InternalError(f"the compiled grammar of this request cannot be used: {reason}") from None
    return XGrammarCompiled(grammar, vocabulary, rules)


def _rules(source: str) -> Rules | None:
    if not source or len(source) > MAX_SOURCE_BYTES:
        return None
    return read_rules(read_source(source).serialize_json().encode())


class XGrammarCompiled:
    """A grammar as xgrammar compiled it. `grammar` and `vocabulary` are of the same tokenizer, `rules` are the
    grammar's; None to remember nothing of it."""

    def __init__(self, grammar: xgrammar.CompiledGrammar, vocabulary: Vocabulary, rules: Rules | None = None) -> None:
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._rules = rules
        self._own_stops: Sequence[int] = grammar.tokenizer_info.stop_token_ids
        self._grammar_bytes: int = grammar.memory_size_bytes
        self._automata: OrderedDict[frozenset[int], Automaton] = OrderedDict()
        self._is_known = False

    @property
    def num_bytes(self) -> int:
        return self._grammar_bytes + sum(one.num_bytes for one in list(self._automata.values()))

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        matcher = self._matcher(stop_token_ids)
        was_known, self._is_known = self._is_known, True
        # A grammar that one request brings and no other is not worth it.
        automaton = self._automaton(frozenset(stop_token_ids)) if was_known else None
        if automaton is None:
            return matcher
        return RememberingMatcher(matcher, automaton, self._vocabulary, frozenset(stop_token_ids))

    def _matcher(self, stop_token_ids: Sequence[int]) -> XGrammarMatcher:
        vocab_size = self._vocabulary.vocab_size
        if stop_token_ids:
            handle = xgrammar.GrammarMatcher(self._grammar, override_stop_tokens=list(stop_token_ids))
            return XGrammarMatcher(handle, vocab_size)
        # xgrammar wants a stop token; one that the sequence does not have is taken out of the masks
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._grammar), vocab_size, barred=self._own_stops)

    def _automaton(self, stop_token_ids: frozenset[int]) -> Automaton | None:
        """What is remembered for these stop ids."""
        if self._rules is None:
            return None
        automaton = self._automata.get(stop_token_ids)
        if automaton is None:
            try:
                automaton = Automaton(self._rules)
            except TooManyStates:
                self._rules = None
                return None
            self._automata[stop_token_ids] = automaton
            if len(self._automata) > MAX_AUTOMATA:
                self._automata.popitem(last=False)
        else:
            self._automata.move_to_end(stop_token_ids)
        return automaton
