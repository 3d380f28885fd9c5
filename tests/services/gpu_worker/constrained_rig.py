"""An engine of constrained sequences, and what a tokenizer sees of it."""

import zlib
from collections.abc import Iterable

import torch

from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.grammar.matcher import Compiled
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.step import SequenceStep
from shared.errors import RequestError
from shared.messages import Admit, Drop, Ended, Grant, Output, Plan, Retract, Sampling
from shared.packing import pack_i32, unpack_i32, unpack_i64
from tests.services.gpu_worker.fake_runner import FakeRunner
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.grammar.toy import END, text_of

PERSON: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zé]{0,12}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "climate": {"enum": ["temperate", "tropical", "dry"]},
    },
    "required": ["name", "age", "climate"],
    "additionalProperties": False,
}
TEXT = r'\{"name": "Paris", "age": 12345, "city": "Paris"\}'
V = toy.vocabulary().vocab_size


class DreamingRunner(FakeRunner):
    """Its logits are noise that depends on every token that it reads, and likes to end."""

    def _logits(self, step: SequenceStep) -> torch.Tensor:
        read = super()._logits(step)  # asserts that the pages hold what they should
        tokens = [self.pages[step.page_table[p // self.page_size]][p % self.page_size] for p in range(step.end)]
        noise = torch.Generator().manual_seed(zlib.crc32(repr(tokens).encode()))
        logits = torch.randn(self.vocab_size, generator=noise)
        logits[END] += 2
        return logits if torch.isfinite(read).all() else read


class Shelf:
    """The grammars that have come."""

    vocabulary: Vocabulary = toy.vocabulary()

    def __init__(self) -> None:
        self.here: dict[str, Compiled | RequestError] = {}
        self.asked: list[str] = []

    def get(self, key: str) -> Compiled | RequestError | None:
        self.asked.append(key)
        return self.here.get(key)


class Rig:
    """An engine and what a tokenizer sees of it."""

    executor: type[StepExecutor] = StepExecutor

    def __init__(
        self,
        *,
        forces_runs: bool = True,
        prefill_budget: int = 1000,
        num_pages: int = 256,
        executor: type[StepExecutor] | None = None,
    ) -> None:
        self.shelf = Shelf()
        self.shelf.here = {"person": toy.json_schema(PERSON), "text": toy.regex(TEXT)}
        self.runner = DreamingRunner(vocab_size=V, num_pages=num_pages, max_model_len=400)
        self.engine = Engine(
            (executor or self.executor)(self.runner, 64),
            prefill_budget,
            lambda: 1.0,
            self.shelf,
            forces_runs=forces_runs,
        )
        self.number = 0
        self.tokens: dict[int, list[int]] = {}
        self.forced: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}
        self.computed: dict[int, int] = {}
        self.cached: dict[int, int] = {}
        self.stalled: list[int] = []
        self.engine.take_report()

    def plan(self, *commands: Admit | Grant | Drop | Retract) -> None:
        self.number += 1
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(commands)))

    def step(self) -> bool:
        is_busy = self.engine.step() is not None
        report = self.engine.take_report()
        if report is not None:
            progress = report.progress("w", 1.0)
            self.stalled = list(unpack_i64(progress.stalled))
            self.computed |= dict(zip(unpack_i64(progress.computed_ids), unpack_i32(progress.computed), strict=True))
            for _, output in report.outputs("w"):
                self._take(output)
        return is_busy

    def _take(self, output: Output) -> None:
        forced = set(unpack_i32(output.forced))
        rows = zip(
            unpack_i64(output.sequence_ids), unpack_i32(output.indices), unpack_i32(output.token_ids), strict=True
        )
        for place, (sequence_id, index, token) in enumerate(rows):
            tokens = self.tokens.setdefault(sequence_id, [])
            assert index == len(tokens), "a token twice, or a gap"
            assert sequence_id not in self.ended
            if place in forced:
                self.forced.setdefault(sequence_id, []).append(index)
            tokens.append(token)
        self.cached |= dict(zip(unpack_i64(output.cached_ids), unpack_i32(output.cached), strict=True))
        self.ended |= {one.sequence_id: one for one in output.ended}

    def run(self, *sequence_ids: int) -> None:
        """Steps until nothing can go on; these must have ended then."""
        for _ in range(2000):
            if not self.step():
                break
        else:
            raise AssertionError("the engine does not come to rest")
        assert set(sequence_ids) <= self.ended.keys()

    def text(self, sequence_id: int) -> str:
        tokens = self.tokens[sequence_id]
        ended = self.ended[sequence_id]
        assert ended.num_tokens == len(tokens)
        return text_of(tokens[:-1] if ended.stop_token_id is not None else tokens)


def an_admit(
    sequence_id: int,
    grammar: str = "person",
    *,
    prompt: Iterable[int] = (5, 6, 7),
    outputs: Iterable[int] = (),
    pages: Iterable[int] | None = None,
    cached: int = 0,
    max_tokens: int = 150,
    stop: tuple[int, ...] = (END,),
    attempt: int = 0,
    sampling: Sampling | None = None,
) -> Admit:
    prompt, outputs = list(prompt), list(outputs)
    own = range(50 * (sequence_id % 5), 50 * (sequence_id % 5) + 50) if pages is None else pages
    return Admit(
        sequence_id=sequence_id,
        shard=sequence_id % 2,
        token_ids=pack_i32(prompt + outputs),
        num_prompt=len(prompt),
        cached=cached,
        page_table=pack_i32(own),
        sampling=sampling or Sampling(temperature=1.0, seed=sequence_id),
        stop_token_ids=list(stop),
        max_tokens=max_tokens,
        attempt=attempt,
        grammar=grammar,
    )
