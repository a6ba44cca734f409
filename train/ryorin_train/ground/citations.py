"""The markers of an answer, moved to where its passages stand; and put where the tenant's answers have theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ryorin.prompt import MARKER, Prompt
from ryorin_train.lint.turns import Said


def renumbered(answer: str, numbers: Mapping[int, int]) -> str:
    """The answer with each `[n]` as `[numbers[n]]`, all at once."""
    return MARKER.sub(lambda match: f"[{numbers[int(match[1])]}]", answer)


def citing_fields(answers: Iterable[str], prompt: Prompt) -> tuple[str, ...]:
    """
    The fields of JSON answers that hold a citation alone: those whose pattern in the answer schema takes '[1]', and
    those in which some answer has one.
    """
    fields = (prompt.answer_schema or {}).get("properties")
    found = [name for name, spec in fields.items() if _takes_marker(spec)] if isinstance(fields, dict) else []
    for answer in answers:
        value = Said(answer).value
        if isinstance(value, dict):
            found += [name for name, item in value.items() if isinstance(item, str) and MARKER.fullmatch(item)]
    return tuple(dict.fromkeys(found))


def placed(answer: str, fields: Iterable[str], number: int) -> str | None:
    """The answer with its citation in the first field for one that is null; None where it has no such place."""
    value = Said(answer).value
    for field in fields:
        if isinstance(value, dict) and field in value and value[field] is None:
            spelled = re.escape(json.dumps(field, ensure_ascii=False))
            made, count = re.subn(rf"({spelled}\s*:\s*)null", rf'\g<1>"[{number}]"', answer)
            if count == 1 and Said(made).value == value | {field: f"[{number}]"}:
                return made
    return None


def _takes_marker(spec: Any) -> bool:
    pattern = spec.get("pattern") if isinstance(spec, dict) else None
    if not isinstance(pattern, str):
        return False
    try:
        return re.search(pattern, "[1]") is not None and re.search(pattern, "a") is None
    except re.error:
        return False
