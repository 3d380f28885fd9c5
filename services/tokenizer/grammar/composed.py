"""Grammars that are made of parts (`sapwood.grammar`), as rules.

Parts without JSON and rules in them become patterns: those beside each other one together, and small ones that can be
read in many ways are made unambiguous.
"""

import json
from collections.abc import Iterable
from typing import Any

from sapwood.grammar.check import check
from sapwood.grammar.errors import GrammarError
from sapwood.grammar.form import Form, read
from sapwood.grammar.parts import (
    AnyText,
    Capture,
    Choice,
    Json,
    Part,
    Ref,
    Regex,
    Repeat,
    Sequence,
    Text,
    children,
)
from services.tokenizer.grammar import charset, pattern
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.dfa import subtracted
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_RULES
from services.tokenizer.grammar.pattern import NOTHING, One, Pattern, has_look
from services.tokenizer.grammar.regex import parse_whole
from services.tokenizer.grammar.rules import (
    EMPTY,
    MAX_RUN,
    Rules,
    alternatives,
    automaton_rule,
    counted,
    is_simple,
    literal,
    text_expression,
)
from services.tokenizer.grammar.schema.emit import emit

MAX_PATTERN = 2000
"""Characters of a pattern made of several parts, repeats counted out; those of more stay several."""

MAX_AUTOMATON = 64
"""The same of a pattern that takes an automaton. Its states would be rules, each of which takes time to compile, where
a repeat of rules has few."""


def composed(value: Any, rules: Rules, max_characters: int) -> str:
    """The name of a rule for what a grammar in its JSON form matches. Raises Unenforceable."""
    try:
        form = read(value)
        if len(form.rules) > MAX_RULES:
            raise GrammarError(f"has more than {MAX_RULES} rules", "/rules")
        patterns = _Patterns()
        check(form, patterns.lengths)
    except GrammarError as error:
        raise Unenforceable(error.message, pointer=error.pointer) from None
    return _Emitter(form, rules, patterns, max_characters).root()


class _Patterns:
    """Expressions, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, Pattern] = {}

    def of(self, source: str) -> Pattern:
        return self._known[source]

    def lengths(self, source: str) -> tuple[int, int | None]:
        """Raises GrammarError for what is no expression."""
        if source not in self._known:
            try:
                found = parse_whole(source)
            except Unenforceable as error:
                raise GrammarError(error.message) from None
            if has_look(found):
                raise GrammarError(
                    "has a lookahead, lookbehind, word border or anchor in the middle, which a part cannot have"
                )
            if found == NOTHING:
                raise GrammarError("matches no text")
            self._known[source] = found
        return pattern.lengths(self._known[source])


class _Emitter:
    def __init__(self, form: Form, rules: Rules, patterns: _Patterns, max_characters: int) -> None:
        self._form = form
        self._rules = rules
        self._patterns = patterns
        self._max_characters = max_characters
        self._names = {name: rules.reserve() for name in form.rules}
        self._schemas: dict[str, str] = {}

    def root(self) -> str:
        [(_, pointer, part), *bodies] = self._form.bodies()
        for name, place, body in bodies:
            assert name is not None
            self._rules.define(self._names[name], self._expression(body, place))
        return self._rules.add(self._expression(part, pointer))

    def _expression(self, part: Part, pointer: str) -> str:
        """An expression that is one name, class or literal, or in parentheses."""
        match part:
            case Text(text=text):
                return literal(text)
            case Regex(pattern=source):
                return self._of_pattern(self._patterns.of(source), f"{pointer}/pattern")
            case AnyText(excludes=excludes, max_chars=max_chars) if (regular := _free_text(part)) is not None:
                return self._of_pattern(regular, pointer)
            case Json(schema=schema):
                return self._json(schema, f"{pointer}/schema")
            case AnyText(excludes=excludes, max_chars=max_chars):
                return self._any_text(excludes, max_chars, pointer)
            case Ref(name=name):
                return self._names[name]
        regular = self._pattern(part)
        if regular is not None and _size(regular) <= (MAX_PATTERN if is_simple(regular) else MAX_AUTOMATON):
            try:
                return self._of_pattern(regular, pointer)
            except Unenforceable:  # too many states for one automaton: each part has its own
                pass
        match part:
            case Sequence():
                return self._sequence(part, pointer)
            case Repeat():
                return self._repeat(part, pointer)
            case Capture() | Choice():
                return alternatives([self._expression(inner, pointer + step) for step, inner in children(part)])
        raise AssertionError(f"no such part: {part!r}")

    def _of_pattern(self, regular: Pattern, pointer: str, end: str = EMPTY) -> str:
        try:
            return text_expression(regular, self._rules, is_json=False, end=end)
        except Unenforceable as error:
            raise Unenforceable(error.message, pointer=pointer) from None

    def _json(self, schema: Any, pointer: str) -> str:
        key = json.dumps(schema)
        try:
            if key not in self._schemas:
                self._schemas[key] = emit(schema, self._rules, self._max_characters)
            return self._schemas[key]
        except Unenforceable as error:
            raise Unenforceable(error.message, pointer=pointer + (error.pointer or ""), keyword=error.keyword) from None

    def _any_text(self, excludes: Iterable[str], max_chars: int | None, pointer: str) -> str:
        """Of stops that are longer than a character; other texts are patterns. Few characters are counted by rules,
        many by xgrammar while it matches, as everywhere."""
        stops = pattern.alt(map(pattern.literal, excludes))
        few = max_chars if max_chars is not None and max_chars <= MAX_RUN else None
        try:
            text = automaton(pattern.Repeat(One(charset.ANY), 0, few))
            free = subtracted(text, automaton(pattern.seq([pattern.ANYTHING, stops, pattern.ANYTHING])))
            name = automaton_rule(free, self._rules, is_json=False)
        except Unenforceable as error:
            raise Unenforceable(error.message, pointer=f"{pointer}/excludes") from None
        return name if max_chars == few else self._rules.add(name, max_chars=max_chars)

    def _sequence(self, part: Part, pointer: str) -> str:
        """From the last item to the first, so that simple patterns go on in what is behind them."""
        end: list[str] = []
        beside: list[Pattern] = []
        size = 0
        for step, inner in reversed(children(part)):
            regular = self._pattern(inner)
            if regular is not None and not is_simple(regular):
                regular = None
            if regular is None or size + _size(regular) > MAX_PATTERN:
                end = self._joined(beside, end, pointer)
                beside, size = [], 0
            if regular is None:
                end = [self._expression(inner, pointer + step), *end]
            else:
                beside.insert(0, regular)
                size += _size(regular)
        end = self._joined(beside, end, pointer)
        return end[0] if len(end) == 1 else "(" + " ".join(end) + ")"

    def _joined(self, beside: list[Pattern], end: list[str], pointer: str) -> list[str]:
        if not beside:
            return end
        behind = EMPTY if not end else end[0] if len(end) == 1 else self._rules.add(" ".join(end))
        return [self._of_pattern(pattern.seq(beside), pointer, behind)]

    def _repeat(self, part: Repeat, pointer: str) -> str:
        [item, *between] = [self._rules.add(self._expression(inner, pointer + step)) for step, inner in children(part)]
        if not between:
            return counted(item, part.min, part.max)
        following = self._rules.add(f"{between[0]} {item}")
        rest = counted(following, max(part.min - 1, 0), None if part.max is None else part.max - 1)
        return f"({item} {rest})" if part.min else f'(({item} {rest}) | "")'

    def _pattern(self, part: Part) -> Pattern | None:
        """The part as a pattern; None: it is none."""
        match part:
            case Text(text=text):
                return pattern.literal(text) if len(text) <= MAX_PATTERN else None
            case Regex(pattern=source):
                return self._patterns.of(source)
            case AnyText():
                return _free_text(part)
            case Json() | Ref():
                return None
        inner = [self._pattern(one) for _, one in children(part)]
        known = [one for one in inner if one is not None]
        if len(known) < len(inner):
            return None
        match part:
            case Sequence() | Capture():
                return pattern.seq(known)
            case Choice():
                return pattern.alt(known)
            case Repeat(min=least, max=most):
                return _repeated(known, least, most)
        raise AssertionError(f"no such part: {part!r}")


def _repeated(parts: list[Pattern], least: int, most: int | None) -> Pattern:
    """[item] or [item, separator], as often as that."""
    [item, *between] = parts
    if not between:
        return pattern.repeat(item, least, most)
    following = pattern.seq([*between, item])
    rest = pattern.repeat(following, max(least - 1, 0), None if most is None else most - 1)
    some = pattern.seq([item, rest])
    return some if least else pattern.optional(some)


def _free_text(part: AnyText) -> Pattern | None:
    """None: it has stops that are longer than a character."""
    if any(len(stop) > 1 for stop in part.excludes):
        return None
    chars = charset.difference(charset.ANY, charset.of("".join(part.excludes)))
    return pattern.repeat(One(chars), 0, part.max_chars)


def _size(regular: Pattern) -> int:
    match regular:
        case One() | pattern.Look():
            return 1
        case pattern.Repeat(part, least, most):
            return _size(part) * max(least if most is None else most, 1)
    return sum(map(_size, regular.parts))
