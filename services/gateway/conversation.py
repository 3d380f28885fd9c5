"""The client's `messages` made fit for chat templates: contents as text, tool arguments as objects where they are."""

from collections.abc import Sequence
from typing import Any

import msgspec

from shared.errors import InvalidRequest

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
MAX_DEPTH = 64
"""JSON nesting inside a message: deeper ones would not survive the way through the services."""

Json = dict[str, Any]


def normalise(messages: Sequence[Json]) -> list[Json]:
    """The messages with every content a string. Raises InvalidRequest with the path of what is wrong.

    `developer` becomes `system`, of which it is the newer name and the only one that most templates know; other
    fields pass as they are, for the templates that read them."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def check_depth(value: object, path: str, left: int = MAX_DEPTH) -> None:
    """Raises InvalidRequest when lists and objects are nested too deeply."""
    if isinstance(value, dict | list):
        if not left:
            raise InvalidRequest(f"'{path}' is nested more than {MAX_DEPTH} levels deep.", param=path)
        for inner in value.values() if isinstance(value, dict) else value:
            check_depth(inner, path, left - 1)


def _message(message: Json, path: str) -> Json:
    role = message.get("role")
    if role is None:
        raise InvalidRequest(f"'{path}.role' is required.", param=f"{path}.role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(
            f"'{path}.role' must be one of {', '.join(sorted(ROLES))}, got {_shown(role)}.", param=f"{path}.role"
        )
    check_depth(message, path)
    fixed = {**message, "role": "system" if role == "developer" else role, "content": _content(message, role, path)}
    if not isinstance(message.get("tool_call_id"), str | None):
        raise InvalidRequest(f"'{path}.tool_call_id' must be a string.", param=f"{path}.tool_call_id")
    if message.get("tool_calls") not in (None, []):
        fixed["tool_calls"] = _tool_calls(message["tool_calls"], f"{path}.tool_calls")
    else:
        fixed.pop("tool_calls", None)  # templates ask only whether the field is there
    return fixed


def _content(message: Json, role: str, path: str) -> str:
    path = f"{path}.content"
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if role == "assistant":
            return ""  # not null: templates concatenate it
        raise InvalidRequest(f"'{path}' is required.", param=path)
    if not isinstance(content, list):
        raise InvalidRequest(f"'{path}' must be a string or a list of parts.", param=path)
    return "\n".join(_part(part, f"{path}[{place}]") for place, part in enumerate(content))


def _part(part: object, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(f"'{path}' must be an object with a 'type'.", param=path)
    kind = part.get("type")
    if kind == "text" or kind == "refusal":
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequest(f"'{path}.{kind}' must be a string.", param=f"{path}.{kind}")
        return text
    raise InvalidRequest(
        f"'{path}.type' {_shown(kind)} is not supported by this server; only text is.",
        param=f"{path}.type",
        code="unsupported_parameter",
    )


def _tool_calls(calls: object, path: str) -> list[Json]:
    """Tool calls of an earlier answer."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"'{path}' must be a list.", param=path)
    fixed = []
    for place, call in enumerate(calls):
        at = f"{path}[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"'{at}' must be an object with a 'function' that has a 'name'.", param=at)
        arguments = _arguments(function.get("arguments"), f"{at}.function.arguments")
        fixed.append({**call, "function": {**function, "arguments": arguments}})
    return fixed


def _arguments(given: object, path: str) -> Json | str:
    """Templates want an object, clients send its JSON text. Text that is none, as of a call that was cut, stays as it
    is: the model is to see what it wrote."""
    if given is None:
        return {}
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        raise InvalidRequest(f"'{path}' must be a string.", param=path)
    if given.strip() in ("", "null"):
        return {}
    try:
        arguments = msgspec.json.decode(given, type=Json)
        check_depth(arguments, path)
    except (msgspec.DecodeError, RecursionError, InvalidRequest):
        return given
    return arguments


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool) and len(str(value)) < 50 else "that"
