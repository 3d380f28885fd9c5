"""What to start: every process with its command line, decided from the settings alone."""

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.launcher.flags import GATEWAY, GPU_WORKER, MANAGED, SCHEDULER, TOKENIZER, ServeSettings, passed_on
from shared.errors import ConfigError
from shared.settings import ENV_PREFIX

REDIS_URL = ENV_PREFIX + "REDIS_URL"


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """A process to keep running. name: also its instance id in the registry. environment: beside the launcher's own;
    what may hold a secret is there and not in the command line, which everybody on the machine can see."""

    name: str
    service: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def plan_services(settings: ServeSettings, flags: Mapping[str, object], redis_url: str, cpus: int) -> list[ProcessPlan]:
    """All service processes in the order of their start. The settings are complete: model path, port."""
    counts = {
        SCHEDULER: settings.schedulers,
        GPU_WORKER: settings.workers,
        TOKENIZER: settings.tokenizers,
        GATEWAY: settings.gateways,
    }
    if settings.metrics_port and settings.metrics_port + sum(counts.values()) - 1 > 65535:
        raise ConfigError(
            f"--metrics-port {settings.metrics_port}: {sum(counts.values())} ports from there do not exist"
        )
    # with a broker of our own a name is ours alone; on a shared one another launcher may use the same
    suffix = f"-{secrets.token_hex(3)}" if settings.redis_url else ""
    plans: list[ProcessPlan] = []
    for service, count in counts.items():
        for index in range(count):
            name = f"{service}-{index}{suffix}"
            metrics_port = settings.metrics_port + len(plans) if settings.metrics_port else 0
            values = _managed_values(settings, name, metrics_port)
            command = [sys.executable, "-P", "-m", f"services.{service}"]
            command += [values[flag] for flag, takers in MANAGED.items() if service in takers and values[flag]]
            command += passed_on(service, flags)
            if service == GPU_WORKER and count > 1 and flags.get("threads") is None:
                command.append(f"--threads={max(1, cpus // count)}")  # each alone would take all cores
            plans.append(ProcessPlan(name, service, command, {REDIS_URL: redis_url}))
    return plans


def _managed_values(settings: ServeSettings, name: str, metrics_port: int) -> dict[str, str]:
    """Every managed flag as one argument."""
    values: dict[str, object] = {
        "key-prefix": settings.key_prefix,
        "instance": name,
        "log-level": settings.log_level,
        "otlp-endpoint": settings.otlp_endpoint,
        "trace-ratio": settings.trace_ratio,
        "metrics-port": metrics_port,
        "model-path": settings.model_path,
        "served-model-name": settings.served_model_name,
        "max-model-len": settings.max_model_len,
        "host": settings.host,
        "port": settings.port,
        "drain-notice-s": settings.drain_notice_s,
        "drain-timeout-s": settings.drain_timeout_s,
    }
    return {flag: f"--{flag}={value}" for flag, value in values.items()} | {
        "reuse-port": "--reuse-port" if settings.gateways > 1 else "--no-reuse-port"
    }
