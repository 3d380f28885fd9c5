"""Requests to token ids: each rule, and each error with the field that it names."""

import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer

from services.tokenizer.config import Settings
from services.tokenizer.encode import PROMPT_TAIL, Encoded, Encoder, Text, shard_of
from services.tokenizer.model_files import ModelFiles, load_model_files
from shared.errors import InvalidRequest
from shared.messages import ChatPrompt, Sampling, SamplingOptions, TextPrompt, Tokenize, TokenPrompt, sequence_id
from shared.packing import pack_i32, unpack_i32
from tests.services.tokenizer.conftest import FolderMaker

HELLO = ChatPrompt(messages=[{"role": "user", "content": "hello world"}])


def a_request(prompt: Any = HELLO, **fields: Any) -> Tokenize:
    return Tokenize(request_id="r", reply_to="g", prompt=prompt, **fields)


def encode(model: ModelFiles, request: Tokenize) -> Encoded:
    [result] = Encoder(model, 4).encode([request])
    assert isinstance(result, Encoded), result
    return result


def refused(model: ModelFiles, request: Tokenize) -> InvalidRequest:
    [result] = Encoder(model, 4).encode([request])
    assert isinstance(result, InvalidRequest), result
    assert result.status == 400
    return result


def text_of(model: ModelFiles, encoded: Encoded) -> str:
    token_ids = list(unpack_i32(encoded.generate.token_ids))
    return str(model.backend.decode(token_ids, skip_special_tokens=False))


def test_chat_is_rendered_by_the_template(model: ModelFiles) -> None:
    encoded = encode(model, a_request())
    assert text_of(model, encoded) == "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    token_ids = unpack_i32(encoded.generate.token_ids)
    assert token_ids[0] == model.backend.token_to_id("<|im_start|>")  # no BOS beyond the template's
    assert encoded.open.num_prompt_tokens == len(token_ids)
    assert unpack_i32(encoded.open.prompt_tail) == token_ids[-PROMPT_TAIL:]


def test_chat_equals_transformers_own_encoding(model: ModelFiles) -> None:
    messages = [{"role": "user", "content": "你好 hello"}, {"role": "assistant", "content": "the cat 🎉"}]
    encoded = encode(model, a_request(ChatPrompt(messages=messages)))
    expected = model.chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(unpack_i32(encoded.generate.token_ids)) == expected


def test_chat_options_reach_the_template(model: ModelFiles) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages = [*HELLO.messages, {"role": "assistant", "content": "so"}]
    prompt = ChatPrompt(messages=messages, tools=tools, add_generation_prompt=False, continue_final_message=True)
    text = text_of(model, encode(model, a_request(prompt)))
    assert text.startswith('tools: [{"type": "function"')
    assert text.endswith("<|im_start|>assistant\nso")


def test_text_gets_the_tokenizers_special_tokens(model: ModelFiles) -> None:
    encoded = encode(model, a_request(TextPrompt(text="the cat")))
    assert text_of(model, encoded) == "<s>the cat"


def test_token_ids_pass_as_they_are(model: ModelFiles) -> None:
    encoded = encode(model, a_request(TokenPrompt(token_ids=pack_i32([5, 6, 7]))))
    assert unpack_i32(encoded.generate.token_ids) == array("i", [5, 6, 7])


def test_ids_are_a_function_of_the_request(model: ModelFiles) -> None:
    one, two = encode(model, a_request(n=3)), encode(model, a_request(n=3))
    assert one == two
    assert one.generate.sequence_ids == one.open.sequence_ids == [sequence_id("r", choice) for choice in range(3)]
    assert one.generate.shard == shard_of("r", 4)


def test_requests_spread_over_the_shards() -> None:
    counts = [0] * 4
    for number in range(400):
        counts[shard_of(f"request-{number}", 4)] += 1
    assert min(counts) > 50


def test_open_sampling_takes_the_models_defaults(make_folder: FolderMaker) -> None:
    folder = make_folder(
        generation={"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}
    )
    model = load_model_files(Settings(model_path=str(folder)))
    own = encode(model, a_request()).generate.sampling
    assert own == Sampling(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
    options = SamplingOptions(
        temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, seed=7, logit_bias={3: -1.0}
    )
    asked = encode(model, a_request(sampling=options)).generate.sampling
    assert asked == Sampling(temperature=0.0, seed=7, logit_bias={3: -1.0})


def test_open_sampling_without_the_models_defaults(model: ModelFiles) -> None:
    assert encode(model, a_request()).generate.sampling == Sampling()
    assert encode(model, a_request(sampling=SamplingOptions(top_k=-1))).generate.sampling.top_k == 0


def test_stop_ids_are_the_models_and_the_clients(make_folder: FolderMaker) -> None:
    model = load_model_files(Settings(model_path=str(make_folder(generation={"eos_token_id": [3]}))))
    asked = SamplingOptions(stop_token_ids=[9, 3])
    encoded = encode(model, a_request(sampling=asked))
    assert encoded.generate.stop_token_ids == [1, 3, 9]
    assert (encoded.open.eos_token_ids, encoded.open.stop_token_ids) == ([1, 3], [9, 3])
    ignoring = encode(model, a_request(sampling=msgspec.structs.replace(asked, ignore_eos=True)))
    assert ignoring.generate.stop_token_ids == [9, 3]
    assert ignoring.open.eos_token_ids == []


def test_max_tokens_is_the_rest_of_the_context_unless_given(model: ModelFiles) -> None:
    prompt = TokenPrompt(token_ids=pack_i32(range(100)))
    assert encode(model, a_request(prompt)).generate.max_tokens == 28
    assert encode(model, a_request(prompt, max_tokens=28)).generate.max_tokens == 28


def test_too_many_tokens_are_refused_with_the_numbers(model: ModelFiles) -> None:
    prompt = TokenPrompt(token_ids=pack_i32(range(100)))
    error = refused(model, a_request(prompt, max_tokens=29))
    assert "maximum context length is 128 tokens" in error.message
    assert "129 tokens (100 in the prompt, 29 in the completion)" in error.message
    assert (error.param, error.code) == ("max_tokens", "context_length_exceeded")
    for sent, named in (("max_completion_tokens", "max_completion_tokens"), (None, "prompt")):
        error = refused(model, a_request(prompt, max_tokens=29, max_tokens_param=sent))
        assert (error.param, error.code) == (named, "context_length_exceeded")
    full = TokenPrompt(token_ids=pack_i32(range(128)))
    error = refused(model, a_request(full))
    assert "your prompt has 128 tokens" in error.message
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")


def test_a_hopelessly_long_text_is_refused_unencoded(model: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(model, 4)
    [error] = encoder.encode([a_request(TextPrompt(text="x" * 2_000_000))])
    assert isinstance(error, InvalidRequest)
    assert "2000000 characters" in error.message
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (a_request(TokenPrompt(token_ids=b"")), "prompt"),
        (a_request(TokenPrompt(token_ids=pack_i32([0, 10**6]))), "prompt"),
        (a_request(TokenPrompt(token_ids=pack_i32([-1]))), "prompt"),
        (a_request(ChatPrompt(messages=[])), "messages"),
        (a_request(ChatPrompt(messages=[{"content": "no role"}], template_kwargs={"raise": True})), "messages"),
        (a_request(ChatPrompt(messages=HELLO.messages, continue_final_message=True)), "messages"),
        (
            a_request(ChatPrompt(messages=HELLO.messages, template_kwargs={"chat_template": "x"})),
            "chat_template_kwargs",
        ),
        (a_request(ChatPrompt(messages=HELLO.messages, template_kwargs={"tokenize": True})), "chat_template_kwargs"),
        (a_request(ChatPrompt(messages=HELLO.messages, template_kwargs={"conversation": []})), "chat_template_kwargs"),
        (a_request(sampling=SamplingOptions(logit_bias={10**6: 1.0})), "logit_bias"),
        (a_request(sampling=SamplingOptions(logit_bias={-1: 1.0})), "logit_bias"),
        (a_request(sampling=SamplingOptions(stop_token_ids=[10**6])), "stop_token_ids"),
        (a_request(sampling=SamplingOptions(min_tokens=11), max_tokens=10), "min_tokens"),
        (a_request(max_tokens=0), "max_tokens"),
        (a_request(n=0), "n"),
        (a_request(stop=["a", ""]), "stop"),
    ],
)
def test_bad_requests_name_their_field(model: ModelFiles, request_: Tokenize, param: str) -> None:
    assert refused(model, request_).param == param


def test_an_empty_text_is_refused_where_the_tokenizer_adds_nothing(make_folder: FolderMaker, unigram: Any) -> None:
    model = load_model_files(Settings(model_path=str(make_folder(tokenizer=unigram))))
    error = refused(model, a_request(TextPrompt(text="")))
    assert (error.param, "empty" in error.message) == ("prompt", True)


def test_what_a_template_raises_is_told(model: ModelFiles) -> None:
    prompt = ChatPrompt(messages=HELLO.messages, template_kwargs={"raise": True})
    assert "not like that" in refused(model, a_request(prompt)).message


def test_chat_without_a_template_is_refused(make_folder: FolderMaker) -> None:
    model = load_model_files(Settings(model_path=str(make_folder(template=None))))
    error = refused(model, a_request())
    assert (error.param, "no chat template" in error.message) == ("messages", True)


def test_a_batch_keeps_its_order_and_its_errors_apart(model: ModelFiles) -> None:
    requests = [
        a_request(TextPrompt(text="the cat")),
        a_request(ChatPrompt(messages=[])),
        a_request(),
        a_request(TokenPrompt(token_ids=pack_i32([4]))),
        a_request(TextPrompt(text="the dog")),
    ]
    encoder = Encoder(model, 4)
    results = encoder.encode(requests)
    assert [type(result) for result in results] == [Encoded, InvalidRequest, Encoded, Encoded, Encoded]
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, Encoded):
            assert result == encoder.encode([request])[0]


def test_a_long_prompt_is_deferred_and_encodes_the_same(model: ModelFiles) -> None:
    encoder = Encoder(model, 4)
    long, short = a_request(TextPrompt(text="the cat sat on the mat")), a_request(TextPrompt(text="the"))
    deferred, done = encoder.encode([long, short], defer_above=10)
    assert isinstance(deferred, Text)
    assert isinstance(done, Encoded)
    assert encoder.encode_text(long, deferred) == encoder.encode([long])[0]


def test_vocabulary_is_the_models(model: ModelFiles, byte_level: Tokenizer) -> None:
    """Ids that the embedding has beyond the tokenizer's are allowed, as the model can compute them."""
    last = byte_level.get_vocab_size() + 7
    assert encode(model, a_request(TokenPrompt(token_ids=pack_i32([last])))).open.num_prompt_tokens == 1
    assert refused(model, a_request(TokenPrompt(token_ids=pack_i32([last + 1])))).param == "prompt"


def test_encoding_a_long_prompt_leaves_the_interpreter_to_others(model: ModelFiles) -> None:
    """Whoever waits for a millisecond meanwhile does not wait for the whole encoding."""
    encoder = Encoder(model, 4)
    text = "the cat sat on the mat and the dog sat on the cat. " * 20_000
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(encoder.encode_text, a_request(), Text(text, add_special_tokens=True))
        naps = 0
        while not encoding.done():
            time.sleep(0.001)
            naps += 1
    assert isinstance(encoding.result(), InvalidRequest)
    assert naps > 20
