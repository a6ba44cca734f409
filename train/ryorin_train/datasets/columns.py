"""
CSV: a table whose columns are mapped to the parts of a row.

A column's target is one of: system, user, assistant (in the order of the columns; several make several turns), label
(whether the last assistant's answer was found good), chosen and rejected (a preference), passage (a text that retrieval
found, titled with the column's name; several columns, several passages), passages (JSON, as in JSONL), source, or - to
leave the column out. Without a mapping the columns have the targets' names. An empty cell is a part that the row does
not have.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ryorin.errors import InvalidInput
from ryorin_train.data import (
    Rating,
    Row,
    answer_of,
    conversation_of,
    example_of,
    passages_of,
    preference_of,
    row_error,
    source_of,
)

if TYPE_CHECKING:
    from ryorin_train.datasets.formats import Loaded

LEFT_OUT = "-"
TARGETS = ("system", "user", "assistant", "label", "chosen", "rejected", "passage", "passages", "source", LEFT_OUT)
_SEVERAL = ("user", "assistant", "passage", LEFT_OUT)
_DELIMITERS = ",;\t"
_THUMBS = {"true": True, "1": True, "up": True, "false": False, "0": False, "down": False}
_MAX_CELL_CHARACTERS = 10_000_000


def parse_mapping(text: str) -> dict[str, str]:
    """`question=user,answer=assistant` as a mapping. Raises InvalidInput for what is none."""
    mapping: dict[str, str] = {}
    for pair in text.split(","):
        column, sign, target = (part.strip() for part in pair.rpartition("="))
        if not sign or not column or target not in TARGETS:
            raise InvalidInput(
                f"--map {pair.strip()!r}: write COLUMN=TARGET, comma-separated; targets: {', '.join(TARGETS)}",
                param="map",
            )
        if column in mapping:
            raise InvalidInput(f"--map names the column {column!r} twice", param="map")
        mapping[column] = target
    return mapping


def is_csv(name: str, body: bytes, mapping: Mapping[str, str] | None) -> bool:
    """Whether a file's bytes are to be read as CSV: they are no JSON, and the name, mapping or header says so."""
    if body.lstrip()[:1] in (b"{", b"["):
        return False
    if mapping is not None or name.lower().endswith((".csv", ".tsv")):
        return True
    header = body.partition(b"\n")[0].decode(errors="replace").strip()
    cells = {cell.strip('" ') for cell in header.split(_delimiter(header))}
    return bool(cells) and cells <= set(TARGETS)


def csv_rows(loaded: Loaded, body: bytes, mapping: Mapping[str, str] | None, encoding: str) -> None:
    """
    Put a table's rows and errors into `loaded`; a row's line is where it begins.

    Raises InvalidInput when the bytes are not in that encoding, or columns and mapping do not fit each other.
    """
    try:
        text = body.decode(encoding)
    except LookupError:
        raise InvalidInput(f"unknown encoding {encoding!r}; for example utf-8 or cp932", param="encoding") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{loaded.name} is not {encoding} (byte {error.start + 1}); for Excel's Japanese CSV: --encoding cp932",
            param="encoding",
        ) from None
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.partition("\n")[0]), strict=True)
    columns: list[str] | None = None
    targets: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                loaded.blank_lines.append(line)
            elif columns is None:
                columns = [cell.strip() for cell in cells]
                targets = _targets(loaded.name, columns, mapping)
            else:
                loaded.rows.append(_row(line, columns, targets, cells))
        except csv.Error as error:
            loaded.errors.append(row_error(loaded.name, line, ValueError(f"not CSV: {error}")))
            if reader.line_num < line:  # it cannot go on
                return
        except InvalidInput:
            raise
        except ValueError as error:
            loaded.errors.append(row_error(loaded.name, line, error))


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _targets(name: str, columns: Sequence[str], mapping: Mapping[str, str] | None) -> list[str]:
    """The target of each column. Raises InvalidInput."""
    known = dict(mapping) if mapping is not None else {target: target for target in TARGETS}
    if len(set(columns)) != len(columns) and mapping is not None:
        raise InvalidInput(f"{name} has two columns of one name; rename one", param="map")
    for column in columns:
        if column not in known:
            raise InvalidInput(
                f"{name}: the column {column!r} is not mapped; for example --map "
                f"{','.join(f'{each}={known.get(each, LEFT_OUT)}' for each in columns)} ({LEFT_OUT} leaves it out)",
                param="map",
            )
    for column in mapping or ():
        if column not in columns:
            raise InvalidInput(f"{name} has no column {column!r}; it has {', '.join(columns)}", param="map")
    targets = [known[column] for column in columns]
    for target in set(targets) - set(_SEVERAL):
        if targets.count(target) > 1:
            raise InvalidInput(f"{name}: two columns are mapped to {target}; one can be", param="map")
    if "user" not in targets or not ({"assistant"} <= set(targets) or {"chosen", "rejected"} <= set(targets)):
        raise InvalidInput(
            f"{name} needs a column for user, and one for assistant or two for chosen and rejected; "
            f"it has {', '.join(columns)}: name them with --map COLUMN=TARGET",
            param="map",
        )
    return targets


def _row(line: int, columns: Sequence[str], targets: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, the header has {len(columns)}")
    messages, passages, extras = [], [], {}
    for column, target, cell in zip(columns, targets, cells, strict=True):
        if target == LEFT_OUT:
            continue
        if target in ("user", "assistant") or (target == "system" and cell):
            messages.append({"role": target, "content": cell})
        elif target == "passage" and cell.strip():
            passages.append({"title": column, "text": cell})
        elif target in ("passages", "source") and cell:
            extras[target] = _json(cell) if target == "passages" else cell
    while len(messages) > 2 and not any(message["content"].strip() for message in messages[-2:]):
        del messages[-2:]  # a conversation with fewer turns than there are columns
    row: dict[str, Any] = dict(extras)
    if "passage" in targets:
        row["passages"] = [*passages, *row.get("passages", [])]
    messages.sort(key=lambda message: message["role"] != "system")
    if "label" in targets:
        return _rating(line, messages, cells[targets.index("label")], row)
    if "chosen" not in targets:
        return example_of(line, {"messages": messages, **row})
    answers = {
        field: [{"role": "assistant", "content": cells[targets.index(target)]}]
        for field, target in (("preferred_output", "chosen"), ("non_preferred_output", "rejected"))
    }
    return preference_of(line, {"input": {"messages": messages}, **answers, **row})


def _rating(line: int, messages: list[dict[str, str]], thumb: str, extras: dict[str, Any]) -> Rating:
    if thumb.strip().lower() not in _THUMBS:
        raise ValueError(f"the label is {thumb!r}; it must be one of {', '.join(_THUMBS)}")
    prompt = conversation_of("messages", messages[:-1])
    answer = answer_of("assistant", messages[-1:])
    return Rating(line, prompt, answer, _THUMBS[thumb.strip().lower()], passages_of(extras), source_of(extras))


def _json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the cell of passages is not JSON: {error}") from None
