"""
Models elsewhere that answer when no engine does, for tenants that allow it.

litellm's Router asks them: it knows the providers, tries several addresses of one model and leaves those alone that
fail. It takes seconds to import and is imported only where there are such models. What it gives back is put into the
shape of vLLM's answers, so that citations, streams and the log need to know nothing of it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from ryorin.errors import InvalidInput, RequirementMissing
from ryorin_serve.relay import EngineStream

# What any provider understands; the rest of a request is vLLM's own.
FIELDS = (
    "temperature", "top_p", "stop", "seed", "tools", "tool_choice", "response_format", "presence_penalty",
    "frequency_penalty", "max_tokens", "n",
)  # fmt: skip
PATIENCE_S = 60.0
_ENVIRON = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
COOLDOWN_S = 10.0

_logger = logging.getLogger("ryorin.serve")


class ProviderFailed(Exception):
    """A provider did not answer. The message is for the server's log and repeats no text of the provider's."""

    def __init__(self, name: str, error: Exception) -> None:
        status = getattr(error, "status_code", None)  # the text may quote the question
        super().__init__(f"{name}: {type(error).__name__}{f' (status {status})' if status else ''}")


class Providers:
    """
    The models of a file, by the names that tenants allow them under.

    models: litellm's `model_list`. variables: of the environment, that they take secrets from.

    Making one with models imports litellm, which takes seconds, and raises InvalidInput for a model it does not know.
    """

    def __init__(self, models: Sequence[dict[str, Any]] = ()) -> None:
        self.names = frozenset(str(model["model_name"]) for model in models)
        self.variables = frozenset(_ENVIRON.findall(repr(models)))
        self._router = _router(models) if models else None

    @classmethod
    def read(cls, path: Path) -> Providers:
        """
        The models of a YAML file in litellm's form: `model_list`, each with `model_name` and `litellm_params`.

        Raises InvalidInput for a file that is not so, RequirementMissing without litellm.
        """
        import yaml  # type: ignore[import-untyped]

        try:
            said = yaml.safe_load(path.read_text())
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror or error}", param="providers") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not YAML: {' '.join(str(error).split())}", param="providers") from None
        models = said.get("model_list") if isinstance(said, dict) else None
        if not isinstance(models, list) or not models or not all(map(_is_model, models)):
            raise InvalidInput(
                f"{path} must hold litellm's 'model_list': a list of models, each with a 'model_name' and "
                "'litellm_params' with a 'model'",
                param="providers",
            )
        if find_spec("litellm") is None:
            raise RequirementMissing(
                "--providers needs the package litellm; get it with: pip install ryorin[providers]"
            )
        return cls(models)

    async def complete(self, name: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """The whole answer of a model. Raises ProviderFailed."""
        answer = await self._ask(name, body)
        said = answer.model_dump()
        return {
            **_head(request_id, body),
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.get("index") or 0,
                    "message": {"role": "assistant", "refusal": None, "annotations": None} | _said(choice["message"]),
                    "logprobs": None,
                    "finish_reason": choice.get("finish_reason") or "stop",
                }
                for choice in said["choices"]
            ],
            "usage": _usage(said.get("usage")),
        }

    async def stream(self, name: str, body: dict[str, Any], request_id: str) -> EngineStream:
        """The stream of a model, once its first piece has come. Raises ProviderFailed."""
        pieces = aiter(await self._ask(name, body, stream=True, stream_options={"include_usage": True}))
        try:
            first = await asyncio.wait_for(anext(pieces), PATIENCE_S)
        except Exception as error:  # an empty stream too
            raise ProviderFailed(name, error) from error
        return ForeignStream(first, pieces, _head(request_id, body))

    async def close(self) -> None:
        """Close litellm's connections, of which it keeps many."""
        if self._router is None:
            return
        litellm: Any = importlib.import_module("litellm")
        try:
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()  # those of this loop are of no use in another
        except Exception:  # it may be another litellm
            _logger.exception("litellm's connections could not be closed")

    async def _ask(self, name: str, body: dict[str, Any], **more: Any) -> Any:
        fields = {field: body[field] for field in FIELDS if body.get(field) is not None}
        assert self._router is not None
        try:
            return await self._router.acompletion(model=name, messages=body["messages"], **fields, **more)
        except Exception as error:  # litellm's own, the providers', the network's
            raise ProviderFailed(name, error) from error


class ForeignStream:
    """A provider's stream, in the form in which an engine's is read: bytes of server-sent events, and `close`."""

    def __init__(self, first: Any, pieces: AsyncIterator[Any], head: dict[str, Any]) -> None:
        self._first = first
        self._pieces = pieces
        self._head = {**head, "object": "chat.completion.chunk"}
        self.content = self

    async def iter_any(self) -> AsyncIterator[bytes]:
        """The events. An error of the provider's is raised as an OSError: the answer broke off."""
        usage: dict[str, Any] = {}
        try:
            for event in self._events(self._first.model_dump(), usage):
                yield event
            async for piece in self._pieces:
                for event in self._events(piece.model_dump(), usage):
                    yield event
        except Exception as error:
            _logger.warning("a provider's stream broke off: %s", type(error).__name__)
            raise ConnectionError("the provider's stream broke off") from error
        yield _event({**self._head, "choices": [], "usage": _usage(usage)})
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        """Nobody reads it any longer."""
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            task = asyncio.ensure_future(close())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _events(self, piece: dict[str, Any], usage: dict[str, Any]) -> list[bytes]:
        usage.update(piece.get("usage") or {})
        choices = [
            {
                "index": choice.get("index") or 0,
                "delta": _said(choice.get("delta") or {}),
                "logprobs": None,
                "finish_reason": choice.get("finish_reason"),
            }
            for choice in piece.get("choices") or ()
        ]
        told = [choice for choice in choices if choice["delta"] or choice["finish_reason"]]
        return [_event({**self._head, "choices": told})] if told else []


def _router(models: Sequence[dict[str, Any]]) -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks GitHub when it is imported
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    try:
        return litellm.Router(model_list=list(models), num_retries=0, timeout=PATIENCE_S, cooldown_time=COOLDOWN_S)
    except Exception as error:
        said = str(error).strip().splitlines()[:1]
        raise InvalidInput(f"litellm cannot use the providers' models: {''.join(said)}", param="providers") from error


def _is_model(model: Any) -> bool:
    params = model.get("litellm_params") if isinstance(model, dict) else None
    words = (params.get("model"), model.get("model_name")) if isinstance(params, dict) else (None,)
    return all(isinstance(word, str) for word in words)


def _head(request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": body["model"]}


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """What a message or a delta says, without what only litellm has."""
    return {name: message[name] for name in ("role", "content", "tool_calls") if message.get(name) is not None}


def _usage(usage: dict[str, Any] | None) -> dict[str, Any]:
    given = usage or {}
    prompt, answer = given.get("prompt_tokens") or 0, given.get("completion_tokens") or 0
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
