"""The dtype to compute in on a CPU: not every one has instructions for the dtype that a checkpoint is stored in, and
without them a product of many rows takes ten times as long as in float32."""

import logging
from pathlib import Path

import torch

from services.gpu_worker.memory import available_memory

_CPU = torch.device("cpu")
_FLAGS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""What Linux calls the instructions, on x86 and Arm."""
MOST_OF_MEMORY = 0.5
"""Weights in float32 take twice the memory: so much of what is left they may."""

log = logging.getLogger(__name__)


def has_instructions(dtype: torch.dtype, cpuinfo: str) -> bool:
    """cpuinfo: what /proc/cpuinfo says."""
    return dtype not in _FLAGS or not _FLAGS[dtype].isdisjoint(cpuinfo.split())


def fast_dtype(own: torch.dtype, num_parameters: int, cpuinfo: Path = Path("/proc/cpuinfo")) -> torch.dtype:
    """`own`, or float32 where that is faster and its weights fit."""
    if has_instructions(own, cpuinfo.read_text(encoding="utf-8")):
        return own
    num_bytes = num_parameters * torch.float32.itemsize
    if num_bytes > MOST_OF_MEMORY * available_memory(_CPU):
        log.info("this CPU has no instructions for %s, and there is too little memory for float32", own)
        return own
    log.info("computing in float32, as this CPU has no instructions for %s", own)
    return torch.float32
