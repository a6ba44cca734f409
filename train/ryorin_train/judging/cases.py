"""
Cases: questions with what is expected of the answers, one JSON object a line, and the rubric that says how to look.

    {"rubric": {"decision": {"field": "decision"}, "refusal": {"field": "citation", "equals": null}}}
    {"question": "…", "expected": {"decision": "NO", "facts": ["30 days"], "documents": ["returns.md"]}}

The rubric is the first line, if there is one. The format is described in docs/evaluation.md. A field that is not known
is refused, so that a misspelt one is not silently lost; all lines that cannot be used are named at once.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ryorin.digests import digest_of
from ryorin.errors import NotFound, RowError
from ryorin.prompt import Message
from ryorin_index.evaluate import Place
from ryorin_train.data import ROLES, for_each_row, known_fields, parse_line, text_of

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")
LANGUAGES = ("en", "ja")
_CASE_FIELDS = {"question", "messages", "expected", "paraphrases", "language", "split", "tags"}
_EXPECTED_FIELDS = {"decision", "facts", "documents", "refuse"}
_RUBRIC_FIELDS = {"format", "decision", "facts", "refusal", "tone"}
_TONE_FIELDS = {"banned", "required", "register", "max_grade", "max_characters"}
_JAPANESE = re.compile(r"[ぁ-ゖァ-ヺｦ-ﾟ㐀-䶿一-鿿]")


@dataclass(frozen=True)
class Finding:
    """Where a value stands in an answer: in a field of its JSON ('a.b' for one within another), or by a pattern."""

    field: str | None = None
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Refusal:
    """How a refusal is told: a field of this value, or a pattern; the phrases of tone.py when there is neither."""

    field: str | None = None
    equals: Any = None
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Tone:
    """
    House style in one language.

    banned, required: phrases. register: 'polite' asks every Japanese sentence to end in です or ます.
    max_grade: the highest Flesch-Kincaid grade of English. max_characters: of the answer's text.
    """

    banned: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    register: str | None = None
    max_grade: float | None = None
    max_characters: int | None = None


@dataclass(frozen=True)
class Rubric:
    """
    How answers are read.

    format: what a whole answer must match; without it the tenant's answer schema is what counts.
    decision: where the decision stands; without it the field 'decision'.
    facts: the field in which facts must be stated; without it anywhere in the answer.
    """

    format: re.Pattern[str] | None = None
    decision: Finding = field(default_factory=lambda: Finding(field="decision"))
    facts: str | None = None
    refusal: Refusal = field(default_factory=Refusal)
    tone: dict[str, Tone] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """
    What a right answer has; what is None is not judged.

    facts: all must be stated, each in one of its wordings. documents: exactly these must be cited, none when empty.
    refuse: whether the right answer is that it cannot be answered.
    """

    decision: str | None = None
    facts: tuple[tuple[str, ...], ...] | None = None
    documents: tuple[Place, ...] | None = None
    refuse: bool = False


@dataclass(frozen=True)
class Case:
    """One case. line: where it stands in its file. paraphrases: the last user message in other words."""

    line: int
    messages: tuple[Message, ...]
    expected: Expected
    paraphrases: tuple[str, ...] = ()
    language: str = "en"
    split: Split = "held_out"
    tags: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """What the user said last: what passages are searched for."""
        return self.messages[-1]["content"]

    @property
    def digest(self) -> str:
        """Of what is asked, not of what is expected: an answer stays good when the expectation is mended."""
        return digest_of(list(self.messages))

    def reworded(self, question: str) -> tuple[Message, ...]:
        """The conversation with another last message."""
        return (*self.messages[:-1], Message(role="user", content=question))


@dataclass(frozen=True)
class Cases:
    """A file of cases. digest: of its content, rubric and all."""

    name: str
    digest: str
    rubric: Rubric
    cases: tuple[Case, ...]

    def of(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == split)


def read_cases(path: Path) -> Cases:
    """The cases of a JSONL file. Raises NotFound for no such file, RowError (RowErrors) for lines it cannot use."""
    numbered = _numbered_lines(path)
    first = numbered[0][0]

    def read(item: tuple[int, bytes]) -> tuple[dict[str, Any], Rubric | Case]:
        row = parse_line(item[1])
        if "rubric" not in row:
            return row, _case(item[0], row)
        if item[0] != first:
            raise ValueError("a rubric must be the first line, and stand there alone")
        return row, _rubric(row)

    read_rows = for_each_row(path.name, numbered, lambda item: item[0], read)
    rubric = next((value for _, value in read_rows if isinstance(value, Rubric)), Rubric())
    cases = [value for _, value in read_rows if isinstance(value, Case)]
    if not cases:
        raise RowError(path.name, first, "there is a rubric and no case after it; a case is one line more")
    seen: dict[str, int] = {}
    for_each_row(path.name, cases, lambda case: case.line, lambda case: _once(seen, case))
    return Cases(path.name, digest_of([row for row, _ in read_rows]), rubric, tuple(cases))


def _numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1; a BOM is tolerated."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no file {path}; --cases takes a JSONL file of cases", param="cases") from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise RowError(path.name, 1, "the file is empty; it must hold one case a line")
    return numbered


def plain(text: str) -> str:
    """Text in which wordings are compared: NFKC, one space for each run of white space, no commas of thousands."""
    squeezed = " ".join(unicodedata.normalize("NFKC", text).split())
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", squeezed)


def language_of(question: str) -> str:
    """The language in which a question is answered, one of `LANGUAGES`: 'ja' where it has Japanese letters."""
    return "ja" if _JAPANESE.search(question) else "en"


def _once(seen: dict[str, int], case: Case) -> None:
    first = seen.setdefault(case.digest, case.line)
    if first != case.line:
        raise ValueError(f"it asks the same as line {first}; a case counts once, and on one side of the split")


def _case(line: int, row: dict[str, Any]) -> Case:
    known_fields("the case", row, _CASE_FIELDS)
    if ("question" in row) == ("messages" in row):
        raise ValueError("a case has either 'question' or 'messages'")
    if "question" in row:
        messages: tuple[Message, ...] = (Message(role="user", content=text_of("the case", "question", row)),)
    else:
        messages = _messages(row["messages"])
    split = row.get("split", "held_out")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    language = row.get("language") or language_of(messages[-1]["content"])
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; answers are judged in {' and '.join(LANGUAGES)}")
    expected = row.get("expected")
    if not isinstance(expected, dict):
        raise ValueError("there is no object 'expected'; it says what a right answer has")
    return Case(
        line=line,
        messages=messages,
        expected=_expected(expected),
        paraphrases=_texts("paraphrases", row.get("paraphrases", [])),
        language=language,
        split=split,
        tags=_texts("tags", row.get("tags", [])),
    )


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("'messages' must be a list with at least one message")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{where} must be an object")
        known_fields(where, message, {"role", "content"})
        if message.get("role") not in ROLES:
            raise ValueError(f"{where} has role {message.get('role')!r}; known roles: {', '.join(ROLES)}")
        messages.append(Message(role=message["role"], content=text_of(where, "content", message)))
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last message's role is {messages[-1]['role']!r}; it must be 'user': what is asked")
    return tuple(messages)


def _expected(value: dict[str, Any]) -> Expected:
    known_fields("expected", value, _EXPECTED_FIELDS)
    if not value:
        raise ValueError(f"'expected' is empty; it has one or more of {', '.join(sorted(_EXPECTED_FIELDS))}")
    decision = value.get("decision")
    if decision is not None and not isinstance(decision, str):
        raise ValueError('expected: decision must be text, such as "NO"')
    if not isinstance(value.get("refuse", False), bool):
        raise ValueError("expected: refuse must be true or false")
    facts = documents = None
    if value.get("facts") is not None:
        if not isinstance(value["facts"], list):
            raise ValueError("expected: facts must be a list of texts, or of lists of wordings")
        facts = tuple(_wordings(fact) for fact in value["facts"])
    if value.get("documents") is not None:
        if not isinstance(value["documents"], list):
            raise ValueError("expected: documents must be a list of file names; [] when none may be cited")
        documents = tuple(_place(place) for place in value["documents"])
    return Expected(decision, facts, documents, value.get("refuse", False))


def _wordings(value: Any) -> tuple[str, ...]:
    wordings = _texts("a fact", [value] if isinstance(value, str) else value)
    if not wordings:
        raise ValueError("expected: a fact has no wording")
    return wordings


def _place(value: Any) -> Place:
    place = {"document": value} if isinstance(value, str) else value
    if not isinstance(place, dict):
        raise ValueError("expected: a document is a file name or an object")
    known_fields("a document", place, {"document", "heading", "quote"})
    return Place(**{name: text_of("a document", name, place) for name in {"document", *place}})


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"{name} must be a list of texts, none empty")
    return tuple(value)


def _rubric(row: dict[str, Any]) -> Rubric:
    known_fields("the rubric's line", row, {"rubric"})
    value = row["rubric"]
    if not isinstance(value, dict):
        raise ValueError("'rubric' must be an object")
    known_fields("the rubric", value, _RUBRIC_FIELDS)
    given: dict[str, Any] = {}
    if "format" in value:
        given["format"] = _part("format", value, {"pattern"})["pattern"]
    if "decision" in value:
        given["decision"] = Finding(**_part("decision", value, {"field", "pattern"}))
    if "facts" in value:
        given["facts"] = _part("facts", value, {"field"})["field"]
    if "refusal" in value:
        given["refusal"] = Refusal(**_part("refusal", value, {"field", "equals", "pattern"}))
        if "field" in value["refusal"] and "equals" not in value["refusal"]:
            raise ValueError("refusal: a field needs 'equals': the value it has in a refusal")
    if "tone" in value:
        tone = value["tone"]
        if not isinstance(tone, dict):
            raise ValueError("tone must be an object by language")
        known_fields("tone", tone, set(LANGUAGES))
        given["tone"] = {language: _tone(language, style) for language, style in tone.items()}
    return Rubric(**given)


def _part(name: str, rubric: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """A part that names a field or a pattern, with the pattern compiled."""
    value = rubric[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object")
    known_fields(name, value, known)
    places = {"field", "pattern"} & known
    if len(places & set(value)) != 1:
        raise ValueError(f"{name} has either {' or '.join(sorted(places))}")
    found = dict(value)
    for place in places & set(value):
        found[place] = text_of(name, place, value)
    if "pattern" in found:
        try:
            found["pattern"] = re.compile(found["pattern"])
        except re.error as error:
            raise ValueError(f"{name}: the pattern cannot be read: {error}") from None
    return found


def _tone(language: str, value: Any) -> Tone:
    where = f"tone in {language!r}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    foreign = {"max_grade"} if language == "ja" else {"register"}
    known_fields(where, value, _TONE_FIELDS - foreign)
    if value.get("register") not in (None, "polite"):
        raise ValueError(f"{where}: register is {value['register']!r}; it can be 'polite'")
    for name in ("max_grade", "max_characters"):
        limit = value.get(name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0):
            raise ValueError(f"{where}: {name} must be a number above 0")
    return Tone(
        banned=_texts("banned", value.get("banned", [])),
        required=_texts("required", value.get("required", [])),
        register=value.get("register"),
        max_grade=value.get("max_grade"),
        max_characters=value.get("max_characters"),
    )


def shown(case: Case, length: int = 80) -> str:
    """A case in a few words, for messages."""
    text = " ".join(case.question.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
