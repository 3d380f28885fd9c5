"""Constrained sequences in the engine: masks, forced runs, late grammars, pages that run out, takeovers."""

import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gpu_worker import constraints
from services.gpu_worker.executor import StepExecutor
from shared.errors import InternalError, RequestError, Unavailable
from shared.messages import Drop, Ended, FinishReason, Grant, Retract, Sampling
from shared.packing import pack_i32
from tests.services.gpu_worker.constrained_rig import PERSON, TEXT, Rig, V, an_admit
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.grammar.toy import END, TURN, encode, text_of
from tests.services.gpu_worker.guessing import GuessingExecutor


@pytest.fixture(params=["", "ahead", "guessing"], autouse=True)
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ahead":
        monkeypatch.setattr(StepExecutor, "run_ahead", 1)
    elif request.param == "guessing":
        monkeypatch.setattr(Rig, "executor", GuessingExecutor)


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("forces_runs", [True, False], ids=["forced", "free"])
def test_answers_match_and_steps_are_saved(forces_runs: bool) -> None:
    rig = Rig(forces_runs=forces_runs)
    rig.plan(*(an_admit(i) for i in range(5)))
    rig.run(*range(5))
    for i in range(5):
        jsonschema.validate(json.loads(rig.text(i)), PERSON)
        assert rig.ended[i].reason is FinishReason.STOP
        assert bool(rig.forced.get(i)) == forces_runs
    steps = len(rig.runner.calls)
    assert (steps < max(len(tokens) for tokens in rig.tokens.values()) - 5) == forces_runs


@given(
    seed=st.integers(0, 10**6),
    forces_runs=st.booleans(),
    prefill_budget=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 1.0]),
    max_tokens=st.integers(1, 80),
    count=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answer_is_valid_or_cut(
    seed: int, forces_runs: bool, prefill_budget: int, temperature: float, max_tokens: int, count: int
) -> None:
    rig = Rig(forces_runs=forces_runs, prefill_budget=prefill_budget)
    sampling = Sampling(temperature=temperature, seed=seed, presence_penalty=0.3, repetition_penalty=1.1)
    admits = [
        an_admit(
            i, prompt=[seed % V, i, 9], max_tokens=max_tokens, sampling=sampling, grammar="person" if i % 3 else ""
        )
        for i in range(count)
    ]
    rig.plan(*admits)
    rig.run(*range(count))
    for i in range(count):
        ended = rig.ended[i]
        assert ended.num_tokens == len(rig.tokens[i]) <= max_tokens
        assert rig.cached == dict.fromkeys(range(count), 0)
        if not admits[i].grammar:
            continue
        if ended.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(rig.text(i)), PERSON)
        else:
            assert ended.reason is FinishReason.LENGTH and len(rig.tokens[i]) == max_tokens
            toy.a_guide(toy.json_schema(PERSON), outputs=tuple(rig.tokens[i]))  # raises if they do not match


def test_a_text_without_a_choice_is_computed_with_the_prompt() -> None:
    rig = Rig()
    rig.plan(an_admit(1, "text"))
    rig.run(1)
    assert rig.tokens[1] == encode(TEXT.replace("\\", ""))
    assert rig.forced[1] == list(range(len(rig.tokens[1])))
    assert rig.ended[1].reason is FinishReason.STOP
    assert rig.ended[1].stop_token_id is None
    assert len(rig.runner.calls) == 1
    assert rig.computed[1] == 3


def test_forced_tokens_are_told_only_when_those_before_are_computed() -> None:
    rig = Rig(prefill_budget=4)
    rig.plan(an_admit(1, "text"))
    while rig.step():
        computed = max((start + len(tokens) for call in rig.runner.calls for tokens, start in call), default=0)
        assert 3 + len(rig.tokens.get(1, [])) <= computed
    assert rig.ended[1].reason is FinishReason.STOP


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6])
def test_a_run_ends_at_max_tokens(max_tokens: int) -> None:
    rig = Rig()
    rig.plan(an_admit(1, "text", max_tokens=max_tokens))
    rig.run(1)
    assert rig.ended[1].reason is FinishReason.LENGTH
    assert encode(TEXT.replace("\\", ""))[: max_tokens - 1] == rig.tokens[1][: max_tokens - 1]
    assert len(rig.tokens[1]) == max_tokens


def test_without_a_stop_id_the_end_of_the_grammar_is_the_end() -> None:
    rig = Rig()
    rig.plan(an_admit(1, stop=()))
    rig.run(1)
    jsonschema.validate(json.loads(rig.text(1)), PERSON)
    assert rig.ended[1].reason is FinishReason.STOP
    assert END not in rig.tokens[1]


def test_min_tokens_holds_back_the_end_only_where_something_else_may_follow() -> None:
    rig = Rig()
    rig.shelf.here |= {"open": toy.regex("[ab]+"), "closed": toy.regex("[ab]{3}")}
    sampling = Sampling(temperature=1.0, seed=1, min_tokens=20)
    rig.plan(an_admit(1, "open", sampling=sampling), an_admit(2, "closed", sampling=sampling))
    rig.run(1, 2)
    assert len(rig.tokens[1]) > 20
    assert len(rig.text(2)) == 3


# ------------------------------------------------------------------------------------------ others


def test_free_sequences_have_the_same_tokens_beside_constrained_ones() -> None:
    alone, mixed = Rig(), Rig()
    free = [an_admit(i, "", max_tokens=40) for i in range(3)]
    alone.plan(*free)
    alone.run(0, 1, 2)
    mixed.plan(free[0], an_admit(3), free[1], an_admit(4, "text"), free[2])
    mixed.run(*range(5))
    for i in range(3):
        assert mixed.tokens[i] == alone.tokens[i]
        assert mixed.ended[i] == alone.ended[i]
        assert i not in mixed.forced


def test_a_constrained_sequence_has_the_same_tokens_alone_and_in_a_crowd() -> None:
    alone, crowd = Rig(), Rig()
    alone.plan(an_admit(3))
    alone.run(3)
    crowd.plan(*(an_admit(i, "" if i % 2 else "person") for i in (0, 1, 2)), an_admit(3), an_admit(4))
    crowd.run(*range(5))
    assert crowd.tokens[3] == alone.tokens[3]


def test_a_late_grammar_holds_up_nobody_else() -> None:
    rig = Rig()
    late = rig.shelf.here.pop("person")
    rig.plan(an_admit(0, prompt=range(3, 12)), an_admit(1, "", max_tokens=30), an_admit(2, "text"))
    rig.run(1, 2)
    assert rig.computed[0] == 9
    assert 0 not in rig.tokens
    assert rig.engine.num_prefilling == 1
    rig.shelf.here["person"] = late
    rig.run(0)
    waited = rig.tokens[0]
    other = Rig()
    other.plan(an_admit(0, prompt=range(3, 12)))
    other.run(0)
    assert waited == other.tokens[0]
    assert rig.forced[0] == other.forced[0]


@pytest.mark.parametrize("pattern", ["[ab]{4}", "abba"])
def test_a_grammar_that_comes_in_the_middle_of_the_prefill_is_in_time(pattern: str) -> None:
    rig = Rig(prefill_budget=3)
    rig.plan(an_admit(1, "late", prompt=range(3, 20)))
    rig.step()
    rig.shelf.here["late"] = toy.regex(pattern)
    rig.run(1)
    assert len(rig.text(1)) == 4


@pytest.mark.parametrize("error", [Unavailable("gone", retry_after_s=1), InternalError("broken")])
@pytest.mark.parametrize("is_late", [True, False], ids=["late", "at once"])
def test_a_grammar_that_cannot_be_had_ends_its_sequence_alone(error: RequestError, is_late: bool) -> None:
    rig = Rig()
    if not is_late:
        rig.shelf.here["bad"] = error
    rig.plan(an_admit(0, "bad"), an_admit(1), an_admit(2, ""))
    rig.step()
    rig.shelf.here["bad"] = error
    rig.run(0, 1, 2)
    assert rig.ended[0] == Ended(sequence_id=0, reason=FinishReason.ERROR, num_tokens=0, error=error.body())
    assert rig.ended[1].reason is FinishReason.STOP
    asked = len(rig.shelf.asked)
    rig.step()
    assert len(rig.shelf.asked) == asked


def test_those_who_rely_on_a_prompt_have_it_though_its_grammar_cannot_be_had() -> None:
    rig = Rig(prefill_budget=8)
    rig.shelf.here["bad"] = Unavailable("gone")
    prompt = list(range(5, 25))
    rig.plan(
        an_admit(1, "bad", prompt=prompt, pages=range(10)),
        an_admit(2, "", prompt=[*prompt[:16], 30, 31, 32], pages=[*range(4), *range(20, 60)], cached=16, max_tokens=4),
    )
    rig.run(1, 2)  # whose runner checks that what it reads was computed
    assert rig.computed[1] == len(prompt)
    assert rig.ended[1].reason is FinishReason.ERROR
    assert rig.ended[2].reason is FinishReason.LENGTH


def test_an_error_that_comes_when_nothing_runs_is_told_at_once() -> None:
    rig = Rig()
    rig.plan(an_admit(1, "late"))
    while rig.step():
        pass
    rig.shelf.here["late"] = Unavailable("gone")
    rig.step()
    assert rig.ended[1].reason is FinishReason.ERROR


def test_where_the_vocabulary_has_no_way_on_only_that_sequence_ends() -> None:
    rig = Rig()
    bias = dict.fromkeys(range(V), float("-inf"))
    rig.plan(an_admit(0, sampling=Sampling(temperature=1.0, logit_bias=bias)), an_admit(1))
    rig.run(0, 1)
    assert rig.ended[0].reason is FinishReason.ERROR
    assert rig.ended[1].reason is FinishReason.STOP


# ---------------------------------------------------------------------------------------- takeover


@given(cut=st.integers(0, 60), forces_runs=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sequence_that_is_taken_over_goes_on_where_it_was(cut: int, forces_runs: bool) -> None:
    whole = Rig(forces_runs=forces_runs)
    whole.plan(an_admit(1))
    whole.run(1)
    outputs = whole.tokens[1][:cut]
    if whole.ended[1].stop_token_id in outputs:
        return
    second = Rig(forces_runs=forces_runs)
    second.tokens[1] = list(outputs)
    second.plan(an_admit(1, outputs=outputs, attempt=1))
    second.run(1)
    text = second.text(1)
    jsonschema.validate(json.loads(text), PERSON)
    if not forces_runs:
        assert second.tokens[1] == whole.tokens[1]


def test_a_retracted_sequence_goes_on_in_the_middle_of_its_grammar() -> None:
    rig = Rig()
    rig.plan(an_admit(1), an_admit(2, ""))
    for _ in range(4):
        rig.step()
    rig.plan(Retract(sequence_ids=[1]))
    told = list(rig.tokens[1])
    assert told
    rig.step()
    rig.step()
    assert rig.tokens[1] == told
    rig.plan(an_admit(1, outputs=told, attempt=1, pages=range(200, 250)))
    rig.run(1, 2)
    jsonschema.validate(json.loads(rig.text(1)), PERSON)


def test_outputs_that_the_grammar_does_not_allow_end_with_an_error() -> None:
    rig = Rig()
    rig.tokens[1] = encode("xyz")
    rig.plan(an_admit(1, outputs=encode("xyz")), an_admit(2))
    rig.run(1, 2)
    error = rig.ended[1].error
    assert error is not None and "does not match its grammar" in error.message
    assert rig.ended[2].reason is FinishReason.STOP


def test_an_answer_that_was_whole_when_it_was_taken_over_ends() -> None:
    rig = Rig()
    outputs = encode(TEXT.replace("\\", ""))
    rig.tokens[1] = list(outputs)
    rig.plan(an_admit(1, "text", outputs=outputs))
    rig.run(1)
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.STOP, num_tokens=len(outputs))


# ------------------------------------------------------------------------------------------- pages


def test_a_run_takes_the_pages_that_it_has_and_waits_for_more() -> None:
    rig = Rig()
    rig.plan(an_admit(1, "text", pages=[0, 1]))  # 8 places
    rig.run()
    assert rig.stalled == [1]
    assert len(rig.tokens[1]) == 8 - 3
    pages = iter(range(2, 60))
    for _ in range(60):
        if 1 in rig.ended:
            break
        assert rig.stalled == [1]
        rig.plan(Grant(sequence_id=1, pages=pack_i32([next(pages)])))
        rig.run()
    assert rig.tokens[1] == encode(TEXT.replace("\\", ""))
    assert rig.ended[1].reason is FinishReason.STOP


def test_a_lease_of_one_page_at_a_time_changes_no_answer() -> None:
    plenty, scarce = Rig(), Rig()
    plenty.plan(an_admit(1))
    plenty.run(1)
    scarce.plan(an_admit(1, pages=[0]))
    pages = iter(range(1, 100))
    for _ in range(100):
        scarce.run()
        if 1 in scarce.ended:
            break
        assert scarce.stalled == [1]
        scarce.plan(Grant(sequence_id=1, pages=pack_i32([next(pages)])))
    assert scarce.tokens[1] == plenty.tokens[1]
    assert scarce.ended == plenty.ended


@pytest.mark.parametrize("steps", range(6))
def test_a_dropped_sequence_leaves_nothing_behind(steps: int) -> None:
    rig = Rig()
    rig.shelf.here["late"] = toy.regex("x")
    del rig.shelf.here["late"]
    rig.plan(an_admit(1), an_admit(2, "late"), an_admit(3))
    for _ in range(steps):
        rig.step()
    rig.plan(Drop(sequence_ids=[1, 2]))
    told = list(rig.tokens.get(1, []))
    rig.run(3)
    assert rig.tokens.get(1, []) == told
    assert rig.engine.num_prefilling == rig.engine.num_decoding == rig.engine.num_stalled == 0
    rig.plan(an_admit(4, prompt=[TURN, 5]))
    rig.run(4)
    jsonschema.validate(json.loads(rig.text(4)), PERSON)


def test_a_constraint_that_takes_too_long_to_follow_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "WATCHED_S", 0.0005)
    monkeypatch.setattr(constraints, "MAX_TOKEN_S", 0.002)
    rig = Rig()
    rig.shelf.here["repeats"] = toy.ebnf('root ::= ((("a"{1,9999}){1,9999}){1,9999}){1,9999}')
    rig.plan(
        an_admit(1, "repeats", stop=()),
        an_admit(2, "person"),
        an_admit(3, "", max_tokens=40),
    )
    rig.run(1, 2, 3)
    error = rig.ended[1].error
    assert error is not None
    assert error.code == "constraint_too_costly"
    assert set(text_of(rig.tokens[1])) == {"a"}
    jsonschema.validate(json.loads(rig.text(2)), PERSON)
    assert len(rig.tokens[3]) == 40 or rig.ended[3].stop_token_id == END


def test_a_constraint_whose_masks_take_too_long_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five repeats of the same characters: the ways to read a text are a power of its length."""
    monkeypatch.setattr(constraints, "WATCHED_FILL_S", 0.001)
    monkeypatch.setattr(constraints, "MAX_TOKEN_S", 0.001)
    rig = Rig()
    loops = " ".join("x{0,40}" for _ in range(5)) + " x{60}"
    rig.shelf.here["loops"] = toy.ebnf(f'root ::= {loops} "!"\nx ::= [a-z] | "\\\\" [a-z]')
    rig.plan(
        an_admit(1, "loops", stop=(), max_tokens=120),
        an_admit(2, "person"),
        an_admit(3, "", max_tokens=40),
    )
    rig.run(1, 2, 3)
    error = rig.ended[1].error
    assert error is not None
    assert error.code == "constraint_too_costly"
    jsonschema.validate(json.loads(rig.text(2)), PERSON)
    assert len(rig.tokens[3]) == 40 or rig.ended[3].stop_token_id == END


def test_outputs_that_take_too_long_to_replay_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "MAX_REPLAY_S", -1.0)
    rig = Rig()
    rig.tokens[1] = encode('{"name": "')
    rig.plan(an_admit(1, "person", outputs=rig.tokens[1]), an_admit(2, "person"))
    rig.run(1, 2)
    error = rig.ended[1].error
    assert error is not None and error.code == "constraint_too_costly"
    assert rig.ended[2].reason is FinishReason.STOP
