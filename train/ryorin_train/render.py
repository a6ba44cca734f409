"""
From examples to token ids, exactly as vLLM will see them.

The prompt goes through `ryorin.prompt.render` and the base tokenizer's chat template with its generation prompt, which
is what vLLM does with the messages it gets. The answer is tokenized by itself, since the model produces it token by
token after that prompt, and ends with the token that ends a turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ryorin.errors import InvalidInput
from ryorin.prompt import Message, Prompt, PromptPassage, render
from ryorin_train.data import Example, Preference, Rating, Task, for_each_row


class Layout(NamedTuple):
    """
    A row behind the beginning that it shares with others, as packing.py lays it into a batch. T tokens, L learned.

    ids, positions: (T,). pieces: lengths that add up to T: a stem, then branches that each continue the stem.
    predictors: (L,) indices of the tokens whose logits are wanted. targets: (L,) what those should predict.
    answers: lengths that add up to L, one an answer.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    pieces: tuple[int, ...]
    predictors: Sequence[int]
    targets: Sequence[int]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class TokenRow:
    """
    One example as tokens.

    ids: prompt, answer and end of turn.
    learned: for each token, whether it counts in the loss; never the first.
    kept: the model is to say there what the base model says (keeping.py), not the tokens.
    """

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    kept: bool = False

    @property
    def first_learned(self) -> int:
        """The index of the first token that counts."""
        return self.learned.index(True)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return len(self.ids)

    def layout(self, shared: int) -> Layout:
        """The row without its first `shared` tokens."""
        places = [place for place, learned in enumerate(self.learned) if learned]
        return Layout(
            ids=self.ids[shared:],
            positions=range(shared, len(self.ids)),
            pieces=(len(self.ids) - shared,),
            predictors=[place - 1 - shared for place in places],
            targets=[self.ids[place] for place in places],
            answers=(len(places),),
        )


class Branched:
    """A prompt, and answers to it that each continue it."""

    prompt: tuple[int, ...]
    kept = False

    def branches(self) -> tuple[tuple[int, ...], ...]:
        """The answers with their ends of turn."""
        raise NotImplementedError

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that a shared beginning is looked for in."""
        return self.prompt

    @property
    def first_learned(self) -> int:
        """Where the answers begin."""
        return len(self.prompt)

    @property
    def tokens(self) -> int:
        """How many tokens there are, the prompt's once."""
        return len(self.prompt) + sum(map(len, self.branches()))

    def layout(self, shared: int) -> Layout:
        """It without its first `shared` tokens: the prompt is the stem, the answers are its branches."""
        stem, end = len(self.prompt) - shared, len(self.prompt)
        ids, positions = list(self.prompt[shared:]), list(range(shared, end))
        predictors: list[int] = []
        for answer in self.branches():
            predictors += (stem - 1, *range(len(ids), len(ids) + len(answer) - 1))
            positions += range(end, end + len(answer))
            ids += answer
        lengths = tuple(map(len, self.branches()))
        return Layout(
            ids=ids,
            positions=positions,
            pieces=(stem, *lengths),
            predictors=predictors,
            targets=ids[stem:],
            answers=lengths,
        )


@dataclass(frozen=True)
class TokenPair(Branched):
    """A preference pair as tokens: the prompt, and two answers with their ends of turn."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def branches(self) -> tuple[tuple[int, ...], ...]:
        """Both answers."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class TokenRating(TokenPair):
    """
    A rating as tokens: the prompt and its answer (`chosen`), and in the place of a second one another row's answer
    (`rejected`), by which KTO estimates how far the model is from the reference; empty until `mismatched`.
    """

    good: bool


@dataclass(frozen=True)
class TokenGroup(Branched):
    """A prompt as tokens, and any number of answers to it; none of them empty."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def branches(self) -> tuple[tuple[int, ...], ...]:
        """The answers."""
        return self.answers


@dataclass(frozen=True)
class TokenTask(Branched):
    """A prompt as tokens, to which answers are to be found. item: its row, as graders see it."""

    prompt: tuple[int, ...]
    item: dict[str, Any]

    def branches(self) -> tuple[tuple[int, ...], ...]:
        """None yet."""
        return ()


def mismatched(ratings: Sequence[TokenRating], max_row_tokens: int) -> list[TokenRating]:
    """Each rating with the answer of the one before it, cut where it would be longer than a row may be."""
    return [
        replace(row, rejected=ratings[number - 1].chosen[: max(1, max_row_tokens - len(row.prompt))])
        for number, row in enumerate(ratings)
    ]


class Renderer:
    """Renders examples for one base model and one prompt. `tokenizer`: its transformers tokenizer."""

    def __init__(self, tokenizer: Any, prompt: Prompt, max_row_tokens: int) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidInput("the base model has no chat template; choose an instruction-tuned one", param="base")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_row_tokens = max_row_tokens
        self.end_of_turn = end_of_turn(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)

    def rows(self, source: str, examples: Sequence[Example]) -> list[TokenRow]:
        """All examples as tokens. Raises RowError naming each line that is too long or cannot be rendered."""
        return for_each_row(source, examples, lambda example: example.line, self.row)

    def row(self, example: Example) -> TokenRow:
        """One example as tokens. Raises ValueError with the reason when it cannot be learned."""
        last = len(example.messages) - 1
        prompt = self.prompt_ids(example.messages[:last], example.passages)
        answer = self._answer(example.messages[last]["content"], f"message {last + 1}")
        ids = [*prompt, *answer]
        learned = [False] * len(prompt) + [True] * len(answer)
        for position, is_learned in enumerate(example.learned[:-1]):
            if is_learned:  # an earlier turn: its tokens stand in the prompt of the last one
                before = self.prompt_ids(example.messages[:position], example.passages)
                turn = self._answer(example.messages[position]["content"], f"message {position + 1}")
                start, end = len(before), len(before) + len(turn)
                if ids[:end] != [*before, *turn]:
                    raise ValueError(
                        f"message {position + 1} cannot be learned: the chat template writes earlier answers "
                        "differently; give it weight 0"
                    )
                learned[start:end] = [True] * len(turn)
        self._check_length(len(ids))
        return TokenRow(tuple(ids), tuple(learned))

    def pairs(self, source: str, preferences: Sequence[Preference]) -> list[TokenPair]:
        """All preference pairs as tokens; as `rows`."""
        return for_each_row(source, preferences, lambda preference: preference.line, self.pair)

    def pair(self, preference: Preference) -> TokenPair:
        """One preference pair as tokens. Raises ValueError with the reason when it cannot be learned."""
        prompt = self.prompt_ids(preference.messages, preference.passages)
        chosen = self._answer(preference.chosen, "the preferred answer")
        rejected = self._answer(preference.rejected, "the other answer")
        self._check_length(len(prompt) + max(len(chosen), len(rejected)))
        return TokenPair(tuple(prompt), tuple(chosen), tuple(rejected))

    def ratings(self, source: str, ratings: Sequence[Rating]) -> list[TokenRating]:
        """All ratings as tokens; as `rows`."""
        return for_each_row(source, ratings, lambda rating: rating.line, self.rating)

    def rating(self, rating: Rating) -> TokenRating:
        """One rating as tokens. Raises ValueError with the reason when it cannot be learned."""
        prompt = self.prompt_ids(rating.messages, rating.passages)
        answer = self._answer(rating.answer, "the answer")
        self._check_length(len(prompt) + len(answer))
        return TokenRating(tuple(prompt), tuple(answer), (), rating.good)

    def tasks(self, source: str, tasks: Sequence[Task], answer_tokens: int) -> list[TokenTask]:
        """All tasks as tokens, each with room for an answer of `answer_tokens`; as `rows`."""

        def rendered(task: Task) -> TokenTask:
            prompt = self.prompt_ids(task.messages, task.passages)
            self._check_length(len(prompt) + answer_tokens)
            return TokenTask(tuple(prompt), task.content)

        return for_each_row(source, tasks, lambda task: task.line, rendered)

    def _check_length(self, tokens: int) -> None:
        if tokens > self.max_row_tokens:
            raise ValueError(
                f"{tokens} tokens with the prompt, the limit is {self.max_row_tokens}; shorten it or raise "
                "--max-row-tokens"
            )

    def prompt_ids(self, conversation: Sequence[Message], passages: Sequence[PromptPassage] | None) -> list[int]:
        """The tokens that vLLM sees when it is asked to continue `conversation`."""
        messages = render(self.prompt, conversation, passages)
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # jinja2's own, raised by templates that demand e.g. alternating roles
            raise ValueError(f"the base model's chat template refuses it: {error}") from error
        return list(ids)

    def _answer(self, text: str, where: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ids:
            if token in self._special:
                name = self.tokenizer.convert_ids_to_tokens(token)
                raise ValueError(f"{where} holds the control token {name!r}")
        return [*ids, *self.end_of_turn]


def end_of_turn(tokenizer: Any) -> list[int]:
    """
    The tokens that end an assistant's turn, read from the chat template: what it writes after the answer, up to the
    first control token. The tokenizer's end-of-sequence token when it writes none.
    """
    question: list[Message] = [{"role": "user", "content": "a"}]
    answer: Message = {"role": "assistant", "content": "b"}
    try:
        before = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        after = tokenizer.apply_chat_template([*question, answer], tokenize=False)
    except Exception as error:  # jinja2's own: templates come with models and may fail in any way
        raise InvalidInput(f"the base model's chat template cannot be used: {error}", param="base") from error
    tail = after.removeprefix(before).removeprefix("b")
    ids: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"] if after.startswith(before + "b") else []
    special = frozenset(tokenizer.all_special_ids)
    for position, token in enumerate(ids):
        if token in special:
            return ids[: position + 1]
    if tokenizer.eos_token_id is None:
        raise InvalidInput("the base model's tokenizer has no end-of-sequence token", param="base")
    return [tokenizer.eos_token_id]


def context_window(path: Path) -> int | None:
    """How many tokens the base model in a folder reads, prompt and answer together; None when it does not say."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    longest: int | None = config.get("text_config", config).get("max_position_embeddings")
    return longest


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a base model's folder; nothing is downloaded and no code of it is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
