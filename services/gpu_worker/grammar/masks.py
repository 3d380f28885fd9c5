"""Mask rows of all constrained sequences, filled together on another thread while the model computes."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xgrammar

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.matcher import I32, XGrammarMatcher, mask_width

MAX_THREADS = 16
WORTH_THREADS_S = 0.002
"""Filling that takes longer on one thread is worth the start of several."""


@dataclass(frozen=True, slots=True)
class Masks:
    """What some rows of a step may sample. rows: their places among the step's logits; bits: int32
    [len(rows), mask_width(V)], token t is bit t % 32 of word t // 32."""

    rows: list[int]
    bits: I32


class MaskPool:
    """A row for every seat. One filling at a time; whoever starts it waits for it before the guides go on."""

    def __init__(self, num_seats: int, vocab_size: int) -> None:
        self._bits: I32 = np.zeros((num_seats, mask_width(vocab_size)), np.int32)
        self._threads = min(MAX_THREADS, max(len(os.sched_getaffinity(0)) // 2, 1))
        self._one, self._many = xgrammar.BatchGrammarMatcher(1), xgrammar.BatchGrammarMatcher(self._threads)
        self._row_s = 0.0  # what a row took lately on one thread
        self._filler = ThreadPoolExecutor(1, "masks")

    def row(self, seat: int) -> I32:
        row: I32 = self._bits[seat]
        return row

    def start(self, guides: Sequence[tuple[int, Guide]]) -> "Future[None]":
        """Begins to fill the rows of these (seat, guide). The result is there when they are filled."""
        return self._filler.submit(self._fill, guides)

    def take(self, rows: list[int], seats: Sequence[int]) -> Masks:
        """A copy of the seats' rows, which must be filled, for these places among the logits."""
        return Masks(rows, self._bits[np.asarray(seats, np.int64)])

    def _fill(self, guides: Sequence[tuple[int, Guide]]) -> None:
        batch: list[tuple[int, XGrammarMatcher]] = []
        for seat, guide in guides:
            if guide.is_filled:
                continue
            if isinstance(guide.matcher, XGrammarMatcher):
                batch.append((seat, guide.matcher))
                guide.is_filled = True
            else:
                guide.fill()
        if batch:
            self._fill_batch(batch)

    def _fill_batch(self, batch: list[tuple[int, XGrammarMatcher]]) -> None:
        """xgrammar's own batch: one call that holds no lock of Python's."""
        handles = [matcher.handle for _, matcher in batch]
        seats = [seat for seat, _ in batch]
        is_long = self._threads > 1 and len(batch) > 1 and self._row_s * len(batch) > WORTH_THREADS_S
        started = time.perf_counter()
        (self._many if is_long else self._one).batch_fill_next_token_bitmask(handles, self._bits, seats)
        spent = (time.perf_counter() - started) / len(batch) * (min(self._threads, len(batch)) if is_long else 1)
        self._row_s += (spent - self._row_s) / 8
        for seat, matcher in batch:
            matcher.tidy(self._bits[seat])
