"""What the engine keeps of a constrained sequence: its matcher, its mask row, the run that is forced next."""

import functools
import logging
from collections.abc import Sequence

from services.gpu_worker.grammar.forced import forced_run, known_run
from services.gpu_worker.grammar.matcher import I32, Compiled, Matcher, bit_of, mask_of
from services.gpu_worker.grammar.vocabulary import Vocabulary
from shared.errors import InternalError

log = logging.getLogger(__name__)


class Guide:
    """A sequence's way through its grammar. What the grammar engine fails at ends as InternalError, in `fill` as a row
    that allows nothing.

    vocabulary: None turns forced runs off. mask: its row, int32 [mask_width(V)]; is_filled: whether it is for the next
    token. is_slow: whether the last token that was timed took the matcher too long; num_slow_masks: how many masks in a
    row did. imposed: the only token that the step under way can sample; it counts as accepted already."""

    def __init__(
        self,
        compiled: Compiled,
        stop_token_ids: Sequence[int],
        vocabulary: Vocabulary | None,
        vocab_size: int,
        mask: I32,
    ) -> None:
        """stop_token_ids: each below V."""
        self.matcher = compiled.matcher(stop_token_ids)
        self.mask = mask
        self.is_filled = False
        self.is_slow = False
        self.num_slow_masks = 0
        self.imposed: int | None = None
        self._stops = _stops(tuple(stop_token_ids), vocab_size)
        self._vocabulary = vocabulary

    def accept(self, token_id: int) -> bool:
        """Goes on by a token that was sampled; False if the grammar does not allow it."""
        self.is_filled = False
        try:
            return self.matcher.accept(token_id)
        except RuntimeError as error:
            raise _failed(error) from error

    @staticmethod
    def accept_many(guides: "Sequence[Guide]", token_ids: Sequence[int]) -> list[bool]:
        """`accept` for each of them, faster than one by one. Raises InternalError, after which none is of use."""
        by_engine: dict[type[Matcher], list[int]] = {}
        for i, guide in enumerate(guides):
            guide.is_filled = False
            by_engine.setdefault(type(guide.matcher), []).append(i)
        accepted = [False] * len(guides)
        for engine, places in by_engine.items():
            try:
                results = engine.accept_many([guides[i].matcher for i in places], [token_ids[i] for i in places])
            except RuntimeError as error:
                raise _failed(error) from error
            for i, result in zip(places, results, strict=True):
                accepted[i] = result
        return accepted

    def impose(self, token_id: int) -> None:
        """Makes the mask row one that allows a token alone, which was accepted as part of a run."""
        self.imposed = token_id
        self.mask[:] = 0
        self.mask[token_id // 32] = bit_of(token_id)
        self.is_filled = True

    def note_imposed(self) -> None:
        """The imposed token was sampled."""
        self.imposed = None
        self.is_filled = False

    def fill(self) -> None:
        """Makes the mask row that of the next token."""
        if self.is_filled:
            return
        try:
            self.matcher.fill(self.mask)
        except RuntimeError:
            log.exception("a mask cannot be filled")
            self.mask[:] = 0
        self.is_filled = True

    def must_end(self) -> bool:
        """Whether nothing but a stop id may follow. Where the answer is not whole it may not be so."""
        if not self.matcher.can_end():
            return False
        self.fill()
        return not (self.mask & ~self._stops).any()

    def is_stuck(self) -> bool:
        """Whether nothing at all may follow: the vocabulary cannot spell what the grammar asks for."""
        self.fill()
        return not self.mask.any()

    @property
    def is_decided(self) -> bool | None:
        """Whether all tokens that may follow begin alike (see Vocabulary.are_decided). None: not known."""
        state = self.matcher.state
        return state.is_decided if state is not None else None

    def run(self, before: Sequence[int], limit: int) -> list[int]:
        """The tokens, at most `limit`, that must follow; they count as accepted. before: the tokens so far."""
        if self._vocabulary is None:
            return []
        try:
            run = forced_run(self.matcher, self._vocabulary, before, limit)
        except RuntimeError as error:
            raise _failed(error) from error
        if run:
            self.is_filled = False
        return run

    def known_run(self, before: Sequence[int], limit: int) -> list[int] | None:
        """As `run`, where it takes no time: somebody asked in the same place. None where it has to be found out."""
        if self._vocabulary is None:
            return []
        try:
            run = known_run(self.matcher, self._vocabulary, before, limit)
        except RuntimeError as error:
            raise _failed(error) from error
        if run:
            self.is_filled = False
        return run


@functools.lru_cache(maxsize=64)
def _stops(token_ids: tuple[int, ...], vocab_size: int) -> I32:
    """The mask row of a request's stop ids, which most requests have in common."""
    return mask_of(token_ids, vocab_size)


def _failed(error: RuntimeError) -> InternalError:
    reason = (str(error).splitlines() or [repr(error)])[0]
    return InternalError(f"the grammar of this request failed: {reason}")
