"""The hyperparameters of a run. Every default is written here once; the command line reads it from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.training import GENERAL_TEXTS


@dataclass(frozen=True)
class Recipe:
    """
    How an adapter is trained.

    epochs: passes over the training rows.
    rank, alpha: of LoRA (https://arxiv.org/abs/2106.09685); what is added is scaled by alpha / rank.
    targets: the linear modules that are adapted, in every adapted layer.
    rslora: scale by alpha / sqrt(rank) instead, so that larger ranks learn as fast (https://arxiv.org/abs/2312.03732).
    qlora: keep the base model in 4 bits (NF4) while training, on a GPU (https://arxiv.org/abs/2305.14314); it is served
    in its own precision.
    layers: how many of the uppermost layers are adapted; None for all. The layers below are computed once a run.
    learning_rate: its peak; it rises over `warmup` of the steps and falls to zero along a cosine.
    batch_tokens: tokens of one step, counted without the beginning that all prompts share.
    batch_rows: rows of one step, on average, instead; None goes by tokens.
    weight_decay, max_grad_norm: of AdamW and of clipping.
    held_out: share of the rows that is never trained on.
    max_row_tokens: the longest row that is accepted, prompt and answer together.
    seed: of the held-out choice, the adapter's first weights and the order of rows.
    keep_general: how many general texts (general_texts.py) stand beside the training rows, on which the model is held
    to what the base model says; for examples alone. They are spread over the steps that the rows make.
    patience: end when the held-out rows were not answered better for so many epochs, and keep the best epoch's weights
    (quality.py); None for all epochs and the last one's.
    """

    epochs: int = 3
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rslora: bool = False
    qlora: bool = False
    layers: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.05
    batch_tokens: int = 1024
    batch_rows: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    held_out: float = 0.1
    max_row_tokens: int = 2048
    seed: int = 0
    keep_general: int = 0
    patience: int | None = None

    def __post_init__(self) -> None:
        _between("epochs", self.epochs, 1, 1000)
        _between("alpha", self.alpha, 1, 4096)
        _between("learning_rate", self.learning_rate, 1e-8, 1.0)
        _between("warmup", self.warmup, 0.0, 0.9)
        _between("batch_tokens", self.batch_tokens, 16, 1_000_000)
        _between("held_out", self.held_out, 0.0, 0.5)
        _between("max_row_tokens", self.max_row_tokens, 16, 1_000_000)
        _between("seed", self.seed, 0, 2**31 - 1)
        _between("keep_general", self.keep_general, 0, GENERAL_TEXTS)
        if self.keep_general and type(self) is not Recipe:
            raise InvalidInput(
                f"keep_general is {self.keep_general}; general texts can stand beside examples alone (sft): leave it "
                "out",
                param="keep_general",
            )
        if self.patience is not None:
            _between("patience", self.patience, 1, 1000)
        if self.batch_rows is not None:
            _between("batch_rows", self.batch_rows, 1, 10_000)
        if self.layers is not None:
            _between("layers", self.layers, 1, 10_000)

    def step_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens of one step over rows of these lengths. Of `batch_rows` rounded up, so that no step is added."""
        if self.batch_rows is None:
            return self.batch_tokens
        return -(-self.batch_rows * sum(lengths) // len(lengths))

    @property
    def part_tokens(self) -> int:
        """
        How many tokens of a step are in memory at once, counted like `batch_tokens`: those of the longest row, which
        must find room anyway. The gradients of a larger step add up over its parts.
        """
        return self.max_row_tokens

    def spec(self) -> dict[str, Any]:
        """The JSON form that is kept in the manifest and digested; without what is switched off."""
        spec = {**asdict(self), "targets": sorted(self.targets)}
        # These came later: the digests of earlier runs stay what they are.
        for switch in ("rslora", "qlora", "patience", "keep_general"):
            if not spec[switch]:
                del spec[switch]
        return spec


@dataclass(frozen=True)
class PreferenceRecipe(Recipe):
    """
    How an adapter is trained on preference pairs, by DPO (https://arxiv.org/abs/2305.18290).

    beta: how strongly what the run starts from holds; smaller moves further away.
    chosen_weight: of the chosen answers' cross-entropy in the loss, which keeps them likely in themselves and not only
    likelier than the rejected ones; 0 for plain DPO.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    beta: float = 0.1
    chosen_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("beta", self.beta, 1e-4, 10.0)
        _between("chosen_weight", self.chosen_weight, 0.0, 100.0)


@dataclass(frozen=True)
class RatingRecipe(Recipe):
    """
    How an adapter is trained on ratings, by KTO (https://arxiv.org/abs/2402.01306).

    beta: how strongly what the run starts from holds; smaller moves further away.
    good_weight, bad_weight: of the loss of answers that were found good or bad; lambda_D and lambda_U of the paper.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("beta", self.beta, 1e-4, 10.0)
        _between("good_weight", self.good_weight, 0.0, 1000.0)
        _between("bad_weight", self.bad_weight, 0.0, 1000.0)


@dataclass(frozen=True)
class RewardRecipe(Recipe):
    """How a reward model is trained on preference pairs (Bradley-Terry, https://arxiv.org/abs/2203.02155, eq. 1)."""

    epochs: int = 1
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class ReinforcementRecipe(Recipe):
    """
    How an adapter is trained by its answers' grades (GRPO, reinforcement/policy.py).

    answers: to each prompt, which are compared with each other. batch_rows: prompts of a step.
    max_answer_tokens: an answer is cut off there. temperature: answers are taken, and learned from, at it.
    beta: how strongly what the run starts from holds; 0 does not hold.
    epsilon: how far one step may change a token's probability, as a share, before it stops being learned.
    iterations: how often answers are learned from before new ones are taken.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    batch_rows: int | None = 8
    answers: int = 8
    max_answer_tokens: int = 256
    temperature: float = 1.0
    beta: float = 0.0
    epsilon: float = 0.2
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _between("answers", self.answers, 2, 256)
        _between("max_answer_tokens", self.max_answer_tokens, 1, 100_000)
        _between("temperature", self.temperature, 0.1, 5.0)
        _between("beta", self.beta, 0.0, 10.0)
        _between("epsilon", self.epsilon, 0.01, 1.0)
        _between("iterations", self.iterations, 1, 16)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InvalidInput(f"{name} is {value}; it must be {low:g} to {high:g}", param=name)
