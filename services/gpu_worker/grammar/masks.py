"""Mask rows of all constrained sequences, filled together on another thread while the model computes."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.matcher import I32, Matcher, mask_width

log = logging.getLogger(__name__)


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
        self._filler = ThreadPoolExecutor(1, "masks")

    def row(self, seat: int) -> I32:
        row: I32 = self._bits[seat]
        return row

    def start(self, guides: Sequence[tuple[int, Guide]]) -> "Future[None]":
        """Begins to fill the rows of these (seat, guide). The result is there when they are filled."""
        return self._filler.submit(self.fill, guides)

    @property
    def bits(self) -> I32:
        """[num_seats, mask_width(V)]: the rows themselves."""
        return self._bits

    def of(self, seats: Sequence[int]) -> I32:
        """A copy of the seats' rows, which must be filled."""
        rows: I32 = self._bits[np.asarray(seats, np.int64)]
        return rows

    def fill(self, guides: Sequence[tuple[int, Guide]]) -> None:
        """Fills them on this thread: for who has nothing else to do meanwhile, as it costs no change of threads."""
        by_engine: dict[type[Matcher], list[tuple[int, Guide]]] = {}
        for seat, guide in guides:
            if not guide.is_filled:
                by_engine.setdefault(type(guide.matcher), []).append((seat, guide))
        for engine, some in by_engine.items():
            try:
                engine.fill_many([guide.matcher for _, guide in some], self._bits, [seat for seat, _ in some])
            except RuntimeError:  # one of them: the others are not to suffer from it
                log.exception("masks could not be filled together")
                for _, guide in some:
                    guide.fill()
            else:
                for _, guide in some:
                    guide.is_filled = True
