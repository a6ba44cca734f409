"""`ryorin index` with the real embedder: the commands of the README and what they say to wrong input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ryorin.models.registry import Embedder


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """The first command loads the embedder and its tokenizer, which takes seconds; the others are given the same."""
    from ryorin_index import counting, openvino_embedder

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((openvino_embedder, "OpenVinoEmbedder"), (counting, "load_tokenizer")):
            load = getattr(module, name)
            kept: dict[str, Any] = {}

            def loaded(embedder: Embedder, load: Any = load, kept: dict[str, Any] = kept) -> Any:
                if embedder.digest not in kept:
                    kept[embedder.digest] = load(embedder)
                return kept[embedder.digest]

            patch.setattr(module, name, loaded)
        yield


@pytest.fixture
def ready(cli: Any, migrated: Path, pulled_models: Path, loaded_once: None) -> Any:
    """The command line on a home with a tenant, a store and the bundled embedder."""
    (migrated / "models").symlink_to(pulled_models, target_is_directory=True)
    assert cli("tenant", "create", "support").code == 0
    assert cli("index", "create", "handbook", "--tenant", "support").code == 0
    return lambda *words: cli("index", *words, "--tenant", "support")


def test_add_edit_search_remove(ready: Any, folder: Path) -> None:
    first = json.loads(ready("add", "handbook", folder, "--json").out)
    assert (len(first["added"]), first["embedded"], first["failed"]) == (3, 5, [])
    path = folder / "returns.md"
    path.write_text(path.read_text().replace("30 days", "45 days"))
    again = ready("add", "handbook", folder)
    assert again.code == 0 and "1 changed, 2 unchanged" in again.err and "1 passages embedded" in again.err
    hits = json.loads(ready("search", "handbook", "How long may I return unopened goods?", "--top-k", 1, "--json").out)
    assert "45 days" in hits[0]["text"] and hits[0]["filename"] == "returns.md"
    shown = ready("search", "handbook", "お米の定期便はいつ届きますか").out
    assert "定期便 > お届け" in shown.splitlines()[0]
    assert ready("remove", "handbook", "returns.md").code == 0
    left = json.loads(ready("documents", "handbook", "--json").out)
    assert {document["filename"] for document in left} == {"shops.html", "teiki.md"}
    assert json.loads(ready("list", "--json").out)[0]["passages"] == 2


def test_a_failed_file_is_reported_and_the_others_are_indexed(ready: Any, folder: Path) -> None:
    (folder / "scan.pdf").write_bytes(b"%PDF-1.4 nothing")
    result = ready("add", "handbook", folder)
    assert result.code == 2
    assert (
        "3 added" in result.err and "1 failed" in result.err and "error: scan.pdf cannot be read as a PDF" in result.err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "nope", "."), "tenant 'support' has no store 'nope' (known: handbook)"),
        (("search", "nope", "x"), "has no store 'nope'"),
        (("add", "handbook", "/no/such/folder"), "/no/such/folder: no such file or folder"),
        (("create", "handbook"), "has a store 'handbook' already"),
        (("create", "Bad Name"), "store name 'Bad Name'"),
        (("create", "second", "--embedder", "nope"), "no embedder model 'nope'"),
        (("create", "second", "--embedder", "smollm2-135m-instruct"), "smollm2-135m-instruct"),
        (("search", "handbook", " "), "the query is empty"),
        (("remove", "handbook", "nope.md"), "has no document 'nope.md'"),
    ],
)
def test_wrong_input(ready: Any, words: tuple[str, ...], message: str) -> None:
    result = ready(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and message in result.err
    assert "Traceback" not in result.err


def test_an_empty_store_is_no_error(ready: Any) -> None:
    result = ready("search", "handbook", "x")
    assert (result.code, result.out) == (0, "") and "store 'handbook' is empty" in result.err
    assert json.loads(ready("search", "handbook", "x", "--json").out) == []


def test_names_of_files_that_are_odd(ready: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "new\nline\x1b[31m.md").write_text("# A\n\nWords.")
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.md")).write_text("# B\n\nWords.")
    (folder / "link.md").symlink_to("/etc/hostname")
    first = ready("add", "handbook", folder, "--json")
    report = json.loads(first.out)
    assert (first.code, report["added"]) == (2, ["new\nline\x1b[31m.md"])
    assert "not UTF-8" in report["failed"][0][1]
    again = ready("add", "handbook", folder)
    assert "\\udcff.md has a name that is not UTF-8" in again.err
    shown = ready("documents", "handbook").out + ready("search", "handbook", "words").out
    assert "new\\nline\\x1b[31m.md" in shown and "\x1b" not in shown


def test_an_unknown_tenant(cli: Any, home: Path) -> None:
    result = cli("index", "list", "--tenant", "nobody")
    assert result.code == 2 and "no tenant 'nobody' (known: none yet)" in result.err


def test_search_options(ready: Any, folder: Path) -> None:
    ready("add", "handbook", folder)
    words = ready("search", "handbook", "returning tableware", "--mode", "lexical", "--explain").out
    assert "Opened tableware can be returned" in words and "lexical #1, BM25" in words
    only = '{"type": "eq", "key": "filename", "value": "shops.html"}'
    hits = json.loads(ready("search", "handbook", "unopened goods", "--filter", only, "--json").out)
    assert [hit["filename"] for hit in hits] == ["shops.html"] and hits[0]["explanation"]["filtered"]
    assert "filters.type is 'like'" in ready("search", "handbook", "x", "--filter", '{"type": "like"}').err
    assert "not JSON" in ready("search", "handbook", "x", "--filter", "{").err
    assert "nothing was found" in ready("search", "handbook", "zebra", "--mode", "lexical").err
