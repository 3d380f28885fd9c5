"""The constrained sequences of the engine: which of them wait for their grammar, what their tokens lead to, masks."""

import itertools
import time
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from concurrent.futures import Future

import numpy as np

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.library import Grammars
from services.gpu_worker.grammar.masks import MaskPool, Masks
from services.gpu_worker.grammar.matcher import I32, I64, Compiled
from services.gpu_worker.run_guesses import RunGuesses
from services.gpu_worker.sequence import Sequence
from shared.errors import InternalError, InvalidRequest, RequestError
from shared.messages import FinishReason

WATCHED_S = 0.005
"""When taking a step's tokens has cost so much, those of the next step are taken one by one."""
WATCHED_FILL_S = 0.05
"""When the masks of a step have cost so much, those of the next step are filled one by one."""
MAX_TOKEN_S = 0.02
MAX_LOOK_S = 0.25
"""What a sequence may cost the engine's thread, which all others wait for, for one token, for its mask, and for looking
ahead. Where there are very many ways to read the same text (repeats in repeats, or one after another of the same
characters), every token costs more than the one before."""
MAX_REPLAY_S = 2.0
"""What replaying the output of a sequence that is taken over may cost, for the same reason."""
MAX_RUN = 128
"""Tokens that are forced at once: a longer run comes in parts, between which others have their steps."""


class Constraints:
    """Looks ahead whenever a token is known: a run that the grammar forces is appended to sequence.token_ids, and
    where the answer is whole and nothing may follow, sequence.ends is set. Neither is looked for where a mask leaves a
    choice of the next byte."""

    def __init__(
        self,
        grammars: Grammars,
        vocab_size: int,
        make_masks: Callable[[], I32],
        guesses: RunGuesses,
        *,
        forces_runs: bool,
    ) -> None:
        """make_masks: memory for mask rows, asked for when the first grammar comes. guesses: are told of runs."""
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._make_masks = make_masks
        self._guesses = guesses
        self._forces_runs = forces_runs
        self._waiting: dict[int, Sequence] = {}
        self._masks: MaskPool | None = None
        self._is_watched = self._is_fill_watched = False

    def clear(self) -> None:
        self._waiting.clear()

    def wait_for(self, sequence: Sequence) -> None:
        """The sequence is to get its guide as soon as its grammar is here."""
        self._waiting[sequence.id] = sequence

    def forget(self, sequence: Sequence) -> None:
        self._waiting.pop(sequence.id, None)

    def arrived(self) -> Iterator[tuple[Sequence, Compiled | RequestError]]:
        """Sequences whose grammar is here, or the reason why it will not come; each once."""
        for sequence in list(self._waiting.values()):
            grammar = self._grammars.get(sequence.grammar)
            if grammar is not None:
                del self._waiting[sequence.id]
                yield sequence, grammar

    def attach(self, sequence: Sequence, grammar: Compiled) -> "array[int]":
        """Gives the sequence its guide, replays its output, looks ahead; the run. Raises RequestError."""
        if self._masks is None:
            self._masks = MaskPool(self._make_masks())
            self._guesses.set_vocabulary(self._grammars.vocabulary)
        guide = Guide(
            grammar,
            sequence.sampling.stop_token_ids,
            self._grammars.vocabulary if self._forces_runs else None,
            self._vocab_size,
            self._masks.row(sequence.seat),
        )
        until = time.thread_time() + MAX_REPLAY_S
        for number, token_id in enumerate(sequence.token_ids[sequence.num_prompt :]):
            if not guide.accept(token_id):
                raise InternalError(
                    f"output token {number} of a sequence that was taken over does not match its grammar"
                )
            if time.thread_time() > until:
                raise _too_costly()
        sequence.guide = guide
        return self._look_ahead(sequence, guide)

    def go_on(self, known: Many[tuple[Sequence, int]]) -> "list[tuple[Sequence, array[int] | RequestError]]":
        """Takes sampled tokens that are no stop ids and looks ahead: those of the sequences that have a run or end now,
        with their runs, or with what went wrong. The masks of the others are filled."""
        if not known:
            return []
        errors = self._take(known)
        results: list[tuple[Sequence, array[int] | RequestError]] = []
        there: list[Sequence] = []
        for (sequence, token_id), error in zip(known, errors, strict=True):
            if error is None:
                sequence.token_ids.append(token_id)
                there.append(sequence)
            else:
                results.append((sequence, error))
        if not there:
            return results
        self.fill(there)
        slow = [sequence for sequence in there if _fills_slowly(sequence)]
        if slow:
            results += [(sequence, _too_costly()) for sequence in slow]
            there = [sequence for sequence in there if not _fills_slowly(sequence)]
        num_runs = 0
        for sequence in self._decided(there):
            try:
                assert sequence.guide is not None
                run = self._look_ahead(sequence, sequence.guide)
            except RequestError as error:
                results.append((sequence, error))
            else:
                num_runs += len(run) > 0
                if run or sequence.ends is not None:
                    results.append((sequence, run))
        self._guesses.count(num_runs)
        return results

    def _decided(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those for whom something may be forced. Their masks are filled."""
        decided, unknown = [], []
        for sequence in sequences:
            assert sequence.guide is not None
            is_decided = sequence.guide.is_decided
            if is_decided is None:
                unknown.append(sequence)
            elif is_decided:
                decided.append(sequence)
        if unknown:
            assert self._masks is not None
            found = self._grammars.vocabulary.are_decided(self._masks.bits, _seats(unknown))
            decided += itertools.compress(unknown, found.tolist())
        return decided

    def _take(self, known: Many[tuple[Sequence, int]]) -> list[RequestError | None]:
        """Takes each sequence's token; what went wrong with it."""
        guides = [guide for _, guide in _guides([sequence for sequence, _ in known])]
        token_ids = [token_id for _, token_id in known]
        started = time.thread_time()
        if self._is_watched:
            errors = [_take_watched(guide, token_id) for guide, token_id in zip(guides, token_ids, strict=True)]
        else:
            try:
                accepted = Guide.accept_many(guides, token_ids)
            except InternalError as failure:
                return [failure] * len(known)
            errors = [
                None if is_accepted else _not_allowed(token_id)
                for token_id, is_accepted in zip(token_ids, accepted, strict=True)
            ]
        self._is_watched = time.thread_time() - started > WATCHED_S
        return errors

    def _look_ahead(self, sequence: Sequence, guide: Guide) -> "array[int]":
        left = sequence.max_tokens - (len(sequence.token_ids) - sequence.num_prompt)
        place = guide.matcher.automaton, guide.matcher.state
        found = guide.known_run(sequence.token_ids, min(left, MAX_RUN))
        if found is None:
            started = time.thread_time()
            found = guide.run(sequence.token_ids, min(left, MAX_RUN))
            if time.thread_time() - started > MAX_LOOK_S:
                raise _too_costly()
        run = array("i", found)
        sequence.token_ids.extend(run)
        if guide.must_end():
            sequence.ends = FinishReason.STOP
        elif len(run) == left:
            sequence.ends = FinishReason.LENGTH
        if run and sequence.ends is not FinishReason.LENGTH:  # else it may be cut
            self._guesses.learn(*place, run)
        return run

    def start(self, sequences: Many[Sequence]) -> "Future[None]":
        """Begins to fill the masks of these sequences' next tokens, which have guides."""
        assert self._masks is not None
        return self._masks.start(_guides(sequences))

    def fill(self, sequences: Many[Sequence]) -> None:
        """As `start`, and they are filled on return."""
        assert self._masks is not None
        guides = [(seat, guide) for seat, guide in _guides(sequences) if not guide.is_filled]
        if not guides:
            return
        started = time.perf_counter()
        if self._is_fill_watched:
            for _, guide in guides:
                _fill_watched(guide)
        else:
            self._masks.fill(guides)
        self._is_fill_watched = time.perf_counter() - started > WATCHED_FILL_S

    def masks(self, rows: list[int], sequences: Many[Sequence]) -> Masks:
        """The filled masks for these rows of a step's logits."""
        assert self._masks is not None
        return Masks(rows, _seats(sequences), self._masks.bits)


def _take_watched(guide: Guide, token_id: int) -> RequestError | None:
    started = time.thread_time()
    try:
        is_accepted = guide.accept(token_id)
    except InternalError as error:
        return error
    was_slow, guide.is_slow = guide.is_slow, time.thread_time() - started > MAX_TOKEN_S
    if was_slow and guide.is_slow:  # once may be a garbage collection
        return _too_costly()
    return None if is_accepted else _not_allowed(token_id)


def _fill_watched(guide: Guide) -> None:
    started = time.thread_time()
    guide.fill()
    is_slow = time.thread_time() - started > MAX_TOKEN_S
    guide.num_slow_masks = guide.num_slow_masks + 1 if is_slow else 0


def _fills_slowly(sequence: Sequence) -> bool:
    return sequence.guide is not None and sequence.guide.num_slow_masks > 1


def _not_allowed(token_id: int) -> RequestError:
    return InternalError(f"token {token_id} was sampled, which the grammar does not allow")


def _too_costly() -> RequestError:
    return InvalidRequest(
        "the answer can be read in so many ways under its constraint that following it takes too long; "
        "repeats within repeats are the usual cause",
        code="constraint_too_costly",
    )


def _seats(sequences: Many[Sequence]) -> I64:
    return np.fromiter((one.seat for one in sequences), np.int64, len(sequences))


def _guides(sequences: Many[Sequence]) -> list[tuple[int, Guide]]:
    return [(one.seat, one.guide) for one in sequences if one.guide is not None]
