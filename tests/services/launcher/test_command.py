"""The command where only the package for users of a server is installed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["redis", "rich", "uvloop", "aiohttp"])
def test_a_missing_extra_is_one_line_that_names_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from services.launcher.command import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, "serve", "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert missing in line
    assert "sapwood[serve]" in line


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra() -> None:
    code = (
        "import sys; sys.modules['services.launcher.chat'] = None; from services.launcher.command import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code, "serve", "--help"], capture_output=True, text=True, check=False)
    assert "Traceback" in ended.stderr
