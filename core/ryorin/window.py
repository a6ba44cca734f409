"""
What goes into a model's window: the passages that leave room for the answer, and the messages they make.

The gateway asks the engine for what `assemble` gives, and training rows take their passages by it, so a row holds no
passage that a request would have left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ryorin.errors import InvalidInput
from ryorin.prompt import Message, Prompt, PromptPassage, fit, render

MIN_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Window:
    """
    The tokens of a request.

    max_model_len: of prompt and answer together. max_answer_tokens: of the answer when the request names none.
    """

    max_model_len: int = 4096
    max_answer_tokens: int = 1024


@dataclass(frozen=True)
class Assembled:
    """
    What the engine is asked.

    passages: the places of those that went in, in their order there; None when retrieval was off.
    max_tokens: limit of the answer.
    """

    messages: list[Message]
    passages: list[int] | None
    prompt_tokens: int
    max_tokens: int


def assemble(
    prompt: Prompt,
    conversation: Sequence[Message],
    passages: Sequence[PromptPassage] | None,
    count_tokens: Callable[[list[Message]], int],
    window: Window,
    max_tokens: int | None = None,
    arrange: Callable[[int], list[int]] | None = None,
) -> Assembled:
    """
    The messages with as many of the passages as leave room for the answer: as much as was asked for (`max_tokens`),
    else the default, else what the conversation leaves.

    passages: best first; None when retrieval is off. count_tokens: as of `fit`. arrange: from how many of the best go
    in to the order of their places; None leaves the best first. Raises InvalidInput when the conversation does not fit
    without any passage.
    """
    context = window.max_model_len
    bare = render(prompt, conversation, None if passages is None else [])
    least = count_tokens(bare)
    if least + (max_tokens or MIN_ANSWER_TOKENS) > context:
        wanted = f" and {max_tokens} for the answer" if max_tokens else ""
        raise InvalidInput(
            f"This model's maximum context length is {context} tokens; the messages take {least}{wanted}. Shorten "
            "the messages or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    room = max_tokens or min(window.max_answer_tokens, context // 2, context - least)
    if passages is None:
        return Assembled(bare, None, least, min(room, context - least))
    most = fit(prompt, conversation, passages, count_tokens, context - room)
    kept = list(range(most)) if arrange is None else arrange(most)
    messages = render(prompt, conversation, [passages[place] for place in kept])
    prompt_tokens = count_tokens(messages)
    return Assembled(messages, kept, prompt_tokens, min(room, context - prompt_tokens))
