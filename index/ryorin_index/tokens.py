"""What an embedder's folder says of its input: its tokenizer, its limit, its prompts. The model is not loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin.errors import RequirementMissing
from ryorin.models.registry import Embedder

Vectors = NDArray[np.float32]
PASSAGE_PROMPTS = ("document", "passage")
QUERY_PROMPTS = ("query",)


def load_tokenizer(embedder: Embedder) -> Any | None:
    """
    The embedder's `tokenizers.Tokenizer`, without truncation and padding; None where it has no tokenizer.json.

    It is read once, which takes most of an engine's loading, and shared: do not change its settings.
    """
    path = embedder.path / "tokenizer.json" if embedder.path else None
    if path is None or not path.is_file():
        return None
    return _read_tokenizer(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_tokenizer(path: Path, written_ns: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as missing:
        raise RequirementMissing(
            "the package tokenizers is not installed; install it with: pip install 'ryorin[index]'"
        ) from missing
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """The texts' token ids; those of a text beyond `limit` are left out, but not the special ones at its end."""
    found = []
    for encoding in tokenizer.encode_batch_fast(list(texts)):
        ids = encoding.ids
        if len(ids) > limit:
            last = next(at for at, special in enumerate(reversed(encoding.special_tokens_mask)) if not special)
            ids = ids[: limit - last] + ids[len(ids) - last :]
        found.append(ids)
    return found


def model_limit(embedder: Embedder) -> int | None:
    """The longest input of the model, special tokens counted; None when its folder does not say."""
    places = (("sentence_bert_config.json", "max_seq_length"), ("config.json", "max_position_embeddings"))
    found = (_read(embedder, name).get(key) for name, key in places)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def prompt(embedder: Embedder, names: tuple[str, ...]) -> str:
    """What the model wants before a text: the first of its prompts that has one of `names`, '' when it has none."""
    known = _read(embedder, "config_sentence_transformers.json").get("prompts") or {}
    return next((known[name] for name in names if known.get(name)), "")


def _read(embedder: Embedder, name: str) -> dict[str, Any]:
    path = embedder.path / name if embedder.path else None
    if path is None or not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
