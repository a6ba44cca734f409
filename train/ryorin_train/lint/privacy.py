"""
Personal data and secrets in what is asked and answered; what is reported is masked.

An address or telephone number that stands in the passages given is the documents' own. A secret, a card number and a My
Number are looked for in the passages too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ryorin_train.data import Example, Row
from ryorin_train.lint.findings import ERROR, WARNING, Finding
from ryorin_train.lint.personal import ADDRESS, CARD, EMAIL, MY_NUMBER, PHONE, SECRET, masked, values_in


def personal_data(rows: Sequence[Row]) -> list[Finding]:
    """Rows that hold personal data or secrets, a finding for each kind."""
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        said = "\n".join(message["content"] for message in row.messages)
        if not isinstance(row, Example):
            said = "\n".join([said, *row.answers])
        given = "\n".join(f"{passage.title}\n{passage.text}" for passage in row.passages or ())
        plain = unicodedata.normalize("NFKC", given)
        for kind, value in values_in(said):
            if kind in (EMAIL, PHONE, ADDRESS) and value in plain:
                continue
            found.setdefault(kind, []).append((row.line, value))
        for kind, value in values_in(given):
            if kind in (CARD, MY_NUMBER, SECRET):
                found.setdefault(kind, []).append((row.line, value))
    findings = []
    for kind, places in found.items():
        lines = tuple(dict.fromkeys(line for line, _ in places))
        examples = ", ".join(dict.fromkeys(masked(value) for _, value in places[:5]))
        findings.append(
            Finding(
                "secret" if kind == SECRET else "personal-data",
                ERROR if kind in (CARD, MY_NUMBER, SECRET) else WARNING,
                lines,
                f"{kind}: {examples}; a model may repeat what it was trained on",
                "revoke it and take it out" if kind == SECRET else "replace it by a made-up one or take it out",
            )
        )
    return findings
