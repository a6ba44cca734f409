"""`ryorin serve`: the gateway and its vLLM in the foreground."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import click

from ryorin.commands.common import json_option, opened_catalog, print_json, say
from ryorin_serve.options import DEFAULTS, ServeOptions


@click.command(epilog="Example:  ryorin serve --port 8000")
@click.option("--host", default=DEFAULTS.host, show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULTS.port, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--base", default=DEFAULTS.base, show_default=True, metavar="NAME", help="Base model to serve.")
@click.option(
    "--max-model-len",
    default=DEFAULTS.max_model_len,
    show_default=True,
    type=click.IntRange(min=128),
    help="Tokens of prompt and answer together.",
)
@click.option(
    "--max-loras",
    default=DEFAULTS.max_loras,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Adapters that may share one batch.",
)
@click.option(
    "--max-lora-rank",
    default=str(DEFAULTS.max_lora_rank),
    show_default=True,
    type=click.Choice(["8", "16", "32", "64", "128", "256", "320", "512"]),
    help="Highest rank of an adapter.",
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
    "--tool-call-parser",
    metavar="NAME",
    help="vLLM's parser of the base model's tool calls, such as hermes; without it no tools are called.",
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
@click.option("--metrics-host", default=DEFAULTS.metrics_host, show_default=True, help="Of the figures.")
@click.option(
    "--kv-cache-gb",
    default=DEFAULTS.kv_cache_gb,
    show_default=True,
    type=click.IntRange(1),
    help="Memory of the KV cache (CPU).",
)
@click.option(
    "--gpu-memory-utilization",
    default=DEFAULTS.gpu_memory_utilization,
    show_default=True,
    type=click.FloatRange(0.05, 1.0),
    help="Share of the GPU's memory that vLLM takes.",
)
@json_option
def serve(max_lora_rank: str, as_json: bool, **given: object) -> None:
    """
    Start vLLM and the OpenAI-compatible gateway; runs until Ctrl-C or SIGTERM.

    Ask it with any OpenAI client: the model is the tenant's name, the key one of 'ryorin key create'. With --json one
    line {"url", "port", "pid", "engine_pid"} is printed when it is ready.
    """
    # One thread for embedding and search: on a small machine the cores are vLLM's, and OpenMP threads that spin while
    # they wait slow it many times over. It must be set before faiss is imported; the engine gets its own count.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from ryorin_serve.server import Running
    from ryorin_serve.server import serve as run

    options = ServeOptions(max_lora_rank=int(max_lora_rank), **given)  # type: ignore[arg-type]

    def ready(running: Running) -> None:
        if as_json:
            print_json(asdict(running))
            sys.stdout.flush()

    with opened_catalog() as catalog:
        code = run(catalog, options, say=say, on_ready=ready)
    if code:
        if code == 130:
            say("interrupted")
        raise click.exceptions.Exit(code)
