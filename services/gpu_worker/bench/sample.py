"""Sampling: one row (how long a step waits for it) and many, over the vocabularies of small and large models."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, nbytes, rotating, sets_past_l2
from services.gpu_worker.kernels.argmax import ArgmaxScratch, argmax, argmax_reference
from services.gpu_worker.kernels.sample import SampleScratch, sample, sample_reference
from services.gpu_worker.kernels.sample_filtered import sample_filtered
from services.gpu_worker.kernels.sampling_table import SamplingTable

SIZES = ((1, 49_152), (1, 128_256), (64, 49_152), (256, 49_152), (64, 128_256), (512, 128_256))
KINDS = ("greedy", "unfiltered", "top_k 50", "top_p 0.9", "top_p 0.9 of flat logits")
CHECKED_ROWS = 24  # the reference sorts a row at a time


class Inputs:
    """Rows of one kind. Sets of logits rotate where all of them outgrow the L2 cache."""

    def __init__(self, kind: str, num_rows: int, vocab_size: int) -> None:
        device = torch.device("cuda")
        self.kind = kind
        self.num_sets = sets_past_l2(4 * num_rows * vocab_size) if num_rows > 1 else 1
        spread = 0.5 if "flat" in kind else 4.0
        self.logits = [torch.randn(num_rows, vocab_size, device=device) * spread for _ in range(self.num_sets)]
        self.seats = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.tokens = torch.empty(num_rows, dtype=torch.int32, device=device)
        self.table = SamplingTable.allocate(num_rows, device)
        self.table.seed.random_()
        if kind != "greedy":
            self.table.temperature.fill_(1.0)
        if "top_k" in kind:
            self.table.top_k.fill_(50)
        if "top_p" in kind:
            self.table.top_p.fill_(0.9)
        self.scratch = SampleScratch.allocate(num_rows, vocab_size, device)
        self.argmax_scratch = ArgmaxScratch.allocate(num_rows, vocab_size, device)

    def run(self, logits: Tensor) -> None:
        if self.kind == "greedy":
            argmax(logits, self.seats, self.argmax_scratch, self.tokens)
            return
        sample(logits, self.seats, self.table, self.scratch, self.tokens)
        if "top" in self.kind:
            sample_filtered(logits, self.seats, self.table, self.scratch, self.tokens)

    def check(self) -> None:
        self.tokens.fill_(-7)
        self.run(self.logits[0])
        rows = slice(0, CHECKED_ROWS)
        if self.kind == "greedy":
            wanted = argmax_reference(self.logits[0][rows], self.seats[rows]).cpu()
        else:
            wanted = sample_reference(self.logits[0][rows], self.seats[rows], self.table)
        num_different = int((self.tokens[rows].cpu() != wanted).sum())
        # float32 exponentials: a draw within 1e-6 of a boundary may fall on its other side
        assert num_different <= len(wanted) // 12, f"{num_different} of {len(wanted)} tokens differ"
        assert bool((self.tokens >= 0).all()), "tokens that were not written"


def cases() -> Iterable[Case]:
    for kind in KINDS:
        for num_rows, vocab_size in SIZES:
            inputs = Inputs(kind, num_rows, vocab_size)
            run = rotating(inputs.run, [(logits,) for logits in inputs.logits])
            name = f"{kind}, {num_rows} x {vocab_size}"
            yield Case(name, run, partial(Inputs.check, inputs), nbytes(inputs.logits[0], inputs.tokens))
