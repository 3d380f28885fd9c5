"""Makes what settings name into an executor."""

import os

import torch

from services.gpu_worker.config import Limits, Settings
from services.gpu_worker.executor import Executor, StepExecutor
from services.gpu_worker.model_config import load_config, native_obstacle
from services.gpu_worker.runner import load_runner
from shared.errors import ConfigError


def load_executor(settings: Settings, limits: Limits) -> Executor:
    """The model with its page pool, ready for sequences. Raises ConfigError.

    On a GPU the native decoder runs ahead in Triton kernels; other models, and every model on a CPU, run a step at a
    time in PyTorch's."""
    if torch.device(limits.device).type == "cuda" and settings.model_impl != "transformers":
        config = load_config(settings.model_path)
        if native_obstacle(config) is None:
            from services.gpu_worker.cuda.load import load_cuda_executor  # Triton is not there for every CPU

            return load_cuda_executor(config, settings, limits)
    if settings.kv_cache_dtype != "auto":
        raise ConfigError(f"kv_cache_dtype {settings.kv_cache_dtype} needs the native decoder on a GPU")
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    runner = load_runner(
        settings.model_path,
        load_format=settings.load_format,
        dtype=settings.dtype,
        device=limits.device,
        page_size=settings.page_size,
        num_pages=settings.num_pages,
        kv_memory_bytes=limits.kv_memory_bytes,
        max_model_len=settings.max_model_len,
        model_impl=settings.model_impl,
        seed=settings.seed,
    )
    return StepExecutor(runner, limits.max_running)
