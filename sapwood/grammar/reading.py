"""Reading an answer by its grammar: which text each capture has, and what values those stand for.

All ways in which a part can match from some character on are found once and kept, so the time grows with a power of
the answer's length at worst, whatever the grammar; nothing recurses, so depth is no matter. Where an answer can be
read in several ways, texts that are to the left are as long as they can be, the first of a choice comes first, and of
repeats there are as few as possible.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sapwood.grammar.dialect import compiled
from sapwood.grammar.errors import AnswerError
from sapwood.grammar.form import Form
from sapwood.grammar.parts import (
    AnyText,
    Capture,
    Choice,
    Json,
    Part,
    Ref,
    Regex,
    Repeat,
    Selected,
    Sequence,
    Text,
    Typed,
    children,
)
from sapwood.grammar.plausible import is_plausible
from sapwood.grammar.python_types import read

Ends = tuple[int, ...]
"""Where matches from one character on can end; those that are wanted first come first."""


class Match(Mapping[str, Any]):
    """What was captured, by name. A capture of JSON has the value, one by `select` the option, one with captures in it
    another Match, any other its text; one that may come several times a list of these. One that did not come is not
    there.

    text: all of what matched. value: what it is as if it had been captured: of JSON the value, or else the text."""

    def __init__(self, text: str, value: Any, captured: dict[str, Any]) -> None:
        self.text = text
        self.value = value
        self._captured = captured

    def __getitem__(self, name: str) -> Any:
        return self._captured[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)

    def __repr__(self) -> str:
        return f"Match({self._captured!r})"


@dataclass(eq=False, slots=True)
class _Node:
    """A part at one place of the grammar. behind: a text that must follow, if one is known; is_last: nothing may."""

    part: Part
    inner: "list[_Node]" = field(default_factory=list)
    behind: str = ""
    is_last: bool = False


class Reader:
    """Reads answers to one grammar."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.rules = {name: _node(part) for name, part in form.rules.items()}
        self.root = _node(form.root, is_last=True)

    @cached_property
    def counts(self) -> "_Counts":
        return _Counts(self._form)

    def read(self, text: str) -> Match:
        """Raises AnswerError for a text that does not match."""
        return _Reading(self, text).match()


def _node(part: Part, behind: str = "", is_last: bool = False) -> _Node:
    node = _Node(part, behind=behind, is_last=is_last)
    inner = [one for _, one in children(part)]
    match part:
        case Sequence():
            following = [_beginning(one) for one in inner[1:]]
            node.inner = [_node(one, text) for one, text in zip(inner, following, strict=False)]
            node.inner.append(_node(inner[-1], behind, is_last))
        case Repeat(max=most) if most != 1:
            node.inner = [_node(one) for one in inner]
        case _:
            node.inner = [_node(one, behind, is_last) for one in inner]
    return node


def _beginning(part: Part) -> str:
    """A text that every match begins with."""
    match part:
        case Text(text=text):
            return text
        case Sequence() | Capture():
            return _beginning(children(part)[0][1])
    return ""


class _Counts:
    """How often a capture may come, within the capture around it or the whole: once, or more (2)."""

    def __init__(self, form: Form) -> None:
        self._rules: dict[str, dict[str, int]] = {name: {} for name in form.rules}
        while True:
            counted = {name: self.of(part) for name, part in form.rules.items()}
            if counted == self._rules:
                break
            self._rules = counted

    def of(self, part: Part) -> dict[str, int]:
        inner = [one for _, one in children(part)]
        match part:
            case Capture(name=name):
                return {name: 1}
            case Ref(name=name):
                return self._rules[name]
        out: dict[str, int] = {}
        for one in inner:
            for name, count in self.of(one).items():
                before = out.get(name, 0)
                out[name] = max(before, count) if isinstance(part, Choice) else min(before + count, 2)
        if isinstance(part, Repeat) and part.max != 1:
            return dict.fromkeys(out, 2)
        return out


_Want = tuple[_Node, int]
_Search = Generator[_Want, Ends, Any]
_Layers = list[dict[int, Ends]]
_State = tuple[int, int]
"""(character, items before it, counted up to the least number of them, and to 1)"""
_Origin = tuple[_State, int]
"""(state before an item, where the item begins)"""


class _Reading:
    def __init__(self, reader: Reader, text: str) -> None:
        self._reader = reader
        self._text = text
        self._known: dict[_Want, Ends] = {}
        self._furthest = 0
        self._values: dict[tuple[_Node, int, int], Any] = {}

    def match(self) -> Match:
        root, end = self._reader.root, len(self._text)
        if end not in self._run(self._ends(root, 0)):
            at = self._furthest
            if at == end:
                raise AnswerError(f"the answer ends too early for the grammar, after {end} characters", at)
            shown = self._text[at : at + 40]
            raise AnswerError(f"the answer does not match the grammar from character {at} on: {shown!r}", at)
        return self._captured(root, end)

    def _run(self, search: "Generator[_Want, Ends, Any]") -> Any:
        """Its result; what it asks for is searched first, on a stack of our own."""
        stack: list[tuple[_Want | None, _Search]] = [(None, search)]
        answer: Any = None
        while True:
            want, running = stack[-1]
            try:
                asked = running.send(answer)
            except StopIteration as done:
                stack.pop()
                answer = done.value
                if want is None:
                    return answer
                self._known[want] = answer
                continue
            answer = self._known.get(asked)
            if answer is None:
                stack.append((asked, self._ends(*asked)))

    def _ends(self, node: _Node, at: int) -> "Generator[_Want, Ends, Ends]":
        match node.part:
            case Text(text=text):
                return self._text_ends(text, at)
            case Regex(pattern=pattern):
                return self._regex_ends(pattern, node, at)
            case AnyText():
                return self._any_text_ends(node.part, node, at)
            case Json():
                return self._json_ends(node.part, node, at)
            case Ref(name=name):
                return (yield self._reader.rules[name], at)
            case Capture():
                return (yield node.inner[0], at)
            case Choice():
                found: dict[int, None] = {}
                for inner in node.inner:
                    found |= dict.fromkeys((yield inner, at))
                return tuple(found)
            case Sequence():
                layers = yield from self._layers(node, at)
                return tuple(dict.fromkeys(end for ends in layers[-1].values() for end in ends))
            case Repeat(min=least):
                origins = yield from self._origins(node, at)
                return tuple(sorted({end for end, count in origins if count >= least}, reverse=True))
        raise AssertionError(f"no such part: {node.part!r}")

    def _layers(self, node: _Node, at: int) -> "Generator[_Want, Ends, _Layers]":
        """For each item of a sequence: where it can begin, and end from there."""
        layers: _Layers = []
        starts: Ends = (at,)
        for inner in node.inner:
            layer = {}
            for start in starts:
                layer[start] = yield inner, start
            layers.append(layer)
            starts = tuple(dict.fromkeys(end for ends in layer.values() for end in ends))
        return layers

    def _origins(self, node: _Node, at: int) -> "Generator[_Want, Ends, dict[_State, _Origin | None]]":
        """The states that a repeat can be in between items, each with how it comes there by the fewest items."""
        part = node.part
        assert isinstance(part, Repeat)
        origins: dict[_State, _Origin | None] = {(at, 0): None}
        front: list[_State] = [(at, 0)]
        items = 0
        while front and (part.max is None or items < part.max):
            found: list[_State] = []
            for state in front:
                starts: Ends = (state[0],)
                if items and len(node.inner) > 1:
                    starts = yield node.inner[1], state[0]
                for start in starts:
                    for end in (yield node.inner[0], start):
                        reached = (end, min(state[1] + 1, max(part.min, 1)))
                        if reached not in origins:
                            origins[reached] = (state, start)
                            found.append(reached)
            front = found
            items += 1
        return origins

    def _text_ends(self, text: str, at: int) -> Ends:
        if self._text.startswith(text, at):
            self._reach(at + len(text))
            return (at + len(text),)
        same = 0
        while self._text[at + same : at + same + 1] == text[same]:
            same += 1
            if at + same >= len(self._text):
                break
        self._reach(at + same)
        return ()

    def _regex_ends(self, pattern: str, node: _Node, at: int) -> Ends:
        expression = compiled(pattern)
        ends = tuple(end for end in self._candidates(node, at) if expression.fullmatch(self._text, at, end))
        longest = expression.match(self._text, at)
        self._reach(max((at, *ends[:1], *([longest.end()] if longest else []))))
        return ends

    def _any_text_ends(self, part: AnyText, node: _Node, at: int) -> Ends:
        last = len(self._text)
        if part.max_chars is not None:
            last = min(last, at + part.max_chars)
        for stop in part.excludes:
            found = self._text.find(stop, at, last)
            if found >= 0:
                last = found + len(stop) - 1
        self._reach(last)
        return tuple(end for end in self._candidates(node, at) if end <= last)

    def _json_ends(self, part: Json, node: _Node, at: int) -> Ends:
        try:
            value, end = _decoder.raw_decode(self._text, at)
        except ValueError:
            self._reach(at)
            return ()
        self._reach(end)
        ends = [end]
        if isinstance(value, int | float) and not isinstance(value, bool):  # digits may belong to what follows
            ends += [one for one in range(end - 1, at, -1) if _number.fullmatch(self._text, at, one)]
        return tuple(one for one in ends if self._has_value(part, node, at, one))

    def _has_value(self, part: Json, node: _Node, at: int, end: int) -> bool:
        text = self._text[at:end]
        if isinstance(part, Typed):
            try:
                self._values[node, at, end] = read(text, part.python_type)
            except AnswerError:
                return False
            return True
        value = _decoder.decode(text)
        self._values[node, at, end] = value
        return is_plausible(value, part.schema)

    def _candidates(self, node: _Node, at: int) -> Iterator[int]:
        """Where a match may end, as far as what stands behind it tells; the longest first."""
        end = len(self._text)
        if node.is_last:
            yield end
        elif node.behind:
            found = self._text.rfind(node.behind, at)
            while found >= at:
                yield found
                found = self._text.rfind(node.behind, at, found + len(node.behind) - 1)
        else:
            yield from range(end, at - 1, -1)

    def _reach(self, at: int) -> None:
        self._furthest = max(self._furthest, at)

    def _captured(self, root: _Node, end: int) -> Match:
        """Walks one way of reading; a capture is closed when all in it has been walked."""
        scopes: list[dict[str, Any]] = [self._scope(root.part)]
        todo: list[tuple[_Node, int, int] | tuple[str, _Node, int, int]] = [(root, 0, end)]
        while todo:
            step = todo.pop()
            if len(step) == 4:
                name, node, start, stop = step
                inner = scopes.pop()
                value = self._value(node, start, stop)
                if self._reader.counts.of(node.part):
                    value = Match(self._text[start:stop], value, self._in_order(inner, node))
                if isinstance(scopes[-1].get(name), list):
                    scopes[-1][name].append(value)
                else:
                    scopes[-1][name] = value
                continue
            node, start, stop = step
            if isinstance(node.part, Capture):
                scopes.append(self._scope(node.inner[0].part))
                todo.append((node.part.name, node.inner[0], start, stop))
            todo += reversed(self._steps(node, start, stop))
        return Match(self._text, self._value(root, 0, end), self._in_order(scopes[0], root))

    def _in_order(self, captured: dict[str, Any], node: _Node) -> dict[str, Any]:
        """As the grammar has them."""
        return {name: captured[name] for name in self._reader.counts.of(node.part) if name in captured}

    def _scope(self, part: Part) -> dict[str, Any]:
        return {name: [] for name, count in self._reader.counts.of(part).items() if count > 1}

    def _value(self, node: _Node, start: int, end: int) -> Any:
        while isinstance(node.part, Ref):
            node = self._reader.rules[node.part.name]
        text = self._text[start:end]
        match node.part:
            case Json():
                return self._values[node, start, end]
            case Selected(values=values):
                return values[text]
        return text

    def _steps(self, node: _Node, start: int, end: int) -> list[tuple[_Node, int, int]]:
        """How the parts in a part share what it matched."""
        match node.part:
            case Ref(name=name):
                return [(self._reader.rules[name], start, end)]
            case Capture():
                return [(node.inner[0], start, end)]
            case Choice():
                return [next((one, start, end) for one in node.inner if end in self._known[one, start])]
            case Sequence():
                return self._sequence_steps(node, start, end)
            case Repeat():
                return self._repeat_steps(node, start, end)
        return []

    def _sequence_steps(self, node: _Node, start: int, end: int) -> list[tuple[_Node, int, int]]:
        layers: _Layers = self._run(self._layers(node, start))
        wanted = {end}
        leading: list[set[int]] = [wanted]  # from where on the rest can reach the end, item by item from the last
        for layer in reversed(layers[1:]):
            wanted = {begin for begin, ends in layer.items() if not wanted.isdisjoint(ends)}
            leading.append(wanted)
        steps = []
        for inner, layer, into in zip(node.inner, layers, reversed(leading), strict=True):
            stop = next(one for one in layer[start] if one in into)
            steps.append((inner, start, stop))
            start = stop
        return steps

    def _repeat_steps(self, node: _Node, start: int, end: int) -> list[tuple[_Node, int, int]]:
        assert isinstance(node.part, Repeat)
        origins: dict[_State, _Origin | None] = self._run(self._origins(node, start))
        steps: list[tuple[_Node, int, int]] = []
        state = (end, node.part.min) if (end, node.part.min) in origins else (end, 1)
        while (origin := origins[state]) is not None:
            before, begin = origin
            steps.append((node.inner[0], begin, state[0]))
            if len(node.inner) > 1 and origins[before] is not None:
                steps.append((node.inner[1], before[0], begin))
            state = before
        return steps[::-1]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)
_number = compiled(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
