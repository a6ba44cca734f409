"""
Ryorin's preference optimisation (DPO) against TRL's plain trainer.

Shows what an epoch over the same preference pairs takes each, on the same model (SmolLM2-135M's shape, random float32
weights: the time does not depend on their values) and the same LoRA (rank 16, all linear layers). The pairs are like
the demo's: a beginning that all share, about 145 tokens of prompt, two answers of about 40 tokens.

- TRL plain: DPOTrainer with padded batches, float32, no gradient checkpointing, the reference computed at every step,
  as it does unless told otherwise; and told otherwise (`precompute_ref_log_probs`), once.
- Ryorin: packed pairs, each prompt once, the shared beginning once a step, logits where something is learned, fused
  LoRA, the reference once; then the same with LoRA on the 15 uppermost layers only and the layers below computed once.

All that an epoch needs is counted: the layers below, the reference's pass, the steps. The arms take turns, batch by
batch. The first step's losses and the ones after it are compared: the maths is the same. The value is the median of the
paired ratios to TRL plain, all layers. Before that each arm takes two steps in a process of its own, which tells the
most memory that it took.

    python bench/dpo.py [--quick]
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import peak_mb, report
from datasets import Dataset
from sft import LAYERS, UPPER, model, tokenizer
from transformers.utils import logging

from ryorin_train.memory import keep_freed_memory
from ryorin_train.packing import PackedRows, register_attention, shared_tokens
from ryorin_train.recipe import PreferenceRecipe
from ryorin_train.render import TokenPair
from ryorin_train.training import build_trainer, lora_config
from ryorin_train.trunk import compute_trunk, skipped_layers

Step = Callable[[Sequence[int]], float]


def pairs(count: int) -> list[TokenPair]:
    """Pairs with the lengths of the demo's support examples."""
    chance = random.Random(0)

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, 49152) for _ in range(chance.randint(low, high)))

    shared = words(55, 55)
    return [TokenPair(shared + words(70, 112), words(28, 52), words(28, 52)) for _ in range(count)]


def take_step(trainer: Any, batch: Any) -> float:
    """One training step; returns its loss."""
    loss = trainer.training_step(trainer.model, batch, None)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return float(loss)


def ready(trainer: Any) -> Any:
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what `train` would set
    trainer.model.train()
    return trainer


@contextlib.contextmanager
def at_start(adapted: Any) -> Iterator[None]:
    """Inside, LoRA adds nothing, as with its first weights: a real run computes the reference before its first step."""
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")]
    kept = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling = dict.fromkeys(layer.scaling, 0.0)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling = scaling


def ours(data: list[TokenPair], recipe: PreferenceRecipe, folder: Path) -> Step:
    base = model(register_attention())
    frozen = LAYERS - (recipe.layers or LAYERS)
    shared = shared_tokens(data)
    packed = PackedRows(data, shared)
    trainer: Any = ready(
        build_trainer(base, tokenizer(), packed, None, recipe, lora_config(recipe, LAYERS, folder), 10, folder)
    )

    def step(numbers: Sequence[int]) -> float:
        packed = trainer.packed = PackedRows([data[number] for number in numbers], shared)
        if frozen:
            packed.trunk = compute_trunk(trainer.model, frozen, packed, 2048, lambda _: None)
        with skipped_layers(trainer.model, frozen) if frozen else contextlib.nullcontext():
            with at_start(trainer.model):
                trainer.prepare()
            return take_step(trainer, packed.step(range(len(numbers)), recipe.part_tokens))

    return step


def plain(data: list[TokenPair], recipe: PreferenceRecipe, folder: Path, *, precompute: bool) -> Step:
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    text = Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}])  # it asks for one; ours are tokens
    trainer: Any = ready(
        DPOTrainer(
            model=model("sdpa"),
            processing_class=tokenizer(),
            train_dataset=text,
            peft_config=LoraConfig(**lora_config(recipe, LAYERS, folder)),
            args=DPOConfig(
                output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=recipe.seed,
                beta=recipe.beta, learning_rate=recipe.learning_rate, bf16=False, gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
        )
    )  # fmt: skip
    rows = [
        {"prompt_ids": list(p.prompt), "chosen_ids": list(p.chosen), "rejected_ids": list(p.rejected)} for p in data
    ]

    def step(numbers: Sequence[int]) -> float:
        batch = dict(trainer.data_collator([rows[number] for number in numbers]))
        trainer.precompute_ref_logps = precompute
        if precompute:
            batch["ref_chosen_logps"], batch["ref_rejected_logps"] = trainer.compute_ref_log_probs(trainer.model, batch)
        return take_step(trainer, batch)

    return step


PLAIN, ONCE, OURS, OURS_UPPER = "TRL plain", "TRL, reference once", "Ryorin", f"Ryorin, {UPPER} layers"


def arm(name: str, data: list[TokenPair], folder: Path) -> Step:
    """One of them, ready to take steps."""
    recipe = PreferenceRecipe(learning_rate=1e-4)
    if name in (PLAIN, ONCE):
        return plain(data, recipe, folder, precompute=name == ONCE)
    return ours(data, PreferenceRecipe(layers=UPPER) if name == OURS_UPPER else recipe, folder)


def steps(name: str, size: int) -> None:
    """Two of an arm's steps, alone."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keep_freed_memory()
    data = pairs(2 * size)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        step = arm(name, data, Path(scratch))
        for number in range(2):
            step(range(number * size, (number + 1) * size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="3 rounds of 4 pairs instead of 8 of 8")
    rounds, size = (3, 4) if parser.parse_args().quick else (8, 8)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keep_freed_memory()  # for every arm: it is the process's
    data = pairs(size * (rounds + 1))
    names = (PLAIN, ONCE, OURS, OURS_UPPER)
    peaks = {name: peak_mb(steps, name, size) for name in names}  # before this process takes memory
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        arms = {name: arm(name, data, Path(scratch)) for name in names}
        gc.collect()
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        losses: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(rounds + 1):
            numbers = range(number * size, (number + 1) * size)
            for name, step in arms.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                losses[name].append(step(numbers))
                if number:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
                    cpu[name].append(time.process_time() - began_cpu)

    print(f"{'':<22}{'pairs/s':>9}{'CPU s/batch':>13}{'ratio':>8}{'losses':>24}{'peak MB':>10}")
    ratios: dict[str, float] = {}
    for name in arms:
        both = zip(seconds[PLAIN], seconds[name], strict=True)
        ratios[name] = statistics.median(theirs / own for theirs, own in both)
        shown = ", ".join(f"{loss:.4f}" for loss in losses[name][:3])
        speed = size / statistics.median(seconds[name])
        print(
            f"{name:<22}{speed:>9.2f}{statistics.median(cpu[name]):>13.2f}{ratios[name]:>8.2f}{shown:>24}{peaks[name]:>10.0f}"
        )
    difference = max(abs(ours - theirs) for ours, theirs in zip(losses[OURS], losses[PLAIN], strict=True))
    print(f"losses differ by {difference:.1e} at most")
    if difference > 1e-2:
        sys.exit("error: the losses differ, so the arms do not compute the same")
    report(
        claim="an epoch of DPO on a CPU takes less than half of what TRL's plain trainer takes, with the same losses",
        value=ratios[OURS],
        unit="times faster than TRL plain",
        target=">= 2",
        peer="trl DPOTrainer, padded, float32, no gradient checkpointing, reference at every step",
        n=rounds,
        reference_once_value=round(ratios[ONCE], 4),
        upper_layers_value=round(ratios[OURS_UPPER], 4),
        peak_mb={name: round(peak) for name, peak in peaks.items()},
        peak_target="no higher than TRL plain's",
        loss_difference=difference,
    )


if __name__ == "__main__":
    main()
