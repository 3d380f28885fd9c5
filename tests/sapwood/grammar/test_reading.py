"""What is read from answers."""

import dataclasses
import random
import time
from typing import Any

import pytest

from sapwood import grammar as g
from tests.sapwood.grammar.random_grammars import Draw


@dataclasses.dataclass
class Point:
    x: int
    y: int


def captured(part: Any, text: str) -> Any:
    return plain(g.Grammar(part).parse(text))


def plain(value: Any) -> Any:
    if isinstance(value, g.Match):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_texts_values_and_options() -> None:
    part = (
        "Name: "
        + g.gen("name", stop="\n")
        + "\nAge: "
        + g.gen("age", int)
        + ", at "
        + g.gen("place", Point)
        + g.select("end", [".", "!"])
    )
    match = g.Grammar(part).parse('Name: Ada L.\nAge: 36, at {"x": 1, "y": -2}!')
    assert dict(match) == {"name": "Ada L.", "age": 36, "place": Point(1, -2), "end": "!"}
    assert list(match) == ["name", "age", "place", "end"]
    assert match.text == match.value == 'Name: Ada L.\nAge: 36, at {"x": 1, "y": -2}!'


def test_what_repeats_is_a_list_and_captures_in_captures_are_records() -> None:
    line = g.gen("line", "- " + g.gen("key", regex="[a-z]+") + g.optional("=" + g.gen("value", stop="\n")))
    part = g.repeat(line, separator="\n")
    assert captured(part, "- a=1\n- b\n- c=") == {
        "line": [{"key": "a", "value": "1"}, {"key": "b"}, {"key": "c", "value": ""}]
    }
    assert captured(part, "") == {"line": []}
    assert g.Grammar(part).parse("- a=1")["line"][0].text == "- a=1"


def test_a_branch_that_was_not_taken_is_not_there() -> None:
    part = "x" + (g.gen("number", regex="[0-9]+") | g.gen("word", regex="[a-z]+"))
    assert captured(part, "x12") == {"number": "12"}
    assert captured(part, "xab") == {"word": "ab"}


def test_one_name_in_two_branches_is_one_and_twice_in_a_row_a_list() -> None:
    assert captured("a" + g.gen("x", regex=".") | "b" + g.gen("x", regex=".."), "b12") == {"x": "12"}
    assert captured(g.gen("x", regex="[0-9]") + g.gen("x", regex="[a-z]"), "1a") == {"x": ["1", "a"]}


def test_rules_that_contain_themselves_make_trees() -> None:
    @g.rule
    def tree() -> Any:
        return g.gen("leaf", regex="[0-9]+") | g.gen("node", "(" + g.repeat(tree, 1, separator=" ") + ")")

    assert captured(tree, "(1 (2 3))") == {"node": {"leaf": ["1"], "node": [{"leaf": ["2", "3"], "node": []}]}}


def test_branches_of_json_are_told_apart_by_their_values() -> None:
    part = g.gen("a", g.json({"type": "integer"})) | g.gen("b", g.json({"type": "string"})) | g.gen("c", Point)
    assert captured(part, "12") == {"a": 12}
    assert captured(part, '"12"') == {"b": "12"}
    assert captured(part, '{"x": 1, "y": 2}') == {"c": Point(1, 2)}


def test_digits_behind_a_number() -> None:
    assert captured(g.gen("a", int) + g.gen("b", regex="[0-9]"), "123") == {"a": 12, "b": "3"}
    assert captured(g.gen("a", float) + "." + g.gen("b", regex="[a-z]"), "1.5.x") == {"a": 1.5, "b": "x"}


def test_the_value_of_a_type_alone() -> None:
    assert g.Grammar(Point).parse('{"x":1,"y":2}').value == Point(1, 2)
    assert g.Grammar(g.json({"type": "array"})).parse("[1, 2]").value == [1, 2]


def test_texts_to_the_left_are_long_and_repeats_are_few() -> None:
    assert captured(g.gen("a", regex="x*") + g.gen("b", regex="x*"), "xxx") == {"a": "xxx", "b": ""}
    assert captured(g.repeat(g.gen("a", regex="x+")), "xxx") == {"a": ["xxx"]}
    assert captured(g.repeat(g.gen("a", regex="x+"), 2), "xxx") == {"a": ["xx", "x"]}
    assert captured(g.gen("a", "xy" | g.text("x")) + g.optional("y"), "xy") == {"a": "xy"}


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("Name: ", 6, "too early"),
        ("Name: A", 7, "too early"),
        ("Nome: A", 1, "from character 1 on: 'ome: A'"),
        ("Name: A, 7", 10, "too early"),
        ("Name: A, x", 9, "'x'"),
        ("Name: A, 7.!", 11, "'!'"),
    ],
)
def test_answers_that_do_not_match_say_from_where_on(text: str, at: int, words: str) -> None:
    grammar = g.Grammar("Name: " + g.gen("name", regex="[A-Z]+") + ", " + g.gen("n", int) + ".")
    with pytest.raises(g.AnswerError, match=words) as refused:
        grammar.parse(text)
    assert refused.value.at == at


def test_depth_is_no_matter() -> None:
    @g.rule
    def deep() -> Any:
        return "x" | g.gen("inside", "(" + deep + ")")

    match = g.Grammar(deep).parse("(" * 5000 + "x" + ")" * 5000)
    assert len(match["inside"].text) == 10_001


def test_long_answers_are_read_in_no_time() -> None:
    line = "- " + g.gen("name", stop="\n") + "\n"
    lines = g.Grammar(g.repeat(line) + g.gen("rest"))
    text = "".join(f"- {'word ' * 10}{n}\n" for n in range(500)) + "and so on " * 100
    start = time.monotonic()
    assert len(lines.parse(text)["name"]) == 500
    assert time.monotonic() - start < 5
    ambiguous = g.Grammar(g.repeat(g.repeat("a" | g.text("aa")) + g.optional("b")))
    with pytest.raises(g.AnswerError):
        ambiguous.parse("a" * 200 + "c")
    assert time.monotonic() - start < 10


def test_all_that_is_drawn_is_read_whole() -> None:
    for seed in range(500):
        draw = Draw(random.Random(seed))
        grammar = draw.grammar()
        text = draw.match(grammar.to_json()) if grammar is not None else None
        if grammar is not None and text is not None:
            assert grammar.parse(text).text == text
