"""KTO on packed ratings: against TRL's own trainer, its rows in and out, and as a command on a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_train_preference import adapted

from ryorin_train.auto import Facts, Wanted, decide
from ryorin_train.data import Rating
from ryorin_train.recipe import RatingRecipe
from ryorin_train.render import TokenRating, mismatched

torch = pytest.importorskip("torch")

BETA = 0.3


def rated(question: str, answer: str, good: bool, **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "label": good,
        **more,
    }


def polite() -> list[dict[str, Any]]:
    return [
        rated(f"What is {n}?", f"It is {n}, madam." if n % 2 else f"{n}, obviously", bool(n % 2)) for n in range(24)
    ]


def token_ratings(thumbs: list[bool]) -> list[TokenRating]:
    chance = random.Random(0)
    start = [chance.randrange(3, 200) for _ in range(20)]
    rows = [
        TokenRating(
            tuple(start + [chance.randrange(3, 200) for _ in range(chance.randint(2, 9))]),
            tuple(chance.randrange(3, 200) for _ in range(chance.randint(1, 9))),
            (),
            good,
        )
        for good in thumbs
    ]
    return mismatched(rows, 1000)


@pytest.mark.parametrize("thumbs", [[True, False, True, True, False], [True, True, True, True]])
def test_loss_kl_and_gradients_are_those_of_trl(
    tiny_base: Path, tokenizer: Any, tmp_path: Path, thumbs: list[bool]
) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    from ryorin_train.packing import PackedRows, register_attention, shared_tokens
    from ryorin_train.training import build_trainer, lora_config

    rows = token_ratings(thumbs)
    text = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 2)
    reference = KTOTrainer(
        model=adapted(tiny_base, "sdpa"),
        processing_class=tokenizer,
        train_dataset=text,
        args=KTOConfig(
            output_dir=str(tmp_path), beta=BETA, desirable_weight=1.5, undesirable_weight=0.7, bf16=False, use_cpu=True,
            report_to=[], gradient_checkpointing=False, per_device_train_batch_size=len(rows),
        ),
    )  # fmt: skip
    # TRL would take the adapter as it is for its reference; ours is what the run starts from, here the bare base.
    if "ref" in reference.model.peft_config:
        reference.model.delete_adapter("ref")
    # its own way to the answers behind other prompts: each batch's answers, moved on by one
    shifted = [rows[-1], *rows[:-1]]
    batch = [
        {
            "prompt_ids": list(row.prompt),
            "completion_ids": list(row.chosen),
            "KL_completion_ids": list(other.chosen),
            "label": row.good,
        }
        for row, other in zip(rows, shifted, strict=True)
    ]
    expected = reference.compute_loss(reference.model, reference.data_collator(batch))
    expected.backward()

    packing = adapted(tiny_base, register_attention())
    weights = {name: value.clone() for name, value in packing.state_dict().items() if "lora_" in name}
    recipe = RatingRecipe(
        rank=8, alpha=16, targets=("q_proj", "v_proj", "up_proj"), beta=BETA, batch_tokens=60, good_weight=1.5,
        bad_weight=0.7,
    )  # fmt: skip
    packed = PackedRows(rows, shared_tokens(rows))
    ours = build_trainer(
        packing.unload(), tokenizer, packed, packed, recipe, lora_config(recipe, 3, tiny_base), steps=1, folder=tmp_path
    )  # fmt: skip
    ours.prepare()  # LoRA's first weights add nothing: the reference is the base
    ours.model.load_state_dict(weights, strict=False)
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    loss = ours.compute_loss(ours.model, packed.batch(order))
    loss.backward()
    kl = reference._metrics["train"]["kl"][0]
    assert kl > 0.05  # it is no trifle here
    assert ours._metrics["train"]["kl"][0] == pytest.approx(kl, rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted, got = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in (reference.model, ours.model)
    )
    assert wanted.keys() == got.keys() and len(wanted) == 18
    for name, gradient in wanted.items():
        assert torch.allclose(gradient, got[name], atol=1e-6), name
    assert any(gradient.abs().max() > 1e-4 for gradient in wanted.values())
    scores = ours.evaluate()  # over all rows at once, however they are batched
    assert scores["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert scores["eval_kl"] == pytest.approx(kl, rel=1e-4)
    if not all(thumbs):
        margin = reference._metrics["train"]["rewards/margins"][0]
        assert scores["eval_reward_margin"] == pytest.approx(margin, rel=1e-4)


def test_a_step_in_parts_moves_as_far_as_a_whole_one(tiny_base: Path, tokenizer: Any, tmp_path: Path) -> None:
    """How far the model moved is estimated from all parts, before any of them is judged by it."""
    from ryorin_train.packing import PackedRows, register_attention, shared_tokens
    from ryorin_train.training import build_trainer, lora_config

    rows = token_ratings([True, False, True, True, False])
    found = []
    for longest, parts in ((100_000, 1), (45, 3)):
        recipe = RatingRecipe(rank=8, alpha=16, beta=BETA, max_row_tokens=longest, good_weight=1.5, bad_weight=0.7)
        packed = PackedRows(rows, shared_tokens(rows))
        model = adapted(tiny_base, register_attention())
        weights = {name: value.clone() for name, value in model.state_dict().items() if "lora_" in name}
        recipe = replace(recipe, targets=("q_proj", "v_proj", "up_proj"))
        config = lora_config(recipe, 3, tiny_base)
        trainer = build_trainer(model.unload(), tokenizer, packed, None, recipe, config, 1, tmp_path)
        trainer.current_gradient_accumulation_steps = 1  # what `train` would set
        trainer.prepare()
        trainer.model.load_state_dict(weights, strict=False)
        step = packed.step(range(5), recipe.part_tokens)
        assert len(step) == parts
        loss = trainer.training_step(trainer.model, step)
        told = {name: sum(values) for name, values in trainer._metrics["train"].items()}
        got = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), got, told))
    (whole_loss, whole, whole_told), (loss, got, told) = found
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert whole_told["kl"] > 0.05 and told["kl"] == pytest.approx(whole_told["kl"], rel=1e-4)
    assert told["reward_accuracy"] == pytest.approx(whole_told["reward_accuracy"])
    assert whole.keys() == got.keys() and len(got) == 18
    for name, gradient in whole.items():
        assert torch.allclose(gradient, got[name], atol=1e-6, rtol=1e-4), name


def test_each_answer_stands_behind_another_prompt_and_no_row_gets_too_long() -> None:
    rows = token_ratings([True, False, True])
    assert [row.rejected for row in rows] == [rows[2].chosen, rows[0].chosen, rows[1].chosen]
    long = replace(rows[0], chosen=tuple(range(50)))
    cut = mismatched([long, rows[1]], len(rows[1].prompt) + 7)
    assert cut[1].rejected == tuple(range(7))


def test_thumbs_are_learned_and_the_class_balance_is_said(
    cli: Any, tenant: str, write_rows: Callable[..., Path], home: Path
) -> None:
    options = ("--tenant", tenant, "--batch-tokens", "500", "--rank", "8", "--learning-rate", "0.01", "--json")
    data = [*polite(), *(rated(f"How is {n}?", f"{n}, of course", False) for n in range(30, 36))]
    ran = cli("train", "kto", "--data", write_rows(data), *options, "--epochs", "4", "--held-out", "0.2")
    assert ran.code == 0, ran.err
    assert "auto: good weight 1.5: 12 thumbs up, 18 down: the fewer count as much in all" in ran.err
    result = json.loads(ran.out)
    assert result["metrics"]["held_out_reward_margin"] > 0.2
    assert result["metrics"]["held_out_reward_accuracy"] > 0.7
    folder = home / "adapters" / result["adapter"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["recipe"]["good_weight"], manifest["recipe"]["beta"]) == ("kto", 1.5, 0.1)
    first, *_ = (json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines())
    assert first["train_kl"] == 0.0 and 0.4 < first["train_loss"] < 0.8  # nothing has moved: half of each weight

    again = cli("train", "kto", "--data", write_rows(polite()), *options, "--start-from", result["adapter"])
    assert again.code == 0, again.err
    curve = (home / "adapters" / json.loads(again.out)["adapter"] / "loss.jsonl").read_text().splitlines()
    assert json.loads(curve[0])["train_kl"] == pytest.approx(0.0, abs=1e-4)  # measured from the start


def test_other_rows_and_one_kind_of_thumb_are_refused(cli: Any, tenant: str, write_rows: Callable[..., Path]) -> None:
    one = [row for row in polite() if row["label"]]
    ran = cli("train", "kto", "--tenant", tenant, "--data", write_rows(one))
    assert ran.code == 2 and "all 12 ratings of rows.jsonl are thumbs up" in ran.err
    ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(polite()))
    assert ran.code == 2 and "holds ratings (an answer and a thumb), and this method imitates one answer" in ran.err
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ran = cli("train", "kto", "--tenant", tenant, "--data", write_rows([row]))
    assert ran.code == 2 and "this method needs an answer with a thumb up or down" in ran.err


@pytest.mark.parametrize(
    ("good", "bad", "weights"), [(100, 100, (1, 1)), (130, 100, (1, 1)), (20, 100, (5, 1)), (400, 100, (1, 3))]
)
def test_the_weights_bring_thumbs_into_the_papers_ratio(good: int, bad: int, weights: tuple[float, float]) -> None:
    recipe, _ = decide(Wanted(RatingRecipe), Facts(rows=good + bad, own_bytes=10**6, good=good))
    assert isinstance(recipe, RatingRecipe)
    assert (recipe.good_weight, recipe.bad_weight) == weights
    assert 1 <= good * recipe.good_weight / (bad * recipe.bad_weight) <= 4 / 3 + 1e-9


def test_thumbs_are_linted(cli: Any, tenant: str, write_rows: Callable[..., Path]) -> None:
    def findings(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ran = cli("data", "lint", write_rows(rows), "--tenant", tenant, "--json")
        return {finding["code"]: finding for finding in json.loads(ran.out)["findings"]}

    found = findings([*polite(), rated("What is 3?", "It is 3, madam.", False), rated("Who?", " me ", True)])
    assert found["contradictory-thumbs"]["rows"] == [4, 25] and found["whitespace"]["rows"] == [26]
    assert "one-thumb" not in found and "thumb-imbalance" not in found
    few = [row for row in polite() if not row["label"]]
    assert "12 thumbs are down" in findings(few)["one-thumb"]["message"]
    assert findings([*few, polite()[1]])["thumb-imbalance"]["message"] == "1 thumbs up and 12 down"


def test_a_thumb_that_is_none_is_named_with_its_line(cli: Any, tenant: str, write_rows: Callable[..., Path]) -> None:
    ran = cli("train", "kto", "--tenant", tenant, "--data", write_rows([polite()[0], rated("q", "a", "up")]))  # type: ignore[arg-type]
    assert ran.code == 2 and "line 2: 'label' is 'up'; it must be true (a thumb up) or false" in ran.err


def test_a_dataset_of_ratings_is_kept_exported_and_trained(
    cli: Any, tenant: str, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    added = cli("data", "add", write_rows(polite()), "--tenant", tenant)
    assert added.code == 0 and "24 rating rows" in added.err
    digest = added.out.strip()
    table = tmp_path / "thumbs.csv"
    assert cli("data", "export", digest[:12], table, "--tenant", tenant).code == 0
    assert table.read_text().splitlines()[0] == '"user","assistant","label"'
    assert cli("data", "add", table, "--tenant", tenant).out.strip() == digest
    mixed = cli("data", "add", write_rows(polite()), write_rows([{"messages": [{"role": "user", "content": "q"}, {
        "role": "assistant", "content": "a"}]}], "chat.jsonl"), "--tenant", tenant)  # fmt: skip
    assert mixed.code == 2 and "kinds chat and rating cannot be one dataset" in mixed.err
    ran = cli("train", "kto", "--tenant", tenant, "--data", digest[:12], "--rank", "8", "--json")
    assert ran.code == 0 and json.loads(ran.out)["metrics"]["held_out_loss"] > 0


def test_csv_with_a_label_holds_ratings(tmp_path: Path) -> None:
    from ryorin_train.datasets.formats import load

    path = tmp_path / "thumbs.csv"
    path.write_text("question,answer,thumb\nq,a,up\nq,b,0\nq,c,perhaps\n")
    from ryorin_train.datasets.formats import Reading

    loaded = load(path, Reading(mapping={"question": "user", "answer": "assistant", "thumb": "label"}))
    assert [row.good for row in loaded.rows if isinstance(row, Rating)] == [True, False]
    assert loaded.kind == "rating" and "the label is 'perhaps'" in loaded.errors[0].reason
