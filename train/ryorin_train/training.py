"""
A training run: rows as tokens in, a folder with an adapter out. LoRA by PEFT, the loop by TRL (trainer.py).

On a CPU everything is float32 but, where the processor has instructions for bfloat16, the products with frozen weights
(frozen.py). Products of matrices may use oneDNN's kernels, which on an AMD processor with AVX512 are twice as fast as
MKL's and as exact (docs/log.md). On a GPU the base model is bfloat16 and the same path is taken; that has not been run
here.

It knows no catalog, tenant or prompt: see job.py.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ryorin.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from ryorin.errors import InvalidInput, RequirementMissing, RyorinError
from ryorin_train import servable
from ryorin_train.base_shapes import linear_shapes
from ryorin_train.checkpoints import CURVE_FILE, Checkpoints
from ryorin_train.memory import keep_freed_memory
from ryorin_train.processes import FollowedCheckpoints, follows, processes, wait_for_all
from ryorin_train.progress import Listener, Progress
from ryorin_train.recipe import PreferenceRecipe, RatingRecipe, Recipe, ReinforcementRecipe, RewardRecipe
from ryorin_train.render import Branched, TokenRating, TokenRow, context_window, end_of_turn, load_tokenizer, mismatched
from ryorin_train.trackers import Tracking, add_trackers

if TYPE_CHECKING:
    from ryorin_train.graders.grading import Grading
    from ryorin_train.packing import PackedRows
    from ryorin_train.trainer import PackedTrainer


@dataclass(frozen=True)
class Trained:
    """
    What a run gave: metrics (losses in nats a token, shares 0 to 1), tokens of rows it took in, how fast it was.

    best_epoch: whose weights they are, of a run with patience; then its metrics are that epoch's too.
    precision: of the base model's weights where they were multiplied by: float32, bfloat16 or (QLoRA) nf4.
    """

    metrics: dict[str, float]
    tokens: int
    tokens_per_s: float
    seconds: float
    best_epoch: int | None = None
    precision: str = "float32"


def lora_config(recipe: Recipe, model_layers: int, base_path: Path) -> dict[str, Any]:
    """The arguments of PEFT's LoraConfig. Raises InvalidInput when vLLM could not serve the result."""
    config: dict[str, Any] = {
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "target_modules": sorted(recipe.targets),
        "lora_dropout": 0.0,  # packed batches share their beginning, which is exact only without dropout
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_path),
        "use_rslora": recipe.rslora,
    }
    if recipe.layers is not None:
        if recipe.layers > model_layers:
            raise InvalidInput(f"layers is {recipe.layers}; the base model has {model_layers}", param="layers")
        config["layers_to_transform"] = list(range(model_layers - recipe.layers, model_layers))
    servable.check_config(config)
    return config


def check_recipe(recipe: Recipe, base_path: Path) -> None:
    """
    What can be refused before a model is loaded. Raises InvalidInput naming the field; RequirementMissing when this
    machine cannot do what the recipe asks.
    """
    if recipe.qlora:
        check_qlora()
    lora_config(recipe, _text_config(base_path)["num_hidden_layers"], base_path)
    longest = context_window(base_path)
    if longest is not None and recipe.max_row_tokens > longest:
        raise InvalidInput(
            f"max_row_tokens is {recipe.max_row_tokens}; the base model reads {longest}", param="max_row_tokens"
        )


def _text_config(base_path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base_path / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = config.get("text_config", config)
    return text


def check_qlora() -> None:
    """Whether this machine can train on a base model in 4 bits. Raises RequirementMissing with the reason."""
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        raise RequirementMissing(
            "QLoRA needs a CUDA GPU, and none is found: its 4-bit kernels save a GPU's memory and would be slower than "
            "plain LoRA on a CPU; leave --qlora away"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RequirementMissing("QLoRA needs the package bitsandbytes; get it with: pip install bitsandbytes")


def quantized() -> dict[str, Any]:
    """The arguments that load a base model in 4 bits, as QLoRA does: NF4, double quantization, sums in bfloat16."""
    import torch
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }


def train(
    base_path: Path,
    training: Sequence[TokenRow | Branched],
    held_out: Sequence[TokenRow | Branched],
    recipe: Recipe,
    folder: Path,
    listener: Listener,
    checkpoints: Checkpoints,
    start: Path | None = None,
    grading: Grading | None = None,
    tracking: Tracking | None = None,
) -> Trained:
    """
    Train one adapter and leave adapter_config.json, adapter_model.safetensors and loss.jsonl in `folder`; of several
    processes that share the run (processes.py) the first one does.

    training, held_out: rows; with a PreferenceRecipe or RewardRecipe pairs; with a ReinforcementRecipe tasks, whose
    answers `grading` grades. checkpoints: where to continue from, and for whom comes
    next. start: the folder of an adapter to begin with, as `check_start` allows; otherwise LoRA's own first weights.
    tracking: who else hears of it.
    Raises InvalidInput when vLLM could not serve the adapter, before training, or of its files afterwards; RyorinError
    when the loss, the gradient or a held-out score stops being a number.
    """
    from ryorin_train.best import BestEpoch
    from ryorin_train.callbacks import CheckpointAsker, ProgressReporter
    from ryorin_train.keeping import compute_kept
    from ryorin_train.packing import PackedRows, TokenBatches, shared_tokens
    from ryorin_train.trunk import compute_trunk, decoder_layers, skipped_layers

    began, say = time.monotonic(), listener.say
    if (own := sum(not row.kept for row in training)) < processes():
        raise InvalidInput(f"{processes()} processes were started for {own} rows; start fewer", param="data")
    wait_for_all()  # each has its own GPU from here on
    model = load_base(base_path, recipe)
    linears = linear_shapes(model)
    servable.check_targets(recipe.targets, linears)
    depth = len(decoder_layers(model))
    precisions = {str(weight.dtype).removeprefix("torch.") for weight in decoder_layers(model).parameters()}
    config = lora_config(recipe, depth, base_path)
    # Of answers that are yet to be taken nothing can be computed before.
    frozen = 0 if isinstance(recipe, ReinforcementRecipe) else depth - (recipe.layers or depth)

    if isinstance(recipe, RatingRecipe):
        training, held_out = (
            mismatched(cast("Sequence[TokenRating]", rows), recipe.max_row_tokens) for rows in (training, held_out)
        )
    shared = shared_tokens([*training, *held_out])
    packed, packed_held = PackedRows(training, shared), PackedRows(held_out, shared)
    total = sum(row.tokens for row in training)
    step_tokens = recipe.step_tokens(packed.own_lengths)
    kept = len(packed.kept_rows)
    say(
        f"{own} rows to train on, {f'{kept} general texts to keep, ' if kept else ''}{len(held_out)} held out; "
        f"{total:,} tokens, {total - (own - 1) * shared:,} of them computed: {shared} begin every row"
    )
    if frozen:
        model.eval()
        told = Every(say)
        packed.trunk = compute_trunk(
            model, frozen, packed, recipe.part_tokens, lambda share: told(f"layers 1 to {frozen}, once: {share:.0%}")
        )
        if held_out:
            packed_held.trunk = compute_trunk(model, frozen, packed_held, recipe.part_tokens, lambda _: None)
    if kept:
        model.eval()
        with skipped_layers(model, frozen) if frozen else nullcontext():
            packed.kept = compute_kept(model, packed, recipe.part_tokens)

    rounds = recipe.iterations if isinstance(recipe, ReinforcementRecipe) else 1
    batches = TokenBatches(packed.lengths, step_tokens, recipe.seed, beside=packed.kept_rows, processes=processes())
    epoch_steps = len(batches) * rounds
    steps = epoch_steps * recipe.epochs
    tokenizer = load_tokenizer(base_path)
    trainer = build_trainer(
        model,
        tokenizer,
        packed,
        packed_held if held_out else None,
        recipe,
        config,
        steps,
        checkpoints.folder,
        step_tokens,
        grading,
    )
    wait_for_all()  # until the first process has its checkpoints in order
    done, resumed = checkpoints.latest() or (None, None)
    if isinstance(checkpoints, FollowedCheckpoints):
        checkpoints.take_curve()
    wait_for_all()  # until all have seen them
    if done is not None:
        say(f"an interrupted run is continued at step {done} of {steps}")
    progress = Progress(listener, checkpoints.curve, steps, recipe.epochs, done)
    reporter = ProgressReporter(trainer, progress, row_tokens=total / epoch_steps)
    trainer.add_callback(reporter)
    best = None if recipe.patience is None else BestEpoch(trainer, progress, checkpoints, recipe.patience)
    if best is not None:
        trainer.add_callback(best)
    trainer.add_callback(CheckpointAsker(trainer, checkpoints, progress, listener, epoch_steps, rounds))
    if tracking is not None and not follows():
        add_trackers(trainer, tracking, done)
    if start is not None:
        load_weights(trainer.model, start)
    try:
        with skipped_layers(trainer.model, frozen) if frozen else nullcontext():
            trainer.prepare()
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        tokens_per_s = progress.tokens_per_s
        progress.complete()
    finally:
        progress.close()
    last = progress.scored[-1] if best is None else best.line
    if not follows():
        if best is not None:
            load_weights(trainer.model, best.folder)
        trainer.model.save_pretrained(str(folder), safe_serialization=True)
        shutil.copyfile(checkpoints.curve, folder / CURVE_FILE)  # a stop before the adapter is known needs it again
        tidy(folder, base_path)
        if not isinstance(recipe, RewardRecipe):
            servable.check_folder(folder, linears)
    return Trained(
        metrics={
            "train_loss": last["mean_train_loss"],
            **{name: value for name, value in last.items() if name.startswith("held_out_")},
        },
        tokens=total * len(progress.scored),
        tokens_per_s=round(tokens_per_s, 1),
        seconds=round(time.monotonic() - began, 1),
        best_epoch=None if best is None else last["epoch"],
        precision="nf4" if recipe.qlora else "bfloat16" if "bfloat16" in precisions else "float32",
    )


def load_base(base_path: Path, recipe: Recipe) -> Any:
    """
    The base model that a recipe adapts, with the packed attention; for a RewardRecipe with a head of one score in the
    place of the vocabulary's. Seeds PyTorch.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
    from transformers.utils import logging

    from ryorin_train.frozen import freeze_head_in_bfloat16, freeze_in_bfloat16, wants_bfloat16
    from ryorin_train.packing import register_attention
    from ryorin_train.trunk import decoder_layers

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    keep_freed_memory()
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(recipe.seed)
    is_reward = isinstance(recipe, RewardRecipe)
    model = (AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM).from_pretrained(
        str(base_path),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        attn_implementation=register_attention(),
        local_files_only=True,
        **({"num_labels": 1} if is_reward else {}),
        **(quantized() if recipe.qlora else {}),
    )
    if is_reward:
        model.generation_config = GenerationConfig()  # TRL looks for one
    if recipe.qlora:
        from peft import prepare_model_for_kbit_training

        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if on_gpu:
        model.to("cuda")
    else:
        torch.set_float32_matmul_precision("medium")  # lets PyTorch choose oneDNN for matrix products
        if wants_bfloat16():
            freeze_in_bfloat16(decoder_layers(model))
            freeze_head_in_bfloat16(model.get_output_embeddings())
    return model


def build_trainer(
    model: Any,
    tokenizer: Any,
    packed: PackedRows,
    held_out: PackedRows | None,
    recipe: Recipe,
    config: dict[str, Any],
    steps: int,
    folder: Path,
    batch_tokens: int | None = None,
    grading: Grading | None = None,
) -> PackedTrainer:
    """
    The trainer of a model that was loaded with the packed attention. It adapts the model in place.

    config: as `lora_config` gives it. steps: of the whole run. folder: where the trainer may write.
    batch_tokens: of a step; the recipe's unless given. grading: of a ReinforcementRecipe's answers.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    from ryorin_train.fused_lora import fuse_lora
    from ryorin_train.preference import PreferenceTrainer
    from ryorin_train.rating import RatingTrainer
    from ryorin_train.reinforcement.trainer import PolicyTrainer
    from ryorin_train.reward import OF_SCORES, RewardTrainer
    from ryorin_train.trainer import PackedTrainer

    on_gpu = torch.cuda.is_available()
    kind: Any = PackedTrainer
    if isinstance(recipe, PreferenceRecipe):
        kind = partial(PreferenceTrainer, beta=recipe.beta, chosen_weight=recipe.chosen_weight)
    if isinstance(recipe, RewardRecipe):
        kind, config = RewardTrainer, config | OF_SCORES
    if isinstance(recipe, ReinforcementRecipe):
        assert grading is not None
        ends = tuple({end_of_turn(tokenizer)[-1]: None, tokenizer.eos_token_id: None})
        kind = partial(PolicyTrainer, recipe=recipe, grading=grading, ends=ends)
    if isinstance(recipe, RatingRecipe):
        kind = partial(RatingTrainer, beta=recipe.beta, good_weight=recipe.good_weight, bad_weight=recipe.bad_weight)
    args = SFTConfig(
        output_dir=str(folder),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(steps * recipe.warmup),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_length=None,
        gradient_checkpointing=False,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=False,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # checkpoints are asked for by time: callbacks.py
        report_to=[],
        disable_tqdm=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # of several in sight one: DataParallel would cut packed batches to pieces
    trainer: PackedTrainer = kind(
        model=model,
        packed=packed,
        held_out=held_out,
        batch_tokens=batch_tokens or recipe.batch_tokens,
        part_tokens=recipe.part_tokens,
        seed=recipe.seed,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"row": list(range(len(packed.rows)))}),
        peft_config=LoraConfig(**config),
        args=args,
    )
    if not on_gpu:  # mixed precision casts LoRA's float32 weights; the fused layer does not
        fuse_lora(trainer.model)
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


def check_start(recipe: Recipe, base_path: Path, start: dict[str, Any]) -> None:
    """
    Whether training can begin with an adapter of the PEFT configuration `start`, trained here or not.

    Raises InvalidInput naming what differs.
    """
    wanted = lora_config(recipe, _text_config(base_path)["num_hidden_layers"], base_path)
    for option, read in (
        ("rank", lambda config: config["r"]),
        ("alpha", lambda config: config["lora_alpha"]),
        ("targets", lambda config: sorted(config["target_modules"])),
        ("layers", servable.layers_of),
        ("rslora", lambda config: bool(config.get("use_rslora"))),
    ):
        has, wants = read(start), read(wanted)
        if has != wants:
            raise InvalidInput(
                f"the adapter to start from has {option} {_told(option, has)}, this run {_told(option, wants)}; train "
                f"with the same --{option}",
                param="start_from",
            )


def shape_of(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that an adapter of this PEFT configuration has, as `check_start` wants them."""
    layers = servable.layers_of(config)
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "targets": tuple(sorted(config["target_modules"])),
        "layers": None if layers is None else len(layers),
        "rslora": bool(config.get("use_rslora")),
    }


def _told(option: str, value: Any) -> str:
    if option == "layers":
        return "all" if value is None else str(len(value))
    if option == "rslora":
        return "on" if value else "off"
    return ",".join(value) if isinstance(value, list) else str(value)


def load_weights(model: Any, folder: Path) -> None:
    """Give a PEFT model the weights of an adapter. Raises InvalidInput when they are not those of its layers."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS_FILE)
    loaded = set_peft_model_state_dict(model, weights)
    lacking = [name for name in loaded.missing_keys if "lora_" in name]
    if lacking or loaded.unexpected_keys:
        name = [*lacking, *loaded.unexpected_keys][0]
        raise InvalidInput(f"the adapter in {folder} does not fit: {name}", param="start_from")


def tidy(folder: Path, base_path: Path) -> None:
    """
    Leave only what an adapter consists of, its configuration with sorted lists.

    vLLM's resolver takes an adapter only when its configuration names the served base model's very path. PEFT writes
    sets in an order that changes with every run; sorted, the same training gives the same digest.
    """
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise RyorinError(f"PEFT wrote no {CONFIG_FILE} into {folder}")
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base_path)
    config["target_modules"] = sorted(config["target_modules"])
    config["inference_mode"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Every:
    """Says a line at most every few seconds."""

    def __init__(self, say: Callable[[str], None], seconds: float = 4.0) -> None:
        self._say, self._seconds = say, seconds
        self._spoke = time.monotonic()

    def __call__(self, line: str) -> None:
        """Say it, if the last one is long enough ago."""
        now = time.monotonic()
        if now - self._spoke >= self._seconds:
            self._spoke = now
            self._say(line)
