"""Times the worker's forward pass on a CPU: decode at several batch sizes and contexts, and prefill chunks.

    python benchmarks/cpu_step.py --model-path DIR [--dtype bfloat16] [--threads 2]

Prints the best of several repetitions, which is what the machine does when nothing else runs on it. Pages are handed
out in a shuffled order, as in a pool that has been used for a while; --contiguous hands them out in a row. Runs in a
thread, as the worker's engine does: in the main thread glibc gives a step's memory back and faults it in again.
"""

import argparse
import random
import threading
import time
from array import array
from collections.abc import Sequence

import torch

from services.gpu_worker.runner import ModelRunner, load_runner
from services.gpu_worker.step import SequenceStep

DECODES = [(batch, context) for batch in (1, 8, 32) for context in (128, 600)]
PREFILLS = [(512, 0), (2048, 0), (512, 1536)]


class Pages:
    """Hands out page tables."""

    def __init__(self, runner: ModelRunner, is_contiguous: bool) -> None:
        self._free = list(range(runner.num_pages))
        if not is_contiguous:
            random.Random(0).shuffle(self._free)
        self._page_size = runner.page_size

    def table(self, tokens: int) -> "array[int]":
        count = -(-tokens // self._page_size)
        table, self._free = self._free[:count], self._free[count:]
        return array("i", table)


def best_of(runner: ModelRunner, steps: Sequence[SequenceStep], repeat: int) -> float:
    """Seconds of the fastest of `repeat` forward passes."""
    times = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        runner.forward(steps)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def random_ids(runner: ModelRunner, count: int) -> "array[int]":
    return array("i", torch.randint(runner.vocab_size, (count,)).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--model-impl", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--contiguous", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runner = load_runner(
        options.model_path,
        load_format=options.load_format,
        dtype=options.dtype,
        model_impl=options.model_impl,
        num_pages=2048,
    )
    print(f"{options.model_path} {runner.dtype} {options.threads} threads, torch {torch.__version__}")
    print(f"{'step':<40} {'ms':>9} {'tokens/s':>10}")
    for batch, context in DECODES:
        pages = Pages(runner, options.contiguous)
        steps = [SequenceStep(random_ids(runner, 1), context - 1, pages.table(context), True) for _ in range(batch)]
        seconds = best_of(runner, steps, options.repeat)
        print(f"{f'decode {batch} at context {context}':<40} {seconds * 1e3:9.2f} {batch / seconds:10.0f}", flush=True)
    for tokens, cached in PREFILLS:
        pages = Pages(runner, options.contiguous)
        steps = [SequenceStep(random_ids(runner, tokens), cached, pages.table(cached + tokens), True)]
        seconds = best_of(runner, steps, max(2, options.repeat // 3))
        print(f"{f'prefill {tokens} after {cached}':<40} {seconds * 1e3:9.2f} {tokens / seconds:10.0f}", flush=True)


if __name__ == "__main__":
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
