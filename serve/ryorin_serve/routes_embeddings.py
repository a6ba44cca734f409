"""
`/v1/embeddings`: the vectors that documents and questions are compared by, for programs that keep stores of their own.

The models are the embedders of the tenant's stores and the one that the server makes new stores with. Asymmetric ones
embed questions otherwise than passages: `input_type`, "passage" unless it says "query", as other servers have it.
"""

from __future__ import annotations

import base64
from typing import Any

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ryorin.catalog.tables import VectorStore
from ryorin.errors import InvalidInput, NotFound
from ryorin.models.registry import get_embedder
from ryorin.scopes import CHAT, KNOWLEDGE
from ryorin_index.counting import open_counter
from ryorin_index.embed import Vectors
from ryorin_serve.auth import Caller, ScopedRoute
from ryorin_serve.context import Context
from ryorin_serve.requests import caller_of, choice, fields_of, integer, query_of, read_json, text

FIELDS = ("model", "input", "encoding_format", "dimensions", "input_type", "user")
MAX_INPUTS = 2048
MAX_TOKENS = 300_000  # of a request, as OpenAI's


class EmbeddingRoutes:
    """The handler."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[ScopedRoute]:
        """What is served."""
        return [ScopedRoute("/v1/embeddings", self.create, CHAT, KNOWLEDGE, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """The vectors of texts."""
        query_of(request, ())
        body = fields_of(await read_json(request, self._context.options.max_body_bytes), FIELDS)
        request.state.headers = await self._context.admit(caller_of(request))
        answer = await self._context.in_thread(self._embedded, caller_of(request), body)
        self._context.count_tokens(caller_of(request), answer["usage"]["total_tokens"])
        return JSONResponse(answer)

    def _embedded(self, caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
        model = text(body, "model", 256) or ""
        texts = _texts(body.get("input"))
        form = choice(body.get("encoding_format") or "float", "encoding_format", ("float", "base64"))
        kind = choice(body.get("input_type") or "passage", "input_type", ("passage", "query"))
        self._check_model(caller, model)
        embedder = get_embedder(self._context.catalog.settings, model)
        dimensions = body.get("dimensions")
        if dimensions is not None and integer(dimensions, "dimensions", 1, 100_000) != embedder.dimensions:
            raise InvalidInput(
                f"dimensions is {dimensions}; {model} gives {embedder.dimensions}, which cannot be shortened.",
                param="dimensions",
            )
        counter = open_counter(embedder)
        counts = counter.counts(texts)
        if sum(counts) > MAX_TOKENS:
            raise InvalidInput(
                f"input has {sum(counts)} tokens, the limit of a request is {MAX_TOKENS}; send it in several.",
                code="max_tokens_per_request",
                param="input",
            )
        if kind == "query" and counter.limit is not None and max(counts) > counter.limit:
            raise InvalidInput(
                f"input has a text of {max(counts)} tokens; {model} reads {counter.limit} of a query.",
                code="context_length_exceeded",
                param="input",
            )
        embed = self._context.searcher.embedder_of_model(embedder)
        vectors = embed.queries(texts) if kind == "query" else embed.passages(texts)
        data = [
            {"object": "embedding", "index": at, "embedding": _encoded(row) if form == "base64" else row.tolist()}
            for at, row in enumerate(vectors)
        ]
        return {
            "object": "list",
            "data": data,
            "model": model,
            "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
        }

    def _check_model(self, caller: Caller, model: str) -> None:
        mine = select(VectorStore.embedder).where(VectorStore.tenant_id == caller.tenant_id).distinct()
        with self._context.catalog.session() as session:
            known = sorted({self._context.options.embedder, *session.scalars(mine)})
        if model not in known:
            raise NotFound(
                f"The model {model[:64]!r} does not embed here; use {', '.join(known)}.",
                code="model_not_found",
                param="model",
            )


def _encoded(row: Vectors) -> str:
    """As the openai package asks for it: float32, little-endian, in base64."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _texts(value: Any) -> list[str]:
    """The texts to embed. Raises InvalidInput; for tokens it says how LangChain is told to send text."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("input must be a text, or a list of texts.", param="input")
    if all(isinstance(each, int) or (isinstance(each, list) and each) for each in texts):
        raise InvalidInput(
            "input holds token ids, which mean something else to this model; send text. LangChain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False).",
            code="token_input",
            param="input",
        )
    if len(texts) > MAX_INPUTS:
        raise InvalidInput(f"input has {len(texts)} texts, the limit is {MAX_INPUTS}.", param="input")
    for place, each in enumerate(texts):
        if not isinstance(each, str) or not each.strip():
            raise InvalidInput(f"input[{place}] must be a text that is not empty.", param=f"input[{place}]")
    return texts
