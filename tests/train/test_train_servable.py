from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ryorin.errors import InvalidInput
from ryorin_train.recipe import Recipe
from ryorin_train.servable import check_config, check_folder, check_targets
from ryorin_train.sft import check_recipe, lora_config

GOOD: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
MODULE = "model.layers.0.self_attn.q_proj"
LINEARS = {MODULE: (6, 4), "lm_head": (10, 4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "LOHA"}, "serves LORA only"),
        ({"r": 12}, "rank is 12; vLLM takes 1, 8, 16, 32, 64"),
        ({"r": 128}, "rank is 128"),
        ({"r": 0}, "rank is 0"),
        ({"target_modules": "all-linear"}, "targets are 'all-linear'"),
        ({"target_modules": []}, "name modules among"),
        ({"target_modules": ["q_proj", "wq"]}, "target 'wq' is unknown"),
        ({"target_modules": ["embed_tokens"]}, "target 'embed_tokens' is unknown"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(change: dict[str, Any], words: str) -> None:
    check_config(GOOD)
    with pytest.raises(InvalidInput, match=words):
        check_config({**GOOD, **change})


def test_our_ranks_are_ranks_of_the_installed_vllm() -> None:
    import re
    from importlib.util import find_spec

    from ryorin_train.servable import RANKS

    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "config" / "lora.py").read_text()
    match = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", source)
    assert match is not None
    assert set(RANKS) <= {int(rank) for rank in match[1].split(",")}


def test_the_default_recipe_can_be_served(tiny_base: Path) -> None:
    check_recipe(Recipe(max_row_tokens=512), tiny_base)
    assert lora_config(Recipe(layers=2), 3, tiny_base)["layers_to_transform"] == [1, 2]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"rank": 24}, "rank is 24"),
        ({"layers": 4}, "layers is 4; the base model has 3"),
        ({"targets": ("c_attn",)}, "target 'c_attn'"),
        ({"max_row_tokens": 5000}, "max_row_tokens is 5000; the base model reads 1024"),
    ],
)
def test_a_recipe_is_refused_before_a_model_is_loaded(tiny_base: Path, recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_recipe(Recipe(**recipe), tiny_base)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"held_out": 0.9},
        {"batch_tokens": 1},
        {"layers": 0},
        {"seed": -1},
        {"alpha": 0},
    ],
)
def test_a_recipe_out_of_range_names_the_field(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Recipe(**values)
    assert caught.value.param == next(iter(values))


def test_a_target_that_the_model_lacks_is_refused() -> None:
    check_targets(("q_proj",), LINEARS)
    with pytest.raises(InvalidInput, match="'up_proj' is not in the base model, which has lm_head, q_proj"):
        check_targets(("q_proj", "up_proj"), LINEARS)


def folder_of(path: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    import torch
    from safetensors.torch import save_file

    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({**GOOD, **config}))
    name = f"base_model.model.{MODULE}.lora_"
    good = {f"{name}A.weight": torch.zeros(8, 4), f"{name}B.weight": torch.zeros(6, 8)}
    save_file({**good, **(tensors or {})}, path / "adapter_model.safetensors")
    return path


def test_a_good_folder_passes(tmp_path: Path) -> None:
    check_folder(folder_of(tmp_path / "a"), LINEARS)


def test_bad_tensors_are_named(tmp_path: Path) -> None:
    import torch

    name = f"base_model.model.{MODULE}.lora_"
    for tensors, words in (
        ({"model.norm.weight": torch.zeros(4)}, "'model.norm.weight', which is no LoRA weight"),
        ({f"{name}A.weight": torch.zeros(4, 4)}, "rank should be 8"),
        ({f"{name}A.weight": torch.zeros(8, 5)}, "q_proj is 6 x 4"),
        ({f"{name}B.weight": torch.full((6, 8), float("nan"))}, "not finite"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(8, 4)}, "no target module"),
        ({"base_model.model.other.q_proj.lora_A.weight": torch.zeros(8, 4)}, "no module of the base model"),
    ):
        with pytest.raises(InvalidInput, match=words):
            check_folder(folder_of(tmp_path / "a", tensors), LINEARS)


def test_bad_files_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidInput, match="only safetensors"):
        check_folder(folder)
    (folder / "adapter_model.bin").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"not one")
    with pytest.raises(InvalidInput, match="is not a safetensors file"):
        check_folder(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="has no adapter_model"):
        check_folder(folder)
