"""Python types as users write them."""

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar, Union

import annotated_types
import msgspec
import pydantic
import typing_extensions

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: Annotated[int, msgspec.Meta(ge=0, le=9)]
    y: float = 0.0


@dataclasses.dataclass
class Tree:
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=5)]
    children: Annotated[list["Tree"], msgspec.Meta(max_length=2)]


class Circle(msgspec.Struct, tag=True):
    radius: Annotated[float, msgspec.Meta(gt=0)]


class Square(msgspec.Struct, tag="square", rename="camel"):
    side_length: int


class Row(msgspec.Struct, array_like=True):
    id: int
    label: str | None = None


class Page(msgspec.Struct, Generic[T]):
    items: list[T]
    next: Union["Page[T]", None] = None


class Options(TypedDict):
    verbose: bool
    color: NotRequired[Color]


class Pair(NamedTuple):
    a: int
    b: str = "x"


@dataclasses.dataclass
class Moment:
    at: datetime.datetime
    day: datetime.date
    time: datetime.time
    lasted: datetime.timedelta
    id: uuid.UUID
    price: decimal.Decimal
    data: bytes


class Address(pydantic.BaseModel):
    street: Annotated[str, pydantic.Field(max_length=10)]
    kind: Literal["home", "work"] = "home"


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(pattern="^[A-Z][a-z]+$")
    age: int = pydantic.Field(ge=0, lt=150)
    addresses: list[Address] = pydantic.Field(max_length=2)
    boss: Optional["Person"] = None
    color: Color
    born: datetime.date
    took: datetime.timedelta


@dataclasses.dataclass
class Team:
    lead: Address
    size: int


class Wide(typing_extensions.TypedDict):
    n: Annotated[int, annotated_types.Interval(ge=3, le=5)]


TYPES: dict[str, Any] = {
    "int": int,
    "bounded": Annotated[int, msgspec.Meta(ge=3, lt=8)],
    "bounded elsewhere": Annotated[int, annotated_types.Ge(3), annotated_types.Lt(8)],
    "float": float,
    "bool": bool,
    "str": Annotated[str, msgspec.Meta(pattern="^[a-z]{2,3}$")],
    "none": None,
    "any": Any,
    "enum": Color,
    "int enum": Level,
    "literal": Literal["a", 1, None],
    "optional": int | None,
    "union": int | str | None,
    "list": list[int],
    "bounded list": Annotated[list[bool], msgspec.Meta(min_length=1, max_length=2)],
    "tuple": tuple[int, str],
    "row": tuple[int, ...],
    "set": set[Color],
    "dict": dict[str, int],
    "dict of ints": dict[int, bool],
    "dict of enums": dict[Color, int],
    "dataclass": Point,
    "tree": Tree,
    "tagged": Circle | Square,
    "renamed": Square,
    "array": Row,
    "generic": Page[Point],
    "two generics": tuple[Page[int], Page[str]],
    "typed dict": Options,
    "named tuple": Pair,
    "moment": Moment,
    "model": Person,
    "models": list[Address | Person],
    "dataclass of models": Team,
    "typed dict elsewhere": Wide,
}
