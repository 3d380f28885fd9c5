"""Which flags `sapwood serve` takes: its own, and those that it hands to the services.

The services' flags are listed here, for a service is never imported; a test compares the list with the services'
settings. Every flag can also be given as an environment variable, `--kv-memory-gb` as `SAPWOOD_KV_MEMORY_GB`:
children inherit the environment, so only flags need handing on.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from shared.settings import BaseSettings, add_flags, help_

GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER = "gateway", "tokenizer", "scheduler", "gpu_worker"


class ServeSettings(BaseSettings, frozen=True, kw_only=True):
    """Starts the whole set on one machine: broker, scheduler, workers, tokenizers, gateways."""

    model_path: Annotated[str, help_("folder of the model; default: SmolLM2-135M-Instruct, made on first use")] = ""
    served_model_name: Annotated[str, help_("name that clients ask for; default: the folder's name")] = ""
    max_model_len: Annotated[int, msgspec.Meta(ge=0), help_("context length in tokens; 0: the model's own")] = 0
    host: Annotated[str, help_("address to listen on")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535), help_("port of the API; 0: any free one")] = 30000
    gateways: Annotated[int, msgspec.Meta(ge=1, le=64), help_("gateway processes; they share the port")] = 1
    tokenizers: Annotated[int, msgspec.Meta(ge=1, le=256), help_("tokenizer processes")] = 1
    workers: Annotated[int, msgspec.Meta(ge=1, le=256), help_("worker processes, each with the whole model")] = 1
    schedulers: Annotated[
        int, msgspec.Meta(ge=1, le=8), help_("scheduler processes: one leads, the others wait to take over")
    ] = 1
    redis_url: Annotated[str, help_("broker to use; default: one of its own, without a port")] = ""
    hang_timeout_s: Annotated[
        float, msgspec.Meta(ge=10, le=25), help_("a process that was ready and is silent for so long is killed")
    ] = 20.0
    drain_notice_s: Annotated[
        float, msgspec.Meta(ge=0), help_("on stop, how long /ready says no before connections are refused")
    ] = 0.0
    drain_timeout_s: Annotated[float, msgspec.Meta(ge=0), help_("on stop, how long running requests may go on")] = 3.0
    log_level: Annotated[str, help_("what the services write: DEBUG, INFO, WARNING or ERROR")] = "WARNING"
    metrics_port: Annotated[
        int, msgspec.Meta(ge=0, le=65535), help_("first of a row of ports, one a process, with /metrics; 0: none")
    ] = 0


@dataclass(frozen=True, slots=True)
class ServiceFlag:
    """A flag that goes to some services as it is. is_switch: --x and --no-x, without a value."""

    name: str
    services: tuple[str, ...]
    help: str
    is_switch: bool = False

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


SERVICE_FLAGS = (
    ServiceFlag("token-shards", (TOKENIZER,), "token streams that the tokenizers share out"),
    ServiceFlag("prompt-cache-mb", (TOKENIZER,), "MiB of encoded messages that a tokenizer remembers; 0: none"),
    ServiceFlag("api-key", (GATEWAY,), "key that clients must send as a bearer token"),
    ServiceFlag("api-keys-file", (GATEWAY,), "TOML file of hashed keys with their limits"),
    ServiceFlag("admin-api-key", (GATEWAY,), "key for /v1/admin"),
    ServiceFlag("allowed-origins", (GATEWAY,), "origins whose pages may ask from browsers, by commas; *: all"),
    ServiceFlag("open-probes", (GATEWAY,), "/health, /ready and /metrics need no key", is_switch=True),
    ServiceFlag("isolate-keys", (GATEWAY,), "share cached prefixes within an API key only", is_switch=True),
    ServiceFlag("max-body-bytes", (GATEWAY,), "largest request body"),
    ServiceFlag("max-body-bytes-in-flight", (GATEWAY,), "bytes of all bodies being read; above: 429"),
    ServiceFlag("max-requests-in-flight", (GATEWAY,), "requests that a gateway holds at once; above: 429"),
    ServiceFlag("max-prompt-tokens-in-flight", (GATEWAY,), "tokens of their prompts, about; above: 429; 0: no limit"),
    ServiceFlag("max-unread-bytes", (GATEWAY,), "text that waits for a slow client; above: it is cut; 0: no limit"),
    ServiceFlag("resume-grace-s", (GATEWAY,), "how long an answer is made on without a reader, if it may come back"),
    ServiceFlag("resume-keep-s", (GATEWAY,), "how long such an answer is kept once it is complete"),
    ServiceFlag("resume-max-mb", (GATEWAY,), "MiB of complete answers that a gateway keeps in the broker"),
    ServiceFlag("request-timeout-s", (GATEWAY,), "longest time for one request; 0: no limit"),
    ServiceFlag("send-timeout-s", (GATEWAY,), "a client that reads nothing for so long is cut; 0: never"),
    ServiceFlag("outage-patience-s", (GATEWAY,), "how long requests wait for a part that is gone before a 503"),
    ServiceFlag("grammar-mode", (GATEWAY,), "auto, or off: requests that constrain their answer get a 400"),
    ServiceFlag("encode-threads", (TOKENIZER,), "threads that encode prompts, in each tokenizer"),
    ServiceFlag("tool-parser", (TOKENIZER,), "form of the model's tool calls: auto, none, hermes, llama3_json, ..."),
    ServiceFlag("reasoning-parser", (TOKENIZER,), "marks of the model's reasoning: auto, none, think or mistral"),
    ServiceFlag("grammar-processes", (TOKENIZER,), "processes that compile grammars, in each tokenizer"),
    ServiceFlag("grammar-compile-timeout-s", (TOKENIZER,), "a grammar that takes longer to compile is refused"),
    ServiceFlag("grammar-compile-memory-mb", (TOKENIZER,), "MiB to compile a grammar with; above: it is refused"),
    ServiceFlag("grammar-cache-mb", (TOKENIZER,), "MiB of compiled grammars kept in the broker"),
    ServiceFlag("load-format", (GPU_WORKER,), "auto, safetensors, or dummy for seeded random weights"),
    ServiceFlag("dtype", (GPU_WORKER,), "auto, float32, bfloat16 or float16"),
    ServiceFlag("device", (GPU_WORKER,), "auto, cpu, cuda or cuda:N"),
    ServiceFlag("model-impl", (GPU_WORKER,), "auto, native or transformers: whose model code runs"),
    ServiceFlag("seed", (GPU_WORKER,), "seed of random weights"),
    ServiceFlag("page-size", (GPU_WORKER,), "tokens in a page of the KV pool"),
    ServiceFlag("num-pages", (GPU_WORKER,), "pages in the KV pool; 0: as many as kv-memory-gb holds"),
    ServiceFlag("kv-memory-gb", (GPU_WORKER,), "GiB for the KV pool; 0: by what is free"),
    ServiceFlag("max-running", (GPU_WORKER,), "sequences that run at once; 0: by the device"),
    ServiceFlag("chunked-prefill-size", (GPU_WORKER,), "prompt tokens computed in one step; 0: by the device"),
    ServiceFlag("mixed-prefill-size", (GPU_WORKER,), "the same beside running sequences; 0: by the device"),
    ServiceFlag("kv-cache-dtype", (GPU_WORKER,), "auto (the model's) or fp8_e4m3, on a GPU"),
    ServiceFlag("grammar-memory-mb", (GPU_WORKER,), "MiB of compiled grammars kept in a worker's memory"),
    ServiceFlag(
        "forced-runs", (GPU_WORKER,), "compute what a grammar leaves no choice about in one go", is_switch=True
    ),
    ServiceFlag("profile-steps", (GPU_WORKER,), "steps to trace, from the first request on; 0: none"),
    ServiceFlag("profile-file", (GPU_WORKER,), "where a worker writes its trace"),
    ServiceFlag("threads", (GPU_WORKER,), "CPU threads of a worker; 0: all, shared among the workers"),
    ServiceFlag("step-timeout-s", (GPU_WORKER,), "a step that takes longer counts as hung, and the worker ends"),
    ServiceFlag("policy", (SCHEDULER,), "order of the waiting: lpm (longest cached prefix first) or fcfs"),
    ServiceFlag("aging", (SCHEDULER,), "with lpm: cached tokens that a second of waiting counts for"),
    ServiceFlag("headroom-tokens", (SCHEDULER,), "decode tokens a lease has room for"),
    ServiceFlag("low-water-tokens", (SCHEDULER,), "room left when a lease is renewed"),
    ServiceFlag("lookahead", (SCHEDULER,), "admitted prompt tokens a worker may have before it, in prefill budgets"),
    ServiceFlag("worker-lapse-s", (SCHEDULER,), "a worker silent for so long is given up"),
    ServiceFlag(
        "check-ledger", (SCHEDULER,), "check every page's place after every decision; slow, for tests", is_switch=True
    ),
    ServiceFlag("no-worker-patience-s", (SCHEDULER,), "how long requests wait for a first worker before a 503"),
)

MANAGED = {
    "key-prefix": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "instance": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "log-level": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "otlp-endpoint": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "trace-ratio": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "metrics-port": (GATEWAY, TOKENIZER, SCHEDULER, GPU_WORKER),
    "model-path": (TOKENIZER, GPU_WORKER),
    "served-model-name": (TOKENIZER, GPU_WORKER),
    "max-model-len": (TOKENIZER, GPU_WORKER),
    "host": (GATEWAY,),
    "port": (GATEWAY,),
    "reuse-port": (GATEWAY,),
    "drain-notice-s": (GATEWAY,),
    "drain-timeout-s": (GATEWAY,),
}
"""Flags of services whose values the launcher decides (`services.launcher.plan`), and who takes them. The broker's URL
is told by the environment."""


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, ServeSettings)
    group = parser.add_argument_group("passed on to the services")
    for flag in SERVICE_FLAGS:
        help_text = f"{flag.help} ({', '.join(flag.services)})"
        if flag.is_switch:
            group.add_argument(f"--{flag.name}", action=argparse.BooleanOptionalAction, default=None, help=help_text)
        else:
            group.add_argument(f"--{flag.name}", default=None, metavar="V", help=help_text)


def passed_on(service: str, flags: Mapping[str, object]) -> list[str]:
    """The service's share of the command line. `flags`: what the parser of `add_serve_flags` found."""
    arguments: list[str] = []
    for flag in SERVICE_FLAGS:
        value = flags.get(flag.key)
        if service not in flag.services or value is None:
            continue
        if flag.is_switch:
            arguments.append(f"--{flag.name}" if value else f"--no-{flag.name}")
        else:
            arguments.append(f"--{flag.name}={value}")
    return arguments
