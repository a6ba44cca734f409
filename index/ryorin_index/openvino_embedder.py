"""
Running an embedder's encoder with OpenVINO, without torch.

The encoder is BERT's (https://arxiv.org/abs/1810.04805), as a sentence-transformers folder keeps it: the weights in
`model.safetensors` under transformers' names, the mean over the tokens at its end, vectors of unit length out. Where
the processor has instructions for bfloat16 (AVX512-BF16, AMX), it is computed in it, else in float32. The words' table,
most of the weights, stays in its file: a text takes the rows of its tokens. A text that is longer than the model's
limit is cut off there, as E5's own code does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin.errors import InvalidInput, RequirementMissing
from ryorin.models.folders import safetensors_header
from ryorin.models.registry import Embedder
from ryorin_index.batches import by_length
from ryorin_index.tokens import PASSAGE_PROMPTS, QUERY_PROMPTS, Vectors, load_tokenizer, model_limit, prompt, token_ids

WEIGHTS = "model.safetensors"
KEPT_SHAPES = 128  # of batches: one that is new costs OpenVINO milliseconds and half a megabyte
_WORDS = "embeddings.word_embeddings.weight"
_HIDDEN = -1e4  # added to the scores of what a mask leaves out: its weight is 0 in float32 and in bfloat16


class OpenVinoEmbedder:
    """An embedder of kind 'openvino', loaded."""

    def __init__(self, embedder: Embedder) -> None:
        openvino = _openvino()
        folder, tokenizer, limit = embedder.path, load_tokenizer(embedder), model_limit(embedder)
        if folder is None or tokenizer is None or limit is None:
            raise InvalidInput(f"embedder {embedder.name!r} has no tokenizer.json or no limit; pull it again")
        core = openvino.Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if "BF16" in can else "f32",
            "INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))),
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "ENABLE_CPU_PINNING": False,  # other processes want the cores too
            "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
        }
        weights = _Weights(folder / WEIGHTS)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._request = core.compile_model(_encoder(weights, config), "CPU", settings).create_infer_request()
        self._words = weights.mapped(_WORDS)
        types = weights["embeddings.token_type_embeddings.weight"]
        self._positions = weights["embeddings.position_embeddings.weight"] + types[0]
        self._tokenizer, self._limit = tokenizer, limit
        self._lock = threading.Lock()
        self._query_prompt, self._passage_prompt = prompt(embedder, QUERY_PROMPTS), prompt(embedder, PASSAGE_PROMPTS)
        self._dimensions = embedder.dimensions

    def query(self, text: str) -> Vectors:
        """The vector of a question. Shape: (dim,), float32."""
        return self.queries([text])[0]

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of questions. Shape: (n_texts, dim), float32."""
        return self._embed([self._query_prompt + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """The vectors of passages. Shape: (n_texts, dim), float32."""
        return self._embed([self._passage_prompt + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> Vectors:
        encoded = token_ids(self._tokenizer, texts, self._limit)
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        lengths = [min(_rounded(len(ids)), self._limit) for ids in encoded]
        for batch in by_length(lengths):
            shape = (len(batch), lengths[batch[0]])
            ids, mask = np.ones(shape, np.int64), np.zeros(shape, np.float32)
            for row, place in enumerate(batch):
                ids[row, : len(encoded[place])] = encoded[place]
                mask[row, : len(encoded[place])] = 1
            tokens = self._words[ids] + self._positions[: shape[1]]
            with self._lock:  # one batch at a time: two would only share the cores
                vectors[batch] = self._request.infer([tokens, mask])[0]
        return vectors


def _openvino() -> Any:
    """The package, kept from telling its makers that it was imported. Raises RequirementMissing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as missing:
        raise RequirementMissing(
            "the package openvino is not installed; install it with: pip install 'ryorin[index]'"
        ) from missing
    return openvino


def _rounded(tokens: int) -> int:
    """As many tokens or a few more, so that there are few shapes: steps of 8, of 16 from 64 and of 32 from 256 on."""
    step = 8 if tokens <= 64 else 16 if tokens <= 256 else 32
    return -(-tokens // step) * step


class _Weights:
    """The tensors of a safetensors file, by name, as float32."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path = path
        self._file: Any = safe_open(str(path), framework="np")

    def __getitem__(self, name: str) -> Vectors:
        return np.ascontiguousarray(self._file.get_tensor(name), np.float32)

    def mapped(self, name: str) -> NDArray[np.floating[Any]]:
        """A tensor that stays in the file, in the file's type (float16 or float32)."""
        header, begin = safetensors_header(self._path)
        entry = header[name]
        kind = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        return np.memmap(self._path, kind, "r", begin + entry["data_offsets"][0], tuple(entry["shape"]))


def _encoder(weights: _Weights, config: dict[str, Any]) -> Any:
    """
    BERT's layers and the mean over its tokens, as OpenVINO's model.

    Inputs: what the embeddings of words, positions and types add up to, (texts, tokens, hidden), and the mask, (texts,
    tokens), both float32. Output: (texts, hidden), unit length.
    """
    openvino = _openvino()
    import openvino.opset13 as op

    hidden, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]

    def whole(*numbers: int) -> Any:
        return op.constant(np.array(numbers, np.int64))

    def real(values: Any) -> Any:
        return op.constant(np.asarray(values, np.float32))

    def normal(states: Any, name: str) -> Any:
        centred = op.mvn(states, whole(-1), True, epsilon, "INSIDE_SQRT")
        scaled = op.multiply(centred, real(weights[f"{name}.LayerNorm.weight"]))
        return op.add(scaled, real(weights[f"{name}.LayerNorm.bias"]))

    def linear(states: Any, name: str) -> Any:
        product = op.matmul(states, real(weights[f"{name}.weight"]), False, True)
        return op.add(product, real(weights[f"{name}.bias"]))

    def by_head(states: Any, name: str) -> Any:
        split = op.reshape(linear(states, name), whole(0, 0, heads, hidden // heads), True)
        return op.transpose(split, whole(0, 2, 1, 3))

    tokens = op.parameter([-1, -1, hidden], np.float32)
    mask = op.parameter([-1, -1], np.float32)
    left_out = op.multiply(op.subtract(real(1), op.unsqueeze(mask, whole(1, 2))), real(_HIDDEN))
    states = normal(tokens, "embeddings")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts = [by_head(states, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")]
        seen = op.transpose(op.scaled_dot_product_attention(*parts, left_out), whole(0, 2, 1, 3))
        seen = op.reshape(seen, whole(0, 0, hidden), True)
        seen = op.add(linear(seen, f"{layer}.attention.output.dense"), states)
        states = normal(seen, f"{layer}.attention.output")
        inner = op.gelu(linear(states, f"{layer}.intermediate.dense"), "ERF")
        states = normal(op.add(linear(inner, f"{layer}.output.dense"), states), f"{layer}.output")
    # The mean over the tokens has the direction of their sum, and only the direction stays.
    total = op.squeeze(op.matmul(op.unsqueeze(mask, whole(1)), states, False, False), whole(1))
    return openvino.Model([op.normalize_l2(total, whole(1), 1e-12, "max")], [tokens, mask], "encoder")
