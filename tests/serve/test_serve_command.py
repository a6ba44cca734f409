"""`ryorin serve` before it serves: errors, vLLM's command and environment, the engine's door."""

from __future__ import annotations

import importlib
import itertools
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from scripted_house import NO_CERTIFICATES, House, eventually, running
from serve_with_fake_engine import replaced_parts
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from test_engine import Stage

from ryorin.catalog.tables import Adapter
from ryorin.errors import Conflict, InvalidInput
from ryorin.foreground import Foreground
from ryorin_serve import server
from ryorin_serve.engine_door import EngineDoor
from ryorin_serve.options import DEFAULTS, ServeOptions
from ryorin_serve.server import bind, lora_room
from ryorin_serve.vllm import engine_cores, gpus_of, part_of, vllm_command, vllm_environment


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def serve_here(stage: Stage, cli, migrated: Path, monkeypatch):
    """`serve_here(*options)`: the same command in this process, for what ends before it serves."""
    for name, instead in replaced_parts(stage.folder).items():
        monkeypatch.setattr(f"ryorin_serve.server.{name}", instead)
    return lambda *options: cli("serve", "--port", "0", *options)


def test_an_engine_that_cannot_start_is_an_error_that_shows_its_log(stage: Stage, serve_here):
    stage.plan(exit=3)
    ran = serve_here()
    assert ran.code == 2
    assert "error: vLLM ended with exit code 3 before it was ready" in ran.err
    assert "ValueError: the flags are wrong" in ran.err
    assert "Traceback" not in ran.err
    eventually(stage.none_left)


def test_a_taken_port_is_an_error_before_anything_starts(stage: Stage, serve_here):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
        ran = serve_here("--port", str(port))
    assert (ran.code, stage.pids()) == (2, [])
    assert ran.err.startswith(f"error: port {port}")
    with pytest.raises(InvalidInput, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_an_unknown_base_model(cli):
    ran = cli("serve", "--base", "no-such-model")
    assert ran.code == 2
    assert "no-such-model" in ran.err
    assert "ryorin models" in ran.err


def test_vllms_command_and_environment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("RYORIN_PEPPER", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ServeOptions(max_loras=3, max_lora_rank=32, max_model_len=2048, kv_cache_gb=1)
    command = vllm_command(options, tmp_path)(4321)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(itertools.pairwise(command))
    assert (pairs["--max-loras"], pairs["--max-lora-rank"], pairs["--max-model-len"]) == ("3", "32", "2048")
    assert (pairs["--host"], pairs["--port"], pairs["--model"]) == ("127.0.0.1", "4321", str(tmp_path))
    environment = vllm_environment(options, "engine-key", "/somewhere", Path("/cache"))
    assert environment["VLLM_API_KEY"] == "engine-key" and environment["VLLM_RPC_BASE_PATH"] == "/somewhere"
    assert environment["VLLM_PLUGINS"] == "ryorin_grouped_lora" and environment["NUMBA_CACHE_DIR"] == "/cache"
    stock = vllm_environment(replace(options, stock_lora=True), "engine-key", "/somewhere", Path("/cache"))
    assert stock["VLLM_PLUGINS"] == ""
    assert "--enable-auto-tool-choice" not in command
    tools = vllm_command(replace(options, tool_call_parser="hermes"), tmp_path)(4321)
    assert tools[tools.index("--tool-call-parser") + 1] == "hermes" and "--enable-auto-tool-choice" in tools
    module, _, door = pairs["--middleware"].rpartition(".")
    assert getattr(importlib.import_module(module), door) is EngineDoor
    assert "engine-key" not in command
    assert "RYORIN_PEPPER" not in environment
    assert "OMP_NUM_THREADS" not in environment
    monkeypatch.setenv("OPENAI_API_KEY", "of a provider")
    assert "OPENAI_API_KEY" not in vllm_environment(
        options, "engine-key", "/somewhere", Path("/cache"), private={"OPENAI_API_KEY"}
    )


def test_the_engines_door_opens_to_the_key_alone_but_for_its_health(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "engine-key")
    inside = Starlette(routes=[Route(path, lambda _: Response("in")) for path in ("/health", "/invocations", "/v1/x")])
    with running(EngineDoor(inside)) as url:
        asked = partial(httpx.request, verify=NO_CERTIFICATES)
        assert asked("GET", f"{url}/health").text == "in"
        for path in ("/invocations", "/v1/x", "/docs", "//health"):
            for given in ({}, {"authorization": "Bearer engine-kex"}, {"authorization": "engine-key"}):
                assert asked("GET", f"{url}{path}", headers=given).status_code == 401
                assert asked("OPTIONS", f"{url}{path}", headers=given).status_code == 401
        assert asked("GET", f"{url}/invocations", headers={"authorization": "Bearer engine-key"}).text == "in"


def test_cores_are_shared_with_the_gateway_where_there_are_enough():
    assert engine_cores([0, 1]) == [0, 1]
    assert engine_cores([0, 1, 2, 3]) == [0, 1, 2]


def test_replicas_share_the_cores_and_the_gpus(monkeypatch: pytest.MonkeyPatch):
    assert [part_of([0, 1, 2, 3, 4], 2, replica) for replica in (0, 1)] == [[0, 1], [2, 3]]
    with pytest.raises(InvalidInput, match="3 replicas need as many cores, and there are 2"):
        part_of([0, 1], 3, 0)
    assert [gpus_of(None, 2, replica) for replica in (0, 1)] == [["0", "1"], ["2", "3"]]
    assert [gpus_of("5, GPU-8a", 1, replica) for replica in (0, 1)] == [["5"], ["GPU-8a"]]
    with pytest.raises(InvalidInput, match=r"CUDA_VISIBLE_DEVICES=0,1,2 has too few GPUs for replica 2 with 2 each"):
        gpus_of("0,1,2", 2, 1)
    monkeypatch.setattr("ryorin_serve.vllm.on_cpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    options = ServeOptions(replicas=2, gpus_per_replica=2)
    seen = [
        vllm_environment(options, "key", "/there", Path("/cache"), number)["CUDA_VISIBLE_DEVICES"] for number in (0, 1)
    ]
    assert seen == ["4,5", "6,7"]
    assert dict(itertools.pairwise(vllm_command(options, Path("/base"))(1)))["--tensor-parallel-size"] == "2"
    assert vllm_environment(ServeOptions(), "key", "/there", Path("/cache"))["CUDA_VISIBLE_DEVICES"] == "4,5,6,7", (
        "one takes what it is given"
    )


@pytest.mark.parametrize(
    ("key", "options", "why"),
    [
        (
            "",
            ["--engine-url", "http://engine:8001"],
            "error: RYORIN_ENGINE_KEY has 0 characters; set it to a secret of 16",
        ),
        ("short", ["--engine-url", "http://engine:8001"], "error: RYORIN_ENGINE_KEY has 5 characters"),
        ("k" * 16, ["--engine-url", "http://engine:8001", "--replicas", "2"], "error: --replicas starts engines and"),
        (
            "k" * 16,
            ["--engine-url", "engine:8001"],
            "error: --engine-url is 'engine:8001'; write it as http://HOST:PORT",
        ),
        ("", ["--engine-adapters", "/shared"], "error: --engine-adapters is of engines elsewhere"),
    ],
)
def test_engines_elsewhere_that_cannot_be_asked(stage: Stage, serve_here, monkeypatch, key, options, why):
    monkeypatch.setenv("RYORIN_ENGINE_KEY", key)
    ran = serve_here(*options)
    assert (ran.code, stage.pids()) == (2, [])
    assert ran.err.startswith(why)


def test_an_engine_for_others_needs_a_key_and_its_port(stage: Stage, cli, migrated: Path, monkeypatch):
    for name, instead in replaced_parts(stage.folder).items():
        monkeypatch.setattr(f"ryorin_serve.server.{name}", instead)
    monkeypatch.delenv("RYORIN_ENGINE_KEY", raising=False)
    assert cli("engine").err.startswith("error: RYORIN_ENGINE_KEY has 0 characters")
    monkeypatch.setenv("RYORIN_ENGINE_KEY", "k" * 16)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli("engine", "--port", str(port)).err.startswith(f"error: port {port} on 127.0.0.1 is in use")
    stage.plan(exit=3)
    assert "vLLM ended with exit code 3 before it was ready" in cli("engine", "--port", str(port)).err


def test_room_for_the_adapters_there_are(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ryorin_serve.server.get_base", lambda *_: house.base)
    assert lora_room(house.catalog, "scripted") == (DEFAULTS.max_loras, DEFAULTS.max_lora_rank)
    for number in range(6):
        name, tenant = f"t{number}-0123456789ab", f"t{number}"
        house.add_tenant(tenant)
        house.adapter_folder(name)
        house.release(tenant, adapter=name, promote=number < 5)
    with house.catalog.session() as session:
        session.query(Adapter).filter_by(name="t5-0123456789ab").update({"rank": 40})
    assert lora_room(house.catalog, "scripted") == (5, 64)
    with house.catalog.session() as session:
        session.query(Adapter).filter_by(name="t5-0123456789ab").update({"rank": 1024})
    assert lora_room(house.catalog, "scripted") == (5, 512), "what no engine can serve keeps none from starting"


@pytest.mark.parametrize(("on_cpu", "elsewhere"), [(True, ()), (True, ("http://elsewhere",)), (False, ())])
def test_training_gives_way_where_the_engine_shares_its_cores(monkeypatch, on_cpu, elsewhere):
    given = []
    monkeypatch.setattr(server, "on_cpu", lambda: on_cpu)
    monkeypatch.setattr(server, "Worker", lambda _, *, kinds, foreground: given.append((kinds, foreground)))
    foreground = Foreground()
    server._workers(None, ServeOptions(engine_urls=elsewhere), foreground)
    (training,) = [waiting for kinds, waiting in given if "fine_tune" in kinds]
    assert training is (foreground if on_cpu and not elsewhere else None)
