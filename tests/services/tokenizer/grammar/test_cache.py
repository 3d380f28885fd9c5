"""A grammar means the same to a compiler with a cache, as the processes have it, as to one without."""

import json

import pytest
import xgrammar

from services.tokenizer.grammar.compile import to_source
from shared.grammar import caching_compiler, compile_source
from tests.services.tokenizer.grammar.random_walk import MAX_CHARACTERS, Walker

TEXTS = ["\xe9\xe9draft", "x\x01f0", "\x7fa\xfcb", "\U0001f600ab", "\xe9d\xe9e\xe9f", "a\0b\0"]
"""Characters that xgrammar prints as escapes, some before a digit."""


def is_match(walker: Walker, kind: str, source: str, text: str) -> bool:
    grammar = compile_source(caching_compiler(walker.info), to_source(kind, source, MAX_CHARACTERS))
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def tag(content: object) -> str:
    return json.dumps({"type": "structural_tag", "format": content})


@pytest.mark.parametrize("text", TEXTS)
def test_texts(walker: Walker, text: str) -> None:
    begun = {"type": "tag", "begin": text, "content": {"type": "const_string", "value": "1"}, "end": text}
    for kind, source, expected in (
        ("choice", json.dumps([text, "other"]), text),
        ("json_schema", json.dumps({"const": text}), json.dumps(text, ensure_ascii=False).replace("\\u007f", "\x7f")),
        ("regex", f"(?:{text})+", text + text),
        ("grammar", json.dumps({"type": "sequence", "items": [text, {"type": "json"}]}), f"{text}null"),
        ("ebnf", f"root ::= {quoted(text)} [0-9]", f"{text}1"),
        ("lark", f"start: {quoted(text)} /[0-9]/", f"{text}1"),
        ("structural_tag", tag(begun), f"{text}1{text}"),
        ("structural_tag", tag({"type": "grammar", "grammar": f"root ::= {quoted(text)}"}), text),
    ):
        assert is_match(walker, kind, source, expected), kind
        assert not is_match(walker, kind, source, expected[1:]), kind


@pytest.mark.parametrize("kind", ["ebnf", "lark", "regex", "json_schema"])
@pytest.mark.parametrize(
    ("chars", "inside", "outside"), [(r"\^~", "^~", "a}"), (r"\^-`", "^_`", "-a"), ("\xe9a0", "\xe9a0", "\u0e9a")]
)
def test_classes(walker: Walker, kind: str, chars: str, inside: str, outside: str) -> None:
    source = {
        "ebnf": f"root ::= [{chars}] {{2}}",
        "lark": f"start: /[0{chars}]{{2}}/",
        "regex": f"[{chars}]{{2}}",
        "json_schema": json.dumps({"type": "string", "pattern": f"^[{chars}]{{2}}$"}),
    }[kind]
    quote = '"' if kind == "json_schema" else ""
    for char in inside:
        assert is_match(walker, kind, source, f"{quote}{char}{char}{quote}"), char
    for char in outside:
        assert not is_match(walker, kind, source, f"{quote}{char}{char}{quote}"), char
