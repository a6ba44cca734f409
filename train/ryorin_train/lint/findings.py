"""Findings and the report of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ryorin_train.lint.personal import redacted

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """
    One thing that is wrong, or may be.

    code: what kind of thing, as docs/datasets.md lists them. severity: `error` (it would teach something wrong or
    cannot be used), `warning` (a person should look), `note` (worth knowing). rows: line numbers, from 1; none when
    something is missing from the whole. message: what and why. fix: what to do.
    """

    code: str
    severity: str
    rows: tuple[int, ...]
    message: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        """The finding in `ryorin data lint --json`."""
        return {**vars(self), "rows": list(self.rows)}


@dataclass(frozen=True)
class Report:
    """All findings of one dataset. rows: how many could be read. skipped: checks that were not done, and why."""

    name: str
    kind: str
    rows: int
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...] = ()
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        found = Counter(finding.severity for finding in self.findings)
        object.__setattr__(self, "counts", {severity: found[severity] for severity in SEVERITIES})

    def as_json(self) -> dict[str, Any]:
        """The report of `ryorin data lint --json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "rows": self.rows,
            "counts": self.counts,
            "findings": [finding.as_json() for finding in self.findings],
            "skipped": list(self.skipped),
        }


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first, then by code and first row."""
    return tuple(sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), each.code, each.rows)))


def shown(text: str, limit: int = 60) -> str:
    """A text of a row on one line, personal data masked, cut to `limit` characters, for a message."""
    line = redacted(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
