"""What is remembered of a grammar: the same as its matcher says, and only so much of it."""

import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import xgrammar

from services.gpu_worker.grammar import automaton
from services.gpu_worker.grammar.automaton import Automaton, TooManyStates
from services.gpu_worker.grammar.forced import forced_run, known_run
from services.gpu_worker.grammar.matcher import I32, Matcher, empty_mask, empty_masks
from services.gpu_worker.grammar.remembering import RememberingMatcher
from services.gpu_worker.grammar.rules import Rules, read_rules
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from services.gpu_worker.grammar.xgrammar_matcher import XGrammarMatcher
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.grammar.toy import END

SIZE = toy.vocabulary().vocab_size

GRAMMARS = {
    "object": toy.json_schema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "age": {"type": "integer"},
                "city": {"enum": ["Paris", "Pau", "Éloïse"]},
                "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
            },
            "required": ["name", "city"],
            "additionalProperties": False,
        }
    ),
    "tree": toy.json_schema(
        {
            "$defs": {"node": {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}, "b": {"type": "null"}}}},
            "$ref": "#/$defs/node",
        }
    ),
    "anything": toy.json_schema({"type": "object"}),
    "characters": toy.regex(r"[é-üa-c]{2,4}[^a-y\n]{1,3}(🙂|ß|[\u0800-\u0810\u2000-\U00010010])*"),
    "repeats": toy.ebnf('root ::= ("ab" | "a"){2,5} x{0,2} ("," x){1,}\nx ::= [0-9]* "e"?'),
    "ambiguous": toy.ebnf('root ::= (x | y)* "!"\nx ::= "a" | "aa"\ny ::= "a" y | "b"'),
    "empty repeats": toy.ebnf('root ::= (x*)* "z"\nx ::= "" | "q" x?'),
    "bounds": toy.ebnf('root ::= "<" x ">" x\nx[max_chars=5] ::= [a-cé-ü]* y?\ny[max_chars=3] ::= [d-f0-9]*'),
    "nested": toy.ebnf('root ::= "(" root ")" | [^()]{1,3} | "[" root "," root "]"'),
}


def rules_of(source: str) -> Rules | None:
    return read_rules(xgrammar.Grammar.from_ebnf(source).serialize_json().encode())


def remembering(compiled: XGrammarCompiled, stops: Sequence[int] = (END,)) -> RememberingMatcher:
    matcher = compiled.matcher(stops)
    assert isinstance(matcher, RememberingMatcher)
    return matcher


def plain(compiled: XGrammarCompiled, stops: Sequence[int] = (END,)) -> XGrammarMatcher:
    return compiled.plain_matcher(stops)


def mask_of(matcher: Matcher) -> I32:
    mask = empty_mask(SIZE)
    matcher.fill(mask)
    return mask


@pytest.mark.parametrize("stops", [(END,), (), (END, toy.encode("a")[0])], ids=["stop", "no stop", "a text stops"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_it_says_what_the_matcher_says(name: str, stops: tuple[int, ...]) -> None:
    rng = random.Random(len(name))
    num_remembered = 0
    for _ in range(25):
        one, other = remembering(GRAMMARS[name], stops), plain(GRAMMARS[name], stops)
        for _ in range(40):
            num_remembered += one.state is not None and one.state.mask is not None
            mask = mask_of(one)
            assert (mask == mask_of(other)).all()
            assert one.can_end() == other.can_end()
            assert one.forced_text() == other.forced_text()
            choices = sorted(toy.allowed(mask) - set(stops))
            assert one.state is not None
            if rng.random() < 0.1:
                token = rng.randrange(SIZE - toy.PADDING)
                if token in stops:
                    continue
                if token not in choices:
                    assert not one.accept(token)
                    assert not other.accept(token)
                    continue
            elif choices:
                token = rng.choice(choices)
            else:
                break
            assert one.accept(token)
            assert other.accept(token)
            if rng.random() < 0.2:
                further = [rng.choice(choices)] if one.accept(choices[0]) else []
                back = 1 + bool(further)
                if further:
                    assert other.accept(choices[0])
                one.rollback(back)
                other.rollback(back)
    assert num_remembered > 50


def test_a_bound_within_which_a_rule_cannot_end_is_left_to_the_matcher() -> None:
    """xgrammar lets it go on until it can."""
    compiled = toy.ebnf('root ::= "<" x ">"\nx[max_chars=3] ::= ([a-c] | "(" [a-c] ")")*')
    for text, is_followed in (("<ab", True), ("<a(b", True), ("<ab(b)", False), ("<abc>", True)):
        one, other = remembering(compiled), plain(compiled)
        for token in (toy.encode(character)[0] for character in text):
            assert one.accept(token)
            assert other.accept(token)
            assert (mask_of(one) == mask_of(other)).all()
        assert (one.state is not None) == is_followed, text


def test_a_stop_id_ends_it() -> None:
    compiled = toy.regex("ab?")
    for _ in range(2):
        one = remembering(compiled)
        assert one.accept(toy.encode("a")[0])
        assert one.can_end()
        assert one.accept(END)
        assert one.state is None


def test_runs_are_remembered_by_the_word_before() -> None:
    compiled = GRAMMARS["object"]
    rng = random.Random(0)
    num_known = 0
    for _ in range(40):
        one, other, third = remembering(compiled), plain(compiled), remembering(compiled)
        tokens: list[int] = toy.encode(rng.choice(["the quick", "", "name"]))
        while True:
            limit = rng.choice([1, 2, 50, 50])
            expected = forced_run(other, toy.vocabulary(), tokens, limit)
            known = known_run(third, toy.vocabulary(), tokens, limit)
            assert forced_run(one, toy.vocabulary(), tokens, limit) == expected
            if known is None:
                assert all(third.accept(token_id) for token_id in expected)
            else:
                assert known == expected
                num_known += bool(known)
            assert third.state is one.state
            tokens += expected
            choices = sorted(toy.allowed(mask_of(other)) - {END})
            if not choices:
                break
            token = rng.choice(choices)
            assert all(matcher.accept(token) for matcher in (one, other, third))
            tokens.append(token)
    assert num_known > 50


def test_rows_of_many_are_those_of_each_alone() -> None:
    """Some states are known and some are not, some matchers have left the automaton."""
    rng = random.Random(3)
    compiled = [GRAMMARS["object"], toy.regex("[a-c]{1,9}!"), GRAMMARS["nested"]]
    matchers = [remembering(compiled[i % 3]) for i in range(12)]
    others = [plain(compiled[i % 3]) for i in range(12)]
    matchers[4].state = None
    rows = list(range(12))
    rng.shuffle(rows)
    for _ in range(8):
        bits, expected = empty_masks(12, SIZE), empty_masks(12, SIZE)
        RememberingMatcher.fill_many(matchers, bits, rows)
        XGrammarMatcher.fill_many(others, expected, rows)
        assert (bits == expected).all()
        tokens = [rng.choice(sorted(toy.allowed(bits[row]) - {END}) or [toy.TURN]) for row in rows]
        accepted = RememberingMatcher.accept_many(matchers, tokens)
        assert accepted == [other.accept(token) for other, token in zip(others, tokens, strict=True)]


def test_a_token_that_is_not_allowed_changes_nothing() -> None:
    one = remembering(toy.regex("ab"))
    state = one.state
    assert not one.accept(toy.encode("z")[0])
    assert one.state is state
    assert one.accept(toy.encode("a")[0])


def test_states_are_made_once_for_texts_that_go_on_alike() -> None:
    [a, b, quote] = [toy.encode(text)[0] for text in ("a", "b", '"')]
    compiled = toy.ebnf('root ::= "\\"" text "\\""\ntext ::= [^"\\\\] text | ""')
    one = remembering(compiled)
    assert one.accept(quote)
    within = one.state
    for token in (a, b, a):
        assert one.accept(token)
        assert one.state is within
    assert one.accept(quote)
    assert one.can_end()
    assert one.state is not within


def test_masks_that_are_alike_are_kept_once_and_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MAX_MASK_BYTES", 3 * empty_mask(SIZE).nbytes)
    compiled = toy.regex("[a-c]{12}-[0-9]{3}-[x-z]!")
    for _ in range(3):
        one, other = remembering(compiled), plain(compiled)
        kept = []
        for token in toy.encode("a") * 12 + [toy.encode(text)[0] for text in "-123-x!"]:
            assert (mask_of(one) == mask_of(other)).all()
            assert one.state is not None
            kept.append(id(one.state.mask))
            assert one.accept(token)
            assert other.accept(token)
    assert len(set(kept)) == 4  # three, and none
    assert id(None) in kept


def test_past_so_many_states_the_matcher_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MAX_STATES", 6)
    compiled = toy.regex("[ab]{20}")
    size = compiled.num_bytes
    starts = set()
    for _ in range(3):
        one, other = remembering(compiled), plain(compiled)
        starts.add(one.state)
        for i in range(20):
            assert (mask_of(one) == mask_of(other)).all()
            for matcher in (one, other):
                assert matcher.accept(toy.encode("b")[0])
            assert (one.state is None) == (i >= 5)
        assert one.can_end()
        one.rollback(2)
        other.rollback(2)
        assert (mask_of(one) == mask_of(other)).all()
    assert len(starts) == 3  # the next begins with new ones
    assert size < compiled.num_bytes < size + 10 * automaton.STATE_BYTES + automaton.MAX_MASK_BYTES


@pytest.mark.parametrize("source", ['root ::= root "a" | "b"', 'root ::= x "c"\nx ::= y "a" | "b"\ny ::= x "b" | "c"'])
def test_left_recursion_is_left_to_the_matcher(source: str) -> None:
    rules = rules_of(source)
    assert rules is not None
    with pytest.raises(TooManyStates):
        Automaton(rules)
    one, other = remembering(toy.ebnf(source)), plain(toy.ebnf(source))
    for character in "bab":
        assert (mask_of(one) == mask_of(other)).all()
        assert one.accept(toy.encode(character)[0]) == other.accept(toy.encode(character)[0])
    assert one.state is None


def test_a_grammar_that_is_ambiguous_without_end_is_left_to_the_matcher() -> None:
    """Every byte makes more ways to read it."""
    compiled = toy.ebnf(
        'root ::= x root | x root "b" | "c" root "d" | "e"\nx ::= "a" | "a" x | x2\nx2 ::= "a" x2 "a" | "a"'
    )
    for _ in range(2):
        one, other = remembering(compiled), plain(compiled)
        for _ in range(40):
            assert one.accept(toy.encode("a")[0])
            assert other.accept(toy.encode("a")[0])
            assert (mask_of(one) == mask_of(other)).all()
    assert one.state is None


def test_the_first_that_brings_a_grammar_has_nothing_remembered() -> None:
    """The second waits for nothing: it goes over to the automaton when the rules are read."""
    grammar = toy.compiler().compile_regex("(ab)*c")
    go_on = threading.Event()

    def read() -> Rules | None:
        assert go_on.wait(10)
        return read_rules(grammar.grammar.serialize_json().encode())

    compiled = XGrammarCompiled(grammar, toy.vocabulary(), read)
    [a, b, c] = [toy.encode(text)[0] for text in "abc"]
    assert isinstance(compiled.matcher((END,)), XGrammarMatcher)
    assert compiled.reading is None
    one, other = remembering(compiled), plain(compiled)
    for token in (a, b, a):
        assert one.accept(token) and other.accept(token)
        assert one.state is None
        assert (mask_of(one) == mask_of(other)).all()
    one.rollback(1)
    other.rollback(1)
    go_on.set()
    assert compiled.reading is not None
    compiled.reading.result()
    assert one.accept(a) and other.accept(a)
    assert one.state is not None
    assert (mask_of(one) == mask_of(other)).all()
    assert one.accept(b)
    one.rollback(4)
    assert one.state is remembering(compiled).state
    assert one.accept(c)
    assert one.can_end()
    assert remembering(compiled, (END, toy.TURN)).state is not remembering(compiled).state  # another mask at the end


def test_what_rules_cannot_say_has_no_automaton() -> None:
    tag = """{"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f="], "tags":
        [{"begin": "<f=a>", "content": {"type": "json_schema", "json_schema": {"type": "integer"}}, "end": "</f>"}]}}"""
    assert read_rules(xgrammar.Grammar.from_structural_tag(tag).serialize_json().encode()) is None
    assert read_rules(b"{}") is None
    serialized = xgrammar.Grammar.from_ebnf('root ::= "a"').serialize_json().encode()
    assert read_rules(serialized) is not None
    assert read_rules(serialized.replace(b'"v16"', b'"v17"')) is None


def test_rules_that_cannot_be_read_leave_the_matcher_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> Rules | None:
        raise RuntimeError("no such grammar")

    compiled = XGrammarCompiled(toy.compiler().compile_regex("ab"), toy.vocabulary(), read)
    for _ in range(3):
        one = compiled.matcher((END,))
        assert one.accept(toy.encode("a")[0])
        assert one.state is None
        if compiled.reading is not None:
            compiled.reading.result()
    assert caplog.text.count("cannot be read") == 1


@pytest.mark.parametrize(
    ("characters", "inside", "outside"),
    [
        ("[a-cx]", "abcx", "dwyé"),
        ("[^a-cx]", "dwyé\n🙂\U0010ffff\x00", "abcx"),
        ("[\\u0080-\\uffff]", "\x80é\u07ff\u0800\ud7ff\ue000\uffff", "\x7f\U00010000"),
        ("[é-ü\\U0001f600-\\U0001f64f]", "éëü😀🙏", "èý\U0001f5ff\U0001f650"),
        ("[\\u00bf-\\u0bff]", "¿À\u07ff\u0800\u0bff", "¾\u0c00"),
    ],
)
def test_characters_are_read_byte_by_byte(characters: str, inside: str, outside: str) -> None:
    rules = rules_of(f"root ::= {characters}")
    assert rules is not None
    one = Automaton(rules)
    for character in inside:
        state = one.walk(one.start, character.encode())
        assert state is not None and state.can_end, character
        assert one.walk(state, b"a") is None
    for character in outside:
        assert one.walk(one.start, character.encode()) is None, character
    for text in (b"\x80", b"\xff", b"\xc0\x80", b"\xc3\x28"):
        assert one.walk(one.start, text) is None


def test_masks_of_a_state_are_not_those_of_a_seat() -> None:
    """A row that is written into afterwards leaves what is remembered as it was."""
    compiled = toy.regex("[ab]c")
    mask = empty_mask(SIZE)
    for _ in range(2):
        one = remembering(compiled)
        one.fill(mask)
        assert toy.allowed(mask) >= {toy.encode("a")[0], toy.encode("b")[0]}
        mask[:] = -1
    assert one.state is not None and one.state.mask is not None
    assert not np.shares_memory(one.state.mask, mask)
