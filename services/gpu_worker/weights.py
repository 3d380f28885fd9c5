"""Where a model's tensors come from: safetensors shards, mapped rather than read, or a seed."""

import json
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.errors import ConfigError

_LISTED = 4  # names in an error line


class Weights(Protocol):
    """A model's named tensors, each asked for once, in the dtype and on the device that it computes with."""

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name; ConfigError if it is missing or has another shape. It may be a view of a mapped
        file: whoever keeps it as it is keeps `owned` of it."""

    def check_all_used(self, is_expected: Callable[[str], bool] = lambda name: False) -> None:
        """ConfigError when tensors are left that nobody asked for, but for those that `is_expected`."""


class Checkpoint:
    """The *.safetensors of a model folder; the shards of model.safetensors.index.json when there is one.

    A tensor goes straight from the mapped file to its device; on a CPU it is a view of the map if the dtype fits."""

    def __init__(self, model_path: str, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._folder = Path(model_path)
        self._shard_of = _shards(self._folder)
        self._unused = set(self._shard_of)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.close()

    def get(self, name: str, *shape: int) -> Tensor:
        path = self._shard_of.get(name)
        if path is None:
            raise ConfigError(f"{self._folder}: tensor {name} is missing")
        self._unused.discard(name)
        try:
            if path not in self._open:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            tensor: Tensor = self._open[path].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: tensor {name} cannot be read: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"{path}: tensor {name} has shape {list(tensor.shape)}, config.json means {list(shape)}")
        if not tensor.is_floating_point():
            raise ConfigError(f"{path}: tensor {name} is of {tensor.dtype}, not of floating point")
        return tensor.to(self._device, self._dtype)

    def check_all_used(self, is_expected: Callable[[str], bool] = lambda name: False) -> None:
        left = sorted(name for name in self._unused if not is_expected(name))
        if left:
            more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
            raise ConfigError(f"{self._folder}: no place in the model for {', '.join(left[:_LISTED])}{more}")


class RandomWeights:
    """Seeded uniform weights with the standard deviation that models start from; a tensor depends on the seed and its
    name, not on when it is asked for. Norm weights are 1."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device, deviation: float = 0.02) -> None:
        self._seed = seed
        self._dtype = dtype
        self._device = device
        self._bound = deviation * 3**0.5

    def get(self, name: str, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        if name.endswith("norm.weight"):
            return tensor.fill_(1)
        # 32 bits: a CPU generator looks at no more of its seed.
        seed = zlib.crc32(f"{self._seed}/{name}".encode())
        generator = torch.Generator(self._device).manual_seed(seed)
        return tensor.uniform_(-self._bound, self._bound, generator=generator)

    def check_all_used(self, is_expected: Callable[[str], bool] = lambda name: False) -> None:
        """There are as many as were asked for."""


def owned(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: what is mapped changes, or kills the process, when its file is overwritten."""
    return tensor.clone() if tensor.device.type == "cpu" else tensor


def _shards(folder: Path) -> dict[str, Path]:
    """Tensor name -> file. Raises ConfigError, naming what is missing or broken."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            shard_of = {str(name): folder / str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index} is not an index of shards: {error!r}") from error
        for path in sorted(set(shard_of.values())):
            if not path.is_file():
                raise ConfigError(f"{index} names {path.name}, which is missing")
        return shard_of
    files = sorted(folder.glob("*.safetensors"))
    single = folder / "model.safetensors"
    if single in files:
        files = [single]
    if not files:
        raise ConfigError(f"{folder} has no *.safetensors")
    shard_of = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                shard_of.update({str(name): path for name in file.keys()})  # noqa: SIM118  not a dict
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} is not a readable safetensors file: {error}") from error
    return shard_of
