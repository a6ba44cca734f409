"""
Drafting cases for retrieval evaluation from the documents themselves, for a person to correct.

A passage is drawn from each document in turn; its question is asked of a model when there is one, and is else the
heading path that leads to it, or, where there is none, its opening sentence's rarest words. Drafts without a model use
the passage's own words and so flatter search by words: they are a beginning, not a verdict. Every row says how it was
drafted.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Document, Passage, VectorStore
from ryorin.errors import InvalidInput, Unavailable

MIN_CHARACTERS = 60  # below, a passage hardly answers a question
QUOTE_CHARACTERS = 60
MAX_PASSAGE_CHARACTERS = 2000
RARE_WORDS = 5
_WORD = re.compile(r"[^\W\d_]{3,}|[一-鿿]{2,}|[ァ-ヿ]{3,}")
_INSTRUCTION = (
    "Write one short question that a reader of a handbook would ask and that the passage below answers. Use the "
    "passage's language and other words than it does where you can. Answer with the question alone.\n\n{title}\n{text}"
)

Asker = Callable[[str], str]


@dataclass(frozen=True)
class _Candidate:
    filename: str
    title: str
    heading: str
    text: str
    language: str


def draft_cases(
    session: Session, store: VectorStore, count: int, ask: Asker | None = None, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """
    Rows as `evaluate.load_cases` reads them, `count` at most.

    ask: a model's answer to an instruction; None drafts without a model. Raises InvalidInput when the store has no
    passage that is long enough.
    """
    rows = session.execute(
        select(Document.filename, Document.title, Passage.heading, Passage.text, Passage.language)
        .join(Document, Document.id == Passage.document_id)
        .where(Passage.tenant_id == store.tenant_id, Passage.store_id == store.id)
        .order_by(Document.source, Passage.ordinal)
    )
    candidates = [_Candidate(*row) for row in rows if len(row.text) >= MIN_CHARACTERS]
    if not candidates:
        raise InvalidInput(f"store {store.name!r} has no passage of {MIN_CHARACTERS} characters to draft a case from")
    frequencies = Counter(word for candidate in candidates for word in set(_WORD.findall(candidate.text.lower())))
    for candidate in _in_turns(candidates, random.Random(seed), count):
        if ask is not None:
            text = candidate.text[:MAX_PASSAGE_CHARACTERS]
            question, how = _one_line(ask(_INSTRUCTION.format(title=candidate.title, text=text))), "model"
        elif candidate.heading:
            question, how = candidate.heading.replace(" > ", " "), "heading"
        else:
            question, how = _rare_words(candidate.text, frequencies, len(candidates)), "words"
        if question:
            yield {
                "question": question,
                "language": candidate.language,
                "relevant": [{"document": candidate.filename, "quote": _quote(candidate.text)}],
                "drafted": how,
            }


def model_asker(url: str, model: str, api_key: str) -> Asker:
    """An asker that uses an OpenAI-compatible chat endpoint. Raises Unavailable when it does not answer."""
    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=url, api_key=api_key or "none", timeout=120)

    def ask(instruction: str) -> str:
        try:
            reply = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": instruction}], temperature=0, max_tokens=80
            )
        except OpenAIError as error:
            raise Unavailable(f"model {model!r} at {url} failed: {error}") from error
        return reply.choices[0].message.content or ""

    return ask


def _in_turns(candidates: Sequence[_Candidate], draw: random.Random, count: int) -> list[_Candidate]:
    """`count` of them at most, one of each document before a second of any."""
    by_document: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_document.setdefault(candidate.filename, []).append(candidate)
    for pile in by_document.values():
        draw.shuffle(pile)
    piles = list(by_document.values())
    draw.shuffle(piles)
    turns = max(map(len, piles))
    return [pile[turn] for turn in range(turns) for pile in piles if turn < len(pile)][:count]


def _rare_words(text: str, frequencies: Counter[str], total: int) -> str:
    opening = re.split(r"(?<=[.!?。！？])", text.strip(), maxsplit=1)[0]
    words = list(dict.fromkeys(_WORD.findall(opening.lower()) or _WORD.findall(text.lower())))
    rarest = sorted(words, key=lambda word: -math.log(total / max(1, frequencies[word])))[:RARE_WORDS]
    return " ".join(word for word in words if word in rarest)


def _quote(text: str) -> str:
    return _one_line(text)[:QUOTE_CHARACTERS].rstrip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
