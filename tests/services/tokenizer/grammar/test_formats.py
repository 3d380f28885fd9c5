"""Formats of texts: ordinary values can be written, and all that is written is valid."""

import datetime
import ipaddress
import json
import re
from collections.abc import Callable

import jsonschema
import pytest
import xgrammar

from tests.services.tokenizer.grammar.random_walk import Walker

WRITABLE = {
    "date": ["1776-07-04", "2024-02-29", "2000-02-29", "0400-02-29", "0001-01-01", "9999-12-31", "1600-02-28"],
    "date-time": ["1776-07-04T12:00:00Z", "2024-02-29T23:59:59.123456+02:00"],
    "time": ["12:00:00Z"],
    "duration": ["PT1H30M", "P1Y2M10DT2H30M", "P3D", "PT86400S", "P2W", "PT1H2M3S", "P1DT1S", "P1M"],
    "email": ["o'brien@x.com", "a.b+c@example.co.uk", "a_b-@x-y.org", "#1!@x.io"],
    "hostname": ["a-b.example.com"],
    "ipv4": ["127.0.0.1"],
    "ipv6": ["::1", "::", "2001:db8::1", "1:2:3:4:5:6:7:8", "1::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "fe80::a:b"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "uri": [
        "https://a.b/c%20d", "http://localhost:54321/", "http://a:65535", "https://en.wikipedia.org/wiki/A_(b)",
        "https://a.b/?x=a+b&y%5B%5D=1", "mailto:a@b.c", "https://a.b/c:d;e,f/@g?q=/?#x/y?z",
        "ftp://a.b/c", "file:///etc/hosts", "urn:isbn:0451450523", "data:text/plain;base64,aGk=", "http://a.b//c",
    ],
    "uri-reference": ["/docs/a", "#x", "a/b?c#d", "./a:b", "?q=1", "/", "https://a.b/c", "about:blank", "%20"],
    "json-pointer": ["/a/0"],
}  # fmt: skip

INVALID = {
    "date": ["2023-02-29", "1900-02-29", "0000-01-01", "2024-02-30", "2024-04-31", "024-01-01"],
    "date-time": ["2023-02-29T00:00:00Z", "2024-02-29", "2024-02-29T24:00:00Z"],
    "duration": ["P", "PT", "P1DT", "P1Y2D", "PT1H5S", "P1W2D", "P1S", "P1H"],
    "email": ["a..b@x.com", ".a@x.com", "a.@x.com", "a b@x.com", "a@b@c.com", "@x.com"],
    "ipv6": [":", ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "12345::", ":1", "1:"],
    "uri": ["https://a.b/c%2", "https://a.b/ c", "http://a:65536", "http://a:x/", "/docs", "http:///a", "mailto:"],
    "uri-reference": ["a b", "//a:b", "1:a", "#a#b", "%2", "é"],
}

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_SEGMENTS = rf"(?:/{_PCHAR}*)*"
_AUTHORITY = rf"//[A-Za-z0-9.\-]*(?::\d*)?{_SEGMENTS}"
_TAIL = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.\-]*:(?:{_AUTHORITY}|/(?:{_PCHAR}+{_SEGMENTS})?|{_PCHAR}+{_SEGMENTS}|){_TAIL}"
_NO_SCHEME = rf"{_PCHAR.replace(':@', '@')}+{_SEGMENTS}"
_REFERENCE = rf"(?:{_URI}|(?:{_AUTHORITY}|/(?:{_PCHAR}+{_SEGMENTS})?|{_NO_SCHEME}|){_TAIL})"
_TIME = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DURATION = rf"P(?:(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)(?:{_TIME})?|{_TIME}|\d+W)"


def of_expression(source: str) -> Callable[[str], object]:
    return re.compile(source).fullmatch


def date(text: str) -> object:
    assert len(text) == 10
    return datetime.date.fromisoformat(text)


VALID: dict[str, Callable[[str], object]] = {
    "date": date,
    "date-time": datetime.datetime.fromisoformat,
    "duration": of_expression(_DURATION),
    "email": of_expression(rf"{_ATOM}(?:\.{_ATOM})*@[A-Za-z0-9.\-]+"),
    "ipv6": ipaddress.IPv6Address,
    "uri": of_expression(_URI),
    "uri-reference": of_expression(_REFERENCE),
}
"""By the productions of RFC 3339, 5322 and 3986, and by Python's readers; they raise or are false for what is wrong."""


def of_format(walker: Walker, name: str) -> xgrammar.CompiledGrammar:
    return walker.compile("json_schema", json.dumps({"type": "string", "format": name}))


def is_written(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return bool(matcher.accept_string(json.dumps(text, ensure_ascii=False)) and matcher.is_terminated())


@pytest.mark.parametrize("name", WRITABLE)
def test_ordinary_values_can_be_written(walker: Walker, name: str) -> None:
    grammar = of_format(walker, name)
    assert [text for text in WRITABLE[name] if not is_written(grammar, text)] == []
    assert all(VALID[name](text) for text in WRITABLE[name] if name in VALID)


@pytest.mark.parametrize("name", INVALID)
def test_others_cannot(walker: Walker, name: str) -> None:
    grammar = of_format(walker, name)
    assert [text for text in INVALID[name] if is_written(grammar, text)] == []


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_is_valid(walker: Walker, name: str) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    found = [json.loads(text) for text, is_whole in walker.answers(of_format(walker, name), 60) if is_whole]
    assert found
    for text in found:
        checker.check(text, name)
        assert name not in VALID or VALID[name](text), text


@pytest.mark.parametrize(("name", "same"), [("iri-reference", "#x"), ("iri", "urn:a"), ("url", "ftp://a/b")])
def test_formats_that_hold_others_are_written_as_those(walker: Walker, name: str, same: str) -> None:
    assert is_written(of_format(walker, name), same)
