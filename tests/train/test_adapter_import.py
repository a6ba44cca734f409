"""Foreign adapters: what PEFT saves comes in and can be served; of 272 spoilt ones none does, and none runs code."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_adapters import CANARY, CONFIG, WEIGHTS, as_zip, good, variants
from lora import logits, save_lora
from tiny import PROMPT

from ryorin.adapter_files import is_whole
from ryorin.catalog import open_catalog
from ryorin.catalog.tables import Adapter, AuditEvent, Job
from ryorin.catalog.tenants import create_tenant, get_tenant, set_prompt
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.prompt import Prompt
from ryorin.settings import Settings
from ryorin_train import base_shapes, foreign_files
from ryorin_train.import_adapter import import_adapter

VARIANTS = list(variants())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import")


@pytest.fixture(scope="module")
def catalog(place: Path, tiny_base: Path) -> Iterator[Any]:
    from ryorin.models.install import add_folder

    home = place / "home"
    opened = open_catalog(Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}"))
    add_folder(opened.settings, "tiny", tiny_base, "base", lambda _: None)
    with opened.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
        set_prompt(session, create_tenant(session, "people"), PROMPT)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def lora(place: Path, tiny_base: Path) -> Path:
    return save_lora(place / "lora", tiny_base)


@pytest.fixture
def bring(catalog: Any) -> Iterator[Callable[..., Any]]:
    """`bring(source, …)`: import for the support desk on the tiny base model; what came in is gone afterwards."""
    with catalog.session() as session:
        session.query(Job).delete()

    def run(source: Path, tenant: str = "support", **options: Any) -> Any:
        return import_adapter(catalog, tenant, source, **{"base_name": "tiny", **options})

    yield run
    with catalog.session() as session:
        session.query(Adapter).delete()
        session.query(Job).delete()
    shutil.rmtree(catalog.settings.adapters_dir, ignore_errors=True)


def everything_below(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if not path.name.startswith("catalog.db")}


def test_there_are_enough_hostile_ones() -> None:
    assert len(VARIANTS) >= 200 and len({name for name, _, _ in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize(("build", "words"), [variant[1:] for variant in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_a_hostile_adapter_is_refused_and_nothing_is_left(
    catalog: Any, lora: Path, place: Path, tmp_path: Path, build: Any, words: str
) -> None:
    canary = tmp_path / CANARY
    work = tmp_path / "work"
    work.mkdir()
    source = build(good(lora, canary), work)
    before = everything_below(place) | everything_below(tmp_path)
    with pytest.raises((InvalidInput, NotFound), match=words) as caught:
        import_adapter(catalog, "support", source, base_name="tiny")
    assert len(caught.value.message) < 700 and caught.value.message.isprintable()
    # the job's folder is emptied with it; jobs/ and adapters/ themselves may come into being
    after = everything_below(place) | everything_below(tmp_path)
    assert {Path(path).name for path in after - before} <= {"jobs", "adapters"}
    assert not canary.exists()
    with catalog.session() as session:
        assert session.query(Adapter).count() == 0
        assert {job.status for job in session.query(Job)} == {"failed"}


def test_what_peft_saved_comes_in_and_answers_as_before(
    bring: Callable[..., Any], catalog: Any, lora: Path, tiny_base: Path
) -> None:
    import torch

    imported = bring(lora)
    folder = catalog.settings.adapters_dir / imported.adapter
    assert (imported.rank, imported.base, imported.prompt_digest, imported.present) == (8, "tiny", None, False)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, "manifest.json"]
    assert is_whole(folder, imported.digest)
    config = json.loads((folder / CONFIG).read_text())
    assert config["base_model_name_or_path"].startswith(str(catalog.settings.models_dir))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "import" and manifest["imported"]["files"].keys() == {CONFIG, WEIGHTS}
    with catalog.session() as session:
        row = session.query(Adapter).one()
        assert (row.manifest, row.prompt_digest) == (manifest, "")
        assert session.query(Job).one().status == "succeeded"
    ours, theirs = logits(tiny_base, folder), logits(tiny_base, lora)
    assert torch.equal(ours, theirs) and not torch.allclose(ours, logits(tiny_base))
    again = bring(lora)
    assert (again.adapter, again.present) == (imported.adapter, True)
    with catalog.session() as session:
        made = session.query(AuditEvent).filter_by(act="adapter.create").one()
        assert (made.target, made.detail["kind"]) == (imported.adapter, "import")


@pytest.mark.parametrize("prefix", ["", "my lora アダプタ/"])
def test_an_archive_comes_in_as_its_folder_does(
    bring: Callable[..., Any], lora: Path, tmp_path: Path, prefix: str
) -> None:
    files = {path.name: path.read_bytes() for path in lora.iterdir()} | {"README.md": b"hello", "sub/notes.txt": b""}
    imported = bring(as_zip(files, tmp_path, prefix))
    assert imported.ignored == [f"{prefix}README.md", f"{prefix}sub/notes.txt"]
    assert bring(lora).adapter == imported.adapter


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "rank": 64},
        {"rank": 1, "targets": ("down_proj",)},
        {"layers_to_transform": [1, 2], "targets": ("q_proj", "k_proj", "gate_proj")},
        {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "task_type": None},
    ],
)
def test_other_good_ones(bring: Callable[..., Any], tiny_base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    assert bring(save_lora(tmp_path / "lora", tiny_base, **options)).rank == options.get("rank", 8)


def test_names_of_other_files_are_kept_harmless(
    bring: Callable[..., Any], catalog: Any, lora: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(lora, tmp_path / "lora")
    for name in (b"\xff.txt", b"\x1b[31m.txt", "説明.md".encode()):
        with open(os.fsencode(folder) + b"/" + name, "wb"):
            pass
    imported = bring(folder)
    assert imported.ignored == ["\\udcff.txt", "\\x1b[31m.txt", "説明.md"]
    with catalog.session() as session:
        assert session.query(Adapter).one().manifest["imported"]["ignored"] == imported.ignored


def test_half_precision_comes_in(bring: Callable[..., Any], lora: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    half = shutil.copytree(lora, tmp_path / "half")
    save_file({name: one.to(torch.bfloat16) for name, one in load_file(lora / WEIGHTS).items()}, half / WEIGHTS)
    assert bring(half).digest != bring(lora).digest


def test_the_base_model_is_named_or_matches(
    bring: Callable[..., Any], catalog: Any, lora: Path, tmp_path: Path, tiny_base: Path
) -> None:
    def naming(name: str | None) -> Path:
        folder = tmp_path / f"named-{name}".replace("/", "-")
        shutil.copytree(lora, folder)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": name}))
        return folder

    with pytest.raises(NotFound, match=r"names the base model 'a/b', which is not on this machine.*present: tiny"):
        bring(naming("a/b"), base_name=None)
    with pytest.raises(NotFound, match="names no base model"):
        bring(naming(None), base_name=None)
    with pytest.raises(NotFound, match="no base model 'other'"):
        bring(lora, base_name="other")
    named = bring(naming("tiny"), base_name=None)
    assert (named.base, named.adapter) == ("tiny", bring(lora).adapter)


def test_a_base_model_of_another_shape_is_refused(bring: Callable[..., Any], catalog: Any, lora: Path) -> None:
    from ryorin.models.store import read_manifests

    folder = catalog.settings.models_dir / read_manifests(catalog.settings)[0].digest[:12]
    other = catalog.settings.models_dir / "0123456789ab"
    shutil.copytree(folder, other)
    try:
        config = json.loads((other / "config.json").read_text()) | {"hidden_size": 48}
        os.chmod(other / "config.json", 0o644)
        (other / "config.json").write_text(json.dumps(config))
        manifest = json.loads((other / "ryorin.json").read_text()) | {
            "name": "wider",
            "digest": "0123456789ab" + "0" * 52,
        }
        manifest["files"] = {}
        (other / "ryorin.json").write_text(json.dumps(manifest))
        with pytest.raises(InvalidInput, match=r"has shape \(8, 32\); .*q_proj is 32 x 48"):
            bring(lora, base_name="wider")
        (other / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
        base_shapes.base_linears.cache_clear()
        bring(lora)
        with pytest.raises(Conflict, match="are now to be for 0123456789ab"):  # a twin: the shapes do not tell
            bring(lora, base_name="wider")
    finally:
        shutil.rmtree(other)


def test_the_prompt_is_only_bound_when_asked(bring: Callable[..., Any], catalog: Any, lora: Path) -> None:
    from ryorin.release import create_release
    from ryorin_train.adapters import delete_adapter

    def release(**options: Any) -> Any:
        with catalog.session() as session:
            tenant = get_tenant(session, "support")
            row = session.query(Adapter).one()
            prompt = set_prompt(session, tenant, PROMPT)
            made = create_release(session, tenant, base_digest=row.base_digest, prompt=prompt, adapter=row, **options)
            session.flush()
            session.delete(made)

    imported = bring(lora)
    with pytest.raises(Conflict, match="was trained for a prompt that is not known"):
        release()
    release(allow_prompt_mismatch=True)
    with pytest.raises(Conflict, match=r"is here already, bound to no prompt; .*delete it first"):
        bring(lora, for_current_prompt=True)
    delete_adapter(catalog, imported.adapter)
    assert bring(lora, for_current_prompt=True).prompt_digest == PROMPT.digest
    release()
    assert bring(lora).prompt_digest == PROMPT.digest  # asking for less takes nothing away
    with catalog.session() as session:
        set_prompt(session, get_tenant(session, "people"), Prompt(system="Other."))
    assert bring(lora, tenant="people", for_current_prompt=True).prompt_digest == Prompt(system="Other.").digest


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was_or_not_at_all(
    bring: Callable[..., Any], lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(lora, tmp_path / "moving")
    weights = folder / WEIGHTS
    real = foreign_files._copy

    def replacing(read: Any, copy: Any, name: str, limit: int) -> int:
        if name == WEIGHTS:
            weights.rename(folder / "away")
            weights.write_bytes(b"\x80hostile")
        return real(read, copy, name, limit)

    monkeypatch.setattr(foreign_files, "_copy", replacing)
    replaced = bring(folder)
    monkeypatch.undo()
    assert replaced.adapter == bring(lora).adapter

    shutil.rmtree(folder)
    shutil.copytree(lora, folder)

    def growing(read: Any, copy: Any, name: str, limit: int) -> int:
        written = real(read, copy, name, limit)
        if name == WEIGHTS:
            with weights.open("ab") as handle:
                handle.write(b"more")
        return written

    monkeypatch.setattr(foreign_files, "_copy", growing)
    with pytest.raises(InvalidInput, match="was written to while it was copied"):
        bring(folder)


def test_two_imports_at_once_give_one_adapter(bring: Callable[..., Any], catalog: Any, lora: Path) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(bring(lora))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.adapter for one in results}) == 1 and sorted(one.present for one in results) == [False] + [True] * 3
    with catalog.session() as session:
        assert session.query(Adapter).count() == 1
        assert [job.status for job in session.query(Job)] == ["succeeded"] * 4
