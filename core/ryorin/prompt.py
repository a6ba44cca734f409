"""
The one prompt module: training, evaluation and serving render through here, so what is trained is what is served.

It knows the order (constant system text, then passages, then the conversation), the layout of passages and the meaning
of a citation marker. It does not know tokenizers, chat templates, stores or engines: the chat template of the base
model turns the messages it returns into tokens, in TRL and in vLLM alike.

Passages are data: they stand between <documents> tags that the passages themselves cannot close. Neither they nor a
conversation can write a control token of a chat template, such as <|im_start|>, and so forge a turn of another role.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from ryorin.digests import digest_of

LAYOUT_VERSION = 1
MARKER = re.compile(r"\[(\d{1,3})\]")
_TAG = re.compile(r"<(\s*/?\s*documents)(?![\w-])", re.IGNORECASE)  # with or without attributes or an end


# Control tokens as the chat templates of common model families write them: <|im_end|>, <start_of_turn>, </s>, …
_CONTROL = re.compile(r"<(?=\|[^|<>\n]{1,64}\|>|/?s>|(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>)")


class Message(TypedDict):
    """
    A chat message; content is plain text by the time it reaches this module.

    tool_calls: what an assistant asked a program to do, as OpenAI's clients have it. tool_call_id: of a tool's answer.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[Any]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True)
class PromptPassage:
    """A passage as the model sees it. `title` is one line: the document's title or its heading path."""

    title: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """
    A tenant's prompt.

    system: constant text, first in every request; empty when each conversation brings its own.
    answer_schema: JSON Schema that an answer must satisfy, or none when answers are prose. It is checked when answers
        are judged; it is not sent to the model (the system text describes the format in words).
    """

    system: str
    answer_schema: dict[str, Any] | None = field(default=None, hash=False)

    def spec(self) -> dict[str, Any]:
        """The JSON form that is stored and digested; the layout's version is part of it."""
        return {"layout": LAYOUT_VERSION, "system": self.system, "answer_schema": self.answer_schema}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Prompt:
        """The inverse of `spec`."""
        return cls(system=spec["system"], answer_schema=spec.get("answer_schema"))

    @property
    def digest(self) -> str:
        """What an adapter is bound to: the prompt it was trained for."""
        return digest_of(self.spec())


def render_passages(passages: Sequence[PromptPassage]) -> str:
    """The block of passages, numbered from 1 in the order given; '(none)' says that nothing was found."""
    lines = []
    for number, passage in enumerate(passages, start=1):
        lines.append(f"[{number}] {' '.join(passage.title.split())}")
        lines.append(passage.text.strip())
    # All at once: a tag could begin in a title and end in a text.
    body = _TAG.sub(r"‹\1", _without_control("\n".join(lines))) if lines else "(none)"
    return f"<documents>\n{body}\n</documents>"


def render(prompt: Prompt, conversation: Sequence[Message], passages: Sequence[PromptPassage] | None) -> list[Message]:
    """
    The messages for the engine: one system message, then the conversation as it came.

    passages: None when retrieval is off (no block at all); empty when it found nothing (the block says so).
    System and developer messages of the conversation follow the tenant's own text: they may add, not replace.
    """
    system = prompt.system.strip()
    said = [_harmless(message) for message in conversation]
    extra = [message["content"] for message in said if message["role"] in ("system", "developer")]
    documents = [] if passages is None else [render_passages(passages)]
    parts = [part for part in (system, *documents, *extra) if part]
    rest: list[Message] = [m for m in said if m["role"] not in ("system", "developer")]
    return [{"role": "system", "content": "\n\n".join(parts)}, *rest]


def asked(conversation: Sequence[Message]) -> str:
    """What passages are searched for: the last thing the user said; '' when there is no user."""
    return next((m["content"] for m in reversed(conversation) if m["role"] == "user"), "")


REWRITING = (
    "Rewrite the last question of a conversation so that it can be understood by itself: put in the names and things "
    "that it refers to. Keep its language. Answer with the rewritten question alone."
)
MOST_TURNS, MOST_CHARACTERS = 6, 600  # of the conversation before the question; of each message there, and of it


def follows_up(conversation: Sequence[Message]) -> bool:
    """Whether the user said something before the last question, and that is short enough to refer to it."""
    said_before = sum(message["role"] == "user" for message in conversation) > 1
    return said_before and len(asked(conversation)) <= MOST_CHARACTERS


def rewriting(conversation: Sequence[Message]) -> list[Message]:
    """What a model is asked for the last question in words that stand alone (`follows_up`)."""
    said = [_harmless(message) for message in conversation if message["role"] in ("user", "assistant")]
    last = max(place for place, message in enumerate(said) if message["role"] == "user")
    before = [m for m in said[:last] if m["content"].strip()][-MOST_TURNS:]
    lines = [f"{message['role']}: {message['content'][:MOST_CHARACTERS]}" for message in before]
    question = said[last]["content"]
    text = "\n".join(["Conversation:", *lines, "", f"Last question: {question}", "", "Rewritten question:"])
    return [{"role": "system", "content": REWRITING}, {"role": "user", "content": text}]


def fit(
    prompt: Prompt,
    conversation: Sequence[Message],
    passages: Sequence[PromptPassage],
    count_tokens: Callable[[list[Message]], int],
    max_prompt_tokens: int,
) -> int:
    """
    How many of the passages, best first, fit into `max_prompt_tokens` with the conversation; 0 when none does.

    count_tokens: tokens of rendered messages, by the base model's own tokenizer and chat template.
    """
    low, high = 0, len(passages)
    while low < high:  # the count grows with the passages: the largest number that fits, by bisection
        middle = (low + high + 1) // 2
        if count_tokens(render(prompt, conversation, passages[:middle])) <= max_prompt_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def cited_numbers(answer: str, given: int) -> list[int]:
    """The passage numbers an answer cites with `[n]`, in order of first appearance; numbers of no passage left out."""
    numbers = (int(match.group(1)) for match in MARKER.finditer(answer))
    return list(dict.fromkeys(number for number in numbers if 1 <= number <= given))


def _harmless(message: Message) -> Message:
    """A message that writes no control token, also not in what a tool is called with."""
    said: Message = {**message, "content": _without_control(message["content"])}
    if "tool_calls" in message:
        said["tool_calls"] = [
            {**call, "function": {name: _without_control(text) for name, text in call["function"].items()}}
            for call in message["tool_calls"]
        ]
    return said


def _without_control(text: str) -> str:
    """Text that no tokenizer reads a control token in; it looks the same to a person."""
    return _CONTROL.sub("‹", text)
