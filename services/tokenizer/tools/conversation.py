"""Conversations with tools, fitted to what a model's chat template can show.

A template that knows nothing of tools gets them in words: the functions and the form of a call in the system message,
earlier calls as the assistant's text, results as the user's.
"""

import hashlib
import json
import re
from typing import Any

from services.tokenizer.tools.dialect import Dialect
from services.tokenizer.tools.formats import CallFormat

Json = dict[str, Any]

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def fitted(messages: list[Json], dialect: Dialect) -> list[Json]:
    """The messages for a template that shows tools."""
    if not (dialect.short_ids or dialect.text_arguments):
        return messages
    return [_fitted(message, dialect) for message in messages]


def in_words(messages: list[Json], calls: CallFormat | None) -> list[Json]:
    """The messages for a template that knows nothing of tools: roles system, user and assistant only, no calls."""
    worded: list[Json] = []
    after_result = False
    for message in messages:
        if message.get("role") == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if after_result:
                worded[-1] = {"role": "user", "content": f"{worded[-1]['content']}\n{result}"}
            else:
                worded.append({"role": "user", "content": result})
            after_result = True
            continue
        after_result = False
        made = message.get("tool_calls")
        if made:
            written = _written([(call["function"]["name"], call["function"]["arguments"]) for call in made], calls)
            content = "\n".join(filter(None, (message["content"], written)))
            message = {**message, "content": content}
            del message["tool_calls"]
        worded.append(message)
    return worded


def introduced(messages: list[Json], tools: list[Json], calls: CallFormat) -> list[Json]:
    """The messages with the tools described in the system message, the first one."""
    text = _introduction(tools, calls)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def without_system(messages: list[Json]) -> list[Json]:
    """The messages with the system message at the head of what the user says first, for templates without one."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return messages
    first = messages[1]
    return [{**first, "content": f"{messages[0]['content']}\n\n{first['content']}"}, *messages[2:]]


def _introduction(tools: list[Json], calls: CallFormat) -> str:
    functions = "\n".join(_json(tool["function"]) for tool in tools)
    example = _written([("name_of_the_function", {"name_of_an_argument": "its value"})], calls)
    return (
        "You can call functions to help the user. These are the functions, with the JSON Schema of their arguments:\n"
        f"<tools>\n{functions}\n</tools>\n\n"
        f"To call a function, answer with its name and its arguments in this form:\n{example}\n"
        "You will get the result inside <tool_response></tool_response>. Call a function only when it helps; "
        "otherwise answer in your own words."
    )


def _written(made: list[tuple[str, Json | str]], calls: CallFormat | None) -> str:
    """Calls as the model would write them."""
    if calls is not None and calls.spelling is not None:
        return calls.spelling.calls([(name, _arguments(given)) for name, given in made])
    return f"[{', '.join(f'{name}({_keywords(given)})' for name, given in made)}]"


def _keywords(given: Json | str) -> str:
    return given if isinstance(given, str) else ", ".join(f"{key}={value!r}" for key, value in given.items())


def _arguments(given: Json | str) -> str:
    """A call's arguments as JSON; text is what the model wrote that is none."""
    return given if isinstance(given, str) else _json(given)


def _fitted(message: Json, dialect: Dialect) -> Json:
    fixed = dict(message)
    if dialect.short_ids and isinstance(message.get("tool_call_id"), str):
        fixed["tool_call_id"] = _short_id(message["tool_call_id"])
    if made := message.get("tool_calls"):
        fixed["tool_calls"] = [_fitted_call(call, dialect) for call in made]
    return fixed


def _fitted_call(call: Json, dialect: Dialect) -> Json:
    fixed = dict(call)
    if dialect.short_ids and isinstance(call.get("id"), str):
        fixed["id"] = _short_id(call["id"])
    if dialect.text_arguments:
        function = call["function"]
        fixed["function"] = {**function, "arguments": _arguments(function["arguments"])}
    return fixed


def _short_id(call_id: str) -> str:
    """Nine letters or digits that stand for the id, wherever they are worked out."""
    return call_id if _SHORT_ID.fullmatch(call_id) else hashlib.blake2b(call_id.encode()).hexdigest()[:9]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
