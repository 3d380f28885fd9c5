"""Matchers, masks' meaning and forced runs, over a small byte-level vocabulary."""

import json
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gpu_worker.grammar.matcher import mask_of
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.grammar.toy import END, TURN, a_guide, allowed, encode, text_of, walk

PERSON: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zé]{0,12}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "climate": {"enum": ["temperate", "tropical", "dry"]},
        "tags": {"type": "array", "items": {"const": "alphabet"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "climate", "tags"],
    "additionalProperties": False,
}
PATTERNS = ["(abc|abd)[0-9]+", "alphabet(ical)?", "[a-z]{3}-[0-9]{2}", "é+(ê|ë)x", "(the )*name", "x{100}y"]


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "free"])
@given(seed=st.integers(0, 10**6), prompt=st.sampled_from(["", "the name", '{"', "é"]))
@settings(max_examples=25, deadline=None)
def test_every_finished_walk_is_an_answer(forced: bool, seed: int, prompt: str) -> None:
    tokens, num_forced, is_over = walk(a_guide(toy.json_schema(PERSON), forced=forced), seed, encode(prompt))
    assert is_over
    jsonschema.validate(json.loads(text_of(tokens)), PERSON)
    assert (num_forced > 10) == forced


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("forced", [True, False], ids=["forced", "free"])
def test_every_finished_walk_is_a_full_match(pattern: str, forced: bool) -> None:
    for seed in range(8):
        tokens, _, is_over = walk(a_guide(toy.regex(pattern), forced=forced), seed, [TURN])
        if is_over:
            assert re.fullmatch(pattern, text_of(tokens))
        else:
            assert len(tokens) == 400


@given(seed=st.integers(0, 10**6), at=st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_a_guide_rebuilt_from_the_tokens_goes_on_where_the_first_one_was(seed: int, at: int) -> None:
    tokens, _, _ = walk(a_guide(toy.json_schema(PERSON)), seed, [])
    first = a_guide(toy.json_schema(PERSON))
    for token in tokens[:at]:
        assert first.accept(token)
    second = a_guide(toy.json_schema(PERSON), outputs=tuple(tokens[:at]))
    first.fill()
    second.fill()
    assert (first.mask == second.mask).all()
    assert first.run(tokens[:at], 50) == second.run(tokens[:at], 50)


# ---------------------------------------------------------------------------------------- stop ids


def test_a_stop_id_is_allowed_where_the_grammar_may_end_and_nowhere_else() -> None:
    guide = a_guide(toy.regex("a[0-9]+"), stops=(END, TURN))
    for text, may_end in (("a", False), ("1", True), ("2", True)):
        assert guide.accept(encode(text)[0])
        guide.fill()
        assert (END in allowed(guide.mask), TURN in allowed(guide.mask)) == (may_end, may_end)
        assert not guide.must_end()


def test_a_stop_id_that_is_text_is_no_text_in_the_middle() -> None:
    digit = encode("1")[0]
    guide = a_guide(toy.regex("[0-9]{2}x?"), stops=(digit,))
    guide.fill()
    assert digit not in allowed(guide.mask)
    assert guide.accept(encode("2")[0])
    assert not guide.accept(digit)
    assert guide.accept(encode("3")[0])
    guide.fill()
    assert allowed(guide.mask) == {digit, encode("x")[0]}


def test_the_end_is_known_without_being_sampled() -> None:
    guide = a_guide(toy.regex("ab?"))
    assert guide.accept(encode("a")[0])
    assert not guide.must_end()
    assert guide.accept(encode("b")[0])
    assert guide.must_end()


@pytest.mark.parametrize("stops", [(), (TURN,)], ids=["no stop id", "another stop id"])
def test_a_sequence_without_the_models_stop_id_never_sees_it(stops: tuple[int, ...]) -> None:
    guide = a_guide(toy.regex("[0-9]+|x"), stops=stops)
    assert guide.accept(encode("1")[0])
    guide.fill()
    assert END not in allowed(guide.mask)
    assert not guide.must_end()
    guide = a_guide(toy.regex("[0-9]+|x"), stops=stops)
    assert guide.accept(encode("x")[0])
    assert guide.must_end()


def test_special_tokens_and_padding_are_never_text() -> None:
    guide = a_guide(toy.regex("(.|\n)*"))
    guide.fill()
    size = toy.vocabulary().vocab_size
    assert TURN not in allowed(guide.mask)
    assert not allowed(guide.mask) & set(range(size - toy.PADDING, size + 32))
    assert END in allowed(guide.mask)


def test_a_place_that_the_vocabulary_cannot_spell_is_stuck() -> None:
    guide = a_guide(toy.regex("ab"))
    assert not guide.is_stuck()
    guide.mask[:] = 0
    assert guide.is_stuck()


# ------------------------------------------------------------------------------------ forced runs


@pytest.mark.parametrize(
    ("pattern", "before", "sent"),
    [
        (r'\{"name": "Paris", "age": 12345\}', "", ""),
        (r'\{"name": "Paris", "age": 12345\}', "the quick", ""),
        (r'\{"name": "Paris", "age": 12345\}', "", '{"name":'),
        ("the alphabet Éloïse", "", "the"),
    ],
)
def test_a_run_is_what_the_tokenizer_makes_of_the_text(pattern: str, before: str, sent: str) -> None:
    whole = pattern.replace("\\", "")
    outputs = encode(sent)
    assert encode(whole)[: len(outputs)] == outputs
    guide = a_guide(toy.regex(pattern), outputs=tuple(outputs))
    run = guide.run(encode(before) + outputs, 100)
    assert outputs + run == encode(whole)
    assert guide.must_end()


def test_sent_tokens_stay_as_they_are_where_the_tokenizer_would_merge() -> None:
    sent = encode("alph")
    assert encode("alphabet")[: len(sent)] != sent
    guide = a_guide(toy.regex("alphabet"), outputs=tuple(sent))
    run = guide.run(sent, 100)
    assert text_of(sent + run) == "alphabet"
    assert run == encode("abet")


def test_the_last_token_is_kept_back_when_a_longer_one_could_take_its_place() -> None:
    (longer,) = encode(" alphabet")
    guide = a_guide(toy.regex("city alpha(bet|123)"))
    run = guide.run([], 100)
    assert [*run, longer] == encode("city alphabet")
    guide.fill()
    assert {longer, encode(" ")[0]} <= allowed(guide.mask)
    guide = a_guide(toy.regex("city alpha(123|456)"))
    assert text_of(guide.run([], 100)) == "city alpha"  # nothing longer is possible


def test_a_run_stops_at_its_limit_and_goes_on_from_there() -> None:
    guide = a_guide(toy.regex("x{100}y"))
    tokens: list[int] = []
    for _ in range(200):
        run = guide.run(tokens, 7)
        assert len(run) <= 7
        if not run:
            guide.fill()
            run = [max(allowed(guide.mask), key=lambda token: len(toy.vocabulary().token_bytes[token]))]
            assert guide.accept(run[0])
        tokens += run
        if guide.must_end():
            break
    assert text_of(tokens) == "x" * 100 + "y"
    assert a_guide(toy.regex("x{100}y")).run([], 0) == []


def test_a_run_may_begin_and_end_inside_a_character() -> None:
    half = toy.vocabulary().token_bytes.index("é".encode()[:1])
    guide = a_guide(toy.regex("éx"), outputs=(half,))
    run = guide.run([half], 100)
    assert text_of([half, *run]) == "éx"
    guide = a_guide(toy.regex("name(é|ê)"))
    assert text_of(guide.run([], 100)) == "name"


def test_where_there_is_a_choice_nothing_is_forced() -> None:
    guide = a_guide(toy.regex("a|b"))
    assert guide.run([], 100) == []
    guide.fill()
    assert allowed(guide.mask) == {encode("a")[0], encode("b")[0]}


def test_longer_tokens_are_found_by_prefix() -> None:
    vocabulary = toy.vocabulary()
    for prefix in (b"a", b'"', b" al", b"\xff", b"\xc3", b"zzz"):
        expected = {i for i, text in enumerate(vocabulary.token_bytes) if text.startswith(prefix) and text != prefix}
        assert set(vocabulary.longer_than(prefix).tolist()) == expected


def test_a_row_of_tokens_allows_these_alone() -> None:
    size = toy.vocabulary().vocab_size
    for token_ids in ([], [0], [31, 32, size - 1], list(range(0, size, 7))):
        assert allowed(mask_of(token_ids, size)) == set(token_ids)
