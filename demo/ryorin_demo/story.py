"""The two moments the demo shows by hand: one question to both desks, and a document edited under a running server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """A change to one document, and what a question about it must be answered before and after."""

    desk: str
    file: str
    old: str
    new: str
    question: str
    before: dict[str, str]
    after: dict[str, str]


SAME_QUESTION = "I bought a kettle 20 days ago and have not opened it. Can I return it?"
SAME_QUESTION_EXPECTED = {
    "support": {"decision": "YES", "fact": "30 days", "document": "returns.md"},
    "people": {"decision": "NO", "fact": "14 days", "document": "staff-purchases.md"},
}

EDIT = Edit(
    desk="support",
    file="returns.md",
    old="within 30 days of delivery",
    new="within 45 days of delivery",
    question="My unopened kettle was delivered 35 days ago. Can I return it?",
    before={"decision": "NO", "fact": "30 days", "document": "returns.md"},
    after={"decision": "YES", "fact": "45 days", "document": "returns.md"},
)
