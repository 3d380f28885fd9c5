"""`sapwood bench kernels`: the worker's kernel benchmarks, in a process of their own as all of a worker is."""

import argparse
import subprocess
import sys
from importlib.util import find_spec

from services.launcher.leash import leashed
from services.launcher.process import child_environment
from shared.errors import ConfigError


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", default="", metavar="NAME", help="kernels whose name contains this; several by commas"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to this file too")


def command(arguments: argparse.Namespace) -> list[str]:
    flags = [f"--{name}={value}" for name in ("only", "json") if (value := getattr(arguments, name))]
    return [sys.executable, "-m", "services.gpu_worker.bench", *flags]


def run(arguments: argparse.Namespace) -> bool:
    """Whether every kernel was right. Raises ConfigError when there is nothing to run them with."""
    if find_spec("torch") is None:
        raise ConfigError("the kernels need torch and triton: pip install 'sapwood[worker]'")
    return subprocess.run(leashed(command(arguments)), env=child_environment(), check=False).returncode == 0
