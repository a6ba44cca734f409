"""Reinforcement learning: its loss against TRL's own trainer, sampling against `generate`, and as a command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_train_preference import adapted

from ryorin_train.recipe import ReinforcementRecipe
from ryorin_train.render import TokenGroup, TokenTask

torch = pytest.importorskip("torch")

SHORT = ("--max-answer-tokens", "6", "--answers", "8", "--prompts", "4", "--rank", "8", "--max-row-tokens", "500")


def prompts(count: int = 20) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"What is {n}?"}], "right": str(n)} for n in range(count)]


def random_tokens(chance: random.Random, count: int) -> tuple[int, ...]:
    return tuple(chance.randrange(3, 200) for _ in range(count))


def test_sampling_likeliest_answers_is_what_generate_does(tiny_base: Path) -> None:
    from ryorin_train.packing import register_attention
    from ryorin_train.reinforcement.rollout import Sampling, sample

    chance = random.Random(0)
    start = random_tokens(chance, 12)
    tasks = [TokenTask((*start, *random_tokens(chance, size)), {}) for size in (2, 9, 4)]
    free = Sampling(answers=1, max_tokens=9, temperature=0.0, ends=())
    reference = adapted(tiny_base, "sdpa")
    wanted = []
    for task in tasks:
        ids = torch.tensor([task.prompt])
        out = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, min_new_tokens=9
        )
        wanted.append(tuple(out[0, len(task.prompt) :].tolist()))
    model = adapted(tiny_base, register_attention())
    assert [group.answers for group in sample(model, tasks, free, 0)] == [(answer,) for answer in wanted]
    end = wanted[1][4]  # an answer that ends leaves the others as they are
    ended = sample(model, tasks, Sampling(2, 9, 0.0, (end,)), 0)
    for group, answer in zip(ended, wanted, strict=True):
        cut = answer[: answer.index(end) + 1] if end in answer else answer
        assert group.answers == (cut, cut)


def test_sampling_is_by_the_models_probabilities_and_its_seed(tiny_base: Path) -> None:
    from ryorin_train.packing import register_attention
    from ryorin_train.reinforcement.rollout import Sampling, sample

    model = adapted(tiny_base, register_attention())
    task = TokenTask(random_tokens(random.Random(1), 10), {})
    how = Sampling(answers=4000, max_tokens=1, temperature=0.7, ends=())
    (group,) = sample(model, [task], how, 5)
    assert sample(model, [task], how, 5) == [group] and sample(model, [task], how, 6) != [group]
    counts = torch.bincount(torch.tensor(group.answers)[:, 0], minlength=model.config.vocab_size) / 4000
    with torch.no_grad():
        logits = adapted(tiny_base, "sdpa")(torch.tensor([task.prompt])).logits[0, -1]
    assert (counts - torch.softmax(logits / 0.7, -1)).abs().max() < 0.03


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_trl(tiny_base: Path, tokenizer: Any, tmp_path: Path, beta: float) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from ryorin.graders import read_grader
    from ryorin_train.graders.grading import Grading
    from ryorin_train.packing import PackedRows, register_attention, shared_tokens
    from ryorin_train.reinforcement.policy import advantages
    from ryorin_train.reinforcement.trainer import Taken
    from ryorin_train.training import build_trainer, lora_config

    chance = random.Random(0)
    start = random_tokens(chance, 20)
    groups = [
        TokenGroup(
            (*start, *random_tokens(chance, chance.randint(2, 9))),
            tuple(random_tokens(chance, chance.randint(1, 9)) for _ in range(3)),
        )
        for _ in range(2)
    ]
    grades = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.9, 0.4]])
    worth = advantages(grades)
    answers = [answer for group in groups for answer in group.answers]
    old = [torch.tensor([-chance.random() * 2 - 4.5 for _ in answer]) for answer in answers]
    reference = [torch.tensor([-chance.random() * 2 - 4.5 for _ in answer]) for answer in answers]

    theirs = GRPOTrainer(
        model=adapted(tiny_base, "sdpa"),
        reward_funcs=lambda **_: [0.0],
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 6),
        args=GRPOConfig(
            output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False, beta=beta,
            num_generations=3, per_device_train_batch_size=6, max_completion_length=9, temperature=0.7,
        ),
    )  # fmt: skip
    theirs.current_gradient_accumulation_steps = 1

    def padded(rows: list[Any], value: float, left: bool = False) -> Any:
        longest = max(map(len, rows))
        filled = [torch.as_tensor(row) for row in rows]
        blank = [torch.full((longest - len(row),), value, dtype=row.dtype) for row in filled]
        return torch.stack([torch.cat([b, r] if left else [r, b]) for r, b in zip(filled, blank, strict=True)])

    asked = [group.prompt for group in groups for _ in group.answers]
    inputs = {
        "prompt_ids": padded(asked, 0, left=True),
        "prompt_mask": padded([[1] * len(row) for row in asked], 0, left=True),
        "completion_ids": padded(answers, 0),
        "completion_mask": padded([[1] * len(row) for row in answers], 0),
        "advantages": worth.flatten(),
        "old_per_token_logps": padded(old, 0.0),
        "ref_per_token_logps": padded(reference, 0.0),
        "num_items_in_batch": torch.tensor(sum(map(len, answers))),
    }
    expected = theirs.compute_loss(theirs.model, inputs)
    expected.backward()

    packing = adapted(tiny_base, register_attention())
    weights = {name: value.clone() for name, value in packing.state_dict().items() if "lora_" in name}
    recipe = ReinforcementRecipe(
        rank=8, alpha=16, targets=("q_proj", "v_proj", "up_proj"), beta=beta, temperature=0.7, answers=3
    )
    tasks = [TokenTask(group.prompt, {}) for group in groups]
    packed = PackedRows(tasks, 0)
    check = read_grader(
        {"type": "string_check", "name": "a", "input": "{{sample.output_text}}", "operation": "eq", "reference": "b"}
    )
    ours: Any = build_trainer(
        packing.unload(), tokenizer, packed, None, recipe, lora_config(recipe, 3, tiny_base), steps=1,
        folder=tmp_path, grading=Grading(check),
    )  # fmt: skip
    ours.model.load_state_dict(weights, strict=False)
    split = [slice(0, 3), slice(3, 6)]
    taken = Taken(
        packed=PackedRows(groups, shared_tokens(groups)),
        advantage=[
            torch.cat([value.expand(len(answer)) for value, answer in zip(worth[at], groups[at].answers, strict=True)])
            for at in range(2)
        ],
        tokens=sum(map(len, answers)),
        before={at: torch.cat(old[split[at]]) for at in range(2)},
        reference={at: torch.cat(reference[split[at]]) for at in range(2)},
    )
    loss = sum(ours.compute_loss(ours.model, ours._batch(taken, numbers)) for numbers in ([1], [0]))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    wanted, got = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in (theirs.model, ours.model)
    )
    assert wanted.keys() == got.keys() and len(wanted) == 18
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name
    assert any(gradient.abs().max() > 1e-4 for gradient in wanted.values())


def test_what_cannot_be_is_refused_before_the_run(
    cli: Any, tenant: str, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--tenant", tenant, *SHORT, "--data", write_rows(prompts()))
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({"type": "string_check", "name": "a", "input": "{{sample.output_text}}"}))
    refused = cli("train", "rl", *options, "--grader", path)
    assert refused.code == 2 and "grader" in refused.err
    missing = cli("train", "rl", *options, "--grader", tmp_path / "none.json")
    assert missing.code == 2 and "no file" in missing.err
    path.write_text(
        json.dumps(
            {"type": "string_check", "name": "a", "input": "{{sample.output_text}}", "operation": "eq",
             "reference": "{{item.wrong}}"}
        )
    )  # fmt: skip
    lacks = cli("train", "rl", *options, "--grader", path)
    assert lacks.code == 2 and "wrong" in lacks.err and "line 1" in lacks.err
