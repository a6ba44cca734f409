"""
Model folders: is this one, what does it consist of, what is its digest.

It reads file names, JSON and the headers of safetensors files; it loads no weights and imports no model code. Only what
the model answers with counts: weights, tokenizer and config. A README, ONNX copies or Python files beside them are
neither taken over nor digested.
"""

from __future__ import annotations

import fnmatch
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ryorin.digests import digest_of, sha256_bytes, sha256_file
from ryorin.errors import InvalidInput, NotFound

Role = Literal["base", "embedder"]

# What transformers notes about where a model came from; it says nothing about what the model answers.
VOLATILE_FIELDS = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "name_or_path",
        "transformers_version",
        "_commit_hash",
        "is_local",
        "local_files_only",
    }
)
WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
WANTED_OF_EMBEDDERS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/*.safetensors",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


@dataclass(frozen=True)
class ModelFile:
    """One file of a model as it was taken over."""

    sha256: str
    bytes: int


def wanted_patterns(role: Role) -> list[str]:
    """The patterns of the files that make up a model of that role; also what is asked of a model hub."""
    return [*WANTED, *(WANTED_OF_EMBEDDERS if role == "embedder" else ())]


def wanted_files(folder: Path, role: Role) -> list[Path]:
    """The files of `folder` that make up the model, relative to it, sorted."""
    return _matching(folder, wanted_patterns(role), 2 if role == "embedder" else 1)


def _matching(folder: Path, patterns: Sequence[str], depth: int) -> list[Path]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name
        for name in names
        if len(name.parts) <= depth
        and any(
            fnmatch.fnmatch(name.as_posix(), pattern) and name.as_posix().count("/") == pattern.count("/")
            for pattern in patterns
        )
    )


def check_folder(folder: Path, role: Role) -> None:
    """Raise InvalidInput, naming what is missing and what to do, unless `folder` holds a usable model of that role."""
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "it does not exist"
        raise InvalidInput(f"{folder} is not a model folder: {what}", param="path")
    config = _read_json_object(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InvalidInput(f"{folder} is not a model folder: its config.json names no model_type", param="path")
    files = wanted_files(folder, role)
    weights = [folder / name for name in files if name.suffix == ".safetensors" and len(name.parts) == 1]
    if not weights:
        raise InvalidInput(_no_weights(folder), param="path")
    for path in weights:
        safetensors_header(path)
    for name in files:
        if name.name.endswith(".safetensors.index.json"):
            _check_shards(folder, name.name)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InvalidInput(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or a vocabulary); "
            "save it there with tokenizer.save_pretrained(FOLDER)",
            param="path",
        )
    if role == "embedder":
        embedding_dimensions(folder)
    elif not has_chat_template(folder):
        raise InvalidInput(
            f"{folder} has no chat template, so it cannot answer messages; name an instruction-tuned model, "
            "or put its chat_template.jinja into the folder",
            param="path",
        )


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """
    The header of a safetensors file, and where its tensors begin, in bytes.

    Raises InvalidInput unless the file is whole: its header can be read and its length is what the header says.

    Format: 8 bytes little-endian header length, JSON header, tensors (huggingface.co/docs/safetensors, 'Format').
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        first = handle.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            hint = "; it is a Git LFS pointer: fetch the file itself" if first.startswith(b"version ") else ""
            raise InvalidInput(f"{path} is not a safetensors file, or was cut off ({size} bytes){hint}", param="path")
        try:
            header: dict[str, Any] = json.loads(handle.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise InvalidInput(f"{path} is not a safetensors file: its header cannot be read", param="path") from None
    if size != 8 + length + end:
        raise InvalidInput(
            f"{path} has {size} bytes where its header says {8 + length + end}: it was cut off; fetch it again",
            param="path",
        )
    return header, 8 + length


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer knows how to write messages."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_read_json_object(folder, path.name).get("chat_template"))


def embedding_dimensions(folder: Path) -> int:
    """The length of the vectors of a sentence-transformers folder: that of its last module that says one."""
    path = folder / "modules.json"
    if not path.is_file():
        raise InvalidInput(
            f"{folder} is not a sentence-transformers folder: it has no modules.json; "
            "for a model that answers, use --role base",
            param="path",
        )
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(str(module["type"]), str(module["path"])) for module in modules]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{path} cannot be read as a list of modules", param="path") from None
    dimensions = _read_json_object(folder, "config.json").get("hidden_size", 0)
    for kind, place in kinds:
        if not kind.startswith("sentence_transformers."):
            raise InvalidInput(f"{path} names {kind}: a module with code of its own, which is not run", param="path")
        if kind.endswith((".Pooling", ".Dense")) and (folder / place / "config.json").is_file():
            config = _read_json_object(folder, f"{place}/config.json")
            known = [config.get(key) for key in ("out_features", "embedding_dimension", "word_embedding_dimension")]
            dimensions = next((value for value in known if value), dimensions)
    if not isinstance(dimensions, int) or dimensions <= 0:
        raise InvalidInput(f"{folder} does not say how long its vectors are", param="path")
    return dimensions


def file_table(folder: Path, role: Role) -> dict[str, ModelFile]:
    """SHA-256 and size of each file of the model, by relative path."""
    return _table(folder, wanted_files(folder, role))


def _table(folder: Path, names: Sequence[Path]) -> dict[str, ModelFile]:
    return {name.as_posix(): ModelFile(sha256_file(folder / name), (folder / name).stat().st_size) for name in names}


def model_digest(folder: Path, files: dict[str, ModelFile]) -> str:
    """
    What adapters are bound to: the digest of the table of files.

    A JSON file counts by its content without the volatile fields, so the same model saved by another version of
    transformers, or from another folder, keeps its digest.
    """
    return digest_of({name: _content_digest(folder / name, file) for name, file in files.items()})


def check_reranker(folder: Path) -> None:
    """Raise NotFound unless `folder` may hold a cross-encoder."""
    if not (folder / "config.json").is_file():
        raise NotFound(
            f"no cross-encoder at {str(folder)!r}; give a folder of sentence-transformers with its config.json",
            param="reranker",
        )


def reranker_digest(folder: Path) -> str:
    """
    What a release's cross-encoder is bound to; what counts is the same as for other models, and pickled weights.

    Raises NotFound when the folder holds none.
    """
    check_reranker(folder)
    names = _matching(folder, [*WANTED, *WANTED_OF_EMBEDDERS, *PICKLES], 2)
    return model_digest(folder, _table(folder, names))


def without_volatile_fields(value: Any) -> Any:
    """A config's content without what transformers notes about where it came from."""
    if isinstance(value, dict):
        return {key: entry for key, entry in value.items() if key not in VOLATILE_FIELDS}
    return value


def _content_digest(path: Path, file: ModelFile) -> str:
    if path.suffix != ".json" or path.name == "tokenizer.json":
        return file.sha256
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return file.sha256
    # json.dumps, not canonical_json: configs hold NaN and Infinity at times
    return sha256_bytes(json.dumps(without_volatile_fields(value), sort_keys=True).encode())


def _read_json_object(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"{folder} is not a model folder: it has no {name}", param="path") from None
    except ValueError as error:
        raise InvalidInput(f"{folder / name} is not JSON: {error}", param="path") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{folder / name} is not a JSON object", param="path")
    return value


def _check_shards(folder: Path, name: str) -> None:
    shards = _read_json_object(folder, name).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise InvalidInput(f"{folder / name} has no weight_map of file names", param="path")
    missing = sorted({shard for shard in shards.values() if not (folder / shard).is_file()})
    if missing:
        raise InvalidInput(
            f"{folder} lacks {len(missing)} weight files that {name} names, first {missing[0]}", param="path"
        )


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has pickled weights only ({pickles[0]}), which can run any code when they are loaded; "
            "convert them to safetensors (model.save_pretrained(FOLDER) with a recent transformers) and add that folder"
        )
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        return (
            f"{folder} has GGUF weights only ({gguf[0]}); adapters are trained on safetensors: add the original model"
        )
    return f"{folder} is not a model folder: it has no *.safetensors weights"
