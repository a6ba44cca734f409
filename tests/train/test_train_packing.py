"""Packing, the trunk and the fused layer change the time, not the maths: each against the padded, plain computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lazily import Lazily
from tiny import PROMPT

from ryorin.prompt import PromptPassage
from ryorin_train.data import Example
from ryorin_train.recipe import PreferenceRecipe, Recipe
from ryorin_train.render import Renderer, TokenPair, TokenRow

torch = Lazily("torch")
fused_lora = Lazily("ryorin_train.fused_lora")
packing = Lazily("ryorin_train.packing")
trunk = Lazily("ryorin_train.trunk")


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[TokenRow]:
    renderer = Renderer(tokenizer, PROMPT, 1000)
    passage = PromptPassage("Numbers", "one, two and three")
    examples = [
        Example(
            number,
            ({"role": "user", "content": "why " * number}, {"role": "assistant", "content": "so " * (5 - number)}),
            (False, True),
            (passage,) * number if number else None,
        )
        for number in range(4)
    ]
    return renderer.rows("f", examples)


def load(path: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, attn_implementation=attention).eval()


def adapted(path: Path, attention: str, *, layers: list[int] | None = None) -> Any:
    """The tiny model with LoRA weights that are not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=layers)
    model = get_peft_model(load(path, attention), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def padded_loss(model: Any, rows: list[TokenRow]) -> Any:
    """The mean loss of the learned tokens, one row after another: the definition."""
    total: Any = 0.0
    for row in rows:
        ids = torch.tensor([row.ids])
        labels = ids.masked_fill(~torch.tensor([row.learned]), -100)
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
    return total / sum(sum(row.learned) for row in rows)


def packed_loss(model: Any, packed: Any, numbers: list[int]) -> Any:
    batch = packed.batch(numbers)
    targets = batch.pop("targets")
    logits = model(**batch, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, targets)


def gradients(model: Any) -> dict[str, Any]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_packed_logits_are_those_of_each_row_alone(tiny_base: Path, rows: list[TokenRow]) -> None:
    plain, packed_model = load(tiny_base, "sdpa"), load(tiny_base, packing.register_attention())
    packed = packing.PackedRows(rows, packing.shared_tokens(rows))
    assert packed.shared > 20
    batch = packed.batch([2, 0, 3, 1])
    with torch.no_grad():
        together = packed_model(**{k: v for k, v in batch.items() if k != "targets"}, use_cache=False).logits[0]
        alone = []
        for number in (2, 0, 3, 1):
            logits = plain(input_ids=torch.tensor([rows[number].ids])).logits[0, :-1]
            alone.append(logits[torch.tensor(rows[number].learned[1:])])
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert batch["targets"].tolist() == [
        token
        for number in (2, 0, 3, 1)
        for token, learned in zip(rows[number].ids, rows[number].learned, strict=True)
        if learned
    ]


@pytest.mark.parametrize("shared", [0, 5, None])
def test_packed_gradients_are_the_padded_ones(tiny_base: Path, rows: list[TokenRow], shared: int | None) -> None:
    plain, packed_model = adapted(tiny_base, "sdpa"), adapted(tiny_base, packing.register_attention())
    assert fused_lora.fuse_lora(packed_model) == 9
    expected = padded_loss(plain, rows)
    expected.backward()
    packed = packing.PackedRows(rows, packing.shared_tokens(rows) if shared is None else shared)
    loss = packed_loss(packed_model, packed, [0, 1, 2, 3])
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted, got = gradients(plain), gradients(packed_model)
    assert wanted.keys() == got.keys()
    assert len(wanted) == 18
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name


def test_the_trunk_changes_nothing_and_leaves_the_model_as_it_was(tiny_base: Path, rows: list[TokenRow]) -> None:
    plain = adapted(tiny_base, "sdpa", layers=[2])
    packed_model = adapted(tiny_base, packing.register_attention(), layers=[2])
    expected = padded_loss(plain, rows)
    expected.backward()
    packed = packing.PackedRows(rows, packing.shared_tokens(rows))
    shares: list[float] = []
    packed.trunk = trunk.compute_trunk(packed_model.get_base_model(), 2, packed, 200, shares.append)
    assert shares[-1] == 1.0
    layers = list(trunk.decoder_layers(packed_model))
    names = list(packed_model.state_dict())
    with trunk.skipped_layers(packed_model, 2):
        assert list(trunk.decoder_layers(packed_model)) != layers
        packed_loss(packed_model, packed, [3, 1, 0, 2]).backward()
    assert list(trunk.decoder_layers(packed_model)) == layers
    assert list(packed_model.state_dict()) == names
    wanted, got = gradients(plain), gradients(packed_model)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name


def test_a_sliding_window_is_kept() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 4) for _ in range(3))
    result, _ = packing.packed_attention(
        None, query, key, value, None, shared_tokens=2, row_tokens=[(4,), (3,)], sliding_window=3
    )
    places = [0, 1, 6, 7, 8]  # the second row behind the shared tokens
    row = [states[:, :, places] for states in (query, key, value)]
    distance = torch.arange(5)[:, None] - torch.arange(5)[None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(*row, attn_mask=(distance >= 0) & (distance < 3))
    assert torch.allclose(result.transpose(1, 2)[:, :, 6:], expected[:, :, 2:], atol=1e-6)


def test_attention_that_would_be_wrong_is_refused() -> None:
    states = torch.zeros(1, 1, 2, 4)
    for field in ({"softcap": 50.0}, {"s_aux": states}):
        with pytest.raises(ValueError, match="cannot be trained packed"):
            packing.packed_attention(None, states, states, states, None, shared_tokens=0, row_tokens=[(2,)], **field)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(16, 1000), st.integers(0, 3))
def test_batches_hold_every_row_once_in_another_order_each_epoch(lengths: list[int], size: int, seed: int) -> None:
    batches = packing.TokenBatches(lengths, size, seed)
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(found)
        assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
        totals = [sum(lengths[row] for row in batch) for batch in found]
        assert max(totals) - min(totals) <= max(lengths)
        epochs.append(found)
    if len(lengths) > 20:
        assert epochs[0] != epochs[1]


@example([2, 2, 2, 3], 2)  # 4.5 tokens a step
@given(st.lists(st.integers(2, 300), min_size=1, max_size=80), st.integers(1, 100))
def test_steps_of_so_many_rows_are_no_more_than_that_makes(lengths: list[int], batch_rows: int) -> None:
    tokens = Recipe(batch_rows=batch_rows).step_tokens(lengths)
    assert len(packing.TokenBatches(lengths, tokens, 0)) <= -(-len(lengths) // batch_rows)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(0, 80), st.integers(16, 1000))
def test_rows_beside_the_others_are_spread_over_their_batches(lengths: list[int], beside: int, size: int) -> None:
    alone = packing.TokenBatches(lengths, size, 1)
    numbers = range(len(lengths), len(lengths) + beside)
    found = list(packing.TokenBatches([*lengths, *[50] * beside], size, 1, beside=numbers))
    assert len(found) == len(alone)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths) + beside))
    assert all(any(row < len(lengths) for row in batch) for batch in found)


@pytest.mark.parametrize("chosen_weight", [None, 0.5])
def test_the_parts_of_a_step_add_up_to_its_loss_and_gradients(
    tiny_base: Path, tokenizer: Any, tmp_path: Path, rows: list[TokenRow], chosen_weight: float | None
) -> None:
    """chosen_weight: of preference pairs; None for rows to imitate."""
    from ryorin_train.training import build_trainer, lora_config

    found = []
    for longest, parts in ((100_000, 1), (100, 4)):
        shape: Any = {"rank": 8, "alpha": 16, "max_row_tokens": longest}
        data: list[Any] = rows
        recipe = Recipe(**shape)
        if chosen_weight is not None:
            data = [TokenPair(row.ids[:-4], row.ids[-4:], row.ids[-6 - n : -3]) for n, row in enumerate(rows)]
            recipe = PreferenceRecipe(**shape, chosen_weight=chosen_weight)
        packed = packing.PackedRows(data, packing.shared_tokens(data))
        model = load(tiny_base, packing.register_attention())
        config = lora_config(recipe, 3, tiny_base)
        torch.manual_seed(0)
        trainer = build_trainer(model, tokenizer, packed, None, recipe, config, 1, tmp_path)
        trainer.current_gradient_accumulation_steps = 1  # what `train` would set
        trainer.prepare()
        chance = torch.Generator().manual_seed(1)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:  # zeros at first, which would make half of the gradients zero
                weight.data.normal_(0.0, 0.1, generator=chance)
        step = packed.step([2, 0, 3, 1], recipe.part_tokens)
        assert len(step) == parts
        assert [number for part in step for number in part["rows"]] == [2, 0, 3, 1]
        loss = trainer.training_step(trainer.model, step)
        found.append((loss.item(), gradients(trainer.model), {k: sum(v) for k, v in trainer._metrics["train"].items()}))
    (whole_loss, whole, whole_metrics), (loss, got, metrics) = found
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert metrics == pytest.approx(whole_metrics, rel=1e-5) and metrics
    assert whole.keys() == got.keys() and len(got) == 42
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0 and torch.allclose(gradient, got[name], atol=1e-6, rtol=1e-4), name
