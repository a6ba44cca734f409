"""Files that were made to do harm: each ends in text or in a clear error, and nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_corpus import SLOW, corpus, mutations
from hostile_watch import Watch
from long_runs import LONG, turns

from ryorin_index import sandbox
from ryorin_index.sandbox import Limits


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    sandbox.shut_down()  # the next server learns of that folder
    monkeypatch.setattr(sandbox, "LIMITS", Limits(memory_bytes=512 << 20, cpu_s=8, wall_s=60, result_bytes=64 << 20))
    sandbox.call("ryorin_index.sandbox.confinement:describe", "start", b"")
    made = Watch(tmp_path)
    yield made
    made.close()
    sandbox.shut_down()


def test_every_kind_ends_in_text_or_in_a_clear_error(watch: Watch) -> None:
    cases = [case for case in corpus(watch.port, watch.secret) if LONG or case.kind not in SLOW]
    assert len({case.kind for case in cases}) > 100
    server = sandbox._server
    findings = watch.read(cases)
    assert findings.wrongs == []
    assert findings.ends["read"] > 20 and findings.ends["refused"] > 20
    assert watch.connections == 0
    assert watch.strays() == set()
    assert sandbox._server is server, "the server of the readers died"
    for kind, reason in {
        "zip bomb": "bomb",
        "zip of many members": "more than 5,000 files",
        "docx bomb": "more than a document can be",
        "deep JSON": "levels deep",
        "PDF stream bomb": "GB of memory|of computing|cannot be read",
        "old Word called docx": "older than its name says",
    }.items():
        assert any(word in findings.reasons[kind] for word in reason.split("|")), findings.reasons[kind]


def test_sound_files_changed_at_random(watch: Watch) -> None:
    count = turns(40, 2000)
    findings = watch.read(mutations(count, seed=7))
    assert (findings.wrongs, watch.connections, watch.strays()) == ([], 0, set())
    assert sum(findings.ends.values()) == count
