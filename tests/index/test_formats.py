"""Each format: what of a file becomes text, where its parts lie, what it says of itself; encodings; files in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_makers import RICE, every_format, make_docx, make_mail, make_pptx, make_table_pdf, make_xlsx, make_zip
from word_embedder import WordEmbedder

from ryorin.catalog import Catalog
from ryorin.catalog.tables import Document, VectorStore
from ryorin.errors import InvalidInput
from ryorin_index.parse import MEDIA_TYPES, ParsedDocument, expand, parse_document
from ryorin_index.parse.encoding import decode
from ryorin_index.passages import split_document
from ryorin_index.store import list_documents
from ryorin_index.sync import add_paths


def read(name: str, data: bytes) -> ParsedDocument:
    document = parse_document(Path(name), data)
    drafts = split_document(document)
    assert drafts
    for draft in drafts:
        assert document.text[draft.start : draft.end] == draft.text
    return document


def test_every_format_is_read_and_named() -> None:
    for name, data in every_format().items():
        if name != "a.zip":
            assert read(name, data).media_type == MEDIA_TYPES[Path(name).suffix]
    with pytest.raises(InvalidInput, match="is an archive"):
        parse_document(Path("a.zip"), b"PK")


def test_pdf_tables_are_rows_in_their_place_and_once() -> None:
    document = read("a.pdf", make_table_pdf())
    assert document.text.strip() == (
        "料金のご案内\n\n品名 | 価格\nこしひかり | 3000\nゆめぴりか | 3200\n\n税込みです。"
    )
    assert [part.page for part in document.sections] == [1]


def test_docx_keeps_the_order_and_leaves_header_and_footer_out() -> None:
    document = read("a.docx", make_docx())
    assert document.text == (
        f"# 定期便のご案内\n\n{RICE}\n\n## 料金\n\n品名 | 価格\nこしひかり | 3,000円\n\n"
        "After the table.\n\n- first\n- second"
    )
    assert (document.title, document.attributes["author"]) == ("定期便のご案内", "総務部")
    assert [draft.heading for draft in split_document(document)] == ["", "料金"]


def test_pptx_slides_are_pages_with_notes_and_tables() -> None:
    document = read("a.pptx", make_pptx())
    assert [(part.heading, part.page) for part in document.sections] == [("定期便", 1), ("料金", 2)]
    assert f"{RICE}\n\n話す人へのメモ" in document.text and "こしひかり | 3,000円" in document.text


def test_xlsx_rows_carry_their_header_below_the_sheets_name() -> None:
    document = read("a.xlsx", make_xlsx())
    assert [(draft.heading, draft.text) for draft in split_document(document)] == [
        ("価格表", "品名: こしひかり; 価格: 3000; 発売日: 2026-04-01"),
        ("価格表", "品名: ゆめぴりか; 価格: 3200.5"),
    ]
    titled = make_xlsx({"S": [["売上一覧"], [], ["店", "額"], ["東京", 5]], "T": [[1, 2], [3, 4]]})
    assert [draft.text for draft in split_document(read("b.xlsx", titled))] == [
        "売上一覧",
        "店: 東京; 額: 5",
        "1 | 2",
        "3 | 4",
    ]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jp"])
def test_csv_of_any_delimiter_and_encoding(delimiter: str, encoding: str) -> None:
    text = f'品名{delimiter}説明\nこしひかり{delimiter}"甘い、\nお米"\n'
    assert read("a.csv", text.encode(encoding)).text.strip() == "品名: こしひかり; 説明: 甘い、 お米"


def test_json_records_are_sections() -> None:
    value = {"title": "価格", "shop": {"city": "東京"}, "items": [{"name": "米", "tags": ["a", "b"]}, {"name": "茶"}]}
    document = read("a.json", json.dumps(value).encode())
    assert document.title == "価格"
    assert [(draft.heading, draft.text) for draft in split_document(document)] == [
        ("", "title: 価格\nshop.city: 東京"),
        ("items", "name: 米\ntags: a, b"),
        ("items", "name: 茶"),
    ]
    with pytest.raises(InvalidInput, match=r"is not JSON \(line 2"):
        parse_document(Path("a.jsonl"), b'{"a": 1}\n{"a"')


def test_front_matter_is_title_and_attributes() -> None:
    front = "---\ntitle: 案内\ntags: [a, b]\nyear: 2026\ndraft: false\ndate: 2026-04-01\nnested: {a: 1}\n---\n"
    document = read("a.md", f"{front}\n# 定期便\n\n{RICE}".encode())
    assert (document.title, document.text) == ("案内", f"# 定期便\n\n{RICE}")
    assert document.attributes == {"tags": "a, b", "year": 2026, "draft": False, "date": "2026-04-01"}
    assert "not: [closed" in read("a.md", b"---\nnot: [closed\n---\nwords").text


def test_e_mail_prefers_plain_text_and_knows_its_headers() -> None:
    document = read("a.eml", make_mail())
    assert document.text.endswith(f"\n\n{RICE}") and "HTML" not in document.text
    assert (document.title, document.attributes["date"]) == ("定期便のお知らせ", "2026-11-24T09:30:00+09:00")
    old = b"Subject: =?iso-2022-jp?B?GyRCRGo0fEpYGyhC?=\nContent-Type: text/plain; charset=iso-2022-jp\n\n"
    assert read("b.eml", old + RICE.encode("iso-2022-jp")).text == f"Subject: 定期便\n\n{RICE}"


def test_html_without_what_stands_on_every_page() -> None:
    menu = "".join(f"<li><a href=/{n}>Page number {n}</a></li>" for n in range(6))
    page = (
        f"<meta charset=shift_jis><div class='cookie-banner'>We use cookies</div><div role=navigation>Go</div>"
        f"<ul>{menu}</ul><div id=sidebar>Related</div><h1>定期便</h1><p>{RICE}</p><ul><li>一つ目<li>二つ目</ul>"
    )
    document = read("a.html", page.encode("cp932"))
    assert document.text == f"# 定期便\n\n{RICE}\n\n- 一つ目\n- 二つ目"


@pytest.mark.parametrize("text", ["お米", "定期便", "東京都港区", "テスト", "①～㈱髙橋", RICE])
def test_short_japanese_in_shift_jis(text: str) -> None:
    assert decode(Path("a.txt"), text.encode("cp932")) == text


@pytest.mark.parametrize("encoding", ["euc_jp", "iso2022_jp"])
@pytest.mark.parametrize("text", ["お米", "定期便", "東京都港区", "テスト", RICE])
def test_short_japanese_in_other_encodings(text: str, encoding: str) -> None:
    assert decode(Path("a.txt"), text.encode(encoding)) == text


@pytest.mark.parametrize("text", ["café", "naïve résumé", "Müller & Söhne, Straße", "“quoted” – dash"])
def test_western_text(text: str) -> None:
    assert decode(Path("a.txt"), text.encode("cp1252")) == text


def test_damaged_utf8_is_read() -> None:
    assert decode(Path("a.txt"), RICE.encode()[:-1]) == RICE[:-1] + "\ufffd"
    assert decode(Path("a.txt"), RICE.encode() + b"\xff" + RICE.encode()) == f"{RICE}\ufffd{RICE}"


def test_files_within_files_and_what_is_refused() -> None:
    inner = make_zip({"deep.md": b"# deep"})
    mail = make_mail(attachments={"報告.docx": make_docx(), "logo.png": b"\x89PNG"})
    found = expand(Path("a.zip"), make_zip({"docs/a.md": b"# A", "in.zip": inner, "m.eml": mail, "../up.md": b"x"}))
    assert [name for name, _ in found.members] == ["docs/a.md", "in.zip!/deep.md", "m.eml", "m.eml!/報告.docx"]
    assert [name for name, _ in found.refused] == ["../up.md"]
    assert found.skipped == ("m.eml!/logo.png",)


def test_an_archive_is_several_documents_and_follows_its_members(
    catalog: Catalog, store: VectorStore, tmp_path: Path, embedder: WordEmbedder
) -> None:
    path = tmp_path / "all.zip"
    path.write_bytes(make_zip({"a.md": b"---\nteam: a\n---\n# A\n\nwords", "b/c.txt": b"more words"}))
    assert sorted(add_paths(catalog, store, [path], lambda: embedder).added) == ["a.md", "c.txt"]
    assert sorted(add_paths(catalog, store, [path], lambda: embedder).unchanged) == ["a.md", "c.txt"]
    with catalog.session() as session:
        document = session.query(Document).filter_by(filename="a.md").one()
        assert document.source == f"{path.resolve()}!/a.md"
        assert document.attributes == {"team": "a"}
    path.write_bytes(make_zip({"a.md": b"# A\n\nother words"}))
    assert add_paths(catalog, store, [path], lambda: embedder).changed == ["a.md"]
    with catalog.session() as session:
        assert [each["filename"] for each in list_documents(session, store)] == ["a.md"]
