"""`ryorin serve` with real vLLM in a home of its own, and its engine without the gateway: what benches share."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from common import ryorin

from ryorin.child_server import ChildServer
from ryorin.models.registry import DEFAULT_BASE, DEFAULT_EMBEDDER

REPOSITORY = Path(__file__).parents[2]
NEVER_ENDS = {"0": -100, "2": -100}  # a logit bias against the bundled model's two tokens that end an answer
SERVED_AS = "ryorin-base"


def home_of(scratch: Path, *, embedder: bool = False) -> Path:
    """A home with the bundled models, which are kept in the repository's own."""
    home = scratch / "home"
    home.mkdir()
    for model in (DEFAULT_BASE, *((DEFAULT_EMBEDDER,) if embedder else ())):
        ryorin(REPOSITORY / ".ryorin", "models", "pull", model)
    (home / "models").symlink_to((REPOSITORY / ".ryorin" / "models").resolve(), target_is_directory=True)
    return home


def tenant_of(
    home: Path, name: str, system: str, *release: object, scopes: Sequence[str] = ("chat",), made: bool = False
) -> str:
    """
    A tenant with this system text and a live release made with these options; its key.

    made: the tenant is there already, with its documents.
    """
    prompt = home / "prompt.txt"
    prompt.write_text(system)
    if not made:
        ryorin(home, "tenant", "create", name)
    ryorin(home, "prompt", "set", prompt, "--tenant", name)
    ryorin(home, "release", "create", "--tenant", name, *release, "--promote")
    wanted = [word for scope in scopes for word in ("--scope", scope)]
    return str(ryorin(home, "key", "create", "--tenant", name, *wanted)["key"])


def adapters_of(
    home: Path,
    tenant_name: str,
    seeds: Sequence[int],
    *,
    rank: int = 16,
    layers: int = 30,
    targets: Sequence[str] = ("q_proj",),
) -> list[str]:
    """Adapters of the tenant with random weights, as training leaves them, in the lower layers; their names."""
    import torch
    from safetensors.torch import save_file

    from ryorin.adapter_files import adapter_digest
    from ryorin.catalog import open_catalog
    from ryorin.catalog.tables import Adapter
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.digests import new_id
    from ryorin.models.registry import get_base
    from ryorin.settings import Settings
    from ryorin_train.base_shapes import base_linears

    settings = Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}")
    base = get_base(settings, DEFAULT_BASE)
    linears = {
        name: shape
        for name, shape in base_linears(base.path).items()
        if name.rpartition(".")[2] in targets and int(name.split(".")[2]) < layers
    }
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": DEFAULT_BASE, "r": rank,
        "lora_alpha": rank, "target_modules": list(targets), "bias": "none", "inference_mode": True,
    }  # fmt: skip
    names = []
    with closing(open_catalog(settings)) as catalog, catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        prompt = current_prompt(session, tenant)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            weights = {}
            for name, (high, wide) in linears.items():
                place = f"base_model.model.{name}"
                weights[f"{place}.lora_A.weight"] = torch.randn(rank, wide, generator=generator) * 0.05
                weights[f"{place}.lora_B.weight"] = torch.randn(high, rank, generator=generator) * 0.05
            folder = home / "adapters" / f"new-{tenant_name}"
            folder.mkdir(parents=True)
            save_file(weights, folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps(config))
            digest = adapter_digest(folder)
            names.append(f"{tenant_name}-{digest[:12]}")
            folder.rename(folder.with_name(names[-1]))
            row = Adapter(
                id=new_id("ad_"), tenant_id=tenant.id, name=names[-1], digest=digest, base_digest=base.digest,
                prompt_digest=prompt.digest, rank=rank, manifest={},
            )  # fmt: skip
            session.add(row)
    return names


@dataclass(frozen=True)
class Place:
    """Where questions are asked, and with which key."""

    url: str
    key: str


def engine_of(server: ChildServer) -> Place:
    """The engine behind a server, by its command line and its environment."""
    engine = psutil.Process(server.ready["engine_pids"][0])
    port = dict(itertools.pairwise(engine.cmdline()))["--port"]
    return Place(f"http://127.0.0.1:{port}/v1", engine.environ()["VLLM_API_KEY"])


@contextmanager
def serving(*options: str) -> Iterator[ChildServer]:
    """The server, on a free port."""
    with ChildServer("--port", "0", *options, say=lambda line: print(line, file=sys.stderr)) as server:
        yield server


@dataclass(frozen=True)
class Answer:
    """A streamed answer. first_s: to its first text; seconds: in all; tokens, cached: as vLLM counted."""

    first_s: float
    seconds: float
    tokens: int
    prompt_tokens: int
    cached: int
    text: str


async def streamed(http: aiohttp.ClientSession, place: Place, body: dict[str, Any]) -> Answer:
    """Ask for a stream and read it to its end, the same way wherever it is asked."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    first, usage, texts = 0.0, {}, []
    began = time.perf_counter()
    async with http.post(
        f"{place.url}/chat/completions", json=body, headers={"authorization": f"Bearer {place.key}"}
    ) as answer:
        if answer.status != 200:
            raise SystemExit(f"error: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if text:
                first = first or time.perf_counter() - began
                texts.append(text)
    if not first:
        raise SystemExit("error: an answer was empty; there is no first token to wait for")
    details = usage.get("prompt_tokens_details") or {}
    return Answer(
        first,
        time.perf_counter() - began,
        usage["completion_tokens"],
        usage["prompt_tokens"],
        details.get("cached_tokens") or 0,
        "".join(texts),
    )


async def together(place: Place, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
    """All at once; the answers, and the seconds until the last was there."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as http:
        began = time.perf_counter()
        answers = await asyncio.gather(*(streamed(http, place, body) for body in bodies))
        return answers, time.perf_counter() - began
