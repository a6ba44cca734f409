"""
Questions to answers, through the plain OpenAI client, some at a time; what was answered is kept.

Answers lie in `<home>/evaluations/<tenant>/answers/`, a file for each release, one JSON object a line, appended as they
come. Their key is the digest of all that an answer depends on: the release, the state of its documents, the messages
and the sampling. So a run that was broken off goes on where it stopped, and a second one asks only what is missing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ryorin.digests import SHORT, canonical_json, digest_of
from ryorin.errors import AuthenticationFailed, Conflict, NotFound, RyorinError, Unavailable
from ryorin.prompt import Message
from ryorin_train.judging.grade import Answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from sqlalchemy.orm import Session

TIMEOUT_S = 600.0
RETRIES = 6  # by the client, with the pause that the server names; an engine that restarts takes about a minute
LOG_WAIT_S = 15.0  # the gateway writes its log after it answered

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Server:
    """Where to ask. url: the base URL that OpenAI clients take."""

    url: str
    key: str
    concurrency: int


@dataclass(frozen=True)
class Question:
    """
    One request.

    model: `<tenant>@<version>`. state: digest of the release and of its documents. retrieval: whether passages are
    looked for. sampling: temperature, seed, n, max_tokens, as the API takes them.
    """

    model: str
    state: str
    messages: tuple[Message, ...]
    retrieval: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the answer depends on."""
        return digest_of([self.state, list(self.messages), self.retrieval, dict(self.sampling)])


class KeptAnswers:
    """The answers of earlier runs and of this one, for one release. A line that a crash cut is no answer."""

    def __init__(self, folder: Path, release_digest: str) -> None:
        self.path = folder / f"{release_digest[:SHORT]}.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                    self._records[record["key"]] = record
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a question, or none."""
        return self._records.get(key)

    def keep(self, record: dict[str, Any]) -> None:
        """Append a record, with a line end before it too: the last line may be half of one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.write(f"\n{canonical_json(record)}\n".encode())
        self._records[record["key"]] = record


def ask_all(
    server: Server, questions: Sequence[Question], kept: KeptAnswers, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """
    The record of each question, in their order; those that are kept already are not asked.

    Raises Unavailable when the server does not answer, AuthenticationFailed for a bad key, NotFound or Conflict for a
    release that it does not serve. What was answered until then is kept.
    """
    missing = list({question.key: question for question in questions if kept.get(question.key) is None}.values())
    refused: dict[str, dict[str, Any]] = {}
    if missing:
        asyncio.run(_ask(server, missing, kept, refused, progress))
    return [kept.get(question.key) or refused[question.key] for question in questions]


def answers_of(record: Mapping[str, Any], passages: Mapping[str, tuple[int, ...]]) -> list[Answer]:
    """The answers of a record, one for each choice; `passages` by request, as the gateway's log has them."""
    if record.get("error"):
        return [Answer("", error=record["error"])]
    return [
        Answer(
            text=choice["text"],
            cited=tuple(choice["cited"]),
            passages=passages.get(record["request"]),
            total_ms=record["total_ms"],
        )
        for choice in record["choices"]
    ]


def logged_passages(
    read: Callable[[Sequence[str]], dict[str, tuple[int, ...]]], requests: Sequence[str], wait_s: float = LOG_WAIT_S
) -> dict[str, tuple[int, ...]]:
    """The passages in the prompts of these requests, best first, by the log; waits for what is still to be written."""
    end = time.monotonic() + wait_s
    found = read(requests)
    while len(found) < len(set(requests)) and time.monotonic() < end:
        time.sleep(0.1)
        found = read(requests)
    return found


def passages_in_log(session: Session, tenant_id: str, requests: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The passages in the prompts of the tenant's requests; a request that is not in the log is left out."""
    from sqlalchemy import select

    from ryorin.catalog.tables import RequestLog

    found: dict[str, tuple[int, ...]] = {}
    for start in range(0, len(requests), 500):  # SQLite takes so many values in a statement
        rows = session.execute(
            select(RequestLog.id, RequestLog.passages).where(
                RequestLog.tenant_id == tenant_id, RequestLog.id.in_(requests[start : start + 500])
            )
        )
        for request, passages in rows:
            found[request] = tuple(passage["passage_id"] for passage in passages)
    return found


async def _ask(
    server: Server,
    questions: Sequence[Question],
    kept: KeptAnswers,
    refused: dict[str, dict[str, Any]],
    progress: Progress,
) -> None:
    from openai import AsyncOpenAI

    waiting = iter(questions)
    done = 0

    async with AsyncOpenAI(base_url=server.url, api_key=server.key, timeout=TIMEOUT_S, max_retries=RETRIES) as client:

        async def worker() -> None:
            nonlocal done
            for question in waiting:
                record = await _one(client, server, question)
                if record.get("error"):
                    refused[question.key] = record
                else:
                    kept.keep(record)
                done += 1
                progress(done, len(questions))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(server.concurrency, len(questions))):
                    group.create_task(worker())
        except* RyorinError as errors:
            raise errors.exceptions[0] from None


async def _one(client: AsyncOpenAI, server: Server, question: Question) -> dict[str, Any]:
    import openai

    options = dict(question.sampling)
    if not question.retrieval:
        options["extra_body"] = {"retrieval": {"off": True}}
    began = time.perf_counter()
    try:
        completion = await client.chat.completions.create(
            model=question.model, messages=cast(Any, question.messages), **options
        )
    except openai.BadRequestError as error:  # this question alone cannot be answered, as one too long for the context
        return {"key": question.key, "error": _said(error)}
    except openai.AuthenticationError as error:
        raise AuthenticationFailed(f"{server.url} does not take the key: {_said(error)}") from error
    except openai.NotFoundError as error:
        raise NotFound(
            f"{server.url} does not serve {question.model}: {_said(error)} Does it use this home or database?"
        ) from error
    except openai.ConflictError as error:
        raise Conflict(f"{server.url} cannot answer as {question.model}: {_said(error)}") from error
    except openai.APIConnectionError as error:
        raise Unavailable(
            f"no server answers at {server.url} ({error.__cause__ or error}); start one with 'ryorin serve', or leave "
            "--url out to have one started. What was answered is kept: the same command goes on from there"
        ) from error
    except openai.APIStatusError as error:
        raise Unavailable(
            f"{server.url} failed with status {error.status_code}: {_said(error)} What was answered is kept: the same "
            "command goes on from there"
        ) from error
    choices = []
    for choice in sorted(completion.choices, key=lambda choice: choice.index):
        context = (choice.message.model_extra or {}).get("context") or {}
        cited = [citation["filepath"] for citation in context.get("citations", [])]
        choices.append({"text": choice.message.content or "", "cited": cited})
    return {
        "key": question.key,
        "request": completion._request_id,
        "choices": choices,
        "total_ms": round((time.perf_counter() - began) * 1000, 1),
        "at": round(time.time(), 3),
    }


def _said(error: Any) -> str:
    """The server's own words."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    text = str(message or error.message).strip()
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."
