"""JSON strings as rules: lengths, patterns, formats, and texts that are left out."""

import contextlib
from functools import reduce

from services.tokenizer.grammar import charset
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.dfa import DEAD, Dfa, intersected, shortest, subtracted
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_REPEAT
from services.tokenizer.grammar.pattern import (
    ANYTHING,
    NOTHING,
    One,
    Pattern,
    alt,
    has_clear_ends,
    lengthened,
    lengths,
    literal,
    repeat,
    shrunk,
)
from services.tokenizer.grammar.rules import (
    JSON_PLAIN,
    MAX_COUNTING_RULES,
    Rules,
    automaton_rule,
    is_simple,
    one_of,
    pattern_expression,
    text_expression,
)
from services.tokenizer.grammar.schema.branch import Text
from services.tokenizer.grammar.schema.formats import FORMATS

QUOTE = '"\\""'
MAX_EXACT_LENGTH = 16
"""Longest bound that is counted by states beside a pattern; above, the parts of the pattern get fixed shares of it."""

MAX_COUNTED = 512
"""States times characters that are counted by states all the same where fixed shares could be read in many ways."""

MAX_EARLY = 256
"""As much of a longer text, up to the place of what must be in it."""

MAX_PRODUCT = 1000
"""States times characters of a text with patterns and a longest length; where there are more, texts are shorter."""

_HEX = "[0-9a-fA-F]"
_ESCAPE = rf'"\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] {_HEX} | [dD] [0-7]) {_HEX} {_HEX})'
"""Any escape but half of a surrogate pair."""
_PLAIN = one_of(JSON_PLAIN, is_json=True)
_COUNTED = rf'({_PLAIN} | "\\" ["\\bfnrt])'
"""A character of a text with a longest length: those that have short escapes are written so, all others as they are."""


class Texts:
    """max_characters: what an answer can have at most; longer bounds mean nothing."""

    def __init__(self, rules: Rules, max_characters: int) -> None:
        self._rules = rules
        self._max_characters = max_characters
        self._rest_name = ""
        self._written: dict[tuple[Text, tuple[str, ...]], str | None] = {}

    def expression(self, asked: Text, excluded: list[str]) -> str | None:
        """For a whole JSON string; None: there is no such text. The same again, as formats often are, costs nothing."""
        key = asked, tuple(excluded)
        if key not in self._written:
            self._written[key] = self._expression(asked, excluded)
        return self._written[key]

    def _expression(self, asked: Text, excluded: list[str]) -> str | None:
        most = None if asked.most is not None and asked.most >= self._max_characters else asked.most
        if asked.least > min(self._max_characters, MAX_REPEAT):
            raise Unenforceable(f"asks for a text of {asked.least} characters, longer than an answer can be")
        if most is not None and most < asked.least:
            return None
        try:
            return self._exact(asked, excluded, most)
        except Unenforceable as error:
            content = self._narrower(asked, excluded, most)
            if content is None:
                raise Unenforceable(error.message, keyword="pattern" if asked.patterns else None) from None
            return content

    def _exact(self, asked: Text, excluded: list[str], most: int | None) -> str | None:
        patterns = [FORMATS.searched(source) for source in asked.patterns]
        for source, pattern in zip(asked.patterns, patterns, strict=True):
            if pattern != FORMATS.narrower(source)[0]:  # a match may begin anywhere: in how many ways at once?
                FORMATS.search(source)
        if not excluded and not asked.excluded_patterns:
            known = [*patterns, *(FORMATS.pattern(name) for name in asked.formats)]
            if not known:
                return self._plain(asked.least, most)
            if len(known) == 1 and (pattern := known[0]) is not None and pattern != NOTHING:
                if _is_within(pattern, asked.least, most):
                    return f"{QUOTE} {text_expression(pattern, self._rules, is_json=True, end=QUOTE)}"
                fitting: Pattern = NOTHING
                if most is not None and most > MAX_EXACT_LENGTH and not _is_counted(pattern, most):
                    fitting = shrunk(pattern, most)
                if fitting != NOTHING and _is_within(fitting, asked.least, most):
                    return f"{QUOTE} {pattern_expression(fitting, self._rules, is_json=True, end=QUOTE)}"
        content = self._within(self._automaton(asked, excluded, asked.formats), most)
        if content is None and asked.formats:  # a format is an annotation: it narrows only what it leaves something of
            content = self._within(self._automaton(asked, excluded, ()), most)
        return content

    def _narrower(self, asked: Text, excluded: list[str], most: int | None) -> str | None:
        """For as much as can be enforced of what the text's patterns match, formats aside; None: nothing."""
        narrower = [FORMATS.narrower(source) for source in asked.patterns]
        for step in range(max(map(len, narrower), default=0)):
            patterns = [ways[min(step, len(ways) - 1)] for ways in narrower]
            with contextlib.suppress(Unenforceable):
                content = self._of_patterns(patterns, asked, excluded, most)
                if content is not None:
                    return content
        return None

    def _of_patterns(self, patterns: list[Pattern], asked: Text, excluded: list[str], most: int | None) -> str | None:
        if len(patterns) == 1 and is_simple(patterns[0]) and not excluded and not asked.excluded_patterns:
            fitting = lengthened(patterns[0], asked.least)
            if most is not None:
                fitting = NOTHING if _is_counted(fitting, most) else shrunk(fitting, most)
            if fitting != NOTHING and _is_within(fitting, asked.least, most):
                return f"{QUOTE} {pattern_expression(fitting, self._rules, is_json=True, end=QUOTE)}"
        dfa = reduce(intersected, map(automaton, patterns))
        return self._within(self._restricted(dfa, asked, excluded), most)

    def is_open(self, asked: Text, excluded: list[str]) -> bool:
        """Whether there is such a text."""
        if asked.most is not None and asked.most < asked.least:
            return False
        if not asked.patterns and not asked.excluded_patterns and not excluded:
            return True
        try:
            dfa = self._automaton(asked, excluded, ())
        except Unenforceable:  # it will be told of, if it cannot be made narrower
            return True
        return not dfa.is_empty and (asked.most is None or shortest(dfa) <= asked.most)

    def key(self, dfa: Dfa) -> str:
        """For a whole JSON string that an automaton describes, which matches something."""
        return f"{QUOTE} {automaton_rule(dfa, self._rules, is_json=True, end=QUOTE)}"

    def automaton(self, asked: Text) -> Dfa:
        """What the text may be. As everywhere, a format narrows only what it leaves something of."""
        if asked.formats:
            dfa = _bounded(self._automaton(asked, [], asked.formats), asked.most)
            if not dfa.is_empty:
                return dfa
        return _bounded(self._automaton(asked, [], ()), asked.most)

    def _plain(self, least: int, most: int | None) -> str:
        if most is None:
            content = self._rules.run(_COUNTED, least, least, self._rest())
        else:
            content = self._rules.run(_COUNTED, least, most, QUOTE)
        return self._rules.add(f"{QUOTE} {content}")

    def _rest(self) -> str:
        """Any more characters, and the end."""
        if not self._rest_name:
            name = self._rest_name = self._rules.reserve()
            # not a repeat of a choice: to xgrammar that would be a rule whose end tells nothing of what may follow
            self._rules.define(name, f"{_PLAIN}* ({QUOTE} | {_ESCAPE} {name})")
        return self._rest_name

    def _automaton(self, asked: Text, excluded: list[str], formats: tuple[str, ...]) -> Dfa:
        parts = [FORMATS.search(source) for source in asked.patterns]
        parts += [FORMATS.automaton(name) for name in formats]
        dfa = reduce(intersected, parts) if parts else automaton(ANYTHING)
        return self._restricted(dfa, asked, excluded)

    @staticmethod
    def _restricted(dfa: Dfa, asked: Text, excluded: list[str]) -> Dfa:
        if asked.least:
            dfa = intersected(dfa, automaton(repeat(One(charset.ANY), asked.least, None)))
        for source in asked.excluded_patterns:
            dfa = subtracted(dfa, FORMATS.excluded(source))
        return subtracted(dfa, automaton(alt(map(literal, excluded)))) if excluded else dfa

    def _within(self, dfa: Dfa, most: int | None) -> str | None:
        """For a whole JSON string that the automaton describes, of so many characters at most; None: there is none."""
        if dfa.is_empty:
            return None
        if most and _may_end_anywhere(dfa) and most * len(dfa.rows) > MAX_COUNTING_RULES:
            content = self._rules.add(automaton_rule(dfa, self._rules, is_json=True), max_chars=most)
            return f"{QUOTE} {content} {QUOTE}"
        if most and most * len(dfa.rows) > MAX_COUNTED and _is_search(dfa):
            early = self._found_early(dfa, most)
            if early is not None:
                return early
        dfa = _bounded(dfa, most)
        return None if dfa.is_empty else self.key(dfa)

    def _found_early(self, dfa: Dfa, most: int) -> str | None:
        """For a long text that must have something in it: states count the characters up to there, a budget the rest.
        None: there is none in which it can be found so early."""
        early = _early(dfa, most)
        rows = [[DEAD] * len(row) if dfa.accepts[state] else row for state, row in enumerate(dfa.rows)]
        up_to_there = intersected(Dfa(dfa.alphabet, rows, dfa.accepts), automaton(repeat(One(charset.ANY), 0, early)))
        if up_to_there.is_empty:
            return None
        rest = self._rules.run(_COUNTED, 0, most - early, QUOTE)
        return f"{QUOTE} {automaton_rule(up_to_there, self._rules, is_json=True, end=rest)}"


def _bounded(dfa: Dfa, most: int | None) -> Dfa:
    if most is None:
        return dfa
    if not dfa.is_empty and most * len(dfa.rows) > MAX_PRODUCT:
        most = min(most, max(MAX_PRODUCT // len(dfa.rows), shortest(dfa) + 1))
    if most * len(dfa.rows) > 4 * MAX_PRODUCT:
        raise Unenforceable(f"asks for a pattern in a text of at most {most} characters; it is too complex")
    return intersected(dfa, automaton(repeat(One(charset.ANY), 0, most)))


def _is_counted(pattern: Pattern, most: int) -> bool:
    """Whether states are to count the characters of a text because fixed shares could be read in many ways, each of
    which makes every mask slower."""
    if has_clear_ends(pattern):
        return False
    try:
        dfa = automaton(pattern)
    except Unenforceable:
        return False
    return most * len(dfa.rows) <= MAX_COUNTED or (_is_search(dfa) and shortest(dfa) <= _early(dfa, most))


def _early(dfa: Dfa, most: int) -> int:
    """Characters of a long text within which states look for what must be in it."""
    return min(most // 2, MAX_EARLY // len(dfa.rows))


def _is_search(dfa: Dfa) -> bool:
    """Whether anything may follow once there is a match."""
    [ends, *more] = [state for state, accepts in enumerate(dfa.accepts) if accepts] or [0]
    return not more and ends != 0 and dfa.edges(ends) == {ends: charset.ANY}


def _may_end_anywhere(dfa: Dfa) -> bool:
    """Whether a match can end after any of its characters: then a budget of characters never has to be exceeded."""
    return all(dfa.accepts[target] for state in range(len(dfa.rows)) for target in dfa.edges(state))


def _is_within(pattern: Pattern, least: int, most: int | None) -> bool:
    low, high = lengths(pattern)
    return least <= low and (most is None or (high is not None and high <= most))
