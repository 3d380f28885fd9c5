"""Logit adjustments: rows that ask for nothing (what every step pays), penalties, masks; and log-probabilities."""

from collections.abc import Iterable

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, assert_error_below, nbytes, rotating, sets_past_l2
from services.gpu_worker.kernels.adjust_logits import Masks, NamedTokens, adjust_logits, adjust_logits_reference
from services.gpu_worker.kernels.logprobs import Logprobs, LogprobsScratch, logprobs
from services.gpu_worker.kernels.penalties import Penalties

SIZES = ((64, 49_152), (256, 128_256))


class Inputs:
    def __init__(self, num_rows: int, vocab_size: int, *, is_penalised: bool = False, is_masked: bool = False) -> None:
        device = torch.device("cuda")
        num_sets = sets_past_l2(4 * num_rows * vocab_size)
        self.logits = [torch.randn(num_rows, vocab_size, device=device) for _ in range(num_sets)]
        self.seats = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.output_index = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.named = NamedTokens.allocate(num_rows, 64, 8, device)
        self.penalties = self.masks = None
        if is_penalised:
            self.penalties = Penalties.allocate(num_rows, num_rows, vocab_size, device)
            self.penalties.rows.copy_(self.seats)
            self.penalties.presence.fill_(0.0)  # so that applying it again and again changes nothing more
            self.penalties.counts[:, ::50] = 2
        if is_masked:
            bitmask = torch.randint(-(2**31), 2**31 - 1, (num_rows, -(-vocab_size // 32)), device=device)
            self.masks = Masks(bitmask.int(), self.seats)

    def run(self, logits: Tensor) -> Tensor:
        return adjust_logits(logits, self.seats, self.output_index, self.named, self.penalties, self.masks)

    def check(self) -> None:
        logits = self.logits[0].clone()
        wanted = adjust_logits_reference(logits, self.seats, self.output_index, self.named, self.penalties, self.masks)
        got = self.run(logits)
        assert torch.equal(got.isinf(), wanted.isinf()), "other tokens are masked"
        assert_error_below(1e-6, got.nan_to_num(neginf=0.0), wanted.nan_to_num(neginf=0.0))

    def bytes(self) -> int:
        logits = self.logits[0]
        if self.penalties is not None:
            return 2 * nbytes(logits) + nbytes(self.penalties.counts, self.penalties.seen)
        if self.masks is not None:
            return nbytes(logits) // 2 + nbytes(self.masks.bitmask)  # half of the tokens are barred
        return nbytes(self.seats, self.output_index)


class LogprobInputs:
    def __init__(self, num_rows: int, vocab_size: int, num_tops: int) -> None:
        device = torch.device("cuda")
        num_sets = sets_past_l2(4 * num_rows * vocab_size)
        self.logits = [torch.randn(num_rows, vocab_size, device=device) * 3 for _ in range(num_sets)]
        self.seats = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.tokens = torch.randint(0, vocab_size, (num_rows,), device=device).int()
        self.num_tops = torch.full((num_rows,), num_tops, dtype=torch.int32, device=device)
        self.scratch = LogprobsScratch.allocate(num_rows, vocab_size, device)
        self.out = Logprobs.allocate(num_rows, device)

    def run(self, logits: Tensor) -> None:
        logprobs(logits, self.tokens, self.seats, self.num_tops, self.scratch, self.out)

    def check(self) -> None:
        self.out.sampled.fill_(torch.nan)
        self.run(self.logits[0])
        values = self.logits[0].double().log_softmax(-1)
        assert_error_below(1e-5, self.out.sampled, values.gather(1, self.tokens[:, None].long())[:, 0], "sampled")
        num_tops = int(self.num_tops[0])
        tops = values.topk(num_tops)
        assert_error_below(1e-5, self.out.top_values[:, :num_tops], tops.values, "likeliest")


def cases() -> Iterable[Case]:
    for num_rows, vocab_size in SIZES:
        size = f"{num_rows} x {vocab_size}"
        for name, inputs in (
            ("nothing to do", Inputs(num_rows, vocab_size)),
            ("penalties", Inputs(num_rows, vocab_size, is_penalised=True)),
            ("masks", Inputs(num_rows, vocab_size, is_masked=True)),
        ):
            run = rotating(inputs.run, [(logits,) for logits in inputs.logits])
            yield Case(f"{name}, {size}", run, inputs.check, inputs.bytes())
        asking = LogprobInputs(num_rows, vocab_size, 5)
        run = rotating(asking.run, [(logits,) for logits in asking.logits])
        yield Case(f"5 log-probabilities, {size}", run, asking.check, nbytes(asking.logits[0]))
