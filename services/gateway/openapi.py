"""/openapi.json: what this gateway serves as OpenAPI 3.1, made from the types that requests are decoded with."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from aiohttp import web
from msgspec import Meta, Raw, Struct

from sapwood.grammar.parts import PART_TYPES, AnyPart
from services.gateway import answers
from services.gateway.admin import Accepted, LoadReport, ProfileRequest
from services.gateway.deadline import LONGEST_S
from services.gateway.event_id import EVENT_ID
from services.gateway.openai_types import ChatRequest, CompletionRequest
from services.gateway.replies import json_response

Object = dict[str, Any]
JSON, SSE, TEXT = "application/json", "text/event-stream", "text/plain"


_REFERENCES = "#/components/schemas/{name}"
_GRAMMAR_KINDS: list[Object] = [
    {"type": ["string", "null"]},
    *({"$ref": _REFERENCES.format(name=kind.__name__)} for kind in PART_TYPES),
    {"$ref": _REFERENCES.format(name="GrammarWithRules")},
]


class TextPart(Struct, kw_only=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(Struct, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str


Content: TypeAlias = str | list[str | TextPart | RefusalPart]


class SystemMessage(Struct, kw_only=True, tag_field="role", tag="system"):
    """Other fields of a message go to the model's chat template as they are."""

    content: Content


class DeveloperMessage(Struct, kw_only=True, tag_field="role", tag="developer"):
    """The newer name of a system message."""

    content: Content


class UserMessage(Struct, kw_only=True, tag_field="role", tag="user"):
    content: Content


class CalledFunction(Struct, kw_only=True):
    """arguments: an object, or its JSON as text."""

    name: str
    arguments: str | Object | None = None


class ToolCall(Struct, kw_only=True):
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class AssistantMessage(Struct, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Struct, kw_only=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: str | None = None


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class ErrorDetail(Struct, kw_only=True):
    """param: the request's field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct, kw_only=True):
    """Every refusal and failure; in a stream that has begun, an event."""

    error: ErrorDetail


class Usage(Struct, kw_only=True):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int] | None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: Object
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None


class ChatCompletion(Struct, kw_only=True):
    """A chat's answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class TextCompletion(Struct, kw_only=True):
    """A prompt's continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(Struct, kw_only=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None


class ModelList(Struct, kw_only=True):
    object: Literal["list"]
    data: list[Model]


class Deleted(Struct, kw_only=True):
    deleted: Literal[True]


class Health(Struct, kw_only=True):
    status: Literal["ok"]


class Readiness(Struct, kw_only=True):
    """degraded: requests are taken, but not all is well. reasons: what is amiss."""

    status: Literal["ready", "degraded", "not ready"]
    reasons: list[str]


class JsonSchemaFormat(Struct, kw_only=True):
    """A schema is enforced whether it is called strict or not."""

    schema: Object | bool | str
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class GrammarWithRules(Struct, kw_only=True):
    """A grammar whose parts refer to rules."""

    root: AnyPart
    rules: dict[str, AnyPart] = {}


class ResponseFormat(Struct, kw_only=True):
    """What the answer must match. A grammar is EBNF or Lark as text, or made of parts."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "grammar"]
    json_schema: JsonSchemaFormat | None = None
    grammar: Annotated[Any, Meta(extra_json_schema={"anyOf": _GRAMMAR_KINDS})] = None
    format: Object | None = None
    structures: list[Object] | None = None
    triggers: list[str] | None = None


_CHOICES = Annotated[list[str], Meta(min_length=1)]
_TEXT = Annotated[str, Meta(min_length=1)]
_SCHEMA = Object | str
_SAID_ELSEWHERE: Mapping[str, Any] = {
    # what the decoders leave as it came, for others to look at
    "messages": Annotated[list[Message], Meta(min_length=1)],
    "logit_bias": Annotated[
        dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None,
        Meta(extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
    ],
    "response_format": ResponseFormat | None,
    "structured_outputs": Object | None,
    "guided_json": _SCHEMA | None,
    "guided_regex": _TEXT | None,
    "guided_choice": _CHOICES | None,
    "guided_grammar": _TEXT | None,
    "json_schema": _SCHEMA | None,
    "regex": _TEXT | None,
    "ebnf": _TEXT | None,
    "lark": _TEXT | None,
    "choice": _CHOICES | None,
    "structural_tag": _SCHEMA | None,
}


@dataclass(frozen=True, slots=True)
class Header:
    """A header that requests may have."""

    name: str
    description: str
    schema: Mapping[str, Any]


_REQUEST_ID = Header("X-Request-Id", "comes back with the answer", {"type": "string"})
_TRACEPARENT = Header("traceparent", "W3C trace context", {"type": "string"})
_LAST_EVENT = Header(
    "Last-Event-ID",
    "the last event that the client has of the stream; empty: none",
    {"type": "string", "pattern": f"^({EVENT_ID})?$"},
)
_TIMEOUT = Header(
    "X-Request-Timeout",
    "seconds for the whole answer",
    {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_S},
)
_IDEMPOTENCY = Header(
    "Idempotency-Key",
    "the same request with the same key gets the same answer, which is made once",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)
_COMPLETION_HEADERS = (_IDEMPOTENCY, _LAST_EVENT, _TIMEOUT, _REQUEST_ID, _TRACEPARENT)


class AnyOf:
    """A body of one of several types."""

    def __init__(self, *kinds: type[Struct]) -> None:
        self.kinds = kinds


@dataclass(frozen=True, slots=True)
class Operation:
    """answers: status -> content type -> type of the body, None for one without a schema."""

    method: str
    path: str
    summary: str
    answers: Mapping[int, Mapping[str, Any]]
    request: type[Struct] | None = None
    headers: Sequence[Header] = (_REQUEST_ID,)
    failures: Sequence[int] = ()
    is_open: bool = False


_COMPLETION_FAILURES = (400, 404, 408, 413, 422, 429, 500, 503, 504)
OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        {200: {JSON: ChatCompletion, SSE: None}},
        ChatRequest,
        _COMPLETION_HEADERS,
        _COMPLETION_FAILURES,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continue a prompt",
        {200: {JSON: TextCompletion, SSE: None}},
        CompletionRequest,
        _COMPLETION_HEADERS,
        _COMPLETION_FAILURES,
    ),
    Operation(
        "get",
        "/v1/streams/{id}",
        "An answer again, or the rest of its stream",
        {200: {JSON: AnyOf(ChatCompletion, TextCompletion), SSE: None}},
        headers=(_LAST_EVENT, _REQUEST_ID, _TRACEPARENT),
        failures=(400, 404, 429, 500, 503, 504),
    ),
    Operation(
        "delete",
        "/v1/streams/{id}",
        "Cancel an answer, or forget it",
        {200: {JSON: Deleted}},
        failures=(404, 503),
    ),
    Operation("get", "/v1/models", "The models that are served", {200: {JSON: ModelList}}),
    Operation("get", "/v1/models/{model}", "A model", {200: {JSON: Model}}, failures=(404,)),
    Operation("get", "/health", "This gateway lives", {200: {JSON: Health}}, is_open=True),
    Operation(
        "get",
        "/ready",
        "Requests are taken",
        {200: {JSON: Readiness}, 503: {JSON: Readiness}},
        is_open=True,
    ),
    Operation("get", "/metrics", "Prometheus metrics", {200: {TEXT: None}}, is_open=True),
    Operation("get", "/openapi.json", "This description", {200: {JSON: Object}}, is_open=True),
    Operation("get", "/v1/admin/load", "What this gateway has in flight", {200: {JSON: LoadReport}}, failures=(403,)),
    Operation(
        "post",
        "/v1/admin/profile",
        "Have workers trace their next steps to a file",
        {202: {JSON: Accepted}},
        ProfileRequest,
        failures=(400, 403, 404, 408, 413, 429),
    ),
)


async def get(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    return json_response(_encoded())


@functools.cache
def _encoded() -> bytes:
    return answers.encode(description())


def description() -> Object:
    """The document."""
    schemas = _Schemas()
    schemas.of(GrammarWithRules)  # which `ResponseFormat` refers to by name
    paths: dict[str, Object] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sapwood",
            "version": _version(),
            "description": "An OpenAI-compatible API. Fields of a request that are unknown are named in the answer's "
            "header x-sapwood-ignored-fields.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _version() -> str:
    try:
        return metadata.version("sapwood")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0"


class _Schemas:
    """JSON Schemas of types, those of structs by reference."""

    def __init__(self) -> None:
        self.components: Object = {}

    def of(self, kind: Any) -> Object:
        if isinstance(kind, AnyOf):
            return {"anyOf": [self.of(one) for one in kind.kinds]}
        (schema,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCES)
        self.components |= components
        return schema


def _operation(operation: Operation, schemas: _Schemas) -> Object:
    responses: Object = {
        str(status): {"description": "OK" if status < 400 else "Not ready", "content": _content(bodies, schemas)}
        for status, bodies in operation.answers.items()
    }
    failures = [*operation.failures, *(() if operation.is_open else (401,))]
    for status in sorted(failures):
        responses[str(status)] = {"description": "An error", "content": _content({JSON: Error}, schemas)}
    said: Object = {
        "operationId": f"{operation.method}{operation.path.title().translate(_NAMES)}",
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.request is not None:
        content = {JSON: {"schema": schemas.of(_documented(operation.request))}}
        said["requestBody"] = {"required": True, "content": content}
    if not operation.is_open:
        said["security"] = [{"key": []}, {}]
    return said


_NAMES = {ord(character): None for character in "/{}._"}


def _parameters(operation: Operation) -> list[Object]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    found: list[Object] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    for header in operation.headers:
        found.append(
            {"name": header.name, "in": "header", "description": header.description, "schema": dict(header.schema)}
        )
    return found


def _content(bodies: Mapping[str, Any], schemas: _Schemas) -> Object:
    return {
        content_type: {"schema": {"type": "string"} if kind is None else schemas.of(kind)}
        for content_type, kind in bodies.items()
    }


def _documented(kind: type[Struct]) -> Any:
    """A request's type with the types of those fields that its decoder leaves to others."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        annotation = _SAID_ELSEWHERE.get(field.name, field.type)
        if field.required:
            fields.append((field.name, annotation))
        else:
            fields.append((field.name, annotation, None if field.type is Raw else field.default))
    return msgspec.defstruct(
        kind.__name__,
        fields,
        kw_only=True,
        namespace={"__doc__": kind.__doc__},
        forbid_unknown_fields=kind.__struct_config__.forbid_unknown_fields,
    )
