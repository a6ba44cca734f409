"""What the tests of training share: a prompt, rows, options of a short run, what is left of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ryorin.prompt import Prompt

PROMPT = Prompt(system="Answer from the documents.")
# Options of `ryorin train` for a short run.
QUICK = ("--epochs", "2", "--batch-tokens", "400", "--rank", "8", "--max-row-tokens", "500")


def chat(question: str, answer: str, passages: Sequence[tuple[str, str]] | None = None) -> dict[str, Any]:
    """A row of one question and its answer."""
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }
    if passages is not None:
        row["passages"] = [{"title": title, "text": text} for title, text in passages]
    return row


def a_dozen() -> list[dict[str, Any]]:
    """Twelve different rows, some with passages."""
    return [
        chat(f"Is {number} even?", "YES" if number % 2 == 0 else "NO", [("Numbers", "2, 4, 6")] if number % 3 else None)
        for number in range(12)
    ]


def all_of(catalog: Any, table: Any) -> list[Any]:
    """The rows of a table."""
    with catalog.session() as session:
        return list(session.query(table).all())


def left_in(home: Path, folder: str) -> list[str]:
    """The names in a folder of the home."""
    return sorted(path.name for path in (home / folder).iterdir()) if (home / folder).exists() else []
