"""
Makes the PDF documents of the demo's corpus from pdf_sources/: one page a section, the title in the metadata.

    python demo/make_pdfs.py

The PDFs are committed; this is for whoever changes one. Japanese text is set in a standard CID font, whose characters
carry their Unicode meaning, so the text can be extracted without the font being embedded. Needs reportlab.
"""

import re
from pathlib import Path

from reportlab.lib.pagesizes import A5
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen import canvas

HERE = Path(__file__).parent
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def lines_of(text: str, width: int) -> list[str]:
    """The text in lines: broken at spaces, or anywhere when it is Japanese."""
    if JAPANESE.search(text):
        return [text[start : start + width // 2] for start in range(0, len(text), width // 2)]
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def make(source: Path, target: Path) -> None:
    """Write one PDF."""
    title, *sections = source.read_text(encoding="utf-8").split("\n## ")
    title = title.removeprefix("# ").strip()
    font = "HeiseiKakuGo-W5" if JAPANESE.search(title) else "Helvetica"
    page = canvas.Canvas(str(target), pagesize=A5, invariant=1)
    page.setTitle(title)
    page.setAuthor("Mizunara Living")
    for section in sections:
        heading, _, text = section.strip().partition("\n")
        page.setFont(font, 15)
        page.drawString(40, 530, heading)
        page.setFont(font, 11)
        for number, line in enumerate(lines_of(text.strip(), 60)):
            page.drawString(40, 500 - 16 * number, line)
        page.showPage()
    page.save()


if __name__ == "__main__":
    pdfmetrics.registerFont(UnicodeCIDFont("HeiseiKakuGo-W5"))
    for source in sorted(HERE.glob("pdf_sources/*/*.md")):
        make(source, HERE / "ryorin_demo" / "corpus" / source.parent.name / f"{source.stem}.pdf")
