"""What stops a training run in the middle, on the real trainer: its curve, its checkpoints, the reason it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, QUICK, a_dozen

from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin_train import adapters, checkpoints, trainer
from ryorin_train.checkpoints import checkpoints_of
from ryorin_train.progress import read_curve
from ryorin_train.reinforcement.trainer import PolicyTrainer

ONE_STEP = ("--batch-tokens", "100000", "--epochs", "6")  # an epoch is one step


@pytest.fixture
def train(cli: Any, sqlite: Any, with_base: str, write_rows: Callable[..., Path]) -> Callable[..., Any]:
    """`train("support", *options)`: the command for a tenant, which is made; how it ran."""
    made: set[str] = set()

    def run(tenant: str, *options: str) -> Any:
        if tenant not in made:
            made.add(tenant)
            with sqlite.session() as session:
                set_prompt(session, create_tenant(session, tenant), PROMPT)
        rows = write_rows(a_dozen())
        return cli("train", "sft", "--tenant", tenant, "--data", rows, *QUICK, "--json", *options)

    return run


def curve_of(home: Path, ran: Any) -> list[dict[str, Any]]:
    assert ran.code == 0, ran.err
    return read_curve(home / "adapters" / json.loads(ran.out)["adapter"] / "loss.jsonl")


def marked(home: Path) -> list[str]:
    return sorted(path.parent.name for path in home.glob("checkpoints/*/*/complete"))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_stop_between_the_last_step_and_publishing_keeps_the_curve(
    train: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "_record", interrupt)
        assert train("stopped").code == 130
    again = train("stopped")
    assert "continued at step" in again.err
    assert curve_of(home, again) == curve_of(home, train("whole"))


def test_a_stop_while_the_curve_is_written_anew_keeps_it(
    train: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "_record", interrupt)
        assert train("stopped").code == 130
    (curve,) = home.glob("checkpoints/*/loss.jsonl")
    before = read_curve(curve)
    with monkeypatch.context() as patch:  # the moment at which the new curve would take the old one's place
        patch.setattr(os, "replace", interrupt)
        assert train("stopped").code == 130
    assert read_curve(curve) == before
    assert curve_of(home, train("stopped")) == curve_of(home, train("whole"))


def test_an_epoch_of_one_step_leaves_checkpoints_that_go_on_to_the_same_curve(
    train: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    compute = trainer.PackedTrainer.training_step
    calls: list[int] = []

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return interrupt() if len(calls) == 5 else compute(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PackedTrainer, "training_step", stop)
        assert train("stopped", *ONE_STEP).code == 130
    assert marked(home) == ["checkpoint-4"]
    again, whole = train("stopped", *ONE_STEP), train("whole", *ONE_STEP)
    assert "continued at step 4 of 6" in again.err
    curve = curve_of(home, again)
    assert curve == curve_of(home, whole)
    assert [line["step"] for line in curve] == [step for step in range(1, 7) for _ in ("its own", "its epoch's")]
    assert json.loads(again.out)["digest"] == json.loads(whole.out)["digest"]


def test_learning_from_grades_goes_on_to_the_same_curve(
    cli: Any, tenant: str, home: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps learn from the same answers: a stop between them, or before an epoch's end, changes nothing."""
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    grader = tmp_path / "grader.json"
    grader.write_text(json.dumps({"type": "regex", "name": "short", "pattern": "[a-m]", "match": "search"}))
    tasks = write_rows([{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(10)], "tasks.jsonl")
    sizes = ("--prompts", "4", "--answers", "4", "--max-answer-tokens", "5", "--iterations", "2", "--epochs", "2")
    options = (
        "--tenant",
        tenant,
        "--data",
        tasks,
        "--grader",
        grader,
        *sizes,
        "--rank",
        "8",
        "--beta",
        "0.1",
        "--json",
    )
    step = PolicyTrainer.training_step
    for stop_at in (4, 6):
        calls: list[int] = []

        def stopping(self: Any, *args: Any, calls: list[int] = calls, stop_at: int = stop_at, **kwargs: Any) -> Any:
            calls.append(1)
            return interrupt() if len(calls) == stop_at else step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(PolicyTrainer, "training_step", stopping)
            assert cli("train", "rl", *options).code == 130
    stopped = cli("train", "rl", *options)
    assert "an interrupted run is continued at step" in stopped.err
    whole = cli("train", "rl", *options, "--again")
    assert curve_of(home, stopped) == curve_of(home, whole)
    assert json.loads(stopped.out)["digest"] == json.loads(whole.out)["digest"]


def test_a_score_that_is_no_number_ends_the_run_and_the_last_checkpoint_stays(
    train: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    evaluate = trainer.PackedTrainer.evaluate
    calls: list[int] = []

    def diverge(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        calls.append(1)
        scores = evaluate(self, *args, **kwargs)
        return scores | ({"held_out_loss": float("inf")} if len(calls) == 2 else {})

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PackedTrainer, "evaluate", diverge)
        ran = train("support", *ONE_STEP)
    assert ran.code != 0
    assert "the held out loss is inf at step 2 of 6" in ran.err and "--learning-rate" in ran.err
    assert marked(home) == ["checkpoint-1"]
    assert "continued at step 1 of 6" in train("support", *ONE_STEP).err


def test_half_a_checkpoint_is_taken_away_when_the_run_is_opened(settings: Any) -> None:
    folder = settings.checkpoints_dir / ("a" * 32)
    for name in ("checkpoint-4", "checkpoint-9"):
        (folder / name).mkdir(parents=True)
        (folder / name / "optimizer.pt").write_bytes(b"weights")
    (folder / "checkpoint-4" / "complete").touch()
    with checkpoints_of(settings, "a" * 64, print) as found:
        assert found.latest() == (4, folder / "checkpoint-4")
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]


FULL_DISK = """if True:
    import resource, sys
    from ryorin.cli import main
    from ryorin_train import checkpoints
    from ryorin_train.trainer import PackedTrainer
    from transformers import Trainer

    checkpoints.EVERY_S = 0
    save, limit = Trainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def saved(self, *args):  # from the third step to the fourth nothing larger than {room} bytes can be written
        full = 3 <= self.state.global_step <= 4
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, limit[1]) if full else limit)
        try:
            save(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    Trainer._save_checkpoint = saved
    main()
"""


@pytest.fixture
def in_processes(sqlite: Any, tiny_base: Path, write_rows: Callable[..., Path]) -> Callable[..., Any]:
    """`in_processes(program, *options)`: a process that runs it with the words of a command that trains."""
    from ryorin.models.install import add_folder

    add_folder(sqlite.settings, "tiny", tiny_base, "base", lambda _: None)
    with sqlite.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
    words = ["train", "sft", "--tenant", "support", "--data", str(write_rows(a_dozen())), "--base", "tiny", *QUICK]

    def start(program: str, *options: str) -> Any:
        return subprocess.Popen(
            [sys.executable, "-c", program, *words, "--json", *options],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("room", [1000, 60_000])  # the adapter's weights do not fit; they do, the optimizer's state not
def test_a_full_disk_costs_a_checkpoint_and_says_so_once(
    in_processes: Callable[..., Any], home: Path, room: int
) -> None:
    with in_processes(FULL_DISK.format(room=room), *ONE_STEP) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("warning: no checkpoint at step") == 1
    assert "warning: no checkpoint at step 3: " in err and "Make room" in err
    assert len(read_curve(home / "adapters" / json.loads(out)["adapter"] / "loss.jsonl")) == 12


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(settings: Any) -> None:
    with checkpoints_of(settings, "a" * 64, print) as kept:
        kept.curve.touch()
        for step in (1, 2):
            with pytest.raises(OSError, match="full") if step == 2 else nullcontext(), kept.writing(step):
                folder = kept.folder / f"checkpoint-{step}"
                folder.mkdir()
                (folder / "optimizer.pt").write_bytes(b"half")
                if step == 2:
                    raise OSError("the disk is full")
        assert kept.latest() == (1, kept.folder / "checkpoint-1")
        assert not (kept.folder / "checkpoint-2").exists()


def test_a_curve_that_the_disk_has_no_room_for_is_written_later(tmp_path: Path) -> None:
    import resource

    from ryorin_train.progress import Listener, Progress

    progress = Progress(Listener(lambda line: None), tmp_path / "loss.jsonl", 9, 1)
    progress.stepped(1.0, 10)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limit[1]))
    try:
        progress.stepped(2.0, 10)
        progress.stepped(3.0, 10)
        with pytest.raises(OSError):
            progress.complete()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    progress.stepped(4.0, 10)
    progress.complete()
    progress.close()
    assert [line["train_loss"] for line in read_curve(tmp_path / "loss.jsonl")] == [1.0, 2.0, 3.0, 4.0]


HELD = """if True:
    import pathlib, sys, time
    from ryorin.cli import main
    from ryorin_train.progress import Progress

    ended = Progress.epoch_ended

    def hold(self, *args):
        ended(self, *args)
        while not pathlib.Path({gate!r}).exists():
            time.sleep(0.02)

    Progress.epoch_ended = hold
    main()
"""


def test_of_two_processes_with_the_same_run_one_trains_and_the_other_takes_what_it_made(
    in_processes: Callable[..., Any], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    with in_processes(HELD.format(gate=str(gate))) as first:
        said_until(first, "epoch 1/2")
        with in_processes(HELD.format(gate=str(gate))) as second:
            said_until(second, "the same run is being trained by another process; waiting for it")
            gate.touch()
            made, taken = (json.loads(process.communicate(timeout=120)[0]) for process in (first, second))
    assert (made["reused"], taken["reused"]) == (False, True)
    assert made["adapter"] == taken["adapter"]


def said_until(process: Any, words: str) -> None:
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return
    raise AssertionError(said)


def test_who_waits_for_a_run_holds_a_lock_that_is_there(settings: Any) -> None:
    """The one before takes the folder away, with the lock file that the other waits on."""
    waiting, inside, order = threading.Event(), threading.Event(), []

    def wait() -> None:
        with checkpoints_of(settings, "a" * 64, lambda _: waiting.set()) as mine:
            order.append(mine.folder.exists())
            inside.set()
            assert let_go.wait(30)

    let_go = threading.Event()
    second = threading.Thread(target=wait)
    with checkpoints_of(settings, "a" * 64, print):
        second.start()
        assert waiting.wait(30) and not inside.is_set()
    assert inside.wait(30) and order == [True]
    third = threading.Event()
    late = threading.Thread(target=lambda: _enter(settings, third))
    late.start()
    assert third.wait(30)  # it has to wait for the second, whose lock is at the path
    let_go.set()
    for thread in (second, late):
        thread.join(30)
        assert not thread.is_alive()
    assert not (settings.checkpoints_dir / ("a" * 32)).exists()


def _enter(settings: Any, said: threading.Event) -> None:
    with checkpoints_of(settings, "a" * 64, lambda _: said.set()):
        pass
