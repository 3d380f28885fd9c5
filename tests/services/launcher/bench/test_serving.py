"""`sapwood bench serve` against a small server, and its command line."""

import json
import re
from pathlib import Path

import pytest

from services.launcher.main import main
from services.launcher.preflight import claim_port
from tests.services.launcher.bench.conftest import FakeServer

TINY = ("--scale", "0.05", "--length", "0.03", "--processes", "2", "--vocab", "400")


def bench(*flags: str) -> int:
    """Runs `sapwood bench serve` -> its exit code."""
    try:
        main(["bench", "serve", *flags])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_two_workloads(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    flags = ("--workload", "random,json", "--concurrency", "3", "--json", str(file), "--label", "fake", *TINY)
    assert bench("--base-url", server.url + "/v1/", *flags) == 0
    results = json.loads(file.read_text())
    assert results["model"] == "tiny" and results["url"] == server.url
    random, structured = results["rows"]
    assert (random["workload"], random["ok"], random["errors"], random["concurrency"]) == ("random", 12, 0, 3)
    assert random["in_tokens"] == 12 * 30 and random["out_tokens"] == 12 * 3 and random["cached_tokens"] == 12 * 15
    assert random["itl_p50_ms"] >= 2 and random["ttft_p50_ms"] > 0
    assert structured["workload"] == "json" and structured["ok"] == 6
    assert server.most_running <= 3
    plain = [body for body in server.bodies if "response_format" not in body]
    assert len(plain) == 12 and all(body["ignore_eos"] and body["stream"] for body in plain)
    with_schema = next(body for body in server.bodies if "response_format" in body)
    assert "ignore_eos" not in with_schema
    assert with_schema["response_format"]["json_schema"]["schema"]["required"][0] == "city"
    out = capsys.readouterr().out
    assert "random" in out and "TTFT" in out


def test_a_sweep_is_plotted(server: FakeServer, tmp_path: Path) -> None:
    plot, file = tmp_path / "latency.png", tmp_path / "results.json"
    flags = ("--workload", "free", "--concurrency", "1,2", "--plot", str(plot), "--json", str(file), *TINY)
    assert bench("--base-url", server.url, *flags) == 0
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 5000
    assert [row["concurrency"] for row in json.loads(file.read_text())["rows"]] == [1, 2]


def test_arrivals_at_a_rate(server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    flags = ("--workload", "free", "--rate", "40", "--json", str(file), *TINY)
    assert bench("--base-url", server.url, *flags) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["rate"] == 40 and row["ok"] == 6


@pytest.mark.parametrize(("length", "error"), [(77 / 128, "400 .*too odd"), (78 / 128, "worker gone")])
def test_failed_requests_are_counted_and_told(
    server: FakeServer, capsys: pytest.CaptureFixture[str], length: float, error: str
) -> None:
    flags = ("--workload", "single", "--length", str(length + 1e-6), "--vocab", "400", "--processes", "1")
    assert bench("--base-url", server.url, *flags) == 1
    out = capsys.readouterr().out
    assert "1 failed, the first:" in out
    assert re.search(error, out)


def test_no_server_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{claim_port('127.0.0.1', 0)}"
    assert bench("--base-url", url) == 1
    assert f"no server at {url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workload", "rnadom"], "--workload rnadom: no such workload"),
        (["--workload", ","], "--workload names no workload"),
        (["--scale", "0"], "--scale 0: has to be above 0"),
        (["--length", "nan"], "--length nan: has to be above 0"),
        (["--processes", "0"], "--processes 0: has to be at least 1"),
        (["--repeat", "0"], "--repeat 0: has to be at least 1"),
        (["--temperature", "-1"], "--temperature -1: cannot be below 0"),
        (["--vocab", "200"], "--vocab 200: has to be above 201"),
        (["--concurrency", "1,x"], "--concurrency 1,x: numbers are wanted"),
        (["--concurrency", "1.5"], "--concurrency 1.5: whole numbers"),
        (["--rate", "0"], "--rate 0: each has to be above 0"),
        (["--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json: there is no such folder"),
        (["--plot", "latency.svg"], "--plot latency.svg: the plot is a PNG"),
        (["--plot", "/no/such/folder/x.png"], "--plot /no/such/folder/x.png: there is no such folder"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--base-url", "http://127.0.0.1:9", *flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--base-url", "x", "--rate", "1", "--concurrency", "2"]])
def test_wrong_command_lines(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*flags) == 2
