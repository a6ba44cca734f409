"""
A language model as a grader: `score_model`.

Which models may be asked is the operator's choice, since it costs and sends answers away: `RYORIN_GRADER_MODELS`, names
with commas between. They are asked at `RYORIN_GRADER_URL` (any OpenAI-compatible server, with `RYORIN_GRADER_KEY`), or
without it through litellm, by litellm's names and its own environment variables.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

from ryorin.errors import InvalidInput, RequirementMissing
from ryorin.graders import ScoreModel

MODELS, URL, KEY = "RYORIN_GRADER_MODELS", "RYORIN_GRADER_URL", "RYORIN_GRADER_KEY"
TIMEOUT_S = 60.0
MAX_TOKENS = 512
_FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "score",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"result": {"type": "number"}},
            "required": ["result"],
            "additionalProperties": False,
        },
    },
}
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")

Ask = Callable[[list[dict[str, str]]], str]


def asker(grader: ScoreModel) -> Ask:
    """
    A function from messages to the model's reply. Raises InvalidInput for a model that may not be asked, and
    RequirementMissing when there is no way to ask.
    """
    allowed = [name.strip() for name in os.environ.get(MODELS, "").split(",") if name.strip()]
    if grader.model not in allowed:
        raise InvalidInput(
            f"model {grader.model!r} may not be asked; the operator allows {', '.join(allowed) or 'none'} ({MODELS})",
            param="grader.model",
        )
    options = {"max_tokens": MAX_TOKENS, **grader.sampling, "model": grader.model, "response_format": _FORM}
    if url := os.environ.get(URL):
        from openai import OpenAI

        client = OpenAI(base_url=url, api_key=os.environ.get(KEY) or "none", timeout=TIMEOUT_S)
        complete: Any = client.chat.completions.create
    else:
        try:
            complete = importlib.import_module("litellm").completion
        except ImportError:
            raise RequirementMissing(
                f"a score_model needs {URL}, the address of an OpenAI-compatible server, or the package litellm"
            ) from None
        options["timeout"] = TIMEOUT_S
    return lambda messages: complete(messages=messages, **options).choices[0].message.content or ""


def score_of(reply: str) -> float:
    """The number in a reply: {"result": 0.7}, or nothing but a number. Raises ValueError."""
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value.get("result")
    if value is None and _NUMBER.fullmatch(reply.strip()):
        value = float(reply)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the model's reply has no score: {reply[:80]!r}")
    return float(value)
