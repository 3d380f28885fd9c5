"""The constrained sequences of the engine: which of them wait for their grammar, what their tokens lead to, masks."""

import itertools
from array import array
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from concurrent.futures import Future

import numpy as np

from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.library import Grammars
from services.gpu_worker.grammar.masks import MaskPool, Masks
from services.gpu_worker.grammar.matcher import I32, I64, Compiled
from services.gpu_worker.sequence import Sequence
from shared.errors import InternalError, RequestError
from shared.messages import FinishReason

MAX_RUN = 128
"""Tokens that are forced at once: a longer run comes in parts, between which others have their steps."""


class Constraints:
    """Looks ahead whenever a token is known: a run that the grammar forces is appended to sequence.token_ids, and
    where the answer is whole and nothing may follow, sequence.ends is set. Neither is looked for where a mask leaves a
    choice of the next byte."""

    def __init__(
        self, grammars: Grammars, vocab_size: int, make_masks: Callable[[], I32], *, forces_runs: bool
    ) -> None:
        """make_masks: memory for mask rows, asked for when the first grammar comes."""
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._make_masks = make_masks
        self._forces_runs = forces_runs
        self._waiting: dict[int, Sequence] = {}
        self._masks: MaskPool | None = None

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
        """Gives the sequence its guide, replays its output, looks ahead; the run. Raises InternalError."""
        if self._masks is None:
            self._masks = MaskPool(self._make_masks())
        sequence.guide = Guide(
            grammar,
            sequence.sampling.stop_token_ids,
            sequence.token_ids[sequence.num_prompt :],
            self._grammars.vocabulary if self._forces_runs else None,
            self._vocab_size,
            self._masks.row(sequence.seat),
        )
        return self._look_ahead(sequence, sequence.guide)

    def go_on(self, known: Many[tuple[Sequence, int]]) -> "list[tuple[Sequence, array[int] | InternalError]]":
        """Takes sampled tokens that are no stop ids and looks ahead: those of the sequences that have a run or end now,
        with their runs, or with what went wrong. The masks of the others are filled."""
        if not known:
            return []
        guides = _guides([sequence for sequence, _ in known])
        try:
            accepted = Guide.accept_many([guide for _, guide in guides], [token_id for _, token_id in known])
        except InternalError as error:
            return [(sequence, error) for sequence, _ in known]
        results: list[tuple[Sequence, array[int] | InternalError]] = []
        there: list[Sequence] = []
        for (sequence, token_id), is_accepted in zip(known, accepted, strict=True):
            if is_accepted:
                sequence.token_ids.append(token_id)
                there.append(sequence)
            else:
                refusal = InternalError(f"token {token_id} was sampled, which the grammar does not allow")
                results.append((sequence, refusal))
        if not there:
            return results
        self.fill(there)
        assert self._masks is not None
        decided = self._grammars.vocabulary.are_decided(self._masks.bits, _seats(there))
        for sequence in itertools.compress(there, decided.tolist()):
            try:
                assert sequence.guide is not None
                run = self._look_ahead(sequence, sequence.guide)
            except InternalError as error:
                results.append((sequence, error))
            else:
                if run or sequence.ends is not None:
                    results.append((sequence, run))
        return results

    def _look_ahead(self, sequence: Sequence, guide: Guide) -> "array[int]":
        left = sequence.max_tokens - (len(sequence.token_ids) - sequence.num_prompt)
        run = array("i", guide.run(sequence.token_ids, min(left, MAX_RUN)))
        sequence.token_ids.extend(run)
        if guide.must_end():
            sequence.ends = FinishReason.STOP
        elif len(run) == left:
            sequence.ends = FinishReason.LENGTH
        return run

    def start(self, sequences: Many[Sequence]) -> "Future[None]":
        """Begins to fill the masks of these sequences' next tokens, which have guides."""
        assert self._masks is not None
        return self._masks.start(_guides(sequences))

    def fill(self, sequences: Many[Sequence]) -> None:
        """As `start`, and they are filled on return."""
        assert self._masks is not None
        self._masks.fill(_guides(sequences))

    def masks(self, rows: list[int], sequences: Many[Sequence]) -> Masks:
        """The filled masks for these rows of a step's logits."""
        assert self._masks is not None
        return Masks(rows, _seats(sequences), self._masks.bits)


def _seats(sequences: Many[Sequence]) -> I64:
    return np.fromiter((one.seat for one in sequences), np.int64, len(sequences))


def _guides(sequences: Many[Sequence]) -> list[tuple[int, Guide]]:
    return [(one.seat, one.guide) for one in sequences if one.guide is not None]
