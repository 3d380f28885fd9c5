"""Incremental decoding: the pieces joined are the whole, and no piece ends inside a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.tokenizer.decode import MAX_HELD, Detokenizer

UNICODE = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs",)),
        st.sampled_from("你好世界🎉👩\u200d👧é\u0301\u0300ñ ▁\n\t�🏳️\u200d🌈"),
    ),
    max_size=40,
)


def pieces(detokenizer: Detokenizer, token_ids: list[int], tail: list[int], skip: bool = True) -> list[str]:
    stream = detokenizer.stream(tail, skip)
    return [*map(stream.push, token_ids), stream.flush()]


@settings(max_examples=300, deadline=None)
@given(text=UNICODE, skip=st.booleans())
def test_byte_level_pieces_are_the_whole_text(byte_level: Tokenizer, text: str, skip: bool) -> None:
    token_ids = byte_level.encode(text, add_special_tokens=False).ids
    parts = pieces(Detokenizer(byte_level), token_ids, [], skip)
    assert "".join(parts) == byte_level.decode(token_ids, skip_special_tokens=skip) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@settings(max_examples=300, deadline=None)
@given(token_ids=st.lists(st.integers(0, 410), max_size=MAX_HELD - 1), skip=st.booleans())
def test_any_byte_level_tokens_decode_as_a_whole(byte_level: Tokenizer, token_ids: list[int], skip: bool) -> None:
    """Also ids of no token, special ones, and bytes that are no UTF-8."""
    expected = byte_level.decode(token_ids, skip_special_tokens=skip)
    assert "".join(pieces(Detokenizer(byte_level), token_ids, [], skip)) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_long_runs_of_broken_bytes_decode_as_a_whole(byte_level: Tokenizer, data: st.DataObject) -> None:
    """More than is held back, mixed with whole characters that must not be cut."""
    broken = [byte_level.token_to_id(character) for character in "ĠÃäðŁ½¦¡"]
    assert None not in broken
    emoji = byte_level.encode("🎉", add_special_tokens=False).ids
    runs = data.draw(st.lists(st.one_of(st.sampled_from(broken).map(lambda one: [one]), st.just(emoji)), max_size=60))
    token_ids = [token_id for run in runs for token_id in run]
    assert "".join(pieces(Detokenizer(byte_level), token_ids, [])) == byte_level.decode(token_ids)


@settings(max_examples=300, deadline=None)
@given(text=UNICODE, prompt=UNICODE)
def test_byte_level_text_continues_any_prompt(byte_level: Tokenizer, text: str, prompt: str) -> None:
    tail = byte_level.encode(prompt, add_special_tokens=False).ids[-12:]
    token_ids = byte_level.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(Detokenizer(byte_level), token_ids, tail)) == text


@settings(max_examples=300, deadline=None)
@given(text=UNICODE)
def test_byte_fallback_pieces_are_the_whole_text(metaspace: Tokenizer, text: str) -> None:
    token_ids = metaspace.encode(text, add_special_tokens=False).ids
    parts = pieces(Detokenizer(metaspace), token_ids, [])
    assert "".join(parts) == metaspace.decode(token_ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.sampled_from(["the", "cat", "你", "🎉", "sat", "é"]), min_size=2, max_size=12), data=st.data())
@pytest.mark.parametrize("kind", ["metaspace", "unigram", "byte_level"])
def test_the_first_piece_keeps_its_space(
    request: pytest.FixtureRequest, kind: str, words: list[str], data: st.DataObject
) -> None:
    """Wherever a text is cut into prompt and output, the output's text is what the whole has more."""
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    token_ids = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
    cut = data.draw(st.integers(1, len(token_ids)))
    prompt, output = token_ids[:cut], token_ids[cut:]
    before, whole = tokenizer.decode(prompt), tokenizer.decode(token_ids)
    expected = whole[len(before.rstrip("\ufffd")) :] if before.endswith("\ufffd") else whole[len(before) :]
    if output:
        assert "".join(pieces(Detokenizer(tokenizer), output, prompt)) == expected


def test_half_a_character_is_held_and_flushed(byte_level: Tokenizer) -> None:
    emoji = byte_level.encode("🎉", add_special_tokens=False).ids
    assert len(emoji) > 1
    assert pieces(Detokenizer(byte_level), emoji[:-1], []) == [""] * (len(emoji) - 1) + ["\ufffd"]


def test_a_prompt_that_ends_in_a_replacement_character_is_not_repeated(byte_level: Tokenizer) -> None:
    tail = byte_level.encode("so \ufffd", add_special_tokens=False).ids
    output = byte_level.encode(" what", add_special_tokens=False).ids
    assert "".join(pieces(Detokenizer(byte_level), output, tail)) == " what"
    assert "".join(pieces(Detokenizer(byte_level), [], tail)) == ""


def test_text_that_came_out_is_not_taken_back(metaspace: Tokenizer) -> None:
    """A byte after a whole character makes this decoder doubt the character; the stream had shown it."""

    def byte(value: int) -> int:
        return metaspace.token_to_id(f"<0x{value:02X}>")  # type: ignore[no-any-return]

    cat = metaspace.encode("the cat", add_special_tokens=False).ids[-1]
    parts = pieces(Detokenizer(metaspace), [byte(0xE4), byte(0xBD), byte(0xA0), byte(0x80), cat], [1])
    assert "".join(parts).startswith("你\ufffd")
    assert "".join(parts).endswith(metaspace.decode([cat]).strip())


def test_special_tokens_show_only_when_asked(byte_level: Tokenizer) -> None:
    assert "".join(pieces(Detokenizer(byte_level), [1, 2, 1], [], skip=True)) == ""
    assert "".join(pieces(Detokenizer(byte_level), [1, 2, 1], [], skip=False)) == "</s><|im_start|></s>"


def test_tokens_without_text_cost_the_same_for_ever(byte_level: Tokenizer) -> None:
    """Ids beyond the vocabulary (padding of the embedding) are held back in bounded number."""
    stream = Detokenizer(byte_level).stream([], True)
    assert "".join(stream.push(5_000) for _ in range(20_000)) == ""
    token = byte_level.encode("cat", add_special_tokens=False).ids
    assert "".join(map(stream.push, token)) == "cat"
