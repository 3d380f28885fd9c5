"""A model folder to a `CudaExecutor`: weights first, then as many pages as the largest step leaves room for."""

import logging
import time

import torch
from transformers import PretrainedConfig

from services.gpu_worker.config import Limits, Settings
from services.gpu_worker.cuda.decoder import CudaDecoder
from services.gpu_worker.cuda.executor import CudaExecutor
from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.memory import GIB, gib
from services.gpu_worker.model_config import DecoderConfig, context_length, decoder_config, model_dtype
from services.gpu_worker.pool_plan import PoolPlan
from services.gpu_worker.rope import Rope
from services.gpu_worker.weights import Checkpoint, RandomWeights

log = logging.getLogger(__name__)

_MEASURED_TOKENS = 64
_RESERVE = GIB + GIB // 2
"""For what is not allocated through torch or only later: graphs, kernels, the libraries' own buffers."""


@torch.inference_mode()
def load_cuda_executor(config: PretrainedConfig, settings: Settings, limits: Limits) -> CudaExecutor:
    """For a config without a `native_obstacle`. Raises ConfigError with one line for whatever cannot be used."""
    started = time.monotonic()
    device = torch.device(limits.device)
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_device(device)
    shape = decoder_config(config)
    dtype = model_dtype(config, settings.dtype)
    kv_dtype = torch.float8_e4m3fn if settings.kv_cache_dtype == "fp8_e4m3" else dtype
    max_length = context_length(config, settings.max_model_len)
    kv = KVShape(shape.num_layers, shape.num_kv_heads, shape.head_dim)
    plan = PoolPlan(
        settings.page_size, settings.num_pages, limits.kv_memory_bytes or 0, settings.max_model_len, device, kv_dtype
    )
    plan.check_fits(_num_weights(shape) * dtype.itemsize)
    model = _load_model(config, shape, settings, dtype, device, max_length)
    loaded = time.monotonic()

    def executor(num_pages: int) -> CudaExecutor:
        pool = PagePool(num_pages, settings.page_size, kv, kv_dtype, device)
        return CudaExecutor(
            model,
            pool,
            num_seats=limits.max_running,
            prefill_budget=limits.prefill_budget,
            max_model_len=max_length,
        )

    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    executor(-(-_MEASURED_TOKENS // settings.page_size)).run_largest_step()
    torch.cuda.synchronize(device)
    overhead = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    torch.set_num_threads(settings.threads or 1)  # a step's arrays are small: to wake many threads takes longer
    num_pages = plan.num_pages_beside(overhead + _RESERVE, kv)
    made = executor(num_pages)
    log.info(
        "loaded %s (%s, %s, %s): weights in %.1f s; %s for the largest step; %d pages of %d tokens, sequences up to %d",
        settings.model_path, config.model_type, dtype, device, loaded - started, gib(overhead), num_pages,
        settings.page_size, made.max_model_len,
    )  # fmt: skip
    return made


def _num_weights(shape: DecoderConfig) -> int:
    """Numbers held on the device, where tied embeddings are one tensor."""
    return shape.num_parameters - (shape.vocab_size * shape.hidden_size if shape.tied_embeddings else 0)


def _load_model(
    config: PretrainedConfig,
    shape: DecoderConfig,
    settings: Settings,
    dtype: torch.dtype,
    device: torch.device,
    max_length: int,
) -> CudaDecoder:
    rope = Rope(config, shape.head_dim, device)
    if settings.load_format == "dummy":
        return CudaDecoder(shape, rope, RandomWeights(settings.seed, dtype, device), max_length)
    with Checkpoint(settings.model_path, dtype, device) as weights:
        return CudaDecoder(shape, rope, weights, max_length)
