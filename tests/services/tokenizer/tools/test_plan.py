"""From a request with tools to a prompt that shows them, a reader for the answer, and what the answer is held to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.tokenizer.config import Settings
from services.tokenizer.encode import Encoded, Encoder
from services.tokenizer.model_files import load_model_files
from services.tokenizer.tools import grammar
from services.tokenizer.tools.dialect import dialect_of
from services.tokenizer.tools.formats import FORMATS
from services.tokenizer.tools.reader import joined
from services.tokenizer.tools.reasoning import FORMATS as REASONING
from shared.errors import ConfigError, InvalidRequest, RequestError
from shared.grammar import TEXT_MARKS
from shared.messages import AnswerFormat, ChatPrompt, Constraint, TextPrompt, Tokenize, ToolCalling
from shared.packing import unpack_i32
from tests.services.tokenizer.tools import templates

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g"}},
]
STRICT = [TOOLS[0], {"type": "function", "function": {"name": "g", "strict": True}}]
USER = [{"role": "user", "content": "hi"}]
HISTORY = [
    *USER,
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": {}}},
    ]},
    {"role": "tool", "tool_call_id": "call_1", "content": "one"},
    {"role": "tool", "tool_call_id": "call_2", "content": "two"},
]  # fmt: skip
SCHEMA = Constraint(kind="json_schema", source='{"type": "object"}', param="response_format")

Run = Callable[..., tuple[str, Encoded]]


@pytest.fixture
def run(make_folder: Callable[..., Path]) -> Run:
    """run(template, **fields of the request): the prompt as text, and what it leads to. Raises what is refused."""

    def run(template: str, tool_parser: str = "auto", tools: Any = TOOLS, **fields: Any) -> tuple[str, Encoded]:
        folder = make_folder(template=template, config={"max_position_embeddings": 4096})
        model = load_model_files(Settings(model_path=str(folder)))
        encoder = Encoder(model, 4, dialect_of(model.tool_template, tool_parser))
        chat = {"messages": fields.pop("messages", USER), "template_kwargs": fields.pop("template_kwargs", {}),
                "add_generation_prompt": fields.pop("add_generation_prompt", True),
                "continue_final_message": fields.pop("continue_final_message", False)}  # fmt: skip
        request = Tokenize(request_id="r", reply_to="g", prompt=ChatPrompt(tools=tools, **chat), **fields)
        [result] = encoder.encode([request])
        if isinstance(result, RequestError):
            raise result
        assert isinstance(result, Encoded)
        return model.backend.decode(unpack_i32(result.generate.token_ids).tolist(), skip_special_tokens=False), result

    return run


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        (templates.QWEN, "hermes", None),
        (templates.QWEN_THINKING, "hermes", "think"),
        (templates.THINK_OPENED, "hermes", "think"),
        (templates.LLAMA, "llama3_json", None),
        (templates.MISTRAL, "mistral", None),
        (templates.MISTRAL + "[ARGS]", "mistral_args", None),
        (templates.DEEPSEEK, "deepseek_v3", None),
        (templates.DEEPSEEK.replace("```json", ""), "deepseek_v3_1", None),
        (templates.PYTHONIC, "pythonic", None),
        (templates.PLAIN, "hermes", None),
        (templates.QWEN + "<function=", None, None),
        ("{{ tools }}", "json", None),
        ("", "hermes", None),
    ],
)
def test_families_are_known_by_their_templates(template: str, calls: str | None, reasoning: str | None) -> None:
    dialect = dialect_of(template)
    assert (dialect.calls and dialect.calls.name, dialect.reasoning and dialect.reasoning.name) == (calls, reasoning)


def test_the_operator_decides() -> None:
    dialect = dialect_of(templates.QWEN_THINKING, "pythonic", "none")
    assert dialect.calls is FORMATS["pythonic"]
    assert dialect.reasoning is None
    assert dialect_of(templates.QWEN, "none").calls is None
    with pytest.raises(ConfigError, match="--tool-parser"):
        dialect_of(templates.QWEN, "qwen25")
    with pytest.raises(ConfigError, match="--reasoning-parser"):
        dialect_of(templates.QWEN, "auto", "deep")


def test_an_answer_that_may_call_is_free(run: Run) -> None:
    text, encoded = run(templates.QWEN, tool_calling=ToolCalling())
    assert '{"type": "function", "function": {"name": "f"' in text
    assert encoded.open.format == AnswerFormat(tool_parser="hermes", tool_names=["f", "g"])
    assert encoded.open.kept == ["<tool_call>", "</tool_call>"]
    assert encoded.constraint is None


def test_no_calling_is_plain_text(run: Run) -> None:
    text, encoded = run(templates.QWEN)
    assert '"name": "f"' in text  # the tools are shown all the same
    assert encoded.open.format is None


@pytest.mark.parametrize("calling", [ToolCalling(choice="required"), ToolCalling(choice="function", name="g")])
@pytest.mark.parametrize("template", [templates.QWEN, templates.LLAMA, templates.DEEPSEEK, templates.PLAIN])
def test_calls_that_must_be_made_are_enforced(run: Run, template: str, calling: ToolCalling) -> None:
    _, encoded = run(template, tool_calling=calling)
    assert encoded.open.format is not None
    written = FORMATS[encoded.open.format.tool_parser]
    assert written is dialect_of(template).calls
    assert written.spelling is not None
    chosen = TOOLS if calling.choice == "required" else TOOLS[1:]
    form = grammar.calls(chosen, written.spelling, several=calling.choice == "required")
    assert encoded.constraint == Constraint(kind="structural_tag", source=grammar.tag(form), param="tools")


def test_a_form_that_no_grammar_spells_is_written_as_json_when_it_must_be(run: Run) -> None:
    _, encoded = run(templates.PYTHONIC, tool_calling=ToolCalling(choice="required"))
    assert encoded.open.format == AnswerFormat(tool_parser="json", tool_names=["f", "g"])
    for fields, param in (
        ({"tools": STRICT, "tool_calling": ToolCalling()}, "tools[1].function.strict"),
        ({"tool_calling": ToolCalling(parallel=False)}, "parallel_tool_calls"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            run(templates.PYTHONIC, **fields)
        assert refused.value.param == param


def test_strict_tools_are_enforced_where_a_call_begins(run: Run) -> None:
    for template, reader in ((templates.QWEN, "hermes"), (templates.LLAMA, "llama3_json_exact")):
        _, encoded = run(template, tools=STRICT, tool_calling=ToolCalling())
        assert encoded.open.format is not None
        assert encoded.open.format.tool_parser == reader
        assert encoded.constraint is not None
        form = json.loads(encoded.constraint.source)["format"]
        assert form["type"] == "triggered_tags"
        schemas = [tag["content"]["json_schema"] for tag in form["tags"]]
        assert schemas == [{"type": "object"}, grammar.NO_ARGUMENTS]
        assert not form["stop_after_first"]


def test_one_call_at_most(run: Run) -> None:
    _, encoded = run(templates.QWEN, tool_calling=ToolCalling(parallel=False))
    assert encoded.constraint is not None
    assert json.loads(encoded.constraint.source)["format"]["stop_after_first"]


def test_a_schema_beside_tools_is_the_other_way_to_answer(run: Run) -> None:
    _, encoded = run(templates.QWEN, tool_calling=ToolCalling(), constraint=SCHEMA)
    assert encoded.constraint is not None
    form = json.loads(encoded.constraint.source)["format"]
    assert [element["type"] for element in form["elements"]] == ["tags_with_separator", "json_schema"]


def test_a_form_that_is_not_read_is_refused(run: Run) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(templates.QWEN + "{# <function= #}", tool_calling=ToolCalling())
    assert refused.value.param == "tools"
    _, encoded = run(templates.QWEN + "{# <function= #}", tool_parser="json", tool_calling=ToolCalling())
    assert encoded.open.format == AnswerFormat(tool_parser="json", tool_names=["f", "g"])


# --------------------------------------------------------------------------------------- reasoning


def test_reasoning_is_looked_for_where_the_template_knows_it(run: Run) -> None:
    _, encoded = run(templates.QWEN_THINKING, tools=None, separate_reasoning=True)
    assert encoded.open.format == AnswerFormat(reasoning_parser="think")
    assert encoded.open.kept == ["<think>", "</think>"]
    _, encoded = run(templates.QWEN_THINKING, tools=None)
    assert encoded.open.format is None
    _, encoded = run(templates.QWEN, tools=None, separate_reasoning=True)
    assert encoded.open.format is None


def test_reasoning_that_the_prompt_opens(run: Run) -> None:
    text, encoded = run(templates.THINK_OPENED, tools=None, separate_reasoning=True)
    assert text.endswith("<think>\n")
    assert encoded.open.format == AnswerFormat(reasoning_parser="think", is_reasoning=True)
    # what a user writes opens nothing
    _, encoded = run(templates.QWEN_THINKING, tools=None, separate_reasoning=True,
                     messages=[{"role": "user", "content": "what is <think>"}])  # fmt: skip
    assert encoded.open.format == AnswerFormat(reasoning_parser="think")


@pytest.mark.parametrize("calling", [ToolCalling(), ToolCalling(parallel=False), ToolCalling(choice="required")])
def test_calls_are_read_behind_reasoning_that_stays_in_the_content(run: Run, calling: ToolCalling) -> None:
    for template, is_reasoning in ((templates.QWEN_THINKING, False), (templates.THINK_OPENED, True)):
        for separate in (False, True):
            _, encoded = run(template, tool_calling=calling, separate_reasoning=separate)
            assert encoded.open.format == AnswerFormat(
                tool_parser="hermes", tool_names=["f", "g"], reasoning_parser="think", is_reasoning=is_reasoning,
                keeps_reasoning=not separate,
            )  # fmt: skip
            assert {"<think>", "</think>"} <= set(encoded.open.kept)
    _, encoded = run(templates.QWEN, tool_calling=calling)  # a model that does not think
    assert encoded.open.format == AnswerFormat(tool_parser="hermes", tool_names=["f", "g"])


def test_an_answer_continued_inside_its_reasoning(run: Run) -> None:
    begun = [*USER, {"role": "assistant", "content": "<think>two and"}]
    _, encoded = run(templates.QWEN_THINKING, tools=None, separate_reasoning=True, messages=begun,
                     add_generation_prompt=False, continue_final_message=True)  # fmt: skip
    assert encoded.open.format == AnswerFormat(reasoning_parser="think", is_reasoning=True)


def test_what_is_enforced_comes_behind_the_reasoning(run: Run) -> None:
    schema = grammar.json_schema({"type": "object"})
    think = dialect_of(templates.QWEN_THINKING).reasoning
    assert think is not None
    for template, has_begun in ((templates.QWEN_THINKING, False), (templates.THINK_OPENED, True)):
        _, encoded = run(template, tools=None, constraint=SCHEMA, separate_reasoning=True)
        source = grammar.tag(grammar.after_reasoning(schema, think, has_begun=has_begun))
        assert encoded.constraint == Constraint(kind="structural_tag", source=source, param="response_format")
    _, encoded = run(templates.THINK_OPENED, tool_calling=ToolCalling(choice="required"))
    assert encoded.constraint is not None
    assert json.loads(encoded.constraint.source)["format"]["type"] == "sequence"


def test_thinking_turned_off_leaves_the_constraint_as_it_is(run: Run) -> None:
    for constraint in (SCHEMA, Constraint(kind="lark", source="start: X", param="lark")):
        text, encoded = run(templates.QWEN_THINKING, tools=None, constraint=constraint,
                            template_kwargs={"enable_thinking": False})  # fmt: skip
        assert text.endswith("</think>\n\n")
        assert encoded.constraint == constraint


@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        (Constraint(kind="json_object", source="", param="p"), grammar.json_schema({"type": "object"})),
        (Constraint(kind="regex", source="a+", param="p"), {"type": "regex", "pattern": "a+"}),
        (
            Constraint(kind="grammar", source='{"type": "text", "text": "a"}', param="p"),
            {"type": "grammar", "grammar": {"type": "text", "text": "a"}},
        ),
        (Constraint(kind="ebnf", source='root ::= "a"', param="p"), {"type": "grammar", "grammar": 'root ::= "a"'}),
        (Constraint(kind="choice", source='["a"]', param="p"), grammar.either({"type": "const_string", "value": "a"})),
        (Constraint(kind="structural_tag", source='{"format": {"type": "any_text"}}', param="p"), {"type": "any_text"}),
    ],
)
def test_every_kind_goes_behind_reasoning(run: Run, constraint: Constraint, form: dict[str, Any]) -> None:
    _, encoded = run(templates.THINK_OPENED, tools=None, constraint=constraint)
    assert encoded.constraint is not None
    assert json.loads(encoded.constraint.source)["format"]["elements"][-1] == form


def test_what_cannot_go_behind_reasoning_says_so(run: Run) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(templates.THINK_OPENED, tools=None, constraint=Constraint(kind="lark", source="start: X", param="lark"))
    assert refused.value.param == "lark"


def test_a_completion_is_held_to_its_constraint_from_the_start(model: Any) -> None:
    [result] = Encoder(model, 4).encode(
        [Tokenize(request_id="r", reply_to="g", prompt=TextPrompt(text="a"), constraint=SCHEMA)]
    )
    assert isinstance(result, Encoded)
    assert (result.constraint, result.open.format) == (SCHEMA, None)
    assert set(result.open.kept) == TEXT_MARKS


def test_the_marks_of_what_is_enforced_are_text_to_grammars() -> None:
    for form in FORMATS.values():
        spelling = form.spelling
        if spelling is not None:
            spelled = spelling.calls([("f", "{}"), ("g", "{}")])
            assert {mark for mark in form.marks if mark in spelled} <= TEXT_MARKS
    for marks in REASONING.values():
        assert {marks.begin, marks.end} <= TEXT_MARKS


# ----------------------------------------------------------------------------------- conversations


def test_a_template_without_tools_gets_them_in_words(run: Run) -> None:
    text, _ = run(templates.PLAIN, tool_calling=ToolCalling(), messages=HISTORY)
    assert text.startswith("<|im_start|>system\nYou can call functions")
    assert '{"name": "f", "parameters": {"type": "object"}}\n{"name": "g"}' in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
    ) in text


def test_a_system_message_stays(run: Run) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *USER]
    text, _ = run(templates.PLAIN, tool_calling=ToolCalling(), messages=messages)
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call functions")
    text, _ = run(templates.PLAIN, messages=messages)  # tool_choice none
    assert "You can call" not in text


def test_a_template_without_system_messages(run: Run) -> None:
    text, _ = run(templates.NO_SYSTEM, tool_calling=ToolCalling())
    assert text.startswith("<|im_start|>user\nYou can call functions")
    assert text.endswith("hi<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(InvalidRequest, match="System role not supported"):
        run(templates.NO_SYSTEM, tools=None, messages=[{"role": "system", "content": "x"}, *USER])


def test_ids_as_mistral_wants_them(run: Run) -> None:
    text, _ = run(templates.MISTRAL, tool_calling=ToolCalling(), messages=HISTORY)
    assert "call_1" not in text
    first = text.partition('"id": "')[2][:9]
    assert f"[TOOL_RESULTS]{first}" in text


def test_arguments_and_content_as_deepseek_wants_them(run: Run) -> None:
    text, _ = run(templates.DEEPSEEK, tool_calling=ToolCalling(), messages=HISTORY)
    assert 'function<｜tool▁sep｜>f\n```json\n{"a": "é"}\n```' in text


def test_calls_in_words_in_every_form(run: Run) -> None:
    for name in ("pythonic", "json", "mistral_args"):
        text, _ = run(templates.PLAIN, tool_parser=name, tool_calling=ToolCalling(), messages=HISTORY)
        reader = FORMATS[name].reader(["f", "g"])
        made = text.partition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
        assert [piece.text for piece in joined(reader.push(made) + reader.flush())] == ["f", '{"a": "é"}', "g", "{}"]


@pytest.mark.parametrize(
    ("template", "tool_parser", "written"),
    [
        (templates.PLAIN, "hermes", '{"name": "f", "arguments": {"a": 1}\n</tool_call>'),
        (templates.PLAIN, "pythonic", '[f({"a": 1)]'),
        (templates.DEEPSEEK, "auto", '```json\n{"a": 1\n```'),
    ],
)
def test_arguments_that_are_no_json_are_shown_as_they_were_written(
    run: Run, template: str, tool_parser: str, written: str
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text, _ = run(template, tool_parser=tool_parser, tool_calling=ToolCalling(), messages=messages)
    assert written in text
