"""`sapwood serve` from start to stop, and what it says when it cannot start."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from services.launcher.main import main

Serve = Callable[..., Any]


def fail(capfd: pytest.CaptureFixture[str], *arguments: str, within_s: float) -> str:
    """The one line that a failing `sapwood serve` ends with."""
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 1
    assert time.monotonic() - began < within_s
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("sapwood: ")
    return lines[0]


def test_a_wrong_path_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert "/no/such/model: there is no such folder" in fail(
        capfd, "--port", "0", "--model-path", "/no/such/model", within_s=5
    )


def test_a_broken_config_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": ')
    line = fail(capfd, "--port", "0", "--model-path", str(tmp_path), within_s=5)
    assert "config.json: line 1 is not JSON" in line


def test_a_config_of_an_unknown_model_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    line = fail(capfd, "--port", "0", "--model-path", str(tmp_path), within_s=60)
    assert "did not start: " in line
    assert "exit code" not in line, "a config error, not a crash"


def test_a_port_in_use_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in fail(capfd, "--port", port, within_s=5)


@pytest.mark.model
def test_a_model_too_big_for_memory_is_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, default_model_folder: Path
) -> None:
    for file in default_model_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 200, "head_dim": 128}
    config |= {"num_attention_heads": 512, "num_key_value_heads": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = fail(capfd, "--port", "0", "--model-path", str(tmp_path), "--load-format", "dummy", within_s=60)
    assert "memory" in line
    assert "gpu_worker" in line
    assert "exit code" not in line, "a config error, not a crash"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--redis-url", "redis://127.0.0.1:1/0"], "the broker does not answer"),
        (["--redis-url", "http://127.0.0.1:1/0"], "--redis-url (SAPWOOD_REDIS_URL): "),
        (["--port", "70000"], "--port (SAPWOOD_PORT): "),
        (["--log-level", "loud"], "--log-level (SAPWOOD_LOG_LEVEL): "),
        (["--host", "192.0.2.1"], "port 0 on 192.0.2.1 cannot be used"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], said: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert said in fail(capfd, "--port", "0", "--model-path", str(tmp_path), *flags, within_s=8)


def test_an_unknown_flag_is_refused_with_the_usage(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--modle-path", "x"])
    assert ended.value.code == 2
    assert "--modle-path" in capfd.readouterr().err


def assert_gone(processes: set[int], within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while True:
        left = {pid for pid in processes if is_running(pid)}
        if not left:
            return
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_of(instance: str, processes: set[int]) -> int:
    return next(
        pid for pid in processes if f"--instance={instance}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


@pytest.mark.model
def test_ctrl_c_stops_everything_cleanly(serve: Serve) -> None:
    served = serve("--gateways", "2", "--tokenizers", "2")
    processes = served.children
    assert len(processes) >= 7  # broker, scheduler, worker, two tokenizers, two gateways
    began = time.monotonic()
    assert served.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 10
    assert_gone(processes, within_s=0.5)
    assert not [line for line in served.output if "Traceback" in line]


@pytest.mark.model
def test_nothing_outlives_a_launcher_that_is_killed(serve: Serve) -> None:
    served = serve()
    processes = served.children
    served.process.kill()
    served.process.wait(5)
    assert_gone(processes)


@pytest.mark.model
def test_a_service_that_dies_is_started_again(serve: Serve) -> None:
    served = serve()
    os.kill(pid_of("tokenizer-0", served.children), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not any("tokenizer-0 ended (killed by signal 9" in line for line in served.output):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    body = {"model": "SmolLM2-135M-Instruct", "prompt": "Hello", "max_tokens": 3}
    while requests.post(f"{served.url}/v1/completions", json=body, timeout=60).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
