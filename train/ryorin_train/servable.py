"""
Whether vLLM can serve an adapter: asked before an hour of training is spent, again of the files it left, and of files
that come from elsewhere.

What vLLM refuses is in its `vllm/lora/peft_helper.py` (features) and `vllm/config/lora.py` (ranks); the ranks end at 64
here because an engine must reserve memory for the largest. It does not know every field of PEFT and reads past what it
does not know; here an unknown field is refused, because what it changes would be missing when the adapter is served.
Knows the files, not the engine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ryorin.adapter_files import CODE_BEARING, CONFIG_FILE, WEIGHTS_FILE
from ryorin.errors import InvalidInput
from ryorin_train.tensor_file import read_header

RANKS = (1, 8, 16, 32, 64)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_CONFIG_BYTES = 64 * 1024
MAX_ALPHA = 65536
LARGEST_VALUE = 65504.0  # of float16: an engine may compute in it
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
PREFIX = "base_model.model."
_WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")  # how PEFT finds a module's layer
# PEFT features that change what the weights mean, each with the values that leave it off.
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
    "exclude_modules": (None, []),
    "ensure_weight_tying": (False, None),
    "megatron_config": (None,),
    "megatron_core": ("megatron.core", None),  # the name of a module that PEFT may import
    "layers_pattern": (None, [], "", "layers", ["layers"]),  # a part of a regular expression in PEFT
    "loftq_config": ({}, None),
    "eva_config": (None,),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
}
# The other fields that PEFT writes, and the types they may have.
_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "task_type": (str, _NONE),
    "auto_mapping": (dict, _NONE),
    "peft_version": (str, _NONE),
    "base_model_name_or_path": (str, _NONE),
    "revision": (str, _NONE),
    "inference_mode": (bool,),
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "use_rslora": (bool,),
    "init_lora_weights": (bool, str),
    "target_modules": (list, str),
    "layers_to_transform": (list, int, _NONE),
    "qalora_group_size": (int,),
}
_INITS = (True, False, "gaussian", "orthogonal")


def read_config(path: Path) -> dict[str, Any]:
    """
    An adapter's configuration as it stands in the file, which must be one object in JSON without repeated keys.

    Raises InvalidInput.
    """
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise InvalidInput(f"{path.name} has {size:,} bytes; a LoRA's has {MAX_CONFIG_BYTES:,} at most")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    def no_number(text: str) -> Any:
        raise ValueError(f"{text} is no number in JSON")

    try:
        config = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{path.name} is no object in JSON")
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Whether an adapter of this PEFT configuration could be served. Raises InvalidInput naming the field."""
    if config.get("peft_type", "LORA") != "LORA":
        raise InvalidInput(f"peft_type is {_short(config['peft_type'])}; vLLM serves LORA only", param="peft_type")
    for field, value in config.items():
        if field in _OFF:
            if not any(_same(value, off) for off in _OFF[field]):
                raise InvalidInput(f"{field} is {_short(value)}; vLLM cannot serve that, leave it off", param=field)
        elif field not in _TYPES:
            raise InvalidInput(
                f"the field {_short(field)} is not known here, and could change what the weights mean; save the "
                "adapter with a PEFT that does not write it, or remove it where it is without effect",
                param=field[:64],
            )
        elif type(value) not in _TYPES[field]:
            raise InvalidInput(f"{field} is {_short(value)}, which is of the wrong type", param=field)
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidInput(f"task_type is {_short(config['task_type'])}; only CAUSAL_LM is served", param="task_type")
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        raise InvalidInput(
            f"init_lora_weights is {_short(init)}, which changes the base model; vLLM cannot serve that",
            param="init_lora_weights",
        )
    if config.get("r") not in RANKS:
        raise InvalidInput(f"rank is {config.get('r')}; vLLM takes {', '.join(map(str, RANKS))}", param="rank")
    alpha = config.get("lora_alpha")
    if alpha is None or not 0 < alpha <= MAX_ALPHA:
        raise InvalidInput(f"lora_alpha is {alpha}; it must be above 0 and {MAX_ALPHA} at most", param="alpha")
    if not 0 <= config.get("lora_dropout", 0) < 1:
        raise InvalidInput(f"lora_dropout is {config['lora_dropout']}; it must be 0 to 1", param="lora_dropout")
    targets = config.get("target_modules")
    if isinstance(targets, str) or not targets:
        raise InvalidInput(f"targets are {_short(targets)}; name modules among {', '.join(TARGETS)}", param="targets")
    for target in targets:
        if target not in TARGETS:
            raise InvalidInput(f"target {_short(target)} is unknown; vLLM adapts {', '.join(TARGETS)}", param="targets")
    if len(set(targets)) != len(targets):
        raise InvalidInput("targets name a module twice", param="targets")
    _check_layers(config.get("layers_to_transform"))


def _check_layers(layers: Any) -> None:
    for layer in layers if isinstance(layers, list) else [] if layers is None else [layers]:
        if type(layer) is not int or not 0 <= layer < 10_000:
            raise InvalidInput(f"layers_to_transform names the layer {_short(layer)}", param="layers_to_transform")
    if isinstance(layers, list) and len(set(layers)) != len(layers):
        raise InvalidInput("layers_to_transform names a layer twice", param="layers_to_transform")


def scaling(config: Mapping[str, Any]) -> float:
    """What the product of an adapter's matrices is multiplied with, as PEFT and vLLM do; rsLoRA: arxiv 2312.03732."""
    rank, alpha = config["r"], config["lora_alpha"]
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def layers_of(config: Mapping[str, Any]) -> list[int] | None:
    """The layers that are adapted, sorted; None for all."""
    layers = config.get("layers_to_transform")
    return None if layers is None or layers == [] else sorted(layers) if isinstance(layers, list) else [layers]


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


def adapted_modules(config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """
    The modules of the base model that an adapter of this configuration changes, with their shapes (out, in).

    Raises InvalidInput for a target or a layer that the base model has not.
    """
    check_targets(tuple(config["target_modules"]), linears)
    layers = layers_of(config)
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for module, shape in linears.items():
        if module.rpartition(".")[2] not in config["target_modules"]:
            continue
        match = _LAYER.match(module)
        if layers is not None and (match is None or int(match[1]) not in layers):
            continue
        if match is not None:
            seen.add(int(match[1]))
        found[module] = shape
    absent = sorted(set(layers or ()) - seen)
    if absent:
        raise InvalidInput(f"layers_to_transform names layer {absent[0]}, which the base model has not")
    return found


def weights_limit(config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> int:
    """The bytes of values that the weights of such an adapter can have at most (in float32)."""
    shapes = adapted_modules(config, linears).values()
    return sum(config["r"] * (rows + columns) * DTYPE_BYTES["F32"] for rows, columns in shapes)


def check_folder(folder: Path, linears: Mapping[str, tuple[int, int]]) -> None:
    """
    Whether the adapter in `folder` is one that vLLM can serve: its configuration, and each tensor's name, type, shape
    and values; neither a tensor more nor one less than the configuration says. linears: as for `check_targets`.

    Raises InvalidInput naming the file or tensor.
    """
    others = [path.name for path in folder.iterdir() if path.suffix.lower() in CODE_BEARING]
    if others:
        raise InvalidInput(f"{folder.name} holds {others[0]}; only safetensors are accepted, pickles can run code")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder.name} has no {name}")
    config = read_config(folder / CONFIG_FILE)
    check_config(config)
    modules = adapted_modules(config, linears)
    header = read_header(folder / WEIGHTS_FILE)
    for name, tensor in header.items():
        _check_tensor(name, tensor.dtype, tensor.shape, config, modules, linears)
    if not header:
        raise InvalidInput(f"{WEIGHTS_FILE} is empty")
    for module in modules:
        for side in "AB":
            if f"{PREFIX}{module}.lora_{side}.weight" not in header:
                raise InvalidInput(f"{WEIGHTS_FILE} lacks lora_{side} of {module}, which {CONFIG_FILE} names")
    _check_values(folder / WEIGHTS_FILE)


def _check_tensor(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    config: Mapping[str, Any],
    modules: Mapping[str, tuple[int, int]],
    linears: Mapping[str, tuple[int, int]],
) -> None:
    match = _WEIGHT.fullmatch(name)
    if match is None:
        raise InvalidInput(f"{WEIGHTS_FILE} has the tensor {_short(name)}, which is no LoRA weight")
    module, side = match["module"], match["side"]
    if module.rpartition(".")[2] not in config["target_modules"]:
        raise InvalidInput(f"tensor {_short(name)} belongs to no target module of {CONFIG_FILE}")
    rank_axis = 0 if side == "A" else 1
    if len(shape) != 2 or shape[rank_axis] != config["r"]:
        raise InvalidInput(f"tensor {_short(name)} has shape {shape}; its rank should be {config['r']}")
    if module not in linears:
        raise InvalidInput(f"tensor {_short(name)} belongs to no module of the base model")
    if module not in modules:
        raise InvalidInput(f"tensor {_short(name)} is of a layer that {CONFIG_FILE} does not name")
    out_features, in_features = linears[module]
    if shape[1 - rank_axis] != (in_features if side == "A" else out_features):
        raise InvalidInput(f"tensor {_short(name)} has shape {shape}; {module} is {out_features} x {in_features}")
    if dtype not in DTYPE_BYTES:
        raise InvalidInput(f"tensor {_short(name)} is of type {_short(dtype)}; taken are {', '.join(DTYPE_BYTES)}")


def _check_values(path: Path) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = tensors.get_tensor(name)
                if not torch.isfinite(tensor).all():
                    raise InvalidInput(
                        f"tensor {name!r} holds values that are not finite: training diverged; lower the rate"
                    )
                largest = tensor.abs().max().item()
                if largest > LARGEST_VALUE:
                    raise InvalidInput(
                        f"tensor {name!r} holds {largest:.3g}; an engine that computes in float16 ends at "
                        f"{LARGEST_VALUE:g}"
                    )
    except SafetensorError as error:
        raise InvalidInput(f"{path.name} is not a safetensors file: {error}") from error


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _short(value: Any) -> str:
    """A value from outside, for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
