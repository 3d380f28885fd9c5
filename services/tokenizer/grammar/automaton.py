"""Patterns as deterministic automata, those that look around among them.

Of a pattern without looks a state is a set of places in it. With looks it is a set of threads: a place, and what must
or must not match from here on for the place to count; and beside them where the automata are that know whether what
is looked back at has just been read.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from services.tokenizer.grammar.charset import ANY, LAST, Chars, contains
from services.tokenizer.grammar.dfa import DEAD, Alphabet, Dfa, alphabet, explored, too_many_states
from services.tokenizer.grammar.limits import MAX_STATES
from services.tokenizer.grammar.pattern import ANYTHING, Alt, Look, One, Pattern, Repeat, Seq, seq

Threads = frozenset["Thread"]
Thread = tuple[int, Threads, frozenset[Threads]]
"""A place; threads none of which may come to its end from here on; sets of threads of each of which one must."""

MAX_THREADS = 400
"""In one state of an automaton."""

MAX_WORK = 1_000_000
"""Places that are looked at for all states of an automaton: a second."""

MAX_STEPS = 10_000
"""Sets of threads that are taken a character further, the same of an automaton with looks."""


def automaton(pattern: Pattern) -> Dfa:
    """Of the whole texts that match. Raises Unenforceable."""
    nfa = _Nfa()
    start = nfa.state()
    final = nfa.build(pattern, start)
    return _Looking(nfa, final).automaton(start) if nfa.conditions else _plain(nfa, start, final)


def matches(pattern: Pattern, text: str) -> bool:
    """Whether the whole text matches; however many states the automaton would have."""
    nfa = _Nfa()
    start = nfa.state()
    final = nfa.build(pattern, start)
    if nfa.conditions:
        return _Looking(nfa, final).matches(start, text)
    states = nfa.closure(frozenset([start]))
    for char in text:
        following = (target for state in states for chars, target in nfa.edges[state] if contains(chars, char))
        states = nfa.closure(frozenset(following))
    return final in states


def _plain(nfa: "_Nfa", start: int, final: int) -> Dfa:
    letters = _Letters(nfa)
    work = 0

    def step(states: frozenset[int]) -> list[frozenset[int] | None]:
        nonlocal work
        work += len(states)
        if work > MAX_WORK:
            raise too_many_states()
        row: list[set[int] | None] = [None] * len(letters.samples)
        for state in states:
            for kind, target in letters.moves[state]:
                cell = row[kind]
                if cell is None:
                    row[kind] = cell = set()
                cell.add(target)
        closed: dict[frozenset[int], frozenset[int]] = {}
        out: list[frozenset[int] | None] = []
        for cell in row:
            if cell is None:
                out.append(None)
                continue
            key = frozenset(cell)
            if key not in closed:
                closed[key] = nfa.closure(key)
            out.append(closed[key])
        return out

    return explored(letters.kinds, nfa.closure(frozenset([start])), step, lambda states: final in states)


class _Looking:
    """A pattern with looks. held: for each of the conditions that look back, whether it holds at a place."""

    def __init__(self, nfa: "_Nfa", final: int) -> None:
        self._nfa = nfa
        self._ends = {final}
        self._heads: dict[int, int] = {}  # of conditions that look ahead, by number: where their pattern starts
        for number, look in enumerate(nfa.conditions):  # grows while it is walked: looks may hold others
            if look.is_ahead:
                self._heads[number] = nfa.state()
                end = nfa.build(look.pattern, self._heads[number])
                nfa.edges[end].append((ANY, end))
                self._ends.add(end)
        back = [number for number, look in enumerate(nfa.conditions) if not look.is_ahead]
        self._places = {number: place for place, number in enumerate(back)}
        self._back = [automaton(seq([ANYTHING, nfa.conditions[number].pattern])) for number in back]
        self._letters = _Letters(nfa, self._back)
        self._stepped: dict[tuple[Threads, int, tuple[bool, ...]], Threads] = {}

    def automaton(self, start: int) -> Dfa:
        return explored(
            self._letters.kinds, self._first(start), self._step, lambda state: any(map(self._is_whole, state[1]))
        )

    def matches(self, start: int, text: str) -> bool:
        read, threads = self._first(start)
        for char in text:
            kind = self._letters.kinds.kind_of(ord(char))
            read = self._read(read, kind)
            threads = self._moved(threads, kind, self._held(read))
        return any(map(self._is_whole, threads))

    def _first(self, start: int) -> tuple[tuple[int, ...], Threads]:
        read = (0,) * len(self._back)
        return read, self._closure([(start, frozenset(), frozenset())], self._held(read))

    def _read(self, read: tuple[int, ...], kind: int) -> tuple[int, ...]:
        """The states of the automata that look back, behind one more character."""
        point = self._letters.kinds.bounds[self._letters.samples[kind]]
        return tuple(
            DEAD if place == DEAD else dfa.rows[place][dfa.alphabet.kind_of(point)]
            for dfa, place in zip(self._back, read, strict=True)
        )

    def _held(self, read: tuple[int, ...]) -> tuple[bool, ...]:
        return tuple(state != DEAD and dfa.accepts[state] for dfa, state in zip(self._back, read, strict=True))

    def _step(self, state: tuple[tuple[int, ...], Threads]) -> list[tuple[tuple[int, ...], Threads] | None]:
        read, threads = state
        out: list[tuple[tuple[int, ...], Threads] | None] = []
        for kind in range(len(self._letters.samples)):
            moved = self._read(read, kind)
            following = self._moved(threads, kind, self._held(moved))
            out.append((moved, following) if following else None)
        return out

    def _moved(self, threads: Threads, kind: int, held: tuple[bool, ...]) -> Threads:
        """Behind one more character."""
        key = (threads, kind, held)
        if key not in self._stepped:
            if len(self._stepped) > MAX_STEPS:
                raise too_many_states()
            self._stepped[key] = self._closure(list(self._through(threads, kind, held)), held)
        return self._stepped[key]

    def _through(self, threads: Threads, kind: int, held: tuple[bool, ...]) -> Iterator[Thread]:
        for place, barred, needed in threads:
            targets = [target for one, target in self._letters.moves[place] if one == kind]
            if not targets:
                continue
            barred = self._moved(barred, kind, held) if barred else barred
            still = {self._moved(one, kind, held) for one in needed}
            if self._has_ended(barred) or frozenset() in still:
                continue
            open_ones = frozenset(one for one in still if not self._has_ended(one))
            yield from ((target, barred, open_ones) for target in targets)

    def _closure(self, threads: list[Thread], held: tuple[bool, ...]) -> Threads:
        """With the places that nothing but conditions leads to."""
        seen, stack = set(threads), threads
        while stack:
            place, barred, needed = stack.pop()
            found = [(target, barred, needed) for target in self._nfa.jumps[place]]
            for number, target in self._nfa.looks[place]:
                look = self._nfa.conditions[number]
                if not look.is_ahead:
                    if held[self._places[number]] != look.is_negated:
                        found.append((target, barred, needed))
                    continue
                inside = self._closure([(self._heads[number], frozenset(), frozenset())], held)
                if self._has_ended(inside):
                    found += [] if look.is_negated else [(target, barred, needed)]
                elif look.is_negated:
                    found.append((target, barred | inside, needed))
                elif inside:
                    found.append((target, barred, needed | {inside}))
            fresh = [thread for thread in found if thread not in seen]
            seen.update(fresh)
            stack += fresh
        return self._pruned(seen)

    def _pruned(self, threads: set[Thread]) -> Threads:
        """Without places that lead nowhere, and threads for which more is asked than for another at the same place."""
        by_place: dict[int, list[tuple[Threads, frozenset[Threads]]]] = {}
        for place, barred, needed in threads:
            if self._nfa.edges[place] or place in self._ends:
                by_place.setdefault(place, []).append((barred, needed))
        kept = frozenset(
            (place, barred, needed)
            for place, asked in by_place.items()
            for barred, needed in asked
            if not any(less[0] <= barred and less[1] <= needed and less != (barred, needed) for less in asked)
        )
        if len(kept) > MAX_THREADS:
            raise too_many_states()
        return kept

    def _has_ended(self, threads: Threads) -> bool:
        """Whether what looks ahead has found its match, whatever follows."""
        return any(place in self._ends and not barred and not needed for place, barred, needed in threads)

    def _is_whole(self, thread: Thread) -> bool:
        """Whether the text may end here."""
        place, barred, needed = thread
        return (
            place in self._ends
            and not any(map(self._is_whole, barred))
            and all(any(map(self._is_whole, one)) for one in needed)
        )


class _Letters:
    """kinds: the classes of characters that an NFA and some automata do not tell apart; samples: a span of each;
    moves[state]: the class of a character and the state that it leads to."""

    def __init__(self, nfa: "_Nfa", others: Sequence[Dfa] = ()) -> None:
        sets = list(dict.fromkeys(chars for targets in nfa.edges for chars, _ in targets))
        starts = {0, *(bound for dfa in others for bound in dfa.alphabet.bounds)}
        starts.update(bound for chars in sets for low, high in chars for bound in (low, high + 1))
        bounds = sorted(start for start in starts if start <= LAST)
        spans = [
            [span for low, high in chars for span in range(bisect_right(bounds, low) - 1, bisect_right(bounds, high))]
            for chars in sets
        ]
        looks: list[list[int]] = [[dfa.alphabet.kind_of(start) for dfa in others] for start in bounds]
        for number, inside in enumerate(spans):
            for span in inside:
                looks[span].append(number)
        self.kinds: Alphabet
        self.kinds, self.samples = alphabet(bounds, lambda span: tuple(looks[span]))
        kinds_in = {
            chars: {self.kinds.kinds[span] for span in inside} for chars, inside in zip(sets, spans, strict=True)
        }
        self.moves = [
            [(kind, target) for chars, target in targets for kind in kinds_in[chars]] for targets in nfa.edges
        ]


class _Nfa:
    """edges: characters and where they lead; jumps: where nothing leads; looks: where a condition leads, by its number
    in `conditions`."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[Chars, int]]] = []
        self.jumps: list[list[int]] = []
        self.looks: list[list[tuple[int, int]]] = []
        self.conditions: list[Look] = []

    def state(self) -> int:
        if len(self.edges) > 20 * MAX_STATES:
            raise too_many_states()
        self.edges.append([])
        self.jumps.append([])
        self.looks.append([])
        return len(self.edges) - 1

    def build(self, pattern: Pattern, start: int) -> int:
        """Adds the pattern behind `start`; returns where it ends."""
        match pattern:
            case One(chars):
                end = self.state()
                self.edges[start].append((chars, end))
                return end
            case Look():
                end = self.state()
                if pattern not in self.conditions:
                    self.conditions.append(pattern)
                self.looks[start].append((self.conditions.index(pattern), end))
                return end
            case Seq(parts):
                for part in parts:
                    start = self.build(part, start)
                return start
            case Alt(parts):
                end = self.state()
                for part in parts:
                    first = self.state()
                    self.jumps[start].append(first)
                    self.jumps[self.build(part, first)].append(end)
                return end
            case Repeat(part, least, most):
                for _ in range(least):
                    start = self.build(part, start)
                return self._loop(part, start) if most is None else self._up_to(part, start, most - least)

    def _loop(self, part: Pattern, start: int) -> int:
        hub = self.state()
        self.jumps[start].append(hub)
        first = self.state()
        self.jumps[hub].append(first)
        self.jumps[self.build(part, first)].append(hub)
        return hub

    def _up_to(self, part: Pattern, start: int, count: int) -> int:
        end = self.state()
        for _ in range(count):
            self.jumps[start].append(end)
            first = self.state()
            self.jumps[start].append(first)
            start = self.build(part, first)
        self.jumps[start].append(end)
        return end

    def closure(self, states: frozenset[int]) -> frozenset[int]:
        seen, stack = set(states), list(states)
        while stack:
            for target in self.jumps[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return frozenset(seen)
