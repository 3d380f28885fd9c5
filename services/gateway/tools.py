"""`tools`, `tool_choice` and `parallel_tool_calls`, checked. Pure.

Raises InvalidRequest with the `param` at fault. Whether a tool's schema can be enforced is for the tokenizer to say.
"""

import re
from typing import Any

from services.gateway.conversation import Json, check_depth
from shared.errors import InvalidRequest
from shared.messages import Constraint, ToolCalling

MAX_TOOLS = 1024
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_WORDS = ("none", "auto", "required")
_JSON_KINDS = ("json_object", "json_schema")


def tool_calling(tools: list[Json] | None, choice: object, parallel: bool | None) -> ToolCalling | None:
    """How the answer may call the tools; None: it does not, or there are none."""
    names = _checked_names(tools or [])
    if not names:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
        return None
    if choice == "none":
        return None
    is_parallel = parallel is not False
    if choice is None or choice == "auto" or choice == "required":
        return ToolCalling(choice=str(choice or "auto"), parallel=is_parallel)
    if isinstance(choice, str):
        raise InvalidRequest(
            f"'tool_choice' must be one of {', '.join(_WORDS)} or name a function, got {choice[:50]!r}.",
            param="tool_choice",
        )
    return ToolCalling(choice="function", name=_chosen(choice, names), parallel=is_parallel)


def check_beside_constraint(calling: ToolCalling, constraint: Constraint) -> None:
    """An answer that may call tools can otherwise be held to JSON; one that must call a tool to nothing else."""
    if calling.choice != "auto":
        raise InvalidRequest(
            f"'{constraint.param}' is not allowed when 'tool_choice' asks for a tool call.", param=constraint.param
        )
    if constraint.kind not in _JSON_KINDS:
        raise InvalidRequest(
            f"'{constraint.param}' is not allowed with 'tools', unless 'tool_choice' is 'none'.", param=constraint.param
        )


def enforced_param(calling: ToolCalling, tools: list[Json]) -> str | None:
    """The field, if any, that asks for calls that the decoder enforces."""
    if calling.choice != "auto":
        return "tool_choice"
    for place, tool in enumerate(tools):
        if tool["function"].get("strict"):
            return f"tools[{place}].function.strict"
    return None if calling.parallel else "parallel_tool_calls"


def _checked_names(tools: list[Json]) -> list[str]:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' has {len(tools)} entries, more than {MAX_TOOLS}.", param="tools")
    names: list[str] = []
    for place, tool in enumerate(tools):
        name = _checked_name(tool, f"tools[{place}]")
        if name in names:
            raise InvalidRequest(
                f"'tools[{place}].function.name' {name!r} is also that of 'tools[{names.index(name)}]'.",
                param=f"tools[{place}].function.name",
            )
        names.append(name)
    return names


def _checked_name(tool: Json, path: str) -> str:
    check_depth(tool, path)
    if tool.get("type") != "function":
        raise InvalidRequest(f"'{path}.type' must be 'function'.", param=f"{path}.type")
    path = f"{path}.function"
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"'{path}' must be an object.", param=path)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"'{path}.name' must be 1 to 128 letters, digits or any of _ . : -", param=f"{path}.name")
    _check_kind(function, "description", str, "a string", path)
    _check_kind(function, "strict", bool, "true or false", path)
    _check_kind(function, "parameters", dict, "an object, a JSON Schema", path)
    kind = (function.get("parameters") or {}).get("type", "object")
    if kind != "object":
        raise InvalidRequest(
            f"'{path}.parameters.type' must be 'object': arguments have names.", param=f"{path}.parameters.type"
        )
    return name


def _check_kind(function: Json, field: str, kind: type, words: str, path: str) -> None:
    value = function.get(field)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"'{path}.{field}' must be {words}.", param=f"{path}.{field}")


def _chosen(choice: Any, names: list[str]) -> str:
    """The name in {"type": "function", "function": {"name": ...}}."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise InvalidRequest(
            "'tool_choice' must be none, auto, required or an object whose 'type' is 'function'.", param="tool_choice"
        )
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidRequest("'tool_choice.function.name' is required.", param="tool_choice.function.name")
    if name not in names:
        raise InvalidRequest(
            f"'tool_choice.function.name' {name[:100]!r} is the name of none of the 'tools'.",
            param="tool_choice.function.name",
        )
    return name
