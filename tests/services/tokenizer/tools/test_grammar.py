"""What calls are held to: xgrammar takes the tags, lets through what the readers read, and stops what they do not."""

import json
from typing import Any

import pytest
import xgrammar
from tokenizers import Tokenizer
from xgrammar import StructuralTag
from xgrammar.builtin_structural_tag import get_model_structural_tag

from services.tokenizer.tools import grammar
from services.tokenizer.tools.formats import FORMATS
from services.tokenizer.tools.reasoning import FORMATS as REASONING
from shared.grammar import tokenizer_info

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {
        "name": "f", "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
                       "additionalProperties": False},
    }},
    {"type": "function", "function": {"name": "get.b"}},
]  # fmt: skip
SPELLED = [name for name in FORMATS if FORMATS[name].spelling and not name.endswith("_exact")]


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    """Over a vocabulary of bytes."""
    vocabulary = [bytes([value]) for value in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])  # type: ignore[arg-type]
    return xgrammar.GrammarCompiler(info)


def accepts(compiler: xgrammar.GrammarCompiler, form: dict[str, Any], text: str) -> bool:
    """Whether the text may be all of an answer."""
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(grammar.tag(form)))
    return matcher.accept_string(text) and matcher.accept_token(256)


def spelling_of(name: str) -> Any:
    spelling = FORMATS[name].spelling
    assert spelling is not None
    return spelling


@pytest.mark.parametrize("name", SPELLED)
def test_calls_that_must_be_made(compiler: xgrammar.GrammarCompiler, name: str) -> None:
    spelling = spelling_of(name)
    one, two = [("f", '{"a": 1}')], [("f", '{"a": 1}'), ("get.b", "{}")]
    several = grammar.calls(TOOLS, spelling, several=True)
    assert accepts(compiler, several, spelling.calls(one))
    assert accepts(compiler, several, spelling.calls(two))
    single = grammar.calls(TOOLS, spelling, several=False)
    assert accepts(compiler, single, spelling.calls(one))
    for form, text in (
        (single, spelling.calls(two)),
        (several, ""),
        (several, "I would rather not"),
        (several, "Well: " + spelling.calls(one)),
        (several, spelling.calls([("f", '{"a": "1"}')])),
        (several, spelling.calls([("f", "{}")])),
        (several, spelling.calls([("h", "{}")])),
        (several, spelling.calls([("get.b", '{"a": 1}')])),
        (several, spelling.calls([("f", '{  "a": 1}')])),
        (grammar.calls(TOOLS[:1], spelling, several=False), spelling.calls([("get.b", "{}")])),
    ):
        assert not accepts(compiler, form, text), text


@pytest.mark.parametrize("name", SPELLED)
def test_calls_that_may_be_made(compiler: xgrammar.GrammarCompiler, name: str) -> None:
    spelling = spelling_of(name)
    form = grammar.text_with_calls(TOOLS, spelling, several=True)
    call = spelling.calls([("f", '{"a": 1}')])
    for text in ("", "No call {} [].", call, f"So: {call}", f"{call}\n{call} Done."):
        assert accepts(compiler, form, text), text
    for text in (spelling.calls([("f", "{}")]), f"So: {spelling.calls([('h', '{}')])}", call[: len(call) // 2]):
        assert not accepts(compiler, form, text), text
    single = grammar.text_with_calls(TOOLS, spelling, several=False)
    assert accepts(compiler, single, f"So: {call}")
    assert not accepts(compiler, single, f"{call}\n{call}")


@pytest.mark.parametrize("marks", REASONING.values(), ids=REASONING.keys())
def test_forms_behind_reasoning(compiler: xgrammar.GrammarCompiler, marks: Any) -> None:
    form = grammar.json_schema({"type": "object"})
    optional = grammar.after_reasoning(form, marks, has_begun=False)
    begun = grammar.after_reasoning(form, marks, has_begun=True)
    for text in ("{}", f"{marks.begin}free {{ text{marks.end}\n\n{{}}"):
        assert accepts(compiler, optional, text), text
    assert accepts(compiler, begun, f"free text{marks.end}{{}}")
    for wrong, text in ((optional, "free text"), (begun, "{}"), (begun, f"free{marks.end} text")):
        assert not accepts(compiler, wrong, text), text


def test_a_tool_that_is_not_strict_takes_any_object(compiler: xgrammar.GrammarCompiler) -> None:
    loose = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": False}}]
    form = grammar.calls(loose, spelling_of("hermes"), several=False)
    for arguments in ("{}", '{"b": [1, {"c": null}], "a": "x"}'):
        assert accepts(compiler, form, spelling_of("hermes").calls([("f", arguments)]))
    for arguments in ("[]", '{"a": }', "1"):
        assert not accepts(compiler, form, spelling_of("hermes").calls([("f", arguments)]))


def test_either_calls_or_an_answer(compiler: xgrammar.GrammarCompiler) -> None:
    spelling = spelling_of("hermes")
    answer = grammar.json_schema({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
    form = grammar.either(grammar.calls(TOOLS, spelling, several=True), answer)
    assert accepts(compiler, form, '{"x": 1}')
    assert accepts(compiler, form, spelling.calls([("f", '{"a": 1}')]))
    assert not accepts(compiler, form, "text")


@pytest.mark.parametrize(("name", "family"), [("hermes", "qwen_3"), ("llama3_json", "llama")])
def test_free_calls_are_held_to_the_tags_of_xgrammar(name: str, family: str) -> None:
    tools = [tool | {"function": tool["function"] | {"parameters": {"type": "object"}}} for tool in TOOLS]
    ours = json.loads(grammar.tag(grammar.text_with_calls(tools, spelling_of(name), several=True)))
    theirs = get_model_structural_tag(
        family,
        tools,
        "auto",
        reasoning="disabled",
        exclude_special_tokens=False,
        max_whitespace_cnt=1,  # type: ignore[arg-type]
    )
    shorter = theirs.model_dump()
    # their trigger for JSON is a character shorter
    shorter["format"]["triggers"] = ours["format"]["triggers"]
    assert StructuralTag.from_json(ours).model_dump() == shorter


@pytest.mark.parametrize(("name", "family"), [("deepseek_v3", "deepseek_r1"), ("deepseek_v3_1", "deepseek_v3_1")])
def test_required_calls_are_held_to_the_tags_of_xgrammar(name: str, family: str) -> None:
    tools = [tool | {"function": tool["function"] | {"parameters": {"type": "object"}}} for tool in TOOLS]
    ours = StructuralTag.from_json(grammar.tag(grammar.calls(tools, spelling_of(name), several=True)))
    theirs = get_model_structural_tag(family, tools, "required", reasoning="disabled", max_whitespace_cnt=1)  # type: ignore[arg-type]
    assert ours == theirs


def test_arguments_of_tools() -> None:
    assert grammar.arguments_schema({"name": "f"}) == grammar.NO_ARGUMENTS
    assert grammar.arguments_schema({"name": "f", "parameters": {"properties": {}}}) == {
        "type": "object",
        "properties": {},
    }
    assert grammar.arguments_schema({"name": "f", "parameters": {"required": ["a"]}, "strict": False}) == {
        "type": "object"
    }


def test_special_tokens_that_mark_calls_are_part_of_answers(byte_level: Tokenizer) -> None:
    """And those that mark nothing are not."""
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    marks = [*FORMATS["mistral"].marks, *FORMATS["deepseek_v3"].marks]
    tokenizer.add_special_tokens(marks)
    info = tokenizer_info(tokenizer, tokenizer.get_vocab_size(), [1])
    assert [info.decoded_vocab[tokenizer.token_to_id(mark)].decode() for mark in marks] == marks
    compiler = xgrammar.GrammarCompiler(info)
    for name in ("mistral", "mistral_args", "deepseek_v3"):
        spelled = spelling_of(name).calls([("f", '{"a": 1}')])
        ids = tokenizer.encode(spelled, add_special_tokens=False).ids
        assert len(ids) < len(spelled)
        for form in (
            grammar.calls(TOOLS, spelling_of(name), several=True),
            grammar.text_with_calls(TOOLS, spelling_of(name), several=True),
        ):
            matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(grammar.tag(form)))
            assert all(matcher.accept_token(token_id) for token_id in [*ids, 1])
    free = xgrammar.GrammarMatcher(compiler.compile_structural_tag(grammar.tag({"type": "any_text"})))
    assert not free.accept_token(tokenizer.token_to_id("<|im_start|>"))
