"""Which lines of a service are shown, and how its end is explained."""

import pytest

from services.launcher.output import LogFilter, reason_for_end

INFO = "2025-01-01 00:00:00,000 gateway INFO services.gateway: listening"
WARNING = "2025-01-01 00:00:00,000 gateway WARNING shared.streams: lost"


def test_lines_below_the_level_are_hidden_with_what_follows_them() -> None:
    shown = LogFilter("warning")
    assert [shown.shows(line) for line in (INFO, "  more", WARNING, "  more")] == [False, False, True, True]


def test_a_traceback_is_always_shown() -> None:
    shown = LogFilter("ERROR")
    lines = ["Traceback (most recent call last):", '  File "x.py"', "ValueError: no"]
    assert all(shown.shows(line) for line in lines)


def test_what_a_library_prints_at_start_is_hidden() -> None:
    assert not LogFilter("WARNING").shows("[transformers] PyTorch was not found.")


@pytest.mark.parametrize(
    ("returncode", "lines", "reason"),
    [
        (2, ["noise", "gpu_worker: no weights in /m"], "no weights in /m"),
        (2, ["gpu_worker: cannot load it:", "  (1) a", ""], "cannot load it: (1) a"),
        (1, ["Traceback (most recent call last):", "  File", "ValueError: no", ""], "exit code 1: ValueError: no"),
        (-9, ["loading"], "killed by signal 9 (out of memory?)"),
        (3, [], "exit code 3"),
    ],
)
def test_the_end_is_explained_in_one_line(returncode: int, lines: list[str], reason: str) -> None:
    assert reason_for_end("gpu_worker", returncode, lines) == reason
