"""Formats as patterns, narrower than the standards' where that is simpler, and a cache of the automata of patterns."""

import functools

from services.tokenizer.grammar.automaton import automaton
from services.tokenizer.grammar.dfa import Dfa
from services.tokenizer.grammar.pattern import Pattern, has_look
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


class Formats:
    """Known formats, and patterns by source; both computed once."""

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
    def search(self, source: str) -> Dfa:
        return automaton(parse_search(source))

    @functools.cache  # noqa: B019
    def search_widely(self, source: str) -> Dfa:
        """Where what is found must not be: all that some dialect finds."""
        return automaton(parse_search(source, is_wide=True))


FORMATS = Formats()
