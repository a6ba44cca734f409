"""
Hyperparameters that nobody gave (`auto`): which value a run takes, and why, in one sentence each.

Ordinary data gets the recipe's own defaults (recipe.py). The rules here are for what is not ordinary: few rows, very
many, a start whose shape is given, a base model that reads less. They look at the rows as they were read, not at their
tokens, so that a run is known before a tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ryorin.digests import canonical_json
from ryorin_train.data import Rating, Row
from ryorin_train.recipe import PreferenceRecipe, RatingRecipe, Recipe, ReinforcementRecipe, RewardRecipe

# OpenAI's own rule for `n_epochs`: about 100 examples seen at least, 25,000 at most, 1 to 25 passes.
# https://developers.openai.com/cookbook/examples/chat_finetuning_data_prep
LEAST_SEEN, MOST_SEEN, MOST_EPOCHS = 100, 25_000, 25
LEAST_STEPS = 8  # of an epoch
LEAST_BATCH_TOKENS = 128
BYTES_OF_A_TOKEN = 4  # of UTF-8: English has about 4 a token, Japanese 3 a character
# The ratio of good to bad answers, each times its weight: https://arxiv.org/abs/2402.01306, section 4.2.
BALANCED = (1.0, 4 / 3)
SHAPE = ("rank", "alpha", "targets", "layers", "rslora")


@dataclass(frozen=True)
class Wanted:
    """A recipe that leaves things open. kind: which recipe. given: its fields that somebody decided."""

    kind: type[Recipe]
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A value that was chosen for a field of the recipe, and why."""

    name: str
    value: Any
    why: str


@dataclass(frozen=True)
class Facts:
    """
    What the choice goes by. rows: to learn from. own_bytes: of what is in them, without the tenant's prompt.
    window: tokens that the base model reads, None when it does not say. start: the fields of SHAPE of the adapter that
    training begins with, None without one. good: how many of the rows are ratings with a thumb up.
    """

    rows: int
    own_bytes: int
    window: int | None = None
    start: Mapping[str, Any] | None = None
    good: int = 0

    @property
    def own_tokens(self) -> int:
        """About how many tokens they are."""
        return self.own_bytes // BYTES_OF_A_TOKEN


def facts_of(rows: Sequence[Row], window: int | None, start: Mapping[str, Any] | None) -> Facts:
    """The facts of a dataset for a base model and a start."""
    good = sum(isinstance(row, Rating) and row.good for row in rows)
    return Facts(len(rows), sum(len(canonical_json(row.content).encode()) for row in rows), window, start, good)


def decide(wanted: Wanted, facts: Facts) -> tuple[Recipe, tuple[Choice, ...]]:
    """The whole recipe, and what was chosen for it. Raises InvalidInput for a given value that cannot be."""
    rules = RULES if facts.start is None else {**RULES, **{name: _of_the_start(name) for name in SHAPE}}
    choices = []
    for name, rule in rules.items():
        if name in wanted.given or not hasattr(wanted.kind, name):
            continue
        if name == "batch_tokens" and wanted.given.get("batch_rows", wanted.kind.batch_rows) is not None:
            continue  # a step's size is decided already
        value, why = rule(wanted.kind(), facts)
        choices.append(Choice(name, value, why))
    recipe = wanted.kind(**{**{choice.name: choice.value for choice in choices}, **wanted.given})
    return recipe, tuple(choices)


def _epochs(ordinary: Recipe, facts: Facts) -> tuple[int, str]:
    usual = ordinary.epochs
    if isinstance(ordinary, PreferenceRecipe | RatingRecipe | RewardRecipe):
        return usual, "preferences are soon learned by heart, and then pull the model from what it began with"
    if isinstance(ordinary, ReinforcementRecipe):
        return usual, "each prompt is answered several times in a pass"
    if facts.rows * usual < LEAST_SEEN:
        value = min(MOST_EPOCHS, -(-LEAST_SEEN // facts.rows))
        return value, f"{facts.rows} rows are few; so many passes show about {LEAST_SEEN} of them"
    if facts.rows * usual > MOST_SEEN:
        value = max(1, MOST_SEEN // facts.rows)
        return value, f"{facts.rows:,} rows are many; no more than {MOST_SEEN:,} need be shown, or one pass"
    return usual, "usual for examples: one pass leaves much unlearned, many learn them by heart"


def _learning_rate(ordinary: Recipe, facts: Facts) -> tuple[float, str]:
    if isinstance(ordinary, ReinforcementRecipe):
        return ordinary.learning_rate, "grades move a model that is right at times; smaller steps keep what it can do"
    if isinstance(ordinary, RewardRecipe):
        return ordinary.learning_rate, "a head of one score is new, and few pairs need it"
    if isinstance(ordinary, PreferenceRecipe | RatingRecipe):
        return ordinary.learning_rate, "preferences move a model that can do the task already; smaller steps keep that"
    return ordinary.learning_rate, "LoRA bears about ten times the rate of full training, and few steps need it"


def _batch_tokens(ordinary: Recipe, facts: Facts) -> tuple[int, str]:
    usual = ordinary.batch_tokens
    small = facts.own_tokens // LEAST_STEPS
    if small < usual:
        value = max(LEAST_BATCH_TOKENS, small)
        return value, f"the rows are about {facts.own_tokens:,} tokens; smaller steps make about {LEAST_STEPS} an epoch"
    return usual, "small steps learn most from each row, and one of this size keeps a processor busy"


def _max_row_tokens(ordinary: Recipe, facts: Facts) -> tuple[int, str]:
    usual = ordinary.max_row_tokens
    if facts.window is not None and facts.window < usual:
        return facts.window, f"the base model reads {facts.window} tokens"
    return usual, "longer rows take much memory; it only refuses rows, none is cut"


def _rank(ordinary: Recipe, facts: Facts) -> tuple[int, str]:
    return ordinary.rank, "enough for a format, a tone and judgement, which are small changes"


def _alpha(ordinary: Recipe, facts: Facts) -> tuple[int, str]:
    return ordinary.alpha, "scaled by alpha / rank, one learning rate fits all ranks"


def _weights(facts: Facts) -> tuple[float, float, str]:
    """Of good and of bad answers, and why."""
    bad = facts.rows - facts.good
    told = f"{facts.good} thumbs up, {bad} down"
    if not facts.good or not bad or BALANCED[0] <= facts.good / bad <= BALANCED[1]:
        return 1.0, 1.0, f"{told}: balanced"
    if facts.good < bad:
        return round(bad / facts.good, 4), 1.0, f"{told}: the fewer count as much in all"
    return 1.0, round(facts.good / bad / BALANCED[1], 4), f"{told}: the fewer count three quarters as much in all"


Rule = Callable[[Recipe, Facts], tuple[Any, str]]
RULES: dict[str, Rule] = {
    "epochs": _epochs,
    "learning_rate": _learning_rate,
    "batch_tokens": _batch_tokens,
    "max_row_tokens": _max_row_tokens,
    "rank": _rank,
    "alpha": _alpha,
    "good_weight": lambda _, facts: _weights(facts)[::2],
    "bad_weight": lambda _, facts: _weights(facts)[1:],
}


def _of_the_start(name: str) -> Rule:
    return lambda _, facts: ((facts.start or {})[name], "of the adapter that training begins with")


def said(choices: Sequence[Choice]) -> list[str]:
    """The choices as lines for a person."""
    return [f"auto: {choice.name.replace('_', ' ')} {_shown(choice.value)}: {choice.why}" for choice in choices]


def kept(choices: Sequence[Choice]) -> dict[str, dict[str, Any]]:
    """The choices as they stand in a manifest."""
    return {
        choice.name: {
            "value": list(choice.value) if isinstance(choice.value, tuple) else choice.value,
            "why": choice.why,
        }
        for choice in choices
    }


def _shown(value: Any) -> str:
    if value is None:
        return "all"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
