"""Compiled grammars, as the tokenizer service leaves them in Redis for the workers.

A key names what it holds: `grammar:<hash>` over the vocabulary, the constraint and the versions of the compilers, so
equal constraints share one entry and an entry never changes. An entry may be gone (they are kept within a bound of
bytes, least recently used first out); a worker then ends the sequence with an error that can be tried again.

Both sides must describe the vocabulary alike: `tokenizer_info` is the one place that does.
"""

import json
from typing import TYPE_CHECKING, Any

import msgspec

from shared.messages import Record

if TYPE_CHECKING:
    import xgrammar
    from tokenizers import Tokenizer

XGRAMMAR = "xgrammar"
XGRAMMAR_SOURCE = "xgrammar-source"
LARK_MARK = "//lark\n"
"""What a source in Lark begins with; neither EBNF nor JSON does."""

KEY_FAMILY = "grammar:"
"""`Generate.grammar` is such a key without the deployment's prefix: `bus.key(generate.grammar)` is to be read."""

INDEX_KEY = "grammars"
"""Sorted set of all keys by last use, unix seconds; `bus.key(INDEX_KEY)`."""

SIZES_KEY = "grammars:bytes"
"""Hash from key to size in bytes."""


COMPILER_CACHE_BYTES = 32 * 2**20

MAX_SOURCE_BYTES = 2**20
"""The longest schema, expression or grammar that a request may bring."""


class CompiledGrammar(Record, frozen=True, kw_only=True):
    """The value at a grammar's key, as msgpack.

    source: EBNF, a structural tag as JSON, or Lark, for `compile_source`.
    engine: `xgrammar`: serialized is `CompiledGrammar.serialize_json()` in UTF-8 of what source becomes.
    `xgrammar-source`: source is to be compiled, which has been done once and takes less time than to read the
    serialized form (that grows with the square of the number of rules, and is read under Python's lock);
    stop_token_ids and vocab_size describe the vocabulary that it was compiled for."""

    engine: str
    serialized: bytes
    source: str = ""
    stop_token_ids: tuple[int, ...] = ()
    vocab_size: int = 0


TEXT_MARKS = frozenset(
    {
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
    }
)
"""Special tokens that mark parts of an answer: text to grammars, and shown in constrained answers."""

_decoder = msgspec.msgpack.Decoder(CompiledGrammar)
_encoder = msgspec.msgpack.Encoder()


def encode(grammar: CompiledGrammar) -> bytes:
    return _encoder.encode(grammar)


def decode(value: bytes) -> CompiledGrammar:
    """Raises msgspec.DecodeError on bytes that are no compiled grammar."""
    return _decoder.decode(value)


def caching_compiler(info: "xgrammar.TokenizerInfo") -> "xgrammar.GrammarCompiler":
    """A compiler that keeps the masks of rules that it has seen, up to COMPILER_CACHE_BYTES: those that count
    characters come again in many grammars. Safe for several threads."""
    import xgrammar

    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=True, cache_limit_bytes=COMPILER_CACHE_BYTES)


def compile_source(compiler: "xgrammar.GrammarCompiler", source: str) -> "xgrammar.CompiledGrammar":
    """A grammar as `CompiledGrammar.source` has it: EBNF begins with a rule, a structural tag with a brace, Lark with
    LARK_MARK. Raises RuntimeError for what xgrammar cannot read.

    Always from the text: a compiler with a cache prints a grammar that it is given as an object and reads that again,
    and what it prints may mean something else (a class that begins with a caret, a hex digit behind an escape, NUL)."""
    if source.startswith("{"):
        return compiler.compile_structural_tag(source)
    if source.startswith(LARK_MARK):
        return compiler.compile_lark(source.removeprefix(LARK_MARK))
    return compiler.compile_grammar(source)


def read_source(source: str) -> "xgrammar.Grammar":
    """The same grammar as its rules say it, not compiled."""
    import xgrammar

    if source.startswith("{"):
        return xgrammar.Grammar.from_structural_tag(source)
    if source.startswith(LARK_MARK):
        return xgrammar.Grammar.from_lark(source.removeprefix(LARK_MARK))
    return xgrammar.Grammar.from_ebnf(source)


def tokenizer_info(backend: "Tokenizer", vocab_size: int, stop_token_ids: list[int]) -> "xgrammar.TokenizerInfo":
    """The vocabulary as xgrammar wants it; the same arguments give the same metadata in every process.

    backend: the model's tokenizer; vocab_size: width of the logits; stop_token_ids: the model's own EOS ids. Special
    tokens other than those and `TEXT_MARKS` are never part of an answer that a grammar describes."""
    import xgrammar

    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = [""] * vocab_size
    for token, token_id in vocabulary.items():
        # an empty text is a special token to xgrammar: it may be padding, a marker, but no part of an answer
        is_hidden = token_id in added and added[token_id].special and token not in TEXT_MARKS
        if token_id < vocab_size and not is_hidden:
            tokens[token_id] = token
    return xgrammar.TokenizerInfo(
        tokens,
        vocabulary_type(backend),
        vocab_size=vocab_size,
        stop_token_ids=sorted(stop_token_ids) or None,
        add_prefix_space=False,
    )


def vocabulary_type(backend: "Tokenizer") -> "xgrammar.VocabType":
    """How the vocabulary spells bytes: by GPT-2's alphabet, as `<0x41>` and U+2581, or as they are."""
    import xgrammar

    decoders = _decoder_types(json.loads(backend.to_str()).get("decoder"))
    if "ByteLevel" in decoders:
        return xgrammar.VocabType.BYTE_LEVEL
    if "ByteFallback" in decoders or "Metaspace" in decoders or "Replace" in decoders:
        return xgrammar.VocabType.BYTE_FALLBACK
    return xgrammar.VocabType.RAW


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    inner = (_decoder_types(one) for one in decoder.get("decoders", []))
    return {str(decoder["type"])}.union(*inner)
