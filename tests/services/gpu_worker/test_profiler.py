"""Traces of steps."""

import json
from pathlib import Path

import pytest
import torch

from services.gpu_worker.profiler import Profiler

pytestmark = pytest.mark.filterwarnings("ignore")  # the profiler's own


def steps(profiler: Profiler, count: int, *, has_computed: bool = True) -> None:
    for _ in range(count):
        profiler.before_step()
        torch.ones(3, 3) @ torch.ones(3, 3)
        profiler.after_step(has_computed=has_computed)


def test_a_trace_of_the_steps_asked_for_is_written(tmp_path: Path) -> None:
    profiler = Profiler()
    steps(profiler, 2)
    profiler.request(3, tmp_path / "trace.json")
    steps(profiler, 1, has_computed=False)  # an idle turn does not count
    steps(profiler, 2)
    assert not (tmp_path / "trace.json").exists() and profiler.is_wanted
    steps(profiler, 1)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("mm" in str(event.get("name")) for event in events)
    assert not profiler.is_wanted
    profiler.request(1, tmp_path / "another.json")
    steps(profiler, 1)
    assert (tmp_path / "another.json").exists()


def test_what_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    profiler = Profiler()
    with pytest.raises(ValueError, match="0 steps"):
        profiler.request(0, tmp_path / "trace.json")
    with pytest.raises(ValueError, match="no such folder"):
        profiler.request(1, tmp_path / "nowhere" / "trace.json")
    profiler.request(5, tmp_path / "trace.json")
    with pytest.raises(ValueError, match="already"):
        profiler.request(1, tmp_path / "trace.json")


def test_a_file_that_cannot_be_written_does_not_stop_the_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = Profiler()
    folder = tmp_path / "soon gone"
    folder.mkdir()
    profiler.request(1, folder / "trace.json")
    folder.rmdir()
    steps(profiler, 1)
    assert "could not be written" in caplog.text and not profiler.is_wanted
