"""The engine over a model that shows every wrong page, position and order as a wrong token."""

from collections.abc import Iterable

import pytest
from msgspec import structs

from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.report import Report
from shared.messages import Admit, Drop, Ended, FinishReason, Grant, Plan, Retract, Sampling
from shared.packing import pack_i32, unpack_i32, unpack_i64
from tests.services.gpu_worker.fake_runner import VOCAB_SIZE, FakeRunner, expected_outputs, next_token

GREEDY = Sampling(temperature=0.0)

step_by_step = pytest.mark.parametrize("run_ahead", [0], indirect=True)
"""For tests that count steps, or look at what is known after one."""


@pytest.fixture(params=[0, 1], ids=["", "ahead"], autouse=True)
def run_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many steps are under way while the next is launched. The fake model computes them at launch."""
    monkeypatch.setattr(StepExecutor, "run_ahead", request.param)
    return int(request.param)


class Rig:
    """An engine, a clock, and all that it ever reported, unpacked as a receiver would."""

    def __init__(self, prefill_budget: int = 1000, **runner: int) -> None:
        self.runner = FakeRunner(**runner)
        self.now = 1000.0
        self.engine = Engine(StepExecutor(self.runner, 64), prefill_budget, lambda: self.now)
        self.number = 0
        self.tokens: dict[int, list[int]] = {}
        self.first_index: dict[int, int] = {}
        self.ended: dict[int, Ended] = {}
        self.computed: dict[int, list[int]] = {}
        self.retracted: list[int] = []
        self.stalled: list[int] = []
        self.last: Report | None = None
        self.report()

    def plan(self, *commands: Admit | Grant | Drop | Retract) -> None:
        self.number += 1
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(commands)))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.engine.step()
            self.report()

    def run(self) -> None:
        """Steps until nothing can go on."""
        for _ in range(1000):
            if self.engine.step() is None:
                self.report()
                return
            self.report()
        raise AssertionError("the engine does not come to rest")

    def report(self) -> None:
        self.last = report = self.engine.take_report()
        if report is None:
            return
        progress = report.progress("w", self.now)
        rows = zip(
            unpack_i64(progress.sequence_ids),
            unpack_i32(progress.indices),
            unpack_i32(progress.token_ids),
            strict=True,
        )
        for sequence_id, index, token in rows:
            tokens = self.tokens.setdefault(sequence_id, [])
            first = self.first_index.setdefault(sequence_id, index)
            assert index == first + len(tokens), "a token twice, or a gap"
            tokens.append(token)
        for sequence_id, done in zip(unpack_i64(progress.computed_ids), unpack_i32(progress.computed), strict=True):
            self.computed.setdefault(sequence_id, []).append(done)
        self.ended |= {one.sequence_id: one for one in progress.ended}
        self.retracted += unpack_i64(progress.retracted)
        self.stalled = list(unpack_i64(progress.stalled))


def an_admit(
    sequence_id: int,
    token_ids: Iterable[int],
    pages: Iterable[int],
    *,
    cached: int = 0,
    num_prompt: int | None = None,
    max_tokens: int = 5,
    shard: int = 0,
    copy_from: int | None = None,
    sampling: Sampling = GREEDY,
    stop: list[int] | None = None,
    attempt: int = 0,
    traceparent: str | None = None,
) -> Admit:
    tokens = list(token_ids)
    return Admit(
        sequence_id=sequence_id,
        shard=shard,
        token_ids=pack_i32(tokens),
        num_prompt=len(tokens) if num_prompt is None else num_prompt,
        cached=cached,
        page_table=pack_i32(pages),
        copy_from=copy_from,
        sampling=sampling,
        stop_token_ids=stop or [],
        max_tokens=max_tokens,
        attempt=attempt,
        traceparent=traceparent,
    )


def a_prompt(length: int, salt: int = 0) -> list[int]:
    return [(7 * i + 3 + salt) % VOCAB_SIZE for i in range(length)]


# ------------------------------------------------------------------------------------ one sequence


@pytest.mark.parametrize("length", [1, 3, 4, 5, 17])
def test_a_sequence_runs_to_max_tokens(length: int) -> None:
    rig = Rig()
    prompt = a_prompt(length)
    rig.plan(an_admit(1, prompt, range(10)))
    rig.run()
    assert rig.tokens[1] == expected_outputs(prompt, 5)
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.LENGTH, num_tokens=5)
    assert len(rig.runner.calls) == 5
    assert rig.engine.step() is None
    assert rig.engine.take_report() is None


def test_one_token_is_enough_to_end() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(5), range(2), max_tokens=1))
    rig.run()
    assert rig.ended[1].num_tokens == 1
    assert len(rig.runner.calls) == 1


def test_prefill_is_cut_into_chunks_under_the_budget() -> None:
    rig = Rig(prefill_budget=4)
    prompt = a_prompt(11)
    rig.plan(an_admit(1, prompt, range(10)))
    rig.run()
    assert [call[0] for call in rig.runner.calls[:4]] == [
        (prompt[:4], 0),
        (prompt[4:8], 4),
        (prompt[8:], 8),
        (rig.tokens[1][:1], 11),
    ]
    assert rig.computed[1] == [4, 8, 11]
    assert rig.tokens[1] == expected_outputs(prompt, 5)


def test_a_stop_id_ends_the_sequence_and_is_its_last_token() -> None:
    rig = Rig()
    prompt = a_prompt(6)
    outputs = expected_outputs(prompt, 20)
    stop = outputs[3]
    rig.plan(an_admit(1, prompt, range(10), max_tokens=20, stop=[stop, VOCAB_SIZE + 5]))
    rig.run()
    first = outputs.index(stop)
    assert rig.tokens[1] == outputs[: first + 1]
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.STOP, num_tokens=first + 1, stop_token_id=stop)


def test_min_tokens_holds_back_the_stop_id() -> None:
    rig = Rig()
    prompt = a_prompt(6)
    stop = next_token(prompt)
    rig.plan(
        an_admit(1, prompt, range(10), max_tokens=4, stop=[stop], sampling=Sampling(temperature=0.0, min_tokens=4))
    )
    rig.run()
    assert stop not in rig.tokens[1]
    assert rig.ended[1].reason is FinishReason.LENGTH


def test_the_context_ends_a_sequence_that_asks_for_more() -> None:
    rig = Rig(max_model_len=12)
    rig.plan(an_admit(1, a_prompt(8), range(10), max_tokens=100))
    rig.run()
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.LENGTH, num_tokens=4)


def test_cached_pages_are_not_computed_again() -> None:
    rig = Rig()
    prompt = a_prompt(11)
    rig.plan(an_admit(1, prompt, range(4), max_tokens=1))
    rig.run()
    rig.plan(an_admit(2, prompt, [0, 1, 5, 6], cached=8, max_tokens=3))
    rig.run()
    assert rig.runner.calls[1][0] == (prompt[8:], 8)
    assert rig.tokens[2] == expected_outputs(prompt, 3)
    assert rig.ended[2].cached_tokens == 8


# ------------------------------------------------------------------------------- several sequences


def test_sequences_run_together_and_keep_their_own_tokens() -> None:
    rig = Rig(prefill_budget=8)
    prompts = {i: a_prompt(3 + 2 * i, salt=i) for i in range(6)}
    rig.plan(*(an_admit(i, prompt, range(8 * i, 8 * i + 8), max_tokens=6) for i, prompt in prompts.items()))
    rig.run()
    for i, prompt in prompts.items():
        assert rig.tokens[i] == expected_outputs(prompt, 6)
    assert len(rig.runner.calls) < sum(len(prompt) for prompt in prompts.values()) // 8 + 10


def test_prefill_is_strictly_in_order_of_admission() -> None:
    rig = Rig(prefill_budget=5)
    rig.plan(*(an_admit(i, a_prompt(7, salt=i), range(4 * i, 4 * i + 4), max_tokens=1) for i in range(3)))
    rig.run()
    order = [(len(tokens), start) for call in rig.runner.calls for tokens, start in call]
    assert order == [(5, 0), (2, 5), (3, 0), (4, 3), (1, 0), (5, 1), (1, 6)]


@step_by_step
def test_decode_goes_on_while_a_long_prompt_is_prefilled() -> None:
    rig = Rig(prefill_budget=4)
    rig.plan(an_admit(1, a_prompt(3), range(8), max_tokens=12))
    rig.step()
    rig.plan(an_admit(2, a_prompt(30, salt=5), range(10, 20), max_tokens=2))
    for count in range(2, 9):
        rig.step()
        assert len(rig.tokens[1]) == count
        assert rig.runner.calls[-1][0][1] == 3 + count - 2
        assert len(rig.runner.calls[-1][1][0]) == 3  # the budget less one decode token
    rig.run()
    assert rig.tokens[2] == expected_outputs(a_prompt(30, salt=5), 2)


@step_by_step
def test_many_decodes_leave_room_for_prefill() -> None:
    rig = Rig(prefill_budget=8)
    rig.plan(*(an_admit(i, [i], [2 * i, 2 * i + 1], max_tokens=8) for i in range(8)))
    rig.step()
    rig.plan(an_admit(9, a_prompt(8), range(40, 44)))
    rig.step()
    assert rig.computed[9] == [2]


def test_pages_promised_by_an_earlier_admission_are_shared_in_one_step() -> None:
    rig = Rig()
    prompt = a_prompt(10)
    rig.plan(
        an_admit(1, prompt, [0, 1, 2, 3], max_tokens=3),
        an_admit(2, [*prompt[:8], 50, 51], [0, 1, 4, 5], cached=8, max_tokens=3),
    )
    rig.run()
    assert len(rig.runner.calls[0]) == 2
    assert rig.tokens[1] == expected_outputs(prompt, 3)
    assert rig.tokens[2] == expected_outputs([*prompt[:8], 50, 51], 3)


def test_promised_pages_are_waited_for_over_several_chunks() -> None:
    rig = Rig(prefill_budget=3)
    prompt = a_prompt(16)
    rig.plan(
        an_admit(1, prompt, [0, 1, 2, 3, 4], max_tokens=3),
        an_admit(2, [*prompt[:12], 50], [0, 1, 2, 5], cached=12, max_tokens=3),
    )
    rig.run()
    assert rig.tokens[2] == expected_outputs([*prompt[:12], 50], 3)


def test_a_page_is_copied_for_a_match_that_ends_inside_it() -> None:
    rig = Rig()
    prompt = a_prompt(8)
    rig.plan(an_admit(1, prompt, [0, 1, 2], max_tokens=1))
    rig.run()
    other = [*prompt[:6], 80, 81, 82]
    rig.plan(an_admit(2, other, [0, 5, 6], cached=6, copy_from=1, max_tokens=3))
    rig.run()
    assert rig.runner.copies == [(1, 5)]
    assert rig.runner.calls[1][0] == (other[6:], 6)
    assert rig.tokens[2] == expected_outputs(other, 3)


def test_a_page_that_is_still_to_be_filled_is_copied_afterwards() -> None:
    rig = Rig()
    prompt = a_prompt(8)
    other = [*prompt[:6], 80, 81]
    rig.plan(
        an_admit(1, prompt, [0, 1, 2], max_tokens=2),
        an_admit(2, other, [0, 5, 6], cached=6, copy_from=1, max_tokens=3),
        an_admit(3, [*other[:7], 9], [0, 7, 8], cached=7, copy_from=5, max_tokens=3),
    )
    rig.run()
    assert rig.tokens[1] == expected_outputs(prompt, 2)
    assert rig.tokens[2] == expected_outputs(other, 3)
    assert rig.tokens[3] == expected_outputs([*other[:7], 9], 3)


def test_a_copy_waits_for_the_step_that_computes_its_sequence() -> None:
    rig = Rig(prefill_budget=4)
    rig.plan(an_admit(1, a_prompt(8), [0, 1, 2], max_tokens=1))
    rig.run()
    rig.plan(
        an_admit(2, a_prompt(8, salt=1), [10, 11, 12], max_tokens=1),
        an_admit(3, [*a_prompt(8)[:6], 1], [0, 5], cached=6, copy_from=1, max_tokens=1),
    )
    rig.step(2)
    assert rig.runner.copies == []
    rig.run()
    assert rig.runner.copies == [(1, 5)]
    assert rig.tokens[3] == expected_outputs([*a_prompt(8)[:6], 1], 1)


# ------------------------------------------------------------------------------ leases and commands


@step_by_step
def test_a_sequence_stalls_at_the_end_of_its_pages_and_goes_on_when_granted_more() -> None:
    rig = Rig()
    prompt = a_prompt(6)
    rig.plan(an_admit(1, prompt, [0, 1], max_tokens=9))
    rig.step(2)
    assert rig.stalled == []
    rig.step()
    assert rig.stalled == [1]
    assert len(rig.tokens[1]) == 3  # positions 6 and 7 are computed, the third token's is not covered
    assert rig.engine.step() is None
    rig.plan(Grant(sequence_id=1, pages=pack_i32([7])))
    rig.step()
    assert rig.stalled == []
    rig.run()
    assert rig.stalled == [1]
    rig.plan(Grant(sequence_id=1, pages=pack_i32([5, 6])))
    rig.run()
    assert rig.tokens[1] == expected_outputs(prompt, 9)
    assert rig.stalled == []


@step_by_step
def test_others_go_on_while_one_stalls_and_every_report_says_so() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(4), [0], max_tokens=9), an_admit(2, a_prompt(3), range(4, 10), max_tokens=9))
    for _ in range(4):
        rig.step()
        assert rig.stalled == [1]
    assert len(rig.tokens[2]) == 4
    assert len(rig.tokens[1]) == 1


def test_a_prefill_without_pages_stalls_and_nobody_overtakes() -> None:
    rig = Rig()
    prompt = a_prompt(7)
    rig.plan(an_admit(1, prompt, [0], max_tokens=1), an_admit(2, a_prompt(3, salt=1), [4], max_tokens=1))
    rig.run()
    assert rig.stalled == [1]
    assert rig.computed == {1: [4]}
    rig.plan(Grant(sequence_id=1, pages=pack_i32([1])))
    rig.run()
    assert rig.tokens == {1: expected_outputs(prompt, 1), 2: expected_outputs(a_prompt(3, salt=1), 1)}


@step_by_step
def test_dropped_sequences_give_no_more_tokens() -> None:
    rig = Rig(prefill_budget=4)
    rig.plan(*(an_admit(i, a_prompt(4, salt=i), [4 * i, 4 * i + 1], max_tokens=9) for i in (1, 2, 3)))
    rig.step(2)
    rig.plan(Drop(sequence_ids=[1, 3, 99]))
    rig.run()
    assert len(rig.tokens[1]) == 2  # its first, and one while the second was prefilled
    assert 3 not in rig.tokens
    assert rig.ended == {}
    assert rig.retracted == []
    assert rig.stalled == [2]
    rig.plan(Drop(sequence_ids=[2]))
    rig.run()
    assert rig.stalled == []
    assert rig.engine.num_prefilling == rig.engine.num_decoding == rig.engine.num_stalled == 0


@step_by_step
def test_a_retracted_sequence_is_acknowledged_with_or_after_its_last_tokens() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(4), range(8), max_tokens=20))
    rig.engine.step()
    rig.engine.step()  # not yet reported
    rig.plan(Retract(sequence_ids=[1, 5]))
    rig.report()
    assert len(rig.tokens[1]) == 2
    assert rig.retracted == [1]  # 5 was not there: it had ended, and that was reported
    rig.run()
    assert len(rig.tokens[1]) == 2


def test_a_retracted_sequence_can_come_back_and_goes_on_with_the_next_token() -> None:
    rig = Rig()
    prompt = a_prompt(5)
    expected = expected_outputs(prompt, 8)
    rig.plan(an_admit(1, prompt, range(8), max_tokens=8))
    rig.step(3)
    rig.plan(Retract(sequence_ids=[1]))
    rig.run()
    so_far = [*prompt, *rig.tokens[1]]
    rig.plan(an_admit(1, so_far, [*range(1), *range(20, 28)], cached=4, num_prompt=5, max_tokens=8, attempt=1))
    rig.run()
    assert rig.tokens[1] == expected
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.LENGTH, num_tokens=8, cached_tokens=4, attempt=1)


def test_a_taken_over_sequence_that_was_cached_beyond_its_prompt_reports_its_prompt_as_cached() -> None:
    rig = Rig()
    prompt = a_prompt(5)
    outputs = expected_outputs(prompt, 6)
    rig.plan(an_admit(1, [*prompt, *outputs[:3]], range(8), max_tokens=1, num_prompt=8))
    rig.run()
    rig.plan(an_admit(2, [*prompt, *outputs[:4]], [0, 1, 10, 11], cached=8, num_prompt=5, max_tokens=6, attempt=2))
    rig.run()
    assert rig.tokens[2] == outputs[4:]
    assert rig.first_index[2] == 4
    assert rig.ended[2].cached_tokens == 5


def test_a_taken_over_sequence_that_had_all_its_tokens_ends_at_once() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(8), range(4), num_prompt=5, max_tokens=3, attempt=1))
    rig.run()
    assert rig.ended[1] == Ended(sequence_id=1, reason=FinishReason.LENGTH, num_tokens=3, attempt=1)
    assert rig.runner.calls == []


def test_pages_of_a_dropped_sequence_can_be_given_to_another_in_the_same_plan() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(4), [0, 1, 2], max_tokens=9))
    rig.step(2)
    rig.plan(Drop(sequence_ids=[1]), an_admit(2, a_prompt(9, salt=4), [2, 1, 0], max_tokens=3))
    rig.run()
    assert rig.tokens[2] == expected_outputs(a_prompt(9, salt=4), 3)


# ------------------------------------------------------------------------------- plans in and out of order


def test_a_plan_that_comes_again_is_not_applied_again() -> None:
    rig = Rig()
    admit = an_admit(1, a_prompt(4), range(8), max_tokens=3)
    rig.plan(admit)
    rig.run()
    rig.engine.apply(Plan(epoch=rig.engine.epoch, number=1, commands=[admit]))
    assert rig.engine.step() is None
    assert rig.engine.take_report() is None


@step_by_step
def test_a_gap_begins_a_new_epoch_with_nothing_in_it() -> None:
    rig = Rig()
    rig.plan(an_admit(1, a_prompt(4), range(8), max_tokens=50))
    rig.step()
    old = rig.engine.epoch
    rig.engine.apply(Plan(epoch=old, number=3, commands=[an_admit(2, a_prompt(4), range(8, 12))]))
    rig.run()
    assert rig.engine.epoch > old
    assert rig.last is None or rig.last.epoch == rig.engine.epoch
    assert rig.engine.num_decoding == rig.engine.num_prefilling == 0
    rig.engine.apply(Plan(epoch=old, number=4, commands=[an_admit(3, a_prompt(4), range(8))]))
    rig.run()
    assert rig.tokens.keys() == {1}  # a late plan of the old epoch
    rig.number = 0
    rig.plan(an_admit(4, a_prompt(5), range(8), max_tokens=2))
    rig.run()
    assert rig.tokens[4] == expected_outputs(a_prompt(5), 2)


def test_the_report_of_a_new_epoch_has_nothing_applied() -> None:
    rig = Rig()
    rig.plan()
    rig.report()
    assert rig.last is not None
    assert rig.last.applied == 1
    rig.engine.apply(Plan(epoch=rig.engine.epoch, number=7, commands=[]))
    rig.report()
    assert rig.last is not None
    assert (rig.last.epoch, rig.last.applied) == (rig.engine.epoch, 0)


def test_epochs_grow_even_if_the_clock_does_not() -> None:
    rig = Rig()
    first = rig.engine.epoch
    assert first == 1_000_000
    rig.now = 500.0
    rig.engine.reset()
    assert rig.engine.epoch == first + 1
    rig.engine.apply(Plan(epoch=first + 100, number=1, commands=[]))
    assert rig.engine.epoch == first + 101


# ------------------------------------------------------------------------------------- faults


def test_logits_that_are_no_numbers_end_one_sequence_only() -> None:
    rig = Rig()
    rig.runner.spoilt_tokens = {96}
    rig.plan(an_admit(1, a_prompt(4), range(4)), an_admit(2, [5, 96], range(4, 8)), an_admit(3, [9, 8], range(8, 12)))
    rig.run()
    assert rig.tokens == {1: expected_outputs(a_prompt(4), 5), 3: expected_outputs([9, 8], 5)}
    assert rig.ended[2].reason is FinishReason.ERROR
    assert rig.ended[2].error is not None
    assert rig.ended[2].error.status == 500


@pytest.mark.parametrize(
    ("admit", "status", "param"),
    [
        (an_admit(1, [], [0]), 500, None),
        (an_admit(1, [3, VOCAB_SIZE], [0]), 400, "prompt"),
        (an_admit(1, [3, -1], [0]), 400, "prompt"),
        (an_admit(1, a_prompt(200), range(60)), 400, "prompt"),
        (an_admit(1, [1, 2], [0], cached=2), 500, None),
        (an_admit(1, [1, 2], [0], cached=-1), 500, None),
        (an_admit(1, [1, 2], [0], num_prompt=3), 500, None),
        (an_admit(1, [1, 2], [0, 64]), 500, None),
        (an_admit(1, [1, 2], [-1]), 500, None),
        (an_admit(1, [1, 2], [0], copy_from=64), 500, None),
        (an_admit(1, a_prompt(6), [0], cached=5, copy_from=3), 500, None),
        (an_admit(1, [1, 2], [0], sampling=Sampling(logit_bias={VOCAB_SIZE: 1.0})), 400, "logit_bias"),
    ],
    ids=lambda value: None if isinstance(value, Admit) else str(value),
)
def test_an_admission_that_cannot_be_run_ends_with_the_reason(admit: Admit, status: int, param: str | None) -> None:
    rig = Rig()
    rig.plan(admit, an_admit(2, a_prompt(3), range(8, 12), max_tokens=2))
    rig.run()
    error = rig.ended[1].error
    assert error is not None
    assert (error.status, error.param) == (status, param)
    assert rig.tokens == {2: expected_outputs(a_prompt(3), 2)}


def test_a_broken_array_ends_its_sequence() -> None:
    rig = Rig()
    rig.plan(
        structs.replace(an_admit(1, [1, 2], [0]), page_table=b"\0\0\0"),
        an_admit(2, [1, 2], [4, 5], max_tokens=20),
    )
    rig.step()
    rig.plan(Grant(sequence_id=2, pages=b"\0"))
    rig.run()
    assert [rig.ended[i].reason for i in (1, 2)] == [FinishReason.ERROR] * 2


def test_grants_and_drops_for_unknown_sequences_are_ignored() -> None:
    rig = Rig()
    rig.plan(Grant(sequence_id=9, pages=pack_i32([1])), Drop(sequence_ids=[9]), Retract(sequence_ids=[9]))
    rig.run()
    assert rig.ended == {}
    assert rig.retracted == []


# ------------------------------------------------------------------------------------- reports


@step_by_step
def test_output_goes_to_each_sequences_shard() -> None:
    rig = Rig()
    rig.plan(
        an_admit(1, [1], [0, 1], shard=3, max_tokens=2),
        an_admit(2, [2], [2, 3], shard=5, max_tokens=2),
        an_admit(3, [3], [4, 5], shard=3, max_tokens=2),
    )
    rig.engine.step()
    first = rig.engine.take_report()
    rig.engine.step()
    second = rig.engine.take_report()
    assert first is not None
    assert second is not None
    first.extend(second)
    outputs = dict(first.outputs())
    assert outputs.keys() == {3, 5}
    assert list(unpack_i64(outputs[3].sequence_ids)) == [1, 3, 1, 3]
    assert list(unpack_i32(outputs[3].indices)) == [0, 0, 1, 1]
    assert [one.sequence_id for one in outputs[3].ended] == [1, 3]
    assert list(unpack_i32(outputs[5].token_ids)) == expected_outputs([2], 2)
    progress = first.progress("w", 5.0)
    assert sorted(unpack_i64(progress.sequence_ids)) == [1, 1, 2, 2, 3, 3]
    assert dict(zip(unpack_i64(progress.computed_ids), unpack_i32(progress.computed), strict=True)) == {
        1: 1,
        2: 1,
        3: 1,
    }


@step_by_step
def test_stages_are_reported_for_traced_sequences() -> None:
    rig = Rig()
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    rig.plan(
        an_admit(1, a_prompt(4), range(4), max_tokens=3, traceparent=trace),
        an_admit(2, a_prompt(4), range(4, 8), max_tokens=3),
    )
    rig.now = 1001.0
    rig.engine.step()
    rig.now = 1002.0
    rig.engine.step()
    rig.now = 1003.0
    rig.engine.step()
    report = rig.engine.take_report()
    assert report is not None
    (stages,) = report.stages
    assert (stages.admitted_at, stages.first_token_at, stages.over_at) == (1000.0, 1001.0, 1003.0)
    assert (stages.sequence_id, stages.num_prompt, stages.num_outputs) == (1, 4, 3)
    rig.plan(an_admit(3, a_prompt(4), range(4), traceparent=trace), Drop(sequence_ids=[3]))
    report = rig.engine.take_report()
    assert report is not None
    assert (report.stages[0].first_token_at, report.stages[0].ended) == (None, None)


@step_by_step
def test_a_sequence_cut_short_is_told_what_was_cached_with_its_first_token() -> None:
    rig = Rig()
    rig.plan(an_admit(1, list(range(10, 20)), [0, 1, 5, 6], max_tokens=1))
    rig.run()
    rig.plan(an_admit(2, list(range(10, 20)), [0, 1, 7, 8], cached=8, max_tokens=3))
    rig.engine.step()
    report = rig.engine.take_report()
    assert report is not None
    ((_, output),) = report.outputs()
    assert (list(unpack_i64(output.cached_ids)), list(unpack_i32(output.cached))) == ([2], [8])


# --------------------------------------------------------------------------------------- run-ahead


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(StepExecutor, "run_ahead", 1)
    return Rig()


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_known(ahead: Rig) -> None:
    ahead.plan(an_admit(1, a_prompt(3), range(10), max_tokens=4))
    ahead.step()
    assert len(ahead.runner.calls) == 1 and ahead.tokens == {}
    ahead.step()
    assert len(ahead.runner.calls) == 2 and len(ahead.tokens[1]) == 1


def test_no_step_is_launched_beyond_max_tokens(ahead: Rig) -> None:
    ahead.plan(an_admit(1, a_prompt(3), range(10), max_tokens=3))
    ahead.run()
    assert ahead.tokens[1] == expected_outputs(a_prompt(3), 3)
    assert len(ahead.runner.calls) == 3


def test_the_step_after_a_stop_is_dropped(ahead: Rig) -> None:
    outputs = expected_outputs(a_prompt(3), 3)
    ahead.plan(
        an_admit(1, a_prompt(3), range(10), max_tokens=9, stop=[outputs[2]]),
        an_admit(2, a_prompt(5, 1), range(10, 20), max_tokens=9),
    )
    ahead.run()
    assert ahead.tokens == {1: outputs, 2: expected_outputs(a_prompt(5, 1), 9)}
    assert ahead.ended[1].num_tokens == 3 and ahead.ended[1].stop_token_id == outputs[2]


def test_what_is_under_way_for_a_dropped_sequence_is_dropped(ahead: Rig) -> None:
    ahead.plan(an_admit(1, a_prompt(3), range(10)), an_admit(2, a_prompt(3, 1), range(10, 20)))
    ahead.step(3)
    told = list(ahead.tokens[1])
    ahead.plan(Retract(sequence_ids=[1]), an_admit(3, a_prompt(4, 2), range(10)))
    ahead.step()
    assert ahead.retracted == [1]
    ahead.run()
    assert ahead.tokens[1] == told
    assert ahead.tokens[2] == expected_outputs(a_prompt(3, 1), 5)
    assert ahead.tokens[3] == expected_outputs(a_prompt(4, 2), 5)


def test_a_retracted_sequence_comes_back_while_its_old_step_is_under_way(ahead: Rig) -> None:
    prompt = a_prompt(3)
    ahead.plan(an_admit(1, prompt, range(10)))
    ahead.step(3)
    told = list(ahead.tokens[1])
    ahead.plan(Retract(sequence_ids=[1]), an_admit(1, prompt + told, range(10, 20), num_prompt=3))
    ahead.run()
    assert ahead.tokens[1] == expected_outputs(prompt, 5)


def test_a_sequence_stalls_for_want_of_pages_before_its_newest_token_is_known(ahead: Rig) -> None:
    ahead.plan(an_admit(1, a_prompt(3), [0, 1], max_tokens=9))  # pages of 4: positions 0 to 7
    ahead.run()
    assert ahead.stalled == [1]
    assert ahead.tokens[1] == expected_outputs(a_prompt(3), 6)  # the last one's keys and values have no place yet
    ahead.plan(Grant(sequence_id=1, pages=pack_i32([2])))
    ahead.run()
    assert ahead.tokens[1] == expected_outputs(a_prompt(3), 9)


def test_a_row_without_numbers_ends_its_sequence_and_counts_for_nothing(ahead: Rig) -> None:
    outputs = expected_outputs(a_prompt(3), 3)
    ahead.runner.spoilt_tokens = {outputs[1]}
    ahead.plan(an_admit(1, a_prompt(3), range(10), max_tokens=9))
    ahead.run()
    assert ahead.tokens[1] == outputs[:2]
    assert ahead.ended[1].reason is FinishReason.ERROR and ahead.ended[1].num_tokens == 2


def test_more_sequences_than_seats_are_refused() -> None:
    rig = Rig()
    rig.plan(*(an_admit(i, a_prompt(3), [i], max_tokens=2) for i in range(64)), an_admit(64, a_prompt(3), []))
    assert rig.engine.num_prefilling == 64
    rig.report()
    assert rig.ended[64].reason is FinishReason.ERROR
    rig.plan(Drop(sequence_ids=[0]), an_admit(65, a_prompt(3), [0], max_tokens=2))
    assert rig.engine.num_prefilling == 64
