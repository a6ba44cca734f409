"""
What is added to an answer: the passages it cites.

A citation is a marker `[n]` in the text, n being a passage of the prompt. The full record stands in `context.citations`
(as Azure's clients know it); `annotations` repeats it in chat's only annotation type, one for each marker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ryorin.prompt import MARKER, cited_numbers
from ryorin_index.search import Hit

BEGINNING = re.compile(r" ?\[\d{0,3}\Z| \Z")  # of a marker, with the space before it
SPACED = re.compile(r" ?" + MARKER.pattern)  # a marker, and what goes with one that is taken out


class MarkerGate:
    """
    Lets an answer through but for markers that point to no passage, whatever pieces it comes in.

    given: how many passages there are. removed: how many markers were taken out so far.
    """

    def __init__(self, given: int) -> None:
        self._given = given
        self._held = ""
        self.removed = 0

    def feed(self, piece: str, last: bool = False) -> str:
        """What of the answer is certain with this piece; the end of it that may begin a marker waits for the next."""
        text = self._held + piece
        at = len(text)
        if not last and (beginning := BEGINNING.search(text)):
            at = beginning.start()
        text, self._held = text[:at], text[at:]
        return SPACED.sub(self._kept, text) if "[" in text else text

    def _kept(self, marker: re.Match[str]) -> str:
        if 1 <= int(marker[1]) <= self._given:
            return marker[0]
        self.removed += 1
        return ""


def passage_url(base_url: str, passage_id: int) -> str:
    """Where a passage can be read, with a key of its tenant."""
    return f"{base_url}/ryorin/v1/passages/{passage_id}"


def citations(answer: str, hits: Sequence[Hit], base_url: str) -> dict[str, Any]:
    """The `context` and `annotations` of a message; offsets count characters of the answer, the end exclusive."""
    cited = cited_numbers(answer, len(hits))
    return {
        "context": {
            "citations": [
                {
                    "number": number,
                    "content": hit.text,
                    "title": hit.title,
                    "url": passage_url(base_url, hit.passage_id),
                    "filepath": hit.filename,
                    "chunk_id": str(hit.passage_id),
                    "page": hit.page,
                    "score": round(hit.score, 6),
                }
                for number, hit in ((number, hits[number - 1]) for number in cited)
            ]
        },
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {
                    "url": passage_url(base_url, hits[int(marker.group(1)) - 1].passage_id),
                    "title": hits[int(marker.group(1)) - 1].title,
                    "start_index": marker.start(),
                    "end_index": marker.end(),
                },
            }
            for marker in MARKER.finditer(answer)
            if int(marker.group(1)) in cited
        ],
    }
