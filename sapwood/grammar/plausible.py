"""Whether a value may be meant by a schema: enough to tell apart the branches of a choice.

A server has held the answer to the schema as a whole; here only types, constants, properties and items are looked at.
"""

from collections.abc import Mapping
from typing import Any


def is_plausible(value: Any, schema: Any, root: Any = None) -> bool:
    """schema: as JSON Schema has it; root: where its references lead."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema and not _is_equal(value, schema["const"]):
        return False
    if "enum" in schema and not any(_is_equal(value, one) for one in schema["enum"]):
        return False
    if "type" in schema and not _is_of_type(value, schema["type"]):
        return False
    reference = schema.get("$ref")
    if isinstance(reference, str) and not is_plausible(value, _target(root, reference), root):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and not any(is_plausible(value, one, root) for one in schema[keyword]):
            return False
    if not all(is_plausible(value, one, root) for one in schema.get("allOf", ())):
        return False
    if isinstance(value, dict):
        return _has_members(value, schema, root)
    if isinstance(value, list) and "items" in schema:
        behind = value[len(schema.get("prefixItems", ())) :]
        return all(is_plausible(one, schema["items"], root) for one in behind)
    return True


def _has_members(value: dict[str, Any], schema: Mapping[str, Any], root: Any) -> bool:
    properties = schema.get("properties", {})
    if not all(name in value for name in schema.get("required", ())):
        return False
    if schema.get("additionalProperties") is False and "patternProperties" not in schema and value.keys() - properties:
        return False
    return all(is_plausible(value[name], one, root) for name, one in properties.items() if name in value)


def _is_of_type(value: Any, types: Any) -> bool:
    return any(_is_one_of_type(value, one) for one in ([types] if isinstance(types, str) else types))


def _is_one_of_type(value: Any, name: str) -> bool:
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return name == "object" and isinstance(value, dict)


def _is_equal(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _target(root: Any, reference: str) -> Any:
    """What a reference within the schema leads to; True for one that leads elsewhere."""
    if not reference.startswith("#"):
        return True
    found = root
    for step in filter(None, reference[1:].split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return True
    return found
