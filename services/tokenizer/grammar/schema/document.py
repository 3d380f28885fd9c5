"""A schema as it came: its subschemas by number, and what `$ref` and its kin mean.

A subschema's number stands for its place and for the resources that were entered on the way to it, which is what
`$dynamicRef` depends on; where a schema has none of those, for its place alone.
"""

import json
import re
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.limits import MAX_DEPTH, MAX_VALUES

Json = Any
ROOT = ""

_PLAIN = frozenset({"enum", "const", "default", "examples", "example", "required", "type", "dependentRequired"})
"""Keywords whose values hold no schemas, whatever they look like."""

SCHEMA, NAMES, OTHER = "schema", "names", "other"
_NAMES = "properties patternProperties $defs definitions dependentSchemas dependencies"
_SCHEMAS = (
    "additionalItems additionalProperties allOf anyOf contains contentSchema else if items not oneOf prefixItems "
    "propertyNames then unevaluatedItems unevaluatedProperties"
)
_ROLES = dict.fromkeys(_NAMES.split(), NAMES) | dict.fromkeys(_SCHEMAS.split(), SCHEMA)
"""What a keyword's value is: a schema or a list of such, schemas by name, or, of a keyword that is unknown, anything;
then it can be referred to by its place, and its `$id` is none."""


def load(source: str) -> Json:
    """The JSON value of a text. Raises Unenforceable for what is none, is too deep or too large."""
    check_nesting(source)
    try:
        value = json.loads(source, parse_constant=_no_constant)
    except ValueError as error:
        raise Unenforceable(f"is not valid JSON: {error}") from None
    check_size(value)
    return value


def written(value: Json) -> str:
    """A JSON value as answers have it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text) else json.dumps(value)


def check_nesting(source: str) -> None:
    """Before a parser that recurses sees it."""
    depth = 0
    in_string = False
    escaped = False
    for char in source:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Unenforceable(f"is nested more than {MAX_DEPTH} levels deep")
        elif char in "]}":
            depth -= 1


def check_size(value: Json) -> None:
    count = 0
    stack = [value]
    while stack:
        one = stack.pop()
        count += 1
        if isinstance(one, dict):
            stack += one.values()
        elif isinstance(one, list):
            stack += one
        if count > MAX_VALUES:
            raise Unenforceable(f"has more than {MAX_VALUES} values, keywords included")


def escaped(name: str) -> str:
    """A name as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


LAST_WITH_LONE_REFERENCES = 7
LAST_WITH_PLAIN_ID = 4


def draft_of(root: Json) -> int | None:
    """The number of the draft that a schema says it is of, 4 or 2020; None: it does not say."""
    said = root.get("$schema") if isinstance(root, dict) else None
    found = re.search(r"json-schema\.org/draft[-/]0?(\d+)", said) if isinstance(said, str) else None
    return None if found is None else int(found.group(1))


class Document:
    """Subschemas are known by number: `value(n)`, `pointer(n)`; `child(n, "properties", "a")` is the number of one."""

    def __init__(self, root: Json) -> None:
        self._root = root
        self.draft = draft_of(root)
        self._places: list[tuple[str, Json, str, tuple[str, ...]]] = []  # pointer, value, base URI, scope
        self._numbers: dict[tuple[str, tuple[str, ...]], int] = {}
        self._by_uri: dict[str, tuple[str, Json, str]] = {}
        self._dynamic: dict[str, tuple[str, Json, str]] = {}
        self._is_dynamic = False
        self._resources: dict[str, tuple[str, Json]] = {}
        self._index(root, "", "")
        self.root = self._number("", root, self._base_of(root, ""), ())

    def value(self, number: int) -> Json:
        return self._places[number][1]

    def pointer(self, number: int) -> str:
        return self._places[number][0]

    def child(self, number: int, *path: str | int) -> int:
        """The number of a subschema by keyword and key or index."""
        pointer, value, base, scope = self._places[number]
        for step in path:
            value = value[step]
            pointer += "/" + escaped(str(step))
        return self._number(pointer, value, self._base_of(value, base), scope)

    def made(self, value: Json, near: int) -> int:
        """The number of a schema that is not in the document, but stands for something at `near`."""
        pointer, _, base, scope = self._places[near]
        return self._number(f"{pointer}\0{json.dumps(value, sort_keys=True)}", value, base, scope)

    def referred(self, number: int, keyword: str) -> int:
        """The subschema that a `$ref`, `$dynamicRef` or `$recursiveRef` at a subschema means."""
        _, value, base, scope = self._places[number]
        reference = value[keyword]
        if not isinstance(reference, str):
            raise Unenforceable("must be a string", pointer=self.shown(number), keyword=keyword)
        # a fragment is of the schema's own name, of whatever kind that is: `urljoin` knows no URNs
        uri = urldefrag(base).url + reference if reference.startswith("#") else urljoin(base, reference)
        target = self._dynamic_target(uri, scope) if keyword == "$dynamicRef" else None
        if keyword == "$recursiveRef":
            target = self._recursive_target(uri, scope)
        target = target or self._target(uri)
        if target is None:
            raise Unenforceable(
                f"refers to {reference[:200]!r}, which is not in the schema",
                pointer=self.shown(number),
                keyword=keyword,
            )
        return self._number(*target, scope)

    def shown(self, number: int) -> str:
        """A pointer for an error message."""
        return self.pointer(number).partition("\0")[0]

    def _number(self, pointer: str, value: Json, base: str, scope: tuple[str, ...]) -> int:
        if not isinstance(value, dict | bool):
            raise Unenforceable("must be a schema, an object or a boolean", pointer=pointer.partition("\0")[0])
        if self._is_dynamic and base not in scope:  # only the first time that it was entered counts
            scope = (*scope, base)
        key = (pointer, scope)
        if key not in self._numbers:
            self._numbers[key] = len(self._places)
            self._places.append((pointer, value, base, scope))
        return self._numbers[key]

    @property
    def has_lone_references(self) -> bool:
        """Whether the draft says that nothing beside a `$ref` counts. What is said there is enforced all the same, but
        nothing is concluded from its being wrong, and it names no resource."""
        return self.draft is not None and self.draft <= LAST_WITH_LONE_REFERENCES

    def _own_id(self, value: Json) -> str | None:
        if not isinstance(value, dict) or (self.has_lone_references and "$ref" in value):
            return None
        keywords = ("$id", "id") if self.draft is None else ("id",) if self.draft <= LAST_WITH_PLAIN_ID else ("$id",)
        return next((value[one] for one in keywords if isinstance(value.get(one), str)), None)

    def _base_of(self, value: Json, base: str) -> str:
        own = self._own_id(value)
        return base if own is None else urldefrag(urljoin(base, own)).url

    def _index(self, value: Json, pointer: str, base: str, role: str = SCHEMA) -> None:
        """Notes every `$id`, `$anchor` and `$dynamicAnchor` of what is a schema by its place."""
        if isinstance(value, list):
            for place, inner in enumerate(value):
                self._index(inner, f"{pointer}/{place}", base, role)
        if not isinstance(value, dict):
            return
        if "$dynamicRef" in value or "$recursiveRef" in value:
            self._is_dynamic = True
        if role == SCHEMA:
            own, base = self._own_id(value), self._base_of(value, base)
            self._note(value, pointer, base, own)
        for key, inner in value.items():
            if role == SCHEMA and key in _PLAIN:
                continue
            inner_role = SCHEMA if role == NAMES else _ROLES.get(key, OTHER) if role == SCHEMA else OTHER
            self._index(inner, f"{pointer}/{escaped(key)}", base, inner_role)

    def _note(self, value: dict[str, Json], pointer: str, base: str, own: str | None) -> None:
        fragment = urldefrag(own or "").fragment
        if fragment:  # as older drafts name a place
            self._by_uri.setdefault(f"{base}#{fragment}", (pointer, value, base))
        if pointer == "" or (own is not None and not own.startswith("#")):
            self._by_uri.setdefault(base, (pointer, value, base))
            self._resources.setdefault(base, (pointer, value))
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(value.get(keyword), str):
                self._by_uri[f"{base}#{value[keyword]}"] = (pointer, value, base)
        if isinstance(value.get("$dynamicAnchor"), str):
            self._dynamic[f"{base}#{value['$dynamicAnchor']}"] = (pointer, value, base)

    def _target(self, uri: str) -> tuple[str, Json, str] | None:
        if uri in self._by_uri:
            return self._by_uri[uri]
        base, fragment = urldefrag(uri)
        if not fragment:
            return self._by_uri.get(base)
        if not fragment.startswith("/") or base not in self._resources:
            return None
        pointer, value = self._resources[base]
        for step in unquote(fragment)[1:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                return None
            pointer += "/" + escaped(step)
            base = self._base_of(value, base)
        return pointer, value, base

    def _dynamic_target(self, uri: str, scope: tuple[str, ...]) -> tuple[str, Json, str] | None:
        """The outermost schema with that dynamic anchor, if the reference means a dynamic anchor at all."""
        if uri not in self._dynamic:
            return None
        anchor = urldefrag(uri).fragment
        return next((self._dynamic[key] for base in scope if (key := f"{base}#{anchor}") in self._dynamic), None)

    def _recursive_target(self, uri: str, scope: tuple[str, ...]) -> tuple[str, Json, str] | None:
        base = urldefrag(uri).url
        if base not in self._resources or self._resources[base][1].get("$recursiveAnchor") is not True:
            return None
        for outer in scope:
            pointer, value = self._resources.get(outer, ("", {}))
            if isinstance(value, dict) and value.get("$recursiveAnchor") is True:
                return pointer, value, outer
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
