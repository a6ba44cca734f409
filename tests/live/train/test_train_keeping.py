"""General texts that are kept: against the plain computation, and as a command on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily
from tiny import chat, left_in

from ryorin_train.general_texts import WEIGHT, kept_rows
from ryorin_train.recipe import Recipe
from ryorin_train.render import TokenRow

torch = Lazily("torch")

TARGETS = ("q_proj", "v_proj", "up_proj")


def rows_of(*lengths: tuple[int, bool]) -> list[TokenRow]:
    """Rows of these lengths that begin alike; those that are kept count from their second token on."""
    chance = torch.Generator().manual_seed(0)
    rows = []
    for length, kept in lengths:
        ids = (3, 4, *torch.randint(3, 200, (length,), generator=chance).tolist())
        learned = tuple(place > (0 if kept else length // 2) for place in range(len(ids)))
        rows.append(TokenRow(ids, learned, kept))
    return rows


def loaded(path: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, attn_implementation=attention).eval()


@pytest.mark.parametrize("layers", [None, 1])
def test_loss_and_gradients_are_those_of_a_plain_computation(
    tiny_base: Path, tokenizer: Any, tmp_path: Path, layers: int | None
) -> None:
    from peft import LoraConfig, get_peft_model

    from ryorin_train.keeping import compute_kept
    from ryorin_train.packing import PackedRows, register_attention, shared_tokens
    from ryorin_train.training import build_trainer, lora_config
    from ryorin_train.trunk import compute_trunk, skipped_layers

    rows = rows_of((9, False), (7, True), (12, False), (5, True), (6, True), (4, False))
    recipe = Recipe(rank=8, alpha=16, targets=TARGETS, layers=layers, batch_tokens=60)
    config = lora_config(recipe, 3, tiny_base)
    skipped = 3 - (layers or 3)

    model, packed = loaded(tiny_base, register_attention()), PackedRows(rows, shared_tokens(rows))
    assert packed.shared == 2  # of those that are not kept
    packed.trunk = compute_trunk(model, skipped, packed, 100, lambda _: None) if skipped else None
    with skipped_layers(model, skipped):
        packed.kept = compute_kept(model, packed, batch_tokens=12)
    ours = build_trainer(model, tokenizer, packed, None, recipe, config, steps=1, folder=tmp_path)
    torch.manual_seed(1)
    for name, parameter in ours.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with skipped_layers(ours.model, skipped):
        loss = torch.zeros(())
        for part in packed.step([3, 0, 4, 5, 1, 2], part_tokens=18):  # in parts: with and without kept rows, or of both
            one = ours.compute_loss(ours.model, part)
            one.backward()
            loss += one.detach()

    plain = get_peft_model(loaded(tiny_base, "sdpa"), LoraConfig(**config))
    weights = {name: value for name, value in ours.model.state_dict().items() if "lora_" in name}
    plain.load_state_dict(weights, strict=False)
    total, learned_tokens = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row.ids])
        learned = torch.tensor(row.learned)[1:]
        told = plain(ids).logits[0, :-1][learned].log_softmax(-1)
        if row.kept:
            with plain.disable_adapter(), torch.no_grad():
                base = plain(ids).logits[0, :-1][learned].softmax(-1)
            total = total + WEIGHT * (base * (base.log() - told)).sum()
        else:
            total = total - told.gather(1, ids[0, 1:][learned][:, None]).sum()
            learned_tokens += int(learned.sum())
    (total / learned_tokens).backward()

    assert loss.item() == pytest.approx(total.item() / learned_tokens, rel=1e-5)
    wanted, got = (
        {name: p.grad for name, p in one.named_parameters() if p.grad is not None} for one in (plain, ours.model)
    )
    assert wanted.keys() == got.keys() and wanted
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name


def test_what_the_base_model_says_is_kept(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path, tiny_base: Path, tokenizer: Any
) -> None:
    """An adapter that learns to say one thing says it everywhere, unless general texts are kept."""
    from peft import PeftModel

    data = write_rows([chat(f"Is {number} even?", "YES YES YES") for number in range(40)])
    texts = [replace(row, kept=False) for row in kept_rows(tokenizer, 60, seed=5, max_row_tokens=500)]
    words = ("train", "sft", "--tenant", tenant, "--data", data, "--epochs", "6", "--rank", "8", "--alpha", "512")
    words += ("--batch-tokens", "400", "--learning-rate", "0.005", "--max-row-tokens", "500", "--held-out", "0")
    moved, curves, manifests = [], [], []
    for count in (0, 60):
        ran = cli(*words, "--keep-general", count, "--seed", "5", "--json")
        assert ran.code == 0, ran.err
        folder = home / "adapters" / json.loads(ran.out)["adapter"]
        manifests.append(json.loads((folder / "manifest.json").read_text()))
        curves.append([json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()])
        model = PeftModel.from_pretrained(loaded(tiny_base, "sdpa"), str(folder))
        total, tokens = 0.0, 0
        for row in texts:
            ids = torch.tensor([row.ids])
            with torch.no_grad():
                told = model(ids).logits[0].log_softmax(-1)
                with model.disable_adapter():
                    base = model(ids).logits[0].log_softmax(-1)
            total += float((base.exp() * (base - told)).sum())
            tokens += len(row.ids)
        moved.append(total / tokens)
    assert 0 < moved[1] < moved[0]
    assert [manifest["data"]["trained"] for manifest in manifests] == [40, 40]
    assert [manifest["recipe"].get("keep_general") for manifest in manifests] == [None, 60]
    assert [manifest.get("general_texts", {}).get("rows") for manifest in manifests] == [None, 60]
    told = [[line["train_base_divergence"] for line in curve if "train_base_divergence" in line] for curve in curves]
    assert not told[0] and told[1][0] == pytest.approx(0, abs=1e-6) and max(told[1]) > 0.001
    assert "60 general texts to keep" in ran.err


def test_it_is_the_base_model_that_is_kept_not_the_start(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path
) -> None:
    words = ["train", "sft", "--tenant", tenant, "--batch-tokens", "400", "--rank", "8", "--max-row-tokens", "500"]
    words += ["--epochs", "3", "--held-out", "0", "--json", "--learning-rate", "0.01", "--data"]
    first = cli(*words, write_rows([chat(f"Is {number} even?", "YES YES YES") for number in range(40)]))
    assert first.code == 0, first.err
    data = write_rows([chat(f"Is {number} odd?", "NO") for number in range(8)])
    start = json.loads(first.out)["adapter"]
    ran = cli(*words, data, "--start-from", start, "--keep-general", "8")
    assert ran.code == 0, ran.err
    curve = (home / "adapters" / json.loads(ran.out)["adapter"] / "loss.jsonl").read_text().splitlines()
    assert json.loads(curve[0])["train_base_divergence"] > 0.001


def test_a_base_model_that_changes_its_logits_is_refused(tiny_base: Path) -> None:
    from ryorin.errors import InvalidInput
    from ryorin_train.keeping import compute_kept
    from ryorin_train.packing import PackedRows, register_attention

    model = loaded(tiny_base, register_attention())
    plain = model.forward

    def scaled(**inputs: Any) -> Any:
        given = plain(**inputs)
        given.logits = given.logits / 8
        return given

    model.forward = scaled
    rows = rows_of((9, False), (7, True))
    with pytest.raises(InvalidInput, match="changes what its head gives"):
        compute_kept(model, PackedRows(rows, 2), 100)


def test_more_texts_than_there_are_and_other_methods_are_refused(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path
) -> None:
    data = write_rows([chat("Is 2 even?", "YES"), chat("Is 3 even?", "NO")])
    ran = cli("train", "sft", "--tenant", tenant, "--data", data, "--keep-general", "100000")
    assert ran.code == 2 and "keep_general is 100000; it must be 0 to 640" in ran.err
    ran = cli("train", "sft", "--tenant", tenant, "--data", data, "--keep-general", "640", "--max-row-tokens", "90")
    assert ran.code == 2 and "of the general texts" in ran.err and "the limit is 90" in ran.err
    asked = {"messages": [{"role": "user", "content": "q"}]}
    answers = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    data = write_rows([{"input": asked, "preferred_output": answers[0], "non_preferred_output": answers[1]}])
    ran = cli("train", "sweep", "--method", "dpo", "--tenant", tenant, "--data", data, "--keep-general", "5")
    assert ran.code == 2 and "beside examples alone (sft): leave it out" in ran.err
    ran = cli("train", "kto", "--tenant", tenant, "--data", data, "--keep-general", "1")
    assert ran.code == 2 and "No such option" in ran.err
    assert not left_in(home, "adapters")
