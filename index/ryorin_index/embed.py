"""
Turning text into vectors, with the embedder that a vector store was created with.

Three kinds: a BERT in OpenVINO (the default embedder), a sentence-transformers folder, an OpenAI-compatible
endpoint. Callers may hand over hundreds of passages at once: they are put into batches of like length here. Queries and
passages are embedded differently by asymmetric models (E5 wants 'query: ' and 'passage: ',
https://arxiv.org/abs/2402.05672), so there are two methods.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ryorin.errors import InvalidInput, RequirementMissing, Unavailable
from ryorin.models.registry import Embedder
from ryorin_index.batches import by_length
from ryorin_index.tokens import Vectors as Vectors

if TYPE_CHECKING:
    from ryorin_index.counting import TokenCounter

ENDPOINT_BATCH = 64
ENDPOINT_TIMEOUT_S = 60.0
ENDPOINT_RETRIES = 5  # of 429 and 5xx, the pauses between them growing: the client's own back-off


class Embed(Protocol):
    """An embedder that runs. Vectors have unit length, so their inner product is the cosine."""

    def query(self, text: str) -> Vectors:
        """The vector of a question. Shape: (dim,), float32."""
        ...

    def queries(self, texts: Sequence[str]) -> Vectors:
        """The vectors of questions, in one call. Shape: (n_texts, dim), float32."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """The vectors of passages. Shape: (n_texts, dim), float32."""
        ...


def open_embedder(embedder: Embedder) -> Embed:
    """The embedder, loaded. Raises RequirementMissing when its package is not installed."""
    if embedder.kind == "openai":
        return _Endpoint(embedder)
    from ryorin_index.counting import open_counter
    from ryorin_index.windows import Windowed

    counter = open_counter(embedder)
    if embedder.kind == "openvino":
        from ryorin_index.openvino_embedder import OpenVinoEmbedder

        return Windowed(OpenVinoEmbedder(embedder), counter)
    return Windowed(_SentenceTransformers(embedder, counter), counter)


class _SentenceTransformers:
    def __init__(self, embedder: Embedder, counter: TokenCounter) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as missing:
            raise RequirementMissing("the package sentence-transformers is not installed") from missing
        self._model: Any = SentenceTransformer(str(embedder.path), local_files_only=True)
        self._counter = counter
        self._lock = threading.Lock()

    def query(self, text: str) -> Vectors:
        return self.queries([text])[0]

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts, ("query",))

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts, ("document", "passage"))

    def _encode(self, texts: Sequence[str], names: tuple[str, ...]) -> Vectors:
        known = {name: text for name, text in self._model.prompts.items() if text}
        name = next((name for name in names if name in known), None)
        vectors = np.empty((len(texts), self._model.get_sentence_embedding_dimension()), np.float32)
        for batch in by_length(self._counter.counts(texts)):
            with self._lock:
                vectors[batch] = self._model.encode(
                    [texts[place] for place in batch],
                    prompt_name=name,
                    batch_size=len(batch),
                    normalize_embeddings=True,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
        return vectors


class _Endpoint:
    def __init__(self, embedder: Embedder) -> None:
        from openai import OpenAI

        key = os.environ.get(embedder.api_key_env or "", "")
        if embedder.api_key_env and not key:
            raise RequirementMissing(f"embedder {embedder.name!r} needs its key in the variable {embedder.api_key_env}")
        self._embedder = embedder
        self._client = OpenAI(
            base_url=embedder.url, api_key=key or "none", timeout=ENDPOINT_TIMEOUT_S, max_retries=ENDPOINT_RETRIES
        )

    def query(self, text: str) -> Vectors:
        return self._embed([text])[0]

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self.passages(texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        batches = [self._embed(texts[at : at + ENDPOINT_BATCH]) for at in range(0, len(texts), ENDPOINT_BATCH)]
        return np.concatenate(batches) if batches else np.empty((0, self._embedder.dimensions), np.float32)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        from openai import OpenAIError

        try:
            reply = self._client.embeddings.create(model=self._embedder.model or "", input=list(texts))
        except OpenAIError as error:
            raise Unavailable(f"embedder {self._embedder.name!r} at {self._embedder.url} failed: {error}") from error
        rows = sorted(reply.data, key=lambda row: row.index)
        vectors = np.asarray([row.embedding for row in rows], dtype=np.float32)
        if vectors.shape != (len(texts), self._embedder.dimensions):
            raise InvalidInput(
                f"embedder {self._embedder.name!r} gave vectors of shape {vectors.shape}, "
                f"not ({len(texts)}, {self._embedder.dimensions}); if its model changed, add it under a new name"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
