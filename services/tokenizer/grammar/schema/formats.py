"""Formats as patterns, narrower than the standards' where that is simpler, and a cache of the automata of patterns."""

import functools

from services.tokenizer.grammar.automaton import automaton, matches
from services.tokenizer.grammar.dfa import Dfa
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import Pattern, cut, has_look, loosened
from services.tokenizer.grammar.regex import parse_search, parse_whole

_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_YEAR = r"(?:[1-9]\d{3}|0(?:[1-9]\d\d|0(?:[1-9]\d|0[1-9])))"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = rf"(?:\d\d{_FOURTH}|{_FOURTH}00)"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_ZONE = r"(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)"
_COUNT = r"\d{1,6}"
_DAYS = rf"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_TIMES = rf"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_HEX = "[0-9a-fA-F]"
_HEXES = f"{_HEX}{{1,4}}"


def _ipv6() -> str:
    """Eight numbers, or up to seven with :: somewhere for the others."""
    rest = f"(?:{_HEXES}|:)"  # behind seven and a colon
    for left in range(1, 7):
        rest = f"(?:{_HEXES}:{rest}|:{_up_to(left)})"
    return f"(?:{_HEXES}:{rest}|::{_up_to(7)})"


def _up_to(most: int) -> str:
    return f"(?:{_HEXES}(?::{_HEXES}){{0,{most - 1}}})?"


_IN_PATH = r"[A-Za-z0-9._~!$&'()*+,;=:@-]"
_ENCODED = f"%{_HEX}{_HEX}"
_PART = f"(?:{_IN_PATH}|{_ENCODED})"
_PARTS = f"(?:{_IN_PATH.replace('[', '[/')}|{_ENCODED})*"
_PORT = r":(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_QUERY = rf"\?(?:{_IN_PATH.replace('[', '[/?')}|{_ENCODED})*"
_FRAGMENT = _QUERY.replace(r"\?", "#", 1)
_NAMED = rf"[A-Za-z][A-Za-z0-9+.-]*://{_HOST}(?:{_PORT})?(?:/{_PARTS})?"
_URI = rf"(?:{_NAMED}|file:///{_PARTS}|(?:about|data|mailto|tel|urn):{_PART}{_PARTS})(?:{_QUERY})?(?:{_FRAGMENT})?"
_PATH = rf"(?:/(?:{_PART}{_PARTS})?|(?:{_IN_PATH.replace(':', '')}|{_ENCODED})+(?:/{_PARTS})?)"
_RELATIVE = rf"(?:{_PATH}(?:{_QUERY})?(?:{_FRAGMENT})?|{_QUERY}(?:{_FRAGMENT})?|{_FRAGMENT})"

_SOURCES = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "duration": f"P(?:{_DAYS}(?:{_TIMES})?|{_TIMES}|{_COUNT}W)",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+",
    "hostname": _HOST,
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": _ipv6(),
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": _URI,
    "uri-reference": f"(?:{_URI}|{_RELATIVE})",
    "json-pointer": r"(?:/[A-Za-z0-9._-]*)*",
}
_SAME = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri-reference",
    "url": "uri",
}


FEWER_REPEATS = (64, 16, 4)
"""Repeats beyond those that must be that are left of patterns which are too complex."""

LONG_REPEAT = 4
"""Repeats of more than so many are of any number, where a pattern that must not match is too complex."""


class Formats:
    """Known formats, and patterns by source; all computed once."""

    def __init__(self) -> None:
        self._searches: dict[tuple[str, bool], Dfa | Unenforceable] = {}

    def has(self, name: str) -> bool:
        return _SAME.get(name, name) in _SOURCES

    @functools.cache  # noqa: B019 - there is one of these
    def pattern(self, name: str) -> Pattern:
        return parse_whole(_SOURCES[_SAME.get(name, name)])

    @functools.cache  # noqa: B019
    def automaton(self, name: str) -> Dfa:
        return automaton(self.pattern(name))

    @functools.cache  # noqa: B019
    def searched(self, source: str) -> Pattern | None:
        """What a text looks like in which a regex finds a match; None: only an automaton can say it."""
        pattern = parse_search(source)
        return None if has_look(pattern) else pattern

    @functools.cache  # noqa: B019
    def narrower(self, source: str) -> list[Pattern]:
        """Patterns of less and less of the texts in which a regex finds a match: the match alone, and with few repeats
        beyond those that must be."""
        whole = parse_whole(source)
        return list(dict.fromkeys([whole, *(cut(whole, spare) for spare in FEWER_REPEATS)]))

    def search(self, source: str, *, is_wide: bool = False) -> Dfa:
        """Of the texts in which a regex finds a match. is_wide: in any dialect; for what must not be found. Raises
        Unenforceable."""
        key = (source, is_wide)
        if key not in self._searches:
            try:
                self._searches[key] = automaton(parse_search(source, is_wide=is_wide))
            except Unenforceable as error:
                self._searches[key] = error
        found = self._searches[key]
        if isinstance(found, Unenforceable):
            raise Unenforceable(found.message)
        return found

    @functools.cache  # noqa: B019
    def excluded(self, source: str) -> Dfa:
        """Texts that must not be, since a regex might find a match in them: where those are too complex, others too.
        Raises Unenforceable."""
        try:
            return self.search(source, is_wide=True)
        except Unenforceable:
            return automaton(loosened(parse_search(source, is_wide=True), LONG_REPEAT))

    def finds(self, source: str, text: str, *, is_wide: bool = False) -> bool:
        """As `search`, of one text, and without a limit to the pattern."""
        try:
            return self.search(source, is_wide=is_wide).matches(text)
        except Unenforceable:
            return matches(parse_search(source, is_wide=is_wide), text)


FORMATS = Formats()
