"""Adapters for tests, saved by PEFT itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_lora(
    folder: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    alpha: int = 16,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    scale: float = 0.1,
    **config: Any,
) -> Path:
    """A LoRA of the base model with random A and B, as PEFT's `save_pretrained` leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets), "task_type": "CAUSAL_LM", **config}
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink()
    return folder


def logits(base: Path, folder: Path | None = None) -> Any:
    """What the base model, or the base model with the adapter in `folder`, makes of a few tokens: (tokens, words)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder))
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits[0]
