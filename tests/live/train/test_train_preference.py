"""DPO on packed pairs: against TRL's own trainer, and as a command on a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lazily import Lazily

from ryorin_train.recipe import PreferenceRecipe
from ryorin_train.render import TokenPair

torch = Lazily("torch")

BETA = 0.3


def pair(question: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": chosen}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
        **more,
    }


def polite() -> list[dict[str, Any]]:
    return [pair(f"What is {n}?", f"It is {n}, madam.", f"{n}, obviously") for n in range(24)]


def adapted(path: Path, attention: str) -> Any:
    """The tiny model with LoRA weights that are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, attn_implementation=attention)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_loss_and_gradients_are_those_of_trl(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from ryorin_train.packing import PackedRows, register_attention, shared_tokens
    from ryorin_train.training import build_trainer, lora_config

    chance = random.Random(0)
    start = [chance.randrange(3, 200) for _ in range(20)]
    pairs = [
        TokenPair(
            tuple(start + [chance.randrange(3, 200) for _ in range(chance.randint(2, 9))]),
            tuple(chance.randrange(3, 200) for _ in range(chance.randint(1, 9))),
            tuple(chance.randrange(3, 200) for _ in range(chance.randint(1, 9))),
        )
        for _ in range(5)
    ]
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    plain = adapted(tiny_base, "sdpa")
    reference = DPOTrainer(
        model=plain,
        processing_class=tokenizer,
        train_dataset=text,
        args=DPOConfig(
            output_dir=str(tmp_path), beta=BETA, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False
        ),
    )
    rows = [
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)} for p in pairs
    ]
    # TRL would take the adapter as it is for its reference; ours is what the run starts from, here the bare base.
    reference.model.delete_adapter("ref")
    expected = reference.compute_loss(reference.model, reference.data_collator(rows))
    expected.backward()

    packing = adapted(tiny_base, register_attention())
    weights = {name: value.clone() for name, value in packing.state_dict().items() if "lora_" in name}
    recipe = PreferenceRecipe(rank=8, alpha=16, targets=("q_proj", "v_proj", "up_proj"), beta=BETA, batch_tokens=60)
    packed = PackedRows(pairs, shared_tokens(pairs))
    assert packed.shared == 20
    base = packing.unload()
    ours = build_trainer(
        base, tokenizer, packed, None, recipe, lora_config(recipe, 3, tiny_base), steps=1, folder=tmp_path
    )  # fmt: skip
    ours.prepare()  # LoRA's first weights add nothing: the reference is the base
    ours.model.load_state_dict(weights, strict=False)
    loss = ours.compute_loss(ours.model, packed.batch([3, 0, 4, 1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(0.6931, abs=1e-3)
    wanted, got = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in (reference.model, ours.model)
    )
    assert wanted.keys() == got.keys() and len(wanted) == 18
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name


def test_preferences_are_learned_and_the_start_is_the_reference(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path
) -> None:
    options = ("--tenant", tenant, "--batch-tokens", "400", "--rank", "8", "--learning-rate", "0.01", "--json")
    options += ("--max-row-tokens", "500")
    ran = cli("train", "dpo", "--data", write_rows(polite()), *options, "--epochs", "4", "--held-out", "0.2")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["metrics"]["held_out_reward_accuracy"] == 1.0
    assert result["metrics"]["held_out_reward_margin"] > 0.5
    folder = home / "adapters" / result["adapter"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["recipe"]["beta"], manifest["start_from"]) == ("dpo", 0.1, None)
    curve = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert curve[0]["train_loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing is preferred yet
    assert curve[0]["train_reward_margin"] == 0.0
    assert curve[-2]["train_reward_accuracy"] > 0.9

    more = [*polite(), pair("And now?", "Now, madam.", "now")]
    again = cli("train", "dpo", "--data", write_rows(more), *options, "--start-from", result["adapter"])
    assert again.code == 0, again.err
    curve = (home / "adapters" / json.loads(again.out)["adapter"] / "loss.jsonl").read_text().splitlines()
    assert json.loads(curve[0])["train_reward_margin"] == pytest.approx(0.0, abs=1e-5)  # measured from the start


def test_examples_are_no_preferences(cli: Any, tenant: str, write_rows: Callable[..., Path]) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ran = cli("train", "dpo", "--tenant", tenant, "--data", write_rows([row]), "--max-row-tokens", "500")
    assert ran.code == 2 and "this method needs a better and a worse answer" in ran.err
