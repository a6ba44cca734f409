"""
Digests and identifiers. A digest is the hex SHA-256 of bytes or of canonical JSON (RFC 8785 in spirit: sorted keys,
no spaces, UTF-8)."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from pathlib import Path

SHORT = 12
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no escapes of non-ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value).encode())


def digest_of_folder(folder: Path) -> str:
    """Digest of a folder's manifest: each file's relative path and SHA-256."""
    return digest_of(
        {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
    )


def new_id(prefix: str) -> str:
    """A random identifier such as `vs_1f0c…`; 96 bits, so it cannot be guessed."""
    return f"{prefix}{secrets.token_hex(12)}"


def is_name(text: str) -> bool:
    """Whether `text` may name a tenant or a vector store: lower-case letters, digits and inner hyphens, 48 at most."""
    return NAME_PATTERN.fullmatch(text) is not None
