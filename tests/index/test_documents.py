"""Reading and cutting documents: offsets, pages, headings, and files that cannot be read."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryorin.errors import InvalidInput
from ryorin_index.chunking import DEFAULT_MAX_TOKENS
from ryorin_index.parse import MAX_TITLE_CHARACTERS, ParsedDocument, parse_document
from ryorin_index.passages import PassageDraft, split_document

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


def test_html_that_is_odd() -> None:
    _, drafts = passages("a.html", "<!DOCTYPE html><?xml version='1.0'?><p><ruby>漢字<rt>かんじ</rt></ruby>の本")
    assert drafts[0].text == "漢字の本"
    _, drafts = passages("a.html", "<h1>T</h1><h2>Shell</h2><pre># a comment\nls</pre>")
    assert [(draft.heading, draft.text) for draft in drafts] == [("Shell", "```\n# a comment\nls\n```")]
    words = [f"word{number}" for number in range(5000)]
    _, drafts = passages("a.html", "".join(f"<div>{word} " for word in words))  # deeper than Python's stack
    assert list(dict.fromkeys(" ".join(draft.text for draft in drafts).split())) == words
    with pytest.raises(InvalidInput, match="cannot be read as HTML"):
        parse_document(Path("a.html"), b"<![x[")


def test_what_no_database_or_terminal_takes_is_not_kept() -> None:
    letters = "".join(map(chr, (0, 1, 7, 27, 127, 155)))
    for name, text in (
        ("a.html", "<h1>T&#0;itle</h1><p>a &#xD800; b &#0;&#27; c</p>"),
        ("a.md", f"# T{letters[1:]}itle\n\n{'a ' * 3000}{letters} b \f c"),
    ):
        document, _ = passages(name, text)
        assert document.title.replace("\ufffd", "") == "Title"
        document.text.encode()
        assert all(letter.isprintable() or letter in "\n\ufffd" for letter in document.text)


def test_a_heading_that_is_a_whole_text_is_shortened_and_kept_as_text() -> None:
    long = "very " * 300
    for name, text in (("a.html", f"<h1>Title</h1><h2>{long}</h2><p>end"), ("a.md", f"# Title\n\n## {long}\n\nend")):
        _, drafts = passages(name, text)
        assert sum(draft.text.count("very") for draft in drafts) == 300
        assert {len(draft.heading) for draft in drafts} == {MAX_TITLE_CHARACTERS}
    document, drafts = passages("a.md", f"# {long}\n\nend")
    assert len(document.title) == MAX_TITLE_CHARACTERS
    assert {draft.heading for draft in drafts} == {""}


def test_a_document_of_headings_only_is_found_by_them() -> None:
    assert [draft.text for draft in passages("a.html", "<h1>Closed on Mondays</h1>")[1]] == ["# Closed on Mondays"]


def test_a_run_of_letters_without_end_is_cut() -> None:
    _, drafts = passages("a.txt", "QUJD" * 10_000)
    assert drafts[0].start == 0 and drafts[-1].end == 40_000
    assert all(after.start <= before.end for before, after in pairwise(drafts))
    assert max(len(draft.text) for draft in drafts) <= 16 * DEFAULT_MAX_TOKENS


@given(
    st.lists(
        st.sampled_from(
            [
                *"#\n\r\t\f\x1c\x85\u2028 |",
                "# ",
                "## ",
                "####### ",
                "#######\t",
                "#\u3000見出し",
                "\n\n",
                "```",
                "語。",
                "a. ",
            ]
        ),
        max_size=14,
    ).map("".join)
)
def test_markdown_of_any_kind_keeps_its_offsets(text: str) -> None:
    if text.strip():
        passages("a.md", text)


def test_pdf_pages_are_numbered(make_pdf: PdfMaker) -> None:
    document, drafts = passages("rules.pdf", make_pdf(["First page.", "", "Third page."], title="House rules"))
    assert document.title == "House rules"
    assert [(draft.page, draft.text) for draft in drafts] == [(1, "First page."), (3, "Third page.")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "shift_jis", "euc_jp", "utf-16"])
def test_japanese_text_in_common_encodings(encoding: str) -> None:
    text = "お米の定期便は毎月お届けします。解約はいつでも可能です。ご不明な点はお問い合わせください。" * 4
    _, drafts = passages("teiki.txt", text.encode(encoding))
    assert drafts[0].text == text


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
        assert draft.tokens <= DEFAULT_MAX_TOKENS
        covered[draft.start : draft.end] = b"\1" * (draft.end - draft.start)
    lost = "".join(letter for letter, seen in zip(document.text, covered, strict=True) if not seen)
    assert lost.strip() == ""


def test_a_pdf_that_is_protected_against_changes_only_is_read(make_pdf: PdfMaker) -> None:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf(["Open to all."]))))
    writer.encrypt("", "the owner's password", algorithm="AES-256")
    protected = io.BytesIO()
    writer.write(protected)
    assert passages("a.pdf", protected.getvalue())[1][0].text == "Open to all."


def test_a_damaged_pdf_is_read_or_refused(make_pdf: PdfMaker, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_pdf(["Text."], title="Title")
    draw = random.Random(2)
    for _ in range(30):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 30)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        with contextlib.suppress(InvalidInput):
            parse_document(Path("a.pdf"), bytes(damaged))
    assert capfd.readouterr().err == ""


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
    with pytest.raises(InvalidInput, match=r"'\.doc' is not supported; supported are \.md"):
        parse_document(Path("letter.doc"), b"PK")
