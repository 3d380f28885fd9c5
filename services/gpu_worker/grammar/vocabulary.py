"""The model's vocabulary as grammars see it: the tokenizer, and each token's bytes."""

import bisect
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from services.gpu_worker.grammar.matcher import I32, I64, mask_of
from shared.errors import InternalError
from shared.grammar import caching_compiler, tokenizer_info

if TYPE_CHECKING:
    import xgrammar

NEUTRAL = b"\n"
"""Begins the context: at the start of a text some tokenizers put a space in front."""
NO_TEXT = 256
"""In place of a first byte: of special tokens and padding."""
HEAD_WORDS = 64
"""Part of a mask row that shows most choices: single bytes and short texts come first in most vocabularies."""
MAX_TOKEN_BYTES = 16
"""Of tokens whose bytes are kept as a table: longer ones are rare."""
REMEMBERED = 1024
"""Answers to the same question about forced text that are kept: grammars force the same few texts again and again."""

U8 = npt.NDArray[np.uint8]

_NO_IDS: I64 = np.empty(0, np.int64)


class Vocabulary:
    """V = vocab_size: width of the logits, which may be more than the tokenizer has tokens. Safe for several threads.

    backend: the tokenizer. token_bytes: what each of the V tokens stands for; empty for special ones and padding.
    texts: uint8 [V, MAX_TOKEN_BYTES], the same filled up with zeros, and text_lengths: int32 [V], how many bytes, 0 for
    those with more."""

    def __init__(self, backend: Tokenizer, vocab_size: int) -> None:
        self.backend = backend
        self.vocab_size = vocab_size
        self.info = functools.lru_cache(maxsize=8)(self._info)
        self.compiler = functools.lru_cache(maxsize=2)(self._compiler)
        self.tokens_behind = functools.lru_cache(maxsize=REMEMBERED)(self._tokens_behind)
        self.replacements = functools.lru_cache(maxsize=REMEMBERED)(self._replacements)
        self._longer = functools.lru_cache(maxsize=REMEMBERED)(self._longer_mask)
        self.token_bytes: list[bytes] = list(self.info(()).decoded_vocab)
        for special in self.info(()).special_token_ids:
            self.token_bytes[special] = b""
        self.texts, self.text_lengths = padded(self.token_bytes)
        order = sorted((text, token_id) for token_id, text in enumerate(self.token_bytes) if text)
        self._sorted = [text for text, _ in order]
        self._sorted_ids: I64 = np.array([token_id for _, token_id in order], np.int64)
        self._pairs = _byte_pairs(self._sorted)
        self._first_bytes, self._others = _openings(self.token_bytes)

    def _info(self, stop_token_ids: tuple[int, ...]) -> "xgrammar.TokenizerInfo":
        """The vocabulary for xgrammar; one object for the same stop ids."""
        return tokenizer_info(self.backend, self.vocab_size, list(stop_token_ids))

    def _compiler(self, stop_token_ids: tuple[int, ...]) -> "xgrammar.GrammarCompiler":
        """One for the same stop ids, as long as no more than two of them are in use."""
        return caching_compiler(self.info(stop_token_ids))

    def longer_than(self, prefix: bytes) -> I64:
        """Ids of the tokens that begin with `prefix` and go on."""
        first = bisect.bisect_right(self._sorted, prefix)
        end = _after(prefix)
        last = len(self._sorted) if end is None else bisect.bisect_left(self._sorted, end)
        return self._sorted_ids[first:last] if last > first else _NO_IDS

    def can_join(self, before: bytes, after: bytes) -> bool:
        """Whether there is a token that could lie across the border of these two texts, neither of them empty."""
        return bool(self._pairs[before[-1], after[0]])

    def are_decided(self, masks: I32, rows: I64) -> npt.NDArray[np.bool_]:
        """masks [M, mask_width(V)], rows [N] of it -> [N]: whether all tokens that a row allows begin with the same
        byte, or have no text. A text, or the end, can be forced only where it is so."""
        decided = ~self._have_choice(masks[rows, :HEAD_WORDS], self._others[:, :HEAD_WORDS])
        left = decided.nonzero()[0]
        whole = masks[rows[left]]
        decided[left] = ~self._have_choice(whole, self._others) & whole.any(1)
        return decided

    def _have_choice(self, masks: I32, others: I32) -> npt.NDArray[np.bool_]:
        """Whether rows, or the beginnings of rows, allow tokens that begin differently."""
        words = (masks != 0).argmax(1)
        lowest = masks[np.arange(len(masks)), words]
        _, bits = np.frexp((lowest & -lowest).view(np.uint32))
        firsts = self._first_bytes[np.maximum(words * 32 + bits - 1, 0)]
        choice: npt.NDArray[np.bool_] = (masks & others[firsts]).any(1)
        return choice

    def text_of(self, token_ids: Sequence[int]) -> bytes:
        return b"".join([self.token_bytes[token_id] for token_id in token_ids])

    def _tokens_behind(self, context: bytes, text: bytes) -> tuple[int, ...]:
        """What the tokenizer makes of `text` behind `context`: tokens whose bytes are `text`, or `text` without the
        half character at its end; none if there are no such."""
        context = NEUTRAL + context.lstrip(_CONTINUATION)
        whole = _without_half_character(context + text)
        length = len(whole) - len(context)
        if length <= 0:
            return ()
        for start in (0, len(context)):  # alone, if the tokenizer would merge it with what was sent
            try:
                said = whole[start:].decode()
            except UnicodeDecodeError:
                continue
            tokens = self._tail(self.backend.encode(said, add_special_tokens=False).ids, length)
            if tokens and self.text_of(tokens) == whole[len(context) :]:
                return tuple(tokens)
        return ()

    def _tail(self, token_ids: list[int], length: int) -> list[int]:
        """The last tokens, those whose bytes are `length`; none if no token begins there."""
        for start in range(len(token_ids) - 1, -1, -1):
            length -= len(self.token_bytes[token_ids[start]])
            if length <= 0:
                return token_ids[start:] if length == 0 else []
        return []

    def _replacements(self, run: tuple[int, ...]) -> list[tuple[int, I32]]:
        """(count, mask of the longer tokens that could stand in place of that many of the run's last tokens)."""
        found = [(back, self._longer(self.text_of(run[-back:]))) for back in range(1, len(run) + 1)]
        return [(back, longer) for back, longer in found if longer is not None]

    def _longer_mask(self, prefix: bytes) -> I32 | None:
        """A row of those tokens; None if there are none."""
        token_ids = self.longer_than(prefix)
        return mask_of(token_ids, self.vocab_size) if len(token_ids) else None


def load_vocabulary(model_path: str, vocab_size: int) -> Vocabulary:
    """Takes a second or more. Raises InternalError, in one line, when the folder has no tokenizer to be used."""
    if not any(Path(model_path).glob("*token*")):
        raise InternalError(f"the worker has no tokenizer to constrain an answer with: there is none in {model_path}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    try:
        # the tokenizer service's call: both must see the same tokenizer
        backend = AutoTokenizer.from_pretrained(Path(model_path), local_files_only=True).backend_tokenizer
    except Exception as error:  # a missing or broken file shows as any of a dozen types, also plain Exception
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise InternalError(f"the worker has no tokenizer to constrain an answer with: {reason}") from None
    backend.no_truncation()
    backend.no_padding()
    return Vocabulary(backend, vocab_size)


_CONTINUATION = bytes(range(0x80, 0xC0))


def padded(texts: Sequence[bytes]) -> tuple[U8, I32]:
    """[N, MAX_TOKEN_BYTES] bytes, and [N] how many there are of each; none of longer texts."""
    lengths: I32 = np.fromiter(map(len, texts), np.int32, len(texts))
    lengths[lengths > MAX_TOKEN_BYTES] = 0
    filled = b"".join(
        [text[:length].ljust(MAX_TOKEN_BYTES, b"\0") for text, length in zip(texts, lengths, strict=True)]
    )
    return np.frombuffer(filled, np.uint8).reshape(-1, MAX_TOKEN_BYTES).copy(), lengths


def _byte_pairs(tokens: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """[256, 256]: whether a token has the one byte right before the other."""
    text = np.frombuffer(b"".join(tokens), np.uint8)
    ends = np.cumsum([len(token) for token in tokens])[:-1]
    is_within = np.ones(max(len(text) - 1, 0), np.bool_)
    is_within[ends - 1] = False
    pairs = np.zeros((256, 256), np.bool_)
    pairs[text[:-1][is_within], text[1:][is_within]] = True
    return pairs


def _openings(token_bytes: Sequence[bytes]) -> tuple[I64, I32]:
    """Each token's first byte, and for each first byte a mask row of the tokens with another one."""
    first_bytes = np.fromiter((text[0] if text else NO_TEXT for text in token_bytes), np.int64, len(token_bytes))
    own = [mask_of((first_bytes == byte).nonzero()[0], len(token_bytes)) for byte in range(NO_TEXT + 1)]
    return first_bytes, ~np.stack(own)


def _without_half_character(text: bytes) -> bytes:
    """Without the bytes at the end that begin a character."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            width = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return text[:-back] if width > back else text
    return text


def _after(prefix: bytes) -> bytes | None:
    """The least string that is greater than all that begin with `prefix`; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
