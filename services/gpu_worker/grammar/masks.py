"""Mask rows of all constrained sequences, filled together on another thread while the model computes."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.matcher import I32, I64, Matcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Masks:
    """What some rows of a step may sample. rows: their places among the step's logits; seats: int64 [len(rows)], where
    their masks are in the pool: int32 [num_seats, mask_width(V)], token t is bit t % 32 of word t // 32. The rows of
    these seats stay as they are until the step's tokens are known."""

    rows: list[int]
    seats: I64
    pool: I32

    @property
    def bits(self) -> I32:
        """[len(rows), mask_width(V)], a copy."""
        bits: I32 = self.pool[self.seats]
        return bits


class MaskPool:
    """A row for every seat. One filling at a time; whoever starts it waits for it before the guides go on."""

    def __init__(self, bits: I32) -> None:
        """bits: memory for it, [num_seats, mask_width(V)]."""
        self.bits = bits
        self._filler = ThreadPoolExecutor(1, "masks")

    def row(self, seat: int) -> I32:
        row: I32 = self.bits[seat]
        return row

    def start(self, guides: Sequence[tuple[int, Guide]]) -> "Future[None]":
        """Begins to fill the rows of these (seat, guide). The result is there when they are filled."""
        return self._filler.submit(self.fill, guides)

    def fill(self, guides: Sequence[tuple[int, Guide]]) -> None:
        """Fills them on this thread: for who has nothing else to do meanwhile, as it costs no change of threads."""
        by_engine: dict[type[Matcher], list[tuple[int, Guide]]] = {}
        for seat, guide in guides:
            if not guide.is_filled:
                by_engine.setdefault(type(guide.matcher), []).append((seat, guide))
        for engine, some in by_engine.items():
            try:
                engine.fill_many([guide.matcher for _, guide in some], self.bits, [seat for seat, _ in some])
            except RuntimeError:  # one of them: the others are not to suffer from it
                log.exception("masks could not be filled together")
                for _, guide in some:
                    guide.fill()
            else:
                for _, guide in some:
                    guide.is_filled = True
