"""The parts that grammars are made of, as values: they are compared, combined with `+` and `|`, and never change."""

import enum
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from msgspec import Meta, Struct

from sapwood.grammar.dialect import compiled
from sapwood.grammar.errors import GrammarError
from sapwood.grammar.python_types import schema_of

MAX_REPEAT = 10_000
MAX_STOPS = 100
MAX_STOP = 200
"""Characters of a stop."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Part(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all parts. `a + b` is one after the other, `a | b` one of the two; `+` binds tighter. A string beside a
    part stands for its text, a type for JSON of it."""

    def __add__(self, other: Any) -> "Part":
        return seq(self, other)

    def __radd__(self, other: Any) -> "Part":
        return seq(other, self)

    def __or__(self, other: Any) -> "Part":
        return choice(self, other)

    def __ror__(self, other: Any) -> "Part":
        return choice(other, self)


class Text(Part, frozen=True, tag="text"):
    """This text."""

    text: str


class Regex(Part, frozen=True, tag="regex"):
    """A text that the whole expression matches, in what ECMAScript and Python have in common; anchors at the ends mean
    nothing."""

    pattern: str


class Json(Part, frozen=True, tag="json"):
    """A JSON value that the schema allows, in the white space that servers write."""

    schema: dict[str, Any] | bool = True


class AnyText(Part, frozen=True, tag="any_text"):
    """Any text in which none of `excludes` is. max_chars None: no bound but that of the answer."""

    excludes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_STOP)], ...], Meta(max_length=MAX_STOPS)
    ] = ()
    max_chars: Annotated[int, Meta(ge=1)] | None = None


class Sequence(Part, frozen=True, tag="sequence"):
    """One after another."""

    items: Annotated[tuple["AnyPart", ...], Meta(min_length=1)]


class Choice(Part, frozen=True, tag="choice"):
    """One of them."""

    items: Annotated[tuple["AnyPart", ...], Meta(min_length=1)]


class Repeat(Part, frozen=True, tag="repeat"):
    """max None: without bound. separator: between two items."""

    item: "AnyPart"
    min: Annotated[int, Meta(ge=0, le=MAX_REPEAT)] = 0
    max: Annotated[int, Meta(ge=1, le=MAX_REPEAT)] | None = None
    separator: Union["AnyPart", None] = None


class Capture(Part, frozen=True, tag="capture"):
    """An item whose text is wanted by this name."""

    name: Name
    item: "AnyPart"


class Ref(Part, frozen=True, tag="rule"):
    """What the rule of this name says."""

    name: Name


PART_TYPES = (Text, Regex, Json, AnyText, Sequence, Choice, Repeat, Capture, Ref)
"""Those of the JSON form."""

if TYPE_CHECKING:
    AnyPart: TypeAlias = Part | str
else:
    AnyPart = Union[(*PART_TYPES, str)]
    """A part of the JSON form; a string is a text."""


class Typed(Json, frozen=True, tag="json"):
    """JSON of a Python type, which is made of what is read."""

    python_type: Any = None


class Selected(Choice, frozen=True, tag="choice"):
    """One of some texts, each of which stands for a value."""

    values: Mapping[str, Any] = {}


class Rule(Ref, frozen=True, tag="rule"):
    """A reference that knows what its rule says: `make()`, called when a grammar is made of it."""

    make: Callable[[], Any] = str


def children(part: Part) -> list[tuple[str, Part]]:
    """The parts in a part, each with the step that leads to it in a JSON pointer."""
    match part:
        case Sequence(items=items) | Choice(items=items):
            return [(f"/items/{place}", _whole(item)) for place, item in enumerate(items)]
        case Repeat(item=item, separator=separator):
            between = [] if separator is None else [("/separator", _whole(separator))]
            return [("/item", _whole(item)), *between]
        case Capture(item=item):
            return [("/item", _whole(item))]
    return []


def _whole(part: AnyPart) -> Part:
    return Text(part) if isinstance(part, str) else part


def as_part(value: Any) -> Part:
    """What stands for a part as one: a string for its text, a compiled expression, a type for JSON of it."""
    match value:
        case Part():
            return value
        case str():
            return Text(value)
        case re.Pattern(pattern=str(pattern), flags=flags):
            if flags & ~re.UNICODE:
                raise GrammarError(f"cannot have the expression {pattern[:80]!r}: flags are not supported")
            return regex(pattern)
    if _is_type(value):
        return json(value)
    raise TypeError(f"{value!r:.100} is no part of a grammar: give a part, a string, a compiled expression or a type")


def _is_type(value: Any) -> bool:
    return (
        value is None
        or value is Any
        or isinstance(value, type | types.UnionType)
        or typing.get_origin(value) is not None
    )


def text(value: str) -> Part:
    """Exactly this text."""
    return Text(value)


def regex(pattern: str) -> Part:
    """A text that the whole expression matches. Raises GrammarError."""
    compiled(pattern)
    return Regex(pattern)


def json(of: Any = True) -> Part:
    """A JSON value: of a Python type (a dataclass, msgspec struct, TypedDict, pydantic model, enum, Literal, `int |
    None`, `list[int]`, ...), or by a JSON Schema; `json()` any."""
    if isinstance(of, bool):
        return Json(of)
    if isinstance(of, Mapping):
        return Json(dict(of))
    return Typed(schema_of(of), of)


def any_text(*, stop: str | Iterable[str] = (), max_chars: int | None = None) -> Part:
    """Any text, up to where one of `stop` begins, if given: say with what follows that it must."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS or not all(1 <= len(one) <= MAX_STOP for one in stops):
        raise GrammarError(f"can have up to {MAX_STOPS} stops, of 1 to {MAX_STOP} characters each")
    if max_chars is not None and max_chars < 1:
        raise GrammarError(f"cannot have a text of at most {max_chars} characters")
    return AnyText(stops, max_chars)


def seq(*items: Any) -> Part:
    """One after another; what is a sequence already becomes part of this one."""
    return _several(Sequence, items)


def choice(*items: Any) -> Part:
    """One of the items."""
    return _several(Choice, items)


def _several(kind: type[Sequence] | type[Choice], items: Iterable[Any]) -> Part:
    flat: list[Part] = []
    for part in map(as_part, items):
        flat += map(_whole, part.items) if type(part) is kind else [part]
    if not flat:
        raise GrammarError(f"has a {kind.__name__.lower()} of nothing")
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def repeat(item: Any, min: int = 0, max: int | None = None, *, separator: Any = None) -> Part:
    """The item `min` to `max` times; max None: without bound."""
    most = MAX_REPEAT if max is None else max
    if not 0 <= min <= most or not 1 <= most <= MAX_REPEAT:
        raise GrammarError(f"cannot repeat something {min} to {max} times: 0 <= min <= max <= {MAX_REPEAT}, 1 <= max")
    return Repeat(as_part(item), min, max, None if separator is None else as_part(separator))


def optional(item: Any) -> Part:
    """The item or nothing."""
    return repeat(item, 0, 1)


def select(name: str, options: Any) -> Part:
    """A capture of one of some texts: a list, an enum (its values as text; members are what is read), a Literal."""
    if typing.get_origin(options) is typing.Literal:
        values: dict[str, Any] = {str(option): option for option in typing.get_args(options)}
    elif isinstance(options, type) and issubclass(options, enum.Enum):
        values = {str(member.value): member for member in options}
    else:
        values = {option: option for option in options}
        if not all(isinstance(option, str) for option in values):
            raise TypeError("options must be strings, an enum or a Literal")
    if not values:
        raise GrammarError(f"has nothing to select from for {name!r}")
    return gen(name, Selected(tuple(map(Text, values)), values))


def gen(
    name: str,
    item: Any = None,
    *,
    regex: str | None = None,
    stop: str | Iterable[str] = (),
    max_chars: int | None = None,
) -> Part:
    """A capture: what the model writes here is to be had by this name. item: a part, or what stands for one; or else
    text that matches `regex`; or else any text up to where one of `stop` begins, of at most max_chars characters."""
    if not name:
        raise GrammarError("has a capture without a name")
    if (item is not None) + (regex is not None) + bool(stop or max_chars) > 1:
        raise TypeError("gen takes one of: an item, regex, stop and max_chars")
    if regex is not None:
        item = globals()["regex"](regex)
    elif item is None:
        item = any_text(stop=stop, max_chars=max_chars)
    return Capture(name, as_part(item))


def ref(name: str) -> Part:
    """A reference to a rule that `Grammar` is given by name."""
    return Ref(name)


def rule(make: Callable[[], Any]) -> Part:
    """Decorates a function whose result is a rule of the function's name. In it the name stands for the rule itself, so
    that rules can contain themselves; a function that has the wanted name and takes nothing will do."""
    return Rule(make.__name__, make)
