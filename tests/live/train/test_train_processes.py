"""Two processes on the CPU (gloo) do what one does: each method's loss and gradients, and whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, a_dozen

from ryorin.catalog import open_catalog
from ryorin.catalog.tables import Job
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.errors import RequirementMissing
from ryorin.settings import load_settings
from ryorin_train.packing import TokenBatches
from ryorin_train.processes import refuse_several

torch = pytest.importorskip("torch")

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
LAUNCH += ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
HERE = Path(__file__).parent


def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([*sys.path, str(HERE)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true"} | more
    return subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, timeout=300)


def launched(port: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return run(*LAUNCH, "--main_process_port", str(port), *words)


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_loss_and_gradients_of_two_processes_are_those_of_one(tiny_base: Path, tmp_path: Path, port: int) -> None:
    script = HERE / "two_processes.py"
    two, one = tmp_path / "two.pt", tmp_path / "one.pt"
    done = launched(port, script, tiny_base, two)
    assert done.returncode == 0, done.stderr
    alone = run(sys.executable, script, tiny_base, one)
    assert alone.returncode == 0, alone.stderr
    found, wanted = torch.load(two), torch.load(one)
    for method, of_one in wanted.items():
        of_two = found[method]
        assert of_two["loss"] == pytest.approx(of_one["loss"], rel=1e-5), method
        for name, value in of_two["figures"].items():
            assert value == pytest.approx(of_one["figures"][name], rel=1e-4, abs=1e-6), (method, name)
        assert of_two["gradients"].keys() == of_one["gradients"].keys() and len(of_one["gradients"]) == 18
        for name, gradient in of_one["gradients"].items():
            assert torch.allclose(gradient, of_two["gradients"][name], rtol=1e-4, atol=1e-7), (method, name)
        assert max(gradient.abs().max() for gradient in of_one["gradients"].values()) > 1e-4


def test_a_run_by_two_processes_is_one_job_with_one_adapter(
    home: Path, tiny_base: Path, write_rows: Callable[..., Path], port: int, cli: Any
) -> None:
    from ryorin.models.install import add_folder

    catalog = open_catalog(load_settings())
    add_folder(catalog.settings, "tiny", tiny_base, "base", lambda _: None)
    with catalog.session() as session:
        for name in ("two", "one"):
            set_prompt(session, create_tenant(session, name), PROMPT)
    data = ("--data", write_rows(a_dozen()), "--base", "tiny", "--epochs", "3", "--batch-tokens", "200", "--rank", "8")
    data += ("--patience", "2", "--held-out", "0.3", "--json")
    done = launched(port, "-m", "ryorin.cli", "train", "sft", "--tenant", "two", *data)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, done.stdout  # the first process alone answers
    two, one = json.loads(lines[0]), json.loads(cli("train", "sft", "--tenant", "one", *data).out)
    curves = [
        [json.loads(line) for line in (home / "adapters" / each["adapter"] / "loss.jsonl").read_text().splitlines()]
        for each in (two, one)
    ]
    assert len(curves[0]) == len(curves[1]) > 6
    for line, same in zip(*curves, strict=True):
        assert line == pytest.approx(same, abs=2e-4)
    with catalog.session() as session:
        assert sorted(job.status for job in session.query(Job)) == ["succeeded", "succeeded"]
    catalog.close()
    assert not list((home / "jobs").iterdir()) and not list((home / "checkpoints").iterdir())


def test_every_part_of_a_step_has_a_row_and_together_they_are_the_step() -> None:
    lengths = [3, 50, 4, 5, 6, 7, 8, 2, 90]
    whole = [sorted(batch) for batch in TokenBatches(lengths, 60, 0)]
    parts = [list(TokenBatches(lengths, 60, 0, processes=2, process=process)) for process in (0, 1)]
    assert all(batch for part in parts for batch in part)
    joined = [sorted(first + second) for first, second in zip(*parts, strict=True)]
    assert sorted(row for batch in joined for row in batch) == list(range(9))
    assert len(joined) == len(whole) == 3
    for process in (0, 1):
        assert [len(each) for each in TokenBatches([9] * 4, 1, 0, processes=2, process=process)] == [1, 1]


def test_a_sweep_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("a sweep")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequirementMissing, match="a sweep is done by one process, and 2 were started"):
        refuse_several("a sweep")
