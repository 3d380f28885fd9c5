"""How a model is told of tools and in which form it answers, found out from its chat template."""

import logging
import re
from dataclasses import dataclass

from services.tokenizer.tools import reasoning
from services.tokenizer.tools.formats import CHOICES, FORMATS, CallFormat
from services.tokenizer.tools.reasoning import ReasoningFormat
from shared.errors import ConfigError

log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"

_UNREAD = ("<function=", "<arg_key>", "<|channel|>", "<minimax:tool_call>")
"""Marks of call formats that have no reader here."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """calls: the form of its tool calls, None: not known. reasoning: the marks of its reasoning, if it has any.

    shows_tools: its template renders tools, calls and results; otherwise they are put into words. short_ids: ids of
    calls must be nine letters or digits. text_arguments: its template wants a call's arguments as text. template: a
    chat template to use instead of the model's own."""

    calls: CallFormat | None
    reasoning: ReasoningFormat | None = None
    shows_tools: bool = False
    short_ids: bool = False
    text_arguments: bool = False
    template: str | None = None


def dialect_of(template: str, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> Dialect:
    """template: the chat template for a conversation with tools, empty if there is none. The parsers: names, or auto
    to go by the template, or none. Raises ConfigError for a name that is not known."""
    shows_tools = re.search(r"\btools\b", template) is not None
    name = _calls_in(template, shows_tools) if tool_parser == AUTO else tool_parser
    if name not in (NONE, *CHOICES):
        raise ConfigError(
            f"--tool-parser (SAPWOOD_TOOL_PARSER) must be one of {', '.join((AUTO, NONE, *CHOICES))}, got {name!r}"
        )
    marks = _reasoning_in(template) if reasoning_parser == AUTO else reasoning_parser
    if marks not in (NONE, *reasoning.FORMATS):
        raise ConfigError(
            "--reasoning-parser (SAPWOOD_REASONING_PARSER) must be one of "
            f"{', '.join((AUTO, NONE, *reasoning.FORMATS))}, got {marks!r}"
        )
    is_deepseek = "<｜tool▁calls▁begin｜>" in template
    return Dialect(
        calls=None if name == NONE else FORMATS[name],
        reasoning=None if marks == NONE else reasoning.FORMATS[marks],
        shows_tools=shows_tools,
        short_ids="[TOOL_CALLS]" in template,
        text_arguments=is_deepseek and not re.search(r"arguments['\"]?\]?\s*\|\s*tojson", template),
        template=_with_empty_contents(template) if is_deepseek and shows_tools else None,
    )


_NO_CONTENT = re.compile(r"message\['content'\] is none")
_SOME_CONTENT = re.compile(r"message\['content'\] is not none")


def _with_empty_contents(template: str) -> str | None:
    """DeepSeek's template tells a message that only calls tools by its content none, which transformers takes out."""
    changed = _SOME_CONTENT.sub("message['content']", _NO_CONTENT.sub("not message['content']", template))
    return changed if changed != template else None


def _calls_in(template: str, shows_tools: bool) -> str:
    if not shows_tools:
        return "hermes"
    if any(mark in template for mark in _UNREAD):
        log.warning("this model's chat template has tool calls in a form that is not read; --tool-parser sets one")
        return NONE
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral_args" if "[ARGS]" in template else "mistral"
    if "<｜tool▁calls▁begin｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v3_1"
    if re.search(r"\[\w+\(\w+=|<\|python_start\|>", template):
        return "pythonic"
    if "<|python_tag|>" in template or ("ipython" in template and "parameters" in template):
        return "llama3_json"
    log.warning("this model's chat template has tool calls in no form known here; they are read as JSON")
    return "json"


def _reasoning_in(template: str) -> str:
    known = (name for name, marks in reasoning.FORMATS.items() if marks.end in template)
    return next(known, NONE)
