"""Forced runs that a step computes on the device's word: what to look up, what came of it, what is learnt."""

from array import array
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.grammar.automaton import Automaton, State
from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.prediction import Guesses, Room, RunTable
from services.gpu_worker.grammar.vocabulary import Vocabulary

LEAST_RUNS = 1 / 32
"""Of a step for each of its rows: with fewer, steps with room for runs cost more than these save."""
SMOOTH = 32
"""Steps over which the number of runs is averaged."""


@dataclass(frozen=True, slots=True)
class Guessed:
    """A run that a step computes for one of its rows."""

    row: int
    run: "array[int]"


class RunGuesses:
    """table: None to guess none."""

    def __init__(self, table: RunTable | None) -> None:
        self._table = table
        self._num_runs = 0.0

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Whose tokens the grammars are of; before anything is asked."""
        if self._table is not None:
            self._table.set_vocabulary(vocabulary.texts, vocabulary.text_lengths)

    def ask(self, decode: DecodeSet) -> Guesses | None:
        """What may be looked up while the newest tokens of these sequences are under way, which have been launched
        decode.launched times; None for nothing. Those with penalties count the tokens of runs, and are left alone."""
        table = self._table
        if table is None or self._num_runs < len(decode) * LEAST_RUNS:
            return None
        table.explore()
        guesses = None
        for row, one in decode.constrained:
            assert one.guide is not None
            matcher = one.guide.matcher
            if matcher.state is None or matcher.automaton is None or one.sampling.has_penalties:
                continue
            num_sampled = one.num_sampled + decode.launched
            if num_sampled == len(one.token_ids) - one.num_prompt:
                continue  # its newest token is known, and what it forces
            if guesses is None:
                guesses = Guesses.none(len(decode))
            guesses.numbers[row] = table.number(matcher.automaton, matcher.state)
            guesses.most[row] = min(one.room - decode.launched, one.max_tokens - num_sampled) - 1
        return guesses

    def found(self, decode: DecodeSet, guesses: Guesses, newest: I32, room: Room) -> dict[int, Guessed]:
        """By sequence id: the runs that the device has found. newest: int32 [num_seats], the tokens by seat."""
        table = self._table
        assert table is not None
        tokens = np.maximum(newest[decode.seats], 0)  # as the device has it where a row had none
        lengths, numbers = table.find(guesses, tokens, room)
        return {
            decode.sequences[row].id: Guessed(row, array("i", table.run(int(numbers[row]), int(lengths[row]))))
            for row in lengths.nonzero()[0].tolist()
        }

    def learn(self, automaton: Automaton | None, state: State | None, run: Many[int]) -> None:
        """What is forced in a matcher's state; nothing if `run` is empty."""
        if self._table is not None and automaton is not None and state is not None:
            self._table.observe(automaton, state, run)

    def count(self, num_runs: int) -> None:
        """So many came in a step."""
        self._num_runs += (num_runs - self._num_runs) / SMOOTH
