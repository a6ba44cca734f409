"""
Rows that belong together, and the split that never parts them.

Rows belong to one group when they ask nearly the same (near.py), name the same `source`, or answer from the same
passage: what was learned from one would be asked of the other, and a held-out score would praise memory. Groups join:
a row with two passages joins the rows of both.

A group is held out when the hash of its first row and the seed falls into the first `share` of all hashes. So rows that
are appended to a file move no earlier row, with two exceptions, which cannot be avoided: a new row that joins two
groups takes the later one to the side of the earlier one, and a group that was too large to be held out (more rows than
`share` of all) may come in once the file has grown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ryorin.digests import digest_of
from ryorin.prompt import PromptPassage, cited_numbers
from ryorin_train.data import Example, Row
from ryorin_train.datasets.near import Components, near_pairs

LEAST_ROWS = 10  # of a dataset from which on at least one group is held out


@dataclass(frozen=True)
class Split:
    """Indexes of rows in their order: `training`, `held_out`, and of each row `group`, the index of its first row."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]
    group: tuple[int, ...]

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(set(self.group))


def question_of(row: Row) -> str:
    """All that the users of a row ask, a line each; all its messages where none is a user's."""
    asked = [message["content"] for message in row.messages if message["role"] == "user"]
    return "\n".join(asked or [message["content"] for message in row.messages])


def answers_of(row: Row) -> tuple[str, ...]:
    """The answers that are learned; of a preference the better one, of a rating the one rated, of a task none."""
    if not isinstance(row, Example):
        return row.answers[:1]
    pairs = zip(row.messages, row.learned, strict=True)
    return tuple(message["content"] for message, learned in pairs if learned)


def used_passages(row: Row) -> list[PromptPassage]:
    """The passages that a row's answers cite; its only passage where they cite by no number."""
    given = row.passages or ()
    cited = dict.fromkeys(number for answer in answers_of(row) for number in cited_numbers(answer, len(given)))
    return [given[number - 1] for number in cited] or (list(given) if len(given) == 1 else [])


def group_rows(rows: Sequence[Row], on_row: Callable[[int, int], None] = lambda done, total: None) -> list[int]:
    """For each row the index of its group's first row."""
    from ryorin_index.folds import fold_key

    components = Components(len(rows))
    for later, earlier in near_pairs([question_of(row) for row in rows], on_text=on_row):
        components.join(later, earlier)
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        keys = [("passage", fold_key(passage.title, passage.text)) for passage in used_passages(row)]
        if row.source is not None:
            keys.append(("source", row.source))
        for key in keys:
            components.join(number, first.setdefault(key, number))
    return [components.first(number) for number in range(len(rows))]


def split_rows(rows: Sequence[Row], share: float, seed: int) -> Split:
    """
    The rows parted into those to train on and those held out, by groups.

    Of ten rows or more in at least two groups at least one is held out; at least one is always left for training.
    """
    group = group_rows(rows)
    sizes: dict[int, int] = {}
    for first in group:
        sizes[first] = sizes.get(first, 0) + 1
    places = {first: int(digest_of([seed, rows[first].content])[:16], 16) / 16**16 for first in sizes}
    fitting = [first for first in sizes if sizes[first] <= max(1, share * len(rows))]
    held = {first for first in fitting if places[first] < share}
    if share > 0 and not held and len(rows) >= LEAST_ROWS and len(sizes) > 1:
        held = {min(fitting or [min(sizes, key=lambda first: (sizes[first], places[first]))], key=lambda f: places[f])}
    if len(held) == len(sizes):
        held.discard(max(held, key=lambda first: places[first], default=0))
    return Split(
        tuple(number for number, first in enumerate(group) if first not in held),
        tuple(number for number, first in enumerate(group) if first in held),
        tuple(group),
    )
