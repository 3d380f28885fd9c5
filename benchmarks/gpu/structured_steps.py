"""Times answers under a schema in the whole engine on a GPU, beside free ones, without the services around it.

    python -m benchmarks.gpu.structured_steps --model-path DIR [--rows 128] [--prompt 256] [--tokens 128] [--rounds 3]
        [--kind json,free] [--profile] [--no-forced-runs]

Weights are random; the folder needs config.json and a tokenizer. All rows arrive together, greedy, each with a prompt
of its own. Prints for every round: output tokens a second from the arrival on, how many of them were forced, the steps,
what one takes, what it costs the engine's thread, and how many runs were guessed right and wrong. --profile: of one
more round, how much of the time the GPU computes, and in which kernels. The first round compiles.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.constrained_load import OneGrammar, add_arguments, admits, run
from services.gpu_worker import metrics
from services.gpu_worker.config import Settings, resolve
from services.gpu_worker.engine import Engine
from services.gpu_worker.grammar.vocabulary import load_vocabulary
from services.gpu_worker.load import load_executor


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        settings = Settings(model_path=arguments.model_path, load_format="dummy")
        limits = resolve(settings)
        self.executor = load_executor(settings, limits)
        self.executor.warm_up()
        while self.executor.prepare():
            pass
        grammars = OneGrammar(load_vocabulary(arguments.model_path, self.executor.vocab_size), "city")
        self.engine = Engine(
            self.executor,
            limits.prefill_budget,
            time.time,
            grammars,
            mixed_budget=limits.mixed_budget,
            forces_runs=not arguments.no_forced_runs,
        )
        self.rows, self.prompt, self.tokens = arguments.rows, arguments.prompt, arguments.tokens
        self.random = np.random.default_rng(0)
        self.number = 0

    def round(self, kind: str) -> int:
        """Prints a line; how many steps it took."""
        self.number += 1
        prompts = self.random.integers(200, 48_000, (self.rows, self.prompt)).tolist()
        grammar = kind if kind == "json" else ""
        commands = admits(self.number * self.rows, prompts, self.tokens, self.executor.page_size, grammar)
        outcomes = (metrics.GUESSED_RIGHT, metrics.GUESSED_WRONG)
        before = [int(count._value.get()) for count in outcomes]
        torch.cuda.synchronize()
        started = time.perf_counter()
        done = run(self.engine, self.number, commands)
        spent = time.perf_counter() - started
        right, wrong = (int(count._value.get()) - then for count, then in zip(outcomes, before, strict=True))
        print(
            f"{kind:4} {done.tokens / spent:9.0f} tok/s, {done.tokens} tokens, {done.forced / done.tokens:4.0%} forced"
            f", {done.steps} steps of {spent / done.steps * 1e3:.2f} ms"
            f"; thread {done.thread_s / done.steps * 1e3:.2f} ms; guessed {right} and {wrong}",
            flush=True,
        )
        return done.steps

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
    add_arguments(parser, rounds=3)
    parser.add_argument("--kind", default="free,json")
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
