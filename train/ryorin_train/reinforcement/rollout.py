"""
Sampling answers from the model that is trained, for many prompts at once.

The prompts go through the model as one packed batch (packing.py), what all begin with once. Then all answers take a
step together: their newest tokens are one sequence of the model, and attention looks at a prompt's keys once for all
answers to it (https://arxiv.org/abs/2402.05099) and at each answer's own. An answer that has ended leaves the batch.
transformers' `generate` would pad the prompts and copy the keys of a prompt for each of its answers.

On a GPU vLLM could sample instead, as TRL's `use_vllm` does; that has not been tried here.

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ryorin.errors import InvalidInput, RyorinError
from ryorin_train.packing import PackedRows, expected_of, packed_attention, shared_tokens
from ryorin_train.render import Branched, TokenGroup

FIRST_ROOM = 64  # tokens of an answer that are made room for at first


@dataclass(frozen=True)
class Sampling:
    """
    How answers are taken.

    answers: how many a prompt. max_tokens: of one, its end included. temperature: 0 takes the likeliest token.
    ends: tokens that end an answer.
    """

    answers: int
    max_tokens: int
    temperature: float
    ends: tuple[int, ...]


def sample(model: Any, prompts: Sequence[Branched], how: Sampling, seed: int) -> list[TokenGroup]:
    """
    Answers to each prompt. One that was cut off at `max_tokens` does not end with one of `how.ends`.

    model: a causal language model loaded with the packed attention. Raises RyorinError when its logits are not numbers.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    answers: list[list[int]] = [[] for _ in range(len(prompts) * how.answers)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            keys = Keys()
            logits = _read(model, prompts, keys).repeat_interleave(how.answers, 0)
            keys.branch(how.answers)
            alive = list(range(len(answers)))
            ends = torch.tensor(how.ends, device=device)
            for length in range(1, how.max_tokens + 1):
                tokens = _chosen(logits, how.temperature, generator)
                for row, token in zip(alive, tokens.tolist(), strict=True):
                    answers[row].append(token)
                going = ~torch.isin(tokens, ends)
                if length == how.max_tokens or not going.any():
                    break
                if not going.all():
                    alive = [row for row, goes in zip(alive, going.tolist(), strict=True) if goes]
                    tokens = tokens[going]
                    keys.keep(going)
                places = [prompts[row // how.answers].tokens + length - 1 for row in alive]
                output = model(
                    input_ids=tokens[None],
                    position_ids=torch.tensor([places], device=device),
                    rollout=keys,
                    use_cache=False,
                )
                logits = output.logits[0]
    finally:
        model.train(was_training)
    groups = (answers[at : at + how.answers] for at in range(0, len(answers), how.answers))
    return [
        TokenGroup(tuple(prompt.ids), tuple(map(tuple, group))) for prompt, group in zip(prompts, groups, strict=True)
    ]


def _read(model: Any, prompts: Sequence[Branched], keys: Keys) -> torch.Tensor:
    """Take in the prompts; the logits after each. Shape: (prompts, vocabulary)."""
    packed = PackedRows(prompts, shared_tokens(prompts))
    inputs, _ = expected_of(packed.batch(range(len(prompts))))
    keys.shared, keys.lengths = packed.shared, packed.lengths
    ends, end = [], packed.shared - 1
    for length in packed.lengths:
        end += length
        ends.append(end)
    inputs["logits_to_keep"] = torch.tensor(ends)
    device = next(model.parameters()).device
    inputs |= {name: value.to(device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    logits: torch.Tensor = model(**inputs, rollout=keys, use_cache=False).logits[0]
    return logits


def _chosen(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of (rows, vocabulary)."""
    logits = logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise RyorinError(
            "the model's logits are not numbers: training diverged. Lower --learning-rate", code="training_diverged"
        )
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]


class Keys:
    """
    Keys and values of a batch of answers while it is sampled, layer by layer; `attend` is the model's attention.

    shared, lengths: tokens that all prompts begin with, and each prompt's others.
    """

    def __init__(self) -> None:
        self.shared = 0
        self.lengths: Sequence[int] = ()
        self._counts: list[int] | None = None  # answers of each prompt that still go on
        self._prompts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # layer: a prompt: (key heads, P, dim)
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer: (rows, key heads, room, dim)
        self._used: dict[int, int] = {}

    def branch(self, answers: int) -> None:
        """The prompts are in; each has this many answers."""
        self._counts = [answers] * len(self.lengths)

    def keep(self, going: torch.Tensor) -> None:
        """Answers that do not go on are left out. going: (rows,), bool."""
        assert self._counts is not None
        self._counts = [int(part.sum()) for part in going.split(self._counts)]
        self._own = {layer: (key[going], value[going]) for layer, (key, value) in self._own.items()}

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """As `packed_attention`: of the prompts at first, then of one new token of each row."""
        layer = module.layer_idx
        if self._counts is None:
            shared, *_ = sizes = (self.shared, *self.lengths)
            keys, values = (states[0].split(sizes, dim=1) for states in (key, value))
            self._prompts[layer] = [
                (torch.cat([keys[0], keys[at]], 1) if shared else keys[at],
                 torch.cat([values[0], values[at]], 1) if shared else values[at])
                for at in range(1, len(sizes))
            ]  # fmt: skip
            return packed_attention(module, query, key, value, None, scaling, **kwargs)
        rows, heads = query.shape[2], query.shape[1]
        window = kwargs.get("sliding_window")
        longest = self.shared + max(self.lengths) + self._used.get(layer, 0) + 1
        if window is not None and window < longest:
            raise InvalidInput(
                f"the base model's layers look back {window} tokens, and a prompt with its answer has {longest}; "
                "sampling cannot do that yet: shorten them",
                param="base",
            )
        own_keys, own_values = self._with(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        of_key = key.shape[1]
        asked = query[0].transpose(0, 1).reshape(rows, of_key, heads // of_key, -1)  # rows, key heads, queries, dim
        to_own = asked @ own_keys.transpose(2, 3) * scaling
        outputs = []
        first = 0
        for count, (prompt_key, prompt_value) in zip(self._counts, self._prompts[layer], strict=True):
            if not count:
                continue
            mine = slice(first, first + count)
            first += count
            together = asked[mine].transpose(0, 1).reshape(of_key, -1, asked.shape[-1])  # key heads, answers' queries
            to_prompt = (together @ prompt_key.transpose(1, 2) * scaling).view(of_key, count, -1, prompt_key.shape[1])
            weights = torch.softmax(torch.cat([to_prompt.transpose(0, 1), to_own[mine]], -1), -1)
            of_prompt, of_own = weights.split([prompt_key.shape[1], to_own.shape[-1]], -1)
            seen = (of_prompt.transpose(0, 1).reshape(of_key, -1, prompt_key.shape[1]) @ prompt_value).view(
                of_key, count, -1, asked.shape[-1]
            )
            outputs.append(seen.transpose(0, 1) + of_own @ own_values[mine])
        return torch.cat(outputs).reshape(1, rows, heads, -1), None

    def _with(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The answers' own keys and values with their newest, each (rows, key heads, dim)."""
        used = self._used.get(layer, 0)
        if layer not in self._own:
            self._own[layer] = self._room(key, FIRST_ROOM), self._room(value, FIRST_ROOM)
        elif used == self._own[layer][0].shape[2]:
            old_key, old_value = self._own[layer]
            self._own[layer] = (
                torch.cat([old_key, self._room(key, used)], 2),
                torch.cat([old_value, self._room(value, used)], 2),
            )
        keys, values = self._own[layer]
        keys[:, :, used], values[:, :, used] = key, value
        self._used[layer] = used + 1
        return keys[:, :, : used + 1], values[:, :, : used + 1]

    @staticmethod
    def _room(state: torch.Tensor, tokens: int) -> torch.Tensor:
        rows, heads, dim = state.shape
        return state.new_empty(rows, heads, tokens, dim)
