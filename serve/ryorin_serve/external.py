"""
An engine that somebody else runs: a vLLM on another machine, in another container, under Kubernetes.

It is looked at, never started or ended. Before it is used, and each time it comes back, it must hold the base model
under the name that the gateway asks for and read as much as the gateway sends; `ryorin engine` starts one that does.
What it holds is lost when it restarts, so its `generation` grows whenever it answers again after it did not; a restart
between two looks is found when it does not know an adapter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from ryorin_serve.engine import EngineFailed
from ryorin_serve.engine_handle import State, Watched

LOOK_S = 2.0
LOOKS_MISSED = 3  # after which it is taken for gone; questions that it does not answer go elsewhere at once
RETRY_S = 5.0
SAID_EVERY_S = 15.0
TIMEOUT = aiohttp.ClientTimeout(total=5)


class ExternalEngine(Watched):
    """
    Looks at one engine.

    key: of the engine, which refuses everybody else. served_as: what it must call the base model. max_model_len: tokens
    of prompt and answer that it must take. on_event: gets one line of text for whoever watches.
    """

    def __init__(
        self,
        url: str,
        key: str,
        served_as: str,
        max_model_len: int,
        *,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = url.rstrip("/")
        self.state: State = "starting"
        self.generation = 0
        self.retry_after_s = RETRY_S
        self._headers = {"authorization": f"Bearer {key}"}
        self._served_as = served_as
        self._max_model_len = max_model_len
        self._on_event = on_event

    def start(self) -> None:
        """Begin to look, in the background."""
        self._watch(self._look(), f"look at {self.url}")

    def kill(self) -> None:
        """Nothing: it is not ours."""

    async def _look(self) -> None:
        assert self._first_ready is not None
        missed, said_at = 0, float("-inf")
        async with aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT) as http:
            while True:
                trouble = await self._trouble(http)
                if trouble is None:
                    missed = 0
                    if self.state != "ready":
                        self.generation += 1
                        self.state = "ready"
                        self._on_event(f"the engine at {self.url} is ready")
                        if not self._first_ready.done():
                            self._first_ready.set_result(None)
                elif isinstance(trouble, EngineFailed) and not self._first_ready.done():
                    self.state = "down"
                    self._first_ready.set_exception(trouble)  # and looked at on: it may be put right
                else:
                    missed += 1
                    if self.state != "ready" or missed >= LOOKS_MISSED or isinstance(trouble, EngineFailed):
                        if self.state == "ready" or time.monotonic() - said_at >= SAID_EVERY_S:
                            said_at = time.monotonic()
                            self._on_event(f"waiting for the engine at {self.url}: {trouble}")
                        self.state = "down" if self.generation else "starting"
                await asyncio.sleep(LOOK_S)

    async def _trouble(self, http: aiohttp.ClientSession) -> Exception | None:
        """Why it cannot be asked now; EngineFailed when waiting does not help."""
        try:
            async with http.get(f"{self.url}/health") as response:
                if response.status != 200:
                    return aiohttp.ClientError(f"it answers /health with {response.status}")
            if self.state == "ready":
                return None
            async with http.get(f"{self.url}/v1/models") as response:
                if response.status in (401, 403):
                    return EngineFailed(
                        f"the engine at {self.url} refuses the key of RYORIN_ENGINE_KEY ({response.status}); set it to "
                        "what the engine was started with"
                    )
                if response.status != 200:
                    return aiohttp.ClientError(f"it answers /v1/models with {response.status}")
                models = await response.json(content_type=None)
            return self._unfit(models)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return error if str(error) else aiohttp.ClientError(f"no answer within {TIMEOUT.total:g} s")

    def _unfit(self, models: Any) -> EngineFailed | None:
        start = "start it with 'ryorin engine'"
        try:
            lengths = {model["id"]: model.get("max_model_len") for model in models["data"]}
        except (KeyError, TypeError, AttributeError):
            return EngineFailed(f"what answers at {self.url}/v1/models is not vLLM; {start}")
        if self._served_as not in lengths:
            return EngineFailed(
                f"the engine at {self.url} serves {', '.join(map(str, lengths)) or 'nothing'}, not {self._served_as}; "
                f"{start}, or vLLM with --served-model-name {self._served_as}"
            )
        length = lengths[self._served_as]
        if isinstance(length, int) and length < self._max_model_len:
            return EngineFailed(
                f"the engine at {self.url} takes {length} tokens, the gateway sends up to {self._max_model_len}; start "
                f"the gateway with --max-model-len {length}, or the engine with more"
            )
        return None
