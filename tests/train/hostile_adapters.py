"""
Adapters that must not be taken: one good one, spoilt in one way each, as a folder and as an archive.

`variants()` gives (name, how to build it, words of the refusal). Pickles and code among them touch the file CANARY when
they run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CANARY = "canary-code-was-run"


@dataclass
class Good:
    """The content of a good adapter, to be spoilt. extra: other files, by name."""

    config: dict[str, Any]
    header: dict[str, Any]
    values: bytes
    canary: Path
    extra: dict[str, bytes] = field(default_factory=dict)
    config_bytes: bytes | None = None
    weights_bytes: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """What lies in the folder."""
        config = json.dumps(self.config).encode() if self.config_bytes is None else self.config_bytes
        weights = packed(self.header, self.values) if self.weights_bytes is None else self.weights_bytes
        return {CONFIG: config, WEIGHTS: weights, **self.extra}

    def first(self) -> dict[str, Any]:
        """The header's entry of the first tensor."""
        return self.header[next(name for name in self.header if name != "__metadata__")]


class Runs:
    """An object whose pickle runs a program when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


Spoil = Callable[[Good], None]


def packed(header: Any, values: bytes) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def good(folder: Path, canary: Path) -> Good:
    """The adapter in a folder."""
    weights = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    config = json.loads((folder / CONFIG).read_text())
    return Good(config, json.loads(weights[8 : 8 + length]), weights[8 + length :], canary)


def variants() -> Iterator[tuple[str, Callable[[Good, Path], Path], str]]:
    """(name, build(good, empty folder) → what is imported, words of the refusal)."""
    for container, write in (("folder", as_folder), ("zip", as_zip)):
        for part, spoils in (("config", config_spoils()), ("weights", weights_spoils()), ("beside", code_spoils())):
            for name, spoil, words in spoils:
                yield f"{container}-{part}-{name}", _building(spoil, write), words
    yield from bad_folders()
    yield from bad_archives()


def _building(spoil: Spoil, write: Callable[[dict[str, bytes], Path], Path]) -> Callable[[Good, Path], Path]:
    def build(content: Good, place: Path) -> Path:
        spoil(content)
        return write(content.files(), place)

    return build


def as_folder(files: dict[str, bytes], place: Path) -> Path:
    """A folder of the files."""
    folder = place / "adapter"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_zip(files: dict[str, bytes], place: Path, prefix: str = "") -> Path:
    """An archive of the files."""
    path = place / "adapter.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def config_spoils() -> list[tuple[str, Spoil, str]]:
    """Configurations."""

    def setting(**fields: Any) -> Spoil:
        return lambda content: content.config.update(fields)

    def text(content_bytes: bytes) -> Spoil:
        def spoil(content: Good) -> None:
            content.config_bytes = content_bytes

        return spoil

    def without(name: str) -> Spoil:
        return lambda content: content.config.pop(name)

    def twice(content: Good) -> None:
        content.config_bytes = json.dumps(content.config).encode()[:-1] + b', "r": 64}'

    return [
        ("peft-type", setting(peft_type="LOHA"), "peft_type is 'LOHA'"),
        ("peft-type-list", setting(peft_type=["LORA"]), "serves LORA only"),
        ("dora", setting(use_dora=True), "use_dora is True"),
        ("bias", setting(bias="all"), "bias is 'all'"),
        ("lora-bias", setting(lora_bias=True), "lora_bias is True"),
        ("saved-modules", setting(modules_to_save=["lm_head"]), "modules_to_save is"),
        ("saved-classifier", setting(modules_to_save=["score"]), "modules_to_save is"),
        ("megatron", setting(megatron_config={"a": 1}, megatron_core="os"), "megatron_config is"),
        ("megatron-module", setting(megatron_core="antigravity"), "megatron_core is 'antigravity'"),
        ("loftq", setting(loftq_config={"loftq_bits": 4}), "loftq_config is"),
        ("pissa", setting(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        ("replication", setting(layer_replication=[[0, 2]]), "layer_replication is"),
        ("rank-pattern", setting(rank_pattern={"(a+)+$": 8}), "rank_pattern is"),
        ("alpha-pattern", setting(alpha_pattern={"q_proj": 1}), "alpha_pattern is"),
        ("layers-pattern", setting(layers_pattern="(a+)+$"), "layers_pattern is"),
        ("excluded", setting(exclude_modules="(a+)+$"), "exclude_modules is"),
        ("alora", setting(alora_invocation_tokens=[1]), "alora_invocation_tokens is"),
        ("parameters", setting(target_parameters=["x"]), "target_parameters is"),
        ("tokens", setting(trainable_token_indices=[1]), "trainable_token_indices is"),
        ("fan-in", setting(fan_in_fan_out=True), "fan_in_fan_out is True"),
        ("task", setting(task_type="SEQ_CLS"), "task_type is 'SEQ_CLS'"),
        ("unknown-field", setting(run_this="x"), "'run_this' is not known"),
        ("rank-other", setting(r=16), "its rank should be 16"),
        ("rank-huge", setting(r=10**9), "rank is 1000000000"),
        ("rank-negative", setting(r=-8), "rank is -8"),
        ("rank-bool", setting(r=True), "r is True"),
        ("rank-text", setting(r="8"), "r is '8'"),
        ("rank-float", setting(r=8.0), "r is 8.0"),
        ("no-rank", without("r"), "rank is None"),
        ("no-alpha", without("lora_alpha"), "lora_alpha is None"),
        ("alpha-zero", setting(lora_alpha=0), "lora_alpha is 0"),
        ("alpha-huge", setting(lora_alpha=1e300), r"lora_alpha is 1e\+300"),
        ("alpha-list", setting(lora_alpha=[16]), r"lora_alpha is \[16\]"),
        ("dropout", setting(lora_dropout=2.0), "lora_dropout is 2.0"),
        ("targets-regex", setting(target_modules="(a+)+$"), "name modules among"),
        ("targets-none", setting(target_modules=[]), "name modules among"),
        ("targets-unknown", setting(target_modules=["q_proj", "../x"]), "target '../x' is unknown"),
        ("targets-objects", setting(target_modules=[{"q_proj": 1}]), "is unknown"),
        ("targets-twice", setting(target_modules=["q_proj", "q_proj", "v_proj"]), "twice"),
        ("targets-more", setting(target_modules=["q_proj", "v_proj", "o_proj"]), "lacks lora_A of"),
        ("targets-fewer", setting(target_modules=["q_proj"]), "belongs to no target module"),
        ("layer-absent", setting(layers_to_transform=[0, 1, 2, 9]), "names layer 9"),
        ("layer-unnamed", setting(layers_to_transform=[0, 1]), "a layer that .* does not name"),
        ("layer-text", setting(layers_to_transform=["0"]), "names the layer '0'"),
        ("mapping", setting(auto_mapping="os.system"), "auto_mapping is"),
        ("rslora-text", setting(use_rslora="yes"), "use_rslora is 'yes'"),
        ("no-json", text(b"{"), "cannot be read"),
        ("list", text(b"[1]"), "is no object"),
        ("not-utf8", text(b'{"r": "\xff"}'), "cannot be read"),
        ("nan", text(b'{"peft_type": "LORA", "r": 8, "lora_alpha": NaN}'), "NaN is no number"),
        ("deep", text(b"[" * 60_000), "cannot be read"),
        ("long", text(b'{"x": "' + b"a" * 10**6 + b'"}'), "bytes"),
        ("long-number", text(b'{"r": ' + b"9" * 5000 + b"}"), "cannot be read"),
        ("empty", text(b""), "cannot be read"),
        ("twice", twice, "twice"),
        ("pickle-as-json", lambda one: setattr(one, "config_bytes", pickle.dumps(Runs(one.canary))), "cannot be read"),
    ]  # fmt: skip


def weights_spoils() -> list[tuple[str, Spoil, str]]:
    """Weights: headers that lie, tensors that do not fit, values that are none."""

    def entry(**fields: Any) -> Spoil:
        return lambda content: content.first().update(fields)

    def raw(make: Callable[[Good], bytes]) -> Spoil:
        return lambda content: setattr(content, "weights_bytes", make(content))

    def renamed(name: str) -> Spoil:
        def spoil(content: Good) -> None:
            first = next(one for one in content.header if one != "__metadata__")
            content.header = {name if one == first else one: value for one, value in content.header.items()}

        return spoil

    def added(name: str, shape: list[int], dtype: str = "F32", size: int = 4) -> Spoil:
        def spoil(content: Good) -> None:
            count = size
            for one in shape:
                count *= one
            begin = len(content.values)
            content.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + count]}
            content.values += bytes(count)

        return spoil

    def valued(value: float) -> Spoil:
        def spoil(content: Good) -> None:
            content.values = struct.pack("<f", value) + content.values[4:]

        return spoil

    def overlapping(content: Good) -> None:
        names = [one for one in content.header if one != "__metadata__"]
        content.header[names[1]]["data_offsets"] = content.header[names[0]]["data_offsets"]

    def shifted(content: Good) -> None:
        for name, value in content.header.items():
            if name != "__metadata__":
                value["data_offsets"] = [one + 8 for one in value["data_offsets"]]
        content.values += bytes(8)

    def dropped(content: Good) -> None:
        last = max((n for n in content.header if n != "__metadata__"), key=lambda n: content.header[n]["data_offsets"])
        begin, end = content.header.pop(last)["data_offsets"]
        content.values = content.values[:begin] + content.values[end:]

    def repeated(content: Good) -> bytes:
        text = json.dumps(content.header).encode()
        name = next(one for one in content.header if one != "__metadata__")
        again = json.dumps({name: content.header[name]}).encode()[1:-1]
        return packed(text[:-1] + b", " + again + b"}", content.values)

    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    return [
        ("empty", raw(lambda _: b""), "it has 0 bytes"),
        ("short", raw(lambda _: b"\0" * 7), "it has 7 bytes"),
        ("zeros", raw(lambda _: b"\0" * 64), "header is said to have 0 bytes"),
        ("header-endless", raw(lambda one: b"\xff" * 7 + b"\x7f" + one.values), "header is said to have"),
        ("header-past-end", raw(lambda one: struct.pack("<Q", 10**6) + one.values[:100]), "header is said to have"),
        ("header-huge", raw(lambda _: packed(b"{" + b" " * (4 * 2**20) + b"}", b"")), "at most"),
        ("header-text", raw(lambda one: packed(b"not json", one.values)), "its header is no JSON"),
        ("header-list", raw(lambda one: packed(b"[]", one.values)), "its header is no object"),
        ("header-deep", raw(lambda one: packed(b"[" * 100_000, one.values)), "its header is no JSON"),
        ("header-twice", raw(repeated), "twice"),
        ("header-empty", raw(lambda _: packed({}, b"")), "is empty"),
        ("metadata", lambda one: one.header.update(__metadata__={"format": {"a": 1}}), "metadata are not strings"),
        ("cut", raw(lambda one: one.files()[WEIGHTS][:-5]), "where its header says"),
        ("tail", raw(lambda one: one.files()[WEIGHTS] + b"#!/bin/sh"), "where its header says"),
        ("offsets-negative", entry(data_offsets=[-4, 0]), "data_offsets of"),
        ("offsets-reversed", entry(data_offsets=[8, 0]), "has -8 bytes"),
        ("offsets-huge", entry(data_offsets=[0, 2**47]), "has others"),
        ("offsets-one", entry(data_offsets=[0]), "data_offsets of"),
        ("offsets-float", entry(data_offsets=[0.0, 8.0]), "data_offsets of"),
        ("overlap", overlapping, "begin at"),
        ("gap", shifted, "begin at 8"),
        ("shape-negative", entry(shape=[-8, -32]), "the shape of"),
        ("shape-lie", entry(shape=[8, 31]), "has others"),
        ("shape-swapped", entry(shape=[32, 8]), "its rank should be 8"),
        ("shape-flat", entry(shape=[256]), "its rank should be 8"),
        ("shape-overflow", entry(shape=[2**40, 2**40]), "has others"),
        ("dtype-unknown", entry(dtype="OBJECT"), "is not known"),
        ("dtype-int", entry(dtype="I32"), "is of type 'I32'"),
        ("dtype-list", entry(dtype=["F32"]), "is not known"),
        ("entry-extra", entry(code="x"), "something else than dtype"),
        ("name-embedding", renamed("base_model.model.model.embed_tokens.lora_embedding_A"), "is no LoRA weight"),
        ("name-plain", renamed("model.layers.0.self_attn.q_proj.weight"), "is no LoRA weight"),
        ("name-traversal", renamed("../../etc/passwd"), "is no LoRA weight"),
        ("name-layer", renamed(layer.format(77)), "belongs to no module"),
        ("added-head", added("base_model.model.lm_head.weight", [4, 4]), "is no LoRA weight"),
        ("added-magnitude", added(layer.format(0).replace("A.weight", "magnitude_vector"), [32]), "is no LoRA weight"),
        ("dropped", dropped, "lacks lora_"),
        ("nan", valued(float("nan")), "not finite"),
        ("infinite", valued(float("-inf")), "not finite"),
        ("enormous", valued(3e38), r"holds 3e\+38"),
        ("pickle", raw(lambda one: pickle.dumps(Runs(one.canary))), "a pickle under another name"),
        ("torch-zip", raw(lambda one: zipped({"archive/data.pkl": pickle.dumps(Runs(one.canary))})), "a pickle under"),
        ("text", raw(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "header is said to have"),
    ]  # fmt: skip


def code_spoils() -> list[tuple[str, Spoil, str]]:
    """Pickles and code beside good files."""

    def beside(name: str) -> Spoil:
        return lambda content: content.extra.update({name: pickle.dumps(Runs(content.canary))})

    names = ("adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.PTH", "scheduler.pkl", "model.ckpt",
             "x.joblib", "modeling_x.py", "peft.pyc", "kernel.so")  # fmt: skip
    return [(name, beside(name), "may be a pickle or code") for name in names]


def bad_folders() -> list[tuple[str, Callable[[Good, Path], Path], str]]:
    """Folders whose entries are not what they look like."""

    def changed(change: Callable[[Path, Path], None]) -> Callable[[Good, Path], Path]:
        def build(content: Good, place: Path) -> Path:
            folder = as_folder(content.files(), place)
            change(folder, place)
            return folder

        return build

    def linked(name: str, target: str | None = None) -> Callable[[Path, Path], None]:
        def change(folder: Path, place: Path) -> None:
            moved = place / f"moved-{name}"
            if (folder / name).exists():
                (folder / name).rename(moved)
            (folder / name).symlink_to(target or moved)

        return change

    def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
        def change(folder: Path, _place: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            make(folder / name)

        return change

    def sparse(path: Path) -> None:
        with path.open("wb") as handle:
            handle.truncate(2**40)

    def many(folder: Path, _place: Path) -> None:
        for number in range(1001):
            (folder / f"{number}.txt").touch()

    return [
        ("link-config", changed(linked(CONFIG)), "symbolic link"),
        ("link-weights", changed(linked(WEIGHTS)), "symbolic link"),
        ("link-secret", changed(linked(CONFIG, "/etc/passwd")), "symbolic link"),
        ("link-dangling", changed(linked(WEIGHTS, "/nowhere")), "symbolic link"),
        ("link-loop", changed(linked(WEIGHTS, WEIGHTS)), "symbolic link"),
        ("link-extra", changed(linked("README.md", "/etc/passwd")), "symbolic link"),
        ("link-folder", changed(linked("tokenizer", "/etc")), "symbolic link"),
        ("link-device", changed(linked(WEIGHTS, "/dev/zero")), "symbolic link"),
        ("pipe-config", changed(replaced(CONFIG, os.mkfifo)), "a device or a pipe"),
        ("pipe-weights", changed(replaced(WEIGHTS, os.mkfifo)), "a device or a pipe"),
        ("folder-as-weights", changed(replaced(WEIGHTS, Path.mkdir)), "is no file"),
        ("folder-as-config", changed(replaced(CONFIG, Path.mkdir)), "is no file"),
        ("no-config", changed(replaced(CONFIG, lambda _: None)), f"has no {CONFIG}"),
        ("no-weights", changed(replaced(WEIGHTS, lambda _: None)), f"has no {WEIGHTS}"),
        ("terabyte-weights", changed(replaced(WEIGHTS, sparse)), "are possible"),
        ("terabyte-config", changed(replaced(CONFIG, sparse)), "bytes or more"),
        ("many-files", changed(many), "more than 1000 files"),
        ("device", lambda _content, _place: Path("/dev/zero"), "neither a folder nor a file"),
        ("absent", lambda _content, place: place / "absent", "there is no"),
        ("empty-folder", lambda _content, place: place, f"has no {CONFIG}"),
    ]  # fmt: skip


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def bad_archives() -> list[tuple[str, Callable[[Good, Path], Path], str]]:
    """Archives that lead out of themselves, are larger than they look, or are none."""

    def with_entry(name: str, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x") -> Callable[[Good, Path], Path]:
        def build(good_one: Good, place: Path) -> Path:
            path = as_zip(good_one.files(), place)
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name
            entry.external_attr = mode << 16
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(entry, content)
            return path

        return build

    def patched(change: Callable[[bytes], bytes]) -> Callable[[Good, Path], Path]:
        def build(good_one: Good, place: Path) -> Path:
            path = as_zip(good_one.files(), place)
            path.write_bytes(change(path.read_bytes()))
            return path

        return build

    def written(content: Callable[[Good], bytes]) -> Callable[[Good, Path], Path]:
        def build(good_one: Good, place: Path) -> Path:
            path = place / "adapter.zip"
            path.write_bytes(content(good_one))
            return path

        return build

    def bomb(name: str) -> Callable[[Good, Path], Path]:
        return lambda one, place: as_zip({**one.files(), name: bytes(64 * 2**20)}, place)

    def tarball(one: Good, place: Path) -> Path:
        path = place / "adapter.tar.gz"
        shutil.copyfile(_tar(as_folder(one.files(), place), place), path)
        return path

    def method(number: int) -> Callable[[Good, Path], Path]:
        def build(one: Good, place: Path) -> Path:
            path = place / "adapter.zip"
            with zipfile.ZipFile(path, "w", number) as archive:
                for name, content in one.files().items():
                    archive.writestr(name, content)
            return path

        return build

    def doubled(one: Good, place: Path) -> Path:
        path = as_zip(one.files(), place)
        other = "adapter_confiX.json"
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(other, b"{}")
        path.write_bytes(path.read_bytes().replace(other.encode(), CONFIG.encode()))
        return path

    def crowded(one: Good, place: Path) -> Path:
        return as_zip({**one.files(), **{f"{number}.txt": b"" for number in range(1001)}}, place)

    def understated(one: Good, place: Path) -> Path:
        """The directory says a length that the data do not have."""
        path = as_zip(one.files(), place)
        size = len(one.files()[WEIGHTS])
        data = path.read_bytes()
        at = data.rindex(b"PK\x01\x02", 0, data.rindex(WEIGHTS.encode()))
        path.write_bytes(data[: at + 24] + struct.pack("<I", size - 64) + data[at + 28 :])
        return path

    def renamed_inside(one: Good, place: Path) -> Path:
        """The directory says another name than the entry."""
        path = as_zip(one.files(), place)
        path.write_bytes(path.read_bytes().replace(WEIGHTS.encode(), WEIGHTS.encode().replace(b"a", b"b", 1), 1))
        return path

    def long_directory(data: bytes) -> bytes:
        at = data.rindex(b"PK\x05\x06")
        return data[: at + 12] + struct.pack("<II", 0xFFFFFFF0, 0) + data[at + 20 :]

    def flagged(data: bytes) -> bytes:
        at = data.rindex(b"PK\x01\x02")
        return data[: at + 8] + struct.pack("<H", 1) + data[at + 10 :]

    def in_two(one: Good, place: Path) -> Path:
        files = one.files()
        path = as_zip({f"a/{CONFIG}": files[CONFIG], f"b/{WEIGHTS}": files[WEIGHTS]}, place)
        return path

    return [
        ("up", with_entry("../outside.txt"), "leads out of the archive"),
        ("up-inside", with_entry("a/../../outside.txt"), "leads out of the archive"),
        ("absolute", with_entry("/tmp/outside.txt"), "leads out of the archive"),
        ("drive", with_entry("C:/outside.txt"), "leads out of the archive"),
        ("backslash", with_entry("..\\outside.txt"), "no plain path"),
        ("control", with_entry("a\nb"), "no plain path"),
        ("zero-byte", with_entry("adapter.txt\0.json"), "no plain path"),
        ("bidi", with_entry("adapter\u202etxt.json"), "no plain path"),
        ("long-name", with_entry("a" * 5000), "no plain path"),
        ("link", with_entry("README.md", stat.S_IFLNK | 0o777, b"/etc/passwd"), "symbolic link"),
        ("device-entry", with_entry("zero", stat.S_IFCHR | 0o666, b""), "a device or a pipe"),
        ("pipe-entry", with_entry("pipe", stat.S_IFIFO | 0o666, b""), "a device or a pipe"),
        ("deep-pickle", with_entry("a/b/c/training_args.bin"), "may be a pickle or code"),
        ("bomb-weights", bomb(WEIGHTS), "are possible"),
        ("bomb-config", bomb(CONFIG), "bytes or more"),
        ("two-configs", lambda one, place: as_zip({**one.files(), f"x/{CONFIG}": b"{}"}, place), "has 2"),
        ("buried", lambda one, place: as_zip(one.files(), place, "a/b/"), f"has no {CONFIG}"),
        ("apart", in_two, f"has no {WEIGHTS}"),
        ("twice", doubled, "twice"),
        ("crowded", crowded, "1000 at most"),
        ("understated", understated, "cannot be read|bytes|CRC"),
        ("renamed-inside", renamed_inside, "neither a folder nor a ZIP|has no"),
        ("long-directory", patched(long_directory), "at most|cannot be read|can be read"),
        ("encrypted", patched(flagged), "is encrypted"),
        ("cut", patched(lambda data: data[: len(data) // 2]), "neither a folder nor a ZIP"),
        ("flipped", patched(lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:]), "ZIP archive"),
        ("bzip2", method(zipfile.ZIP_BZIP2), "only deflate"),
        ("lzma", method(zipfile.ZIP_LZMA), "only deflate"),
        ("tar", tarball, "neither a folder nor a ZIP"),
        ("pickle-named-zip", written(lambda one: pickle.dumps(Runs(one.canary))), "neither a folder nor a ZIP"),
        ("torch-file", written(lambda one: zipped({"a/data.pkl": pickle.dumps(Runs(one.canary))})), "may be a pickle"),
        ("bare-weights", written(lambda one: one.files()[WEIGHTS]), "neither a folder nor a ZIP"),
        ("empty-zip", written(lambda _: zipped({})), f"has no {CONFIG}"),
        ("zero", written(lambda _: b""), "neither a folder nor a ZIP"),
    ]  # fmt: skip


def _tar(folder: Path, place: Path) -> Path:
    path = place / "made.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "adapter")
    return path
