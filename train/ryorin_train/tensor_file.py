"""
The header of a safetensors file, read strictly and without reading a value.

Format: 8 bytes little-endian length, a JSON object, then the values
(https://huggingface.co/docs/safetensors/index#format). The library checks it too when it opens the file; here the
header is bounded far below the library's 100 MB before it is parsed, and each lie has words of its own.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput

MAX_HEADER_BYTES = 4 * 2**20
_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"
# https://github.com/huggingface/safetensors, safetensors/src/tensor.rs, Dtype
BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the file. begin, end: its bytes, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """
    The tensors of a file by name, in the order of their bytes, which cover the rest of the file without gap or overlap.

    Raises InvalidInput saying what is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        first = handle.read(8)
        if len(first) < 8:
            raise _refused(path, f"it has {size} bytes")
        length: int = struct.unpack("<Q", first)[0]
        if not 2 <= length <= size - 8:
            if first[:4] == _ZIP or first[:1] == _PICKLE:  # also how the length of a good header may begin
                raise _refused(path, "it is a pickle under another name, which could run code when it is read")
            raise _refused(path, f"its header is said to have {length:,} bytes, the file has {size:,}")
        if length > MAX_HEADER_BYTES:
            raise _refused(path, f"its header has {length:,} bytes; an adapter's has {MAX_HEADER_BYTES:,} at most")
        text = handle.read(length)
    entries = _parsed(path, text)
    end = 0
    found: dict[str, TensorEntry] = {}
    for name, tensor in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            raise _refused(path, f"the values of {name[:80]!r} begin at {tensor.begin:,}, those before end at {end:,}")
        end = tensor.end
        found[name] = tensor
    if 8 + length + end != size:
        raise _refused(path, f"it has {size:,} bytes where its header says {8 + length + end:,}")
    return found


def _parsed(path: Path, text: bytes) -> dict[str, TensorEntry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"its header is no JSON: {str(error)[:120]}") from error
    if not isinstance(header, dict):
        raise _refused(path, "its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(path, "its metadata are not strings")
    return {name: _entry(path, name, value) for name, value in header.items()}


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    shown = repr(name[:80])
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refused(path, f"its header says of {shown} something else than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_OF:
        raise _refused(path, f"{shown} has the type {str(dtype)[:40]!r}, which is not known")
    for numbers, what in ((shape, "shape"), (offsets, "data_offsets")):
        if not isinstance(numbers, list) or not all(type(one) is int and 0 <= one < 2**48 for one in numbers):
            raise _refused(path, f"the {what} of {shown} is {str(numbers)[:60]}")
    if len(offsets) != 2:
        raise _refused(path, f"the data_offsets of {shown} is {str(offsets)[:60]}")
    begin, end = offsets
    if len(shape) > 8 or end - begin != math.prod(shape) * BYTES_OF[dtype]:
        raise _refused(path, f"{shown} has {end - begin:,} bytes; its shape {str(shape)[:60]} of {dtype} has others")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _refused(path: Path, reason: str) -> InvalidInput:
    return InvalidInput(f"{path.name} is not a safetensors file that can be taken: {reason}")
