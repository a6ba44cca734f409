"""Products with frozen weights in bfloat16, and attention of short rows: as exact as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily

from ryorin.errors import InvalidInput

torch = Lazily("torch")
frozen = Lazily("ryorin_train.frozen")
fused_lora = Lazily("ryorin_train.fused_lora")
packing = Lazily("ryorin_train.packing")


def of_bfloat16(*shape: int) -> Any:
    """Random float32 values that bfloat16 has too."""
    return torch.randn(*shape).bfloat16().float()


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_rounds_what_it_multiplies_and_nothing_else(bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 64, bias=bias)
    plain.weight.data = of_bfloat16(64, 96)
    x, above = of_bfloat16(3, 5, 96), of_bfloat16(3, 5, 64)
    wanted_x, got_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = plain(wanted_x)
    wanted.backward(above)
    assert frozen.freeze_in_bfloat16(plain) == 1
    got = plain(got_x)
    got.backward(above)
    assert got.dtype == got_x.grad.dtype == torch.float32
    assert plain.weight.dtype == torch.bfloat16
    assert not plain.weight.requires_grad
    # What goes in is bfloat16 already: one rounding of the sum is left, half a unit in the eighth place.
    sums = wanted - (plain.bias if bias else 0.0)
    assert ((got - wanted).abs() <= sums.abs() * 2**-8 + 1e-5).all()
    assert torch.allclose(got_x.grad, wanted_x.grad, rtol=2**-8, atol=1e-5)


def test_a_head_gives_the_logits_of_float32_and_a_gradient_that_is_rounded() -> None:
    torch.manual_seed(0)
    head, plain = (torch.nn.Linear(32, 400, bias=False) for _ in range(2))
    head.weight.data = plain.weight.data = of_bfloat16(400, 32)
    x = torch.randn(7, 32)
    wanted_x, got_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    above = torch.randn(7, 400)
    wanted = plain(wanted_x)
    wanted.backward(above)
    assert frozen.freeze_head_in_bfloat16(head)
    got = head(got_x)
    got.backward(above)
    assert head.weight.dtype == torch.float32 and torch.equal(got, wanted)
    difference = (got_x.grad - wanted_x.grad).norm() / wanted_x.grad.norm()
    assert 0 < difference.item() < 2**-7
    head.weight.data[0, 0] += 1e-6
    assert not frozen.freeze_head_in_bfloat16(head)
    assert not frozen.freeze_head_in_bfloat16(None)


def test_weights_that_are_not_bfloat16_stay_as_they_are() -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)])
    before = layers[0].weight.data.clone()
    assert frozen.freeze_in_bfloat16(layers) == 0
    assert torch.equal(layers[0].weight, before)
    assert layers[0].weight.requires_grad


def test_lora_over_a_frozen_layer_has_the_gradients_of_float32_but_for_rounding() -> None:
    torch.manual_seed(0)
    x, weight, a, b, above = (of_bfloat16(*shape) for shape in ((40, 96), (64, 96), (8, 96), (64, 8), (40, 64)))
    found = []
    for kept in (weight, weight.bfloat16()):
        given = [each.clone().requires_grad_() for each in (x, a, b)]
        result = fused_lora.LoraLinear.apply(given[0], kept, None, *given[1:], 0.5)
        found.append((result, *torch.autograd.grad(result, given, above)))
    for wanted, got in zip(*found, strict=True):
        assert got.dtype == torch.float32
        assert ((got - wanted).norm() / wanted.norm()).item() < 2**-8


def test_bfloat16_is_for_processors_that_have_it_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, wanted in (({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=capabilities: has)
        monkeypatch.delenv(frozen.SWITCH, raising=False)
        assert frozen.wants_bfloat16() is wanted
        monkeypatch.setenv(frozen.SWITCH, "off")
        assert frozen.wants_bfloat16() is False
    monkeypatch.setenv(frozen.SWITCH, "0")
    with pytest.raises(InvalidInput, match="'0'; it must be on or off"):
        frozen.wants_bfloat16()


def test_a_base_of_bfloat16_is_multiplied_in_it_and_says_nearly_what_it_says_in_float32(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from ryorin_train.recipe import Recipe
    from ryorin_train.training import load_base
    from ryorin_train.trunk import decoder_layers

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_base).to(torch.bfloat16).save_pretrained(base)
    ids = torch.arange(3, 203).view(1, -1) % 250
    logits = []
    for has in (False, True):
        monkeypatch.setattr("ryorin_train.frozen.wants_bfloat16", lambda has=has: has)
        model = load_base(base, Recipe())
        kept = {weight.dtype for weight in decoder_layers(model).parameters()}
        assert kept == ({torch.float32, torch.bfloat16} if has else {torch.float32})
        with torch.no_grad():
            logits.append(model(input_ids=ids, shared_tokens=0, row_tokens=[(200,)], use_cache=False).logits)
    assert 0 < (logits[1] - logits[0]).abs().max() < 0.02 * logits[0].abs().max()


@pytest.mark.parametrize(("tokens", "key_heads"), [(1, 1), (7, 3), (128, 3), (129, 9), (300, 3)])
def test_attention_of_short_rows_is_pytorchs(tokens: int, key_heads: int) -> None:
    from torch.nn.functional import scaled_dot_product_attention

    torch.manual_seed(0)
    shapes = ((1, 9, tokens, 16), (1, key_heads, tokens, 16), (1, key_heads, tokens, 16))
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    above = torch.randn(shapes[0], dtype=torch.float64)
    plain = scaled_dot_product_attention(*given, is_causal=True, scale=0.3, enable_gqa=True)
    short = packing.BlockAttention.apply(*given, 0.3)
    assert torch.allclose(short, plain, atol=1e-12)
    for wanted, got in zip(
        torch.autograd.grad(plain, given, above), torch.autograd.grad(short, given, above), strict=True
    ):
        assert torch.allclose(got, wanted, atol=1e-12)
