"""
The encoder of an e5 file as an ONNX graph in 4 bits, mean pooling and unit length included.

    ids (texts, tokens) int64, mask (texts, tokens) int32  →  vectors (texts, hidden) float32

Matrices keep the file's own 4 bits and scales, and what goes into them is quantised to 8 bits, block by block, while it
runs: what the package's engine does too, so the vectors are the same, and a text's does not depend on its batch.
Operators with a domain are ONNX Runtime's own
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). Written operator by operator, so the same
file gives the same bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ryorin.models.e5_file import BLOCK, E5File, Floats, FourBits

OPSET, IR_VERSION = 18, 10
INT8 = 4  # accuracy_level: what is multiplied is quantised to int8
_ONNXRUNTIME = "com.microsoft"


def write_graph(model: E5File, path: Path) -> None:
    """Write the graph of `model` to `path`."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph(model)
    state = graph.embeddings()
    for layer in range(model.layers):
        state = graph.layer(layer, state)
    graph.pool(state)
    texts, tokens = "texts", "tokens"
    proto = helper.make_graph(
        graph.nodes,
        "encoder",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [texts, tokens]),
            helper.make_tensor_value_info("mask", TensorProto.INT32, [texts, tokens]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [texts, model.hidden])],
        graph.constants,
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(_ONNXRUNTIME, 1)]
    onnx.save(helper.make_model(proto, opset_imports=imports, ir_version=IR_VERSION), str(path))


class _Graph:
    """Collects nodes and constants; each method returns the name of what it computes."""

    def __init__(self, model: E5File) -> None:
        self._model = model
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def embeddings(self) -> str:
        model = self._model
        word = model.matrices["emb.word"]
        positions = model.vectors["emb.pos"].reshape(model.positions, -1) + model.vectors["emb.type"][: model.hidden]
        table = self._constant("word.nibbles", _pairs(word).reshape(model.vocabulary, -1))
        self._own(
            "GatherBlockQuantized",
            [table, "ids", self._constant("word.scales", word.scales)],
            "word",
            bits=4,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        self._node("Shape", ["ids"], "shape")
        self._node("Gather", ["shape", self._constant("one", np.array([1], np.int64))], "length")
        zero = self._constant("zero", np.array([0], np.int64))
        self._node("Slice", [self._constant("positions", positions), zero, "length", zero], "position")
        return self._add_and_normalise("word", "position", "emb.ln")

    def layer(self, number: int, state: str) -> str:
        model, name = self._model, f"l{number}."
        three = [model.matrices[f"{name}{part}.w"] for part in "qkv"]
        together = FourBits(
            np.concatenate([matrix.nibbles for matrix in three]), np.concatenate([matrix.scales for matrix in three])
        )
        self._product(state, f"{name}qkv", together, None)
        parts = [f"{name}{part}" for part in "qkv"]
        self._node("Split", [f"{name}qkv"], *parts, axis=2, num_outputs=3)
        bias = np.concatenate([model.vectors[f"{part}.b"] for part in parts])
        inputs = [*parts, self._constant(f"{name}qkv.b", bias), "mask"]
        self._own("MultiHeadAttention", inputs, f"{name}context", num_heads=model.heads)
        self._product(f"{name}context", f"{name}ao", model.matrices[f"{name}ao.w"], model.vectors[f"{name}ao.b"])
        attended = self._add_and_normalise(f"{name}ao", state, f"{name}aln")
        self._product(attended, f"{name}fi", model.matrices[f"{name}fi.w"], None)
        self._own("BiasGelu", [f"{name}fi", self._constant(f"{name}fi.b", model.vectors[f"{name}fi.b"])], f"{name}gelu")
        self._product(f"{name}gelu", f"{name}fo", model.matrices[f"{name}fo.w"], model.vectors[f"{name}fo.b"])
        return self._add_and_normalise(f"{name}fo", attended, f"{name}oln")

    def pool(self, state: str) -> None:
        """The mean over the tokens has the direction of their sum, and only the direction stays."""
        self._node("Cast", ["mask"], "weights", to=1)
        self._node("Unsqueeze", ["weights", "one"], "row")
        self._node("MatMul", ["row", state], "sum")
        self._node("Squeeze", ["sum", "one"], "flat")
        self._node("LpNormalization", ["flat"], "vectors", axis=1, p=2)

    def _product(self, state: str, name: str, weights: FourBits, bias: Floats | None) -> None:
        inputs = [state, self._constant(f"{name}.q", _pairs(weights)), self._constant(f"{name}.s", weights.scales)]
        if bias is not None:
            inputs += ["", "", self._constant(f"{name}.b", bias)]
        outputs, blocks = weights.scales.shape
        self._own(
            "MatMulNBits", inputs, name, K=blocks * BLOCK, N=outputs, bits=4, block_size=BLOCK, accuracy_level=INT8
        )

    def _add_and_normalise(self, state: str, other: str, name: str) -> str:
        vectors = self._model.vectors
        inputs = [state, other, *(self._constant(f"{name}.{part}", vectors[f"{name}.{part}"]) for part in "wb")]
        self._own("SkipLayerNormalization", inputs, f"{name}.out", epsilon=self._model.epsilon)
        return f"{name}.out"

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _own(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        self._node(operator, inputs, *outputs, domain=_ONNXRUNTIME, **attributes)

    def _node(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))


def _pairs(weights: FourBits) -> NDArray[np.uint8]:
    """Two weights a byte, the first in the low half, as ONNX Runtime wants them. Shape: (rows, blocks, 16)."""
    return np.bitwise_or(weights.nibbles[..., 0::2], weights.nibbles[..., 1::2] * np.uint8(16)).astype(np.uint8)
