"""A sequence's place in its grammar.

Tokens go in one by one; out come the tokens that may follow, as bits, and the text that must. A stop id is allowed
exactly where the grammar may end. A place where nothing but a stop id is allowed is the end: it is not sampled.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xgrammar

from services.gpu_worker.grammar.vocabulary import Vocabulary

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


def mask_width(vocab_size: int) -> int:
    """Words of 32 bits in a mask row."""
    return -(-vocab_size // 32)


class Matcher(Protocol):
    """One engine's matcher over a vocabulary of V tokens."""

    def accept(self, token_id: int) -> bool:
        """Goes on by a token; False, and no change, if the grammar does not allow it."""

    def rollback(self, num_tokens: int) -> None:
        """Takes the last tokens back."""

    def fill(self, mask: I32) -> None:
        """Writes which tokens may follow: int32 [mask_width(V)], token t is bit t % 32 of word t // 32."""

    def can_end(self) -> bool:
        """Whether what was accepted is a whole answer."""

    def forced_text(self) -> bytes:
        """What must follow whatever is chosen; may end in the middle of a character."""


class Compiled(Protocol):
    """A compiled grammar. num_bytes: its size in memory, about."""

    num_bytes: int

    def matcher(self, stop_token_ids: Sequence[int]) -> Matcher:
        """At the grammar's start. stop_token_ids: those of the sequence, each below V."""


class XGrammarCompiled:
    """A grammar as xgrammar compiled it. `grammar` and `vocabulary` are of the same tokenizer."""

    def __init__(self, grammar: xgrammar.CompiledGrammar, vocabulary: Vocabulary) -> None:
        self._grammar = grammar
        self._vocab_size = vocabulary.vocab_size
        self._own_stops: Sequence[int] = grammar.tokenizer_info.stop_token_ids
        self.num_bytes: int = grammar.memory_size_bytes

    def matcher(self, stop_token_ids: Sequence[int]) -> "XGrammarMatcher":
        if stop_token_ids:
            handle = xgrammar.GrammarMatcher(self._grammar, override_stop_tokens=list(stop_token_ids))
            return XGrammarMatcher(handle, self._vocab_size)
        # xgrammar wants a stop token; one that the sequence does not have is taken out of the masks
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._grammar), self._vocab_size, barred=self._own_stops)


class XGrammarMatcher:
    """barred: stop ids that masks leave out. handle: for batched calls, whose rows are to be passed through `tidy`."""

    def __init__(self, handle: xgrammar.GrammarMatcher, vocab_size: int, barred: Sequence[int] = ()) -> None:
        self.handle = handle
        self.barred = tuple(barred)
        past_end = vocab_size % 32
        self._last_word = _bit(past_end) - np.int32(1) if past_end else np.int32(-1)

    def accept(self, token_id: int) -> bool:
        return token_id not in self.barred and bool(self.handle.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        self.handle.rollback(num_tokens)

    def fill(self, mask: I32) -> None:
        self.handle.fill_next_token_bitmask(mask[None], 0)
        self.tidy(mask)

    def tidy(self, mask: I32) -> None:
        """Takes out of a row what xgrammar leaves in it: bits past the vocabulary's end, barred tokens."""
        mask[-1] &= self._last_word
        for token_id in self.barred:
            mask[token_id // 32] &= ~_bit(token_id)

    def can_end(self) -> bool:
        return bool(self.handle.is_completed())

    def forced_text(self) -> bytes:
        try:
            return self.handle.find_jump_forward_string().encode()
        except UnicodeDecodeError as error:  # the binding wants text; the run may be cut inside a character
            return bytes(error.object)


def empty_mask(vocab_size: int) -> I32:
    return np.zeros(mask_width(vocab_size), np.int32)


def allows_any(mask: I32, token_ids: I64) -> bool:
    """Whether one of the tokens is allowed."""
    return bool(((mask[token_ids >> 5] >> (token_ids & 31).astype(np.int32)) & 1).any())


def mask_of(token_ids: Sequence[int], vocab_size: int) -> I32:
    """A row that allows these tokens alone."""
    mask = empty_mask(vocab_size)
    for token_id in token_ids:
        mask[token_id // 32] |= _bit(token_id)
    return mask


def _bit(token_id: int) -> np.int32:
    """The word with the token's bit."""
    return np.uint32(1 << token_id % 32).astype(np.int32)
