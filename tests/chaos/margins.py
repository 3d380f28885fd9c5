"""How near an answer is to another one: products on a CPU are rounded differently in batches of other sizes, by some
1e-7 of their sums, and a choice that hangs on so little may fall either way without any harm."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from services.gpu_worker import philox, sampler
from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import StepExecutor
from services.gpu_worker.grammar.vocabulary import load_vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from services.gpu_worker.runner import load_runner
from services.gpu_worker.sampling_state import SamplingState
from services.tokenizer.grammar.compile import to_source
from shared.grammar import compile_source
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32
from tests.chaos.client import SCHEMA, Request
from tests.chaos.model import EOS, make_vocabulary

MAX_CHARACTERS = 1 << 20
STOP = make_vocabulary()[EOS]


class _Shelf:
    """The grammar that requests have."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.vocabulary = load_vocabulary(str(folder), vocab_size)
        source = to_source("json_schema", json.dumps(SCHEMA), MAX_CHARACTERS)
        self._compiled = XGrammarCompiled(compile_source(self.vocabulary.compiler((STOP,)), source), self.vocabulary)

    def get(self, key: str) -> XGrammarCompiled:
        return self._compiled


class Margins:
    """Computes answers by itself, with the model in `folder`."""

    def __init__(self, folder: Path) -> None:
        runner = load_runner(str(folder), dtype="float32", num_pages=100)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._engine = Engine(StepExecutor(runner, 1), 1000, lambda: 1.0, _Shelf(folder, runner.vocab_size))
        self._num_plans = 0

    def least(self, request: Request) -> float:
        """What the nearest of the answer's choices hangs on: of a greedy one the lead over the next best logit, of a
        draw how much of the probability lies between it and another token."""
        margins: list[float] = []
        draw = sampler._Batch.draw

        def watched(batch: Any, logits: np.ndarray[Any, np.dtype[np.float32]]) -> list[int | None]:
            margins.append(_margin(logits[0].astype(np.float64), batch.rows[0]))
            return draw(batch, logits)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler._Batch, "draw", watched)
            self._answer(request)
        return min(margins)

    def _answer(self, request: Request) -> None:
        self._num_plans += 1
        prompt: Sequence[int] = self._tokenizer(request["prompt"]).input_ids
        admit = Admit(
            sequence_id=self._num_plans,
            shard=0,
            token_ids=pack_i32(array("i", prompt)),
            num_prompt=len(prompt),
            cached=0,
            page_table=pack_i32(array("i", range(60))),
            sampling=Sampling(temperature=request["temperature"], seed=request.get("seed", 0)),
            stop_token_ids=[] if request.get("ignore_eos") else [STOP],
            max_tokens=request["max_tokens"],
            grammar="schema" if "response_format" in request else "",
        )
        self._engine.apply(Plan(epoch=self._engine.epoch, number=self._num_plans, commands=[admit]))
        while self._engine.step() is not None:
            pass


def _margin(logits: np.ndarray[Any, np.dtype[np.float64]], row: SamplingState) -> float:
    if row.is_greedy:
        second, first = np.partition(logits, -2)[-2:]
        return float(first - second)
    ends = np.exp(logits - logits.max()).cumsum()
    seed, index = np.array([row.sampling.seed], np.uint64), np.array([row.num_outputs], np.uint64)
    return float(np.abs(ends / ends[-1] - philox.uniform(seed, index)[0]).min())
