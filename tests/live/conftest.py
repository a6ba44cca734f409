"""
One real engine for all live tests: `ryorin serve` with vLLM and SmolLM2, two tenants, an adapter each.

The base model and the embedder lie in the repository's own `.ryorin`, where the demo keeps them too, and are fetched
there when they are missing. Everything else is in a folder of this run.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import BASE, EMBEDDER, Server, ended, make_adapter, ryorin, started

from ryorin.scopes import SCOPES

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def live_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the base model and the embedder; all else is this run's own."""
    shared = REPOSITORY / ".ryorin"
    for model in (BASE, EMBEDDER):
        ryorin(shared, "models", "pull", model)
    home = tmp_path_factory.mktemp("live") / "home"
    home.mkdir()
    (home / "models").symlink_to(shared / "models", target_is_directory=True)
    return home


@pytest.fixture(scope="session")
def live(live_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """
    The server. Tenants `support` and `people` have release 1 (base model alone) and 2 (with their adapter, live).

    It runs with as many adapter slots as there are adapters, so that no slot is free.
    """
    home = live_home
    prompt = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    prompt.write_text("You are a helpful assistant.")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = started(
        home, "--max-loras", "2", "--max-model-len", "1024", "--metrics-port", str(port), "--tool-call-parser", "hermes"
    )
    server.metrics_port = port
    every_scope = [word for scope in SCOPES for word in ("--scope", scope)]
    try:
        for seed, tenant in enumerate(("support", "people")):
            ryorin(home, "tenant", "create", tenant)
            ryorin(home, "prompt", "set", prompt, "--tenant", tenant)
            server.keys[tenant] = ryorin(home, "key", "create", "--tenant", tenant, *every_scope)["key"]
            server.adapters[tenant] = make_adapter(home, tenant, seed)
            ryorin(home, "release", "create", "--tenant", tenant, "--adapter", "none", "--no-store")
            ryorin(
                *(home, "release", "create", "--tenant", tenant, "--adapter", server.adapters[tenant]),
                *("--no-store", "--promote"),
            )
        assert server.process.stdout is not None
        line = server.process.stdout.readline()
        assert line, "ryorin serve ended before it was ready"
        server.ready = json.loads(line)
        yield server
        assert ended(server, signal.SIGTERM) == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
