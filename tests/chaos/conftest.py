"""A set to hurt."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster, clean_environment
from tests.chaos.model import write_model
from tests.ports import free_ports


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    return folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough a path for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sapwood-chaos-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
async def cluster(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """Two workers, two tokenizers, two gateways, a scheduler and a broker, ready."""
    clean_environment(monkeypatch)
    cluster = Cluster(folder, tiny_model, free_ports(2))
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
