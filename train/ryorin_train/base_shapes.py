"""The shapes of a base model's linear modules, from its config alone: no weight is read, no code of the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """The linear modules of a model: name → (out, in)."""
    from torch.nn import Linear

    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }


@lru_cache(maxsize=8)  # a model's folder never changes
def base_linears(base_path: Path) -> Mapping[str, tuple[int, int]]:
    """The linear modules of the base model in a folder: name → (out, in). Built on torch's meta device: no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(base_path), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return MappingProxyType(linear_shapes(AutoModelForCausalLM.from_config(config, trust_remote_code=False)))
