"""Times answers under a schema in the whole engine on a GPU, beside free ones, without the services around it.

    python -m benchmarks.gpu.structured_steps --model-path DIR [--rows 128] [--prompt 256] [--tokens 128] [--rounds 3]
        [--kind json,free] [--profile] [--no-forced-runs]

Weights are random; the folder needs config.json and a tokenizer. All rows arrive together, greedy, each with a prompt
of its own. Prints for every round: output tokens a second from the arrival on, how many of them were forced, the steps,
what one takes, and what it costs the engine's thread. --profile: of one more round, how much of the time the GPU
computes, and in which kernels. The first rounds compile and capture.
"""

import argparse
import json
import time
from array import array

import numpy as np
import torch

from benchmarks.grammar_masks import MAX_CHARACTERS, SCHEMAS
from services.gpu_worker.config import Settings, resolve
from services.gpu_worker.engine import Engine
from services.gpu_worker.grammar.vocabulary import Vocabulary, load_vocabulary
from services.gpu_worker.grammar.xgrammar_engine import XGrammarCompiled
from services.gpu_worker.load import load_executor
from services.tokenizer.grammar.compile import to_source
from shared.grammar import caching_compiler, compile_source
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32

STOP = 2


class City:
    """The one grammar of the load."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        source = to_source("json_schema", json.dumps(SCHEMAS["city"]), MAX_CHARACTERS)
        compiler = caching_compiler(vocabulary.info((STOP,)))
        self._compiled = XGrammarCompiled(compile_source(compiler, source), vocabulary)

    def get(self, key: str) -> XGrammarCompiled:
        return self._compiled


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        settings = Settings(model_path=arguments.model_path, load_format="dummy")
        limits = resolve(settings)
        self.executor = load_executor(settings, limits)
        self.executor.warm_up()
        grammars = City(load_vocabulary(arguments.model_path, self.executor.vocab_size))
        self.engine = Engine(
            self.executor, limits.prefill_budget, time.time, grammars, forces_runs=not arguments.no_forced_runs
        )
        self.rows, self.prompt, self.tokens = arguments.rows, arguments.prompt, arguments.tokens
        self.random = np.random.default_rng(0)
        self.number = 0

    def admits(self, grammar: str) -> list[Admit]:
        pages = -(-(self.prompt + self.tokens) // self.executor.page_size)
        return [
            Admit(
                sequence_id=self.number * self.rows + i,
                shard=i % 3,
                token_ids=pack_i32(array("i", self.random.integers(200, 48_000, self.prompt).tolist())),
                num_prompt=self.prompt,
                cached=0,
                page_table=pack_i32(array("i", range(i * pages, (i + 1) * pages))),
                sampling=Sampling(temperature=0.0),
                stop_token_ids=[STOP] if grammar else [],
                max_tokens=self.tokens,
                grammar=grammar,
            )
            for i in range(self.rows)
        ]

    def round(self, kind: str) -> int:
        """Prints a line; how many steps it took."""
        self.number += 1
        commands = self.admits(kind if kind == "json" else "")
        num_tokens = num_forced = num_steps = 0
        torch.cuda.synchronize()
        started, used = time.perf_counter(), time.thread_time()
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(commands)))
        while self.engine.step() is not None:
            num_steps += 1
            report = self.engine.take_report()
            if report is not None:
                num_tokens += sum(len(one.token_ids) for one in report.tokens.values())
                num_forced += sum(len(one.forced) for one in report.tokens.values())
        spent, used = time.perf_counter() - started, time.thread_time() - used
        print(
            f"{kind:4} {num_tokens / spent:9.0f} tok/s, {num_tokens} tokens, {num_forced / num_tokens:4.0%} forced, "
            f"{num_steps} steps of {spent / num_steps * 1e3:.2f} ms; thread {used / num_steps * 1e3:.2f} ms",
            flush=True,
        )
        return num_steps

    def profile(self, kind: str) -> None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            num_steps = self.round(kind)
            torch.cuda.synchronize()
        events = [one for one in profiler.events() if one.device_type == torch.autograd.DeviceType.CUDA]
        totals: dict[str, list[float]] = {}
        for event in events:
            totals.setdefault(event.name, []).append(event.time_range.elapsed_us())
        busy = sum(map(sum, totals.values()))
        whole = max(one.time_range.end for one in events) - min(one.time_range.start for one in events)
        print(f"     kernels {busy / num_steps / 1e3:.2f} ms a step, {busy / whole:.0%} of the time")
        for name, spent in sorted(totals.items(), key=lambda item: -sum(item[1]))[:16]:
            print(f"     {sum(spent) / num_steps:8.1f} us a step, {len(spent) / num_steps:6.1f} times  {name[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="free,json")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-forced-runs", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for kind in arguments.kind.split(","):
        for _ in range(arguments.rounds):
            bench.round(kind)
        if arguments.profile:
            bench.profile(kind)


if __name__ == "__main__":
    main()
