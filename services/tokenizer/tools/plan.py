"""What a request's answer will hold and what it is held to: from the client's wishes and the model's ways."""

import json
from typing import Any, NamedTuple

from services.tokenizer.tools import grammar
from services.tokenizer.tools.dialect import Dialect
from services.tokenizer.tools.formats import ENFORCED_ELSE, FORMATS, CallFormat, Spelling
from services.tokenizer.tools.grammar import Json
from services.tokenizer.tools.reasoning import ReasoningFormat
from shared.errors import InvalidRequest
from shared.grammar import TEXT_MARKS
from shared.messages import AnswerFormat, ChatPrompt, Constraint, Tokenize, ToolCalling


class AnswerPlan(NamedTuple):
    """form: how the answer is read; None: as plain text. constraint: what the decoder enforces. kept: special tokens
    that the reader must see, or that are text to the grammar."""

    form: AnswerFormat | None = None
    constraint: Constraint | None = None
    kept: tuple[str, ...] = ()


FREE = AnswerPlan()


class _Calls(NamedTuple):
    """form: how calls are written; names: of all the tools. held_to: what the answer is held to; None: to nothing."""

    form: CallFormat
    names: list[str]
    held_to: Json | None


def plan(request: Tokenize, dialect: Dialect, rendered: str) -> AnswerPlan:
    """rendered: the prompt as text. Raises InvalidRequest for what cannot be enforced for this model."""
    chat = request.prompt
    if not isinstance(chat, ChatPrompt):
        return plain(request)
    marks, constraint, called = dialect.reasoning, request.constraint, None
    if request.tool_calling is not None and chat.tools:
        called = _calls(request.tool_calling, chat.tools, dialect, constraint)
        if called.held_to is not None:
            constraint = Constraint(kind="structural_tag", source=grammar.tag(called.held_to), param="tools")
    has_begun = marks is not None and _leaves_inside(rendered, chat, marks)
    if constraint is not None and marks is not None and (has_begun or not rendered.rstrip().endswith(marks.end)):
        form = grammar.after_reasoning(_as_form(constraint), marks, has_begun=has_begun)
        constraint = Constraint(kind="structural_tag", source=grammar.tag(form), param=constraint.param)
    # calls are looked for behind the reasoning only, wherever that goes
    split = marks if request.separate_reasoning or called is not None else None
    if called is None and split is None:
        return AnswerPlan(constraint=constraint, kept=_kept(constraint))
    answer = AnswerFormat(
        tool_parser=called.form.name if called else "",
        tool_names=called.names if called else [],
        reasoning_parser=split.name if split else "",
        is_reasoning=has_begun,
        keeps_reasoning=split is not None and not request.separate_reasoning,
    )
    marks_of_calls = called.form.marks if called else ()
    marks_of_reasoning = (split.begin, split.end) if split else ()
    return AnswerPlan(answer, constraint, (*marks_of_calls, *marks_of_reasoning, *_kept(constraint)))


def plain(request: Tokenize) -> AnswerPlan:
    """For an answer that is text from its first character on."""
    return AnswerPlan(constraint=request.constraint, kept=_kept(request.constraint))


def _kept(constraint: Constraint | None) -> tuple[str, ...]:
    return () if constraint is None else tuple(sorted(TEXT_MARKS))


def _calls(calling: ToolCalling, tools: list[Json], dialect: Dialect, constraint: Constraint | None) -> _Calls:
    form = dialect.calls
    if form is None:
        raise InvalidRequest(
            "Tool calls of this model are in a form that this server does not read; it can be started with "
            "--tool-parser to have them read in another one.",
            param="tools",
            code="unsupported_parameter",
        )
    names = [tool["function"]["name"] for tool in tools]
    if calling.choice != "auto" or constraint is not None:
        # all of the answer is written to a grammar, so it need not be the model's own way of writing calls
        form = form if form.spelling is not None else FORMATS[ENFORCED_ELSE]
        chosen = [tool for tool in tools if calling.choice != "function" or tool["function"]["name"] == calling.name]
        several = calling.parallel and calling.choice != "function"
        made = grammar.calls(chosen, _spelling(form), several=several)
        return _Calls(form, names, made if constraint is None else grammar.either(made, _as_form(constraint)))
    strict = [place for place, tool in enumerate(tools) if tool["function"].get("strict")]
    if not strict and calling.parallel:
        return _Calls(form, names, None)
    if form.enforced is None:
        param = f"tools[{strict[0]}].function.strict" if strict else "parallel_tool_calls"
        raise InvalidRequest(
            f"'{param}' cannot be enforced in the form in which this model writes calls of its own accord "
            f"({form.name}); leave it out, or set 'tool_choice' to 'required'.",
            param=param,
            code="unsupported_parameter",
        )
    form = FORMATS[form.enforced]
    loose = [_with_free_arguments(tool) for tool in tools]
    return _Calls(form, names, grammar.text_with_calls(loose, _spelling(form), several=calling.parallel))


def _with_free_arguments(tool: Json) -> Json:
    """A tool that nobody asked to be strict about, with any arguments."""
    function = tool["function"]
    return tool if function.get("strict") else {**tool, "function": {**function, "strict": False}}


def _spelling(form: CallFormat) -> Spelling:
    assert form.spelling is not None
    return form.spelling


def _leaves_inside(rendered: str, chat: ChatPrompt, marks: ReasoningFormat) -> bool:
    """Whether the prompt leaves the model inside its reasoning. Only what the answer continues counts: what stands
    before is what anybody may have written."""
    if chat.continue_final_message:
        begun = str(chat.messages[-1].get("content", "")) if chat.messages else ""
        return begun.rfind(marks.begin) > begun.rfind(marks.end)
    return chat.add_generation_prompt and rendered.rstrip().endswith(marks.begin)


def _as_form(constraint: Constraint) -> Json:
    """A constraint as a part of a structural tag. Raises InvalidRequest where there is no such part."""
    source = constraint.source
    match constraint.kind:
        case "json_object":
            return grammar.json_schema({"type": "object"})
        case "json_schema":
            return grammar.json_schema(_decoded(constraint))
        case "regex":
            return {"type": "regex", "pattern": source}
        case "grammar":
            return {"type": "grammar", "grammar": _decoded(constraint)}
        case "ebnf":
            return {"type": "grammar", "grammar": source}
        case "choice":
            choices: Any = _decoded(constraint)
            return grammar.either(*({"type": "const_string", "value": choice} for choice in choices))
        case "structural_tag":
            form = _decoded(constraint)
            if isinstance(form, dict) and isinstance(form.get("format"), dict):
                return dict(form["format"])
    raise InvalidRequest(
        f"'{constraint.param}' cannot be enforced behind the reasoning of this model; turn that off, where the model "
        "allows it with 'chat_template_kwargs': {'enable_thinking': false}.",
        param=constraint.param,
        code="unsupported_parameter",
    )


def _decoded(constraint: Constraint) -> object:
    try:
        return json.loads(constraint.source)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{constraint.param}' is not valid JSON.", param=constraint.param) from None
