"""Files of every format, written by the libraries that write them; Japanese in each."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from datetime import date
from email.message import EmailMessage
from typing import Any

RICE = "お米の定期便は毎月お届けします。"


def make_docx(text: str = RICE) -> bytes:
    """A Word file: title, headings, a paragraph, a list, a table, header and footer."""
    import docx

    document = docx.Document()
    document.core_properties.author = "総務部"
    document.sections[0].header.paragraphs[0].text = "社外秘"
    document.sections[0].footer.paragraphs[0].text = "Imprint"
    document.add_heading("定期便のご案内", 1)
    document.add_paragraph(text)
    document.add_heading("料金", 2)
    table = document.add_table(rows=0, cols=2)
    for row in (("品名", "価格"), ("こしひかり", "3,000円")):
        for cell, word in zip(table.add_row().cells, row, strict=True):
            cell.text = word
    document.add_paragraph("After the table.")
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Bullet")
    return saved(document)


def make_pptx(text: str = RICE) -> bytes:
    """Two slides: title and text with notes, then a table."""
    import pptx
    from pptx.util import Inches

    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "定期便"
    slide.placeholders[1].text = text
    slide.notes_slide.notes_text_frame.text = "話す人へのメモ"
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    second.shapes.title.text = "料金"
    place = Inches(1), Inches(2), Inches(4), Inches(1)
    table = second.shapes.add_table(2, 2, *place).table
    for (row, column), word in {(0, 0): "品名", (0, 1): "価格", (1, 0): "こしひかり", (1, 1): "3,000円"}.items():
        table.cell(row, column).text = word
    return saved(presentation)


def make_xlsx(sheets: Mapping[str, Sequence[Sequence[Any]]] | None = None) -> bytes:
    """A workbook; by default a sheet of prices with a date and a whole number."""
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    default = {
        "価格表": [["品名", "価格", "発売日"], ["こしひかり", 3000, date(2026, 4, 1)], ["ゆめぴりか", 3200.5, None]]
    }
    for name, rows in (sheets or default).items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    return saved(book)


def make_pdf(pages: Sequence[str] = ("Rice, every month.",)) -> bytes:
    """A PDF of lines of text."""
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for page in pages:
        for number, line in enumerate(page.split("\n")):
            canvas.drawString(72, 720 - 20 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def make_table_pdf() -> bytes:
    """A PDF with Japanese text above a ruled table and a line below it."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Table

    pdfmetrics.registerFont(UnicodeCIDFont("HeiseiMin-W3"))
    style = ParagraphStyle("ja", fontName="HeiseiMin-W3")
    rows = [["品名", "価格"], ["こしひかり", "3000"], ["ゆめぴりか", "3200"]]
    grid = [("GRID", (0, 0), (-1, -1), 1, "black"), ("FONTNAME", (0, 0), (-1, -1), "HeiseiMin-W3")]
    buffer = io.BytesIO()
    parts = [Paragraph("料金のご案内", style), Table(rows, style=grid), Paragraph("税込みです。", style)]
    SimpleDocTemplate(buffer, pagesize=A4).build(parts)
    return buffer.getvalue()


def make_mail(text: str = RICE, attachments: Mapping[str, bytes] | None = None) -> bytes:
    """An e-mail with a body in plain text and in HTML."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = (
        "定期便のお知らせ",
        "山田 <yamada@example.com>",
        "staff@example.com",
    )
    message["Date"] = "Tue, 24 Nov 2026 09:30:00 +0900"
    message.set_content(text)
    message.add_alternative(f"<p>HTML: {text}</p>", subtype="html")
    for name, data in (attachments or {}).items():
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def make_zip(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def replaced_part(package: bytes, name: str, content: bytes) -> bytes:
    """An Office file with one of its parts made another, or added."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return make_zip({**{each: archive.read(each) for each in archive.namelist()}, name: content})


def part_of(package: bytes, name: str) -> bytes:
    """A part of an Office file."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        return archive.read(name)


def every_format() -> dict[str, bytes]:
    """A sound file of each format, by name."""
    return {
        "a.md": f"---\ntitle: 案内\n---\n# 定期便\n\n{RICE}\n".encode(),
        "a.txt": RICE.encode(),
        "a.html": f"<html><title>案内</title><body><h1>定期便</h1><p>{RICE}</p></body></html>".encode(),
        "a.pdf": make_table_pdf(),
        "a.docx": make_docx(),
        "a.pptx": make_pptx(),
        "a.xlsx": make_xlsx(),
        "a.csv": "品名,価格\nこしひかり,3000\n".encode("cp932"),
        "a.tsv": "品名\t価格\nこしひかり\t3000\n".encode(),
        "a.json": json.dumps([{"品名": "こしひかり", "価格": 3000}]).encode(),
        "a.jsonl": b'{"name": "rice"}\n{"name": "tea"}\n',
        "a.eml": make_mail(),
        "a.zip": make_zip({"a.md": b"# A\n\nwords"}),
    }


def saved(document: Any) -> bytes:
    """What a library's document is as a file."""
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()
