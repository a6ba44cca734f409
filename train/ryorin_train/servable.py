"""
Whether vLLM can serve an adapter: asked before an hour of training is spent, and again of the files it left.

What vLLM refuses is in its `vllm/lora/peft_helper.py` (features) and `vllm/config/lora.py` (ranks); the ranks end at 64
here because an engine must reserve memory for the largest. Knows the files, not the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput

RANKS = (1, 8, 16, 32, 64)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# PEFT features that change what the weights mean, each with the value that leaves it off.
_OFF: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (False, None),
}


def check_config(config: Mapping[str, Any]) -> None:
    """Whether an adapter of this PEFT configuration could be served. Raises InvalidInput naming the field."""
    if config.get("peft_type", "LORA") != "LORA":
        raise InvalidInput(f"peft_type is {config['peft_type']!r}; vLLM serves LORA only", param="peft_type")
    for field, off in _OFF.items():
        if field in config and config[field] not in off:
            raise InvalidInput(f"{field} is {config[field]!r}; vLLM cannot serve that, leave it off", param=field)
    init = config.get("init_lora_weights", True)
    if init not in (True, False, "gaussian", "orthogonal"):
        raise InvalidInput(
            f"init_lora_weights is {init!r}, which changes the base model; vLLM cannot serve that",
            param="init_lora_weights",
        )
    if config.get("r") not in RANKS:
        raise InvalidInput(f"rank is {config.get('r')}; vLLM takes {', '.join(map(str, RANKS))}", param="rank")
    targets = config.get("target_modules")
    if isinstance(targets, str) or not targets:
        raise InvalidInput(f"targets are {targets!r}; name modules among {', '.join(TARGETS)}", param="targets")
    for target in sorted(targets):
        if target not in TARGETS:
            raise InvalidInput(f"target {target!r} is unknown; vLLM adapts {', '.join(TARGETS)}", param="targets")


def check_targets(targets: tuple[str, ...], linears: Mapping[str, tuple[int, int]]) -> None:
    """
    Whether the base model has every target. `linears`: its linear modules' names and shapes (out, in).

    Raises InvalidInput naming the first that it has not.
    """
    present = {name.rpartition(".")[2] for name in linears}
    for target in targets:
        if target not in present:
            raise InvalidInput(
                f"target {target!r} is not in the base model, which has {', '.join(sorted(present))}", param="targets"
            )


def check_folder(folder: Path, linears: Mapping[str, tuple[int, int]] | None = None) -> None:
    """
    Whether the adapter in `folder` is one that vLLM can serve: its configuration, and each tensor's name, shape and
    values. `linears`: as for `check_targets`; shapes are compared with the base model's when given.

    Raises InvalidInput naming the file or tensor.
    """
    others = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    if others:
        raise InvalidInput(f"{folder.name} holds {others[0]}; only safetensors are accepted, pickles can run code")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder.name} has no {name}")
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    check_config(config)
    sides: dict[str, set[str]] = {}
    for name, shape, finite in _tensors(folder / WEIGHTS_FILE):
        match = _WEIGHT.fullmatch(name)
        if match is None:
            raise InvalidInput(f"{WEIGHTS_FILE} has the tensor {name!r}, which is no LoRA weight")
        module, side = match["module"], match["side"]
        sides.setdefault(module, set()).add(side)
        if module.rpartition(".")[2] not in config["target_modules"]:
            raise InvalidInput(f"tensor {name!r} belongs to no target module of {CONFIG_FILE}")
        rank_axis = 0 if side == "A" else 1
        if len(shape) != 2 or shape[rank_axis] != config["r"]:
            raise InvalidInput(f"tensor {name!r} has shape {shape}; its rank should be {config['r']}")
        if linears is not None:
            if module not in linears:
                raise InvalidInput(f"tensor {name!r} belongs to no module of the base model")
            out_features, in_features = linears[module]
            if shape[1 - rank_axis] != (in_features if side == "A" else out_features):
                raise InvalidInput(f"tensor {name!r} has shape {shape}; {module} is {out_features} x {in_features}")
        if not finite:
            raise InvalidInput(f"tensor {name!r} holds values that are not finite: training diverged; lower the rate")
    halves = [module for module, found in sides.items() if found != {"A", "B"}]
    if halves or not sides:
        raise InvalidInput(f"{WEIGHTS_FILE} lacks one half of {halves[0]}" if halves else f"{WEIGHTS_FILE} is empty")


def _tensors(path: Path) -> list[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, whether all values are finite) of each tensor."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as tensors:
            return [
                (name, tuple(tensor.shape), bool(torch.isfinite(tensor).all()))
                for name in tensors.keys()  # noqa: SIM118  (safe_open is no mapping)
                for tensor in (tensors.get_tensor(name),)
            ]
    except SafetensorError as error:
        raise InvalidInput(f"{path.name} is not a safetensors file: {error}") from error
