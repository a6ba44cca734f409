"""
An adapter's folder: what its files are called, and the digest that names it.

Trainer and server meet here: the trainer gives a folder its name by this digest, the server computes it again before
the engine reads the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ryorin.digests import SHORT, digest_of, sha256_file
from ryorin.errors import InvalidInput

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"
REWARD = "reward"  # a manifest's kind: it gives answers a score and gives none itself
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?-[0-9a-f]{12}")  # <tenant>-<digest12>
# Pickles, which run code when they are read, and code itself: an adapter's folder holds none.
CODE_BEARING = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".py", ".pyc", ".so"})


def check_answers(name: str, manifest: Mapping[str, Any]) -> None:
    """Raises InvalidInput when the adapter of this manifest is a reward model, which cannot answer anybody."""
    if manifest.get("kind") == REWARD:
        raise InvalidInput(
            f"{name} is a reward model: it scores answers for 'ryorin train rl' and cannot answer; choose an adapter "
            "that 'ryorin train sft', dpo or rl made",
            param="adapter",
        )


def adapter_digest(folder: Path) -> str:
    """
    Digest of an adapter's weights and configuration, wherever its base model lies and whichever PEFT wrote it.

    Raises OSError when a file cannot be read, ValueError when the configuration is no object in JSON.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} is no JSON object")
    for field in ("base_model_name_or_path", "peft_version"):
        config.pop(field, None)
    return digest_of({"config": config, "weights": sha256_file(folder / WEIGHTS_FILE)})


def adapter_name(tenant_name: str, digest: str) -> str:
    """`<tenant>-<digest12>`."""
    return f"{tenant_name}-{digest[:SHORT]}"


def is_whole(folder: Path, digest: str) -> bool:
    """Whether the folder holds the adapter of this digest."""
    try:
        return adapter_digest(folder) == digest
    except (OSError, ValueError, RecursionError):
        return False


def file_identity(folder: Path) -> tuple[tuple[int, ...], ...]:
    """
    What changes when one of the two files is written or replaced: device, inode, size and times of each.

    No program can set the change time, so a file with the same identity has the same content. Raises OSError.
    """
    stats = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats)
