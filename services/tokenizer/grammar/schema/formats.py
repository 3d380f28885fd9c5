"""Formats as patterns, narrower than the standards' where that is simpler, and a cache of the automata of patterns."""

import functools

from services.tokenizer.grammar.automaton import automaton, matches
from services.tokenizer.grammar.dfa import Dfa
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.pattern import Pattern, cut, has_look, loosened
from services.tokenizer.grammar.regex import parse_search, parse_whole

_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?:19|20)\d\d-{_DAY}"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_ZONE = r"(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_WORD = r"[A-Za-z0-9]+(?:[_+-][A-Za-z0-9]+)*"
_LABEL = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_HEX = "[0-9a-fA-F]"
_URI = rf"https?://{_HOST}(?::[1-9]\d{{1,3}})?(?:/[A-Za-z0-9._~/-]*)?(?:\?[A-Za-z0-9._~=&-]*)?(?:#[A-Za-z0-9._~-]*)?"

_SOURCES = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "duration": r"P(?:\d{1,4}W|\d{1,4}D(?:T\d{1,4}H)?|T\d{1,4}[HMS]|\d{1,4}[YM](?:\d{1,4}D)?)",
    "email": rf"{_WORD}(?:\.{_WORD})*@{_LABEL}(?:\.{_LABEL})+",
    "hostname": _HOST,
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": rf"{_HEX}{{1,4}}(?::{_HEX}{{1,4}}){{7}}",
    "uuid": rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": _URI,
    "json-pointer": r"(?:/[A-Za-z0-9._-]*)*",
}
_SAME = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "uri-reference": "uri",
    "iri-reference": "uri",
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
