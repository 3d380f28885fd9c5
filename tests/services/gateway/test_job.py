"""Bodies to jobs: what is served passes with its meaning, everything else is refused by name."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import unsupported
from services.gateway.job import Job, parse_chat, parse_completion
from services.gateway.openai_types import ChatRequest, CompletionRequest
from shared.errors import InvalidRequest
from shared.messages import ChatPrompt, SamplingOptions, TextPrompt, TokenPrompt
from shared.packing import pack_i32

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Job:
    return parse_chat(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields: Any) -> Job:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def test_defaults_leave_sampling_to_the_model() -> None:
    job = chat()
    assert job.sampling == SamplingOptions()
    assert (job.n, job.max_tokens, job.stop, job.is_streamed, job.ignored) == (1, None, [], False, [])
    assert job.skip_special_tokens
    assert completion().max_tokens == 16


def test_every_parameter_arrives() -> None:
    job = chat(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1,
        seed=-5, logit_bias={"7": -100, "8": 2.5}, n=3, max_tokens=9, min_tokens=2, stop=["a", "b"], stop_token_ids=[4],
        ignore_eos=True, include_stop_str_in_output=True, skip_special_tokens=False, priority=-3, cache_salt="s",
        stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True},
    )  # fmt: skip
    assert job.sampling == SamplingOptions(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1,
        seed=-5, logit_bias={7: -100.0, 8: 2.5}, min_tokens=2, stop_token_ids=[4], ignore_eos=True,
    )  # fmt: skip
    assert (job.n, job.max_tokens, job.stop, job.priority, job.cache_salt) == (3, 9, ["a", "b"], -3, "s")
    assert job.is_streamed
    assert job.include_usage
    assert job.continuous_usage
    assert job.include_stop_str_in_output
    assert not job.skip_special_tokens


@pytest.mark.parametrize("field", sorted({*SamplingOptions.__struct_fields__, "n", "max_tokens", "stop", "stream"}))
def test_null_means_not_given(field: str) -> None:
    assert chat(**{field: None}) == chat()


def test_a_draw_of_its_own_for_each_prompt_without_a_seed() -> None:
    job = completion(prompt=["a", "a"])
    assert job.sampling_of(0).seed != job.sampling_of(1).seed
    job = completion(prompt=["a", "a"], seed=0)
    assert job.sampling_of(0).seed == job.sampling_of(1).seed == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [TextPrompt(text="a")]),
        (["a", "b"], [TextPrompt(text="a"), TextPrompt(text="b")]),
        ([1, 2], [TokenPrompt(token_ids=pack_i32([1, 2]))]),
        ([[1], [2, 3]], [TokenPrompt(token_ids=pack_i32([1])), TokenPrompt(token_ids=pack_i32([2, 3]))]),
    ],
)
def test_four_kinds_of_prompt(prompt: object, expected: list[object]) -> None:
    assert completion(prompt=prompt).prompts == expected


def test_other_spellings() -> None:
    assert chat(top_k=-1).sampling.top_k == 0
    assert chat(stop="x").stop == ["x"]
    assert chat(max_tokens=3, max_completion_tokens=4).max_tokens == 4
    for fields, sent in (
        ({}, None),
        ({"max_tokens": 3}, "max_tokens"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ):
        assert chat(**fields).max_tokens_param == completion(**fields).max_tokens_param == sent
    assert completion(n=2, best_of=2).n == 2
    assert chat(reasoning_effort="low").prompts == [
        ChatPrompt(messages=MESSAGES, template_kwargs={"reasoning_effort": "low"})
    ]


def test_no_reasoning_effort_turns_thinking_off_in_templates() -> None:
    off = {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}
    assert chat(reasoning_effort="none").prompts == [ChatPrompt(messages=MESSAGES, template_kwargs=off)]
    own = {"enable_thinking": True, "reasoning_effort": "high"}
    assert chat(reasoning_effort="none", chat_template_kwargs=own).prompts == [
        ChatPrompt(messages=MESSAGES, template_kwargs={**own, "thinking": False})
    ]


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh"])
def test_any_other_reasoning_effort_is_the_templates_to_read(effort: str) -> None:
    assert chat(reasoning_effort=effort).prompts == [
        ChatPrompt(messages=MESSAGES, template_kwargs={"reasoning_effort": effort})
    ]


def test_template_options() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    (prompt,) = chat(tools=tools, tool_choice="none", chat_template_kwargs={"enable_thinking": False}).prompts
    assert prompt == ChatPrompt(messages=MESSAGES, tools=tools, template_kwargs={"enable_thinking": False})
    (prompt,) = chat(continue_final_message=True).prompts
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (False, True)
    (prompt,) = chat(add_generation_prompt=False).prompts
    assert isinstance(prompt, ChatPrompt)
    assert not prompt.add_generation_prompt


BAD_IN_BOTH = [
    ("model", 5), ("model", ""), ("temperature", -0.1), ("temperature", "hot"), ("top_p", 0), ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 1.5), ("min_p", -0.1), ("min_p", 2), ("presence_penalty", 2.1), ("frequency_penalty", -2.1),
    ("repetition_penalty", 0), ("repetition_penalty", 2.1), ("seed", 2**63), ("seed", 0.5), ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}), ("logit_bias", {"1": 101}), ("logit_bias", [1]), ("n", 0), ("n", 129), ("max_tokens", 0),
    ("max_completion_tokens", -1), ("min_tokens", -1), ("stop", ""), ("stop", ["a"] * 17), ("stop", 5),
    ("stop_token_ids", 5), ("ignore_eos", "yes"), ("stream", 1), ("stream_options", {"include_usage": True}),
    ("priority", 2**31), ("cache_salt", ""), ("cache_salt", "x" * 1025), ("skip_special_tokens", 1),
    ("include_stop_str_in_output", "no"),
]  # fmt: skip
NOT_SERVED_IN_BOTH = [
    ("logprobs", True), ("top_logprobs", 2), ("echo", True), ("store", True), ("guided_whitespace_pattern", " "),
    ("service_tier", "flex"), ("bad_words", ["x"]),
    ("suffix", "x"), ("use_beam_search", True), ("length_penalty", 2), ("prompt_logprobs", 0),
    ("modalities", ["audio"]),
]  # fmt: skip


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(("field", "value"), BAD_IN_BOTH + NOT_SERVED_IN_BOTH)
def test_refusal_names_the_field(parse: Any, field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(**{field: value})
    assert refused.value.param == field
    assert f"'{field}'" in refused.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
    ],
)
def test_refusal_names_the_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"functions": [{}]}, "functions"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": "off"}, "reasoning_effort"),
        ({"best_of": 1}, "best_of"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_refusal_in_a_chat(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [[1, 2**31]]}, "prompt[0][1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 128}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
def test_refusal_in_a_completion(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", False), ("top_logprobs", 0), ("response_format", {"type": "text"}), ("store", False), ("user", "u"),
     ("metadata", {"a": "b"}), ("parallel_tool_calls", True), ("service_tier", "auto"), ("prompt_cache_key", "k"),
     ("tools", []), ("tool_choice", "auto"), ("regex", None), ("modalities", ["text"])],
)  # fmt: skip
def test_what_asks_for_nothing_passes(field: str, value: object) -> None:
    assert chat(**{field: value}) == chat()


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_required_fields(missing: str) -> None:
    body = {"model": "m", "messages": MESSAGES}
    del body[missing]
    with pytest.raises(InvalidRequest) as refused:
        parse_chat(msgspec.json.encode(body))
    assert (refused.value.param, refused.value.code) == (missing, "missing_required_parameter")


def test_unknown_fields_are_told() -> None:
    assert chat(zebra=1, apple={}).ignored == ["apple", "zebra"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b'{"model":NaN}', b'{"model":"\xff"}', b'{"a":' + b"[" * 100_000,
     b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"model":"\\ud800"}', b'{"temperature":1e999}'],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_chat(body)


KNOWN = sorted(
    {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *unsupported.REFUSED, *unsupported.HARMLESS}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "1"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=5), VALUES, max_size=6), st.booleans())
def test_any_json_object_is_a_job_or_a_refusal(fields: dict[str, Any], is_chat: bool) -> None:
    parse = chat if is_chat else completion
    try:
        job = parse(**fields)
    except InvalidRequest:
        return
    assert len(job.prompts) * job.n >= 1
    assert not {*job.ignored} & {*unsupported.REFUSED, *unsupported.HARMLESS}


@pytest.mark.parametrize(
    ("text", "escape"),
    [
        (r"\ud83d", r"\ud83d"),
        (r"a\uDBFFb", r"\uDBFF"),
        (r"\ude00", r"\ude00"),
        (r"\\\ud83d\n", r"\ud83d"),
        (r"\ud83d\ude00\ude01", r"\ude01"),
        (r"\ud83d\ud83e\ude00", r"\ud83d"),
        (r"\ud83d\u0041", r"\ud83d"),
    ],
)
def test_half_of_a_character_is_called_so(text: str, escape: str) -> None:
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": "{text}"}}]}}'
    with pytest.raises(InvalidRequest) as error:
        parse_chat(body.encode())
    place = body.index(escape)
    assert error.value.message == f"The body is not valid JSON: {escape} is an unpaired surrogate (byte {place})."


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud83d", r"\\\\ude00", "\U0001f600"])
def test_whole_characters_in_a_body_that_is_cut_are_not(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON: Input data was truncated"):
        parse_chat(f'{{"model": "{text}'.encode())
