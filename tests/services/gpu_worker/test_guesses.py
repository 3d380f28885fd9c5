"""Runs that the device computes before the grammar was asked: whatever it guesses, the answers are the same."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gpu_worker import metrics
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.grammar import prediction
from services.gpu_worker.grammar.prediction import Room
from shared.messages import Drop, Grant, Retract, Sampling
from shared.packing import pack_i32
from tests.services.gpu_worker.constrained_rig import Rig, an_admit
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.guessing import GuessingExecutor, MisguessingExecutor

FORM = r'\{"name": "[a-e ]+", "age": [3-5]{2}, "city": "[a-e ]+", "is_ok": (true|false)\}'
"""The second digit of the age is followed by a run, the first is not."""


@pytest.fixture(autouse=True)
def slow_machines_explore_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "EXPLORED_S", 1.0)


class AheadExecutor(StepExecutor):
    run_ahead = 1


def outcomes() -> tuple[float, float]:
    return metrics.GUESSED_RIGHT._value.get(), metrics.GUESSED_WRONG._value.get()


def filled_in(rig: Rig, num_pages: int) -> None:
    """Waves of five forms, some cut, beside free sequences, with so many pages each at first."""
    rig.shelf.here["form"] = toy.regex(FORM)
    for wave in range(6):
        admits = {
            10 * wave + i: an_admit(
                10 * wave + i,
                "" if i == 2 else "form",
                prompt=[5, wave, i],
                pages=range(50 * i, 50 * i + num_pages),
                max_tokens=25 if i == 2 else 8 + wave + i if i == 3 else 150,
            )
            for i in range(5)
        }
        rig.plan(*admits.values())
        given = dict.fromkeys(admits, num_pages)
        for _ in range(400):
            rig.run()
            if admits.keys() <= rig.ended.keys():
                break
            for sequence_id in list(rig.stalled):
                page = 50 * (sequence_id % 10) + given[sequence_id]
                given[sequence_id] += 1
                rig.plan(Grant(sequence_id=sequence_id, pages=pack_i32([page])))
        assert admits.keys() <= rig.ended.keys()


@pytest.mark.parametrize("num_pages", [50, 1])
@pytest.mark.parametrize("room", [Room(100, 9), Room(9, 9), Room(99, 1)])
def test_guesses_save_steps_and_change_no_answer(num_pages: int, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuessingExecutor, "room", room)
    plain, guessing = Rig(executor=AheadExecutor), Rig(executor=GuessingExecutor)
    before = outcomes()
    filled_in(plain, num_pages)
    assert outcomes() == before
    filled_in(guessing, num_pages)
    right, wrong = (now - then for now, then in zip(outcomes(), before, strict=True))
    assert_same(guessing, plain)
    assert right > 0 and wrong <= right / 10
    if num_pages > 1:
        assert len(guessing.runner.calls) < len(plain.runner.calls)


@pytest.mark.parametrize("num_pages", [50, 1])
def test_wrong_guesses_change_no_answer(num_pages: int) -> None:
    plain, guessing = Rig(executor=AheadExecutor), Rig(executor=MisguessingExecutor)
    filled_in(plain, num_pages)
    before = outcomes()
    filled_in(guessing, num_pages)
    right, wrong = (now - then for now, then in zip(outcomes(), before, strict=True))
    assert_same(guessing, plain)
    assert right > 0 and wrong > 0


def assert_same(guessing: Rig, plain: Rig) -> None:
    assert guessing.tokens == plain.tokens
    for sequence_id, places in guessing.forced.items():
        assert set(places) >= set(plain.forced[sequence_id])  # the first of a run may count as sampled
    assert guessing.ended == plain.ended


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sequences_that_go_and_come_under_guesses(data: st.DataObject) -> None:
    """Dropped, retracted and taken over at any step."""
    executor = data.draw(st.sampled_from([GuessingExecutor, MisguessingExecutor]))
    rig, alone = Rig(executor=executor), Rig(executor=StepExecutor)
    for one in (rig, alone):
        one.shelf.here["form"] = toy.regex(FORM)
    first = data.draw(st.integers(0, 10**6))
    kinds = [Sampling(temperature=1.0, seed=first + i) for i in range(5)]
    kinds[3] = Sampling(temperature=0.7, seed=first, presence_penalty=0.4)
    alone.plan(*(an_admit(i, "form", prompt=[5, i], sampling=kinds[i]) for i in range(5)))
    alone.run(*range(5))
    next_id = itertools.count()
    running: dict[int, int] = {}

    def come(kind: int, outputs: Iterable[int] = ()) -> None:
        sequence_id = 10 * next(next_id) + kind
        running[sequence_id] = kind
        pages = range(50 * kind, 50 * kind + 50)
        rig.tokens[sequence_id] = list(outputs)
        rig.plan(an_admit(sequence_id, "form", prompt=[5, kind], outputs=outputs, pages=pages, sampling=kinds[kind]))

    for kind in range(5):
        come(kind)
    for action in data.draw(st.lists(st.sampled_from(["step", "step", "step", "drop", "retract"]), max_size=60)):
        if action == "step" or not running:
            rig.step()
            continue
        sequence_id = data.draw(st.sampled_from(sorted(running)))
        kind = running.pop(sequence_id)
        command = Drop if action == "drop" else Retract
        rig.plan(command(sequence_ids=[sequence_id]))
        rig.step()
        if sequence_id not in rig.ended:
            come(kind, rig.tokens[sequence_id] if action == "retract" else ())
    rig.run(*running)
    for sequence_id, kind in running.items():
        assert rig.tokens[sequence_id] == alone.tokens[kind]
