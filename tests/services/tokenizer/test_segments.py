"""Conversations encoded in segments: always what the tokenizer makes of the whole, and only what is new is encoded."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken, Tokenizer, normalizers

from services.tokenizer.encode import Encoded, Encoder
from services.tokenizer.model_files import ModelFiles
from services.tokenizer.segments import ENTRY_BYTES, SegmentEncoder
from shared.messages import ChatPrompt, Tokenize
from tests.services.tokenizer.conftest import train_byte_level, train_metaspace, train_unigram

MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im", "<tool>", "<tool>>", "[X]"]


class Counting:
    """A tokenizer that notes what it is asked to encode."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.texts: list[str] = []

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.texts += texts
        return self._backend.encode_batch_fast(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def with_more_tokens(train: Callable[[], Tokenizer], *, normalizer: bool = False) -> Tokenizer:
    """Tokens that are each other's beginnings, that eat spaces, and one that is only a word after normalisation."""
    tokenizer = Tokenizer.from_str(train().to_str())
    if normalizer:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Strip()])
    tokenizer.add_tokens(
        [
            AddedToken("<|im", special=True, normalized=False),
            AddedToken("<tool>", normalized=False, lstrip=True),
            AddedToken("<tool>>", normalized=False, rstrip=True),
            AddedToken("[X]", normalized=True),
        ]
    )
    return tokenizer


ENCODERS = {
    f"{train.__name__}{'-normalised' * normalizer}": SegmentEncoder(
        with_more_tokens(train, normalizer=normalizer), 4000
    )
    for train in (train_byte_level, train_metaspace, train_unigram)
    for normalizer in (False, True)
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.lists(st.one_of(st.sampled_from([*MARKS, " ", "\n", "the", " cat", ">"]), st.text(max_size=6))).map("".join),
        min_size=1,
        max_size=4,
    )
)
def test_segments_encode_to_what_the_whole_does(name: str, texts: list[str]) -> None:
    encoder = ENCODERS[name]
    assert encoder.is_split
    for _ in range(2):
        for text, ids in zip(texts, encoder.encode(texts, ["a"] * len(texts)), strict=True):
            assert list(ids) == encoder._backend.encode(text, add_special_tokens=False).ids, text


def test_a_token_that_looks_back_is_no_place_to_cut(byte_level: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_tokens([AddedToken("ab", normalized=False, single_word=True)])
    encoder = SegmentEncoder(tokenizer, 1 << 20)
    assert not encoder.is_split
    assert list(encoder.encode(["x<s>ab cab"], [""])[0]) == tokenizer.encode("x<s>ab cab", add_special_tokens=False).ids


def test_a_turn_encodes_what_is_new_in_it(byte_level: Tokenizer) -> None:
    backend = Counting(byte_level)
    encoder = SegmentEncoder(backend, 1 << 20)  # type: ignore[arg-type]
    first = "<|im_start|>system\nthe cat<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    second = first + "fine<|im_end|>\n<|im_start|>user\nthe mat<|im_end|>\n<|im_start|>assistant\n"
    backend.texts.clear()
    encoder.encode([first], [""])
    assert len(backend.texts) == len(set(backend.texts)) == 4
    backend.texts.clear()
    encoder.encode([second, first], ["", ""])
    assert backend.texts == ["<|im_start|>assistant\nfine", "<|im_start|>user\nthe mat"]
    backend.texts.clear()
    encoder.encode([first], ["another's"])
    assert len(backend.texts) == 4, "what another salt encoded was used"


def test_what_is_remembered_has_a_limit_and_the_least_used_goes_first(byte_level: Tokenizer) -> None:
    backend = Counting(byte_level)
    encoder = SegmentEncoder(backend, 10 * (ENTRY_BYTES + 30))  # type: ignore[arg-type]
    for i in range(100):
        encoder.encode([f"<s>{i}", "<s>often"], ["", ""])
    backend.texts.clear()
    encoder.encode(["<s>often", "<s>99", "<s>0", "<s>" + "a" * 5000], [""] * 4)
    encoder.encode(["<s>" + "a" * 5000], [""])
    assert backend.texts == ["<s>0", "<s>" + "a" * 5000, "<s>" + "a" * 5000]
    assert 0 < encoder._used <= 10 * (ENTRY_BYTES + 30)


def test_nothing_is_remembered_without_room_for_it(byte_level: Tokenizer) -> None:
    backend = Counting(byte_level)
    encoder = SegmentEncoder(backend, 0)  # type: ignore[arg-type]
    backend.texts.clear()
    encoder.encode(["<s>a<s>b"], [""])
    encoder.encode(["<s>a<s>b"], [""])
    assert backend.texts == ["<s>a<s>b"] * 2


def test_requests_come_out_the_same_with_and_without_it(model: ModelFiles) -> None:
    plain, quick = Encoder(model, 4), Encoder(model, 4, prompt_cache_bytes=1 << 20)
    messages: list[dict[str, object]] = []
    for turn in range(4):
        messages.append({"role": "user", "content": f"hi {turn}<|im_end|> there"})
        request = Tokenize(request_id=str(turn), reply_to="g", prompt=ChatPrompt(messages=messages))
        results = [encoder.encode([request])[0] for encoder in (plain, quick, quick)]
        assert isinstance(results[0], Encoded)
        assert results[0] == results[1] == results[2]
