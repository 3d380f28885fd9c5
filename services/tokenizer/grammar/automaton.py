"""Deterministic automata over characters, where patterns must be combined: intersection, complement, lengths.

All operations raise Unenforceable when a result has more than MAX_STATES states.
"""

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from services.tokenizer.grammar.charset import ANY, LAST, Chars, intersection, union
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_STATES
from services.tokenizer.grammar.pattern import Alt, One, Pattern, Repeat, Seq

DEAD = -1
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Dfa:
    """State 0 is the start. bounds[a] is where atom a of the code points begins; rows[s][a]: the next state or DEAD."""

    bounds: list[int]
    rows: list[list[int]]
    accepts: list[bool]

    @property
    def is_empty(self) -> bool:
        """Whether no text matches. Automata are trimmed: a state from which nothing is accepted is no state."""
        return not any(self.accepts)

    def matches(self, text: str) -> bool:
        state = 0
        for char in text:
            state = self.rows[state][bisect_right(self.bounds, ord(char)) - 1]
            if state == DEAD:
                return False
        return self.accepts[state]

    def edges(self, state: int) -> dict[int, Chars]:
        """Next state -> the characters that lead there, in order of the first."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for atom, target in enumerate(self.rows[state]):
            if target != DEAD:
                end = self.bounds[atom + 1] - 1 if atom + 1 < len(self.bounds) else LAST
                spans.setdefault(target, []).append((self.bounds[atom], end))
        edges = {target: intersection(union(ranges), ANY) for target, ranges in spans.items()}
        return {target: chars for target, chars in edges.items() if chars}


def automaton(pattern: Pattern) -> Dfa:
    nfa = _Nfa()
    start = nfa.state()
    final = nfa.build(pattern, start)
    bounds = _bounds(chars for edges in nfa.edges for chars, _ in edges)
    atoms = [
        [(range(bisect_right(bounds, low) - 1, bisect_right(bounds, high)), target)
         for chars, target in edges for low, high in chars]
        for edges in nfa.edges
    ]  # fmt: skip

    def step(states: frozenset[int]) -> list[frozenset[int] | None]:
        row: list[set[int] | None] = [None] * len(bounds)
        for state in states:
            for places, target in atoms[state]:
                for atom in places:
                    cell = row[atom]
                    if cell is None:
                        row[atom] = cell = set()
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

    return explored(bounds, nfa.closure(frozenset([start])), step, lambda states: final in states)


def intersected(one: Dfa, other: Dfa) -> Dfa:
    return _product(one, other, lambda a, b: a and b)


def subtracted(one: Dfa, other: Dfa) -> Dfa:
    """What `one` matches and `other` does not."""
    return _product(one, other, lambda a, b: a and not b)


def shortest(dfa: Dfa) -> int:
    """Characters of the shortest text that matches, of which there is one."""
    seen, front, length = {0}, [0], 0
    while not any(dfa.accepts[state] for state in front):
        front = [target for state in front for target in dfa.edges(state) if target not in seen]
        seen.update(front)
        length += 1
        assert front, "nothing matches"
    return length


def values(dfa: Dfa, limit: int) -> list[str] | None:
    """All texts that match, if there are at most `limit` of them."""
    found: list[str] = []
    stack: list[tuple[int, str, frozenset[int]]] = [(0, "", frozenset([0]))]
    steps = 0
    while stack:
        state, text, path = stack.pop()
        if dfa.accepts[state]:
            found.append(text)
        for target, chars in dfa.edges(state).items():
            count = sum(high - low + 1 for low, high in chars)
            steps += count
            if target in path or steps > 50 * limit:
                return None
            for low, high in chars:
                stack += [(target, text + chr(point), path | {target}) for point in range(low, high + 1)]
        if len(found) > limit:
            return None
    return sorted(found)


def components(edges: list[list[int]]) -> Iterator[list[int]]:
    """Groups of nodes that lead to each other, those behind before those that lead to them (Tarjan)."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    for root in range(len(edges)):
        if root in order:
            continue
        path = [(root, iter(edges[root]))]
        order[root] = lowest[root] = len(order)
        stack.append(root)
        waiting.add(root)
        while path:
            node, targets = path[-1]
            target = next(targets, None)
            if target is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == order[node]:
                    group = stack[stack.index(node) :]
                    del stack[len(stack) - len(group) :]
                    waiting.difference_update(group)
                    yield group
            elif target not in order:
                order[target] = lowest[target] = len(order)
                stack.append(target)
                waiting.add(target)
                path.append((target, iter(edges[target])))
            elif target in waiting:
                lowest[node] = min(lowest[node], order[target])


class _Nfa:
    def __init__(self) -> None:
        self.edges: list[list[tuple[Chars, int]]] = []
        self.jumps: list[list[int]] = []

    def state(self) -> int:
        if len(self.edges) > 20 * MAX_STATES:
            raise too_many_states()
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1

    def build(self, pattern: Pattern, start: int) -> int:
        """Adds the pattern behind `start`; returns where it ends."""
        match pattern:
            case One(chars):
                end = self.state()
                self.edges[start].append((chars, end))
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


def _bounds(sets: Iterable[Chars]) -> list[int]:
    starts = {0}
    for chars in sets:
        for low, high in chars:
            starts |= {low, high + 1}
    return sorted(start for start in starts if start <= LAST)


def _product(one: Dfa, other: Dfa, accepts: Callable[[bool, bool], bool]) -> Dfa:
    """Of two automata; where `one` is dead so is the product, where `other` is dead it goes on beside it."""
    bounds = sorted({*one.bounds, *other.bounds})
    columns = [(bisect_right(one.bounds, start) - 1, bisect_right(other.bounds, start) - 1) for start in bounds]

    def step(pair: tuple[int, int]) -> list[tuple[int, int] | None]:
        left = one.rows[pair[0]]
        right = other.rows[pair[1]] if pair[1] != DEAD else None
        return [None if left[i] == DEAD else (left[i], DEAD if right is None else right[j]) for i, j in columns]

    def accepted(pair: tuple[int, int]) -> bool:
        return accepts(one.accepts[pair[0]], pair[1] != DEAD and other.accepts[pair[1]])

    return explored(bounds, (0, 0), step, accepted)


def explored(bounds: list[int], start: S, step: Callable[[S], list[S | None]], accepts: Callable[[S], bool]) -> Dfa:
    numbers = {start: 0}
    rows: list[list[int]] = []
    accepting: list[bool] = []
    queue = deque([start])
    while queue:
        state = queue.popleft()
        row = []
        for target in step(state):
            if target is None:
                row.append(DEAD)
                continue
            if target not in numbers:
                if len(numbers) > 4 * MAX_STATES:
                    raise too_many_states()
                numbers[target] = len(numbers)
                queue.append(target)
            row.append(numbers[target])
        rows.append(row)
        accepting.append(accepts(state))
    return _minimal(bounds, rows, accepting)


def _minimal(bounds: list[int], rows: list[list[int]], accepts: list[bool]) -> Dfa:
    """Without states that accept nothing, and with equal states as one."""
    live = _live(rows, accepts)
    rows = [[target if target != DEAD and live[target] else DEAD for target in row] for row in rows]
    classes = _classes(rows, [int(accept) if alive else DEAD for accept, alive in zip(accepts, live, strict=True)])
    if not live[0]:
        return Dfa([0], [[DEAD]], [False])
    order = {classes[0]: 0}
    chosen = [0]
    for state in chosen:  # grows while it is walked: breadth first from the start
        for target in rows[state]:
            if target != DEAD and classes[target] not in order:
                order[classes[target]] = len(order)
                chosen.append(target)
    if len(chosen) > MAX_STATES:
        raise too_many_states()
    out = [[order[classes[target]] if target != DEAD else DEAD for target in rows[state]] for state in chosen]
    return _merged(bounds, out, [accepts[state] for state in chosen])


def _classes(rows: list[list[int]], classes: list[int]) -> list[int]:
    """Splits classes of states until all in one lead to the same classes (Hopcroft). DEAD ones stay apart."""
    blocks: dict[int, set[int]] = {}
    for state, number in enumerate(classes):
        blocks.setdefault(number, set()).add(state)
    blocks.pop(DEAD, None)
    numbers = itertools.count(max(blocks, default=0) + 1)
    classes = list(classes)
    before: list[dict[int, list[int]]] = [{} for _ in range(len(rows[0]))]  # atom -> state -> states that lead to it
    for state, row in enumerate(rows):
        for atom, target in enumerate(row):
            before[atom].setdefault(target, []).append(state)
    work = [(number, atom) for number in blocks for atom in range(len(before))]
    waiting = set(work)
    while work:
        splitter = work.pop()
        waiting.discard(splitter)
        number, atom = splitter
        leading: dict[int, set[int]] = {}
        sources = before[atom]
        for target in blocks[number]:
            for state in sources.get(target, ()):
                if classes[state] != DEAD:
                    leading.setdefault(classes[state], set()).add(state)
        for old, inside in leading.items():
            if len(inside) == len(blocks[old]):
                continue
            outside = blocks[old] - inside
            new = next(numbers)
            smaller, larger = (inside, outside) if len(inside) <= len(outside) else (outside, inside)
            blocks[old], blocks[new] = larger, smaller
            for state in smaller:
                classes[state] = new
            for other in range(len(before)):
                if (new, other) not in waiting:  # the larger part waits already if the whole did
                    waiting.add((new, other))
                    work.append((new, other))
    return classes


def _merged(bounds: list[int], rows: list[list[int]], accepts: list[bool]) -> Dfa:
    """With neighbouring atoms that no state tells apart as one."""
    columns = list(zip(*rows, strict=True))
    kept = [0] + [atom for atom in range(1, len(bounds)) if columns[atom] != columns[atom - 1]]
    return Dfa([bounds[atom] for atom in kept], [[row[atom] for atom in kept] for row in rows], accepts)


def _live(rows: list[list[int]], accepts: list[bool]) -> list[bool]:
    before: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for target in set(row):
            if target != DEAD:
                before[target].append(state)
    live = list(accepts)
    stack = [state for state, accept in enumerate(accepts) if accept]
    while stack:
        for state in before[stack.pop()]:
            if not live[state]:
                live[state] = True
                stack.append(state)
    return live


def too_many_states() -> Unenforceable:
    return Unenforceable("has a pattern that is too complex to be combined with what else is asked of the same text")
