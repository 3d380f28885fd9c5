"""Times steps of the whole engine on a GPU, without the services around it.

    python -m benchmarks.gpu.step_times --model-path DIR [--batch 1,8,64] [--context 600] [--shared 0] [--profile FILE]

Weights are random. For every batch size: that many sequences with `context` tokens each (of which the first `shared`
are the same in 16 groups of them), prefilled through the engine, then steady decode. Prints what a step takes by the
clock, what the host spends on it, and how much of the time the GPU computes.
"""

import argparse
import time
from array import array
from pathlib import Path

import numpy as np
import torch

from services.gpu_worker.config import Settings, resolve
from services.gpu_worker.cuda.executor import CudaExecutor
from services.gpu_worker.engine import Engine
from services.gpu_worker.load import load_executor
from shared.messages import Admit, Drop, Plan, Sampling
from shared.packing import pack_i32

GROUPS = 16


class Bench:
    def __init__(self, model_path: str, budget: int) -> None:
        self.settings = Settings(model_path=model_path, load_format="dummy", chunked_prefill_size=budget)
        limits = resolve(self.settings)
        started = time.perf_counter()
        executor = load_executor(self.settings, limits)
        loaded = time.perf_counter()
        executor.warm_up()
        torch.cuda.synchronize()
        print(f"loaded in {loaded - started:.1f} s, warm in {time.perf_counter() - loaded:.1f} s more; "
              f"{executor.num_pages} pages", flush=True)  # fmt: skip
        assert isinstance(executor, CudaExecutor)
        self.executor = executor
        self.engine = Engine(executor, limits.prefill_budget, time.time)
        self.number = 0
        self.random = np.random.default_rng(0)

    def plan(self, *commands: Admit | Drop) -> None:
        self.number += 1
        self.engine.apply(Plan(epoch=self.engine.epoch, number=self.number, commands=list(commands)))

    def prompts(self, batch: int, context: int, shared: int) -> list[Admit]:
        page_size, vocab = self.executor.page_size, self.executor.vocab_size
        shared_pages = shared // page_size
        own = -(-(context + 400) // page_size) - shared_pages
        next_page = GROUPS * shared_pages
        prefixes = self.random.integers(0, vocab, (GROUPS, shared_pages * page_size), np.int32)
        admits = []
        for i in range(batch):
            group = i % GROUPS
            tokens = np.concatenate(
                [prefixes[group], self.random.integers(0, vocab, context - shared_pages * page_size, np.int32)]
            )
            pages = [*range(group * shared_pages, (group + 1) * shared_pages), *range(next_page, next_page + own)]
            next_page += own
            admits.append(
                Admit(
                    sequence_id=i,
                    shard=i % 4,
                    token_ids=pack_i32(array("i", tokens.tolist())),
                    num_prompt=context,
                    cached=shared_pages * page_size if i >= GROUPS else 0,
                    page_table=pack_i32(array("i", pages)),
                    sampling=Sampling(temperature=0.0),
                    stop_token_ids=[],
                    max_tokens=10_000,
                )
            )
        assert next_page <= self.executor.num_pages, f"{next_page} pages needed"
        return admits

    def run(self, batch: int, context: int, shared: int, steps: int, profile: Path | None) -> None:
        self.plan(*self.prompts(batch, context, shared))
        torch.cuda.synchronize()
        started = time.perf_counter()
        num_prefill = prefill_steps = 0
        while self.engine.num_prefilling:
            size = self.engine.step()
            assert size is not None
            num_prefill += size.num_prefill
            prefill_steps += 1
        torch.cuda.synchronize()
        prefill_s = time.perf_counter() - started
        for _ in range(10):
            self.engine.step()
        self.engine.take_report()
        started = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
            self.engine.take_report()
        torch.cuda.synchronize()
        step_ms = (time.perf_counter() - started) / steps * 1e3
        busy = self.busy(profile, steps=20)
        host_ms = self.host_ms(steps=20)
        print(
            f"batch {batch:4d} context {context:5d} shared {shared:5d}: prefill {num_prefill / prefill_s:9.0f} tok/s "
            f"in {prefill_steps} steps; decode {step_ms:7.3f} ms/step, {batch / step_ms * 1e3:8.0f} tok/s, "
            f"host {host_ms:.3f} ms, GPU busy {busy:.1%}",
            flush=True,
        )
        self.plan(Drop(sequence_ids=list(range(batch))))
        while self.engine.step() is not None:
            pass

    def host_ms(self, steps: int) -> float:
        """What a step costs the host when it need not wait for the device."""
        spent = 0.0
        for _ in range(steps):
            torch.cuda.synchronize()
            started = time.perf_counter()
            self.engine.step()
            self.engine.take_report()
            spent += time.perf_counter() - started
        return spent / steps * 1e3

    def busy(self, trace: Path | None, steps: int) -> float:
        """The share of the time in which a kernel runs."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            torch.cuda.synchronize()
            for _ in range(steps):
                self.engine.step()
            torch.cuda.synchronize()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        if trace is not None:
            profiler.export_chrome_trace(str(trace))
        totals: dict[str, float] = {}
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                totals[event.name] = totals.get(event.name, 0.0) + event.time_range.elapsed_us()
        for name, total in sorted(totals.items(), key=lambda item: -item[1])[:9]:
            print(f"      {total / steps:8.1f} us/step  {name[:90]}")
        covered, reached = 0.0, spans[0][0]
        for start, end in spans:
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return covered / (reached - spans[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--batch", default="1,8,64,256")
    parser.add_argument("--context", type=int, default=600)
    parser.add_argument("--shared", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--budget", type=int, default=8192)
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.model_path, arguments.budget)
    for batch in map(int, arguments.batch.split(",")):
        bench.run(batch, arguments.context, arguments.shared, arguments.steps, arguments.profile)


if __name__ == "__main__":
    main()
