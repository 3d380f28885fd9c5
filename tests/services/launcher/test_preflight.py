"""Faults that are found before anything is started."""

import socket
from pathlib import Path

import pytest

from services.launcher.preflight import check_log_level, check_model_folder, claim_port, client_url
from shared.errors import ConfigError


def test_a_model_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    assert check_model_folder("m") == tmp_path / "m"


def test_a_wrong_path_is_named() -> None:
    with pytest.raises(ConfigError, match="/no/such/model: there is no such folder"):
        check_model_folder("/no/such/model")


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match="not a folder"):
        check_model_folder(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no config.json"),
        (b'{"model_type": "llama",\n', "config.json: line 2 is not JSON"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[]", "no model_type"),
        (b'{"hidden_size": 8}', "no model_type"),
    ],
    ids=["missing", "cut off", "binary", "a list", "no type"],
)
def test_a_broken_config_is_described(tmp_path: Path, content: bytes | None, fault: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=fault):
        check_model_folder(str(tmp_path))


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_port_in_use_is_told(reuse_port: bool) -> None:
    with socket.socket() as other:
        if reuse_port:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            claim_port("127.0.0.1", port)


def test_a_claimed_port_can_be_listened_on() -> None:
    port = claim_port("127.0.0.1", 0)
    assert claim_port("127.0.0.1", port) == port
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", port))
        ours.listen()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=host):
        claim_port(host, 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("10.0.0.1", "http://10.0.0.1:1"),
        ("::1", "http://[::1]:1"),
    ],
)
def test_client_url_can_be_connected_to(host: str, url: str) -> None:
    assert client_url(host, 1) == url


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="SAPWOOD_LOG_LEVEL"):
        check_log_level("loud")
