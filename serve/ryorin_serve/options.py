"""
What `ryorin serve` can be told; every default of the serving side is written here and nowhere else, but those of the
window, which training shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ryorin.models.registry import DEFAULT_BASE, DEFAULT_EMBEDDER
from ryorin.window import Window

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started with
MOST_LORAS = 16  # in one batch, when nothing is said; each takes memory whether it is used or not


@dataclass(frozen=True)
class ServeOptions:
    """
    Options of the gateway and of the vLLM behind it.

    max_model_len: tokens of prompt and answer together.
    max_loras: adapters that may share one batch; max_lora_rank: should equal the adapters' real rank.
    stock_lora: vLLM's own LoRA operations on a CPU stay in place (grouped_lora.py).
    kv_cache_gb: memory of the KV cache on CPU. gpu_memory_utilization: share of a GPU that vLLM takes.
    max_answer_tokens: limit of an answer when the request names none.
    max_body_bytes: limit of a request's body. max_file_bytes: limit of an uploaded file.
    embedder: of vector stores that are made through the API.
    tool_call_parser: vLLM's for the base model (`--tool-call-parser`); without it no tools are called.
    train: whether this server does fine-tuning jobs, or leaves them to 'ryorin worker' elsewhere.
    shutdown_grace_s: time that requests in flight get at the end.
    max_running, max_waiting, max_wait_s: requests answered at once, that wait for it, and how long (admission.py).
    engine_silence_s: of an answer's stream; an engine that says nothing for longer is taken for dead.
    replicas: engines that are started. gpus_per_replica: GPUs that one spreads over (vLLM's tensor parallelism).
    engine_urls: engines that run elsewhere, in place of own ones. engine_adapters: their path of the adapters' folder.
    providers: the file of models elsewhere that may answer when no engine does.
    log_format: of the server's own log, 'text' or 'json' (json_log.py).
    metrics_port: of Prometheus' figures, on `metrics_host`; None has none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    base: str = DEFAULT_BASE
    max_model_len: int = Window.max_model_len
    max_loras: int = 4
    max_lora_rank: int = 16
    stock_lora: bool = False
    kv_cache_gb: int = 2
    gpu_memory_utilization: float = 0.9
    max_answer_tokens: int = Window.max_answer_tokens
    max_body_bytes: int = 4 * 2**20
    max_file_bytes: int = 512 * 2**20
    embedder: str = DEFAULT_EMBEDDER
    tool_call_parser: str | None = None
    train: bool = True
    start_timeout_s: float = 600.0
    shutdown_grace_s: float = 15.0
    max_running: int = 64
    max_waiting: int = 48  # three quarters of those answered: then an answer takes less than twice as long
    max_wait_s: float = 60.0
    engine_silence_s: float = 300.0
    replicas: int = 1
    gpus_per_replica: int = 1
    engine_urls: tuple[str, ...] = ()
    engine_adapters: Path | None = None
    providers: Path | None = None
    log_format: str = "text"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None

    @property
    def window(self) -> Window:
        """The tokens of a request."""
        return Window(self.max_model_len, self.max_answer_tokens)


DEFAULTS = ServeOptions()
