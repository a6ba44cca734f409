"""/v1/fine_tuning as the unmodified openai client sees it: a real worker trains a tiny base model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from lazily import Lazily
from scripted_house import House, built, eventually
from tiny_base import make_tiny_base

from ryorin.catalog.audit import audit_events
from ryorin.catalog.tables import Adapter, Job, Tenant
from ryorin.catalog.tenants import current_prompt, set_prompt
from ryorin.prompt import Prompt
from ryorin_serve import routes_files
from ryorin_serve.options import ServeOptions

openai = Lazily("openai")


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory, empty_sqlite: Path) -> Iterator[House]:
    """A house that trains."""
    folder = tmp_path_factory.mktemp("school")
    base = make_tiny_base(folder / "base")
    with built(folder / "home", empty_sqlite, ServeOptions(max_model_len=400), base_folder=base) as house:
        yield house


def chat(number: int) -> dict[str, Any]:
    answer = "YES" if number % 2 == 0 else "NO"
    said = [{"role": "user", "content": f"Is {number} even?"}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def pair(number: int) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"What is {number}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"It is {number}, madam."}],
        "non_preferred_output": [{"role": "assistant", "content": f"{number}, obviously"}],
    }


def upload(client: openai.OpenAI, rows: list[Any], purpose: Any = "fine-tune") -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", content), purpose=purpose).id


IS_YES = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "operation": "ilike",
    "reference": "{{item.right}}",
}


def graded(grader: dict[str, Any], **hyperparameters: Any) -> dict[str, Any]:
    given = {"grader": grader, "hyperparameters": hyperparameters}
    return {"method": {"type": "reinforcement", "reinforcement": given}}


def ended(client: openai.OpenAI, job_id: str) -> Any:
    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return eventually(look, 600)  # training gives way to whatever else runs


def test_a_job_trains_and_its_model_answers_at_once(school: House) -> None:
    client = school.client()
    rows = [chat(number) for number in range(12)]
    training, validation = upload(client, rows), upload(client, rows[:2])
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training,
        validation_file=validation,
        suffix="even",
        metadata={"why": "a test"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )
    assert job.status in ("validating_files", "queued", "running")
    assert (job.model, job.training_file, job.fine_tuned_model, job.error) == ("tiny", training, None, None)
    followed = client.get(
        f"/fine_tuning/jobs/{job.id}/events?stream=true", cast_to=object, stream=True, stream_cls=openai.Stream[Any]
    )
    messages = [event["message"] for event in followed]  # type: ignore[index]
    done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model == f"ft:tiny:support:even:{job.id.removeprefix('ftjob-')}"
    assert done.trained_tokens > 0 and done.finished_at >= done.created_at
    assert done.hyperparameters.n_epochs == 2 and done.method.type == "supervised"
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has successfully completed"
    assert any(message.startswith("Step 6/6: training loss=") for message in messages)
    assert any("validation loss=" in message for message in messages)

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))  # pages through all of them
    assert [event.message for event in reversed(events)] == messages
    assert {event.type for event in events} == {"message", "metrics"}
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == done.fine_tuned_model
    assert checkpoint.step_number == 6 and checkpoint.metrics.full_valid_loss > 0

    assert done.fine_tuned_model in {model.id for model in client.models.list()}
    school.engine.pieces = ["YES"]
    answer = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Is 2 even?"}]
    )
    assert answer.model == done.fine_tuned_model
    asked = school.engine.requests[-1]
    assert asked["model"].startswith("support-") and asked["model"] in school.engine.loads[-1]
    assert "Refunds" in json.dumps(asked["messages"])  # the live release's documents
    with pytest.raises(openai.NotFoundError):
        school.client("people").chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": "Is 2 even?"}]
        )

    pairs = upload(client, [pair(number) for number in range(8)])
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}
    chained = client.fine_tuning.jobs.create(model=done.fine_tuned_model, training_file=pairs, method=method)
    second = ended(client, chained.id)
    assert second.status == "succeeded", second.error
    assert second.method.dpo.hyperparameters.beta == 0.2
    with school.catalog.session() as session:
        before, after = (session.get_one(Job, each).result for each in (job.id, chained.id))
    assert before is not None and after is not None
    manifest = json.loads((school.catalog.settings.adapters_dir / after["adapter"] / "manifest.json").read_text())
    assert (manifest["kind"], manifest["start_from"]["name"]) == ("dpo", before["adapter"])
    assert [each.id for each in client.fine_tuning.jobs.list()] == [chained.id, job.id]


def test_training_stands_still_while_a_question_is_answered(school: House) -> None:
    client = school.client()
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, [chat(number) for number in range(40, 52)]),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 200, "batch_size": 4}}},
    )

    def training() -> psutil.Process | None:
        if not any(event.message.startswith("Step") for event in client.fine_tuning.jobs.list_events(job.id)):
            return None
        return next((each for each in psutil.Process().children() if "ryorin_train.child" in each.cmdline()), None)

    process = eventually(training)
    question: dict[str, Any] = {"model": "support", "messages": [{"role": "user", "content": "When?"}]}
    school.engine.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.chat.completions.create, **question)
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        school.engine.gate.set()
        asked.result(60)
    eventually(lambda: process.status() != psutil.STATUS_STOPPED)
    client.fine_tuning.jobs.cancel(job.id)
    process.wait(120)


def test_a_job_learns_from_the_grades_of_its_answers(school: House) -> None:
    client = school.client()
    asked = [{"messages": chat(number)["messages"][:1], "right": "y"} for number in range(10)]
    training = upload(client, asked)
    assert client.files.retrieve(training).status == "processed"
    options: Any = graded(IS_YES, batch_size=5, n_epochs=1, compute_multiplier=0.5, eval_interval="auto")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training, **options)
    done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    assert done.method.type == "reinforcement"
    assert done.method.reinforcement.grader.reference == "{{item.right}}"
    assert done.method.reinforcement.hyperparameters.compute_multiplier == 0.5
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert any("train reward=" in message for message in said)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == done.fine_tuned_model
    with school.catalog.session() as session:
        made = session.get_one(Job, job.id).result
    assert made is not None
    manifest = json.loads((school.catalog.settings.adapters_dir / made["adapter"] / "manifest.json").read_text())
    assert (manifest["kind"], manifest["recipe"]["answers"], manifest["grader"]) == ("rl", 4, IS_YES)

    lacking = upload(client, [{"messages": asked[0]["messages"]}])
    refused = ended(client, client.fine_tuning.jobs.create(model="tiny", training_file=lacking, **graded(IS_YES)).id)
    assert refused.status == "failed" and "item.right" in refused.error.message
    assert refused.error.code == "invalid_training_file"


def test_a_job_is_paused_resumed_and_cancelled(school: House) -> None:
    client = school.client("people")
    long: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1000}}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=upload(client, [chat(number) for number in range(12)]), method=long
    )
    eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", 120)
    assert client.fine_tuning.jobs.retrieve(job.id).estimated_finish
    assert client.fine_tuning.jobs.pause(job.id).status == "queued"
    with pytest.raises(openai.ConflictError, match="is paused"):
        client.fine_tuning.jobs.pause(job.id)
    time.sleep(1.0)  # a worker that looked twice a second would have taken it by now
    with school.catalog.session() as session:
        assert session.get_one(Job, job.id).status == "paused"
    client.fine_tuning.jobs.resume(job.id)
    eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", 120)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert said[0] == "The job was cancelled"
    assert "Fine-tuning job started" in said
    assert not any("successfully" in message for message in said)
    with school.catalog.session() as session:
        acts = [act.act for act in audit_events(session, school.ids["people"]) if act.target == job.id]
    assert acts[::-1] == ["job.create", "job.pause", "job.resume", "job.cancel"]


def test_a_file_that_cannot_be_learned_says_so_when_it_comes_and_makes_no_job(school: House) -> None:
    client = school.client()
    file = client.files.retrieve(upload(client, [chat(1), {"messages": []}]))
    assert file.status == "error" and file.status_details is not None
    assert file.status_details.startswith("rows.jsonl, line 2: ")
    with pytest.raises(openai.BadRequestError, match=r"rows\.jsonl, line 2: ") as refused:
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert (refused.value.code, refused.value.param) == ("invalid_training_file", "training_file")


def test_a_gateway_without_the_trainer_leaves_the_check_to_the_job(
    school: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = school.client()
    monkeypatch.setattr(routes_files, "CHECKER", ("not_installed_here.formats", "what_is_wrong"))
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, [chat(1), {"messages": []}]))
    failed = ended(client, job.id)
    assert failed.status == "failed" and failed.fine_tuned_model is None
    assert failed.error.code == "invalid_training_file"
    assert failed.error.message.startswith("rows.jsonl, line 2: ")
    assert client.fine_tuning.jobs.list_events(job.id).data[0].level == "error"


def test_one_idempotency_key_makes_one_job(school: House) -> None:
    client = school.client("people")
    training = upload(client, [chat(1)] * 4)
    before = len(list(client.fine_tuning.jobs.list()))
    headers = {"Idempotency-Key": "the same"}

    def create(_: int) -> str:
        return client.fine_tuning.jobs.create(model="tiny", training_file=training, extra_headers=headers).id

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(create, range(100)))
    assert len(made) == 1
    assert len(list(client.fine_tuning.jobs.list())) == before + 1
    with pytest.raises(openai.BadRequestError, match="used for another job"):
        client.fine_tuning.jobs.create(model="tiny", training_file=training, seed=7, extra_headers=headers)


def test_a_replay_is_answered_although_what_it_names_is_gone(school: House) -> None:
    client = school.client()
    wanted: dict[str, Any] = {
        "model": "tiny",
        "training_file": upload(client, [chat(number) for number in range(4)]),
        "extra_headers": {"Idempotency-Key": "sent twice"},
    }
    job = client.fine_tuning.jobs.create(**wanted)
    ended(client, job.id)
    client.files.delete(wanted["training_file"])
    assert client.fine_tuning.jobs.create(**wanted).id == job.id


def test_a_job_is_trained_for_the_prompt_that_was_the_tenants_when_it_was_created(school: House) -> None:
    client = school.client()
    with school.catalog.session() as session:
        tenant = session.query(Tenant).filter_by(name="support").one()
        before = current_prompt(session, tenant)
        asked = before.digest, Prompt.from_spec(before.spec)
    held = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, [chat(1)] * 4))
    client.fine_tuning.jobs.pause(held.id)
    try:
        with school.catalog.session() as session:
            set_prompt(session, session.get_one(Tenant, tenant.id), Prompt(system="Answer otherwise."))
        client.fine_tuning.jobs.resume(held.id)
        assert ended(client, held.id).status == "succeeded"
    finally:
        with school.catalog.session() as session:
            set_prompt(session, session.get_one(Tenant, tenant.id), asked[1])
    with school.catalog.session() as session:
        made = session.get_one(Job, held.id).result
        assert made is not None
        assert session.query(Adapter).filter_by(name=made["adapter"]).one().prompt_digest == asked[0]


def test_general_texts_are_kept_when_asked_for(school: House) -> None:
    client = school.client()
    hyperparameters: Any = {"n_epochs": 1, "keep_general": 3}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=upload(client, [chat(n) for n in range(4)]), hyperparameters=hyperparameters
    )
    done = ended(client, job.id)
    assert done.status == "succeeded", done.error
    assert done.hyperparameters.to_dict()["keep_general"] == 3
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert any("3 general texts to keep" in message for message in told), told


@pytest.mark.parametrize(
    ("more", "words", "param"),
    [
        ({"model": "gpt-4o"}, "use 'tiny', which this server runs", "model"),
        ({"training_file": "file-none"}, "file file-none does not exist", "training_file"),
        ({"suffix": "a b"}, "suffix is 'a b'", "suffix"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "not supported", "integrations"),
        ({"method": {"type": "reinforcement"}}, "must be an object with a 'type'", "method.reinforcement.grader"),
        (graded({**IS_YES, "operation": "same"}), "is 'same'; use eq, ne", "method.reinforcement.grader.operation"),
        (graded(IS_YES, eval_interval=4), "graded before", "method.reinforcement.hyperparameters.eval_interval"),
        (graded(IS_YES, beta=0.1), "beta", "method.reinforcement.hyperparameters.beta"),
        ({"method": {"type": "dpo", "supervised": {}}}, "does not belong", "method.supervised"),
        (
            {"hyperparameters": {"n_epochs": 0}},
            "use an integer from 1 to 1000",
            "hyperparameters.n_epochs",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}}},
            "Unknown parameter",
            "method.supervised.hyperparameters.beta",
        ),
        (
            {"hyperparameters": {"keep_general": 1000}},
            "use an integer from 0 to 640",
            "hyperparameters.keep_general",
        ),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"keep_general": 1}}}},
            "Unknown parameter",
            "method.dpo.hyperparameters.keep_general",
        ),
        ({"extra": 1}, "Unknown parameter: 'extra'", "extra"),
    ],
)
def test_what_is_not_honoured_is_refused(school: House, more: dict[str, Any], words: str, param: str) -> None:
    client = school.client()
    body = {"model": "tiny", "training_file": upload(client, [chat(1)])} | more
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/fine_tuning/jobs", body=body, cast_to=object)
    assert words in refused.value.message
    assert refused.value.param == param


def test_a_file_of_another_purpose_or_tenant_is_refused(school: House) -> None:
    client = school.client()
    other = upload(client, [chat(1)], "user_data")
    with pytest.raises(openai.BadRequestError, match="has purpose 'user_data'"):
        client.fine_tuning.jobs.create(model="tiny", training_file=other)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, [chat(1)] * 4))
    stranger = school.client("people")
    calls = stranger.fine_tuning.jobs
    for call in (calls.retrieve, calls.cancel, calls.pause, calls.resume, calls.list_events, calls.checkpoints.list):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
            call(job.id)
    with pytest.raises(openai.BadRequestError, match="does not exist"):
        calls.create(model="tiny", training_file=job.training_file)
