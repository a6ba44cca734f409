"""Running the real command line and the real `ryorin serve`, and making an adapter without training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

BASE = "smollm2-135m-instruct"
EMBEDDER = "multilingual-e5-small"
RANK = 16


def ryorin(home: Path, *words: object) -> Any:
    """A command of the real command line, with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "ryorin.cli", *map(str, words), "--json"],
        env=os.environ | {"RYORIN_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def eventually(look: Callable[[], Any], timeout_s: float) -> Any:
    """What `look` returns once it is true. Fails after the timeout."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


@dataclass
class Server:
    """
    A running `ryorin serve`.

    ready: what it printed; keys: a key by tenant; adapters: their names by tenant; metrics_port: of the figures.
    """

    home: Path
    process: subprocess.Popen[str]
    ready: Mapping[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    metrics_port: int = 0

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def client(self, tenant: str, **options: Any) -> openai.OpenAI:
        """The unmodified client, strict."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.keys[tenant], _strict_response_validation=True, **options
        )

    def family(self) -> list[psutil.Process]:
        """The process and all it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


def started(home: Path, *options: str) -> Server:
    """`ryorin serve` on a free port, not yet ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ryorin.cli", "serve", "--port", "0", "--json", *options],
        env=os.environ | {"RYORIN_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return Server(home, process)


def ended(server: Server, how: signal.Signals, timeout_s: float = 40) -> int:
    """End a server; its exit code, once it is sure that no process of it is left."""
    family = server.family()
    server.process.send_signal(how)
    code = server.process.wait(timeout_s)
    assert server.process.stdout is not None
    server.process.stdout.close()
    eventually(lambda: not any(member.is_running() and member.status() != "zombie" for member in family), 5)
    return code


def make_adapter(home: Path, tenant_name: str, seed: int) -> str:
    """An adapter with random weights, strong enough to change every answer; its name."""
    import torch
    from safetensors.torch import save_file

    from ryorin.adapter_files import adapter_digest
    from ryorin.catalog import open_catalog, tenants
    from ryorin.catalog.tables import Adapter
    from ryorin.digests import new_id
    from ryorin.models.registry import get_base
    from ryorin.settings import Settings

    settings = Settings(home=home, database_url=f"sqlite:///{home / 'catalog.db'}")
    base = get_base(settings, BASE)
    config = json.loads((base.path / "config.json").read_text())
    hidden, keys = config["hidden_size"], config["num_key_value_heads"] * 64
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in (("q_proj", hidden), ("v_proj", keys)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) * 0.05
            weights[f"{prefix}.lora_B.weight"] = torch.randn(width, RANK, generator=generator) * 0.2
    folder = home / "adapters" / "new"
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.path),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config))
    digest = adapter_digest(folder)
    name = f"{tenant_name}-{digest[:12]}"
    folder.rename(folder.with_name(name))
    catalog = open_catalog(settings)
    with catalog.session() as session:
        tenant = tenants.get_tenant(session, tenant_name)
        session.add(
            Adapter(
                id=new_id("ad_"),
                tenant_id=tenant.id,
                name=name,
                digest=digest,
                base_digest=base.digest,
                prompt_digest=tenants.current_prompt(session, tenant).digest,
                rank=RANK,
                manifest={},
            )
        )
    catalog.close()
    return name
