"""`ryorin serve`: the gateway and its engines in the foreground. `ryorin engine`: one engine for gateways elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, say
from ryorin_serve.options import DEFAULTS, LORA_RANKS, MOST_LORAS, ServeOptions

Function = TypeVar("Function", bound=Callable[..., Any])

ENGINE_OPTIONS = (
    click.option("--base", default=DEFAULTS.base, show_default=True, metavar="NAME", help="Base model to serve."),
    click.option(
        "--max-model-len",
        default=DEFAULTS.max_model_len,
        show_default=True,
        type=click.IntRange(min=128),
        help="Tokens of prompt and answer together.",
    ),
    click.option(
        "--max-loras",
        type=click.IntRange(1, 256),
        help=f"Adapters that may share one batch; unless said {DEFAULTS.max_loras}, or what the catalog's need, up to "
        f"{MOST_LORAS} (serve).",
    ),
    click.option(
        "--max-lora-rank",
        type=click.Choice(list(map(str, LORA_RANKS))),
        help=f"Highest rank of an adapter; unless said {DEFAULTS.max_lora_rank}, or what the catalog's have (serve).",
    ),
    click.option(
        "--stock-lora",
        is_flag=True,
        help="Keep vLLM's own LoRA operations on a CPU, to compare: slower, and a request without an adapter that "
        "shares a batch with one that has one is answered with whatever adapter the last slot holds.",
    ),
    click.option(
        "--tool-call-parser",
        metavar="NAME",
        help="vLLM's parser of the base model's tool calls, such as hermes; without it no tools are called.",
    ),
    click.option(
        "--kv-cache-gb",
        default=DEFAULTS.kv_cache_gb,
        show_default=True,
        type=click.IntRange(1),
        help="Memory of an engine's KV cache (CPU).",
    ),
    click.option(
        "--gpu-memory-utilization",
        default=DEFAULTS.gpu_memory_utilization,
        show_default=True,
        type=click.FloatRange(0.05, 1.0),
        help="Share of a GPU's memory that vLLM takes.",
    ),
    click.option(
        "--gpus-per-replica",
        default=DEFAULTS.gpus_per_replica,
        show_default=True,
        type=click.IntRange(1, 64),
        help="GPUs that an engine spreads the model over.",
    ),
)


def engine_options(function: Function) -> Function:
    """What both commands tell vLLM."""
    for option in reversed(ENGINE_OPTIONS):
        function = option(function)
    return function


def on_one_thread() -> None:
    """
    One thread for embedding and search: on a small machine the cores are vLLM's, and OpenMP threads that spin while
    they wait slow it many times over. It must be set before faiss is imported; the engine gets its own count.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@click.command(epilog="Example:  ryorin serve --port 8000")
@click.option("--host", default=DEFAULTS.host, show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULTS.port, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@engine_options
@click.option(
    "--replicas",
    default=DEFAULTS.replicas,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Engines to start; they share the machine's cores or GPUs.",
)
@click.option(
    "--engine-url",
    "engine_urls",
    multiple=True,
    metavar="URL",
    help="An engine that runs elsewhere ('ryorin engine'), in place of own ones; may be given several times.",
)
@click.option(
    "--engine-adapters",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where engines elsewhere find this home's adapters folder, if that is another path there.",
)
@click.option(
    "--providers",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Models elsewhere, in litellm's form, that answer when no engine does, for tenants that allow it.",
)
@click.option(
    "--max-answer-tokens",
    default=DEFAULTS.max_answer_tokens,
    show_default=True,
    type=click.IntRange(min=1),
    help="Limit of an answer when the request names none.",
)
@click.option(
    "--max-file-bytes",
    default=DEFAULTS.max_file_bytes,
    show_default=True,
    type=click.IntRange(1),
    help="Limit of an uploaded file.",
)
@click.option(
    "--embedder",
    default=DEFAULTS.embedder,
    show_default=True,
    metavar="NAME",
    help="Embedder of vector stores that are made through the API.",
)
@click.option(
    "--train/--no-train",
    default=DEFAULTS.train,
    show_default=True,
    help="Do fine-tuning jobs here, or leave them to 'ryorin worker' elsewhere.",
)
@click.option(
    "--max-running",
    default=DEFAULTS.max_running,
    show_default=True,
    type=click.IntRange(1),
    help="Questions that are answered at once; more wait.",
)
@click.option(
    "--max-waiting",
    default=DEFAULTS.max_waiting,
    show_default=True,
    type=click.IntRange(0),
    help="Questions that wait at most; more are sent away with 503.",
)
@click.option(
    "--max-wait-s",
    default=DEFAULTS.max_wait_s,
    show_default=True,
    type=click.FloatRange(0.1),
    help="How long one waits at most.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve Prometheus' figures of all tenants there, on loopback unless --metrics-host says otherwise.",
)
@click.option(
    "--log-format",
    default=DEFAULTS.log_format,
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="Of what is written to standard error; json has a line for each request too, without contents and keys.",
)
@click.option("--metrics-host", default=DEFAULTS.metrics_host, show_default=True, help="Of the figures.")
@json_option
def serve(as_json: bool, **given: Any) -> None:
    """
    Start vLLM and the OpenAI-compatible gateway; runs until Ctrl-C or SIGTERM.

    Ask it with any OpenAI client: the model is the tenant's name, the key one of 'ryorin key create'. With --json one
    line {"url", "port", "pid", "engine_pids"} is printed when it is ready.

    Engines that run elsewhere are asked with the key of RYORIN_ENGINE_KEY.
    """
    on_one_thread()
    from ryorin_serve.json_log import log_json
    from ryorin_serve.server import lora_room
    from ryorin_serve.server import serve as run

    with opened_catalog() as catalog:
        options = _options(lora_room(catalog, given["base"]), **given)
        tell: Callable[[str], None] = say
        if options.log_format == "json":
            log_json()
            tell = logging.getLogger("ryorin.server").info
        _leave(run(catalog, options, say=tell, on_ready=lambda running: _tell(asdict(running), as_json)))


@click.command(epilog="Example:  RYORIN_ENGINE_KEY=… ryorin engine --host 0.0.0.0 --port 8001")
@click.option("--host", default=DEFAULTS.host, show_default=True, help="Address to listen on.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@engine_options
@json_option
def engine(as_json: bool, **given: Any) -> None:
    """
    Start one vLLM for gateways that run elsewhere ('ryorin serve --engine-url'); runs until Ctrl-C or SIGTERM.

    It needs the base model in its home and the gateways' adapters on a shared disk, but no catalog: the gateway says at
    its start which --max-loras and --max-lora-rank it needs. It answers nobody without the key of RYORIN_ENGINE_KEY,
    which its gateways must share. It speaks plain HTTP: keep it inside a private network. With --json one line
    {"url", "port", "pid", "engine_pids"} is printed when it is ready.
    """
    from ryorin.settings import load_settings
    from ryorin_serve.server import serve_engine as run

    options = _options((DEFAULTS.max_loras, DEFAULTS.max_lora_rank), **given)
    _leave(run(load_settings(), options, say=say, on_ready=lambda running: _tell(asdict(running), as_json)))


def _options(room: tuple[int, int], max_loras: int | None, max_lora_rank: str | None, **given: Any) -> ServeOptions:
    """The options; room: for how many adapters, and of which rank, when nothing else is said."""
    loras, rank = room
    return ServeOptions(max_loras=max_loras or loras, max_lora_rank=int(max_lora_rank or rank), **given)


def _tell(running: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(running)
        sys.stdout.flush()


def _leave(code: int) -> None:
    if code:
        if code == 130:
            say("interrupted")
        raise click.exceptions.Exit(code)
