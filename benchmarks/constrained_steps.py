"""Times what steps with constrained rows cost the engine's thread, with no model behind it.

    python -m benchmarks.constrained_steps --model-path DIR [--rows 128] [--prompt 256] [--tokens 128] [--rounds 4]
        [--schema city] [--profile]

All rows arrive together. Instead of computing, the executor draws a token evenly among those that a row's mask allows,
one step ahead as on a GPU; what the drawing costs is not counted. Prints for every round the tokens, how many of them
were forced, the steps, and milliseconds a step of the engine's thread, of whole steps and of filling masks.
--profile: of one more round, where the time goes. The first round meets a grammar that nobody has used.
"""

import argparse
import cProfile
import json
import pstats
import time
from array import array
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np

from benchmarks.grammar_masks import MAX_CHARACTERS, SCHEMAS
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import Chunk
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import I32, empty_masks
from services.gpu_worker.grammar.vocabulary import Vocabulary, load_vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled, load
from services.gpu_worker.sequence import Sequence
from services.tokenizer.grammar.compile import to_source
from shared.grammar import XGRAMMAR_SOURCE, CompiledGrammar
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32

STOP = 2


class OneGrammar:
    """The grammar of the load, under every key."""

    def __init__(self, vocabulary: Vocabulary, schema: str) -> None:
        self.vocabulary = vocabulary
        source = to_source("json_schema", json.dumps(SCHEMAS[schema]), MAX_CHARACTERS)
        record = CompiledGrammar(
            engine=XGRAMMAR_SOURCE,
            serialized=b"",
            source=source,
            stop_token_ids=(STOP,),
            vocab_size=vocabulary.vocab_size,
        )
        self._compiled = load(record, vocabulary)

    def get(self, key: str) -> XGrammarCompiled:
        return self._compiled


class Drawing:
    """An executor that draws tokens. spent: seconds of the thread that drawing took."""

    run_ahead = 1
    page_size = 16
    max_model_len = 8192

    def __init__(self, vocab_size: int, num_seats: int, num_pages: int) -> None:
        self.vocab_size = vocab_size
        self.num_seats = num_seats
        self.num_pages = num_pages
        self.spent = 0.0
        self.random = np.random.default_rng(0)

    def warm_up(self) -> None:
        """Nothing to build."""

    def prepare(self) -> bool:
        return False

    def seat(self, sequence: Sequence) -> None:
        """No state."""

    def extend(self, sequence: Sequence) -> None:
        """No state."""

    def append(self, sequence: Sequence, token_ids: Many[int]) -> None:
        """No state."""

    def copy_pages(self, pairs: Many[tuple[int, int]]) -> None:
        """No pages."""

    def make_masks(self) -> I32:
        return empty_masks(self.num_seats, self.vocab_size)

    def launch(self, decode: DecodeSet, chunks: Many[Chunk]) -> "Draw":
        return Draw(self, len(decode) + sum(chunk.step.wants_logits for chunk in chunks))


class Draw:
    """A step of so many rows."""

    def __init__(self, executor: Drawing, num_rows: int) -> None:
        self._executor = executor
        self._num_rows = num_rows
        self._tokens: I32 = np.empty(0, np.int32)

    def sample(self, masks: Masks | None = None) -> None:
        started = time.thread_time()
        executor = self._executor
        self._tokens = executor.random.integers(200, executor.vocab_size, self._num_rows).astype(np.int32)
        if masks is not None:
            for row, bits in zip(masks.rows, masks.bits, strict=True):
                self._tokens[row] = self._draw(bits)
        executor.spent += time.thread_time() - started

    def _draw(self, bits: I32) -> int:
        """A bit that is set."""
        words = np.flatnonzero(bits)
        if not len(words):
            return -1
        word = self._executor.random.choice(words)
        ones = np.flatnonzero(np.unpackbits(bits[word : word + 1].view(np.uint8), bitorder="little"))
        return int(word) * 32 + int(self._executor.random.choice(ones))

    def tokens(self) -> I32:
        return self._tokens


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.rows, self.prompt, self.tokens = arguments.rows, arguments.prompt, arguments.tokens
        self.pages = -(-(self.prompt + self.tokens) // Drawing.page_size)
        vocab_size = json.loads((Path(arguments.model_path) / "config.json").read_text())["vocab_size"]
        self.executor = Drawing(vocab_size, self.rows, self.rows * self.pages)
        grammars = OneGrammar(load_vocabulary(arguments.model_path, vocab_size), arguments.schema)
        self.engine = Engine(self.executor, 8192, time.time, grammars)
        self.number = 0

    def admits(self) -> list[Admit]:
        return [
            Admit(
                sequence_id=self.number * self.rows + i,
                shard=i % 3,
                token_ids=pack_i32(array("i", [300 + i] * self.prompt)),
                num_prompt=self.prompt,
                cached=0,
                page_table=pack_i32(array("i", range(i * self.pages, (i + 1) * self.pages))),
                sampling=Sampling(temperature=0.0),
                stop_token_ids=[STOP],
                max_tokens=self.tokens,
                grammar="one",
            )
            for i in range(self.rows)
        ]

    def round(self) -> str:
        """One load; a line about it."""
        self.number += 1
        num_tokens = num_forced = num_steps = 0
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(self.admits())))
        self.executor.spent = 0.0
        used = time.thread_time()
        while self.engine.step() is not None:
            num_steps += 1
            report = self.engine.take_report()
            if report is not None:
                num_tokens += sum(len(one.token_ids) for one in report.tokens.values())
                num_forced += sum(len(one.forced) for one in report.tokens.values())
        used = time.thread_time() - used - self.executor.spent
        return (
            f"{num_tokens} tokens, {num_forced / num_tokens:4.0%} forced, {num_steps} steps; "
            f"thread {used / num_steps * 1e3:.3f} ms a step, {used / num_tokens * 1e6:.2f} us a token"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--schema", default="city", choices=list(SCHEMAS))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for _ in range(arguments.rounds):
        print(bench.round(), flush=True)
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(bench.round)
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
