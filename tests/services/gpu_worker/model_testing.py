"""Tiny seeded models made with transformers, and a driver that runs sequences through a runner in any slicing."""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from services.gpu_worker.runner import ModelRunner
from services.gpu_worker.step import SequenceStep

TINY = {
    "vocab_size": 199,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save_model(config: PretrainedConfig, folder: Path, **save: object) -> PreTrainedModel:
    """A model with seeded weights, big enough that every part of it matters, saved in `folder`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder, **save)
    return model


def expected_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[T, vocab_size] of one sequence alone, as transformers computes it."""
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return logits


def poison(runner: ModelRunner) -> None:
    """Fills every page with NaN."""
    with torch.inference_mode():
        runner.pool.storage.fill_(torch.nan)


class Sequences:
    """Sequences with pages of their own, out of order, that are computed piece by piece."""

    def __init__(self, runner: ModelRunner, lengths: Sequence[int], seed: int = 0) -> None:
        rng = random.Random(seed)
        self.runner = runner
        self.token_ids = [[rng.randrange(runner.vocab_size) for _ in range(length)] for length in lengths]
        free = list(range(runner.num_pages))
        rng.shuffle(free)
        self.page_tables = [[free.pop() for _ in range(-(-length // runner.page_size))] for length in lengths]
        self.computed = [0] * len(lengths)

    def step(self, index: int, count: int, *, wants_logits: bool = True) -> SequenceStep:
        start = self.computed[index]
        self.computed[index] += count
        return SequenceStep(
            array("i", self.token_ids[index][start : start + count]),
            start,
            array("i", self.page_tables[index]),
            wants_logits,
        )

    def run(self, counts: dict[int, int]) -> dict[int, Tensor]:
        """Computes counts[i] more tokens of sequence i, in one forward pass -> logits of each one's last token."""
        logits = self.runner.forward([self.step(index, count) for index, count in counts.items()])
        return dict(zip(counts, logits, strict=True))
