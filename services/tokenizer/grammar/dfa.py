"""Deterministic automata over characters: matching, combining, looking at what they match.

All operations raise Unenforceable when a result has more than MAX_STATES states.
"""

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from services.tokenizer.grammar.charset import ANY, LAST, Chars, contains, intersection, union
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_STATES

DEAD = -1
S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Code points in classes that an automaton does not tell apart. bounds[i] is where span i of the code points
    begins, kinds[i] the class of all in it."""

    bounds: list[int]
    kinds: list[int]
    _known: dict[tuple[int, ...], Chars] = field(default_factory=dict, compare=False, repr=False)

    def chars(self, kinds: tuple[int, ...]) -> Chars:
        """The characters in some classes, which many states have in common."""
        if kinds not in self._known:
            inside = frozenset(kinds)
            ends = [*self.bounds[1:], LAST + 1]
            spans = [
                (low, end - 1) for low, end, kind in zip(self.bounds, ends, self.kinds, strict=True) if kind in inside
            ]
            self._known[kinds] = intersection(union(spans), ANY)
        return self._known[kinds]

    def kind_of(self, point: int) -> int:
        return self.kinds[bisect_right(self.bounds, point) - 1]


def alphabet(bounds: Iterable[int], look: Callable[[int], Hashable]) -> tuple[Alphabet, list[int]]:
    """Spans that look the same are one class. Returns the alphabet, and a span of each class by its number."""
    starts = sorted(bounds)
    numbers: dict[Hashable, int] = {}
    samples: list[int] = []
    kinds: list[int] = []
    for span in range(len(starts)):
        kind = numbers.setdefault(look(span), len(numbers))
        if kind == len(samples):
            samples.append(span)
        kinds.append(kind)
    return Alphabet(starts, kinds), samples


@dataclass(frozen=True, slots=True)
class Dfa:
    """State 0 is the start. rows[s][k]: the state that a character of class k leads to, or DEAD."""

    alphabet: Alphabet
    rows: list[list[int]]
    accepts: list[bool]

    @property
    def is_empty(self) -> bool:
        """Whether no text matches. Automata are trimmed: a state from which nothing is accepted is no state."""
        return not any(self.accepts)

    def matches(self, text: str) -> bool:
        state = 0
        for char in text:
            state = self.rows[state][self.alphabet.kind_of(ord(char))]
            if state == DEAD:
                return False
        return self.accepts[state]

    def edges(self, state: int) -> dict[int, Chars]:
        """Next state -> the characters that lead there, in order of the first."""
        kinds: dict[int, list[int]] = {}
        for kind, target in enumerate(self.rows[state]):
            if target != DEAD:
                kinds.setdefault(target, []).append(kind)
        edges = {target: self.alphabet.chars(tuple(inside)) for target, inside in kinds.items()}
        return {target: chars for target, chars in edges.items() if chars}


def intersected(one: Dfa, other: Dfa) -> Dfa:
    return _product(one, other, lambda a, b: a and b)


def subtracted(one: Dfa, other: Dfa) -> Dfa:
    """What `one` matches and `other` does not."""
    return _product(one, other, lambda a, b: a and not b)


def shortest(dfa: Dfa) -> int:
    """Characters of the shortest text that matches, of which there is one."""
    return len(first_text(dfa))


def first_text(dfa: Dfa) -> str:
    """A shortest text that matches, of which there is one; of letters, where that is open."""
    queue, seen = deque([(0, "")]), {0}
    while queue:
        state, text = queue.popleft()
        if dfa.accepts[state]:
            return text
        for target, chars in dfa.edges(state).items():
            if target not in seen:
                seen.add(target)
                queue.append((target, text + ("a" if contains(chars, "a") else chr(chars[-1][0]))))
    raise AssertionError("nothing matches")


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


def _product(one: Dfa, other: Dfa, accepts: Callable[[bool, bool], bool]) -> Dfa:
    """Of two automata; where `one` is dead so is the product, where `other` is dead it goes on beside it."""
    bounds = sorted({*one.alphabet.bounds, *other.alphabet.bounds})
    pairs = [(one.alphabet.kind_of(start), other.alphabet.kind_of(start)) for start in bounds]
    kinds, samples = alphabet(bounds, lambda span: pairs[span])
    columns = [pairs[span] for span in samples]

    def step(pair: tuple[int, int]) -> list[tuple[int, int] | None]:
        left = one.rows[pair[0]]
        right = other.rows[pair[1]] if pair[1] != DEAD else None
        return [None if left[i] == DEAD else (left[i], DEAD if right is None else right[j]) for i, j in columns]

    def accepted(pair: tuple[int, int]) -> bool:
        return accepts(one.accepts[pair[0]], pair[1] != DEAD and other.accepts[pair[1]])

    return explored(kinds, (0, 0), step, accepted)


def explored(kinds: Alphabet, start: S, step: Callable[[S], list[S | None]], accepts: Callable[[S], bool]) -> Dfa:
    """step: the states that the classes of characters lead to from one, in their order."""
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
    return _minimal(kinds, rows, accepting)


def _minimal(kinds: Alphabet, rows: list[list[int]], accepts: list[bool]) -> Dfa:
    """Without states that accept nothing, and with equal states as one."""
    live = _live(rows, accepts)
    rows = [[target if target != DEAD and live[target] else DEAD for target in row] for row in rows]
    classes = _classes(rows, [int(accept) if alive else DEAD for accept, alive in zip(accepts, live, strict=True)])
    if not live[0]:
        return Dfa(Alphabet([0], [0]), [[DEAD]], [False])
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
    return _merged(kinds, out, [accepts[state] for state in chosen])


def _classes(rows: list[list[int]], classes: list[int]) -> list[int]:
    """Splits classes of states until all in one lead to the same classes (Hopcroft). DEAD ones stay apart."""
    blocks: dict[int, set[int]] = {}
    for state, number in enumerate(classes):
        blocks.setdefault(number, set()).add(state)
    blocks.pop(DEAD, None)
    numbers = itertools.count(max(blocks, default=0) + 1)
    classes = list(classes)
    before: list[dict[int, list[int]]] = [{} for _ in range(len(rows[0]))]  # kind -> state -> states that lead to it
    for state, row in enumerate(rows):
        for kind, target in enumerate(row):
            before[kind].setdefault(target, []).append(state)
    work = [(number, kind) for number in blocks for kind in range(len(before))]
    waiting = set(work)
    while work:
        splitter = work.pop()
        waiting.discard(splitter)
        number, kind = splitter
        leading: dict[int, set[int]] = {}
        sources = before[kind]
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


def _merged(kinds: Alphabet, rows: list[list[int]], accepts: list[bool]) -> Dfa:
    """With classes of characters that no state tells apart as one, and so with their spans."""
    columns = list(zip(*rows, strict=True))
    looks = [columns[kind] for kind in kinds.kinds]
    kept = [0] + [span for span in range(1, len(looks)) if looks[span] != looks[span - 1]]
    merged, samples = alphabet([kinds.bounds[span] for span in kept], lambda place: looks[kept[place]])
    columns = [looks[kept[place]] for place in samples]
    return Dfa(merged, [[column[state] for column in columns] for state in range(len(rows))], accepts)


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
