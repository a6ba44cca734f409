"""
Files that were made to do harm, each by code.

A case is (kind, file name, bytes). They name a port of this machine wherever a format can ask for something from
elsewhere, and a file with a secret wherever it can ask for one of this machine.
"""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from file_makers import (
    every_format,
    make_docx,
    make_mail,
    make_pdf,
    make_pptx,
    make_xlsx,
    make_zip,
    part_of,
    replaced_part,
)

MEGABYTE = 1 << 20
SLOW = frozenset(  # kinds that take seconds until they end
    {
        "docx whose text is a bomb",
        "deep HTML",
        "deep HTML lists",
        "one line of 30 MB",
        "one line of 40 million characters",
        "xlsx of 20,000 rows as wide as can be",
        "PDF of 3,000 pages",
        "PDF of one page 100,000 times",
        "HTML of 200,000 attributes",
        "HTML comment that never ends",
        "deep e-mail",
        "e-mail of many parts",
        "deep HTML headings",
        "xlsx with a cell in the last corner",
        "JSON number of 10 million digits",
        "deep PDF dictionaries",
        "PDF bomb in two filters",
    }
)


class Case(NamedTuple):
    """A hostile file."""

    kind: str
    filename: str
    data: bytes


def corpus(port: int, secret: Path) -> Iterator[Case]:
    """Every kind. port: nothing may connect to it. secret: a file whose content nothing may show."""
    yield from _archives()
    yield from _xml(f"http://127.0.0.1:{port}/x", secret)
    yield from _links(f"http://127.0.0.1:{port}/x")
    yield from _pdfs(f"http://127.0.0.1:{port}/x", secret)
    yield from _deep()
    yield from _large()
    yield from _encodings()
    yield from _names()
    yield from _polyglots()
    for name, data in every_format().items():
        for share in (0.3, 0.7, 0.98):
            yield Case(f"truncated {name}", name, data[: int(len(data) * share)])
        yield Case(f"wrong suffix of {name}", f"{name}.md" if name != "a.md" else "a.pdf", data)


def mutations(count: int, seed: int = 1) -> Iterator[Case]:
    """Sound files with bytes changed, taken out, put in and moved, at random."""
    draw = random.Random(seed)
    sound = list(every_format().items())
    for number in range(count):
        name, data = sound[number % len(sound)]
        changed = bytearray(data)
        for _ in range(draw.choice((1, 3, 10, 50))):
            at = draw.randrange(max(1, len(changed)))
            match draw.randrange(4):
                case 0:
                    changed[at : at + 1] = bytes([draw.randrange(256)])
                case 1:
                    del changed[at : at + draw.randrange(1, 30)]
                case 2:
                    changed[at:at] = draw.randbytes(draw.randrange(1, 30))
                case _:
                    start = draw.randrange(max(1, len(changed)))
                    changed[at : at + 20] = changed[start : start + 20]
        yield Case(f"mutation {seed}/{number}", name, bytes(changed))


def _archives() -> Iterator[Case]:
    zeros = b"\0" * (80 * MEGABYTE)
    bomb = make_zip({"bomb.txt": zeros})
    yield Case("zip bomb", "bomb.zip", bomb)
    yield Case("zip of a zip bomb", "outer.zip", make_zip({"inner.zip": bomb}))
    nested = b"core"
    for depth in range(12):
        nested = make_zip({f"{depth}.zip" if depth else "a.txt": nested})
    yield Case("zip in zip in zip", "nested.zip", nested)
    yield Case("zip of many members", "many.zip", make_zip({f"{number}.txt": b"x" for number in range(6000)}))
    yield Case("overlapping zip", "overlap.zip", _overlapping())
    yield Case(
        "zip that lies about sizes", "lies.zip", make_zip({"a.txt": b"word " * 2000}).replace(b"\x10\x27", b"\x01\x00")
    )
    yield Case("docx bomb", "bomb.docx", replaced_part(make_docx(), "word/media/image1.xml", zeros))
    yield Case("docx whose text is a bomb", "text.docx", _bomb_in_text())
    yield Case("xlsx bomb", "bomb.xlsx", replaced_part(make_xlsx(), "xl/sharedStrings.xml", zeros))
    link = zipfile.ZipInfo("passwd.txt")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("fine.txt", "fine")
    yield Case("symlink member", "link.zip", buffer.getvalue())
    locked = bytearray(make_zip({"locked.txt": b"secret", "fine.md": b"# fine"}))
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        locked[locked.index(mark) + flags] |= 1
    yield Case("encrypted member", "locked.zip", bytes(locked))


def _overlapping() -> bytes:
    """Many names for the same bytes: https://www.bamsoftware.com/hacks/zipbomb/ in its simple form."""
    whole = make_zip({"a.txt": b"\0" * (4 * MEGABYTE)})
    at = whole.index(b"PK\1\2")
    entry = whole[at : whole.index(b"PK\5\6")]
    entries = b"".join(entry.replace(b"a.txt", f"{number:05}"[:1].encode() + b".txt") for number in range(3000))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3000, 3000, len(entries), at, 0)
    return whole[:at] + entries + end


def _bomb_in_text() -> bytes:
    paragraph = b"<w:p><w:r><w:t>" + b"A" * 1000 + b"</w:t></w:r></w:p>"
    document = part_of(make_docx(), "word/document.xml")
    return replaced_part(make_docx(), "word/document.xml", document.replace(b"<w:p>", paragraph * 50_000 + b"<w:p>", 1))


def _xml(url: str, secret: Path) -> Iterator[Case]:
    laughs = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(
        f"<!ENTITY a{level} '{f'&a{level - 1};' * 10}'>" for level in range(1, 10)
    )
    outside = (
        f"<!DOCTYPE x [<!ENTITY f SYSTEM 'file://{secret}'><!ENTITY u SYSTEM '{url}'><!ENTITY % p SYSTEM '{url}'> %p;"
    )
    parts = {
        "docx": (make_docx(), "word/document.xml", b"<w:t>", b"</w:t>"),
        "pptx": (make_pptx(), "ppt/slides/slide1.xml", b"<a:t>", b"</a:t>"),
        "xlsx": (make_xlsx(), "xl/worksheets/sheet1.xml", b"<t>", b"</t>"),
    }
    for suffix, (package, part, opening, closing) in parts.items():
        body = part_of(package, part)
        body = body[body.index(b"?>") + 2 :] if body.startswith(b"<?xml") else body
        for kind, head, use in (("billion laughs", laughs, b"&a9;"), ("XXE", outside, b"&f;&u;")):
            content = head.encode() + b"]>" + body.replace(opening, opening + use, 1)
            assert closing in content
            yield Case(f"{kind} in {suffix}", f"{kind}.{suffix}", replaced_part(package, part, content))
        content = head.encode() + b"]>" + part_of(package, "[Content_Types].xml").split(b"?>", 1)[-1]
        yield Case(
            f"XXE in the types of {suffix}", f"types.{suffix}", replaced_part(package, "[Content_Types].xml", content)
        )
    svg = f"<svg xmlns='http://www.w3.org/2000/svg'><text>&a9;</text><image href='{url}'/></svg>"
    yield Case("billion laughs in SVG in HTML", "svg.html", f"{laughs}]><html><body><p>words</p>{svg}".encode())
    yield Case("XXE in XHTML", "xxe.html", f"<?xml version='1.0'?>{outside}]><html><body><p>&f;&u; words</p>".encode())
    lines = "".join(f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 10)}]\n" for level in range(1, 10))
    yield Case("billion laughs in YAML", "laughs.md", f"---\nb0: &b0 [ha]\n{lines}---\n# words\n\nwords".encode())
    yield Case(
        "YAML that builds objects", "object.md", b"---\na: !!python/object/apply:os.system ['touch x']\n---\n# w\n\nw"
    )


def _links(url: str) -> Iterator[Case]:
    page = (
        f"<html><head><base href='{url}'><link rel=stylesheet href='{url}'><meta http-equiv=refresh content='0;{url}'>"
        f"</head><body><img src='{url}'><iframe src='{url}'></iframe><object data='{url}'></object>"
        f"<script src='{url}'></script><a ping='{url}' href='{url}'>words</a><video poster='{url}'></video></html>"
    )
    yield Case("external images in HTML", "page.html", page.encode())
    yield Case("external images in e-mail", "page.eml", make_mail(page))
    relation = (
        f'<Relationship Id="rIdX" TargetMode="External" Target="{url}" '
        'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{}"/></Relationships>'
    )
    for package, kind, part in (
        (make_docx(), "attachedTemplate", "word/_rels/document.xml.rels"),
        (make_pptx(), "image", "ppt/slides/_rels/slide1.xml.rels"),
        (make_xlsx(), "externalLink", "xl/_rels/workbook.xml.rels"),
    ):
        suffix = {"word": "docx", "ppt/": "pptx", "xl/_": "xlsx"}[part[:4]]
        content = part_of(package, part).replace(b"</Relationships>", relation.format(kind).encode())
        yield Case(f"external {kind} in {suffix}", f"external.{suffix}", replaced_part(package, part, content))
    loop = b'<Relationship Id="rId1" Type="x" Target="../word/document.xml"/></Relationships>'
    part = "word/_rels/document.xml.rels"
    content = part_of(make_docx(), part).replace(b"</Relationships>", loop)
    yield Case("relationship to itself", "loop.docx", replaced_part(make_docx(), part, content))
    yield Case("CSV with formulas", "formula.csv", f"a,b\n=WEBSERVICE(\"{url}\"),=cmd|'/c calc'!A1\n".encode())


def _pdf(objects: list[str | bytes], root: int = 1) -> bytes:
    """A PDF of numbered objects, with a right cross-reference table."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        body = content.encode() if isinstance(content, str) else content
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    out += f"trailer << /Size {len(objects) + 1} /Root {root} 0 R >>\nstartxref\n{table}\n%%EOF".encode()
    return bytes(out)


def _stream(data: bytes, extra: str = "") -> bytes:
    return f"<< /Length {len(data)} {extra} >>\nstream\n".encode() + data + b"\nendstream"


def _pdfs(url: str, secret: Path) -> Iterator[Case]:
    catalog = "<< /Type /Catalog /Pages 2 0 R >>"
    page = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>"
    one = "<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    loop = "<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 >>"
    yield Case("PDF page tree in a loop", "loop.pdf", _pdf([catalog, loop]))
    around = ["<< /Type /Pages /Kids [3 0 R] /Count 1 >>", "<< /Type /Pages /Kids [2 0 R] /Count 1 /Parent 2 0 R >>"]
    yield Case("PDF pages that hold each other", "around.pdf", _pdf([catalog, *around]))
    yield Case("PDF of a billion pages", "count.pdf", _pdf([catalog, "<< /Type /Pages /Kids [] /Count 1000000000 >>"]))
    shared = f"<< /Type /Pages /Kids [{'3 0 R ' * 100_000}] /Count 100000 >>"
    yield Case("PDF of one page 100,000 times", "shared.pdf", _pdf([catalog, shared, page, _stream(b"BT ET")]))
    big = zlib.compress(b"0 0 m 1 1 l S " * (7 * MEGABYTE), 9)
    yield Case("PDF stream bomb", "stream.pdf", _pdf([catalog, one, page, _stream(big, "/Filter /FlateDecode")]))
    twice = zlib.compress(zlib.compress(b"A" * (100 * MEGABYTE), 9), 9)
    filters = "/Filter [/FlateDecode /FlateDecode]"
    yield Case("PDF bomb in two filters", "twice.pdf", _pdf([catalog, one, page, _stream(twice, filters)]))
    many = f"/Filter [{'/ASCIIHexDecode ' * 5000}]"
    yield Case("PDF with 5,000 filters", "filters.pdf", _pdf([catalog, one, page, _stream(b"41" * 1000, many)]))
    deep = "[" * 50_000 + "]" * 50_000
    yield Case("deep PDF arrays", "deep.pdf", _pdf([catalog, one, page[:-2] + f"/Deep {deep} >>", _stream(b"BT ET")]))
    dictionaries = "<< /A " * 30_000 + "1" + ">>" * 30_000
    yield Case("deep PDF dictionaries", "dictionaries.pdf", _pdf([catalog[:-2] + f"/B {dictionaries} >>", one, page]))
    text = b"BT /F1 12 Tf (" + b"(" * 100_000 + b")" * 100_000 + b") Tj ET"
    yield Case("deep PDF strings", "strings.pdf", _pdf([catalog, one, page, _stream(text)]))
    form = "/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 5 0 R >> >>"
    drawn = page[:-2] + "/Resources << /XObject << /X 5 0 R >> >> >>"
    yield Case(
        "PDF form that draws itself",
        "form.pdf",
        _pdf([catalog, one, drawn, _stream(b"/X Do"), _stream(b"/X Do", form)]),
    )
    actions = (
        f"/OpenAction << /S /URI /URI ({url}) /Next << /S /JavaScript /JS (app.launchURL('{url}')) "
        f"/Next << /S /Launch /F ({secret}) /Next << /S /GoToR /F << /FS /URL /F ({url}) >> >> >> >> >>"
    )
    yield Case("PDF actions", "actions.pdf", _pdf([catalog[:-2] + actions + ">>", one, page, _stream(b"BT ET")]))
    outside = f"<< /Length 0 /F << /FS /URL /F ({url}) >> >>\nstream\n\nendstream"
    yield Case("PDF stream from elsewhere", "external.pdf", _pdf([catalog, one, page, outside]))
    yield Case(
        "PDF length that is itself",
        "length.pdf",
        _pdf([catalog, one, page, "<< /Length 4 0 R >>\nstream\nx\nendstream"]),
    )
    extends = _stream(b"6 0 (x)", "/Type /ObjStm /N 1 /First 4 /Extends 4 0 R")
    yield Case("PDF object stream that extends itself", "objects.pdf", _pdf([catalog, one, page, extends]))
    yield Case(
        "PDF xref in a loop", "xref.pdf", _pdf([catalog, one, page]).replace(b"/Root", b"/Prev 9 /XRefStm 9 /Root")
    )
    lines = zlib.compress(b"".join(b"%d 0 m %d 9 l S " % (x, x) for x in range(200_000)), 9)
    yield Case("PDF of 200,000 lines", "lines.pdf", _pdf([catalog, one, page, _stream(lines, "/Filter /FlateDecode")]))


def _deep() -> Iterator[Case]:
    yield Case("deep HTML", "deep.html", b"<div>" * 200_000 + b"words")
    yield Case("deep HTML lists", "lists.html", b"<ul><li><a href=x>a</a>" * 20_000)
    yield Case("deep HTML headings", "headings.html", b"<h1><h2>" * 10_000 + b"words")
    yield Case("deep JSON", "deep.json", b"[" * 1_000_000 + b"]" * 1_000_000)
    yield Case("deep JSON objects", "objects.json", b'{"a":' * 500 + b"1" + b"}" * 500)
    multipart = b"From: a@b\r\n"
    for level in range(3000):
        multipart += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level)
    yield Case("deep e-mail", "deep.eml", multipart + b"\r\nwords")
    yield Case("messages in messages", "rfc822.eml", b"Content-Type: message/rfc822\r\n\r\n" * 3000 + b"words")
    parts = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" * 20_000
    )
    yield Case("e-mail of many parts", "parts.eml", parts)
    table = part_of(make_docx(), "word/document.xml")
    deep = b"<w:tbl><w:tr><w:tc>" * 3000 + b"<w:p/>" + b"</w:tc></w:tr></w:tbl>" * 3000
    content = table.replace(b"<w:p>", deep + b"<w:p>", 1)
    yield Case("deep tables in docx", "tables.docx", replaced_part(make_docx(), "word/document.xml", content))
    slide = part_of(make_pptx(), "ppt/slides/slide1.xml")
    group = b"<p:grpSp><p:nvGrpSpPr><p:cNvPr id='9' name='g'/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr><p:grpSpPr/>"
    content = slide.replace(b"</p:spTree>", group * 200 + b"</p:grpSp>" * 200 + b"</p:spTree>")
    yield Case("deep groups in pptx", "groups.pptx", replaced_part(make_pptx(), "ppt/slides/slide1.xml", content))
    yield Case("deep Markdown", "deep.md", b">" * 100_000 + b"words\n" + b"#" * 100_000 + b"\n" + b"- " * 100_000)


def _large() -> Iterator[Case]:
    yield Case("one line of 30 MB", "line.txt", b"x" * (30 * MEGABYTE))
    yield Case("one line of 40 million characters", "long.txt", b"x" * 40_000_000)
    yield Case("huge CSV field", "field.csv", b'a,b\n1,"' + b"x" * (8 * MEGABYTE) + b'"\n2,3\n')
    yield Case("CSV of one open quote", "quote.csv", b'a,b\n"' + b"1,2\n" * 200_000)
    yield Case(
        "CSV of 100,000 columns", "columns.csv", b",".join(b"c%d" % n for n in range(100_000)) + b"\n" + b"1," * 100_000
    )
    sheet = part_of(make_xlsx(), "xl/worksheets/sheet1.xml")
    start = sheet.index(b'<dimension ref="') + 16
    declared = sheet[:start] + b"A1:XFD1048576" + sheet[sheet.index(b'"', start) :]
    package = make_xlsx()
    yield Case(
        "xlsx of 16,384 × 1,048,576 declared",
        "declared.xlsx",
        replaced_part(package, "xl/worksheets/sheet1.xml", declared),
    )
    last = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    corners = declared.replace(b"</sheetData>", last)
    yield Case(
        "xlsx with a cell in the last corner",
        "corner.xlsx",
        replaced_part(package, "xl/worksheets/sheet1.xml", corners),
    )
    wide = b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (row, row) for row in range(10, 20_010))
    wide = sheet.replace(b"</sheetData>", wide + b"</sheetData>")
    yield Case(
        "xlsx of 20,000 rows as wide as can be", "wide.xlsx", replaced_part(package, "xl/worksheets/sheet1.xml", wide)
    )
    yield Case("JSON number of 10 million digits", "number.json", b"[" + b"9" * 10_000_000 + b"]")
    yield Case(
        "JSON with a long key at each level", "keys.json", (b'{"' + b"k" * 10_000 + b'":') * 90 + b"1" + b"}" * 90
    )
    yield Case("HTML of 200,000 attributes", "attributes.html", b"<p " + b"a=b " * 200_000 + b">words")
    yield Case("HTML comment that never ends", "comment.html", b"<p>words<!--" + b"-" * 5_000_000)
    yield Case("PDF of 3,000 pages", "pages.pdf", make_pdf(["Page."] * 3000))
    yield Case("front matter without end", "front.md", b"---\n" + b"a: b\n" * 200_000)
    yield Case("e-mail header of 5 MB", "header.eml", b"Subject: " + b"=?utf-8?b?44GC?= " * 300_000 + b"\r\n\r\nwords")


def _encodings() -> Iterator[Case]:
    yield Case("half a UTF-16", "half.txt", "お米".encode("utf-16")[:-1])
    yield Case("a mark and nothing", "mark.txt", b"\xef\xbb\xbf")
    yield Case("broken UTF-8", "broken.txt", b"\xf0\x9f\x98 \xed\xa0\x80 \xc0\xaf words" * 100)
    yield Case("an encoding that is a program", "codec.html", b"<meta charset=zip_codec><p>words \xff\xfe")
    yield Case("an encoding that does not exist", "unknown.html", b"<meta charset=../../x><p>words \x83e\x83X\x83g")
    yield Case("UTF-7", "utf7.html", b"<meta charset=utf-7><p>+ADw-script+AD4-words")
    yield Case("ISO-2022-JP that never ends", "open.txt", b"\x1b$B" + b'$"' * 50_000)
    yield Case("every byte", "bytes.txt", bytes(range(1, 256)) * 100)
    yield Case("NUL after the first page", "nul.txt", b"words " * 1000 + b"\0" * 100)
    yield Case(
        "e-mail in an encoding that is none",
        "charset.eml",
        b"Content-Type: text/plain; charset=hex\r\n\r\n\xff\xfeword",
    )
    yield Case("right to left and invisible", "override.md", "# \u202eabc\u2066\u200b\n\nwords\u202e".encode())


def _names() -> Iterator[Case]:
    names = [
        "../../up.txt",
        "/etc/absolute.txt",
        "C:\\windows.txt",
        "a\\..\\..\\b.txt",
        "new\nline.txt",
        "bell\a\x1b[31m.txt",
    ]
    names += ["x" * 5000 + ".txt", "a//b.txt", "./a.txt", "..", "con.txt:stream.txt", "\u202etxt.exe.md"]
    yield Case("traversal names in a zip", "names.zip", make_zip(dict.fromkeys(names, b"words")))
    nul = make_zip({"aXb.txt": b"words"}).replace(b"aXb.txt", b"a\0b.txt")
    yield Case("NUL in a member's name", "nul.zip", nul)
    files = {name.replace("\n", " ").replace("\a", ""): b"words" for name in names}
    yield Case("traversal names of attachments", "names.eml", make_mail(attachments=files))
    yield Case("traversal in the file's name", "../../../tmp/up.md", b"# words\n\nwords")
    yield Case("control characters in the file's name", "a\n\x1b[31m\a.md", b"words")
    yield Case("a name of 100,000 characters", "n" * 100_000 + ".md", b"words")
    yield Case("NUL in the file's name", "a\0b.md", b"words")


def _polyglots() -> Iterator[Case]:
    archive = make_zip({"a.md": b"# A\n\nwords"})
    yield Case("PDF that is a zip", "both.pdf", make_pdf() + archive)
    yield Case("zip that is a PDF", "both.zip", make_pdf() + archive)
    yield Case("zip called docx", "zip.docx", archive)
    yield Case("docx called xlsx", "word.xlsx", make_docx())
    yield Case("xlsx called pptx", "sheet.pptx", make_xlsx())
    yield Case("program called txt", "program.txt", b"\x7fELF" + bytes(range(256)) * 40)
    yield Case("old Word called docx", "old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    yield Case("GIF and JavaScript called html", "gif.html", b"GIF89a/*<svg/onload=alert(1)>*/=1;<p>words</p>")
    yield Case("HTML called pdf", "page.pdf", b"<html><p>words</p></html>")
