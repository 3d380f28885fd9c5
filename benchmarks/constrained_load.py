"""A load of constrained or free rows for an engine without the services around it, and what came of it."""

import argparse
import json
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.grammar_masks import MAX_CHARACTERS, SCHEMAS
from services.gpu_worker.engine import Engine
from services.gpu_worker.grammar.vocabulary import Vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled, load
from services.tokenizer.grammar.compile import to_source
from shared.grammar import XGRAMMAR_SOURCE, CompiledGrammar
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32

STOP = 2


class OneGrammar:
    """The grammar of the load, under every key."""

    def __init__(self, vocabulary: Vocabulary, schema: str) -> None:
        self.vocabulary = vocabulary
        record = CompiledGrammar(
            engine=XGRAMMAR_SOURCE,
            serialized=b"",
            source=to_source("json_schema", json.dumps(SCHEMAS[schema]), MAX_CHARACTERS),
            stop_token_ids=(STOP,),
            vocab_size=vocabulary.vocab_size,
        )
        self._compiled = load(record, vocabulary)

    def get(self, key: str) -> XGrammarCompiled:
        return self._compiled


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--profile", action="store_true")


def admits(first: int, prompts: Sequence[Sequence[int]], max_tokens: int, page_size: int, grammar: str) -> list[Admit]:
    """A greedy row for each prompt, all of one length, with pages for everything. grammar: empty for free rows."""
    pages = -(-(len(prompts[0]) + max_tokens) // page_size)
    return [
        Admit(
            sequence_id=first + i,
            shard=i % 3,
            token_ids=pack_i32(array("i", prompt)),
            num_prompt=len(prompt),
            cached=0,
            page_table=pack_i32(array("i", range(i * pages, (i + 1) * pages))),
            sampling=Sampling(temperature=0.0),
            stop_token_ids=[STOP] if grammar else [],
            max_tokens=max_tokens,
            grammar=grammar,
        )
        for i, prompt in enumerate(prompts)
    ]


@dataclass(slots=True)
class Outcome:
    """thread_s: of this thread's processor time."""

    tokens: int = 0
    forced: int = 0
    steps: int = 0
    thread_s: float = 0.0


def run(engine: Engine, number: int, commands: list[Admit]) -> Outcome:
    """Applies plan `number` with these commands, and steps until nothing is left to do."""
    outcome = Outcome()
    used = time.thread_time()
    engine.apply(Plan(epoch=engine.epoch, number=number, commands=list(commands)))
    while engine.step() is not None:
        outcome.steps += 1
        report = engine.take_report()
        if report is not None:
            outcome.tokens += sum(len(one.token_ids) for one in report.tokens.values())
            outcome.forced += sum(len(one.forced) for one in report.tokens.values())
    outcome.thread_s = time.thread_time() - used
    return outcome
