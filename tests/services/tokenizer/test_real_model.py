"""The same rules with a tokenizer and a template that people use: SmolLM2's."""

import asyncio
import random

import pytest

from services.launcher import default_model
from services.tokenizer.config import Settings
from services.tokenizer.decode import Detokenizer
from services.tokenizer.encode import Encoded, Encoder
from services.tokenizer.model_files import ModelFiles, load_model_files
from shared.messages import ChatPrompt, Tokenize
from shared.packing import unpack_i32

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm() -> ModelFiles:
    folder = asyncio.run(default_model.prepare())
    return load_model_files(Settings(model_path=str(folder)))


def test_chat_equals_transformers_own_encoding(smollm: ModelFiles) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France? 🇫🇷 Réponds en français."},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "你好，  two  spaces\n\n\tand\u200da\u0301ccents"},
    ]
    [result] = Encoder(smollm, 4).encode([Tokenize(request_id="r", reply_to="g", prompt=ChatPrompt(messages=messages))])
    assert isinstance(result, Encoded)
    expected = smollm.chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(unpack_i32(result.generate.token_ids)) == expected
    assert result.generate.stop_token_ids == [smollm.backend.token_to_id("<|im_end|>")]


def test_random_tokens_decode_as_a_whole(smollm: ModelFiles) -> None:
    """Real vocabularies have tokens that hold parts of two characters, and runs of them."""
    detokenizer, rng = Detokenizer(smollm.backend), random.Random(0)
    for _ in range(300):
        token_ids = [rng.randrange(smollm.vocab_size) for _ in range(100)]
        skip = rng.random() < 0.5
        stream = detokenizer.stream([], skip)
        text = "".join(map(stream.push, token_ids)) + stream.flush()
        assert text == smollm.backend.decode(token_ids, skip_special_tokens=skip)
