"""Makes a model folder into a `Runner`: weights, a page pool that fits the memory, and the forward pass."""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig

from services.gpu_worker.batch import Batch
from services.gpu_worker.decoder import Decoder
from services.gpu_worker.kv_cache import PagePool
from services.gpu_worker.memory import GIB, available_memory, gib
from services.gpu_worker.model_config import (
    context_length,
    decoder_config,
    load_config,
    model_dtype,
    native_obstacle,
)
from services.gpu_worker.rope import Rope
from services.gpu_worker.step import SequenceStep
from services.gpu_worker.weights import Checkpoint, RandomWeights
from shared.errors import ConfigError

logger = logging.getLogger(__name__)

_CPU_POOL_BYTES = 4 * GIB
_POOL_SHARE = {"cpu": 0.5, "cuda": 0.9}  # of the memory that the weights leave


class Model(Protocol):
    """What computes a batch."""

    def forward(self, batch: Batch, pool: PagePool) -> Tensor:
        """float32 logits [number of batch.logit_rows, vocab_size]; writes the batch's keys and values to `pool`."""


class ModelRunner:
    """A model and its pages on one device. See `step.Runner`."""

    def __init__(self, model: Model, pool: PagePool, vocab_size: int, max_model_len: int) -> None:
        self._model = model
        self.pool = pool
        self.vocab_size = vocab_size
        self.num_pages = pool.num_pages
        self.page_size = pool.page_size
        self.max_model_len = max_model_len
        self.dtype = pool.storage.dtype
        self.device = pool.storage.device

    @torch.inference_mode()
    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.pool.copy_pages(pairs)

    @torch.inference_mode()
    def forward(self, steps: Sequence[SequenceStep]) -> Tensor:
        if not steps:
            return torch.empty((0, self.vocab_size), device=self.device)
        return self._model.forward(Batch(steps, self.page_size, self.dtype, self.device), self.pool)


def load_runner(
    model_path: str,
    *,
    load_format: str = "auto",
    dtype: str = "auto",
    device: str = "cpu",
    page_size: int = 16,
    num_pages: int = 0,
    kv_memory_bytes: int | None = None,
    max_model_len: int = 0,
    model_impl: str = "auto",
    seed: int = 0,
) -> ModelRunner:
    """Loads a model. Raises ConfigError with one line for whatever cannot be used.

    load_format: "auto" (or "safetensors") reads safetensors, "dummy" makes weights from config.json and `seed`.
    num_pages 0: as many as fit kv_memory_bytes; neither: a share of the memory that is left. max_model_len 0: the
    model's own context, or what the pool holds. model_impl: "native", "transformers", or "auto" for native where
    there is one."""
    if page_size < 1:
        raise ConfigError(f"page size {page_size} is not positive")
    if load_format not in ("auto", "safetensors", "dummy"):
        raise ConfigError(f"load format {load_format} is not one of auto, safetensors, dummy")
    if model_impl not in ("auto", "native", "transformers"):
        raise ConfigError(f"model implementation {model_impl} is not one of auto, native, transformers")
    started = time.monotonic()
    target = _device(device)
    config = load_config(model_path)
    kind = model_dtype(config, dtype)
    max_length = context_length(config, max_model_len)
    obstacle = native_obstacle(config)
    if obstacle is not None:
        raise ConfigError(f"{model_path}: {obstacle}")
    runner = _load_native(
        config,
        model_path,
        load_format,
        kind,
        target,
        page_size,
        num_pages,
        kv_memory_bytes,
        max_length,
        max_model_len,
        seed,
    )
    logger.info(
        "loaded %s (%s, %s, %s) in %.1f s: %d pages of %d tokens, sequences up to %d tokens",
        model_path, config.model_type, kind, target, time.monotonic() - started,
        runner.num_pages, page_size, runner.max_model_len,
    )  # fmt: skip
    return runner


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name} is not one of cpu, cuda") from None
    if device.type not in _POOL_SHARE:
        raise ConfigError(f"device {name} is not one of cpu, cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name} is not available: torch {torch.__version__} sees no CUDA device")
    return device


@torch.inference_mode()
def _load_native(
    config: PretrainedConfig,
    model_path: str,
    load_format: str,
    dtype: torch.dtype,
    device: torch.device,
    page_size: int,
    num_pages: int,
    kv_memory_bytes: int | None,
    max_length: int,
    asked_length: int,
    seed: int,
) -> ModelRunner:
    shape = decoder_config(config)
    page_bytes = PagePool.bytes_per_page(shape.num_layers, page_size, shape.num_kv_heads, shape.head_dim, dtype)
    num_pages = _plan_pages(
        shape.num_parameters * dtype.itemsize, page_bytes, num_pages, kv_memory_bytes, device, page_size, asked_length
    )
    rope = Rope(config, shape.head_dim, device)
    if load_format == "dummy":
        model = Decoder(shape, rope, RandomWeights(seed, dtype, device))
    else:
        with Checkpoint(model_path, dtype, device) as weights:
            model = Decoder(shape, rope, weights)
    pool = PagePool(shape.num_layers, num_pages, page_size, shape.num_kv_heads, shape.head_dim, dtype, device)
    return ModelRunner(model, pool, shape.vocab_size, min(max_length, num_pages * page_size))


def _plan_pages(
    weight_bytes: int,
    page_bytes: int,
    num_pages: int,
    kv_memory_bytes: int | None,
    device: torch.device,
    page_size: int,
    asked_length: int,
) -> int:
    """How many pages the pool gets; ConfigError when weights and pool do not fit the memory that is left."""
    available = available_memory(device)
    if not num_pages:
        if not kv_memory_bytes:
            kv_memory_bytes = int((available - weight_bytes) * _POOL_SHARE[device.type])
            if device.type == "cpu":
                kv_memory_bytes = min(kv_memory_bytes, _CPU_POOL_BYTES)
        num_pages = max(0, kv_memory_bytes) // page_bytes
    least = -(-max(asked_length, 1) // page_size)
    needed = weight_bytes + max(num_pages, least) * page_bytes
    if needed > available:
        raise ConfigError(
            f"the model does not fit: {gib(weight_bytes)} of weights and {gib(needed - weight_bytes)} for "
            f"{max(num_pages, least)} pages of keys and values are more than the {gib(available)} of {device} "
            "memory available"
        )
    if num_pages < least:
        raise ConfigError(
            f"{num_pages} pages of {page_size} tokens cannot hold a sequence of {max(asked_length, 1)} tokens "
            f"({gib(page_bytes * least)} of keys and values)"
        )
    return num_pages
