"""A grammar as places: a place is in front of an element of a rule, the place after it is the next number.

Read from what xgrammar makes of the text of a grammar before it compiles it, in its version 16 form: JSON with the
rules (name, expression, and what else a rule may have) and one flat list of integers with all expressions, each of
them its kind, a count, and so many numbers.
"""

import enum
from dataclasses import dataclass, field
from typing import Any

import msgspec

UNICODE_END = 0x10FFFF


class Op(enum.IntEnum):
    """What is at a place. BYTE: that byte. CLASS: one of some characters; STAR: any number of them. CALL: a rule.
    REPEAT: a rule so many times. END: of a rule."""

    BYTE = 0
    CLASS = 1
    STAR = 2
    CALL = 3
    REPEAT = 4
    END = 5


class _Kind(enum.IntEnum):
    """Of xgrammar's expressions."""

    BYTES = 0
    CLASS = 1
    STAR = 2
    EMPTY = 3
    RULE = 4
    SEQUENCE = 5
    CHOICES = 6
    REPEAT = 8


class _Serialized(msgspec.Struct):
    rules: list[list[Any]]
    grammar_expr_data: list[int]
    grammar_expr_indptr: list[int]
    root_rule_id: int
    version: str = msgspec.field(name="__VERSION__")


_PLAIN_RULE = [-1, -1, "", False, None]
"""What follows name, expression, lookahead (what comes after the rule anyway) and its kind, if that is all there is."""
_MAX_CHARS = 1
"""Where in this a rule's bound is, if it has one."""
_VERSION = "v16"
_decoder = msgspec.json.Decoder(_Serialized)

DONE = -1
"""In place of the state that follows: the character is whole."""

Edges = tuple[tuple[int, int, int], ...]


class Characters:
    """Sets of characters as UTF-8, byte by byte. edges: of a state (first byte, last byte, state that follows or DONE);
    states from which the same bytes follow are the same."""

    def __init__(self) -> None:
        self.edges: list[Edges] = []
        self._numbers: dict[Edges, int] = {}

    def state(self, ranges: list[tuple[int, int]]) -> int:
        """Before a character of one of these ranges of code points."""
        edges: list[tuple[int, int, int]] = []
        for first, last in ranges:
            for low, high in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, UNICODE_END)):
                start, end = max(first, low), min(last, high)
                if start <= end:
                    edges += self._spans(_utf8(start), _utf8(end))
        return self._number(edges)

    def _spans(self, first: bytes, last: bytes) -> list[tuple[int, int, int]]:
        """Edges of what lies between two characters of the same length, both included."""
        if len(first) == 1:
            return [(first[0], last[0], DONE)]
        if first[0] == last[0]:
            return [(first[0], first[0], self._number(self._spans(first[1:], last[1:])))]
        lowest, highest = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
        parts = [(first[0], first[0], first[1:], highest)]
        if last[0] - first[0] > 1:
            parts.append((first[0] + 1, last[0] - 1, lowest, highest))
        parts.append((last[0], last[0], lowest, last[1:]))
        return [(low, high, self._number(self._spans(start, end))) for low, high, start, end in parts]

    def _number(self, edges: list[tuple[int, int, int]]) -> int:
        key = _joined(edges)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.edges)
            self.edges.append(key)
        return number


@dataclass(slots=True)
class Rules:
    """starts: the places at which a rule's alternatives begin. max_chars: how many characters its texts have at most,
    -1 where they may have any number. ops and args, by place: the byte, the state of `characters`, the rule, or
    (rule, least, most or -1)."""

    root: int
    starts: list[list[int]] = field(default_factory=list)
    max_chars: list[int] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    args: list[Any] = field(default_factory=list)
    characters: Characters = field(default_factory=Characters)


def read_rules(serialized: bytes) -> Rules | None:
    """serialized: `xgrammar.Grammar.serialize_json()`. None where it has more than rules can say: text that is free
    until a trigger comes, for example; or where it is of another version of xgrammar's form."""
    try:
        grammar = _decoder.decode(serialized)
    except msgspec.DecodeError:
        return None
    if grammar.version != _VERSION:
        return None
    rules = Rules(grammar.root_rule_id)
    reader = _Reader(grammar, rules)
    for _, expression, _, _, *others in grammar.rules:
        rules.max_chars.append(others[_MAX_CHARS])
        others[_MAX_CHARS] = -1
        if others != _PLAIN_RULE or not reader.read_rule(expression):
            return None
    return rules


class _Reader:
    def __init__(self, grammar: _Serialized, rules: Rules) -> None:
        self._data = grammar.grammar_expr_data
        self._begins = grammar.grammar_expr_indptr
        self._rules = rules

    def _expression(self, number: int) -> tuple[int, list[int]]:
        begin = self._begins[number]
        kind, count = self._data[begin : begin + 2]
        return kind, self._data[begin + 2 : begin + 2 + count]

    def read_rule(self, expression: int) -> bool:
        """Adds the next rule; False if it has an element of another kind."""
        kind, alternatives = self._expression(expression)
        if kind != _Kind.CHOICES:
            return False
        starts = []
        for alternative in alternatives:
            starts.append(len(self._rules.ops))
            kind, elements = self._expression(alternative)
            if kind == _Kind.EMPTY:
                elements = []
            elif kind != _Kind.SEQUENCE:
                return False
            if not all(map(self._read_element, elements)):
                return False
            self._add(Op.END, None)
        self._rules.starts.append(starts)
        return True

    def _read_element(self, expression: int) -> bool:
        kind, values = self._expression(expression)
        match kind:
            case _Kind.BYTES:
                for byte in values:
                    self._add(Op.BYTE, byte & 0xFF)
            case _Kind.CLASS | _Kind.STAR:
                ranges = list(zip(values[1::2], values[2::2], strict=True))
                state = self._rules.characters.state(_complement(ranges) if values[0] else ranges)
                self._add(Op.CLASS if kind == _Kind.CLASS else Op.STAR, state)
            case _Kind.RULE:
                self._add(Op.CALL, values[0])
            case _Kind.REPEAT:
                self._add(Op.REPEAT, tuple(values))
            case _Kind.EMPTY:
                pass
            case _:
                return False
        return True

    def _add(self, op: Op, arg: Any) -> None:
        self._rules.ops.append(op)
        self._rules.args.append(arg)


def _complement(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result = []
    start = 0
    for first, last in sorted(ranges):
        if first > start:
            result.append((start, first - 1))
        start = max(start, last + 1)
    if start <= UNICODE_END:
        result.append((start, UNICODE_END))
    return result


def _utf8(code_point: int) -> bytes:
    return chr(code_point).encode("utf-8", "surrogatepass")


def _joined(edges: list[tuple[int, int, int]]) -> Edges:
    """The edges in order, neighbours that lead to the same as one."""
    result: list[tuple[int, int, int]] = []
    for low, high, state in sorted(set(edges)):
        if result and result[-1][2] == state and result[-1][1] >= low - 1:
            result[-1] = (result[-1][0], max(result[-1][1], high), state)
        else:
            result.append((low, high, state))
    return tuple(result)
