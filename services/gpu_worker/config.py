"""Settings of the worker."""

import os
from typing import Annotated

import msgspec
import torch

from services.gpu_worker.memory import GIB
from shared.settings import ModelSettings, help_

NonNegative = msgspec.Meta(ge=0)


class Settings(ModelSettings, frozen=True, kw_only=True):
    """gpu_worker: runs the model."""

    load_format: Annotated[str, help_("auto, safetensors, or dummy for seeded random weights")] = "auto"
    dtype: Annotated[str, help_("auto, float32, bfloat16 or float16")] = "auto"
    device: Annotated[str, help_("auto, cpu, cuda or cuda:N")] = "auto"
    model_impl: Annotated[str, help_("auto, native or transformers: whose model code runs")] = "auto"
    seed: Annotated[int, NonNegative, help_("seed of random weights")] = 0

    page_size: Annotated[int, msgspec.Meta(ge=1), help_("tokens in a page of the KV pool")] = 16
    num_pages: Annotated[int, NonNegative, help_("pages in the KV pool; 0: as many as kv_memory_gb holds")] = 0
    kv_memory_gb: Annotated[
        float,
        NonNegative,
        help_("GiB for the KV pool; 0: a share of what the weights leave"),
    ] = 0.0
    max_running: Annotated[int, NonNegative, help_("sequences that run at once; 0: 64 on a CPU, 512 on a GPU")] = 0
    chunked_prefill_size: Annotated[
        int, NonNegative, help_("prompt tokens computed in one step; 0: 512 on a CPU, 8192 on a GPU")
    ] = 0
    mixed_prefill_size: Annotated[
        int, NonNegative, help_("the same in a step that running sequences wait for; 0: 512 on a CPU, 4096 on a GPU")
    ] = 0
    kv_cache_dtype: Annotated[str, help_("auto (the model's) or fp8_e4m3, on a GPU: half the memory and traffic")] = (
        "auto"
    )
    grammar_memory_mb: Annotated[int, NonNegative, help_("MiB of compiled grammars kept in the worker's memory")] = 256
    forced_runs: Annotated[bool, help_("compute what a grammar leaves no choice about in one go")] = True
    profile_steps: Annotated[int, NonNegative, help_("steps to trace, from the first request on; 0: none")] = 0
    profile_file: Annotated[str, help_("where to write the trace")] = "sapwood-profile.json"
    threads: Annotated[int, NonNegative, help_("CPU threads for the model; 0: all")] = 0
    step_timeout_s: Annotated[
        float, msgspec.Meta(gt=0), help_("a step that takes longer counts as hung, and the process ends")
    ] = 120.0

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.served_model_name or os.path.basename(os.path.abspath(self.model_path))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Settings whose default depends on the device, resolved. kv_memory_bytes None: the runner decides."""

    device: str
    max_running: int
    prefill_budget: int
    mixed_budget: int
    kv_memory_bytes: int | None


def resolve(settings: Settings) -> Limits:
    """Whether the device can be used shows when the model is loaded."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device == "cpu"
    prefill_budget = settings.chunked_prefill_size or (512 if on_cpu else 8192)
    return Limits(
        device=device,
        max_running=settings.max_running or (64 if on_cpu else 512),
        prefill_budget=prefill_budget,
        mixed_budget=min(settings.mixed_prefill_size or (512 if on_cpu else 4096), prefill_budget),
        kv_memory_bytes=int(settings.kv_memory_gb * GIB) or None,
    )
