"""
A tenant's prompt as a file: JSON with `system` and `answer_schema`, or plain text that is the system text.

    {"system": "You answer as JSON …", "answer_schema": {"type": "object", …}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.prompt import Prompt

FIELDS = ("system", "answer_schema")
MAX_SYSTEM_CHARACTERS = 100_000


def read_prompt_file(path: Path) -> Prompt:
    """
    The prompt in a file. It is read as JSON when its name ends in .json or it begins with a brace.

    An empty system text must be meant, so only JSON can have one: conversations then bring their own. Raises
    InvalidInput for a file that cannot be read, bad JSON, an unknown field, a missing system text or a schema that is
    not JSON Schema; the message names the place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", param="file") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text (byte {error.start})", param="file") from error
    if path.suffix == ".json" or text.lstrip().startswith("{"):
        return _from_json(text, str(path))
    if not text.strip():
        raise InvalidInput(f"{path}: the system text is empty; write what the model is to do", param="system")
    return prompt_of(text, None, str(path))


def _from_json(text: str, source: str) -> Prompt:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{source}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}", param="file"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, ValueError) else "it nests too deeply"
        raise InvalidInput(f"{source}: not JSON: {reason}", param="file") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{source} must be a JSON object with the fields {' and '.join(FIELDS)}", param="file")
    unknown = [key for key in value if key not in FIELDS]
    if unknown:
        raise InvalidInput(
            f"{source}: unknown field {unknown[0]!r}; a prompt has {' and '.join(FIELDS)}", param=unknown[0]
        )
    return prompt_of(value.get("system"), value.get("answer_schema"), source)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def prompt_of(system: Any, answer_schema: Any, source: str) -> Prompt:
    """The prompt of these two values; errors name `source`. Raises InvalidInput."""
    if not isinstance(system, str) or (system and not system.strip()):
        raise InvalidInput(
            f'{source}: the system text is missing or blank; write what the model is to do, or "" for nothing',
            param="system",
        )
    if "\0" in system or any("\ud800" <= letter <= "\udfff" for letter in system):
        raise InvalidInput(f"{source}: the system text holds a NUL or half a character", param="system")
    if len(system) > MAX_SYSTEM_CHARACTERS:
        raise InvalidInput(
            f"{source}: the system text has {len(system)} characters, {MAX_SYSTEM_CHARACTERS} at most; "
            "long texts belong into documents",
            param="system",
        )
    if answer_schema is not None:
        _check_schema(answer_schema, source)
    return Prompt(system=system.strip(), answer_schema=answer_schema)


def _check_schema(schema: Any, source: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        raise InvalidInput(f"{source}: answer_schema must be a JSON Schema object or null", param="answer_schema")
    try:
        Draft202012Validator.check_schema(schema)
    except RecursionError as error:
        raise InvalidInput(f"{source}: answer_schema nests too deeply", param="answer_schema") from error
    except SchemaError as error:
        place = "/".join(str(step) for step in error.absolute_path) or "the top"
        raise InvalidInput(
            f"{source}: answer_schema is not JSON Schema: at {place}: {error.message}", param="answer_schema"
        ) from error
