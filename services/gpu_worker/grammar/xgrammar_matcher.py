"""xgrammar's matcher as a grammar engine's."""

import functools
import os
import time
from collections.abc import Sequence

import numpy as np
import xgrammar

from services.gpu_worker.grammar.matcher import I32, bit_of

MAX_THREADS = 16
WORTH_THREADS_S = 0.002
"""Filling that takes longer on one thread is worth the start of several."""


class XGrammarMatcher:
    """barred: stop ids that masks leave out. handle: for batched calls, whose rows are to be passed through `tidy` if
    is_untidy."""

    state = automaton = None

    def __init__(self, handle: xgrammar.GrammarMatcher, vocab_size: int, barred: Sequence[int] = ()) -> None:
        self.handle = handle
        self.barred = tuple(barred)
        past_end = vocab_size % 32
        self._last_word = bit_of(past_end) - np.int32(1) if past_end else np.int32(-1)
        self.is_untidy = bool(past_end or barred)

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
            mask[token_id // 32] &= ~bit_of(token_id)

    def can_end(self) -> bool:
        return bool(self.handle.is_completed())

    def forced_text(self) -> bytes:
        try:
            return self.handle.find_jump_forward_string().encode()
        except UnicodeDecodeError as error:  # the binding wants text; the run may be cut inside a character
            return bytes(error.object)

    @classmethod
    def accept_many(cls, matchers: "Sequence[XGrammarMatcher]", token_ids: Sequence[int]) -> list[bool]:
        if any(matcher.barred for matcher in matchers):
            return [matcher.accept(token_id) for matcher, token_id in zip(matchers, token_ids, strict=True)]
        handles = [matcher.handle for matcher in matchers]
        return xgrammar.BatchGrammarMatcher.batch_accept_token(handles, list(token_ids))

    @classmethod
    def fill_many(cls, matchers: "Sequence[XGrammarMatcher]", bits: I32, rows: Sequence[int]) -> None:
        _filler().fill([matcher.handle for matcher in matchers], bits, list(rows))
        for row, matcher in zip(rows, matchers, strict=True):
            if matcher.is_untidy:
                matcher.tidy(bits[row])


class _Filler:
    """Fills rows on one thread or on several, whichever is faster as far as the last ones tell."""

    def __init__(self) -> None:
        self._threads = min(MAX_THREADS, max(len(os.sched_getaffinity(0)) // 2, 1))
        self._one, self._many = xgrammar.BatchGrammarMatcher(1), xgrammar.BatchGrammarMatcher(self._threads)
        self._row_s = 0.0  # what a row took lately on one thread

    def fill(self, handles: list[xgrammar.GrammarMatcher], bits: I32, rows: list[int]) -> None:
        count = len(handles)
        is_long = self._threads > 1 and count > 1 and self._row_s * count > WORTH_THREADS_S
        started = time.perf_counter()
        (self._many if is_long else self._one).batch_fill_next_token_bitmask(handles, bits, rows)
        spent = (time.perf_counter() - started) / count * (min(self._threads, count) if is_long else 1)
        self._row_s += (spent - self._row_s) / 8


@functools.cache
def _filler() -> _Filler:
    return _Filler()
