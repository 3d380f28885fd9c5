"""A set like that of tests/chaos, with what these tests need of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.cluster import clean_environment
from tests.chaos.conftest import folder, tiny_model
from tests.endurance.fleet import Fleet
from tests.ports import free_ports

__all__ = ["fleet", "folder", "tiny_model"]


@pytest.fixture
def gateway_flags() -> list[str]:
    """Of every gateway; a module that wants others has a fixture of its own."""
    return []


@pytest.fixture
async def fleet(
    folder: Path, tiny_model: Path, gateway_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Fleet]:
    """Two of everything, ready: the second scheduler stands by."""
    clean_environment(monkeypatch)
    fleet = Fleet(folder, tiny_model, free_ports(2), gateway_flags)
    try:
        await fleet.start()
        await fleet.until_whole()
        yield fleet
    finally:
        await fleet.stop()
