"""How grammars are put together, sent and checked before they are sent."""

import enum
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood import grammar as g
from tests.sapwood.grammar.random_grammars import Draw

ROOT = Path(__file__).parents[3]


def test_operators_make_flat_sequences_and_choices() -> None:
    part = "a" + g.regex("b+") + ("c" | g.text("d") | g.text("e")) + re.compile("f")
    assert g.Grammar(part).to_json() == {
        "type": "sequence",
        "items": [
            "a",
            {"type": "regex", "pattern": "b+"},
            {"type": "choice", "items": ["c", "d", "e"]},
            {"type": "regex", "pattern": "f"},
        ],
    }


def test_every_part_as_json() -> None:
    part = g.seq(
        g.repeat("a", 1, 3, separator=", "),
        g.optional(g.gen("x", regex="[0-9]")),
        g.gen("y", stop=["\n", "."], max_chars=9),
        g.select("z", ["p", "q"]),
        g.json({"type": "null"}),
        int | g.ref("r"),
        g.json(),
    )
    digit = {"type": "capture", "name": "x", "item": {"type": "regex", "pattern": "[0-9]"}}
    integer = {"type": "json", "schema": {"type": "integer"}}
    expected: Any = {
        "root": {
            "type": "sequence",
            "items": [
                {"type": "repeat", "item": "a", "min": 1, "max": 3, "separator": ", "},
                {"type": "repeat", "item": digit, "min": 0, "max": 1},
                {"type": "capture", "name": "y", "item": {"type": "any_text", "excludes": ["\n", "."], "max_chars": 9}},
                {"type": "capture", "name": "z", "item": {"type": "choice", "items": ["p", "q"]}},
                {"type": "json", "schema": {"type": "null"}},
                {"type": "choice", "items": [integer, {"type": "rule", "name": "r"}]},
                {"type": "json", "schema": True},
            ],
        },
        "rules": {"r": "w"},
    }  # fmt: skip
    assert g.Grammar(part, {"r": "w"}).to_json() == expected


@settings(max_examples=300, deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_the_json_form_comes_back_as_it_was(chance: Any) -> None:
    grammar = Draw(chance).grammar()
    if grammar is not None:
        form = grammar.to_json()
        assert g.Grammar.from_json(form).to_json() == form


def test_rules_by_decorator_come_by_themselves_and_once() -> None:
    calls = []

    @g.rule
    def number() -> Any:
        calls.append("number")
        return g.regex("[0-9]+")

    @g.rule
    def tree() -> Any:
        return number | "(" + tree + "," + tree + ")"

    form = g.Grammar("=" + tree).to_json()
    assert form["root"] == {"type": "sequence", "items": ["=", {"type": "rule", "name": "tree"}]}
    assert set(form["rules"]) == {"number", "tree"}
    assert calls == ["number"]


def test_two_rules_of_one_name() -> None:
    def same() -> Any:
        return "b"

    one, other = g.rule(same), g.rule(lambda: "a")
    g.Grammar(one + one)
    with pytest.raises(g.GrammarError, match="two rules named 'same'"):
        g.Grammar(one, {"same": "a"})
    with pytest.raises(g.GrammarError, match="two rules named '<lambda>'"):
        g.Grammar(other + g.rule(lambda: "c"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: g.regex("("), "cannot be read"),
        (lambda: g.repeat("a", 3, 2), "3 to 2"),
        (lambda: g.repeat("a", 0, 0), "0 to 0"),
        (lambda: g.repeat("a", 20_000), "20000"),
        (lambda: g.seq(), "sequence of nothing"),
        (lambda: g.choice(), "choice of nothing"),
        (lambda: g.select("x", []), "nothing to select"),
        (lambda: g.gen("", "a"), "without a name"),
        (lambda: g.seq(re.compile("a", re.IGNORECASE)), "flags"),
        (lambda: g.any_text(stop=["a"] * 101), "up to 100 stops"),
        (lambda: g.gen("x", stop=["", "a"]), "1 to 200 characters"),
        (lambda: g.gen("x", max_chars=-1), "at most -1 characters"),
        (lambda: g.Grammar(""), "empty text only"),
        (lambda: g.Grammar(g.ref("x")), "not there at #/name"),
        (lambda: g.Grammar(g.ref("x"), {"x": "a" | g.ref("x") + "b"}), "begin with itself"),
        (lambda: g.Grammar(g.ref("x"), {"x": "a" + g.ref("x")}), "never ends"),
        (lambda: g.Grammar("a", {"x": "a"}), "nothing leads"),
        (lambda: g.Grammar("\ud800"), "surrogate"),
        (lambda: g.Grammar(nested(500)), "nested"),
        (lambda: g.Grammar.from_json("{"), "not valid JSON"),
        (lambda: g.Grammar.from_json({"type": "sequence", "items": ["a", {"type": "x"}]}), "at #/items/1/type"),
    ],
)
def test_what_no_server_would_take_is_refused_at_once(make: Any, words: str) -> None:
    with pytest.raises(g.GrammarError, match=re.escape(words)):
        make()


def nested(depth: int) -> g.Part:
    part = g.text("a")
    for _ in range(depth):
        part = g.gen("x", part)
    return part


@pytest.mark.parametrize(
    "make",
    [lambda: g.seq(5), lambda: g.seq(["a"]), lambda: g.gen("x", "a", regex="b"), lambda: g.select("x", [1])],
)
def test_what_is_no_part(make: Any) -> None:
    with pytest.raises(TypeError):
        make()


def test_json_alone_is_sent_as_a_schema_and_all_else_as_a_grammar() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True}}
    assert g.Grammar(g.json({"type": "null"})).response_format() == schema
    assert g.Grammar(int).extra_body() == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "int", "schema": {"type": "integer"}, "strict": True},
        }
    }
    assert g.Grammar("a").response_format() == {"type": "grammar", "grammar": {"type": "text", "text": "a"}}


class Answer(enum.Enum):
    YES = "yes"
    NO = 0


def test_options() -> None:
    assert g.Grammar(g.select("x", Answer)).parse("0")["x"] is Answer.NO
    assert g.Grammar(g.select("x", Literal["a", 1])).parse("1")["x"] == 1
    assert g.Grammar(g.select("x", ("a", "b"))).parse("b")["x"] == "b"


def test_needs_msgspec_alone() -> None:
    """In a process where nothing else can be imported."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("sapwood", "msgspec"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import dataclasses
from sapwood import grammar as g
@dataclasses.dataclass
class A:
    x: int
print(g.Grammar("a" + g.gen("x", A)).parse('a{"x":1}')["x"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("A(x=1)\n", "")
