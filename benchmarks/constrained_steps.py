"""Times what steps with constrained rows cost the engine's thread, with no model behind it.

    python -m benchmarks.constrained_steps --model-path DIR [--rows 128] [--prompt 256] [--tokens 128] [--rounds 4]
        [--schema city] [--profile]

All rows arrive together. Instead of computing, the executor draws a token evenly among those that a row's mask allows,
one step ahead as on a GPU; what the drawing costs is not counted. Runs are guessed as a GPU does.
Prints for every round the tokens, how many of them were forced, the steps, and milliseconds a step of the engine's
thread.
--profile: of one more round, where the time goes. The first round meets a grammar that nobody has used.
"""

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np

from benchmarks.constrained_load import OneGrammar, add_arguments, admits, run
from benchmarks.grammar_masks import SCHEMAS
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import Chunk
from services.gpu_worker.grammar.masks import Masks
from services.gpu_worker.grammar.matcher import I32, empty_masks
from services.gpu_worker.grammar.prediction import NO_ROOM, Guesses, Room, RunTable
from services.gpu_worker.grammar.vocabulary import load_vocabulary
from services.gpu_worker.sequence import Sequence


class Drawing:
    """An executor that draws tokens. spent: seconds of the thread that drawing took."""

    run_ahead = 1
    page_size = 16
    max_model_len = 8192

    def __init__(self, vocab_size: int, num_seats: int, num_pages: int) -> None:
        self.runs = RunTable()
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

    def launch(self, decode: DecodeSet, chunks: Many[Chunk], guesses: Guesses | None = None) -> "Draw":
        self.runs.changes()
        self.runs.note_copied()
        return Draw(self, len(decode) + sum(chunk.step.wants_logits for chunk in chunks), guesses is not None)


class Draw:
    """A step of so many rows."""

    def __init__(self, executor: Drawing, num_rows: int, has_guesses: bool) -> None:
        self.room = Room(256, 64) if has_guesses else NO_ROOM
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
        self.prompts = [[300 + i] * arguments.prompt for i in range(arguments.rows)]
        self.max_tokens = arguments.tokens
        num_pages = arguments.rows * -(-(arguments.prompt + arguments.tokens) // Drawing.page_size)
        vocab_size = json.loads((Path(arguments.model_path) / "config.json").read_text())["vocab_size"]
        self.executor = Drawing(vocab_size, arguments.rows, num_pages)
        grammars = OneGrammar(load_vocabulary(arguments.model_path, vocab_size), arguments.schema)
        self.engine = Engine(self.executor, 8192, time.time, grammars)
        self.number = 0

    def round(self) -> str:
        """One load; a line about it."""
        self.number += 1
        first = self.number * len(self.prompts)
        commands = admits(first, self.prompts, self.max_tokens, Drawing.page_size, "one")
        self.executor.spent = 0.0
        done = run(self.engine, self.number, commands)
        used = done.thread_s - self.executor.spent
        return (
            f"{done.tokens} tokens, {done.forced / done.tokens:4.0%} forced, {done.steps} steps; "
            f"thread {used / done.steps * 1e3:.3f} ms a step, {used / done.tokens * 1e6:.2f} us a token"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=4)
    parser.add_argument("--schema", default="city", choices=list(SCHEMAS))
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
