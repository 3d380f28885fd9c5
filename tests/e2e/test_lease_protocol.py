"""The scheduler's core and the worker's engine joined without a broker, over random histories.

The model answers with a digest of what it reads from its pages, so a page that the scheduler frees, shares, copies or
promises wrongly, and a command that the engine applies wrongly, shows as an answer that differs from the one that
the request gets alone. Some answers are constrained: their grammars come late, leave choices and force runs.
"""

import functools
import itertools
from dataclasses import dataclass, field

import hypothesis.strategies as st
import xgrammar
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer, models

from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.grammar.guide import Guide
from services.gpu_worker.grammar.matcher import Compiled, empty_mask
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from services.scheduler.core.scheduler import Scheduler, make_policy
from services.scheduler.core.worker_state import Tuning
from shared.messages import Abort, Ended, Hello, Holdings, Plan, Progress
from shared.packing import unpack_i32, unpack_i64
from tests.services.gpu_worker.fake_runner import FakeRunner
from tests.services.gpu_worker.guessing import GuessingExecutor
from tests.services.scheduler.fake_worker import VOCABULARY, expected_output
from tests.services.scheduler.prompts import prompts
from tests.services.scheduler.world import World


def predict(tokens: list[int]) -> int:
    return expected_output(tokens, 1, [])[0]


@functools.cache
def vocabulary() -> Vocabulary:
    """The model's tokens as letters."""
    letters = {letter: token for token, letter in enumerate("abcde"[:VOCABULARY])}
    return Vocabulary(Tokenizer(models.BPE(letters, [])), VOCABULARY)


@functools.cache
def compiled(pattern: str) -> Compiled:
    compiler = xgrammar.GrammarCompiler(vocabulary().info(()), max_threads=1)
    return XGrammarCompiled(compiler.compile_regex(pattern), vocabulary())


PATTERNS = ["", "", "(a|b)cde(b|c)ddddd(a|e)*", "abcdeabcde", "a{9}(b|c)", "((b|c)ad)*", "(a|bc|d)*e"]


class Shelf:
    """Grammars, named by their patterns; each is here when it was asked for a second time."""

    def __init__(self) -> None:
        self.vocabulary = vocabulary()
        self._asked: set[str] = set()

    def get(self, key: str) -> Compiled | None:
        if key in self._asked:
            return compiled(key)
        self._asked.add(key)
        return None


class ConstrainedWorld(World):
    def expected(self, sequence_id: int, prompt: list[int], max_tokens: int, stop: list[int]) -> list[int]:
        """The model's choice where the grammar allows it, else the first that it allows; one token after another."""
        pattern = self.grammars[sequence_id]
        if not pattern:
            return super().expected(sequence_id, prompt, max_tokens, stop)
        guide = Guide(compiled(pattern), stop, None, VOCABULARY, empty_mask(VOCABULARY))
        output: list[int] = []
        while len(output) < max_tokens and not set(output) & set(stop) and not guide.must_end():
            guide.fill()
            allowed = [token for token in range(VOCABULARY) if guide.mask[0] >> token & 1]
            said = predict(prompt + output)
            output.append(said if said in allowed else allowed[0])
            assert guide.accept(output[-1])
        return output


@dataclass
class EngineWorker:
    """An engine behind the interface of the scheduler tests' fake worker."""

    name: str
    num_pages: int
    page_size: int
    max_running: int
    budget: int
    run_ahead: int = 0
    guesses: bool = False
    inbox: list[Plan] = field(default_factory=list)
    outputs: dict[int, dict[int, int]] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    number: int = 0
    answer: Holdings | None = None

    def __post_init__(self) -> None:
        self.runner = FakeRunner(self.num_pages, self.page_size, 4000, VOCABULARY, predict)
        executor = (GuessingExecutor if self.guesses else StepExecutor)(self.runner, 64)
        executor.run_ahead = self.run_ahead
        self.engine = Engine(executor, self.budget, lambda: 1.0, Shelf())
        self.applied = 0
        self.announced = 0

    @property
    def running(self) -> int:
        return self.engine.num_prefilling + self.engine.num_decoding + self.engine.num_stalled

    def hello(self) -> Hello:
        if self.announced != self.engine.epoch:
            self.number = 0
        self.announced = self.engine.epoch
        return self._introduction()

    def _introduction(self) -> Hello:
        return Hello(
            worker=self.name,
            epoch=self.engine.epoch,
            model="m",
            num_pages=self.num_pages,
            page_size=self.page_size,
            max_model_len=4000,
            max_running=self.max_running,
            prefill_budget=self.budget,
        )

    def restart(self) -> Hello:
        self.engine.reset()
        self.engine.take_report()
        self.runner.pages = [[None] * self.page_size for _ in range(self.num_pages)]
        return self.hello()

    def step(self, plans: int = 1000) -> Hello | Progress:
        for plan in self.inbox[:plans]:
            self.engine.apply(plan)
        del self.inbox[:plans]
        self.engine.step()
        report = self.engine.take_report()
        if self.engine.epoch != self.announced:
            return self.hello()
        self.number += 1
        if report is None:
            return Progress(worker=self.name, epoch=self.engine.epoch, applied=self.applied, at=0.0, number=self.number)
        self.applied = report.applied
        progress = report.progress(self.name, 0.0, self.number)
        if report.holdings is not None:
            self.answer = Holdings(
                hello=self._introduction(), applied=self.applied, number=self.number, sequences=report.holdings
            )
        self.ended |= {ended.sequence_id: ended for ended in progress.ended}
        rows = zip(
            unpack_i64(progress.sequence_ids), unpack_i32(progress.indices), unpack_i32(progress.token_ids), strict=True
        )
        for sequence_id, index, token in rows:
            assert self.outputs.setdefault(sequence_id, {}).setdefault(index, token) == token
        return progress


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_history_gives_every_request_the_answer_that_it_gets_alone(data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from([1, 4]))
    workers = {
        name: EngineWorker(
            name=name,
            page_size=page_size,
            num_pages=data.draw(st.integers(44, 70)) // page_size,
            max_running=data.draw(st.integers(1, 6)),
            budget=data.draw(st.sampled_from([3, 8, 64])),
            run_ahead=int(ahead != "no"),
            guesses=ahead == "guessing",
        )
        for name in ["w0", "w1"][: data.draw(st.integers(1, 2))]
        for ahead in [data.draw(st.sampled_from(["no", "yes", "guessing"]))]
    }
    tuning = Tuning(headroom=data.draw(st.sampled_from([1, 4, 9])), low_water=data.draw(st.sampled_from([1, 3])))
    terms = itertools.count(1)

    def a_scheduler() -> Scheduler:
        return Scheduler(lambda: make_policy("lpm", 10.0), tuning, term=next(terms))

    world = ConstrainedWorld(a_scheduler(), workers)  # type: ignore[arg-type]
    for worker in workers.values():
        world.apply(worker.hello())
    actions = st.sampled_from(
        ["arrive"] * 2 + ["step"] * 4 + ["part", "abort", "restart", "takeover", "twice", "lose", "settle"]
    )
    for action in data.draw(st.lists(actions, min_size=5, max_size=40)):
        worker = workers[data.draw(st.sampled_from(sorted(workers)))]
        match action:
            case "arrive":
                stop = data.draw(st.sampled_from([[], [], [4]]))
                choices = data.draw(st.sampled_from([1, 1, 3]))
                pattern = data.draw(st.sampled_from(PATTERNS))
                stop = [] if "e" in pattern else stop  # 4 is an e
                world.arrive(data.draw(prompts()), data.draw(st.integers(1, 14)), stop, choices, grammar=pattern)
            case "step":
                world.late.append(worker.step())
                world.catch_up()
            case "part":  # the worker reads only some of its plans, and its report is late
                world.late.append(worker.step(plans=1))
            case "abort" if world.scheduler.sequences:
                victim = data.draw(st.sampled_from(sorted(world.scheduler.sequences)))
                world.aborted.add(victim)
                world.apply(Abort(sequence_ids=[victim]))
            case "restart" if data.draw(st.integers(0, 3)) == 0:
                world.late.append(worker.restart())
            case "takeover" if data.draw(st.integers(0, 2)) == 0:
                world.restart_scheduler(a_scheduler())
            case "twice":
                world.catch_up()
                report = worker.step()
                world.apply(report)
                world.apply(report)
            case "lose" if data.draw(st.integers(0, 2)) == 0:
                world.catch_up()
                worker.step()
            case "settle":
                world.apply(after=data.draw(st.sampled_from([0.5, 2.0, 10.0])))
    world.catch_up()
    world.run_out()
    world.check_end()
