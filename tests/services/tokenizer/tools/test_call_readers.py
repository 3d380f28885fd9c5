"""Tool calls in answers: read alike however an answer is cut, and told from text that only looks like them."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.tools.calls import MAX_HELD
from services.tokenizer.tools.formats import CHOICES, FORMATS
from services.tokenizer.tools.reader import Piece, joined
from shared.messages import Channel
from tests.services.tokenizer.tools.answers import NAMES, Call, an_answer, calls_of, split_bytes, text_of

CALL = '{"name": "f", "arguments": {"a": 1}}'

GENERATED = 25
"""Answers a format: at two calls an answer and nine formats, well over 300 calls."""


def read(form: str, *texts: str, names: list[str] = NAMES) -> list[Piece]:
    reader = FORMATS[form].reader(names)
    pieces = [piece for text in texts for piece in reader.push(text)]
    return joined(pieces + reader.flush())


@pytest.mark.parametrize("form", CHOICES)
def test_generated_calls_are_read_whole_and_alike_for_every_cut(form: str) -> None:
    rng = random.Random(f"calls/{form}")
    num_calls = 0
    for _ in range(GENERATED):
        answer = an_answer(rng, form)
        plain = read(form, answer.text)
        assert calls_of(plain) == answer.calls, answer.text
        assert text_of(plain) == answer.content, answer.text
        num_bytes = len(answer.text.encode())
        for border in range(1, num_bytes):
            assert read(form, *split_bytes(answer.text, border)) == plain, (answer.text, border)
        assert read(form, *split_bytes(answer.text, *range(1, num_bytes))) == plain, answer.text
        num_calls += len(answer.calls)
    assert num_calls * len(CHOICES) >= 300


@pytest.mark.parametrize("form", CHOICES)
def test_an_answer_cut_anywhere_keeps_what_was_written(form: str) -> None:
    """Calls that are there stay; the last one's arguments are a beginning of what they would have been."""
    rng = random.Random(f"cuts/{form}")
    for _ in range(8):
        answer = an_answer(rng, form)
        for length in range(len(answer.text)):
            pieces = read(form, answer.text[:length])
            assert pieces == read(form, *answer.text[:length])
            calls = calls_of(pieces)
            assert [name for name, _ in calls] == [name for name, _ in answer.calls[: len(calls)]]
            assert calls[:-1] == answer.calls[: len(calls)][:-1]
            if calls:
                assert answer.calls[len(calls) - 1][1].startswith(calls[-1][1])


@pytest.mark.parametrize("form", CHOICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_is_read_alike_for_every_cut(form: str, data: st.DataObject) -> None:
    parts = [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<|python_start|>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "```", "json", "\n",
        "{", "}", "[", "]", "(", ")", '"', "\\", "'", ":", ",", ";", "=", " ", "f", "name", '"name": "f"',
        '"arguments": {', "f(a=", "1", "é🎉", '{"name": "f", "arguments": {"a": 1}}', "[f(a=1)]",
    ]  # fmt: skip
    text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=25)))
    assert read(form, *text) == read(form, text)


def test_text_without_calls_is_text_to_the_last_character() -> None:
    text = '  See <tool_call> and [TOOL_CALLS], [1], [f] or {"name": "Bob", "a": {}}; "f(a=1)" <|python_tag|> [f(1)] \n'
    for form in CHOICES:
        assert read(form, text) == [Piece(Channel.CONTENT, 0, text)], form


@pytest.mark.parametrize(
    ("form", "text", "calls", "content"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')], ""),
        ("hermes", '<tool_call>{"id": 7, "name": "f"}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": tru', [("f", '{"a": tru')], ""),
        ("hermes", '<tool_call>{"name": "f", "argum', [("f", "")], ""),
        ("hermes", '<tool_call>{"name": "f', [], '<tool_call>{"name": "f'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}} ok', [("f", "{}")], " ok"),
        ("hermes", '<tool_call>a <tool_call>{"name": "f"}', [("f", "{}")], "<tool_call>a"),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\ud8', [("f", '{"a": "')], ""),
        ("hermes", f"<tool_call>{CALL}}}\n</tool_call>\nok", [("f", '{"a": 1}')], "\nok"),
        ("hermes", f"<tool_call>{CALL}}}}} \n</tool_c", [("f", '{"a": 1}')], ""),
        ("hermes", f"<tool_call>{CALL}}} ok", [("f", '{"a": 1}')], "} ok"),
        ("hermes", f"<tool_call>{CALL[:-1]}\n</tool_call>\nok", [("f", '{"a": 1}')], "\nok"),
        ("hermes", '<tool_call>{"name": "f"\n</tool_call>', [("f", "{}")], ""),
        ("hermes", f"<tool_call>[{CALL[:-1]}, {CALL}\n</tool_call>", [("f", '{"a": 1}')] * 2, ""),
        ("hermes", f"<tool_call>{CALL}\n{CALL},{CALL}\n</tool_call> ok", [("f", '{"a": 1}')] * 3, " ok"),
        ("hermes", f"<tool_call>{CALL}}}\n{CALL[:-1]}\n{CALL}</tool_call>", [("f", '{"a": 1}')] * 3, ""),
        ("hermes", f'<tool_call>{CALL}\n{{"b": 1}} ok', [("f", '{"a": 1}')], '\n{"b": 1} ok'),
        ("hermes", f'<tool_call>{CALL}\n{{"na', [("f", '{"a": 1}')], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"arguments": null, "name": "f"}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": "null"}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": nullable}</tool_call>', [("f", "nullable")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": null', [("f", "{}")], ""),
        ("llama3_json", '{"name": "f", "parameters": null}', [("f", "{}")], ""),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": null}]', [("f", "{}")], ""),
        ("json", '{"plan": [{"name": "f", "arguments": {}}]}', [], '{"plan": [{"name": "f", "arguments": {}}]}'),
        ("json", '```json\n{"name": "f", "arguments": {}}\n```', [("f", "{}")], "```json\n```"),
        ("json", '{"name": "unknown", "arguments": {}}', [], '{"name": "unknown", "arguments": {}}'),
        ("json", 'Sure: {"type": "function", "name": "f", "arguments": {}}.', [("f", "{}")], "Sure:."),
        ("json_exact", '{ "name": "f", "arguments": {}}', [], '{ "name": "f", "arguments": {}}'),
        ("json_exact", 'So {"name": "f", "arguments": {}}', [("f", "{}")], "So"),
        ("llama3_json", '<|python_tag|>brave.call(query="x")', [], '<|python_tag|>brave.call(query="x")'),
        ("mistral", "[TOOL_CALLS]f[ARGS] x", [], "[TOOL_CALLS]f[ARGS] x"),
        ("pythonic", "[f(a=now(), b=(1, 'x'), c={1: None})]",
         [("f", '{"a": "now()", "b": [1, "x"], "c": {"1": null}}')], ""),
        ("pythonic", "[f(a=1, b='x", [("f", '{"a": 1')], ""),
        ("pythonic", "[f(a=1", [("f", "")], ""),
        ("pythonic", "[g(a=1)]", [], "[g(a=1)]"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>", [("f", "{}")], ""),
    ],
)  # fmt: skip
def test_the_ways_of_models(form: str, text: str, calls: list[Call], content: str) -> None:
    pieces = read(form, text, names=["f"])
    assert (calls_of(pieces), text_of(pieces)) == (calls, content)
    assert read(form, *text, names=["f"]) == pieces
    for border in range(1, len(text)):
        assert read(form, text[:border], text[border:], names=["f"]) == pieces


@pytest.mark.parametrize("form", [name for name in FORMATS if FORMATS[name].spelling])
def test_what_we_spell_is_read_back(form: str) -> None:
    spelling = FORMATS[form].spelling
    assert spelling is not None
    calls = [("f", '{"a": "}"}'), ("get_weather", "{}")]
    pieces = read(form, spelling.calls(calls))
    assert (calls_of(pieces), text_of(pieces)) == (calls, "")


def test_arguments_go_out_as_they_come() -> None:
    reader = FORMATS["hermes"].reader(["f"])
    assert reader.push('<tool_call>\n{"name": "f", "argum') == [Piece(Channel.CALL_NAME, 0, "f")]
    assert reader.push('ents": {"a"') == [Piece(Channel.CALL_ARGUMENTS, 0, '{"a"')]
    assert reader.push(": 1") == [Piece(Channel.CALL_ARGUMENTS, 0, ": 1")]


def test_json_that_is_no_call_is_not_held_back() -> None:
    reader = FORMATS["json"].reader(["f"])
    pieces = reader.push('{"city"')
    assert text_of(pieces) == '{"city"'


def test_what_is_held_is_bounded() -> None:
    reader = FORMATS["hermes"].reader(["f"])
    text = '<tool_call>{"arguments": "' + "x" * (MAX_HELD + 10)
    assert text_of(reader.push(text)) == text
    braces = "}" * (MAX_HELD + 10)
    assert text_of(FORMATS["hermes"].reader(["f"]).push(f"<tool_call>{CALL}{braces}")) == braces
    nested = "[" * 200_000
    assert text_of(read("json", nested)) == nested
    arguments = json.dumps({"a": "[" * 1000, "b": [[[]]]})
    assert calls_of(read("pythonic", f"[f(a={'[' * 100_000}, b=1)]", names=["f"])) == [("f", "")]
    assert calls_of(read("hermes", f'<tool_call>{{"name": "f", "arguments": {arguments}}}')) == [("f", arguments)]
