"""`python -m services.tokenizer` as an operator sees it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis

from tests.services.tokenizer.conftest import FolderMaker


def command(broker_url: str, prefix: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "services.tokenizer", "--redis-url", broker_url, "--key-prefix", prefix, *flags]


def test_a_wrong_path_is_one_line_and_exit_code_2(broker_url: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    done = subprocess.run(
        command(broker_url, "wrong-path", "--model-path", missing), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [f"tokenizer: --model-path {missing}: no such folder"]
    assert "Traceback" not in done.stderr


def test_starts_says_so_and_stops_on_sigterm(broker_url: str, make_folder: FolderMaker) -> None:
    folder = make_folder()
    broker = redis.Redis(unix_socket_path=broker_url.removeprefix("unix://"))
    process = subprocess.Popen(
        command(broker_url, "process", "--model-path", str(folder), "--instance", "t1"),
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        give_up = time.monotonic() + 60
        while b'"is_ready":true' not in (broker.hget("process:instances", "tokenizer/t1") or b""):
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)
        while broker.get("process:shard:0:owner") != b"t1":
            assert time.monotonic() < give_up
            time.sleep(0.05)
        resident_kb = (
            int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        )
        assert resident_kb < 300_000, "torch is in memory"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
        assert b"PyTorch" not in errors
        assert not broker.hexists("process:instances", "tokenizer/t1")
        assert broker.get("process:shard:0:owner") is None
    finally:
        process.kill()
        process.wait()
        broker.close()
