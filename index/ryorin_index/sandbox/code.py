"""
Running a stranger's Python function where it can do no harm: in the same children as the readers of documents.

Readers are ours and may have a fault; this code may want harm. So it is not run where the kernel confines a child less
than it can (no Linux, no seccomp, no Landlock). It can read Python's and its packages' files, and compute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ryorin.errors import RequirementMissing
from ryorin_index.sandbox import Beyond, Limits, call

LIMITS = Limits(memory_bytes=256 << 20, cpu_s=2, wall_s=5.0, result_bytes=1 << 20)
NEEDED = ("seccomp", "landlock")
MAX_REASON_CHARACTERS = 300


class CodeFailed(ValueError):
    """The code raised, returned what JSON does not hold, or went beyond a limit; the message says which."""


def run_code(source: str, function: str, arguments: list[Any], limits: Limits | None = None) -> Any:
    """
    What `function` of `source` returns for these arguments; all of it as JSON holds it.

    Raises CodeFailed; RequirementMissing on a machine that cannot confine it.
    """
    limits = limits or LIMITS
    data = json.dumps({"source": source, "function": function, "arguments": arguments}).encode()
    try:
        answer = call("ryorin_index.sandbox.code:answers", "code", data, limits)
    except Beyond as error:
        raise CodeFailed(
            {
                "wall": f"it took more than {limits.wall_s:g} s",
                "cpu": f"it took more than {limits.cpu_s} s of computing",
                "memory": f"it needed more than {limits.memory_bytes >> 20} MB of memory",
                "result": f"it gave more than {limits.result_bytes >> 10} KB back",
            }.get(error.limit, "its process crashed or ended itself")
        ) from None
    found = answer[0] if len(answer) == 1 and isinstance(answer[0], dict) else {}
    if "lacking" in found:
        raise RequirementMissing(
            f"Python graders need a Linux kernel with {' and '.join(NEEDED)} to be confined; this machine has no "
            f"{found['lacking']}; use other graders here"
        )
    if "failed" in found:
        raise CodeFailed(str(found["failed"])[:MAX_REASON_CHARACTERS])
    if "value" not in found:
        raise CodeFailed("it answered past its own return value")
    return found["value"]


def answers(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    """In the child: run the code, once it is sure that it is confined."""
    from ryorin_index.sandbox.confinement import layers

    lacking = [layer for layer in NEEDED if layer not in layers]
    if lacking:
        yield {"lacking": lacking[0]}
        return
    asked = json.loads(data)
    try:
        namespace: dict[str, Any] = {"__name__": "grader"}
        exec(compile(asked["source"], "grader", "exec", dont_inherit=True), namespace)
        value = namespace[asked["function"]](*asked["arguments"])
        json.dumps(value)
    except MemoryError:
        raise
    except Exception as error:
        yield {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_CHARACTERS]}
    else:
        yield {"value": value}
