"""`sapwood serve`, `sapwood chat`, `sapwood bench`, `sapwood doctor`, `sapwood model`.

Exit codes: 0 done or stopped by a signal, 1 a failure told in one line or something that the doctor found, 2 a wrong
command line."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from services.launcher import chat, default_model, serve
from services.launcher.bench import kernels, serving
from services.launcher.doctor import command as doctor
from services.launcher.flags import ServeSettings, add_serve_flags
from services.launcher.preflight import check_model_folder
from services.launcher.screen import Screen
from shared.errors import BusError, ConfigError
from shared.settings import from_values

EXIT_FAILURE = 1


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    screen = Screen()
    try:
        match arguments.command:
            case "serve":
                flags = vars(arguments)
                settings = from_values(ServeSettings, flags)
                asyncio.run(serve.run_until_signal(settings, flags, screen))
            case "chat":
                chat.run(arguments)
            case "bench":
                if not _bench(arguments):
                    sys.exit(EXIT_FAILURE)
            case "doctor":
                if not doctor.run(arguments, screen):
                    sys.exit(EXIT_FAILURE)
            case "model":
                print(check_model_folder(arguments.path) if arguments.path else asyncio.run(default_model.prepare()))
    except (ConfigError, BusError) as error:
        screen.error(str(error))
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)


def _bench(arguments: argparse.Namespace) -> bool:
    """Whether all went well."""
    match arguments.bench:
        case "kernels":
            return kernels.run(arguments)
        case _:
            return serving.run(arguments)


def _add_bench_flags(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    serving.add_flags(kinds.add_parser("serve", help="workloads against a running server", allow_abbrev=False))
    kernels.add_flags(kinds.add_parser("kernels", help="the kernels, on this machine's GPU", allow_abbrev=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sapwood", description="LLM serving as microservices over Redis streams.")
    parser.add_argument("--version", action="version", version=f"sapwood {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="serve a model on this machine", allow_abbrev=False)
    add_serve_flags(serving)
    chat.add_flags(commands.add_parser("chat", help="a conversation in the terminal", allow_abbrev=False))
    _add_bench_flags(commands.add_parser("bench", help="how fast a server is, or the kernels"))
    doctor.add_flags(commands.add_parser("doctor", help="what is wrong with a running set", allow_abbrev=False))
    model = commands.add_parser("model", help="make the default model if it is not there, and print its folder")
    model.add_argument("path", nargs="?", default="", help="a model's folder: only check that it is one")
    return parser


def _version() -> str:
    try:
        return version("sapwood")
    except PackageNotFoundError:
        return "(not installed)"
