"""Generated pages are what the code says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_command_line_is_fresh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli_docs.py", "--check"])
    assert runpy.run_path(str(ROOT / "scripts" / "cli_docs.py"))["main"]() == 0, capsys.readouterr().err
