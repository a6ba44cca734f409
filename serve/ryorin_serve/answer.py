"""
What is added to an answer: the passages it cites.

A citation is a marker `[n]` in the text, n being a passage of the prompt. The full record stands in `context.citations`
(as Azure's clients know it); `annotations` repeats it in chat's only annotation type, one for each marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ryorin.prompt import MARKER, cited_numbers
from ryorin_index.search import Hit


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
