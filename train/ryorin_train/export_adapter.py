"""
An adapter in the Hugging Face layout, for tools elsewhere: as it is, or merged into its base model's weights.

What is written lies beside its target under another name until it is complete. Merging goes through the base model's
files tensor by tensor and holds one shard of the result in memory, never the model; types are kept, the sum is made in
float32.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from ryorin.digests import SHORT
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin_train.adapters import folder_bytes, get_adapter, whole_folder
from ryorin_train.servable import DTYPE_BYTES, read_config

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.models.registry import BaseModel

CARD_FILE = "README.md"
SHARD_BYTES = 2 * 10**9
MADE_BY = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (DPO)",
    "kto": "Kahneman-Tversky optimization (KTO)",
    "rl": "reinforcement learning (GRPO)",
}
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of a ZIP: the same adapter gives the same file


@dataclass(frozen=True)
class Exported:
    """What was written. base_model: what the configuration and the card name as the base model."""

    adapter: str
    path: str
    base_model: str
    merged: bool
    bytes: int
    files: list[str]


def export_adapter(
    catalog: Catalog,
    name: str,
    target: Path,
    *,
    merged: bool = False,
    base_id: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """
    Write an adapter to a new folder, or to a new file when `target` ends in .zip.

    merged: the whole model with the adapter in its weights, and its tokenizer. base_id: the base model's public name;
    otherwise the one it was fetched by, or its name here. shard_bytes: of a merged weights file at most.

    Raises NotFound for an unknown adapter or a base model that is not on this machine, Conflict when the target exists,
    InvalidInput for damaged files and for a base model that cannot be merged into.
    """
    from ryorin.models.registry import base_by_digest

    with catalog.session() as session:
        row, _ = get_adapter(session, name)
    folder = whole_folder(catalog.settings, row)
    try:
        base: BaseModel | None = base_by_digest(catalog.settings, row.base_digest)
    except NotFound:
        if merged:
            raise
        base = None
    base_model = base_id or _public_id(base) or str(row.manifest["base"]["name"])
    manifest = {**row.manifest, "base": {**row.manifest["base"], "public": base_model}}
    target = target.absolute()
    archive = target.suffix.lower() == ".zip"
    _refuse_existing(target, archive)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        built = Path(scratch) / target.stem
        built.mkdir()
        if merged:
            assert base is not None
            say(f"merging {name} into {base.name}")
            write_merged(base.path, folder, built, shard_bytes=shard_bytes, say=say)
        else:
            config = {**read_config(folder / CONFIG_FILE), "base_model_name_or_path": base_model}
            (built / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            shutil.copyfile(folder / WEIGHTS_FILE, built / WEIGHTS_FILE)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
        (built / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        (built / CARD_FILE).write_text(model_card(manifest, merged=merged), encoding="utf-8")
        files = sorted(path.name for path in built.iterdir())
        for file in files:
            (built / file).chmod(0o644)  # the safetensors library leaves its own to the owner alone
        if archive:
            packed = Path(scratch) / "packed"
            _pack(built, packed)
            size = packed.stat().st_size
            try:
                os.link(packed, target)  # unlike a renaming it never replaces what came meanwhile
            except FileExistsError:
                _refuse_existing(target, archive)
        else:
            size = folder_bytes(built)
            try:
                built.rename(target)  # onto an empty folder, if one is there
            except OSError:
                _refuse_existing(target, archive)
                raise
    return Exported(row.name, str(target), base_model, merged, size, files)


def write_merged(
    base_path: Path, adapter: Path, target: Path, *, shard_bytes: int, say: Callable[[str], None] = lambda _: None
) -> None:
    """
    Write the base model with the adapter in its weights into the folder `target`, as transformers loads it.

    Raises InvalidInput when the base model keeps an adapted weight under another name than its module's.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    from ryorin.models.folders import wanted_files
    from ryorin_train.updates import load_updates

    updates = {f"{module}.weight": update for module, update in load_updates(adapter).items()}
    for path in wanted_files(base_path, "base"):
        if not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(base_path / path, target / path)
    with _opened_weights(base_path) as tensors:
        absent = sorted(updates.keys() - tensors.keys())
        if absent:
            raise InvalidInput(
                f"the base model's files have no tensor {absent[0]!r}: it keeps that weight in another form, and "
                "cannot be merged; export the adapter without --merged"
            )
        split = split_state_dict_into_shards_factory(
            {name: _Named(one.size) for name, one in tensors.items()},
            get_storage_size=lambda named: named.size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=shard_bytes,
        )
        for number, (filename, names) in enumerate(split.filename_to_tensors.items(), start=1):
            shard: dict[str, Any] = {}
            for name in names:
                tensor = tensors[name].load()
                update = updates.get(name)
                if update is not None:
                    if tensors[name].dtype not in DTYPE_BYTES:
                        raise InvalidInput(
                            f"the base model's tensor {name!r} is of type {tensors[name].dtype}; an adapter is merged "
                            f"into {', '.join(DTYPE_BYTES)} alone"
                        )
                    tensor = (tensor.float() + update.dense().float()).to(tensor.dtype)
                shard[name] = tensor.contiguous()
            save_file(shard, target / filename, metadata={"format": "pt"})
            say(f"{filename}: {len(names)} tensors ({number} of {len(split.filename_to_tensors)} files)")
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def model_card(manifest: Mapping[str, Any], *, merged: bool) -> str:
    """A README.md with the metadata that the Hugging Face hub reads, and the manifest's figures."""
    base = manifest["base"]
    data, recipe = manifest.get("data") or {}, manifest.get("recipe") or {}
    lines = [
        "---",
        f"base_model: {json.dumps(base['public'])}",
        f"library_name: {'transformers' if merged else 'peft'}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in (() if merged else ("lora",))),
        "- ryorin",
        "---",
        f"# {manifest['name']}",
        "",
        f"A LoRA adapter{', merged into the weights of its base model' if merged else ''}, exported by Ryorin.",
        "",
        "| | |",
        "|---|---|",
    ]
    figures = {
        "made by": MADE_BY.get(str(manifest["kind"]), manifest["kind"]),
        "digest": manifest["digest"],
        "base model": f"{base['public']} (here {base['name']}, digest {base['digest'][:SHORT]})",
        "prompt digest": manifest.get("prompt_digest") or "not known",
        "rank, alpha": f"{manifest['rank']}, {manifest['alpha']}",
        "modules": ", ".join(manifest["target_modules"]),
        "parents": ", ".join(f"{one['weight']:g} x {one['name']}" for one in manifest.get("parents", ())),
        "data": f"{data['rows']} rows, digest {data['digest'][:SHORT]}" if data else "",
        "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items() if not isinstance(value, list)),
        **{name.replace("_", " "): value for name, value in manifest["metrics"].items()},
    }
    lines += [f"| {name} | {value} |" for name, value in figures.items() if value != ""]
    if manifest.get("prompt_digest"):
        lines += ["", "It was made for one prompt, whose digest is above; asked through another it may do worse."]
    lines.append("")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Named:
    """Stands for a tensor while shards are planned. size: in bytes."""

    size: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor in an open file."""

    name: str
    dtype: str
    size: int
    file: Any

    def load(self) -> Any:
        """Its values, by torch."""
        return self.file.get_tensor(self.name)


@contextmanager
def _opened_weights(base_path: Path) -> Iterator[dict[str, _Tensor]]:
    """The base model's tensors by name, in the order of its files."""
    from safetensors import safe_open

    from ryorin_train.tensor_file import read_header

    with ExitStack() as stack:
        tensors: dict[str, _Tensor] = {}
        for path in sorted(base_path.glob("*.safetensors")):
            opened = stack.enter_context(safe_open(str(path), framework="pt"))
            for name, entry in read_header(path).items():
                tensors[name] = _Tensor(name, entry.dtype, entry.end - entry.begin, opened)
        yield tensors


def _public_id(base: BaseModel | None) -> str | None:
    """`ORG/NAME` of a model that came from the Hugging Face hub."""
    if base is None or not base.source.startswith("hf:"):
        return None
    return base.source.removeprefix("hf:").partition("@")[0]


def _refuse_existing(target: Path, archive: bool) -> None:
    if target.exists() and (archive or not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"{target} is there already; name a new file or folder, or remove that one", param="target")


def _pack(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "x", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(path.name, _DATE)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
