"""A grammar as a whole: made of parts, sent to a server, and what reads the answers to it."""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sapwood.grammar import form as forms
from sapwood.grammar.check import check
from sapwood.grammar.dialect import lengths
from sapwood.grammar.errors import GrammarError
from sapwood.grammar.form import Form
from sapwood.grammar.parts import Json, Part, Rule, Typed, as_part, children
from sapwood.grammar.reading import Match, Reader


class Grammar:
    """What an answer must match.

    root: a part, or what stands for one: a string, a type. rules: those that `ref` refers to; those made by `rule` come
    by themselves. Raises GrammarError for what no server would take."""

    def __init__(self, root: Any, rules: Mapping[str, Any] | None = None) -> None:
        part = as_part(root)
        given = {name: as_part(value) for name, value in (rules or {}).items()}
        self._form = Form(part, _all_rules(part, given))
        check(self._form, lengths)

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> "Grammar":
        """A grammar from its JSON form, as text or objects. Raises GrammarError."""
        try:
            value = json.loads(source) if isinstance(source, str) else dict(source)
            form = forms.read(value)
        except (ValueError, RecursionError) as error:
            if isinstance(error, GrammarError):
                raise
            raise GrammarError(f"is not valid JSON: {error}") from None
        return cls(form.root, form.rules)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, as objects."""
        return forms.written(self._form)

    def response_format(self) -> dict[str, Any]:
        """For the `response_format` of a request: of JSON alone, a json_schema, as other servers know it too."""
        root = self._form.root
        if isinstance(root, Json) and isinstance(root.schema, dict):
            name = getattr(root.python_type, "__name__", "answer") if isinstance(root, Typed) else "answer"
            return {"type": "json_schema", "json_schema": {"name": name, "schema": root.schema, "strict": True}}
        return {"type": "grammar", "grammar": self.to_json()}

    def extra_body(self) -> dict[str, Any]:
        """For the `extra_body` of the openai package's calls, of chats and of completions."""
        return {"response_format": self.response_format()}

    def parse(self, answer: str) -> Match:
        """The captures of an answer. Raises AnswerError for one that does not match, as when it was cut short."""
        return self._reader.read(answer)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._form)

    def __repr__(self) -> str:
        return f"Grammar({self._form.root!r:.200})"


def _all_rules(root: Part, given: Mapping[str, Part]) -> dict[str, Part]:
    """The rules given, and those that `rule` has made."""
    rules = dict(given)
    makers: dict[str, Rule] = {}
    front = [root, *given.values()]
    while front:
        part = front.pop()
        if isinstance(part, Rule):
            if makers.setdefault(part.name, part).make is not part.make or part.name in given:
                raise GrammarError(f"has two rules named {part.name!r}")
            if part.name not in rules:
                rules[part.name] = as_part(part.make())
                front.append(rules[part.name])
        front += [inner for _, inner in children(part)]
    return rules
