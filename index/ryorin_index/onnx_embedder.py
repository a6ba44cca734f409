"""
Running an embedder's ONNX graph in 4 bits, without torch.

The graph is what `ryorin.models.bert_graph` writes: token ids and their mask in, vectors of unit length out. A text
that is longer than the model's limit is cut off there, as E5's own code does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np

from ryorin.errors import InvalidInput, RequirementMissing
from ryorin.models.folders import ONNX_GRAPH
from ryorin.models.registry import Embedder
from ryorin_index.batches import by_length
from ryorin_index.tokens import PASSAGE_PROMPTS, QUERY_PROMPTS, Vectors, load_tokenizer, model_limit, prompt, token_ids


class OnnxEmbedder:
    """An embedder of kind 'onnx', loaded."""

    def __init__(self, embedder: Embedder) -> None:
        try:
            from onnxruntime import InferenceSession, SessionOptions  # type: ignore[import-untyped]
        except ModuleNotFoundError as missing:
            raise RequirementMissing(
                "the package onnxruntime is not installed; install it with: pip install 'ryorin[index]'"
            ) from missing
        options = SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes want the cores too
        options.log_severity_level = 3
        folder, tokenizer, limit = embedder.path, load_tokenizer(embedder), model_limit(embedder)
        if folder is None or tokenizer is None or limit is None:
            raise InvalidInput(f"embedder {embedder.name!r} has no tokenizer.json or no limit; pull it again")
        self._session = InferenceSession(str(folder / ONNX_GRAPH), options, providers=["CPUExecutionProvider"])
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
        for batch in by_length([len(ids) for ids in encoded]):
            shape = (len(batch), len(encoded[batch[0]]))
            ids, mask = np.ones(shape, np.int64), np.zeros(shape, np.int32)
            for row, place in enumerate(batch):
                ids[row, : len(encoded[place])] = encoded[place]
                mask[row, : len(encoded[place])] = 1
            with self._lock:  # one batch at a time: two would only share the cores
                vectors[batch] = self._session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors
