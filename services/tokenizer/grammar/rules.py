"""Grammar rules in xgrammar's EBNF, and how patterns and automata become such.

An expression is a piece of a rule's body as text. In JSON strings (`is_json`) a character stands for how it is written
there, in one way only: quotes, backslashes and line breaks by their short escapes, all others as they are.
"""

import functools
from collections.abc import Callable, Iterable

from services.tokenizer.grammar import charset
from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.charset import Chars
from services.tokenizer.grammar.dfa import Dfa, components
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_GRAMMAR_CHARACTERS, MAX_RULES
from services.tokenizer.grammar.pattern import Alt, Look, One, Pattern, Repeat, Seq, lengths

EMPTY = '""'
MAX_RUN = 128
"""A run of up to so many equal characters is counted by rules, one for each character that may still come: which
tokens fit is known when the grammar is compiled. The vocabulary is gone through for each, some milliseconds the first
time; the compiler knows a rule again that it has seen in another grammar, and so equal runs cost nothing from then on.
Longer runs are counted by xgrammar while it matches, which takes up to milliseconds a mask near the bound. It counts
characters as they are written: an escape is two, and a JSON string full of them ends the sooner."""

MAX_COUNTING_RULES = 256
"""Of one grammar. Runs for which there is no room are left to xgrammar."""

MAX_LITERAL = 2**15
"""Characters of one text: a state is made for each of its bytes."""

MAX_FLAT = 64
"""Texts that are written down one by one."""

MAX_SHARED_LOOP = 48
"""States of a loop in an automaton that is looked for among those of other automata."""

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED: Chars = charset.of("".join(ESCAPES))
_CONTROL: Chars = ((0, 0x1F),)
JSON_PLAIN: Chars = charset.difference(charset.ANY, charset.union([*_ESCAPED, *_CONTROL]))
"""Characters that stand for themselves in a JSON string."""


class Rules:
    """The rules of one grammar. Equal bodies are one rule."""

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._budgets: dict[str, int] = {}
        self._names: dict[tuple[str, int | None], str] = {}
        self._num_characters = 0
        self._num_counting = 0
        self.loops: dict[str, str] = {}
        """Rules of automata's states that lead back to themselves, by what may follow."""

    def add(self, body: str, *, max_chars: int | None = None) -> str:
        """The name of the rule with this body. max_chars: a match has no more characters."""
        key = (body, max_chars)
        if key not in self._names:
            name = self.reserve()
            if max_chars is not None:
                self._budgets[name] = max_chars
            self.define(name, body)
            self._names[key] = name
        return self._names[key]

    def run(self, part: str, least: int, most: int, end: str = EMPTY) -> str:
        """An expression for `least` to `most` times one character, then `end`, which is one name, literal or expression
        in parentheses. Masks tell for certain that a token fits only as far as the rules go: to `end`, if it is theirs.
        Runs to the same end share rules."""
        if least < most and (most > MAX_RUN or not self._has_room(part, most - least, end)):
            budget = self.add(f"{_times(part, least)}{part}*", max_chars=most)
            return f"({budget} {end})"
        tail = end
        for _ in range(most - least):
            tail = self.add(f"{part} {tail} | {end}")
        return f"({_times(part, least)}{tail})" if least else tail

    def _has_room(self, part: str, count: int, end: str) -> bool:
        """Whether so many rules, less those that are there already, may be added to count characters."""
        tail, known = end, 0
        while known < count:
            name = self._names.get((f"{part} {tail} | {end}", None))
            if name is None:
                break
            tail, known = name, known + 1
        if self._num_counting + count - known > MAX_COUNTING_RULES:
            return False
        self._num_counting += count - known
        return True

    def reserve(self) -> str:
        """A name to be defined later, for rules that refer to each other."""
        name = f"r{len(self._bodies)}"
        self._bodies[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        self._bodies[name] = body
        self._num_characters += len(body)
        if len(self._bodies) > MAX_RULES or self._num_characters > MAX_GRAMMAR_CHARACTERS:
            raise Unenforceable("is too complex: it becomes too large a grammar")

    def text(self, root: str) -> str:
        """The whole grammar; the rule `root` is what must match."""
        lines = [f"root ::= {root}"]
        for name, body in self._bodies.items():
            budget = self._budgets.get(name)
            lines.append(f"{name} ::= {body}" if budget is None else f"{name}[max_chars={budget}] ::= {body}")
        return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """An expression for exactly this text. Raises Unenforceable for one that is very long."""
    if len(text) > MAX_LITERAL:
        raise Unenforceable(f"has a name or value of {len(text)} characters, more than {MAX_LITERAL}")
    return '"' + "".join(map(_quoted, text)) + '"' if text else EMPTY


def alternatives(parts: Iterable[str]) -> str:
    """One of these, in parentheses where there are several."""
    different = list(dict.fromkeys(parts))
    return different[0] if len(different) == 1 else "(" + " | ".join(different) + ")"


def one_of_texts(texts: Iterable[str], rules: Rules) -> str:
    """One of these: an expression that needs parentheses beside others. Of many, those that begin alike go the same way
    up to where they differ, and those that end alike from there on: a state is made for each place in a text, and the
    vocabulary gone through for it. Raises Unenforceable for a very long text."""
    different = list(dict.fromkeys(texts))
    if len(different) <= MAX_FLAT or max(map(len, different)) > MAX_LITERAL:
        return " | ".join(map(literal, different))
    return _Words(different).expression(rules)


_Node = tuple[bool, tuple[tuple[str, int], ...]]


class _Words:
    """Texts as the smallest automaton without loops. A node is what may follow: whether a text may end, and characters
    with the nodes behind them, which come before those that lead to them."""

    def __init__(self, texts: list[str]) -> None:
        self._nodes: list[_Node] = []
        self._numbers: dict[_Node, int] = {}
        path: list[tuple[str, bool, list[tuple[str, int]]]] = [("", False, [])]  # of the last text: no nodes yet
        before = ""
        for text in sorted(texts):
            common = 0
            while common < min(len(before), len(text)) and before[common] == text[common]:
                common += 1
            self._close(path, common)
            path += [(char, False, []) for char in text[common:]]
            path[-1] = (path[-1][0], True, path[-1][2])
            before = text
        self._close(path, 0)
        self._root = self._number(path[0])

    def _close(self, path: list[tuple[str, bool, list[tuple[str, int]]]], length: int) -> None:
        """Makes nodes of all of the path behind so many characters: no more texts go there."""
        while len(path) > length + 1:
            step = path.pop()
            path[-1][2].append((step[0], self._number(step)))

    def _number(self, step: tuple[str, bool, list[tuple[str, int]]]) -> int:
        node = (step[1], tuple(step[2]))
        if node not in self._numbers:
            self._numbers[node] = len(self._nodes)
            self._nodes.append(node)
        return self._numbers[node]

    def expression(self, rules: Rules) -> str:
        entries = [0] * len(self._nodes)
        for _, edges in self._nodes:
            for _, target in edges:
                entries[target] += 1
        names: list[str] = []
        tails: list[tuple[str, int]] = []  # of a node with one way in and one out: the text, and where that leads
        for number, (is_end, edges) in enumerate(self._nodes):
            if not is_end and len(edges) == 1 and entries[number] == 1:
                [(char, target)] = edges
                text, far = tails[target]
                tails.append((char + text, far))
                names.append("")
                continue
            body = self._body(is_end, edges, names, tails)
            tails.append(("", number))
            names.append(body if not edges or number == self._root else rules.add(body))
        return names[self._root]

    @staticmethod
    def _body(is_end: bool, edges: tuple[tuple[str, int], ...], names: list[str], tails: list[tuple[str, int]]) -> str:
        chars: dict[str, list[str]] = {}  # what follows -> the characters that it follows
        parts = [EMPTY] if is_end else []
        for char, target in edges:
            text, far = tails[target]
            behind = "" if names[far] == EMPTY else f" {names[far]}"
            if text:
                parts.append(literal(char + text) + behind)
            else:
                chars.setdefault(behind, []).append(char)
        parts += [one_of(charset.of("".join(own)), is_json=False) + behind for behind, own in chars.items()]
        return " | ".join(parts)


def counted(part: str, least: int, most: int | None) -> str:
    """Repeats of an expression that is in parentheses, or one name or class."""
    match least, most:
        case _, 0:
            return EMPTY
        case 1, 1:
            return part
        case 0, None:
            return f"{part}*"
        case 1, None:
            return f"{part}+"
        case 0, 1:
            return f"{part}?"
    return f"{part}{{{least}}}" if least == most else f"{part}{{{least},{'' if most is None else most}}}"


def _times(part: str, count: int) -> str:
    """An expression as often as that, with a space behind; written out where xgrammar would count."""
    if count <= MAX_RUN:
        return f"{part} " * count
    return f"{counted(part, count, count)} "


@functools.lru_cache(maxsize=4096)
def one_of(chars: Chars, *, is_json: bool) -> str:
    """One character of a set. In a JSON string those that could only be written as \\u00XX are left out, unless there
    are no others."""
    if not is_json:
        return _char_class(chars)
    plain = charset.intersection(chars, JSON_PLAIN)
    parts = [_char_class(plain)] if plain else []
    escapes = [escape for char, escape in ESCAPES.items() if charset.contains(chars, char)]
    if len(escapes) == 1:
        parts.append(literal(escapes[0]))
    elif escapes:  # as one: a choice of many is a rule of its own to xgrammar, which makes every next mask slower
        letters = "".join(escape[1] for escape in escapes).replace("\\", "\\\\")
        chosen = rf'"\\" [{letters}]'
        parts.append(chosen if parts else f"({chosen})")
    if not parts:
        points = [point for low, high in charset.intersection(chars, _CONTROL) for point in range(low, high + 1)]
        parts = [literal(f"\\u{point:04x}") for point in points]
    return alternatives(parts)


def pattern_expression(pattern: Pattern, rules: Rules, *, is_json: bool, end: str = EMPTY) -> str:
    """An expression in parentheses, or one that needs none, for the pattern and then `end`, which is such too."""
    match pattern:
        case Seq(()):
            return end
        case Seq(parts):
            return _sequence(parts, rules, is_json=is_json, end=end)
        case Repeat(One(chars), least, int(most)):
            return rules.run(one_of(chars, is_json=is_json), least, most, end)
    inner = _element(pattern, rules, is_json=is_json)
    return inner if end == EMPTY else f"({inner} {end})"


def _sequence(parts: tuple[Pattern, ...], rules: Rules, *, is_json: bool, end: str) -> str:
    """From the end to the start: a counted run goes on in what is behind it."""
    behind: list[str] = [] if end == EMPTY else [end]
    text = ""
    for part in reversed(parts):
        char = _single_char(part)
        if char is not None:
            text = (_json_escaped(char) if is_json else char) + text
            continue
        if text:
            behind.insert(0, literal(text))
            text = ""
        match part:
            case Repeat(One(chars), least, int(most)) if least < most:
                behind = [rules.run(one_of(chars, is_json=is_json), least, most, _grouped(behind, rules))]
            case _:
                behind.insert(0, _element(part, rules, is_json=is_json))
    if text:
        behind.insert(0, literal(text))
    return behind[0] if len(behind) == 1 else "(" + " ".join(behind) + ")"


def _grouped(parts: list[str], rules: Rules) -> str:
    """One literal, name or expression in parentheses for what follows one another."""
    return EMPTY if not parts else parts[0] if len(parts) == 1 else rules.add(" ".join(parts))


def _element(pattern: Pattern, rules: Rules, *, is_json: bool) -> str:
    match pattern:
        case One(chars):
            return one_of(chars, is_json=is_json)
        case Seq():
            return pattern_expression(pattern, rules, is_json=is_json)
        case Alt(()) | Look():
            raise AssertionError("what matches nothing or no character has no expression")
        case Alt(parts):
            return alternatives(pattern_expression(part, rules, is_json=is_json) for part in parts)
        case Repeat(One(chars), least, int(most)):
            return rules.run(one_of(chars, is_json=is_json), least, most)
        case Repeat(part, least, most):
            inner = pattern_expression(part, rules, is_json=is_json)
            is_atom = not isinstance(part, Repeat) and inner[0] in "(["
            return counted(inner if is_atom else f"({inner})", least, most)


def is_simple(pattern: Pattern, inside: bool = False) -> bool:
    """Whether there are few ways to read one text: no unbounded repeat in another, no repeat of what may be empty."""
    match pattern:
        case One():
            return True
        case Look():
            return False
        case Seq(parts) | Alt(parts):
            return all(is_simple(part, inside) for part in parts)
        case Repeat(part, _, most):
            loops = most is None or most > 1
            if loops and (inside or lengths(part)[0] == 0):
                return False
            return is_simple(part, inside or loops)


def text_expression(pattern: Pattern, rules: Rules, *, is_json: bool, end: str = EMPTY) -> str:
    """As `pattern_expression`, by way of an automaton where the tree is of a kind that is slow to match."""
    if is_simple(pattern):
        return pattern_expression(pattern, rules, is_json=is_json, end=end)
    return automaton_rule(automaton(pattern), rules, is_json=is_json, end=end)


def automaton_rule(dfa: Dfa, rules: Rules, *, is_json: bool, end: str = EMPTY) -> str:
    """An expression that needs no parentheses for what the automaton matches, then `end`: one rule a state, each ending
    in the next, but those with one way to them inside its rule. States from which the same may follow are one rule, in
    all automata of a grammar."""
    edges = [dfa.edges(state) for state in range(len(dfa.rows))]
    entries = [0] * len(edges)
    for targets in edges:
        for target in targets:
            entries[target] += 1
    spelled = [{target: one_of(chars, is_json=is_json) for target, chars in targets.items()} for targets in edges]
    behind: dict[int, str] = {}

    def body(state: int, own: dict[int, str]) -> str:
        parts = [f"{char} {own.get(target) or behind[target]}" for target, char in spelled[state].items()]
        return " | ".join([*parts, end] if dfa.accepts[state] else parts)

    for group in components([list(targets) for targets in edges]):
        [state, *more] = group
        if more or state in edges[state]:
            behind |= _loop_rules(group, rules, spelled, dfa.accepts, behind, end, body)
        elif not edges[state]:
            behind[state] = end
        elif state and entries[state] == 1 and len(edges[state]) == 1 and not dfa.accepts[state]:
            behind[state] = body(state, {})
        else:
            behind[state] = rules.add(body(state, {}))
    return behind[0]


def _loop_rules(
    group: list[int],
    rules: Rules,
    spelled: list[dict[int, str]],
    accepts: list[bool],
    behind: dict[int, str],
    end: str,
    body: Callable[[int, dict[int, str]], str],
) -> dict[int, str]:
    """State -> the name of its rule, for states that all lead to each other. A loop that is known is found by how it
    looks from one of its states."""

    def look(start: int) -> str:
        places = {start: 0}
        lines: list[str] = []
        while len(lines) < len(places):
            state = list(places)[len(lines)]
            line = []
            for target, char in spelled[state].items():
                if target in members and target not in places:
                    places[target] = len(places)
                line.append(f"{char} {places.get(target, behind.get(target))}")
            lines.append(" | ".join([*line, end] if accepts[state] else line))
        return "\n".join(lines)

    members = frozenset(group)
    looks = {state: look(state) for state in group} if len(group) <= MAX_SHARED_LOOP else {}
    names = {state: name for state, one in looks.items() if (name := rules.loops.get(one)) is not None}
    if len(names) == len(group):
        return names
    names = {state: rules.reserve() for state in group}
    for state, name in names.items():
        rules.define(name, body(state, names))
    rules.loops |= {one: names[state] for state, one in looks.items()}
    return names


def _single_char(part: Pattern) -> str | None:
    """The only character that the part matches, if it is such."""
    if isinstance(part, One) and len(part.chars) == 1 and part.chars[0][0] == part.chars[0][1]:
        return chr(part.chars[0][0])
    return None


def _json_escaped(char: str) -> str:
    return ESCAPES.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x20 else char)


def _char_class(chars: Chars) -> str:
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return literal(chr(chars[0][0]))
    outside = charset.union([*charset.complement(chars), *charset.SURROGATES])  # they have no bytes in UTF-8
    if len(outside) < len(chars):
        return "[^" + "".join(map(_range, outside)) + "]"
    return "[" + "".join(map(_range, chars)) + "]"


def _range(pair: tuple[int, int]) -> str:
    low, high = pair
    return _class_char(low) if low == high else f"{_class_char(low)}-{_class_char(high)}"


def _class_char(point: int) -> str:
    if chr(point).isascii() and chr(point).isalnum():
        return chr(point)
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _quoted(char: str) -> str:
    point = ord(char)
    if char in '"\\':
        return "\\" + char
    return char if 0x20 <= point < 0x7F else _class_char(point)
