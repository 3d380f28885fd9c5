"""What the answer must match, in any of the spellings that clients use, as one `Constraint`. Pure.

    OpenAI    response_format: text, json_object, json_schema, structural_tag
    vLLM      structured_outputs: {json, json_object, regex, choice, grammar, structural_tag}, and guided_json,
              guided_regex, guided_choice, guided_grammar as older clients send them
    SGLang    json_schema, regex, ebnf, structural_tag
    Sapwood   response_format: grammar; lark, choice

A grammar is either text in one of two notations or, as an object, made of parts (`sapwood.grammar.form`).

Schemas travel as the JSON text that came: the order of their keys is the order of the answer's. Only their form is
looked at here; whether they can be enforced is for the tokenizer to say.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from services.gateway.openai_types import GenerationRequest
from shared.errors import InvalidRequest
from shared.grammar import MAX_SOURCE_BYTES
from shared.messages import Constraint

V = TypeVar("V")
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])
_flag = msgspec.json.Decoder(bool)
_object = msgspec.json.Decoder(dict[str, Raw])


class _StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's object. Answers are written without optional white space, which is what the switch asks for."""

    json: Raw = Raw()
    json_object: Raw = Raw()
    regex: Raw = Raw()
    choice: Raw = Raw()
    grammar: Raw = Raw()
    structural_tag: Raw = Raw()
    disable_any_whitespace: bool | None = None


_structured_outputs = msgspec.json.Decoder(_StructuredOutputs)


def constraint_of(request: GenerationRequest) -> Constraint | None:
    """The request's one constraint, if it has any. Raises InvalidRequest for two, naming both, and for a bad form."""
    found = list(_all(request))
    if len(found) > 1:
        raise InvalidRequest(
            f"'{found[1].param}' is not allowed beside '{found[0].param}': an answer can match one constraint.",
            param=found[1].param,
        )
    if not found:
        return None
    [constraint] = found
    if len(constraint.source.encode(errors="surrogatepass")) > MAX_SOURCE_BYTES:
        raise InvalidRequest(
            f"'{constraint.param}' is longer than {MAX_SOURCE_BYTES} bytes, which is more than can be compiled.",
            param=constraint.param,
        )
    if request.min_tokens:
        raise InvalidRequest(
            f"'min_tokens' is not allowed beside '{constraint.param}', which says where the answer ends.",
            param="min_tokens",
        )
    return constraint


def _all(request: GenerationRequest) -> Iterator[Constraint]:
    if _is_given(request.response_format):
        yield from _response_format(request.response_format)
    if _is_given(request.structured_outputs):
        yield from _structured(request.structured_outputs)
    for name, convert in _NAMES.items():
        value: Raw = getattr(request, name)
        if _is_given(value):
            yield convert(value, name)


def _response_format(raw: Raw) -> Iterator[Constraint]:
    fields = _decoded(_object, raw, "response_format", "an object")
    kind = _decoded(_text, fields.get("type", Raw(b"null")), "response_format.type", "a string")
    match kind:
        case "text":
            return
        case "json_object":
            yield Constraint(kind="json_object", source="", param="response_format")
        case "json_schema":
            yield _openai_schema(fields)
        case "structural_tag":
            yield Constraint(kind="structural_tag", source=bytes(raw).decode(), param="response_format")
        case "grammar":
            yield _given_grammar(fields)
        case _:
            raise InvalidRequest(
                "'response_format.type' must be text, json_object, json_schema, structural_tag or grammar, "
                f"got {kind[:50]!r}.",
                param="response_format.type",
            )


def _openai_schema(fields: dict[str, Raw]) -> Constraint:
    """{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}, "strict": ...}}. A schema is enforced
    whether it is called strict or not. SGLang's clients may call it `schema_`, by the name of the Python field."""
    path = "response_format.json_schema"
    if not _is_given(fields.get("json_schema", Raw())):
        raise InvalidRequest(f"'{path}' is required.", param=path, code="missing_required_parameter")
    inner = _decoded(_object, fields["json_schema"], path, "an object")
    if _is_given(inner.get("name", Raw())):
        _decoded(_text, inner["name"], f"{path}.name", "a string")
    if _is_given(inner.get("strict", Raw())):
        _decoded(_flag, inner["strict"], f"{path}.strict", "true or false")
    schema = next((inner[name] for name in ("schema", "schema_") if _is_given(inner.get(name, Raw()))), None)
    if schema is None:
        raise InvalidRequest(f"'{path}.schema' is required.", param=f"{path}.schema", code="missing_required_parameter")
    return _schema(schema, f"{path}.schema")


def _given_grammar(fields: dict[str, Raw]) -> Constraint:
    path = "response_format.grammar"
    if not _is_given(fields.get("grammar", Raw())):
        raise InvalidRequest(f"'{path}' is required.", param=path, code="missing_required_parameter")
    return _grammar(fields["grammar"], path)


def _structured(raw: Raw) -> Iterator[Constraint]:
    try:
        outputs = _structured_outputs.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"'structured_outputs' is not valid: {error}.", param="structured_outputs") from None
    for name, convert in _STRUCTURED_NAMES.items():
        value: Raw = getattr(outputs, name)
        if _is_given(value):
            path = f"structured_outputs.{name}"
            if convert is not None:
                yield convert(value, path)
            elif _decoded(_flag, value, path, "true or false"):
                yield Constraint(kind="json_object", source="", param=path)


def _schema(raw: Raw, path: str) -> Constraint:
    """A schema, or the text of one."""
    source = bytes(raw).decode()
    if source.startswith('"'):
        source = _decoded(_text, raw, path, "a JSON Schema")
    elif source[:1] not in ("{", "t", "f"):
        raise InvalidRequest(f"'{path}' must be a JSON Schema: an object or a boolean.", param=path)
    return Constraint(kind="json_schema", source=source, param=path)


def _structural_tag(raw: Raw, path: str) -> Constraint:
    source = bytes(raw).decode()
    if source.startswith('"'):
        source = _decoded(_text, raw, path, "a structural tag")
    return Constraint(kind="structural_tag", source=source, param=path)


def _choice(raw: Raw, path: str) -> Constraint:
    choices = _decoded(_texts, raw, path, "a list of strings")
    if not choices:
        raise InvalidRequest(f"'{path}' must have at least one choice.", param=path)
    return Constraint(kind="choice", source=bytes(raw).decode(), param=path)


def _of_text(kind: str) -> Callable[[Raw, str], Constraint]:
    def convert(raw: Raw, path: str) -> Constraint:
        source = _decoded(_text, raw, path, "a string")
        if not source:
            raise InvalidRequest(f"'{path}' must not be empty.", param=path)
        return Constraint(kind=kind, source=source, param=path)

    return convert


def _grammar(raw: Raw, path: str) -> Constraint:
    """vLLM takes both notations under one name; only one of them defines rules with `::=`."""
    if bytes(raw).startswith(b"{"):
        return Constraint(kind="grammar", source=bytes(raw).decode(), param=path)
    source = _decoded(_text, raw, path, "a string or an object")
    return _of_text("ebnf" if "::=" in source else "lark")(raw, path)


_NAMES: dict[str, Callable[[Raw, str], Constraint]] = {
    "guided_json": _schema,
    "guided_regex": _of_text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _schema,
    "regex": _of_text("regex"),
    "ebnf": _of_text("ebnf"),
    "lark": _of_text("lark"),
    "choice": _choice,
    "structural_tag": _structural_tag,
}
_STRUCTURED_NAMES: dict[str, Callable[[Raw, str], Constraint] | None] = {
    "json": _schema,
    "json_object": None,
    "regex": _of_text("regex"),
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}


def _is_given(raw: Raw) -> bool:
    return bytes(raw) not in (b"", b"null")


def _decoded(decoder: msgspec.json.Decoder[V], raw: Raw, path: str, words: str) -> V:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(f"'{path}' must be {words}.", param=path) from None
