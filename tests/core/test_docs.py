"""Generated pages are what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_command_line_is_fresh() -> None:
    ran = subprocess.run([sys.executable, ROOT / "scripts" / "cli_docs.py", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
