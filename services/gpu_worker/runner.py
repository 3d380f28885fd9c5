"""Makes a model folder into a `Runner`: weights, a page pool that fits the memory, and the forward pass."""

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig

from services.gpu_worker.batch import Batch
from services.gpu_worker.cpu_dtype import fast_dtype
from services.gpu_worker.decoder import Decoder
from services.gpu_worker.head import keeps_dense
from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.model_config import (
    context_length,
    decoder_config,
    load_config,
    model_dtype,
    native_obstacle,
)
from services.gpu_worker.pool_plan import PoolPlan
from services.gpu_worker.rope import Rope
from services.gpu_worker.step import SequenceStep
from services.gpu_worker.transformers_model import load_transformers_model
from services.gpu_worker.weights import Checkpoint, RandomWeights
from shared.errors import ConfigError

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What computes a batch."""

    def forward(self, batch: Batch, pool: PagePool) -> Tensor:
        """float32 logits [number of batch.logit_rows, vocab_size]; writes the batch's keys and values to `pool`."""


class ModelRunner:
    """A model and its pages on one device. See `step.Runner`."""

    def __init__(self, model: Model, pool: PagePool, vocab_size: int, max_model_len: int) -> None:
        self.model = model
        self.pool = pool
        self.vocab_size = vocab_size
        self.num_pages = pool.num_pages
        self.page_size = pool.page_size
        self.max_model_len = min(max_model_len, pool.num_pages * pool.page_size)
        self.dtype = pool.storage.dtype
        self.device = pool.storage.device

    @torch.inference_mode()
    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.pool.copy_pages(pairs)

    @torch.inference_mode()
    def forward(self, steps: Sequence[SequenceStep]) -> Tensor:
        if not steps:
            return torch.empty((0, self.vocab_size), device=self.device)
        return self.model.forward(Batch(steps, self.page_size, self.dtype, self.device), self.pool)


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
    dtype: "auto" is the checkpoint's own, or float32 on a CPU that has no instructions for that. num_pages 0: as many
    as fit kv_memory_bytes; neither: a share of the memory that is left. max_model_len 0: the model's own context, or
    what the pool holds. model_impl: "native", "transformers", or "auto" for native where there is one."""
    if page_size < 1:
        raise ConfigError(f"page size {page_size} is not positive")
    if load_format not in ("auto", "safetensors", "dummy"):
        raise ConfigError(f"load format {load_format} is not one of auto, safetensors, dummy")
    if model_impl not in ("auto", "native", "transformers"):
        raise ConfigError(f"model implementation {model_impl} is not one of auto, native, transformers")
    if num_pages < 0 or (kv_memory_bytes or 0) < 0 or max_model_len < 0:
        raise ConfigError("number of pages, KV memory and maximum length cannot be negative")
    started = time.monotonic()
    target = _device(device)
    config = load_config(model_path)
    kind = model_dtype(config, dtype)
    max_length = context_length(config, max_model_len)
    is_dummy = load_format == "dummy"
    obstacle = native_obstacle(config)
    if dtype == "auto" and target.type == "cpu" and obstacle is None:
        kind = fast_dtype(kind, decoder_config(config).num_parameters)
    plan = PoolPlan(page_size, num_pages, kv_memory_bytes or 0, max_model_len, target, kind)
    if model_impl == "native" and obstacle is not None:
        raise ConfigError(f"{model_path}: the native decoder cannot run it: {obstacle}")
    if model_impl == "transformers" or obstacle is not None:
        runner = _load_by_transformers(config, model_path, is_dummy, seed, plan, max_length)
    else:
        runner = _load_native(config, model_path, is_dummy, seed, plan, max_length)
    logger.info(
        "loaded %s (%s by %s, %s, %s) in %.1f s: %d pages of %d tokens, sequences up to %d tokens",
        model_path, config.model_type, type(runner.model).__name__, kind, target, time.monotonic() - started,
        runner.num_pages, page_size, runner.max_model_len,
    )  # fmt: skip
    return runner


@torch.inference_mode()
def _load_native(
    config: PretrainedConfig, model_path: str, is_dummy: bool, seed: int, plan: PoolPlan, max_length: int
) -> ModelRunner:
    shape = decoder_config(config)
    num_parameters = shape.num_parameters
    if not shape.tied_embeddings and keeps_dense(plan.dtype, plan.device):
        num_parameters += shape.vocab_size * shape.hidden_size
    weight_bytes = num_parameters * plan.dtype.itemsize
    kv = KVShape(shape.num_layers, shape.num_kv_heads, shape.head_dim)
    num_pages = plan.num_pages_beside(weight_bytes, kv)
    rope = Rope(config, shape.head_dim, plan.device)
    if is_dummy:
        model = Decoder(shape, rope, RandomWeights(seed, plan.dtype, plan.device))
    else:
        with Checkpoint(model_path, plan.dtype, plan.device) as weights:
            model = Decoder(shape, rope, weights)
    return ModelRunner(model, plan.make(num_pages, kv), shape.vocab_size, max_length)


@torch.inference_mode()
def _load_by_transformers(
    config: PretrainedConfig, model_path: str, is_dummy: bool, seed: int, plan: PoolPlan, max_length: int
) -> ModelRunner:
    model = load_transformers_model(
        config,
        model_path,
        is_dummy=is_dummy,
        seed=seed,
        dtype=plan.dtype,
        device=plan.device,
        check_fits=plan.check_fits,
    )
    pool = plan.make(plan.num_pages_beside(0, model.kv), model.kv)
    return ModelRunner(model, pool, model.vocab_size, max_length)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name} is not one of cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name} is not one of cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name} is not available: torch {torch.__version__} sees no CUDA device")
    return device
