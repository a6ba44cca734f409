"""Heavy modules in test files."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Lazily:
    """
    A module that is imported when something in it is first asked for: `torch = Lazily("torch")`.

    Every test process reads all test files, and runs some of them: torch alone takes seconds to import.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest looks at every name of a test file for what it knows
            raise AttributeError(name)
        return getattr(import_module(self._name), name)
