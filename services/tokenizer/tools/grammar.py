"""Tool calls and reasoning as xgrammar's structural tags: what an answer may be, as JSON.

xgrammar has builders of its own for some model families; these here write the same tags (a test compares them) for all
the formats that are read, from one description of each, without importing xgrammar, and PyTorch with it.
"""

import json
from typing import Any

from services.tokenizer.tools.formats import Spelling
from services.tokenizer.tools.reasoning import ReasoningFormat

Json = dict[str, Any]

NO_ARGUMENTS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


def tag(form: Json) -> str:
    """A form as the whole answer."""
    return json.dumps({"type": "structural_tag", "format": form}, ensure_ascii=False)


def calls(tools: list[Json], spelling: Spelling, *, several: bool) -> Json:
    """One call, or several of them, and nothing else."""
    inner = {
        "type": "tags_with_separator",
        "tags": [_call(tool["function"], spelling) for tool in tools],
        "separator": spelling.separator,
        "at_least_one": True,
        "stop_after_first": not several,
    }
    if not spelling.opening:
        return inner
    return {"type": "tag", "begin": spelling.opening, "content": inner, "end": spelling.closing}


def text_with_calls(tools: list[Json], spelling: Spelling, *, several: bool) -> Json:
    """Any text; where a call begins in it, it is one of these. Nothing follows the only one allowed."""
    return {
        "type": "triggered_tags",
        "triggers": [spelling.trigger],
        "tags": [calls(tools, spelling, several=several)]
        if spelling.opening
        else [_call(tool["function"], spelling) for tool in tools],
        "at_least_one": False,
        "stop_after_first": not several,
        "excludes": list(spelling.excluded),
    }


def either(*forms: Json) -> Json:
    return {"type": "or", "elements": list(forms)}


def after_reasoning(form: Json, marks: ReasoningFormat, *, has_begun: bool) -> Json:
    """The form behind the model's reasoning: behind the rest of it where the prompt has opened it, otherwise behind
    all of it if the model thinks at all."""
    thought = {
        "type": "sequence",
        "elements": [
            {
                "type": "tag",
                "begin": "" if has_begun else marks.begin,
                "content": {"type": "any_text"},
                "end": marks.end,
            },
            {"type": "regex", "pattern": "\\n{0,2}"},
        ],
    }
    return {"type": "sequence", "elements": [thought if has_begun else {"type": "optional", "content": thought}, form]}


def json_schema(schema: object) -> Json:
    """JSON with one space at most between its parts: a model that may write any number of them may never end."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}


def arguments_schema(function: Json) -> Json:
    """What a call's arguments must be; any object for a function that says it is not strict."""
    if function.get("strict") is False:
        return {"type": "object"}
    parameters = function.get("parameters")
    return NO_ARGUMENTS if parameters is None else {"type": "object", **parameters}


def _call(function: Json, spelling: Spelling) -> Json:
    return {
        "type": "tag",
        "begin": spelling.named(function["name"]),
        "content": json_schema(arguments_schema(function)),
        "end": spelling.end,
    }
