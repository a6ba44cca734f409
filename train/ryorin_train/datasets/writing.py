"""
Writing rows: the formats that formats.py reads, so that what is written reads back as the same rows.

A format that cannot carry a row refuses it with its line: TRL's prompt/completion and CSV learn the last answer alone,
CSV holds one question and one answer.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ryorin.digests import canonical_json
from ryorin.errors import Conflict, InvalidInput
from ryorin_train.data import Example, Preference, Rating, Row, Task, for_each_row
from ryorin_train.datasets.formats import CSV, HF, HOLDS

FORMATS_OF = {
    Example: ("openai-chat", "trl-prompt-completion", CSV, HF),
    Preference: ("openai-preference", "trl-preference", CSV, HF),
    Rating: ("trl-unpaired", CSV, HF),
    Task: ("openai-reinforcement",),
}


def write_rows(rows: Sequence[Row], path: Path, format: str | None = None) -> str:
    """
    Write rows of one kind to a file, or to a directory for the format hf; returns the format.

    format: one of FORMATS; CSV for a name in .csv, else OpenAI's JSONL of their kind. The file is there as a whole or
    not at all. Raises Conflict when something is at `path`, InvalidInput when there are no rows or the format is not
    one of their kind, RowError naming the rows that the format cannot carry.
    """
    if not rows:
        raise InvalidInput("there are no rows to write", param="format")
    fitting = FORMATS_OF[type(rows[0])]
    chosen = format or (CSV if path.suffix.lower() == ".csv" else fitting[0])
    if chosen not in fitting:
        kind = HOLDS[type(rows[0])].partition(" ")[0]
        raise InvalidInput(f"{kind} cannot be written as {chosen}; possible: {', '.join(fitting)}", param="format")
    if path.exists() or path.is_symlink():
        raise Conflict(f"{path} exists already; remove it or choose another name", param="out")
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent}; make it first", param="out")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if chosen == HF:
            _write_directory(rows, fresh)
        else:
            fresh.write_bytes(_bytes(path.name, rows, chosen))
        os.rename(fresh, path)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
        else:
            fresh.unlink(missing_ok=True)
    return chosen


def _bytes(name: str, rows: Sequence[Row], format: str) -> bytes:
    if format == CSV:
        return _table(for_each_row(name, rows, _line, _cells))
    work: Callable[[Row], dict[str, Any]] = _trl if format.startswith("trl-") else lambda row: row.content
    return "".join(canonical_json(fields) + "\n" for fields in for_each_row(name, rows, _line, work)).encode()


def _line(row: Row) -> int:
    return row.line


def _trl(row: Row) -> dict[str, Any]:
    """TRL's conversational prompt/completion or prompt/chosen/rejected. Raises ValueError."""
    content = row.content
    extras: dict[str, Any] = {name: content[name] for name in ("passages", "source") if name in content}
    if isinstance(row, Preference):
        answers = {"chosen": content["preferred_output"], "rejected": content["non_preferred_output"]}
        return {"prompt": content["input"]["messages"], **answers, **extras}
    if isinstance(row, Rating):
        return content
    assert isinstance(row, Example)  # FORMATS_OF
    if any(row.learned[:-1]):
        raise ValueError("it learns several answers, TRL's prompt/completion the last one; write openai-chat")
    if len(row.messages) < 2 or row.messages[-2]["role"] == "assistant":
        raise ValueError("no question stands before its answer, which TRL's prompt/completion needs; write openai-chat")
    messages = [dict(message) for message in row.messages]
    return {"prompt": messages[:-1], "completion": messages[-1:], **extras}


def _cells(row: Row) -> dict[str, str]:
    """A row's cells by target. Raises ValueError."""
    messages = list(row.messages)
    answers = {"chosen": row.chosen, "rejected": row.rejected} if isinstance(row, Preference) else {}
    if isinstance(row, Rating):
        answers = {"assistant": row.answer, "label": "true" if row.good else "false"}
    if isinstance(row, Example):
        answers = {"assistant": messages.pop()["content"]}
    cells = {}
    if messages and messages[0]["role"] == "system":
        cells["system"] = messages.pop(0)["content"]
    if [message["role"] for message in messages] != ["user"]:
        first = FORMATS_OF[type(row)][0]
        raise ValueError(f"it is not one question and its answer, which is all that CSV holds; write {first}")
    content = row.content
    if "passages" in content:
        cells["passages"] = canonical_json(content["passages"])
    if "source" in content:
        cells["source"] = content["source"]
    return {**cells, "user": messages[0]["content"], **answers}


def _table(rows: Sequence[dict[str, str]]) -> bytes:
    order = ("system", "user", "assistant", "label", "chosen", "rejected", "passages", "source")
    used = {name for cells in rows for name in cells}
    columns = [name for name in order if name in used]
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([cells.get(name, "") for name in columns] for cells in rows)
    return text.getvalue().encode()


def _write_directory(rows: Sequence[Row], path: Path) -> None:
    import datasets
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": text}
    if isinstance(rows[0], Example):
        table = [row.content for row in rows]
        weighted = any("weight" in each for row in table for each in row["messages"])
        features: dict[str, Any] = {"messages": List({**message, **({"weight": Value("int8")} if weighted else {})})}
        for each in (each for row in table for each in row["messages"]) if weighted else ():
            each.setdefault("weight", None)
    else:
        table = [_trl(row) for row in rows]
        rated = isinstance(rows[0], Rating)
        features = {name: List(message) for name in ("prompt", *(("completion",) if rated else ("chosen", "rejected")))}
        if rated:
            features["label"] = Value("bool")
    if any("passages" in row for row in table):
        features["passages"] = List({"title": text, "text": text})
    if any("source" in row for row in table):
        features["source"] = text
    datasets.disable_progress_bars()
    columns = {name: [row.get(name) for row in table] for name in features}
    datasets.Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(path))
