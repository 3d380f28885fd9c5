"""Python types as schemas, and texts as their values."""

import dataclasses
import datetime
from typing import Any

import jsonschema
import msgspec
import pydantic
import pytest

from sapwood import grammar as g
from tests.sapwood.grammar import types_of_all_kinds as kinds


@pytest.mark.parametrize("name", kinds.TYPES)
def test_every_type_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(g.schema_of(kinds.TYPES[name]))


def test_a_class_is_an_object_of_its_fields_and_no_others() -> None:
    assert g.schema_of(kinds.Point) == {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "y": {"type": "number"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    models = g.schema_of(kinds.Person)
    assert models["$defs"]["Address"]["additionalProperties"] is False
    assert models["$defs"]["Address"]["required"] == ["street"]


def test_a_class_that_holds_itself_is_a_definition() -> None:
    schema = g.schema_of(kinds.Tree)
    assert schema["$ref"] == "#/$defs/Tree"
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    [first, other] = g.schema_of(kinds.TYPES["two generics"])["prefixItems"]
    assert first != other


def test_values() -> None:
    assert g.read('{"type":"square","sideLength":2}', kinds.TYPES["tagged"]) == kinds.Square(side_length=2)
    assert g.read('{"name":"a","children":[]}', kinds.Tree) == kinds.Tree("a", [])
    assert g.read('[{"street":"b"}]', list[kinds.Address]) == [kinds.Address(street="b")]
    assert g.read('{"lead":{"street":"b"},"size":1}', kinds.Team) == kinds.Team(kinds.Address(street="b"), 1)
    assert g.read("5", kinds.TYPES["bounded elsewhere"]) == 5


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"x":10}', kinds.Point),
        ('{"x":1', kinds.Point),
        ('{"street":5}', kinds.Address),
        ("9", kinds.TYPES["bounded elsewhere"]),
        ("", int),
    ],
)
def test_what_is_no_such_value(text: str, kind: Any) -> None:
    with pytest.raises(g.AnswerError, match="cannot be read"):
        g.read(text, kind)


class Strange:
    pass


@dataclasses.dataclass
class Lost:
    of: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class Mixed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    of: Strange


class Both(msgspec.Struct):
    of: kinds.Address


@pytest.mark.parametrize(
    "kind",
    [
        Strange,
        list[Strange],
        Lost,
        dict[bool, int],
        dict[datetime.date, int],
        dict[kinds.Point, int],
        Mixed,
        Both,
        complex,
    ],
)
def test_types_that_are_no_json(kind: Any) -> None:
    with pytest.raises(g.GrammarError, match="cannot have"):
        g.schema_of(kind)
