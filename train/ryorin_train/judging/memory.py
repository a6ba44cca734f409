"""
Whether a model says what it was trained on rather than what it was given: cases that stood in the training data, and
training text that comes back word for word though no passage has it.

House phrases do come back, and shall: a string that stands in more than a twentieth of all training answers is one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ryorin.blobs import check_blob
from ryorin.errors import InvalidInput, NotFound
from ryorin_index.words import morphemes
from ryorin_train.judging.cases import Case, plain
from ryorin_train.judging.grade import prose

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ryorin.settings import Settings

STRING_WORDS = 8
HOUSE_SHARE = 0.05
_WIDE = re.compile(r"[ぁ-ゖァ-ヺーｦ-ﾟ㐀-䶿一-鿿々]+")
_PIECE = re.compile(rf"(?P<wide>{_WIDE.pattern})|[^\W_ぁ-ゖァ-ヺーｦ-ﾟ㐀-䶿一-鿿々]+")


@dataclass(frozen=True)
class TrainedOn:
    """The training data of an adapter and of those it grew out of. datasets: how many; unknown: adapters of no data."""

    datasets: int
    unknown: tuple[str, ...]
    questions: frozenset[str]
    answers: tuple[str, ...]


NO_DATA = TrainedOn(0, (), frozenset(), ())


def trained_on(session: Session, settings: Settings, adapter_name: str | None) -> TrainedOn:
    """
    What the adapter was trained on, followed back through the adapters it started from.

    The rows are looked through for what users ask and assistants answer, whatever the format of their dataset.
    """
    from sqlalchemy import select

    from ryorin.catalog.tables import Adapter, Dataset

    questions: set[str] = set()
    answers: list[str] = []
    unknown: list[str] = []
    digests: set[str] = set()
    name = adapter_name
    while name is not None:
        adapter = session.scalar(select(Adapter).where(Adapter.name == name))
        dataset = session.get(Dataset, adapter.dataset_id) if adapter is not None and adapter.dataset_id else None
        if dataset is None:
            unknown.append(name)
        elif dataset.digest not in digests:
            digests.add(dataset.digest)
            try:
                lines = check_blob(settings.blobs_dir, dataset.digest).read_bytes().splitlines()
            except (
                NotFound,
                InvalidInput,
            ):  # gone or damaged: told as unknown, as the answers can be judged without it
                unknown.append(name)
                lines = []
            for line in lines:
                said = list(_said(json.loads(line)))
                questions |= {_asked(text) for role, text in said if role == "user"}
                answers += [text for role, text in said if role == "assistant"]
        start = (adapter.manifest.get("start_from") if adapter is not None else None) or {}
        name = start.get("name")
    return TrainedOn(len(digests), tuple(unknown), frozenset(questions), tuple(answers))


def was_trained_on(case: Case, data: TrainedOn) -> bool:
    """Whether a case's question, or a paraphrase of it, is one of the training questions, word for word."""
    return any(_asked(text) in data.questions for text in (case.question, *case.paraphrases))


def repeated_strings(
    answers: Sequence[str], allowed: Sequence[str], data: TrainedOn, words: int = STRING_WORDS
) -> list[list[str]]:
    """
    For each answer the strings of at least `words` words that stand in a training answer, and not in what the prompt
    held. Runs that overlap are one string. In Japanese a word is a morpheme.

    allowed: for each answer the text of its prompt: passages, question, system text.
    """
    sought: list[dict[tuple[str, ...], int]] = []
    for answer, prompt in zip(answers, allowed, strict=True):
        own = dict(_grams(_words(prose(answer)), words))
        for gram in set(own) & {gram for gram, _ in _grams(_words(prompt), words)}:
            del own[gram]
        sought.append(own)
    wanted = {gram for own in sought for gram in own}
    seen: Counter[tuple[str, ...]] = Counter()
    if wanted:
        for text in data.answers:
            seen.update({gram for gram, _ in _grams(_words(prose(text)), words)} & wanted)
    most = max(2, HOUSE_SHARE * len(data.answers))
    return [
        _joined(prose(answer), sorted(at for gram, at in own.items() if 0 < seen[gram] <= most), words)
        for answer, own in zip(answers, sought, strict=True)
    ]


def _said(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(role, text) of every message of a row; what is to be learned without a role is the assistant's."""
    for name, value in row.items():
        role = "user" if name in ("prompt", "input", "question") else "assistant"
        if name in ("passages", "tools", "rejected", "non_preferred_output"):  # not what is to be learned
            continue
        if isinstance(value, str):
            yield role, value
        elif isinstance(value, Mapping):
            yield from _said(value)
        elif isinstance(value, list):
            for message in value:
                if isinstance(message, Mapping) and isinstance(message.get("content"), str):
                    yield str(message.get("role", role)), message["content"]


def _asked(text: str) -> str:
    """A question as it is compared: without case, punctuation and white space."""
    return "".join(letter for letter in plain(text).casefold() if letter.isalnum())


def _words(text: str) -> list[str]:
    words: list[str] = []
    for piece in _PIECE.finditer(plain(text).casefold()):
        words += [word.surface() for word in morphemes(piece[0])] if piece["wide"] else [piece[0]]
    return words


def _grams(words: Sequence[str], length: int) -> Iterable[tuple[tuple[str, ...], int]]:
    """Every run of `length` words, with where it begins."""
    return ((tuple(words[at : at + length]), at) for at in range(len(words) - length + 1))


def _joined(answer: str, starts: Sequence[int], length: int) -> list[str]:
    """The runs that begin there, those that overlap as one, as text."""
    words = _words(answer)
    spans: list[list[int]] = []
    for start in starts:
        if spans and start <= spans[-1][1]:
            spans[-1][1] = start + length
        else:
            spans.append([start, start + length])
    wide = _WIDE.search(answer) is not None
    return [("" if wide else " ").join(words[start:end]) for start, end in spans]
