"""Reward models on packed pairs: against TRL's own trainer, as a command on a tiny model, and refused as an adapter."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import chat

from ryorin_train.graders.grading import Sample
from ryorin_train.recipe import RewardRecipe
from ryorin_train.render import TokenPair

torch = pytest.importorskip("torch")

TARGETS = ("q_proj", "v_proj", "up_proj")


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": chosen}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }


def polite() -> list[dict[str, Any]]:
    return [pair(f"What is {n}?", f"It is {n}, madam.", f"{n}, obviously") for n in range(40)]


def random_pairs() -> list[TokenPair]:
    chance = random.Random(0)

    def some(low: int, high: int) -> list[int]:
        return [chance.randrange(3, 200) for _ in range(chance.randint(low, high))]

    start = some(20, 20)
    return [TokenPair((*start, *some(2, 9)), tuple(some(1, 9)), tuple(some(1, 9))) for _ in range(5)]


def test_loss_and_gradients_are_those_of_trl(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from ryorin_train.packing import PackedRows, shared_tokens
    from ryorin_train.training import build_trainer, load_base, lora_config

    pairs = random_pairs()
    recipe = RewardRecipe(rank=8, alpha=16, targets=TARGETS, batch_tokens=60)
    packed = PackedRows(pairs, shared_tokens(pairs))
    assert packed.shared == 20
    base = load_base(tiny_base, recipe)
    config = lora_config(recipe, 3, tiny_base)
    ours: Any = build_trainer(base, tokenizer, packed, None, recipe, config, steps=1, folder=tmp_path)
    for name, parameter in ours.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    loss = ours.compute_loss(ours.model, packed.batch([3, 0, 4, 1, 2]))
    loss.backward()

    torch.manual_seed(0)
    theirs = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(str(tiny_base), num_labels=1, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="SEQ_CLS", modules_to_save=["score"]
        ),
        args=RewardConfig(
            output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False
        ),
    )
    weights = dict(ours.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        parameter.data.copy_(weights[name])
    rows = [
        {"chosen_ids": [*each.prompt, *each.chosen], "rejected_ids": [*each.prompt, *each.rejected]} for each in pairs
    ]
    expected = theirs.compute_loss(theirs.model, theirs.data_collator([rows[number] for number in (3, 0, 4, 1, 2)]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(0.6931, abs=1e-3)
    wanted, got = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in (theirs.model, ours.model)
    )
    assert wanted.keys() == got.keys() and len(wanted) == 19  # LoRA of nine modules, and the head
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name


def test_a_reward_model_is_trained_scores_and_answers_nobody(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path, tokenizer: Any
) -> None:
    options = ("--tenant", tenant, "--batch-tokens", "400", "--rank", "8", "--learning-rate", "0.01", "--json")
    options += ("--max-row-tokens", "500")
    data = write_rows(polite())
    ran = cli("train", "reward", "--data", data, *options, "--epochs", "4", "--held-out", "0.2")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["metrics"]["held_out_accuracy"] == 1.0
    folder = home / "adapters" / result["adapter"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["data"]["rows"]) == ("reward", 40)
    curve = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert {"train_accuracy", "train_margin"} <= curve[0].keys() and curve[-1]["held_out_loss"] < 0.65
    files = {path.name for path in folder.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "loss.jsonl", "manifest.json"}

    from ryorin_train.reward import RewardModel

    base = next((home / "models").iterdir())
    model = RewardModel(base, folder)
    prompt = tuple(tokenizer("<|im_start|>user\nWhat is 99?<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    texts = ("It is 99, madam.", "99, obviously")
    answers = [(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    good, bad, alone = model(
        [Sample({}, "", prompt, answers[0]), Sample({}, "", prompt, answers[1]), Sample({}, "", prompt[1:], answers[0])]
    )
    assert good > bad and alone != good
    assert model([Sample({}, "", prompt, answers[1])])[0] == pytest.approx(bad, abs=1e-4)

    refused = cli("release", "create", "--tenant", tenant, "--adapter", result["adapter"])
    assert refused.code == 2 and "is a reward model" in refused.err, refused.err
    rows = write_rows([chat("a", "b")], "chat.jsonl")
    refused = cli("train", "sft", "--data", rows, *options, "--start-from", result["adapter"])
    assert refused.code == 2 and "is a reward model" in refused.err
    again = cli("train", "reward", "--data", data, *options, "--epochs", "4", "--held-out", "0.2")
    assert json.loads(again.out)["reused"] is True
