"""The JSON form of grammars, which is what a server is sent.

A part is an object that names its type, or a string, which is a text:

    {"type": "text", "text": "..."}
    {"type": "regex", "pattern": "..."}
    {"type": "json", "schema": {...}}
    {"type": "any_text", "excludes": ["..."], "max_chars": 80}
    {"type": "sequence", "items": [...]}
    {"type": "choice", "items": [...]}
    {"type": "repeat", "item": ..., "min": 0, "max": 5, "separator": ...}
    {"type": "capture", "name": "...", "item": ...}
    {"type": "rule", "name": "..."}

A grammar is a part that is an object or, if there are rules, {"root": part, "rules": {name: part}}.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sapwood.grammar.errors import GrammarError
from sapwood.grammar.parts import (
    AnyPart,
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
)


@dataclass(frozen=True)
class Form:
    """A grammar: what must match, and the rules that it refers to."""

    root: Part
    rules: Mapping[str, Part] = field(default_factory=dict)

    def bodies(self) -> Iterator[tuple[str | None, str, Part]]:
        """(name of a rule or None for the root, its JSON pointer, its part)"""
        yield None, "/root" if self.rules else "", self.root
        for name, part in self.rules.items():
            yield name, f"/rules/{escaped(name)}", part


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def read(value: object) -> Form:
    """A grammar from its JSON form as Python objects, which must not be nested without bound. Raises GrammarError."""
    if not isinstance(value, dict):
        raise GrammarError("must be an object")
    if "root" not in value and "rules" not in value:
        return Form(_part(value, ""))
    for name in value.keys() - {"root", "rules"}:
        raise GrammarError(f"has an unknown field {str(name)[:100]!r}", "")
    if "root" not in value:
        raise GrammarError("has no 'root'", "")
    rules = value.get("rules", {})
    if not isinstance(rules, dict):
        raise GrammarError("must have an object of rules", "/rules")
    return Form(
        _part(value["root"], "/root"),
        {name: _part(part, f"/rules/{escaped(name)}") for name, part in rules.items()},
    )


_PLACE = re.compile(r"^(?P<reason>.*) - at `\$(?P<path>.*)`$", re.DOTALL)


def _part(value: object, pointer: str) -> Part:
    try:
        part: AnyPart = msgspec.convert(value, AnyPart)
    except msgspec.ValidationError as error:
        found = _PLACE.match(str(error))
        reason, path = (str(error), "") if found is None else (found["reason"], found["path"])
        inner = path.replace("[", "/").replace("]", "").replace(".", "/")
        raise GrammarError(f"has a part that is none ({reason[:300]})", pointer + inner) from None
    return Text(part) if isinstance(part, str) else part


def written(form: Form) -> dict[str, Any]:
    """The JSON form as Python objects."""
    root = _written(form.root)
    if form.rules:
        return {"root": root, "rules": {name: _written(part) for name, part in form.rules.items()}}
    return {"type": "text", "text": root} if isinstance(root, str) else dict(root)


def _written(part: AnyPart) -> Any:
    match part:
        case str():
            return part
        case Text(text=text):
            return text
        case Regex(pattern=pattern):
            return {"type": "regex", "pattern": pattern}
        case Json(schema=schema):
            return {"type": "json", "schema": schema}
        case AnyText(excludes=excludes, max_chars=max_chars):
            bound = {} if max_chars is None else {"max_chars": max_chars}
            return {"type": "any_text"} | ({"excludes": list(excludes)} if excludes else {}) | bound
        case Sequence(items=items):
            return {"type": "sequence", "items": [_written(item) for item in items]}
        case Choice(items=items):
            return {"type": "choice", "items": [_written(item) for item in items]}
        case Repeat(item=item, min=least, max=most, separator=separator):
            bounds = {"min": least} | ({} if most is None else {"max": most})
            between = {} if separator is None else {"separator": _written(separator)}
            return {"type": "repeat", "item": _written(item)} | bounds | between
        case Capture(name=name, item=item):
            return {"type": "capture", "name": name, "item": _written(item)}
        case Ref(name=name):
            return {"type": "rule", "name": name}
