"""What can be found wrong before anything is started, each as one line."""

import errno
import json
import socket
from pathlib import Path

from shared.errors import ConfigError


def check_model_folder(path: str) -> Path:
    """The model's folder, absolute. Raises ConfigError that says what is wrong with it."""
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise ConfigError(f"--model-path {path}: there is no such folder")
    if not folder.is_dir():
        raise ConfigError(f"--model-path {path}: not a folder, but one with config.json and *.safetensors is wanted")
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--model-path {path}: no config.json in it, so it is not a model's folder") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: line {error.lineno} is not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a text file") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{file}: no model_type in it, so it does not describe a model")
    return folder


def claim_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigError when the gateways could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise ConfigError(f"--host {host}: no such address") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise ConfigError(f"port {port} on {host} {what}; choose another with --port") from None
        return int(probe.getsockname()[1])


def client_url(host: str, port: int) -> str:
    """Where a client on this machine finds the API."""
    if host in ("", "0.0.0.0"):
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_log_level(level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"--log-level (SAPWOOD_LOG_LEVEL): DEBUG, INFO, WARNING or ERROR, got {level!r}")
