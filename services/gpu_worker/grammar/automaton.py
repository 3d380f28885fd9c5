"""The states of a grammar: texts after which the same may follow are in the same one.

What a grammar allows next, and what it forces, depends on nothing but the state, so that both are found out once for
all sequences that come to it, and a token is taken by looking up its bytes. States are made when somebody first comes
there: what may stand at the top of a parser's stack, for all ways to read the text, with the rest of the stack (a
determinised pushdown automaton, lazily built; a call at the end of a rule leaves no trace on the stack, which is why
most grammars have few states, and those without recursion finitely many).
"""

import time

from services.gpu_worker.grammar.matcher import I32
from services.gpu_worker.grammar.rules import DONE, Edges, Op, Rules

MAX_STATES = 8192
MAX_WAYS = 128
"""Ways to read a text at a time. Ambiguous grammars have more, and left recursion endlessly many."""
MAX_LOOKED_AT = 512
"""Places that are looked at for where a byte leads: half a millisecond. Schemas in use need 50."""
MAX_STACKS = 65536
EXPLORED_SHARE = 4
"""A quarter of the states and stacks may be made for texts that nobody may ever write."""
MAX_MASK_BYTES = 16 * 2**20
MAX_RUNS = 64
"""That are remembered of a state."""
STATE_BYTES = 2600
"""Of a state without its mask and its runs, about."""
STACK_BYTES = 250

_ACCEPT = 0
"""The stack of a text that is whole."""
_BOUND = -1
"""In place of a place: above here is a rule with a bound. `inner` is how many characters it may have more."""
_CONTINUATION = range(0x80, 0xC0)
"""Bytes that begin no character."""


class TooManyStates(Exception):
    """The grammar is not one to be followed so."""


class State:
    """can_end: whether the text is whole. None is what nobody has found out yet of these: mask: int32 [mask_width(V)],
    the tokens that may follow; is_decided: whether they all begin alike (see Vocabulary.are_decided); forced: the text
    that must follow. runs: the tokens that are forced, by the word before (see forced.py), and the least limit at which
    they are these. number, era: see prediction.py."""

    __slots__ = ("can_end", "era", "follow", "forced", "is_decided", "mask", "number", "runs", "stacks")

    def __init__(self, stacks: frozenset[int]) -> None:
        self.stacks = stacks
        self.follow: list[State | None] = [None] * 256
        self.can_end = _ACCEPT in stacks
        self.mask: I32 | None = None
        self.is_decided: bool | None = None
        self.forced: bytes | None = None
        self.runs: dict[bytes, tuple[tuple[int, ...], int]] = {}
        self.number = self.era = 0

    def remember_run(self, word: bytes, run: tuple[int, ...], limit: int) -> None:
        if len(self.runs) == MAX_RUNS:
            self.runs.clear()
        self.runs[word] = run, limit


class Automaton:
    """One thread at a time. It begins at `start`."""

    def __init__(self, rules: Rules) -> None:
        """Raises TooManyStates."""
        self._rules = rules
        self._stacks: list[tuple[int, int, int]] = [(-1, 0, _ACCEPT)]
        self._is_counted = [False]
        self._stack_numbers: dict[tuple[int, int, int], int] = {}
        self._states: dict[frozenset[int], State] = {}
        self._masks: dict[bytes, I32] = {}
        self._mask_bytes = 0
        self._is_full = False
        self._nowhere = State(frozenset())
        self._num_looked_at = 0
        stacks: set[int] = set()
        for place in rules.starts[rules.root]:
            self._settle(place, _ACCEPT, stacks)
        self.start = self._state(stacks)

    @property
    def num_bytes(self) -> int:
        return len(self._states) * STATE_BYTES + len(self._stacks) * STACK_BYTES + self._mask_bytes

    @property
    def is_spent(self) -> bool:
        """Whether there is no place for another state."""
        return self._is_full and len(self._states) == MAX_STATES

    def walk(self, state: State, text: bytes) -> State | None:
        """The state after more text; None where the grammar does not allow it. Raises TooManyStates."""
        for byte in text:
            after = state.follow[byte]
            state = after if after is not None else self._step(state, byte)
        return state if state is not self._nowhere else None

    def explore(self, state: State, until: float) -> bool:
        """Finds out where the bytes lead of which nobody knows, while the thread's time is before `until` and there is
        place for states that nobody may ever come to; whether nothing is left to find out."""
        follow = state.follow
        for byte in range(256):
            if follow[byte] is None:
                if self._is_full or not self.has_room:
                    break
                if time.thread_time() >= until:
                    return False
                try:
                    self._step(state, byte)
                except TooManyStates:  # there, where nobody may ever come
                    self._is_full = False
                    break
        return True

    def is_nowhere(self, state: State) -> bool:
        """Whether the state is that of a text that the grammar does not allow."""
        return state is self._nowhere

    @property
    def has_room(self) -> bool:
        """For states that nobody may ever come to."""
        return len(self._states) < MAX_STATES // EXPLORED_SHARE and len(self._stacks) < MAX_STACKS // EXPLORED_SHARE

    def remember_mask(self, state: State, mask: I32, *, is_decided: bool) -> None:
        """Keeps a copy, one for all states that allow the same, while there is room."""
        text = mask.tobytes()
        kept = self._masks.get(text)
        if kept is None:
            if self._mask_bytes + len(text) > MAX_MASK_BYTES:
                return
            self._mask_bytes += len(text)
            kept = self._masks[text] = mask.copy()
        state.mask, state.is_decided = kept, is_decided

    def _step(self, state: State, byte: int) -> State:
        """Where the byte leads, and all around it that lead to the same."""
        if self._is_full:
            raise TooManyStates
        self._num_looked_at = 0
        stacks: set[int] = set()
        low, high = 0, 255
        begins = byte not in _CONTINUATION
        if any(map(self._is_counted.__getitem__, state.stacks)):
            low, high = next(span for span in ((0, 0x7F), (0x80, 0xBF), (0xC0, 0xFF)) if span[0] <= byte <= span[1])
        for number in state.stacks:
            if number == _ACCEPT:
                continue
            place, inner, parent = self._stacks[number]
            op = self._rules.ops[place]
            edges: Edges = ((inner, inner, DONE),) if op is Op.BYTE else self._rules.characters.edges[inner]
            if begins and self._is_counted[parent]:
                counted = self._counted(parent)
                if counted is None:
                    continue
                parent = counted
            for first, last, after in edges:
                if byte < first:
                    high = min(high, first - 1)
                elif byte > last:
                    low = max(low, last + 1)
                else:
                    low, high = max(low, first), min(high, last)
                    if after != DONE:
                        stacks.add(self._stack(place, after, parent))
                    else:
                        self._settle(place if op is Op.STAR else place + 1, parent, stacks)
        target = self._state(stacks) if stacks else self._nowhere
        state.follow[low : high + 1] = [target] * (high + 1 - low)
        return target

    def _settle(self, place: int, parent: int, stacks: set[int]) -> None:
        """Adds all stacks with a character on top to which the place leads without one."""
        rules = self._rules
        todo = [(place, 0, parent)]
        seen = set()
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            self._num_looked_at += 1
            if self._num_looked_at > MAX_LOOKED_AT:
                raise self._too_many()
            place, count, parent = one
            op = rules.ops[place] if place != _BOUND else Op.END
            arg = rules.args[place]
            if op is Op.END:
                if parent == _ACCEPT:
                    stacks.add(_ACCEPT)
                else:
                    todo.append(self._stacks[parent])
            elif op is Op.CALL:
                after = parent if rules.ops[place + 1] is Op.END else self._stack(place + 1, 0, parent)
                self._call(arg, after, todo)
            elif op is Op.REPEAT:
                rule, least, most = arg
                if count >= least:
                    todo.append((place + 1, 0, parent))
                if most < 0 or count < most:
                    after = self._stack(place, count + 1 if most >= 0 else min(count + 1, least), parent)
                    self._call(rule, after, todo)
            else:
                stacks.add(self._stack(place, arg, parent))
                if op is Op.STAR:
                    todo.append((place + 1, 0, parent))

    def _call(self, rule: int, parent: int, todo: list[tuple[int, int, int]]) -> None:
        if self._rules.max_chars[rule] >= 0:
            parent = self._stack(_BOUND, self._rules.max_chars[rule], parent)
        todo.extend((start, 0, parent) for start in self._rules.starts[rule])

    def _counted(self, number: int) -> int | None:
        """The stack with one character more in all of its rules with bounds. None if one of them may have no more."""
        place, inner, parent = self._stacks[number]
        if self._is_counted[parent]:
            counted = self._counted(parent)
            if counted is None:
                return None
            parent = counted
        if place != _BOUND:
            return self._stack(place, inner, parent)
        return self._stack(place, inner - 1, parent) if inner else None

    def _stack(self, place: int, inner: int, parent: int) -> int:
        """inner: how far into the element: of a repeat the count, of characters their state, of a byte itself."""
        key = (place, inner, parent)
        number = self._stack_numbers.get(key)
        if number is None:
            number = self._stack_numbers[key] = len(self._stacks)
            if number > MAX_STACKS:
                raise self._too_many()
            self._stacks.append(key)
            self._is_counted.append(place == _BOUND or self._is_counted[parent])
        return number

    def _state(self, stacks: set[int]) -> State:
        if len(stacks) > MAX_WAYS:
            raise self._too_many()
        key = frozenset(stacks)
        state = self._states.get(key)
        if state is None:
            if len(self._states) == MAX_STATES:
                raise self._too_many()
            state = self._states[key] = State(key)
        return state

    def _too_many(self) -> TooManyStates:
        """From now on there are the ways that were found, and no others."""
        self._is_full = True
        return TooManyStates()
