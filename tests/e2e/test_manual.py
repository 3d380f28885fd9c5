"""The examples of docs/structured-output.md, as a user would run them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 900
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs" / "structured-output.md"


def test_the_examples_run(sapwood: Any, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 6
    script = tmp_path / "manual.py"
    script.write_text("\n".join(blocks).replace("http://127.0.0.1:30000", sapwood.url))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "City(name=" in done.stdout
    assert "at #/items/1/pattern" in done.stdout
