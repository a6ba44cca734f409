"""
A tokenizer.json from the vocabulary of an e5 file: SentencePiece's unigram model, as Hugging Face's library
reads it.

Characters are replaced through SentencePiece's 'precompiled character map', a double-array trie of the darts-clone
library (https://github.com/s-yata/darts-clone), which the tokenizers library reads in Rust.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np

from ryorin.models.e5_file import E5File

METASPACE = "▁"
_ROOM = 1 << 16  # units of a trie at most; that of e5 has 9,984
_NUMBERS = np.arange(_ROOM)
_LEAF_FOLLOWS, _IS_VALUE = 1 << 8, 1 << 31  # bits of a unit: darts-clone, include/darts.h, class DoubleArrayUnit


def tokenizer_json(model: E5File) -> str:
    """The text of tokenizer.json."""
    begin, end = model.pieces[model.begin], model.pieces[model.end]
    pair = [{"id": begin, "ids": [model.begin], "tokens": [begin]}, {"id": end, "ids": [model.end], "tokens": [end]}]
    around: list[dict[str, Any]] = [
        {"SpecialToken": {"id": begin, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end, "type_id": 0}},
    ]
    spaces = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always", "split": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {
                        "type": "Precompiled",
                        "precompiled_charsmap": base64.b64encode(character_map(model.characters)).decode(),
                    },
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                ],
            },
            "pre_tokenizer": spaces,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": around,
                "pair": [*around, {"Sequence": {"id": "B", "type_id": 0}}, around[2]],
                "special_tokens": {entry["id"]: entry for entry in pair},
            },
            "decoder": spaces,
            "model": {
                "type": "Unigram",
                "unk_id": model.unknown,
                "vocab": list(zip(model.pieces, model.scores, strict=True)),
                "byte_fallback": False,
            },
        },
        ensure_ascii=False,
    )


def character_map(replaced: dict[str, str]) -> bytes:
    """SentencePiece's precompiled map: the trie's size in bytes, the trie, the replacements, each ended by a zero."""
    values: dict[bytes, int] = {}
    texts = bytearray()
    for character, text in replaced.items():
        values[character.encode()] = len(texts)
        texts += text.encode() + b"\0"
    trie = _double_array(values)
    return struct.pack("<I", 4 * len(trie)) + struct.pack(f"<{len(trie)}I", *trie) + bytes(texts)


def _double_array(values: dict[bytes, int]) -> list[int]:
    """
    The units of a trie. A child lies at its parent's base XOR its label; no two nodes have the same base, so a unit's
    label tells whose child it is.
    """
    nodes: dict[bytes, set[int]] = {b"": set()}
    for key in values:
        for length in range(len(key)):
            nodes.setdefault(key[:length], set()).add(key[length])
        nodes.setdefault(key, set()).add(0)  # 0 leads to the value
    units = {0: 0}
    free, unused = np.ones(_ROOM, bool), np.ones(_ROOM, bool)  # units without a node, numbers that are no base
    free[0] = False
    place = {b"": 0}
    for prefix in sorted(nodes, key=lambda prefix: (len(prefix), prefix)):
        labels = nodes[prefix]
        fits = unused.copy()
        fits[: free.argmax()] = False
        for label in labels:
            fits &= free[_NUMBERS ^ label]
        base = int(fits.argmax())
        if not fits[base]:
            raise ValueError(f"{len(nodes)} nodes of a trie do not fit into {_ROOM} units")
        unused[base] = False
        at = place[prefix]
        units[at] |= (at ^ base) << 10 | (_LEAF_FOLLOWS if 0 in labels else 0)
        for label in labels:
            units[base ^ label] = label if label else _IS_VALUE | values[prefix]
            free[base ^ label] = False
            if label:
                place[prefix + bytes([label])] = base ^ label
    size = (max(units) | 255) + 1  # a lookup may ask for any label next to a base
    return [units.get(at, 0) for at in range(size)]
