"""
An optional second look at what was found: a cross-encoder reads the question and each passage together.

Any sentence-transformers CrossEncoder in a local folder; none is bundled.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ryorin.digests import SHORT
from ryorin.errors import Conflict, InvalidInput, RequirementMissing
from ryorin.models.folders import check_reranker, reranker_digest

RERANK_CANDIDATES = 50  # passages it reads at most: each costs a forward pass
_BATCH = 16


class Rerank(Protocol):
    """A reranker that runs."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query; higher is better, the scale is the model's own."""
        ...


def open_reranker(name: str, digest: str | None = None) -> Rerank:
    """
    The cross-encoder in the folder `name`, loaded.

    digest: of the one that is wanted; None takes the one that is there.
    Raises NotFound when there is none, Conflict when it is another one, InvalidInput when it is something else,
    RequirementMissing without the package.
    """
    folder = Path(name).expanduser()
    check_reranker(folder)
    if digest is not None and (found := reranker_digest(folder)) != digest:
        raise Conflict(
            f"the reranker at {name!r} is {found[:SHORT]}, the release was made with {digest[:SHORT]}; put the former "
            "model back there, or create a release anew with 'ryorin release create --reranker'",
            code="reranker_mismatch",
            param="model",
        )
    return _CrossEncoder(folder)


class _CrossEncoder:
    def __init__(self, folder: Path) -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as missing:
            raise RequirementMissing("the package sentence-transformers is not installed") from missing
        self._model: Any = CrossEncoder(str(folder), local_files_only=True)
        if self._model.num_labels != 1:
            raise InvalidInput(
                f"the model at {str(folder)!r} gives {self._model.num_labels} numbers a passage; a reranker gives one",
                param="reranker",
            )
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        with self._lock:
            pairs = [(query, text) for text in texts]
            return [float(score) for score in self._model.predict(pairs, batch_size=_BATCH, show_progress_bar=False)]
