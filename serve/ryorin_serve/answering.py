"""
Answering: a question goes to the engine with the adapter of its release, and its row into the log, however it ends.

Chat completions and responses are two shapes of the same: both begin a turn, ask for it whole or as a stream, and end
it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from ryorin.catalog.keys import keyed_hash
from ryorin.catalog.logs import asker_hash
from ryorin.errors import Conflict, InvalidInput, OverLimit, RyorinError, Unavailable
from ryorin.foreground import Foreground
from ryorin.prompt import rewriting
from ryorin.traffic import SHADOW
from ryorin_serve.admission import Admission, Bounds
from ryorin_serve.auth import Caller
from ryorin_serve.chat import ChatRequest
from ryorin_serve.fleet import Fleet, Replica
from ryorin_serve.limits import Quotas
from ryorin_serve.log import LogWriter
from ryorin_serve.metrics import Metrics
from ryorin_serve.options import ServeOptions
from ryorin_serve.prepare import PinnedAdapter, PinnedRelease, Prepared
from ryorin_serve.providers import ProviderFailed, Providers
from ryorin_serve.relay import AdapterMissing, EngineStream, Upstream
from ryorin_serve.requests import base_url
from ryorin_serve.shadow import DROPPED, Shadows
from ryorin_serve.tracing import Traces
from ryorin_serve.traffic import Traffic
from ryorin_serve.turn import ClientGone, ClientWatch, Turn
from ryorin_serve.vllm import SERVED_AS

REWRITTEN_TOKENS, REWRITE_S = 96, 15.0  # of a question, and how long it may take
RETRIES = 1  # of a question, with another engine: one that kills engines must not go through all of them
Result = TypeVar("Result")
_logger = logging.getLogger("ryorin.serve")
FALLBACK_HEADER = "x-ryorin-fallback"
Ask = Callable[[Upstream, dict[str, Any], dict[str, str]], Awaitable[Result]]

AskElsewhere = Callable[[Providers, str, dict[str, Any], str], Awaitable[Result]]


class Answering:
    """
    Answers turns. pepper: of the hashes that name tenants to the engine and people to the log. foreground: where those
    stand who wait for an answer to begin.

    `shadows` is set once they are there: they ask in turn.
    """

    shadows: Shadows

    def __init__(
        self,
        fleet: Fleet,
        traffic: Traffic,
        quotas: Quotas,
        log: LogWriter,
        *,
        options: ServeOptions,
        pepper: bytes,
        metrics: Metrics,
        traces: Traces,
        providers: Providers,
        foreground: Foreground,
    ) -> None:
        self._providers = providers
        self._foreground = foreground
        self._metrics = metrics
        self._traces = traces
        bounds = Bounds(options.max_running, options.max_waiting, options.max_wait_s)
        self.admission = Admission(bounds, metrics.waited)
        self._fleet = fleet
        self._traffic = traffic
        self._quotas = quotas
        self._log = log
        self._options = options
        self._pepper = pepper
        self.open_turns: set[Turn] = set()

    async def begin(self, request: Request, asked: ChatRequest) -> Turn:
        """Let a question in and prepare it. Raises what says that it cannot be answered now, or at all."""
        self._check_tools(asked)
        try:
            return await self._let_in(request, asked)
        except (OverLimit, Unavailable) as error:
            self._metrics.refused(request.state.caller.tenant_name, error.code or "unavailable")
            raise

    async def _let_in(self, request: Request, asked: ChatRequest) -> Turn:
        if not self._fallbacks(request.state.caller, asked):
            self._fleet.check()
        request.state.headers = await self._quotas.admit(request.state.caller)
        turn = Turn(request.state.request_id, request.state.caller, asked, base_url(request))
        self._traces.begin(turn, request.headers)
        turn.watch = ClientWatch(request)
        turn.came = self._foreground.enter()
        place = None
        try:
            with self._traces.step(turn, "queue"):
                place = self.admission.free_place()
                if place is None:
                    with turn.watch:
                        place = await self.admission.enter(turn.caller.tenant_id)
            self.shadows.make_way()
            with self._traces.step(turn, "prepare"):
                rewrite = partial(self._rewritten, turn)
                with turn.watch:
                    turn.prepared = await self._traffic.prepare(turn.caller, asked, rewrite)
        except BaseException:
            turn.watch.end()
            turn.came()
            if place is not None:
                place.leave()
            self._traces.refused(turn)
            raise
        turn.leave = place.leave
        self.open_turns.add(turn)
        return turn

    async def whole(self, request: Request, turn: Turn, take: Callable[[dict[str, Any]], Result]) -> Result:
        """What `take` makes of the engine's whole answer. Raises ClientGone when nobody waits for it any longer."""
        body = self._engine_body(turn)
        status = "error"
        try:
            with turn.watch:
                answer = await self._answer(request, turn, body, Upstream.complete, Providers.complete)
            taken = take(answer)
            status = "ok"
            return taken
        except (ClientGone, asyncio.CancelledError):
            status = "cancelled"
            raise
        finally:
            turn.watch.end()
            self.end(turn, status)

    async def stream(self, request: Request, turn: Turn) -> tuple[EngineStream, str]:
        """The engine's stream, which the caller closes and ends the turn with; and what the engine calls the model."""
        body = self._engine_body(turn) | {"stream": True, "stream_options": {"include_usage": True}}
        try:
            with turn.watch:
                response = await self._answer(request, turn, body, Upstream.stream, Providers.stream)
        except BaseException as error:
            self.end(turn, "cancelled" if isinstance(error, ClientGone | asyncio.CancelledError) else "error")
            raise
        finally:
            turn.watch.end()  # from here on the relay sees that the client leaves
        return response, str(body["model"])

    async def prepare_unseen(self, turn: Turn, release: PinnedRelease) -> Prepared:
        """A shadow's turn as its release answers it."""
        rewrite = partial(self._rewritten, turn)
        return await self._traffic.prepare_again(turn.caller, turn.request, release, SHADOW, rewrite)

    async def unseen(self, turn: Turn) -> dict[str, Any]:
        """The engine's answer for a shadow."""
        try:
            return await self._asked(turn, self._engine_body(turn), Upstream.complete, turn.prepared.release.adapter)
        finally:
            turn.turn_to(None)  # also when it is broken off, to be asked anew

    def end(self, turn: Turn, status: str, reason: str | None = None) -> None:
        """The turn is over: its row goes into the log, what it used is counted, a shadow may take it up."""
        self.open_turns.discard(turn)
        turn.leave()
        turn.came()
        turn.turn_to(None)
        prepared = turn.prepared
        total_s = time.perf_counter() - turn.began
        self._metrics.ended(turn, status, total_s)
        self._traces.end(turn, status)
        texts = [text for _, text in sorted(turn.texts.items())]
        self._log.write(
            id=turn.request_id,
            tenant_id=turn.caller.tenant_id,
            key_id=turn.caller.key_id,
            release_id=prepared.release.id,
            created_at=turn.created_at,
            messages=[] if status == DROPPED else turn.request.conversation,  # they stand in the row it would shadow
            answer="\n\n".join(texts),
            passages=[
                {"passage_id": hit.passage_id, "document_id": hit.document_id, "score": round(hit.score, 6)}
                for hit in prepared.hits or []
            ],
            prompt_tokens=turn.usage.get("prompt_tokens") or prepared.prompt_tokens,
            completion_tokens=turn.usage.get("completion_tokens") or 0,
            retrieval_ms=prepared.retrieval_ms,
            first_token_ms=turn.first_token_ms,
            total_ms=total_s * 1000,
            status=status,
            part=turn.part,
            passed_release_id=prepared.passed.release_id if prepared.passed else None,
            reason=self._reason(turn, reason),
            shadow_of=turn.shadow_of,
            asker=self._asker(turn),
        )
        if turn.shadow_of is None:
            usage = turn.usage
            self._quotas.count_tokens(
                turn.caller, (usage.get("prompt_tokens") or 0) + (usage.get("completion_tokens") or 0)
            )
        if status == "ok" and turn.shadow_of is None and turn.fallback is None:
            self.shadows.offer(turn)

    @staticmethod
    def _reason(turn: Turn, reason: str | None) -> str | None:
        if turn.fallback:
            return f"{turn.fallback} answered"
        return turn.prepared.passed.reason if turn.prepared.passed else reason

    def _asker(self, turn: Turn) -> str | None:
        name = turn.request.user
        return None if name is None else asker_hash(self._pepper, turn.caller.tenant_id, name)

    def _check_tools(self, asked: ChatRequest) -> None:
        """Raise InvalidInput when tools are to be called, and vLLM was not told how the base model writes calls."""
        calls = asked.sampling.get("tools") and asked.sampling.get("tool_choice") != "none"
        if calls and not self._options.tool_call_parser:
            raise InvalidInput(
                "This server was started without a parser of the base model's tool calls (ryorin serve "
                "--tool-call-parser NAME), so it calls no tools; leave them out, or use tool_choice 'none'.",
                code="unsupported_parameter",
                param="tools",
            )

    def _engine_body(self, turn: Turn) -> dict[str, Any]:
        prepared = turn.prepared
        adapter = prepared.release.adapter
        return {
            **turn.request.sampling,
            "model": adapter.name if adapter else SERVED_AS,
            "messages": prepared.messages,
            "max_tokens": prepared.max_tokens,
            "cache_salt": self._cache_salt(turn.caller),
        }

    def _cache_salt(self, caller: Caller) -> str:
        """The prefix cache of one tenant tells another nothing; nobody else can know the salt."""
        return keyed_hash(self._pepper, f"cache\0{caller.tenant_id}")

    async def _rewritten(self, turn: Turn) -> str | None:
        """The last question in words that stand alone, by the base model; None when it does not say in time."""
        body = {
            "model": SERVED_AS,
            "messages": rewriting(turn.request.conversation),
            "max_tokens": REWRITTEN_TOKENS,
            "temperature": 0.0,
            "cache_salt": self._cache_salt(turn.caller),
        }
        try:
            with self._traces.step(turn, "rewrite"):
                async with asyncio.timeout(REWRITE_S):
                    answer = await self._asked(turn, body, Upstream.complete, None)
        except (TimeoutError, RyorinError) as error:
            _logger.warning("the question of request %s was not rewritten: %s", turn.request_id, error)
            return None
        finally:
            turn.turn_to(None)
        if turn.shadow_of is None:
            self._quotas.count_tokens(turn.caller, (answer.get("usage") or {}).get("total_tokens") or 0)
        return str(answer["choices"][0]["message"].get("content") or "").strip().strip('"').strip() or None

    def _fallbacks(self, caller: Caller, asked: ChatRequest) -> list[str]:
        """Models elsewhere for the tenant's traffic; who names a version wants that one or none."""
        if asked.model != caller.tenant_name:
            return []
        return [name for name in caller.fallbacks if name in self._providers.names]

    async def _answer(
        self, request: Request, turn: Turn, body: dict[str, Any], ask: Ask[Result], ask_elsewhere: AskElsewhere[Result]
    ) -> Result:
        """Ask the engines; when none answers, the models elsewhere that the tenant allows, one after the other."""
        try:
            return await self._asked(turn, body, ask, turn.prepared.release.adapter)
        except Unavailable:
            turn.turn_to(None)
            fallbacks = self._fallbacks(turn.caller, turn.request)
            if fallbacks and await self._fleet.answers():
                raise  # an engine is there, however much it has to do
            for name in fallbacks:
                turn.came()  # nobody waits for the cores of this machine
                try:
                    with self._traces.step(turn, "fallback"):
                        answer = await ask_elsewhere(self._providers, name, body, turn.request_id)
                except ProviderFailed as error:
                    _logger.warning("the fallback of request %s failed: %s", turn.request_id, error)
                    continue
                turn.fallback = name
                request.state.headers = {**request.state.headers, FALLBACK_HEADER: name}
                return answer
            raise

    async def _asked(self, turn: Turn, body: dict[str, Any], ask: Ask[Result], adapter: PinnedAdapter | None) -> Result:
        """Ask an engine, and another one, once, when it does not answer. Nothing has gone to the client by then."""
        failed: list[Replica] = []
        while True:
            replica = self._fleet.choose(adapter.name if adapter else turn.caller.tenant_id, without=failed)
            turn.turn_to(replica)
            try:
                return await self._with_adapter(turn, replica, body, ask, adapter)
            except Conflict:
                if adapter is not None:
                    self._traffic.forget(adapter.name)
                raise
            except Unavailable:
                replica.failed()
                failed.append(replica)
                if len(failed) > RETRIES or len(failed) == len(self._fleet.engines):
                    raise

    async def _with_adapter(
        self, turn: Turn, replica: Replica, body: dict[str, Any], ask: Ask[Result], adapter: PinnedAdapter | None
    ) -> Result:
        """Ask the engine once it holds the adapter; again, once, when it turns out not to."""
        for last in (False, True):
            if adapter:
                await replica.adapters.ensure(adapter.name, adapter.digest)
            try:
                with self._traces.step(turn, "engine"):
                    headers = {"x-request-id": turn.request_id, **self._traces.engine_headers(turn)}
                    return await ask(replica.upstream, body, headers)
            except AdapterMissing:
                if adapter is None or last:
                    raise replica.upstream.gone("The engine lost the adapter; try again.") from None
                replica.adapters.forget(adapter.name)
        raise AssertionError("unreachable")
