"""
Batches without padding, in which the beginning that all prompts share is computed once.

A step's rows lie behind one another in one sequence, after one copy of the shared beginning (the chat template's
opening and the constant system text: often a third of a row):

    tokens     s s s s | a a a a a a | b b b | c c c c
    positions  0 1 2 3 | 4 5 6 7 8 9 | 4 5 6 | 4 5 6 7

A preference pair is a row with two branches: its prompt stands once, and each answer continues it.

`packed_attention` lets each row attend to the shared tokens and to itself, and each branch to its row's stem, so losses
and gradients are those of the padded rows up to rounding (tests/train/test_train_packing.py), for fewer tokens. Logits
are computed only where something is learned. Only exact without dropout.

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from ryorin.errors import InvalidInput
from ryorin_train.render import Branched, TokenRow

if TYPE_CHECKING:
    from ryorin_train.keeping import Kept
    from ryorin_train.trunk import Trunk

ATTENTION = "ryorin_packed"
SHORT = 512  # tokens of a sequence whose weights BlockAttention may keep: about heads * tokens² / 2 a layer
BLOCK = 128


def shared_tokens(rows: Sequence[TokenRow | Branched]) -> int:
    """
    How many first tokens all rows but those that are kept have in common, such that every learned token's predecessor
    is left to its row.
    """
    rows = [row for row in rows if not row.kept]
    limit = min(row.first_learned for row in rows) - 1
    first = rows[0].ids
    shared = 0
    while shared < limit and all(row.ids[shared] == first[shared] for row in rows):
        shared += 1
    return shared


class TokenBatches:
    """
    A batch sampler: lists of row numbers with about `batch_tokens` tokens each, in another order every epoch.

    The number of batches is the same in every epoch; a row that is longer than `batch_tokens` is a batch of its own or
    shares one that is over. beside: rows, by their numbers, that make no batches of their own: they are spread over
    those that the others make. processes: how many share every batch, each with a row of it at least; `process` is this
    one, from 0.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_tokens: int,
        seed: int | None,
        *,
        beside: Collection[int] = (),
        processes: int = 1,
        process: int = 0,
    ) -> None:
        self.lengths = lengths
        self.beside = frozenset(beside)
        self.processes, self.process = processes, process
        tokens = sum(lengths) - sum(lengths[number] for number in self.beside)
        self.count = max(1, min((len(lengths) - len(self.beside)) // processes, -(-tokens // batch_tokens)))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which order comes next; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.lengths)))
        if self.seed is not None:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        order.sort(key=lambda row: row in self.beside)
        batches: list[list[int]] = [[] for _ in range(self.count)]
        tokens = [0] * self.count
        for row in order:  # each row to the batch that has the fewest tokens so far: sizes stay close
            lightest = tokens.index(min(tokens))
            batches[lightest].append(row)
            tokens[lightest] += self.lengths[row]
        for batch in batches:
            while len(batch) < self.processes:
                batch.append(max(batches, key=len).pop())
        return iter([batch[self.process :: self.processes] for batch in batches])


class PackedRows:
    """
    Rows that are packed into batches. Those that are kept (keeping.py) do not begin as the others do: they stand last
    in a batch, each by itself.

    trunk: the hidden states to begin from instead of token ids, where the lower layers were computed before.
    kept: what the base model says of the rows that are kept.
    reference: (rows, 2), log-probabilities of pairs' answers before training; see preference.py.
    """

    def __init__(self, rows: Sequence[TokenRow | Branched], shared: int, trunk: Trunk | None = None) -> None:
        self.rows = rows
        self.shared = shared
        self.trunk = trunk
        self.kept: Kept | None = None
        self.reference: Any = None
        self.lengths = [row.tokens if row.kept else row.tokens - shared for row in rows]

    @property
    def kept_rows(self) -> list[int]:
        """The numbers of the rows that are kept."""
        return [number for number, row in enumerate(self.rows) if row.kept]

    @property
    def own_lengths(self) -> list[int]:
        """The lengths of the rows that are not kept."""
        return [length for length, row in zip(self.lengths, self.rows, strict=True) if not row.kept]

    def step(self, numbers: Sequence[int], part_tokens: int) -> list[dict[str, Any]]:
        """
        The batches of one step: its rows in parts of at most `part_tokens` tokens, the shared ones not counted, or of
        one row that has more. A part's loss counts by its share of the step: gradients add up to those of one batch.
        """
        parts: list[list[int]] = []
        room = 0
        for number in numbers:
            room -= self.lengths[number]
            if room < 0 or not parts:
                parts.append([])
                room = part_tokens - self.lengths[number]
            parts[-1].append(number)
        batches = [self.batch(part) for part in parts]
        answers = [length for batch in batches for length in batch["answers"]]
        kept = sum(batch["step_kept"] for batch in batches)
        return [{**batch, "step_answers": answers, "step_kept": kept} for batch in batches]

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """
        The model's inputs for these rows, and what `expected_of` takes from them. T tokens, L learned ones.

        input_ids (1, T) or inputs_embeds (1, T, hidden); position_ids (1, T); logits_to_keep (L,) positions whose
        logits are wanted; shared_tokens and row_tokens as lengths; rows_apart: how many of the last rows do not
        continue the shared tokens. targets (L,) the tokens that should be predicted; answers: the learned tokens of
        each answer; rows: the numbers; step_answers: as answers, of the whole step; step_kept: how many of those are
        of rows that are kept.
        """
        numbers = sorted(numbers, key=lambda number: self.rows[number].kept)
        apart = sum(self.rows[number].kept for number in numbers)
        shared = self.shared if apart < len(numbers) else 0
        ids = list(self.rows[numbers[0]].ids[:shared])
        positions = list(range(shared))
        keep: list[int] = []
        targets: list[int] = []
        answers: list[int] = []
        pieces: list[tuple[int, ...]] = []
        for number in numbers:
            row = self.rows[number].layout(0 if self.rows[number].kept else shared)
            keep += [len(ids) + place for place in row.predictors]
            ids += row.ids
            positions += row.positions
            targets += row.targets
            answers += row.answers
            pieces.append(row.pieces)
        batch: dict[str, Any] = {
            "position_ids": torch.tensor([positions]),
            "logits_to_keep": torch.tensor(keep),
            "shared_tokens": shared,
            "row_tokens": pieces,
            "rows_apart": apart,
            "targets": torch.tensor(targets),
            "answers": answers,
            "rows": list(numbers),
            "step_answers": answers,
            "step_kept": sum(answers[len(answers) - apart :]),
        }
        if self.trunk is None:
            return {"input_ids": torch.tensor([ids]), **batch}
        return {"inputs_embeds": self.trunk.hidden(numbers, shared), **batch}


class Expected(NamedTuple):
    """
    What a batch should give: targets (L,), the learned tokens of each answer, the numbers of its rows; of the whole
    step, which it may be a part of, the learned tokens of each answer, and how many of them are of rows that are kept.
    """

    targets: torch.Tensor
    answers: list[int]
    rows: list[int]
    step_answers: list[int]
    step_kept: int


def expected_of(batch: dict[str, Any]) -> tuple[dict[str, Any], Expected]:
    """A batch's inputs to the model, and what is expected of it."""
    inputs = {name: value for name, value in batch.items() if name not in Expected._fields}
    return inputs, Expected(*(batch[name] for name in Expected._fields))


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Causal attention in each row of a packed batch, over the shared tokens and its own.

    query (1, heads, T, dim), key and value (1, key heads, T, dim); returns (1, T, heads, dim), as transformers'
    AttentionInterface asks. row_tokens: for each row the lengths of its pieces, a stem and any branches. A row, or a
    branch, is computed behind its own copy of the queries before it, whose results are dropped but for the first's:
    some work more, but the plain causal kernel.
    """
    if (rollout := kwargs.pop("rollout", None)) is not None:  # answers are being sampled: reinforcement/rollout.py
        return rollout.attend(module, query, key, value, scaling, **kwargs)
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or dropout:
        raise InvalidInput("this base model's attention (soft cap, sinks or dropout) cannot be trained packed yet")
    shared, rows = kwargs["shared_tokens"], kwargs["row_tokens"]
    window = kwargs.get("sliding_window")
    grouped = query.shape[1] != key.shape[1]
    # One split, not a slice a row: the gradient of a slice is a whole tensor of zeros, that of a split is one copy.
    sizes = [shared, *(length for pieces in rows for length in pieces)]
    queries, keys, values = (states.split(sizes, dim=2) for states in (query, key, value))
    outputs: list[torch.Tensor] = []
    for path, known in _paths(shared, rows, kwargs.get("rows_apart", 0)):
        row_query, row_key, row_value = (
            torch.cat([split[piece] for piece in path], dim=2) for split in (queries, keys, values)
        )
        mask = None
        total = row_query.shape[2]
        if window is not None and window < total:
            place = torch.arange(total, device=query.device)
            distance = place[:, None] - place[None, :]
            mask = (distance >= 0) & (distance < window)
        # What several sequences begin with would be kept for each of them.
        if mask is None and total <= SHORT and 2 * known <= total and query.device.type == "cpu":
            factor = query.shape[3] ** -0.5 if scaling is None else scaling
            result = BlockAttention.apply(row_query, row_key, row_value, factor)
        else:
            result = scaled_dot_product_attention(
                row_query, row_key, row_value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        outputs.append(result[:, :, known:])
    return torch.cat(outputs, dim=2).transpose(1, 2), None


class BlockAttention(torch.autograd.Function):
    """
    Causal attention of one sequence: the queries in blocks, each with the keys up to its end, by plain products of
    matrices; the weights are kept for the gradient.

    PyTorch's kernel for a CPU keeps no weights and takes twice the time, gradient included (docs/log.md).
    Shapes: query and key (1, heads or key heads, T, dim), value (1, key heads, T, its dim); the result is (1, heads, T,
    its dim).
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, scaling: float) -> Any:
        """The weighted sums of `value`."""
        heads, tokens = query.shape[1:3]
        result = query.new_empty(1, heads, tokens, value.shape[3])
        kept = []
        for start in range(0, tokens, BLOCK):
            end = min(start + BLOCK, tokens)
            size = end - start
            scores = torch.bmm(_by_key(query, key, start, end), key[0, :, :end].transpose(1, 2)).mul_(scaling)
            later = torch.full((size, size), float("-inf"), dtype=query.dtype).triu_(1)
            scores.view(heads, size, end)[:, :, start:].add_(later)
            kept.append(scores.softmax(-1))
            result[0, :, start:end] = torch.bmm(kept[-1], value[0, :, :end]).view(heads, size, -1)
        ctx.save_for_backward(query, key, value, result, *kept)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """The gradients of query, key and value."""
        query, key, value, result, *kept = ctx.saved_tensors
        heads, tokens = query.shape[1:3]
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key[0]), torch.zeros_like(value[0])
        shares = (gradient * result).sum(-1, keepdim=True)
        for weights, start in zip(kept, range(0, tokens, BLOCK), strict=True):
            end = min(start + BLOCK, tokens)
            above = _by_key(gradient, key, start, end)
            of_value[:, :end].baddbmm_(weights.transpose(1, 2), above)
            of_scores = torch.bmm(above, value[0, :, :end].transpose(1, 2))
            of_scores.sub_(_by_key(shares, key, start, end)).mul_(weights).mul_(ctx.scaling)
            of_query[0, :, start:end] = torch.bmm(of_scores, key[0, :, :end]).view(heads, end - start, -1)
            of_key[:, :end].baddbmm_(of_scores.transpose(1, 2), _by_key(query, key, start, end))
        return of_query, of_key[None], of_value[None], None


def _by_key(states: torch.Tensor, key: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """A block of (1, heads, T, n) as (key heads, its heads' rows behind one another, n)."""
    return states[0, :, start:end].reshape(key.shape[1], -1, states.shape[3])


def _paths(shared: int, rows: Sequence[tuple[int, ...]], apart: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """
    The pieces of each sequence, numbered from 0, the shared one; and how many of its tokens came before. The last
    `apart` rows are of one piece.
    """
    stem, known = 1, 0
    together = len(rows) - apart
    for pieces in rows[:together]:
        for branch in range(1, max(2, len(pieces))):
            yield (0, stem) if len(pieces) == 1 else (0, stem, stem + branch), known
            known = shared + pieces[0]
        stem, known = stem + len(pieces), shared
    yield from (((piece,), 0) for piece in range(stem, stem + apart))


def register_attention() -> str:
    """Make `packed_attention` known to transformers; returns the name to load a model with."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    return ATTENTION
