"""Which way a product goes for a number of rows: a config of the skinny kernel, or cuBLAS.

Measured where there are measurements (linear_table.json, written by benchmarks/gpu/tune_skinny_linear.py), by rule of
thumb elsewhere. Up to 256 rows come in buckets of 1, 8, 16, 32, 64, 128 and 256, each with one config, so that within
a bucket a row's result does not depend on how many rows there are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from services.gpu_worker.kernels.skinny_linear import MAX_ROWS, SkinnyConfig

TABLE_FILE = Path(__file__).with_name("linear_table.json")
BUCKETS = (1, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A weight [outputs, width], and whether the activation of gate and up follows."""

    outputs: int
    width: int
    silu_and_mul: bool = False


Choice = SkinnyConfig | None
"""None: cuBLAS, with what stands around the product in kernels of its own."""


def bucket(rows: int) -> int:
    """The bucket of 1 to MAX_ROWS rows."""
    assert 1 <= rows <= MAX_ROWS
    return 1 if rows == 1 else max(8, int(triton.next_power_of_2(rows)))


class LinearTable:
    """(shape, bucket) -> choice, of one kind of device."""

    def __init__(self, num_processors: int, choices: Mapping[tuple[LinearShape, int], Choice] | None = None) -> None:
        """num_processors: multiprocessors of the device, for the rule of thumb."""
        self._num_processors = num_processors
        self._choices = dict(choices or {})

    @classmethod
    def of_device(cls, device: torch.device, file: Path = TABLE_FILE) -> "LinearTable":
        """What was measured on this kind of device; for a kind that is not in the file, nothing was."""
        properties = torch.cuda.get_device_properties(device)
        tables = json.loads(file.read_text(encoding="utf-8"))
        return cls(properties.multi_processor_count, read_choices(tables.get(properties.name, [])))

    def choose(self, shape: LinearShape, rows: int) -> Choice:
        if rows > MAX_ROWS:
            return None
        key = (shape, bucket(rows))
        return self._choices[key] if key in self._choices else rule_of_thumb(shape, rows, self._num_processors)


def rule_of_thumb(shape: LinearShape, rows: int, num_processors: int) -> Choice:
    """Enough programs for two on every multiprocessor, each with tens of kilobytes of W on their way. What won most
    often where it was measured; for more than 64 rows there is no rule, so cuBLAS."""
    if rows > 64:
        return None
    if rows == 1:
        return SkinnyConfig(block_n=4, block_k=1024, uses_dot=False, num_stages=1, is_dependent=True)
    block_n, block_k = 64, 128
    programs = triton.cdiv(shape.outputs, block_n)
    split_k = 1
    while programs * split_k < 2 * num_processors and shape.width // (2 * split_k) >= 2 * block_k:
        split_k *= 2
    return SkinnyConfig(block_n, block_k, split_k, is_dependent=True)


def read_choices(entries: list[dict[str, Any]]) -> dict[tuple[LinearShape, int], Choice]:
    """Entries of the file: outputs, width, silu_and_mul, rows (the bucket), config (null: cuBLAS)."""
    choices: dict[tuple[LinearShape, int], Choice] = {}
    for entry in entries:
        shape = LinearShape(entry["outputs"], entry["width"], entry["silu_and_mul"])
        choices[shape, entry["rows"]] = None if entry["config"] is None else SkinnyConfig(**entry["config"])
    return choices
