"""Runs by the states that force them: what a device that has a copy of the table finds, and when it is relied on."""

import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from services.gpu_worker.grammar import automaton as automata
from services.gpu_worker.grammar import prediction
from services.gpu_worker.grammar.automaton import Automaton, State
from services.gpu_worker.grammar.prediction import (
    ENTRY,
    HEADER,
    MAX_LENGTH,
    MAX_NUMBERS,
    NO_ROOM,
    NOWHERE,
    Guesses,
    Room,
    RunTable,
)
from services.gpu_worker.grammar.remembering import RememberingMatcher
from services.gpu_worker.grammar.vocabulary import MAX_TOKEN_BYTES
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from tests.services.gpu_worker.grammar import toy

VOCABULARY = toy.vocabulary()
ROOM = Room(99, 99)
FORM = toy.regex(r'\{"name": "[a-e]{0,9}", "age": [3-5]{2}, "city": "([a-z ]|é)+"\}')


def a_table() -> RunTable:
    table = RunTable()
    table.set_vocabulary(VOCABULARY.texts, VOCABULARY.text_lengths)
    return table


def a_matcher(compiled: XGrammarCompiled = FORM) -> RememberingMatcher:
    matcher = compiled.matcher((toy.END,))
    assert isinstance(matcher, RememberingMatcher) and matcher.automaton is not None
    return matcher


def place(matcher: RememberingMatcher) -> tuple[Automaton, State]:
    assert matcher.automaton is not None and matcher.state is not None
    return matcher.automaton, matcher.state


def after(text: str, compiled: XGrammarCompiled = FORM) -> tuple[Automaton, State]:
    matcher = a_matcher(compiled)
    assert all(map(matcher.accept, toy.encode(text)))
    return place(matcher)


def explored(table: RunTable) -> None:
    while table._unexplored:
        table.explore()


def found(table: RunTable, number: int, token_id: int, *, most: int = 99, room: Room = ROOM) -> list[int]:
    guesses = Guesses(np.array([number], np.int32), np.array([most], np.int32))
    lengths, numbers = table.find(guesses, np.array([token_id], np.int32), room)
    return table.run(int(numbers[0]), int(lengths[0]))


@pytest.mark.parametrize("seed", range(5))
def test_every_token_leads_to_the_state_that_the_matcher_comes_to(seed: int) -> None:
    table, matcher, rng = a_table(), a_matcher(), random.Random(seed)
    table.number(*place(matcher))
    explored(table)
    mask = toy.empty_mask(VOCABULARY.vocab_size)
    while True:
        before = table.number(*place(matcher))
        matcher.fill(mask)
        choices = toy.allowed(mask) - {toy.END}
        for token_id in range(VOCABULARY.vocab_size):
            _, [number] = table.find(Guesses(*np.array([[before], [9]], np.int32)), np.array([token_id]), ROOM)
            assert (number != NOWHERE) == (token_id in choices)
        if not choices:
            break
        token_id = rng.choice(sorted(choices))
        _, [number] = table.find(Guesses(*np.array([[before], [9]], np.int32)), np.array([token_id]), ROOM)
        assert matcher.accept(token_id)
        assert table.number(*place(matcher)) == number


def test_a_run_is_found_behind_whatever_token_leads_to_its_state() -> None:
    table = a_table()
    automaton, state = after('{"name": "abc"')
    table.observe(automaton, state, [8, 9])
    quote = VOCABULARY.token_bytes.index(b'"')
    numbers = [table.number(*after('{"name": "' + name)) for name in ("", "b", "eee")]
    explored(table)
    assert [found(table, number, quote) for number in numbers] == [[8, 9]] * 3
    assert found(table, numbers[1], VOCABULARY.token_bytes.index(b"a")) == []
    assert found(table, numbers[1], quote, most=1) == found(table, numbers[1], quote, room=Room(1, 9)) == []
    assert found(table, numbers[1], quote, room=Room(9, 0)) == found(table, NOWHERE, quote) == []
    assert found(table, numbers[1], toy.END) == []


def test_nothing_is_found_before_it_was_looked_where_bytes_lead() -> None:
    table = a_table()
    table.observe(*after('{"name": "abc"'), [8, 9])
    number = table.number(*after('{"name": "ab'))
    assert found(table, number, VOCABULARY.token_bytes.index(b'"')) == []
    table.explore()
    assert table.changes() is not None


def shown(table: RunTable, number: int) -> list[int]:
    return table.run(number, int(table.entries[number, 0]))


def test_a_run_is_relied_on_from_its_first_time_until_it_fails() -> None:
    table = a_table()
    known = after('{"name": "a"')
    number = table.number(*known)
    steps: list[tuple[Sequence[int], list[int]]] = [
        ([], []),
        ([8, 9], [8, 9]),
        ([], []),
        ([8, 9], [8, 9]),
        ([8, 9], [8, 9]),
        ([8, 9], [8, 9]),
        ([8, 9], [8, 9]),
        ([5], [8, 9]),
        ([5], [5]),
        (range(MAX_LENGTH + 1), []),
        (range(MAX_LENGTH), list(range(MAX_LENGTH))),
    ]
    for came, expected in steps:
        table.observe(*known, came)
        assert shown(table, number) == expected, came


def test_long_runs_are_left_alone() -> None:
    table = a_table()
    known = after('{"name": "a"')
    table.observe(*known, range(MAX_LENGTH + 1))
    assert shown(table, table.number(*known)) == []


def test_rows_have_room_in_their_order() -> None:
    table = a_table()
    table.observe(*after('{"name": "a"'), [7] * 3)
    number = table.number(*after('{"name": "a'))
    explored(table)
    quote, other = VOCABULARY.token_bytes.index(b'"'), VOCABULARY.token_bytes.index(b"a")
    guesses = Guesses(np.array([number, number, NOWHERE, number, number], np.int32), np.full(5, 9, np.int32))
    tokens = np.array([quote, other, quote, quote, quote], np.int32)

    def lengths(room: Room) -> list[int]:
        result: list[int] = table.find(guesses, tokens, room)[0].tolist()
        return result

    assert lengths(ROOM) == [3, 0, 0, 3, 3]
    assert lengths(Room(8, 9)) == lengths(Room(99, 2)) == [3, 0, 0, 3, 0]
    assert lengths(Room(99, 1)) == [3, 0, 0, 0, 0]
    assert lengths(NO_ROOM) == [0] * 5
    assert table.demand > 0


class Copy:
    """As a device has it."""

    def __init__(self, table: RunTable) -> None:
        self._table = table
        self.follow, self.entries = np.zeros_like(table.follow), np.zeros_like(table.entries)

    def load(self) -> None:
        changes = self._table.changes()
        if changes is not None:
            numbers, rows, runs = changes
            self.follow[numbers], self.entries[numbers] = rows, runs
            self._table.note_copied()

    def assert_equal(self) -> None:
        table = self._table
        assert (self.follow == table.follow).all() and (self.entries[:, 0] == table.entries[:, 0]).all()
        is_shown = table.entries[:, 0] > 0
        assert (self.entries[is_shown] == table.entries[is_shown]).all()


@pytest.mark.parametrize("num_numbers", [MAX_NUMBERS, 12])
def test_changes_make_a_copy_equal(num_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where numbers run out between two rows that are asked about."""
    monkeypatch.setattr(prediction, "MAX_NUMBERS", num_numbers)
    monkeypatch.setattr(prediction, "MAX_EXPLORED", num_numbers * 3 // 4)
    table = a_table()
    copy = Copy(table)
    matchers = [a_matcher(), a_matcher(toy.regex("(abc|[d-z]{3,5},)*"))]
    rng = np.random.default_rng(1)
    for turn in range(60):
        for i, matcher in enumerate(matchers):
            table.observe(*place(matcher), rng.integers(0, 9, rng.integers(0, 4)).tolist())
            mask = toy.empty_mask(VOCABULARY.vocab_size)
            matcher.fill(mask)
            choices = sorted(toy.allowed(mask) - {toy.END})
            if not choices or not matcher.accept(int(rng.choice(choices))):
                matchers[i] = a_matcher()
        if turn % 3 == 0:
            table.explore()
        if turn % 2 == 0:
            for matcher in matchers:
                table.number(*place(matcher))
            copy.load()
            copy.assert_equal()
    copy.load()
    assert table.changes() is None


def test_without_a_number_left_it_begins_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "MAX_NUMBERS", 20)
    monkeypatch.setattr(prediction, "MAX_EXPLORED", 15)
    table, matcher = a_table(), a_matcher(toy.regex("[a-e]{100}"))
    table.observe(*place(matcher), [3])
    seen = set()
    for token_id in toy.encode("abcde" * 6):
        table.explore()
        assert matcher.accept(token_id)
        number = table.number(*place(matcher))
        assert 0 < number < 20 and table.follow[: table._next].max() < table._next <= 20
        seen.add(table._era)
    assert len(seen) > 1
    assert not table.entries[: table._next, 0].any()


def test_looking_around_leaves_room_for_those_who_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "MAX_STATES", 80)
    table, matcher = a_table(), a_matcher(toy.regex("([a-e]|é|ß|[x-z]{3}){50}"))
    table.number(*place(matcher))
    explored(table)
    assert matcher.automaton is not None and len(matcher.automaton._states) < 80 // automata.EXPLORED_SHARE + 10
    assert all(map(matcher.accept, toy.encode("abcde" * 10))) and matcher.state is not None


def test_what_is_too_much_to_look_at_is_left_to_those_who_come(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = toy.ebnf('root ::= "b" x | "acd"\nx ::= (y y y y y y)* "z"\ny ::= "a"?')
    matcher = a_matcher(compiled)
    monkeypatch.setattr(automata, "MAX_LOOKED_AT", 4)
    table = a_table()
    number = table.number(*place(matcher))
    explored(table)
    assert table.follow[number, ord("b")] == NOWHERE != table.follow[number, ord("a")]
    assert all(map(matcher.accept, toy.encode("acd"))) and matcher.state is not None and matcher.state.can_end


def test_few_that_nobody_came_to_are_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "MAX_UNEXPLORED", 3)
    table, matcher = a_table(), a_matcher(toy.regex("([a-e]|é|ß|[x-z]{3}){5}"))
    table.number(*place(matcher))
    for token_id in toy.encode("axyzb"):
        table.explore()
        assert len(table._unexplored) <= 5
        assert matcher.accept(token_id)
        number = table.number(*place(matcher))
        explored(table)
        assert table.follow[number].any() or matcher.can_end()


def test_it_looks_for_no_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "EXPLORED_S", 0.0)
    table, matcher = a_table(), a_matcher(toy.regex("([a-e]|é|ß|[x-z]{3}){50}"))
    number = table.number(*place(matcher))
    table.explore()
    assert (table.follow[number] == NOWHERE).all()
    assert not matcher.automaton.explore(place(matcher)[1], time.thread_time() - 1)  # type: ignore[union-attr]


def test_tables_have_room_for_what_is_put_there() -> None:
    table = a_table()
    assert ENTRY == HEADER + MAX_LENGTH and table.entries.shape == (MAX_NUMBERS, ENTRY)
    assert table.texts is not None and table.text_lengths is not None
    for token_id, text in enumerate(VOCABULARY.token_bytes):
        kept = table.texts[token_id, : table.text_lengths[token_id]].tobytes()
        assert kept == (text if len(text) <= MAX_TOKEN_BYTES else b"")
