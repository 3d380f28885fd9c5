"""Python types as JSON Schemas of what is to be written, and JSON texts as values of the types.

The schema allows what can be read as the type and no more: no fields beside those of a class, dates that are dates,
base64 that is base64. Types with a pydantic model, or pydantic's annotations, in them are pydantic's to describe and to
read; all others msgspec's, which needs no package beside it.
"""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as mi

from sapwood.grammar.errors import AnswerError, GrammarError

T = TypeVar("T")
Schema = dict[str, Any]

DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
DURATION = r"^-?P[0-9]{1,6}D(T[0-9]{1,2}H[0-9]{1,2}M[0-9]{1,2}S)?$"
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
NUMBER = r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$"


def schema_of(python_type: Any) -> Schema:
    """Raises GrammarError for a type that neither msgspec nor pydantic knows."""
    if _is_pydantic(python_type):
        return _closed(_pydantic_schema(python_type))
    try:
        [info] = mi.multi_type_info([python_type])
    except TypeError as error:
        raise GrammarError(f"cannot have the type {python_type!r:.200}: {error}") from None
    return _Schemas().whole(info)


def read(text: str, python_type: type[T]) -> T:
    """The value that a JSON text stands for. python_type: a type, or an expression that stands for one. Raises
    AnswerError for a text that is no such value."""
    try:
        if _is_pydantic(python_type):
            return _adapter(python_type).validate_json(text)  # type: ignore[no-any-return]
        return msgspec.json.decode(text, type=python_type)
    except (msgspec.DecodeError, ValueError) as error:  # pydantic's is a ValueError
        raise AnswerError(f"the answer cannot be read as {python_type!r:.200}: {error}") from None


def _is_pydantic(python_type: Any) -> bool:
    return any(_comes_from_pydantic(one) for one in _inside(python_type))


def _comes_from_pydantic(one: Any) -> bool:
    if isinstance(one, type):
        return hasattr(one, "__pydantic_core_schema__") or hasattr(one, "__get_pydantic_core_schema__")
    return type(one).__module__.split(".")[0] in ("pydantic", "annotated_types")


def _inside(python_type: Any) -> Iterator[Any]:
    """A type with all that it is made of, annotations and the types of fields included."""
    seen: list[Any] = []
    stack = [python_type]
    while stack:
        one = stack.pop()
        if any(one is known for known in seen):
            continue
        seen.append(one)
        yield one
        if typing.get_origin(one) is not None:
            arguments = () if typing.get_origin(one) is typing.Literal else typing.get_args(one)
            stack += [typing.get_origin(one), *arguments, *getattr(one, "__metadata__", ())]
        elif _has_fields(one):
            stack += _hints(one).values()


def _has_fields(one: Any) -> bool:
    if not isinstance(one, type) or _comes_from_pydantic(one):
        return False
    is_named_tuple = issubclass(one, tuple) and hasattr(one, "_fields")
    return (
        dataclasses.is_dataclass(one) or issubclass(one, msgspec.Struct) or typing.is_typeddict(one) or is_named_tuple
    )


def _hints(one: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(one, include_extras=True)
    except NameError as error:
        raise GrammarError(f"cannot have the type {one!r:.200}: {error}") from None


def _adapter(python_type: Any) -> Any:
    try:
        import pydantic
    except ImportError as error:  # annotations alone may come from a package without it
        raise GrammarError(f"cannot have the type {python_type!r:.200} without pydantic: {error}") from None
    try:
        return pydantic.TypeAdapter(python_type)
    except pydantic.errors.PydanticSchemaGenerationError as error:
        reason = error.message.splitlines()[0]
        raise GrammarError(f"cannot have the type {python_type!r:.200}: {reason}") from None


def _pydantic_schema(python_type: Any) -> Schema:
    import pydantic

    try:
        return typing.cast(Schema, _adapter(python_type).json_schema())
    except pydantic.errors.PydanticInvalidForJsonSchema as error:
        reason = error.message.splitlines()[0]
        raise GrammarError(f"cannot have the type {python_type!r:.200}: {reason}") from None


def _closed(schema: Schema) -> Schema:
    """A schema of pydantic's without room for what nobody reads, and with the forms of what it reads."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(one) for one in value]
        if not isinstance(value, dict):
            return value
        out = {
            key: inner if key in ("default", "const", "enum", "examples") else walk(inner)
            for key, inner in value.items()
        }
        if value.get("type") == "object" and isinstance(value.get("properties"), dict):
            out["properties"] = {name: walk(inner) for name, inner in value["properties"].items()}
            out.setdefault("additionalProperties", False)
        match value:
            case {"type": "string", "format": "duration"}:
                del out["format"]
                out["pattern"] = DURATION
            case {"type": "string", "format": "binary" | "base64url"}:
                raise GrammarError("cannot have bytes in a pydantic model")
        return out

    return typing.cast(Schema, walk(schema))


class _Schemas:
    """Schemas of msgspec's descriptions of types; classes that hold themselves as definitions."""

    def __init__(self) -> None:
        self._definitions: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}
        self._open: list[Any] = []
        self._recursive: set[Any] = set()

    def whole(self, info: mi.Type) -> Schema:
        root = self._of(info)
        return {**root, "$defs": self._definitions} if self._definitions else root

    def _of(self, info: mi.Type) -> Schema:
        match info:
            case mi.AnyType() | mi.RawType():
                return {}
            case mi.NoneType():
                return {"type": "null"}
            case mi.BoolType():
                return {"type": "boolean"}
            case mi.IntType():
                return {"type": "integer", **_range(info)}
            case mi.FloatType():
                return {"type": "number", **_range(info)}
            case mi.StrType(min_length=least, max_length=most, pattern=pattern):
                return {"type": "string", **_given(minLength=least, maxLength=most, pattern=pattern)}
            case mi.BytesType() | mi.ByteArrayType() | mi.MemoryViewType():
                if info.min_length is not None or info.max_length is not None:
                    raise GrammarError("cannot have bytes of a bounded length")
                return {"type": "string", "contentEncoding": "base64", "pattern": BASE64}
            case mi.DateTimeType():
                return {"type": "string", "format": "date-time"}
            case mi.TimeType():
                return {"type": "string", "format": "time"}
            case mi.DateType():
                return {"type": "string", "format": "date"}
            case mi.TimeDeltaType():
                return {"type": "string", "pattern": DURATION}
            case mi.UUIDType():
                return {"type": "string", "format": "uuid"}
            case mi.DecimalType():
                return {"type": "string", "pattern": DECIMAL}
            case mi.EnumType(cls=cls):
                return {"enum": [member.value for member in cls]}
            case mi.LiteralType(values=values):
                return {"enum": list(values)}
            case mi.UnionType(types=types):
                return {"anyOf": [self._of(one) for one in types]}
            case mi.Metadata(type=inner, extra_json_schema=extra):
                return {**self._of(inner), **(extra or {})}
            case mi.TupleType(item_types=items):
                bounds = {"minItems": len(items), "maxItems": len(items)}
                return {"type": "array", "prefixItems": [self._of(one) for one in items], "items": False, **bounds}
            case mi.SetType() | mi.FrozenSetType():
                return self._array(info) | {"uniqueItems": True}
            case mi.ListType() | mi.CollectionType() | mi.VarTupleType():
                return self._array(info)
            case mi.DictType():
                return self._dict(info)
            case mi.TypedDictType() | mi.DataclassType() | mi.StructType() | mi.NamedTupleType():
                return self._class(info)
        raise GrammarError(f"cannot have a type that only {type(info).__name__} describes")

    def _array(self, info: Any) -> Schema:
        bounds = _given(minItems=info.min_length, maxItems=info.max_length)
        return {"type": "array", "items": self._of(info.item_type), **bounds}

    def _dict(self, info: mi.DictType) -> Schema:
        bounds = _given(minProperties=info.min_length, maxProperties=info.max_length)
        keys = self._key(info.key_type)
        names = {"propertyNames": keys} if keys.keys() - {"type"} else {}
        return {"type": "object", "additionalProperties": self._of(info.value_type), **names, **bounds}

    def _key(self, info: mi.Type) -> Schema:
        """A type as the key of an object, which is a string whatever it stands for."""
        match info:
            case mi.AnyType():
                return {"type": "string"}
            case mi.IntType():
                return {"type": "string", "pattern": INTEGER}
            case mi.FloatType():
                return {"type": "string", "pattern": NUMBER}
            case mi.EnumType() | mi.LiteralType():
                return {"enum": [str(value) for value in self._of(info)["enum"]]}
            case mi.StrType():
                return self._of(info)
        raise GrammarError("cannot have dictionaries whose keys are no strings, numbers, enums or Literals")

    def _class(self, info: Any) -> Schema:
        key = (info.cls, repr(info)) if getattr(info.cls, "__parameters__", ()) else info.cls
        if key in self._names or key in self._open:
            self._recursive.add(key)
            return {"$ref": f"#/$defs/{self._name(key, info.cls)}"}
        self._open.append(key)
        schema = self._named_tuple(info) if isinstance(info, mi.NamedTupleType) else self._object(info)
        self._open.pop()
        if key not in self._recursive:
            return schema
        self._definitions[self._name(key, info.cls)] = schema
        return {"$ref": f"#/$defs/{self._name(key, info.cls)}"}

    def _name(self, key: Any, cls: type) -> str:
        if key not in self._names:
            taken = set(self._names.values())
            names = (cls.__name__, *(f"{cls.__name__}_{number}" for number in range(2, len(taken) + 3)))
            self._names[key] = next(name for name in names if name not in taken)
        return self._names[key]

    def _object(self, info: Any) -> Schema:
        tag = {}
        if isinstance(info, mi.StructType):
            if info.array_like:
                return self._array_like(info)
            if info.tag_field is not None:
                tag = {info.tag_field: {"const": info.tag}}
        fields = {field.encode_name: self._of(field.type) for field in info.fields}
        return {
            "type": "object",
            "properties": {**tag, **fields},
            "required": [*tag, *(field.encode_name for field in info.fields if field.required)],
            "additionalProperties": False,
        }

    def _array_like(self, info: mi.StructType) -> Schema:
        tag = [] if info.tag_field is None else [{"const": info.tag}]
        return self._row([*tag, *(self._of(field.type) for field in info.fields)], info.fields, len(tag))

    def _named_tuple(self, info: mi.NamedTupleType) -> Schema:
        return self._row([self._of(field.type) for field in info.fields], info.fields, 0)

    @staticmethod
    def _row(items: list[Schema], fields: typing.Sequence[mi.Field], before: int) -> Schema:
        least = before + sum(field.required for field in fields)
        return {"type": "array", "prefixItems": items, "items": False, "minItems": least, "maxItems": len(items)}


def _range(info: mi.IntType | mi.FloatType) -> Schema:
    return _given(
        minimum=info.ge,
        exclusiveMinimum=info.gt,
        maximum=info.le,
        exclusiveMaximum=info.lt,
        multipleOf=info.multiple_of,
    )


def _given(**keywords: Any) -> Schema:
    return {name: value for name, value in keywords.items() if value is not None}
