"""The executor of GPUs beside the one that runs step by step in PyTorch: the same weights, plans and tokens."""

from array import array
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from services.gpu_worker import metrics
from services.gpu_worker.cuda import executor
from services.gpu_worker.cuda.attention import StepAttention
from services.gpu_worker.cuda.decoder import CudaDecoder
from services.gpu_worker.cuda.executor import CudaExecutor
from services.gpu_worker.decoder import Decoder
from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import Executor, StepExecutor
from services.gpu_worker.grammar import prediction
from services.gpu_worker.grammar.library import Grammars
from services.gpu_worker.grammar.matcher import Compiled
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.model_config import decoder_config
from services.gpu_worker.rope import Rope
from services.gpu_worker.runner import ModelRunner
from services.gpu_worker.weights import RandomWeights
from shared.messages import Admit, Drop, Grant, Plan, Retract, Sampling
from shared.packing import pack_i32, unpack_i32, unpack_i64
from tests.services.gpu_worker.grammar import toy
from tests.services.gpu_worker.guessing import MisleadingTable

VOCAB = 211
PAGE = 4
NUM_PAGES = 120
SEATS = 12
BUDGET = 16
LENGTH = 160
GREEDY = Sampling(temperature=0.0)
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
CONFIGS = {
    "llama": LlamaConfig(**COMMON | {"num_hidden_layers": 2}, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**COMMON, head_dim=32, tie_word_embeddings=True),
}
DTYPE = torch.float32


def a_pool(config: PretrainedConfig, device: torch.device) -> PagePool:
    shape = decoder_config(config)
    pool = PagePool(NUM_PAGES, PAGE, KVShape(shape.num_layers, shape.num_kv_heads, shape.head_dim), DTYPE, device)
    pool.storage.fill_(torch.nan)
    return pool


def by_steps(config: PretrainedConfig) -> Executor:
    cpu = torch.device("cpu")
    shape = decoder_config(config)
    decoder = Decoder(shape, Rope(config, shape.head_dim, cpu), RandomWeights(3, DTYPE, cpu, 0.3))
    return StepExecutor(ModelRunner(decoder, a_pool(config, cpu), shape.vocab_size, LENGTH), SEATS)


def on_device(config: PretrainedConfig, device: torch.device) -> CudaExecutor:
    """Weights are drawn on the CPU: a GPU's generator draws others."""
    shape = decoder_config(config)

    class Moved(RandomWeights):
        def get(self, name: str, *shape: int) -> torch.Tensor:
            return super().get(name, *shape).to(device)

    weights = Moved(3, DTYPE, torch.device("cpu"), 0.3)
    decoder = CudaDecoder(shape, Rope(config, shape.head_dim, device), weights, LENGTH)
    return CudaExecutor(decoder, a_pool(config, device), num_seats=SEATS, prefill_budget=BUDGET, max_model_len=LENGTH)


class Run:
    """Everything that an engine reported."""

    def __init__(self, executor: Executor, grammars: Grammars | None = None) -> None:
        self.engine = Engine(executor, BUDGET, lambda: 1.0, grammars)
        self.number = 0
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, str] = {}

    def plan(self, *commands: Admit | Grant | Drop | Retract) -> None:
        self.number += 1
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(commands)))

    def step(self, times: int = 1) -> bool:
        for _ in range(times):
            if self.engine.step() is None:
                return False
            self.look()
        return True

    def finish(self) -> None:
        while self.step():
            pass
        self.look()

    def look(self) -> None:
        report = self.engine.take_report()
        if report is None:
            return
        progress = report.progress("w", 1.0)
        arrays = (unpack_i64(progress.sequence_ids), unpack_i32(progress.indices), unpack_i32(progress.token_ids))
        for sequence_id, index, token in zip(*arrays, strict=True):
            tokens = self.tokens.setdefault(sequence_id, [])
            assert index == len(tokens)
            tokens.append(token)
        self.ended |= {one.sequence_id: one.reason.value for one in progress.ended}


def an_admit(
    sequence_id: int,
    token_ids: list[int],
    pages: list[int],
    *,
    cached: int = 0,
    copy_from: int | None = None,
    max_tokens: int = 6,
    sampling: Sampling = GREEDY,
    stop: list[int] | None = None,
    grammar: str = "",
) -> Admit:
    return Admit(
        sequence_id=sequence_id,
        shard=sequence_id % 2,
        token_ids=pack_i32(array("i", token_ids)),
        num_prompt=len(token_ids),
        cached=cached,
        copy_from=copy_from,
        page_table=pack_i32(array("i", pages)),
        sampling=sampling,
        stop_token_ids=stop or [],
        max_tokens=max_tokens,
        grammar=grammar,
    )


def a_prompt(length: int, salt: int = 0) -> list[int]:
    return [(7 * i * i + 3 * i + salt) % VOCAB for i in range(length)]


def history(run: Run) -> None:
    """Chunks, shared and copied prefixes, joins and leaves, stalls, seats that are taken over."""
    shared = a_prompt(16)
    run.plan(
        an_admit(1, shared + a_prompt(3, 1), list(range(10)), max_tokens=7),
        an_admit(2, a_prompt(21, 2), list(range(10, 24)), max_tokens=9),
        an_admit(3, shared + a_prompt(5, 3), [0, 1, 2, 3, *range(24, 30)], cached=16, max_tokens=4),
        an_admit(4, a_prompt(1, 4), [30, 31], max_tokens=9),
    )
    run.step(4)
    run.plan(
        an_admit(5, shared[:14] + a_prompt(2, 5), [0, 1, 2, *range(32, 38)], cached=14, copy_from=3, max_tokens=4),
        Grant(sequence_id=4, pages=pack_i32(array("i", range(38, 42)))),
        an_admit(6, shared + a_prompt(4, 6), [0, 1, 2, 3, *range(42, 48)], cached=16, max_tokens=9),
        an_admit(7, shared + a_prompt(6, 7), [0, 1, 2, 3, *range(48, 54)], cached=16, max_tokens=3),
    )
    run.step(3)
    run.plan(Retract(sequence_ids=[2]), an_admit(8, a_prompt(9, 8), list(range(10, 20)), max_tokens=3))
    run.step(2)
    run.plan(
        Drop(sequence_ids=[6]),
        *(an_admit(9 + i, a_prompt(3 + i, i), [60 + 2 * i, 61 + 2 * i], max_tokens=2) for i in range(3)),
    )
    run.finish()


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gives_the_tokens_of_the_executor_that_runs_step_by_step(
    family: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MIN_GROUP_TOKENS", 2 * PAGE)
    monkeypatch.setattr(executor, "MIN_GROUP_ROWS", 2)
    config = CONFIGS[family]
    expected, got = Run(by_steps(config)), Run(on_device(config, device))
    history(expected)
    history(got)
    dropped = {2, 6}  # how far they came depends on how far ahead the steps were
    assert got.ended == expected.ended
    for sequence_id, tokens in expected.tokens.items():
        if sequence_id in dropped:
            shorter = min(len(tokens), len(got.tokens[sequence_id]))
            assert shorter and tokens[:shorter] == got.tokens[sequence_id][:shorter], sequence_id
        else:
            assert got.tokens[sequence_id] == tokens, sequence_id


def test_steps_without_a_token_are_waited_for_too(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their arrays are in staging memory, which serves the third step after them again."""
    launched = waited = 0

    class Done:
        def synchronize(self) -> None:
            nonlocal waited
            waited += 1

    def record(self: CudaExecutor) -> Done:
        nonlocal launched
        launched += 1
        return Done()

    monkeypatch.setattr(CudaExecutor, "record", record)
    run = Run(on_device(CONFIGS["llama"], device))
    run.plan(an_admit(1, a_prompt(6 * BUDGET), list(range(40))))
    for _ in range(5):  # none of them comes to the prompt's end
        run.step()
        assert launched - waited == CudaExecutor.run_ahead


class Shelf:
    """Two grammars that are here."""

    vocabulary: Vocabulary = toy.vocabulary()

    def get(self, key: str) -> Compiled:
        return toy.regex('"name": ("Ada"|"Alan"|[0-9]+), "age": 7' if key == "name" else "(é|ê|[a-f])+ the lazy dog")


@pytest.mark.parametrize(
    ("constrained", "temperature"), [({0, 7}, 0.0), ({1, 2, 4, 6}, 1.0)], ids=["far apart", "drawn"]
)
def test_constrained_rows_give_the_tokens_of_the_cpu(
    constrained: set[int], temperature: float, device: torch.device
) -> None:
    config = LlamaConfig(**COMMON | {"vocab_size": toy.vocabulary().vocab_size}, tie_word_embeddings=True)
    runs = [Run(by_steps(config), Shelf()), Run(on_device(config, device), Shelf())]
    for run in runs:
        run.plan(
            *(
                an_admit(
                    i,
                    a_prompt(5 + i, i),
                    list(range(12 * i, 12 * i + 12)),
                    max_tokens=8 + i % 3,
                    sampling=Sampling(temperature=temperature, seed=i, logit_bias={20: 1.5} if i == 2 else {}),
                    stop=[toy.END],
                    grammar=("name" if i % 2 else "dog") if i in constrained else "",
                )
                for i in range(8)
            )
        )
        run.finish()
    expected, got = runs
    assert got.ended == expected.ended
    assert got.tokens == expected.tokens
    for i in constrained:
        assert (
            '"name": ' in toy.text_of(got.tokens[i]) if i % 2 else set(toy.text_of(got.tokens[i])[0]) < set("éêabcdef")
        )


class Forms:
    """Forms to fill in. The second digit of the age is followed by a run, the first is not."""

    vocabulary: Vocabulary = toy.vocabulary()
    compiled: Compiled = toy.regex(r'[34]{2}, "name": "[f-h]"\}')

    def get(self, key: str) -> Compiled:
        return self.compiled


def forms(run: Run) -> None:
    """Two waves of constrained rows beside a free one; one under penalties, one short of pages."""
    for wave in range(2):
        first = 20 * wave
        kinds = [Sampling(temperature=1.0, seed=first + i) for i in range(5)]
        kinds[3] = Sampling(temperature=0.9, seed=3, frequency_penalty=0.2)
        run.plan(
            *(
                an_admit(
                    first + i,
                    a_prompt(3 + i, i),
                    list(range(6 * i, 6 * i + (2 if i == 4 else 6))),
                    max_tokens=12 if i else 5,
                    sampling=kinds[i],
                    stop=[toy.END],
                    grammar="" if i == 2 else "form",
                )
                for i in range(5)
            )
        )
        run.finish()
        if first + 4 not in run.ended:
            run.plan(Grant(sequence_id=first + 4, pages=pack_i32(array("i", range(26, 30)))))
            run.finish()


@pytest.mark.parametrize(
    ("table", "most_rows"), [(prediction.RunTable, 1024), (MisleadingTable, 1024), (MisleadingTable, 2)]
)
def test_runs_that_are_guessed_change_nothing(
    table: type[prediction.RunTable], most_rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right or wrong: what was forced is told as such, what was wrong is computed again. More rows than are captured
    have none."""
    monkeypatch.setattr(executor, "RunTable", table)
    monkeypatch.setattr(executor, "MOST_CAPTURED_ROWS", most_rows)
    monkeypatch.setattr(prediction, "EXPLORED_S", 1.0)
    config = LlamaConfig(**COMMON | {"vocab_size": toy.vocabulary().vocab_size}, tie_word_embeddings=True)
    runs = [Run(by_steps(config), Forms()), Run(on_device(config, device), Forms())]
    before = metrics.GUESSED_RIGHT._value.get(), metrics.GUESSED_WRONG._value.get()
    for run in runs:
        forms(run)
    expected, got = runs
    assert got.ended == expected.ended and len(got.ended) == 10
    assert got.tokens == expected.tokens
    right, wrong = metrics.GUESSED_RIGHT._value.get() - before[0], metrics.GUESSED_WRONG._value.get() - before[1]
    if most_rows > 5:
        assert right > 2 and (wrong > 0) == (table is MisleadingTable)


SAMPLINGS = {
    "greedy": GREEDY,
    "plain": Sampling(temperature=0.9, seed=5),
    "filtered": Sampling(temperature=1.1, top_k=30, top_p=0.9, min_p=0.01, seed=2**62 + 3),
    "penalised": Sampling(
        temperature=0.7, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.2, seed=9, top_p=0.95
    ),
    "biased": Sampling(temperature=0.0, logit_bias={17: 100.0, 3: 2.0}, frequency_penalty=90.0),
    "barred": Sampling(temperature=0.0, min_tokens=4, logit_bias={11: 60.0}),
}


def test_every_kind_of_sampling_gives_the_tokens_of_the_cpu_sampler(device: torch.device) -> None:
    config = CONFIGS["qwen3"]
    expected, got = Run(by_steps(config)), Run(on_device(config, device))
    for run in (expected, got):
        for turn in range(2):  # the second time in seats that others had before
            samplings = list(SAMPLINGS.values())
            if turn:
                samplings.reverse()
            run.plan(
                *(
                    an_admit(
                        10 * turn + i,
                        a_prompt(4 + i, i),
                        [4 * i + j for j in range(4)],
                        sampling=one,
                        stop=[11],
                        max_tokens=5,
                    )
                    for i, one in enumerate(samplings)
                )
            )
            run.finish()
    assert got.tokens == expected.tokens
    assert got.ended == expected.ended
    biased = got.tokens[list(SAMPLINGS).index("biased")]
    assert 17 in biased and len(set(biased)) > 1
    barred = got.tokens[list(SAMPLINGS).index("barred")]
    assert len(barred) == 5 and barred[4] == 11


# Rows that nobody has are computed from whatever is there, and go nowhere.
@pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")
def test_getting_ready_for_other_steps_changes_nothing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the steps of sequences that stand still for want of pages, and share a prefix."""
    monkeypatch.setattr(executor, "MIN_GROUP_TOKENS", 2 * PAGE)
    monkeypatch.setattr(executor, "MIN_GROUP_ROWS", 2)
    monkeypatch.setattr(executor, "MOST_CAPTURED_ROWS", 8)
    shared = a_prompt(9)
    made = on_device(CONFIGS["qwen2"], device)
    plain, prepared = Run(on_device(CONFIGS["qwen2"], device)), Run(made)
    sampling = Sampling(temperature=0.9, seed=5)
    for run in (plain, prepared):
        run.plan(
            an_admit(1, shared + a_prompt(2, 1), [0, 1, 2], max_tokens=9),
            an_admit(2, shared + a_prompt(1, 2), [0, 1, 3], cached=8, max_tokens=9, sampling=sampling),
        )
        run.finish()
        assert 0 < len(run.tokens[1]) < 9 and 0 < len(run.tokens[2]) < 9
        parts = 0
        while run is prepared and made.prepare():  # the engine would not while there are sequences
            parts += 1
        assert run is plain or parts > 2 * len(made._row_buckets.sizes)
        run.plan(
            Grant(sequence_id=1, pages=pack_i32(array("i", [4, 5]))),
            Grant(sequence_id=2, pages=pack_i32(array("i", [6, 7]))),
            an_admit(3, shared + a_prompt(2, 3), [0, 1, 8, 9, 10], cached=8, max_tokens=9),
        )
        run.finish()
    assert not made.prepare()
    assert prepared.tokens == plain.tokens
    assert {len(tokens) for tokens in plain.tokens.values()} == {9}


def test_a_step_that_is_not_captured_says_how_far_its_chunks_see(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel is chosen by that; a captured one has to serve whatever comes."""
    seen: list[int | None] = []

    class Watched(StepAttention):
        def begin(self, *args: Any, longest: int | None = None, **parts: Any) -> None:
            seen.append(longest)
            super().begin(*args, longest=longest, **parts)

    monkeypatch.setattr(executor, "MOST_CAPTURED_ROWS", 4)
    monkeypatch.setattr(executor, "StepAttention", Watched)
    run = Run(on_device(CONFIGS["llama"], device))
    run.plan(an_admit(1, a_prompt(20), range(8), max_tokens=2))
    run.finish()
    seen.clear()
    run.plan(an_admit(2, a_prompt(23, 1), range(8, 16), max_tokens=2))
    run.finish()
    assert [longest for longest in seen if longest is not None] == [BUDGET, 23]
    seen.clear()
    run.plan(an_admit(3, a_prompt(3, 2), range(16, 20), max_tokens=2))
    run.finish()
    assert seen and not any(seen)
