"""
Ryorin's supervised fine-tuning against TRL's plain trainer.

Shows how many tokens of training rows a second each takes in, on the same rows, the same model (SmolLM2-135M's shape,
random float32 weights: the time does not depend on their values) and the same LoRA (rank 16, all linear layers). A
step is forward, backward and optimizer. The rows are like the demo's: a beginning that all share (the system text),
about 145 tokens of prompt and 40 of answer.

- TRL plain: SFTTrainer with its padded batches, completion-only loss, float32 and no gradient checkpointing (its
  defaults there, bfloat16 and checkpointing, are slower on a CPU: `--full` shows them too).
- Ryorin: packed batches, the shared beginning once, logits where something is learned, fused LoRA; then the same with
  LoRA on the 15 uppermost layers only and the layers below computed before.

The arms take turns, step by step, so that whatever else the machine does hits all. The first step's losses are
compared: the maths is the same. The value is the median of the paired ratios to TRL plain, all layers. Before that
each arm takes two steps in a process of its own, which tells the most memory that it took.

    python bench/sft.py [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import peak_mb, report
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from ryorin_train.memory import keep_freed_memory
from ryorin_train.packing import PackedRows, register_attention, shared_tokens
from ryorin_train.recipe import Recipe
from ryorin_train.render import TokenRow
from ryorin_train.training import build_trainer, lora_config
from ryorin_train.trunk import compute_trunk, skipped_layers

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERS = SHAPE["num_hidden_layers"]
UPPER = 15


def rows(count: int) -> list[TokenRow]:
    """Rows with the lengths of the demo's support examples."""
    chance = random.Random(0)
    shared = [chance.randrange(3, 49152) for _ in range(55)]
    made = []
    for _ in range(count):
        prompt = shared + [chance.randrange(3, 49152) for _ in range(chance.randint(70, 112))]
        answer = [chance.randrange(3, 49152) for _ in range(chance.randint(28, 52))]
        made.append(TokenRow((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer)))
    return made


def model(attention: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, attn_implementation=attention)
    return LlamaForCausalLM(config).to(torch.float32)


def tokenizer() -> Any:
    """TRL asks for one; the rows are tokens already."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), pad_token="a", eos_token="a")


Step = Callable[[Sequence[int]], float]


def stepper(trainer: Any, batch_of: Callable[[Sequence[int]], Any]) -> Step:
    """A function that takes one step on these rows and returns its loss."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what `train` would set
    trainer.model.train()

    def step(numbers: Sequence[int]) -> float:
        loss = trainer.training_step(trainer.model, batch_of(numbers), None)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        return float(loss)

    return step


def ours(data: list[TokenRow], recipe: Recipe, folder: Path, stack: contextlib.ExitStack) -> Step:
    base = model(register_attention())
    packed = PackedRows(data, shared_tokens(data))
    frozen = LAYERS - (recipe.layers or LAYERS)
    if frozen:
        packed.trunk = compute_trunk(base.eval(), frozen, packed, 2048, lambda _: None)
    config = lora_config(recipe, LAYERS, folder)
    trainer = build_trainer(base, tokenizer(), packed, None, recipe, config, 10, folder)
    if frozen:
        stack.enter_context(skipped_layers(trainer.model, frozen))
    return stepper(trainer, lambda numbers: packed.step(numbers, recipe.part_tokens))


def plain(data: list[TokenRow], recipe: Recipe, folder: Path, **settings: Any) -> Step:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    made = Dataset.from_dict(
        {"input_ids": [list(r.ids) for r in data], "completion_mask": [[int(m) for m in r.learned] for r in data]}
    )
    trainer = SFTTrainer(
        model=model("sdpa"),
        processing_class=tokenizer(),
        train_dataset=made,
        peft_config=LoraConfig(**lora_config(recipe, LAYERS, folder)),
        args=SFTConfig(
            output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=recipe.seed,
            completion_only_loss=True, dataloader_pin_memory=False, **settings,
        ),
    )  # fmt: skip
    return stepper(
        trainer,
        lambda numbers: dict(trainer.data_collator([trainer.train_dataset[number] for number in numbers])),
    )


PLAIN, OURS, OURS_UPPER, AS_IT_COMES = "TRL plain", "Ryorin", f"Ryorin, {UPPER} layers", "TRL as it comes"


def arm(name: str, data: list[TokenRow], folder: Path, stack: contextlib.ExitStack) -> Step:
    """One of them, ready to take steps."""
    if name == PLAIN:
        return plain(data, Recipe(), folder, bf16=False, gradient_checkpointing=False)
    if name == AS_IT_COMES:
        return plain(data, Recipe(), folder)
    return ours(data, Recipe(layers=UPPER if name == OURS_UPPER else None), folder, stack)


def steps(name: str, size: int) -> None:
    """Two of an arm's steps, alone."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keep_freed_memory()
    data = rows(2 * size)
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(sys.stderr):
        step = arm(name, data, Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        for number in range(2):
            step(range(number * size, (number + 1) * size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="3 rounds of 4 rows instead of 8 of 8")
    parser.add_argument("--full", action="store_true", help="also TRL with bfloat16 and gradient checkpointing")
    options = parser.parse_args()
    rounds, size = (3, 4) if options.quick else (8, 8)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keep_freed_memory()  # for every arm: it is the process's
    data = rows(size * (rounds + 1))
    names = [PLAIN, OURS, OURS_UPPER, *([AS_IT_COMES] if options.full else [])]
    peaks = {name: peak_mb(steps, name, size) for name in names}  # before this process takes memory
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(sys.stderr):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arms = {name: arm(name, data, folder, stack) for name in names}
        gc.collect()
        tokens: list[int] = []
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        first: dict[str, float] = {}
        for number in range(rounds + 1):
            numbers = range(number * size, (number + 1) * size)
            for name, step in arms.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                loss = step(numbers)
                if number == 0:  # warms up, and is the one step for which all weights are equal
                    first[name] = loss
                    continue
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - began_cpu)
            if number:
                tokens.append(sum(len(data[row].ids) for row in numbers))

    print(f"{'':<20}{'tokens/s':>10}{'CPU s/step':>12}{'ratio':>8}{'loss of step 1':>17}{'peak MB':>10}")
    ratios: dict[str, float] = {}
    for name in arms:
        speed = statistics.median(count / taken for count, taken in zip(tokens, seconds[name], strict=True))
        pairs = zip(seconds[PLAIN], seconds[name], strict=True)
        ratios[name] = statistics.median(theirs / own for theirs, own in pairs)
        used = statistics.median(cpu[name])
        print(f"{name:<20}{speed:>10.0f}{used:>12.2f}{ratios[name]:>8.2f}{first[name]:>17.6f}{peaks[name]:>10.0f}")
    difference = max(abs(loss - first[PLAIN]) for name, loss in first.items() if name != AS_IT_COMES)
    print(f"losses differ by {difference:.1e} at most")
    if difference > 1e-3:
        sys.exit("error: the losses differ, so the arms do not compute the same")
    report(
        claim="fine-tuning on a CPU is faster than TRL's plain trainer, with the same loss",
        value=ratios[OURS],
        unit="times the tokens/s of TRL plain",
        target=">= 1.5",
        peer="trl SFTTrainer, padded, float32, no gradient checkpointing",
        n=rounds,
        upper_layers_value=round(ratios[OURS_UPPER], 4),
        peak_mb={name: round(peak) for name, peak in peaks.items()},
        peak_target="no higher than TRL plain's",
        loss_difference=difference,
    )


if __name__ == "__main__":
    main()
