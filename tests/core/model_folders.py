"""Tiny folders and wheels that look like models, without a network and without torch."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

from ryorin.digests import sha256_file
from ryorin.models.bundled import Bundled, Wheel


def safetensors(values: bytes = b"\0" * 16) -> bytes:
    """A whole safetensors file with one tensor of bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}}).encode()
    return struct.pack("<Q", len(header)) + header + values


def base_folder(folder: Path, values: bytes = b"\0" * 16, **config: object) -> Path:
    """A base model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4, **config}))
    (folder / "model.safetensors").write_bytes(safetensors(values))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "README.md").write_text("not part of the model")
    return folder


def embedder_folder(folder: Path, dimensions: int = 8) -> Path:
    """A sentence-transformers folder."""
    base_folder(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": dimensions}))
    return folder


def bundled_embedder(folder: Path, name: str = "tiny-embedder", files: Path | None = None) -> tuple[Bundled, Path]:
    """A bundled embedder in a wheel, and the folder to point pip at with PIP_FIND_LINKS."""
    source = files or embedder_folder(folder / "source")
    links = folder / "links"
    links.mkdir()
    wheel = links / "tiny_embedder-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, f"tiny_embedder/model/{path.relative_to(source)}")
        archive.writestr(
            "tiny_embedder-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-embedder\nVersion: 1.0\n"
        )
        archive.writestr("tiny_embedder-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_embedder-1.0.dist-info/RECORD", "")
    origin = Wheel("tiny-embedder", "1.0", sha256_file(wheel), wheel.stat().st_size, "tiny_embedder/model/")
    return Bundled(name, "embedder", "sentence-transformers", "a tiny one", "none", origin), links
