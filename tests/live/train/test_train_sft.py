"""Runs of the real TRL on a tiny model: what is left behind, what is used again, what an interruption leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest
from tiny import PROMPT, QUICK, a_dozen, all_of, chat, left_in

from ryorin.adapter_files import adapter_digest, is_whole
from ryorin.catalog.tables import Adapter, Dataset, Job
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.digests import sha256_bytes
from ryorin_train.base_shapes import base_linears
from ryorin_train.servable import check_folder


@pytest.fixture
def train(cli: Any, tenant: str, write_rows: Callable[..., Path]) -> Callable[..., Any]:
    """`train(rows, *options)`: the command, its JSON result."""

    def run(rows: list[dict[str, Any]], *options: str) -> Any:
        ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(rows), *QUICK, *options, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    return run


def test_a_run_leaves_an_adapter_a_dataset_and_a_job(
    train: Callable[..., Any], sqlite: Any, home: Path, with_base: str, cli: Any
) -> None:
    result = train(a_dozen())
    name, digest = result["adapter"], result["digest"]
    assert name == f"support-{digest[:12]}"
    assert result["reused"] is False
    assert result["metrics"].keys() == {
        "train_loss", "held_out_loss", "held_out_token_accuracy", "held_out_answer_accuracy"
    }  # fmt: skip

    folder = home / "adapters" / name
    assert left_in(home, f"adapters/{name}") == [
        "adapter_config.json", "adapter_model.safetensors", "loss.jsonl", "manifest.json"
    ]  # fmt: skip
    check_folder(folder, base_linears(home / "models" / with_base[:12]))
    assert adapter_digest(folder) == digest
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(home / "models" / with_base[:12])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["base"] == {"name": "smollm2-135m-instruct", "digest": with_base}
    assert manifest["prompt_digest"] == PROMPT.digest
    assert manifest["data"]["trained"] + manifest["data"]["held_out"] == 12
    assert manifest["rank"] == 8 and manifest["recipe"]["epochs"] == 2
    assert manifest["versions"]["trl"]
    curve = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    epochs = [line for line in curve if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert epochs[1]["mean_train_loss"] < epochs[0]["mean_train_loss"]
    assert epochs[1]["held_out_loss"] == result["metrics"]["held_out_loss"]

    (adapter,) = all_of(sqlite, Adapter)
    assert (adapter.name, adapter.digest, adapter.base_digest, adapter.rank) == (name, digest, with_base, 8)
    assert adapter.manifest == manifest
    (dataset,) = all_of(sqlite, Dataset)
    blob = (home / "blobs" / dataset.digest[:2] / dataset.digest).read_bytes()
    assert sha256_bytes(blob) == dataset.digest == manifest["data"]["digest"]
    assert (dataset.rows, blob.count(b"\n")) == (12, 12)
    (job,) = all_of(sqlite, Job)
    assert (job.id, job.status, job.kind) == (adapter.job_id, "succeeded", "sft")
    assert job.finished_at is not None and job.result["adapter"] == name
    assert left_in(home, "jobs") == []

    listed = json.loads(cli("adapter", "list", "--tenant", "support", "--json").out)
    assert [row["name"] for row in listed] == [name]
    shown = json.loads(cli("adapter", "show", name, "--json").out)
    assert shown["files"] == "whole" and shown["digest"] == digest
    assert name in cli("adapter", "show", name).out
    assert cli("adapter", "show", "support-0").code == 2

    picture = home / "curve.svg"
    assert cli("train", "curve", name, "--out", picture).out.strip() == str(picture)
    assert ">loss<" in picture.read_text() and ">answer accuracy<" in picture.read_text()
    assert json.loads(cli("train", "curve", name, "--json").out) == curve


def test_an_identical_run_is_reused_unless_asked_or_damaged(train: Callable[..., Any], sqlite: Any, home: Path) -> None:
    first = train(a_dozen())
    assert train(a_dozen())["reused"] is True
    again = train(a_dozen(), "--again")
    assert (again["reused"], again["adapter"]) == (False, first["adapter"])  # same data, seed, machine: same weights
    assert len(all_of(sqlite, Adapter)) == 1
    assert train(a_dozen(), "--seed", "1")["adapter"] != first["adapter"]

    weights = home / "adapters" / first["adapter"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    mended = train(a_dozen())
    assert mended["reused"] is False
    assert is_whole(home / "adapters" / first["adapter"], first["digest"])


def test_training_starts_from_an_earlier_adapter(
    train: Callable[..., Any], cli: Any, sqlite: Any, home: Path, write_rows: Callable[..., Path]
) -> None:
    with sqlite.session() as session:
        set_prompt(session, create_tenant(session, "company"), PROMPT)
    first = train(a_dozen(), "--tenant", "company", "--epochs", "4")
    other = [*a_dozen(), chat("Is 20 even?", "YES")]
    still = train(other, "--start-from", first["adapter"], "--learning-rate", "1e-8", "--epochs", "1")
    alone = train(other, "--learning-rate", "1e-8", "--epochs", "1")
    losses = [json.loads((home / "adapters" / run["adapter"] / "loss.jsonl").read_text().splitlines()[0])["train_loss"]
              for run in (still, alone)]  # fmt: skip
    assert losses[0] < losses[1] - 0.05  # its weights are the first ones
    manifest = json.loads((home / "adapters" / still["adapter"] / "manifest.json").read_text())
    assert manifest["start_from"] == {"name": first["adapter"], "digest": first["digest"]}
    assert train(other, "--start-from", first["adapter"], "--learning-rate", "1e-8", "--epochs", "1")["reused"]

    def refused(*options: str) -> str:
        ran = cli("train", "sft", "--tenant", "support", "--data", write_rows(other), *QUICK, *options)
        assert ran.code == 2
        return str(ran.err)

    assert "no adapter 'company-0'" in refused("--start-from", "company-0")
    assert "has rank 8, this run 16; train with the same --rank" in refused(
        "--start-from", first["adapter"], "--rank", "16"
    )
    assert "has layers all, this run 2" in refused("--start-from", first["adapter"], "--layers", "2")
    (home / "adapters" / first["adapter"] / "adapter_model.safetensors").write_bytes(b"")
    assert "damaged or gone" in refused("--start-from", first["adapter"])


def test_targets_and_rslora_are_options_and_an_imported_adapter_can_be_grown(
    train: Callable[..., Any], cli: Any, home: Path, tiny_base: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    from lora import save_lora

    result = train(a_dozen(), "--rslora", "--targets", "q_proj, v_proj", "--epochs", "1")
    config = json.loads((home / "adapters" / result["adapter"] / "adapter_config.json").read_text())
    assert config["use_rslora"] is True and config["target_modules"] == ["q_proj", "v_proj"]
    manifest = json.loads((home / "adapters" / result["adapter"] / "manifest.json").read_text())
    assert manifest["recipe"]["rslora"] is True
    assert train(a_dozen(), "--targets", "v_proj,q_proj", "--epochs", "1")["adapter"] != result["adapter"]

    foreign = save_lora(tmp_path / "foreign", tiny_base, use_rslora=True, alpha=32)
    ran = cli("adapter", "import", foreign, "--tenant", "support", "--base", "smollm2-135m-instruct")
    assert ran.code == 0, ran.err
    options = ("--start-from", ran.out.strip(), "--targets", "q_proj,v_proj", "--epochs", "1")
    grown = train(a_dozen(), *options, "--rslora")
    assert json.loads((home / "adapters" / grown["adapter"] / "manifest.json").read_text())["start_from"]["name"] == (
        ran.out.strip()
    )
    ran = cli("train", "sft", "--tenant", "support", "--data", write_rows(a_dozen()), *QUICK, *options)
    assert ran.code == 0 and ran.out.strip() == grown["adapter"]  # what is not given is the start's


def test_upper_layers_alone_can_be_adapted(train: Callable[..., Any], home: Path) -> None:
    from safetensors import safe_open

    result = train(a_dozen(), "--layers", "1", "--held-out", "0")
    assert result["metrics"].keys() == {"train_loss"}
    with safe_open(str(home / "adapters" / result["adapter"] / "adapter_model.safetensors"), "pt") as tensors:
        names = list(tensors.keys())
    assert len(names) == 14 and all(".layers.2." in name for name in names)


def test_the_adapter_gives_the_loss_that_was_reported(
    train: Callable[..., Any], home: Path, tiny_base: Path, tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    """Loaded by PEFT into an untouched model, row by row: packing, trunk and fusing left no trace in the weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ryorin_train.datasets.formats import read_examples
    from ryorin_train.datasets.groups import split_rows
    from ryorin_train.render import Renderer

    result = train(a_dozen(), "--layers", "2", "--held-out", "0.4", "--learning-rate", "0.01")
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(home / "adapters" / result["adapter"])).eval()
    examples = read_examples(write_rows(a_dozen()))
    held_out = [examples[number] for number in split_rows(examples, 0.4, 0).held_out]
    total, count = 0.0, 0
    for row in Renderer(tokenizer, PROMPT, 500).rows("f", held_out):
        ids = torch.tensor([row.ids])
        learned = torch.tensor(row.learned[1:])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1][learned]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:][learned], reduction="sum").item()
        count += int(learned.sum())
    assert result["metrics"]["held_out_loss"] == pytest.approx(total / count, abs=2e-5)


def test_any_format_and_a_kept_dataset_are_the_same_run_and_its_purpose_is_in_the_manifest(
    train: Callable[..., Any], cli: Any, tenant: str, home: Path, tmp_path: Path, sqlite: Any
) -> None:
    stated = {
        "problem": "p", "why_not_prompt": "w", "why_not_retrieval": "r",
        "success": [{"metric": "held_out_loss", "at_most": 2.0}],
    }  # fmt: skip
    purpose = tmp_path / "purpose.json"
    purpose.write_text(json.dumps(stated))
    first = train(a_dozen(), "--purpose", str(purpose))
    manifest = json.loads((home / "adapters" / first["adapter"] / "manifest.json").read_text())
    assert manifest["purpose"] == stated
    (dataset,) = all_of(sqlite, Dataset)
    exported = tmp_path / "rows.csv"
    assert cli("data", "export", dataset.digest[:12], exported, "--tenant", tenant).code == 0
    for data in (dataset.digest[:12], dataset.id, exported):
        ran = cli("train", "sft", "--tenant", tenant, "--data", data, *QUICK, "--json")
        assert ran.code == 0, ran.err
        assert (json.loads(ran.out)["reused"], json.loads(ran.out)["adapter"]) == (True, first["adapter"])
    preferences = tmp_path / "preferences.jsonl"
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    preferences.write_text(json.dumps({"prompt": [{"role": "user", "content": "Q"}], **answers}))
    assert "holds preferences" in cli("train", "sft", "--tenant", tenant, "--data", preferences, *QUICK).err


@pytest.mark.parametrize("moment", ["step", "saving"])
def test_an_interruption_leaves_nothing(
    cli: Any, tenant: str, write_rows: Callable[..., Path], sqlite: Any, home: Path, moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from ryorin_train import adapters, progress

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if moment == "step":  # SIGTERM does what Ctrl-C does
        monkeypatch.setattr(progress.Progress, "stepped", lambda *_: os.kill(os.getpid(), SIGTERM))
    else:
        monkeypatch.setattr(adapters, "_record", interrupt)
    ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(a_dozen()), *QUICK)
    assert ran.code == 130
    assert "interrupted" in ran.err
    (row,) = all_of(sqlite, Job)
    assert (row.status, row.error) == ("cancelled", "interrupted")
    assert row.finished_at is not None
    assert (left_in(home, "adapters"), left_in(home, "jobs")) == ([], [])
    assert all_of(sqlite, Adapter) == []


def test_a_failure_is_kept_with_the_job(
    cli: Any,
    tenant: str,
    write_rows: Callable[..., Path],
    sqlite: Any,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from peft import PeftModel

    save = PeftModel.save_pretrained

    def diverge(self: Any, *args: Any, **kwargs: Any) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad:
                torch.nn.init.constant_(parameter, float("nan"))
        save(self, *args, **kwargs)

    monkeypatch.setattr(PeftModel, "save_pretrained", diverge)
    ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(a_dozen()), *QUICK)
    assert ran.code == 2 and "not finite" in ran.err
    (row,) = all_of(sqlite, Job)
    assert row.status == "failed" and "not finite" in row.error
    assert (left_in(home, "adapters"), left_in(home, "jobs")) == ([], [])


def test_ctrl_c_to_a_real_process_leaves_nothing(
    sqlite: Any, home: Path, tiny_base: Path, write_rows: Callable[..., Path]
) -> None:
    process = start_long_run(sqlite, tiny_base, write_rows(a_dozen()))
    process.send_signal(SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (row,) = all_of(sqlite, Job)
    assert row.status == "cancelled"
    assert (left_in(home, "adapters"), left_in(home, "jobs"), all_of(sqlite, Adapter)) == ([], [], [])


def start_long_run(catalog: Any, base: Path, data: Path) -> Any:
    """A process of the real command line that trains for a long time; returns when it has begun."""
    from ryorin.models.install import add_folder

    add_folder(catalog.settings, "tiny", base, "base", lambda _: None)
    with catalog.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
    words = ["train", "sft", "--tenant", "support", "--data", str(data), "--base", "tiny", *QUICK, "--epochs", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ryorin.cli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("epoch "):
            return process
    raise AssertionError(said)


def test_a_killed_run_is_continued_to_the_same_curve_and_weights(
    cli: Any, sqlite: Any, home: Path, tiny_base: Path, write_rows: Callable[..., Path]
) -> None:
    from ryorin.models.install import add_folder

    add_folder(sqlite.settings, "tiny", tiny_base, "base", lambda _: None)
    with sqlite.session() as session:
        for name in ("whole", "killed"):
            set_prompt(session, create_tenant(session, name), PROMPT)

    def words(tenant: str) -> list[str]:
        data = ["--data", str(write_rows(a_dozen())), "--base", "tiny"]
        return ["train", "sft", "--tenant", tenant, *data, *QUICK, "--epochs", "12", "--json"]

    program = """if True:
        from ryorin.cli import main
        from ryorin_train import checkpoints

        checkpoints.EVERY_S = 0
        main()
    """
    command = [sys.executable, "-c", program, *words("killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"epoch 5/12"):
                process.kill()
                break
    assert len(list(home.glob("checkpoints/*/checkpoint-*/complete"))) >= 1

    runs = {tenant: cli(*words(tenant)) for tenant in ("killed", "whole")}
    assert "an interrupted run is continued at step" in runs["killed"].err
    assert "continued" not in runs["whole"].err
    whole, killed = (json.loads(runs[tenant].out) for tenant in ("whole", "killed"))
    curves = [(home / "adapters" / run["adapter"] / "loss.jsonl").read_text() for run in (whole, killed)]
    assert curves[0] == curves[1]
    assert len(curves[0].splitlines()) > 24
    assert whole["digest"] == killed["digest"]
    assert whole["metrics"] == killed["metrics"]
    assert left_in(home, "checkpoints") == []


def test_a_loss_that_is_no_number_ends_the_run_and_says_where(
    cli: Any, tenant: str, write_rows: Callable[..., Path], sqlite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ryorin_train import trainer

    compute = trainer.PackedTrainer.compute_loss
    calls = []

    def diverge(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return compute(self, *args, **kwargs) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(trainer.PackedTrainer, "compute_loss", diverge)
    ran = cli("train", "sft", "--tenant", tenant, "--data", write_rows(a_dozen()), *QUICK)
    assert ran.code != 0
    assert "the loss is nan at step 3" in ran.err and "--learning-rate" in ran.err
    assert [row.status for row in all_of(sqlite, Job)] == ["failed"]
