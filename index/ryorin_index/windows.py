"""
Embedding texts that are longer than what their embedder reads.

An embedder leaves out what is beyond its limit and says nothing. A longer text is therefore read in windows of about
equal length, each beginning with the passage's title, and its vector is the mean of theirs, weighted by their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ryorin_index.counting import ADDED_TOKENS, TokenCounter
from ryorin_index.embed import Embed, Vectors
from ryorin_index.packing import Piece, pack_evenly


class Windowed:
    """An embedder that reads passages of any length. A question longer than its limit is read as far as that."""

    def __init__(self, embed: Embed, counter: TokenCounter) -> None:
        self._embed = embed
        self._counter = counter

    def query(self, text: str) -> Vectors:
        """The vector of a question. Shape: (dim,), float32."""
        return self._embed.query(text)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of questions. Shape: (n_texts, dim), float32."""
        return self._embed.queries(texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        """The vectors of passages. Shape: (n_texts, dim), float32, unit length."""
        return embed_passages(self._embed, self._counter, texts)


def embed_passages(embed: Embed, counter: TokenCounter, texts: Sequence[str]) -> Vectors:
    """
    The vectors of passages as they are embedded: the title in the first line, the text below it.

    Shape: (n_texts, dim), float32, unit length.
    """
    windows = [_windows(text, tokens, counter) for text, tokens in zip(texts, counter.counts(texts), strict=True)]
    rows = np.asarray(embed.passages([window for each in windows for window, _ in each]))
    if len(rows) != sum(map(len, windows)) or len(rows) == len(texts):
        return rows  # a wrong number of rows is for the caller to refuse
    vectors = []
    at = 0
    for each in windows:
        mean = np.average(rows[at : at + len(each)], axis=0, weights=[tokens for _, tokens in each])
        vectors.append(mean / max(float(np.linalg.norm(mean)), 1e-12) if len(each) > 1 else rows[at])
        at += len(each)
    return np.asarray(vectors, dtype=np.float32)


def _windows(text: str, tokens: int, counter: TokenCounter) -> list[tuple[str, int]]:
    """The windows in which a text is read, each with the tokens of its own part."""
    if counter.limit is None or tokens + ADDED_TOKENS <= counter.limit:
        return [(text, max(1, tokens))]
    room = counter.limit - ADDED_TOKENS
    title, _, body = text.partition("\n")
    title_tokens = counter.counts([title])[0]
    if not body.strip() or title_tokens > room // 2:  # a title that takes the most of it is read once, as text
        title, body, title_tokens = "", text, 0
    pieces: list[Piece] = pack_evenly(body, room - title_tokens, counter)
    head = f"{title}\n" if title else ""
    return [(head + body[piece.start : piece.end], max(1, piece.tokens)) for piece in pieces]
