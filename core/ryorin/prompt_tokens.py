"""
Counting a prompt's tokens with the base model's own tokenizer and chat template.

The `tokenizers` library and Jinja do it, as transformers does inside, without importing torch: that would cost the
gateway six seconds and half a gigabyte. tests/live compares the counts with vLLM's.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.prompt import Message

CACHED_PROMPTS = 512


class TokenCounter:
    """Counts the tokens of rendered messages; safe to share between threads."""

    def __init__(self, model_folder: Path) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        config = json.loads((model_folder / "tokenizer_config.json").read_text())
        template_file = model_folder / "chat_template.jinja"
        source = template_file.read_text() if template_file.exists() else config.get("chat_template")
        if not isinstance(source, str):
            raise InvalidInput(
                f"the base model at {model_folder} has no chat template; choose an instruction-tuned model",
                param="base",
            )
        # The environment of transformers/utils/chat_template_utils.py, without its tool and date helpers.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = _tojson
        self._template = environment.from_string(source)
        self._tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._special = {
            name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        self._cache: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, messages: list[Message], tools: Sequence[Any] | None = None) -> int:
        """
        Tokens of the messages, the tools that may be called and the opening of the answer. Raises InvalidInput when the
        template refuses them.
        """
        from jinja2 import TemplateError

        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, tools=tools, **self._special)
        except TemplateError as error:
            raise InvalidInput(
                f"the base model's chat template refuses the messages: {error}", param="messages"
            ) from error
        with self._lock:
            if text in self._cache:
                self._cache.move_to_end(text)
                return self._cache[text]
        count = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        with self._lock:
            self._cache[text] = count
            if len(self._cache) > CACHED_PROMPTS:
                self._cache.popitem(last=False)
        return count


def _token(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
