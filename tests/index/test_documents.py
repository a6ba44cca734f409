"""Reading and cutting documents: offsets, pages, headings, and files that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryorin.errors import InvalidInput
from ryorin_index.documents import (
    MAX_PASSAGE_UNITS,
    ParsedDocument,
    PassageDraft,
    _units,
    parse_document,
    split_document,
)

PdfMaker = Callable[..., bytes]


def passages(name: str, text: str | bytes) -> tuple[ParsedDocument, list[PassageDraft]]:
    document = parse_document(Path(name), text.encode() if isinstance(text, str) else text)
    drafts = split_document(document)
    for draft in drafts:
        assert document.text[draft.start : draft.end] == draft.text
    return document, drafts


def test_markdown_sections_carry_their_heading_path() -> None:
    document, drafts = passages("a.md", "# Guide\n\nIntro.\n\n## One\n\nFirst.\n\n### Deep\n\nSecond.\n\n## Empty\n\n")
    assert document.title == "Guide"
    assert [(draft.heading, draft.text) for draft in drafts] == [
        ("", "Intro."),
        ("One", "First."),
        ("One > Deep", "Second."),
    ]
    assert [draft.title("Guide") for draft in drafts] == ["Guide", "Guide > One", "Guide > One > Deep"]


def test_markdown_without_a_heading_is_named_by_its_file() -> None:
    document, drafts = passages("opening-hours.md", "We open at nine.")
    assert (document.title, drafts[0].heading) == ("opening-hours", "")


def test_code_blocks_are_not_headings() -> None:
    _, drafts = passages("a.md", "# T\n\n## Shell\n\n```\n# not a heading\n```\n")
    assert [draft.heading for draft in drafts] == ["Shell"]
    assert "# not a heading" in drafts[0].text


def test_odd_heading_space_and_line_ends_keep_offsets() -> None:
    _, drafts = passages("a.md", "#\t Guide\r\n\r\n##   One\r\nFirst.\rSecond.\r\n")
    assert [(draft.heading, draft.text) for draft in drafts] == [("One", "First.\nSecond.")]


def test_html_leaves_navigation_out_and_keeps_tables_and_lists() -> None:
    page = (
        "<html><head><title>Site</title><style>p{}</style></head><body><nav>Menu</nav><main><h1>Care</h1>"
        "<p>Keep\n   it <b>dry</b>.</p><!-- note --><h2>Prices</h2><table><tr><th>Size</th><th>Yen</th></tr>"
        "<tr><td>S</td><td>500</td></tr></table><ul><li>one<li>two</ul></main>"
        "<footer>Imprint</footer><script>x</script></body></html>"
    )
    document, drafts = passages("care.html", page)
    assert document.title == "Care"
    assert [draft.heading for draft in drafts] == ["", "Prices"]
    assert drafts[0].text == "Keep it dry."
    assert "Size | Yen\nS | 500" in drafts[1].text.replace("\n\n", "\n")
    assert "- one" in drafts[1].text
    for word in ("Menu", "Imprint", "note", "p{}"):
        assert word not in document.text


def test_pdf_pages_are_numbered(make_pdf: PdfMaker) -> None:
    document, drafts = passages("rules.pdf", make_pdf(["First page.", "", "Third page."], title="House rules"))
    assert document.title == "House rules"
    assert [(draft.page, draft.text) for draft in drafts] == [(1, "First page."), (3, "Third page.")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "shift_jis", "euc_jp", "utf-16"])
def test_japanese_text_in_common_encodings(encoding: str) -> None:
    text = "お米の定期便は毎月お届けします。解約はいつでも可能です。ご不明な点はお問い合わせください。" * 4
    _, drafts = passages("teiki.txt", text.encode(encoding))
    assert drafts[0].text == text


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(alphabet="abc é.,!?\n\t#-`|", max_size=400),
            st.text(alphabet="お米の定期便、。\n ", max_size=400),
            st.sampled_from(["# One\n", "## Two\n\n", "word " * 300, "長い文章です。" * 90, "x" * 3000]),
        ),
        max_size=8,
    ).map("".join)
)
def test_passages_are_parts_of_the_text_small_enough_and_lose_no_word(text: str) -> None:
    document = ParsedDocument(text.replace("\r", "\n"), "title", "text/plain")
    drafts = split_document(document)
    covered = bytearray(len(document.text))
    for draft in drafts:
        assert document.text[draft.start : draft.end] == draft.text == draft.text.strip()
        assert len(_units(draft.text)) <= MAX_PASSAGE_UNITS
        covered[draft.start : draft.end] = b"\1" * (draft.end - draft.start)
    lost = "".join(letter for letter, seen in zip(document.text, covered, strict=True) if not seen)
    assert lost.strip() == ""


def test_unreadable_files_say_why(make_pdf: PdfMaker) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf(["Secret."]))))
    writer.encrypt("password")
    encrypted = io.BytesIO()
    writer.write(encrypted)
    cases = {
        "locked.pdf": (encrypted.getvalue(), "encrypted"),
        "empty.pdf": (b"", "is empty"),
        "scan.pdf": (make_pdf([""]), "without text"),
        "broken.pdf": (b"%PDF-1.4 and then nothing of the kind", "cannot be read as a PDF"),
        "half.pdf": (make_pdf(["Text."])[:300], "cannot be read as a PDF"),
        "empty.md": (b"", "is empty"),
        "blank.txt": (b" \n\t ", "no text"),
        "blank.html": (b"<html><body><script>1</script></body></html>", "no text"),
        "binary.txt": (b"abc\0\1\2def", "is not text"),
    }
    for name, (data, reason) in cases.items():
        with pytest.raises(InvalidInput, match=reason) as caught:
            parse_document(Path(name), data)
        assert name in str(caught.value) and caught.value.code == "invalid_file"
    with pytest.raises(InvalidInput, match=r"'\.docx' is not supported; supported are \.md"):
        parse_document(Path("letter.docx"), b"PK")
