"""`ranking_options`, as vector stores and the file_search tool have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ryorin.errors import InvalidInput
from ryorin.release import Retrieval
from ryorin_serve.requests import choice, fields_of

RANKERS = ("auto", "none", "default-2024-11-15")


def read_ranking(body: Mapping[str, Any], top_k: int, where: str = "") -> Retrieval:
    """
    How to search: the field `ranking_options`. No reranker is at hand, so every ranker means the same.

    where: the object that the field is of, with a dot. Raises InvalidInput.
    """
    if body.get("ranking_options") is None:
        return Retrieval(top_k=top_k)
    name = f"{where}ranking_options."
    given = fields_of(body["ranking_options"], ("ranker", "score_threshold", "hybrid_search"), name)
    if given.get("ranker") is not None:
        choice(given["ranker"], f"{name}ranker", RANKERS)
    floor = _share(given, "score_threshold", 1.0, name) or None  # 0 asks for no floor
    if given.get("hybrid_search") is None:
        return Retrieval(top_k=top_k, score_floor=floor)
    name += "hybrid_search."
    weights = fields_of(given["hybrid_search"], ("embedding_weight", "text_weight"), name)
    dense, lexical = (_share(weights, each, 100.0, name) or 0.0 for each in ("embedding_weight", "text_weight"))
    if not dense + lexical:
        raise InvalidInput("One of the weights must be above 0.", param=name.rstrip("."))
    return Retrieval(top_k=top_k, score_floor=floor, dense_weight=dense, lexical_weight=lexical)


def _share(given: dict[str, Any], name: str, most: float, where: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InvalidInput(f"{where}{name} is {value!r}; use a number from 0 to {most:g}.", param=where + name)
    return float(value)
