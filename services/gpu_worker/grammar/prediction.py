"""Forced runs as a device finds them by itself, so that the step which computes a token computes its run too.

A step is launched before the host knows the newest tokens, so what such a token forces would have to wait for the step
after. But the host knows the state of the grammar before that token, and the automaton says where each of the token's
bytes leads (see automaton.py): with a copy of it, the device walks from the one state to the next, and looks up the run
that was forced there the last times. Whether it holds this time is for the grammar to say, before the step's next token
is sampled: the words before have a part in how a text is cut into tokens. A run that does not hold costs its sequence a
step, as one that holds saves one.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.gpu_worker.grammar.automaton import Automaton, State
from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.vocabulary import MAX_TOKEN_BYTES, U8

MAX_NUMBERS = 8192
"""States that are known to the device at a time, of all grammars: 9 MB with their runs."""
MAX_EXPLORED = MAX_NUMBERS * 3 // 4
"""So many may have a number that nobody may ever come to."""
MAX_UNEXPLORED = 512
"""So many of these wait to be explored, and keep their grammars in memory. Others wait for somebody to come."""
MAX_LENGTH = 15
"""Longer runs are rarer, and are computed by a step of their own."""
HEADER = 1
"""Of an entry: its length; the run's tokens follow."""
ENTRY = HEADER + MAX_LENGTH
NOWHERE = 0
"""The number where there is no way, or none that the device knows: every byte leads there again."""
EXPLORED_S = 0.0005
"""A step's time to find out where bytes lead, some six states, while the device computes. A schema has hundreds."""

_eras = itertools.count(1)
"""What numbers were given in: a state may have one of another table, or of the same before it was full."""
_SURE = 4
_MISSED = 2
_LATER, _NEXT, _DONE = range(3)
"""When it is found out where bytes lead from a state."""
_SMOOTH = 8
"""Steps over which demand is averaged."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a step has left for runs of all its rows together, in their order, until one does not fit."""

    num_tokens: int
    num_runs: int


NO_ROOM = Room(0, 0)


@dataclass(frozen=True, slots=True)
class Guesses:
    """What is to be looked up for the rows that decode. numbers: int32 [B], of their states before the newest token,
    NOWHERE for a row that is left alone; most: int32 [B], the tokens that a row has pages and leave for, beside its
    newest and the next one."""

    numbers: I32
    most: I32

    @classmethod
    def none(cls, num_rows: int) -> "Guesses":
        """To be filled."""
        return cls(np.zeros(num_rows, np.int32), np.zeros(num_rows, np.int32))


class RunTable:
    """States by their numbers. V: size of the vocabulary.

    follow: int32 [MAX_NUMBERS, 256], the number of the state after each byte. entries: int32 [MAX_NUMBERS, ENTRY], a
    length of 0 where nothing is forced, or nothing that is to be relied on. texts: uint8 [V, MAX_TOKEN_BYTES] and
    text_lengths: int32 [V], see `Vocabulary`; None until `set_vocabulary`. demand: tokens of runs that a step could
    have computed lately."""

    def __init__(self) -> None:
        self.follow: I32 = np.zeros((MAX_NUMBERS, 256), np.int32)
        self.entries: I32 = np.zeros((MAX_NUMBERS, ENTRY), np.int32)
        self.texts: U8 | None = None
        self.text_lengths: I32 | None = None
        self.demand = 0.0
        self._era = next(_eras)
        self._next = NOWHERE + 1
        self._runs: dict[int, tuple[tuple[int, ...], int]] = {}
        self._progress = bytearray(MAX_NUMBERS)
        self._unexplored: deque[tuple[Automaton, State]] = deque()
        self._changed: set[int] = set()

    def set_vocabulary(self, texts: U8, text_lengths: I32) -> None:
        """Once."""
        assert texts.shape == (len(text_lengths), MAX_TOKEN_BYTES)
        self.texts, self.text_lengths = texts, text_lengths

    def number(self, automaton: Automaton, state: State) -> int:
        """Of a state of this automaton to which somebody came: where bytes lead from it is looked at first. When there
        is no number left all begin afresh."""
        number = state.number if state.era == self._era else self._give_number(state)
        if self._progress[number] == _LATER:
            self._progress[number] = _NEXT
            self._unexplored.appendleft((automaton, state))
        return number

    def _give_number(self, state: State) -> int:
        if self._next == MAX_NUMBERS:
            self._begin()
        state.era, state.number = self._era, self._next
        self._next += 1
        self.follow[state.number] = NOWHERE
        self.entries[state.number, 0] = 0
        self._progress[state.number] = _LATER
        self._changed.add(state.number)
        return state.number

    def explore(self) -> None:
        """Goes on to find out where the bytes lead in states that have a number, for EXPLORED_S; and gives those a
        number that they lead to, while it is not MAX_EXPLORED yet."""
        until = time.thread_time() + EXPLORED_S
        while self._unexplored and time.thread_time() < until:
            automaton, state = self._unexplored[0]
            is_done = self._progress[state.number] == _DONE  # it came first, and was here a second time
            if not is_done and not automaton.explore(state, until):
                return
            self._unexplored.popleft()
            if is_done:
                continue
            self._progress[state.number] = _DONE
            row = []
            before, number = None, NOWHERE
            for after in state.follow:
                if after is not before:  # neighbours mostly lead to the same
                    before, number = after, self._number_of(automaton, after)
                row.append(number)
            self.follow[state.number] = row
            self._changed.add(state.number)

    def _number_of(self, automaton: Automaton, state: State | None) -> int:
        """Of a state that nobody may ever come to."""
        if state is None or automaton.is_nowhere(state):
            return NOWHERE
        if state.era == self._era:
            return state.number
        if self._next >= MAX_EXPLORED or not automaton.has_room:
            return NOWHERE
        number = self._give_number(state)
        if len(self._unexplored) < MAX_UNEXPLORED:
            self._unexplored.append((automaton, state))
        return number

    def observe(self, automaton: Automaton, state: State, run: Sequence[int]) -> None:
        """What the grammar forced in the state; nothing if `run` is empty."""
        came = tuple(run)
        number = self.number(automaton, state)
        known = self._runs.get(number)
        if known is None:
            if 0 < len(came) <= MAX_LENGTH:
                self._show(number, came, 1)
            return
        expected, score = known
        if expected == came:
            self._show(number, came, min(score + 1, _SURE))
        elif score > _MISSED:
            self._show(number, expected, score - _MISSED)
        elif 0 < len(came) <= MAX_LENGTH:
            self._show(number, came, 1)
        else:
            self._show(number, expected, 0)

    def find(self, guesses: Guesses, tokens: I32, room: Room) -> tuple[I32, I32]:
        """The device's answer: int32 [B] how many tokens of a run each row computes behind its newest, and int32 [B]
        the number of the state whose run it is. tokens: int32 [B], the newest."""
        assert self.texts is not None and self.text_lengths is not None
        text_lengths = self.text_lengths[tokens]
        order = np.argsort(-text_lengths)
        texts = self.texts[tokens[order]].astype(np.int32)
        at = np.where(text_lengths > 0, guesses.numbers, NOWHERE)[order]
        follow = self.follow.reshape(-1)
        for j, count in enumerate(np.cumsum(np.bincount(text_lengths)[::-1])[-2::-1].tolist()):  # longer than j
            at[:count] = follow[at[:count] * 256 + texts[:count, j]]
        numbers = np.empty_like(at)
        numbers[order] = at
        lengths = self.entries[numbers, 0]
        lengths = np.where(lengths <= guesses.most, lengths, 0)
        self.demand += (int(lengths.sum()) - self.demand) / _SMOOTH
        lengths = np.where(np.cumsum(lengths) <= room.num_tokens, lengths, 0)
        lengths = np.where(np.cumsum(lengths > 0) <= room.num_runs, lengths, 0)
        return lengths.astype(np.int32), numbers

    def run(self, number: int, length: int) -> list[int]:
        """What a device that found a run of that length computes."""
        found: list[int] = self.entries[number, HEADER : HEADER + length].tolist()
        return found

    def changes(self) -> "tuple[npt.NDArray[np.int64], I32, I32] | None":
        """Numbers int64 [C], and what a copy lacks of them: int32 [C, 256] of `follow`, int32 [C, ENTRY] of `entries`;
        None for nothing."""
        if not self._changed:
            return None
        numbers = np.fromiter(self._changed, np.int64, len(self._changed))
        return numbers, self.follow[numbers], self.entries[numbers]

    def note_copied(self) -> None:
        """The changes have arrived where the copy is."""
        self._changed.clear()

    def _show(self, number: int, run: tuple[int, ...], score: int) -> None:
        before = self._runs.get(number)
        self._runs[number] = run, score
        if before is not None and before[0] == run and (before[1] > 0) == (score > 0):
            return
        entry = self.entries[number]
        entry[0] = len(run) if score > 0 else 0
        entry[HEADER : HEADER + len(run)] = run
        self._changed.add(number)

    def _begin(self) -> None:
        """A new era: no state has a number."""
        self._era = next(_eras)
        self._next = NOWHERE + 1
        self._runs.clear()
        self._unexplored.clear()  # what changed stays to be copied: rows that were just asked about have old numbers
