"""`ryorin train` without a step of training: what is refused before anything is kept, dead jobs, one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import QUICK, a_dozen, all_of, chat, left_in

from ryorin.catalog.tables import Dataset, Job
from ryorin.catalog.tenants import create_tenant


def test_what_a_killed_run_left_is_cleared_away_by_the_next(sqlite: Any, home: Path) -> None:
    from ryorin_train.work import clear_away_dead_jobs

    program = """if True:
        import sys, time
        from ryorin.catalog import open_catalog
        from ryorin.settings import load_settings
        from ryorin_train.work import job_folder

        with job_folder(open_catalog(load_settings()), sys.argv[1], "sft", {}):
            print("at work", flush=True)
            time.sleep(600)
    """  # without the training, whose imports take seconds
    with sqlite.session() as session:
        tenant_id = create_tenant(session, "support").id
    with subprocess.Popen([sys.executable, "-c", program, tenant_id], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        (row,) = all_of(sqlite, Job)
        clear_away_dead_jobs(sqlite)
        assert left_in(home, "jobs") == [row.id]  # it is at work
        process.kill()
    clear_away_dead_jobs(sqlite)
    assert left_in(home, "jobs") == []
    (row,) = all_of(sqlite, Job)
    assert (row.status, row.error) == ("failed", "its process was killed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tenant", "nobody"), "no tenant 'nobody' (known: support)"),
        (("--base", "gpt-9"), "no base model 'gpt-9'"),
        (("--rank", "12"), "rank is 12; vLLM takes 1, 8, 16, 32, 64"),
        (("--layers", "9"), "layers is 9; the base model has 3"),
        (("--targets", "q_proj,wq"), "target 'wq' is unknown"),
        (("--qlora",), "needs a CUDA GPU"),
        (("--epochs", "0"), "epochs is 0"),
        (("--data", "/nowhere.jsonl"), "no file /nowhere.jsonl"),
        (("--max-row-tokens", "40"), "rows.jsonl, line 1: "),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_kept(
    cli: Any, tenant: str, write_rows: Callable[..., Path], sqlite: Any, home: Path, options: Any, words: str
) -> None:
    ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(a_dozen()), *QUICK, *options)
    assert ran.code == 2
    assert ran.err.startswith("error: ") and words in ran.err
    assert all_of(sqlite, Job) == all_of(sqlite, Dataset) == []
    assert (left_in(home, "adapters"), left_in(home, "jobs"), left_in(home, "blobs")) == ([], [], [])


def test_bad_lines_of_both_kinds_are_shown(cli: Any, tenant: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": []}\n' + json.dumps(chat("q", "a")) + "\nnot json\n")
    ran = cli("train", "sft", "--tenant", tenant, "--data", path, *QUICK)
    assert ran.code == 2
    assert "bad.jsonl, line 1: " in ran.err and "bad.jsonl, line 3: not JSON" in ran.err


def test_a_tenant_without_a_prompt_is_told_how_to_set_one(
    cli: Any, sqlite: Any, with_base: str, write_rows: Callable[..., Path]
) -> None:
    with sqlite.session() as session:
        create_tenant(session, "bare")
    ran = cli("train", "sft", "--tenant", "bare", "--data", write_rows(a_dozen()), *QUICK)
    assert ran.code == 2 and "ryorin prompt set FILE --tenant bare" in ran.err


def test_help_has_an_example_and_imports_no_torch(cli: Any) -> None:
    verbs = ("list", "show", "diff", "import", "export", "merge", "delete")
    for words in (("train", "sft"), ("train", "dpo"), *(("adapter", verb) for verb in verbs)):
        assert "Example" in cli(*words, "--help").out
    modules = "ryorin_train.cli, ryorin_train.job, ryorin_train.commands.adapter"
    code = f"import sys, {modules}; print([m for m in ('torch', 'trl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
