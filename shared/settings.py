"""Typed settings from environment variables and command-line flags, one frozen struct a service.

A field `redis_url: Annotated[str, help_("...")]` of a struct is set by `--redis-url` or by
`SAPWOOD_REDIS_URL`; the flag wins. A missing or malformed value is a `ConfigError` that names both.
"""

import argparse
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from shared.errors import ConfigError

ENV_PREFIX = "SAPWOOD_"

SERVICE_LINKS = ("tcp://", "udp://", "sctp://")
"""How the value of NAME_PORT begins that Kubernetes gives every container beside a Service of that name: of one named
`sapwood`, SAPWOOD_PORT=tcp://10.0.0.1:30000. Nobody has set a port with it."""

S = TypeVar("S", bound=msgspec.Struct)


def help_(text: str) -> msgspec.Meta:
    """Annotates a setting with its line of --help."""
    return msgspec.Meta(description=text)


class BaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs."""

    redis_url: Annotated[
        str, help_("broker: redis://host:port/db, rediss://, unix:///path, or redis+sentinel://host,host/service")
    ] = "redis://127.0.0.1:6379/0"
    key_prefix: Annotated[str, help_("prefix of every key and stream, to share a broker")] = "sapwood"
    instance: Annotated[str, help_("this process's name among its kind; made up when empty")] = ""
    log_level: Annotated[str, help_("DEBUG, INFO, WARNING or ERROR")] = "INFO"
    otlp_endpoint: Annotated[str, help_("OTLP/HTTP base URL for traces, as http://jaeger:4318; empty: no traces")] = ""
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1), help_("share of requests traced")] = 1.0
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535), help_("port of this process's /metrics; 0: none")] = 0


class ModelSettings(BaseSettings, frozen=True, kw_only=True):
    """What the services that read the model's folder need."""

    model_path: Annotated[str, help_("folder with config.json, tokenizer files and *.safetensors")]
    served_model_name: Annotated[str, help_("name that clients ask for; default: the folder's name")] = ""
    max_model_len: Annotated[int, msgspec.Meta(ge=0), help_("context length in tokens; 0: the model's own")] = 0


def add_flags(parser: argparse.ArgumentParser, settings: type[msgspec.Struct]) -> None:
    """One flag a field. A bool field `x` gets --x and --no-x."""
    for field in msgspec.structs.fields(settings):
        flag = "--" + field.encode_name.replace("_", "-")
        help_text = _description(field.type)
        if field.required:
            help_text += " (required)"
        elif field.default is not msgspec.NODEFAULT and field.default not in ("", None):
            help_text += f" (default: {field.default})"
        help_text = help_text.replace("%", "%%")
        if _plain(field.type) is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        else:
            parser.add_argument(flag, default=None, metavar="V", help=help_text)


def from_values(settings: type[S], flags: Mapping[str, object], env: Mapping[str, str] = os.environ) -> S:
    """Flags (None: not given), then the environment, then defaults. Raises ConfigError by name."""
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(settings):
        name = field.encode_name
        variable = ENV_PREFIX + name.upper()
        source = f"--{name.replace('_', '-')} ({variable})"
        value: object = flags.get(name)
        if value is None:
            value = _from_env(env, variable)
        if value is None:
            if field.required:
                raise ConfigError(f"{source} is required")
            continue
        try:
            values[name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{source}: {error}, got {value!r}") from None
    return settings(**values)


def load(settings: type[S], argv: Sequence[str] | None = None, prog: str | None = None) -> S:
    """The settings of this process from its command line and environment."""
    parser = argparse.ArgumentParser(prog=prog, description=settings.__doc__)
    add_flags(parser, settings)
    return from_values(settings, vars(parser.parse_args(argv)))


def _from_env(env: Mapping[str, str], variable: str) -> str | None:
    """None: not given."""
    value = env.get(variable)
    is_link = variable.endswith("_PORT") and value is not None and value.startswith(SERVICE_LINKS)
    return None if is_link else value


def _description(annotation: object) -> str:
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, msgspec.Meta) and part.description:
            return part.description
    return ""


def _plain(annotation: object) -> object:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
