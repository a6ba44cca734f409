"""
The demo from beginning to end: index, train, serve, ask, measure, edit a document, swap an adapter.

Everything it does, it does as a user would: commands of `ryorin` and requests of the plain openai client. It keeps its
documents and its results in `<home>/demo`; a second run finds them there and skips what is done.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from ryorin.child_server import ChildServer
from ryorin.commands.common import stopping_in_order
from ryorin.errors import Conflict
from ryorin.models.registry import DEFAULT_BASE, DEFAULT_EMBEDDER
from ryorin.settings import Settings, load_settings
from ryorin_demo.arms import ARMS, run_arms, show_arms
from ryorin_demo.desks import COMPANY, DESKS, Company, Desk
from ryorin_demo.grade import READERS
from ryorin_demo.stages import Stages, ask, run, say
from ryorin_demo.story import EDIT, SAME_QUESTION

STORE = "handbook"
KEY_LABEL = "ryorin-demo"
TENANT_NOTE = "made by ryorin demo"
EDIT_DEADLINE_S = 60


def run_demo(*, port: int, keep_running: bool, all_cases: bool, fresh_arms: bool, as_json: bool) -> None:
    """
    Run the demo; with `as_json` the last line on standard output is one JSON object of seconds and counts.

    Raises RyorinError when a stage fails; every process it started has ended by then.
    """
    settings = load_settings()
    os.environ["RYORIN_HOME"] = str(settings.home)  # the commands below work on the same home wherever they start
    stages = Stages()
    say("Ryorin demo: one base model, two departments, each with its own documents and its own tuned behaviour.")
    with stopping_in_order():
        with stages.stage("models", "1. base model and embedder"):
            for name in (DEFAULT_BASE, DEFAULT_EMBEDDER):
                run("models", "pull", name)
        with stages.stage("tenants", "2. two departments: tenants, prompts, keys"):
            for tenant in (COMPANY, *DESKS):
                set_up_tenant(tenant)
            keys: dict[str, str] = {desk.tenant: fresh_key(desk) for desk in DESKS}
        with stages.stage("index", "3. knowledge: their documents into FAISS"):
            for desk in DESKS:
                index_documents(settings, desk)
        with stages.stage("train_common", "4. behaviour: what both departments have in common"):
            common = train_adapter(COMPANY)
        adapters: dict[str, str] = {}
        for desk in DESKS:
            with stages.stage(f"train_{desk.tenant}", f"4. behaviour: the adapter of {desk.tenant}"):
                adapters[desk.tenant] = train_adapter(desk, "--start-from", common)
        with stages.stage("releases", "5. releases: four arms a department, the full one goes live"):
            versions: dict[str, dict[str, int]] = {
                desk.tenant: create_releases(desk, adapters[desk.tenant]) for desk in DESKS
            }
        with stages.stage("serve", "6. the server: gateway and vLLM"):
            server = ChildServer("--port", str(port), say=say)
            server.__enter__()
        try:
            results = ask_and_show(stages, settings, server, keys, versions, all_cases=all_cases, fresh_arms=fresh_arms)
            summary = {"seconds": stages.seconds | {"total": stages.total}, **results}
            show_seconds(stages)
            show_usage(server, keys, keep_running=keep_running)
            if as_json:
                print(json.dumps(summary, ensure_ascii=False), flush=True)
            if keep_running:
                server.wait()
        finally:
            server.stop()


def ask_and_show(
    stages: Stages,
    settings: Settings,
    server: ChildServer,
    keys: dict[str, str],
    versions: dict[str, dict[str, int]],
    *,
    all_cases: bool,
    fresh_arms: bool,
) -> dict[str, Any]:
    """The stages that need the running server; returns their counts."""
    from openai import OpenAI

    clients = {tenant: OpenAI(base_url=server.url, api_key=key, timeout=300) for tenant, key in keys.items()}
    with stages.stage("same_question", "7. the same question to both departments"):
        for desk in DESKS:
            say(f"   {desk.tenant} is asked: {SAME_QUESTION}")
            say(indented(answer(clients[desk.tenant], desk.tenant, SAME_QUESTION)))
    with stages.stage("japanese", "8. Japanese questions find Japanese documents"):
        japanese = {desk.tenant: japanese_probes(clients[desk.tenant], desk) for desk in DESKS}
    with stages.stage("arms", "9. held-out cases: prompt only, retrieval only, tuned only, both"):
        arms = run_arms(settings, server.url, keys, versions, all_cases=all_cases, fresh=fresh_arms)
        show_arms(arms)
    with stages.stage("edit", "10. a document is edited: the answer follows, with no training"):
        edit_seconds = edit_document(settings, clients[EDIT.desk])
    with stages.stage("swap", "11. an adapter is swapped, with no restart"):
        swap = swap_adapter(clients, versions)
    return {"arms": arms, "japanese": japanese, "edit_seconds": edit_seconds, "swap": swap}


def set_up_tenant(desk: Desk | Company) -> None:
    """The tenant with its prompt. Raises Conflict when another of its name is there that the demo did not make."""
    known = {tenant["name"]: tenant for tenant in ask("tenant", "list")}
    if desk.tenant not in known:
        run("tenant", "create", desk.tenant, "--description", f"{desk.title} ({TENANT_NOTE})")
    elif TENANT_NOTE not in known[desk.tenant]["description"]:
        raise Conflict(
            f"this home has a tenant {desk.tenant!r} that the demo did not make; "
            "run the demo in a home of its own: RYORIN_HOME=/some/folder ryorin demo"
        )
    run("prompt", "set", desk.prompt_file, "--tenant", desk.tenant)


def fresh_key(desk: Desk) -> str:
    """A fresh key's secret, for questions and searches; keys of earlier runs are revoked."""
    for key in ask("key", "list", "--tenant", desk.tenant):
        if key["label"] == KEY_LABEL and key["revoked_at"] is None:
            run("key", "revoke", key["id"], "--tenant", desk.tenant, quiet=True)
    words = ("key", "create", "--tenant", desk.tenant, "--label", KEY_LABEL, "--scope", "chat", "--scope", "knowledge")
    secret: str = ask(*words)["key"]
    return secret


def documents_folder(settings: Settings, desk: Desk) -> Path:
    """Where the desk's documents lie for indexing: a copy, so that the edit below touches nothing that is shipped."""
    return settings.home / "demo" / "documents" / desk.tenant


def index_documents(settings: Settings, desk: Desk) -> None:
    """Copy the desk's documents and index them; files that did not change cost no embedding."""
    folder = documents_folder(settings, desk)
    shutil.copytree(desk.corpus, folder, dirs_exist_ok=True)
    if not any(store["name"] == STORE for store in ask("index", "list", "--tenant", desk.tenant)):
        run("index", "create", STORE, "--tenant", desk.tenant)
    run("index", "add", STORE, folder, "--tenant", desk.tenant)


def train_adapter(desk: Desk | Company, *more: str) -> str:
    """Train its adapter, or find the one that the same data and settings gave before; returns its name."""
    options = (*desk.train_options, *more)
    adapter: str = ask("train", "sft", "--tenant", desk.tenant, "--data", desk.train_file, *options, quiet=False)[
        "adapter"
    ]
    return adapter


def create_releases(desk: Desk, adapter: str) -> dict[str, int]:
    """One release an arm, made once; the one with everything is promoted. Returns the versions by arm."""
    existing = ask("release", "list", "--tenant", desk.tenant)
    versions: dict[str, int] = {}
    for arm in ARMS:
        note = f"demo: {arm.name}"
        wanted = adapter if arm.tuned else None
        top_k = desk.top_k if arm.retrieval else 0
        same = [
            release["version"]
            for release in existing
            if release["note"] == note and release["adapter"] == wanted and release["retrieval"]["top_k"] == top_k
        ]
        if same:
            versions[arm.name] = max(same)
            continue
        words = ["release", "create", "--tenant", desk.tenant, "--note", note, "--top-k", str(top_k)]
        words += ["--adapter", wanted or "none"]
        versions[arm.name] = ask(*words, quiet=False)["version"]
    run("release", "promote", str(versions["both"]), "--tenant", desk.tenant)
    return versions


def answer(client: Any, model: str, question: str) -> str:
    """One answer, greedily decoded, through the openai client."""
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=160
    )
    return completion.choices[0].message.content or ""


def japanese_probes(client: Any, desk: Desk) -> dict[str, int]:
    """Search the store in Japanese, and count how often the right document comes first and among the first three."""
    first = among = 0
    store = next(store for store in client.vector_stores.list() if store.name == STORE)
    for probe in desk.japanese_probes():
        found = client.vector_stores.search(store.id, query=probe["question"], max_num_results=3)
        files = [hit.filename for hit in found]
        first += files[:1] == [probe["document"]]
        among += probe["document"] in files
        say(f"   {desk.tenant}: {probe['question']} → {files[0] if files else 'nothing'}")
    asked = len(desk.japanese_probes())
    say(f"   {desk.tenant}: right document first in {first} of {asked}, among three in {among} of {asked}")
    return {"asked": asked, "first": first, "among_three": among}


def edit_document(settings: Settings, client: Any) -> float:
    """
    Change one line of one document, index it, and ask until the answer says so; then put it back.

    Returns the seconds from the saved edit to the changed answer.
    """
    desk = next(desk for desk in DESKS if desk.tenant == EDIT.desk)
    path = documents_folder(settings, desk) / EDIT.file
    before = path.read_text(encoding="utf-8")
    say(f"   asked: {EDIT.question}")
    say(indented(answer(client, EDIT.desk, EDIT.question)))
    say(f"   {EDIT.file}: '{EDIT.old}' becomes '{EDIT.new}'")
    try:
        path.write_text(before.replace(EDIT.old, EDIT.new), encoding="utf-8")
        saved = time.monotonic()
        run("index", "add", STORE, path, "--tenant", EDIT.desk)
        indexed = time.monotonic() - saved
        after = answer(client, EDIT.desk, EDIT.question)
        while EDIT.after["fact"] not in after and time.monotonic() - saved < EDIT_DEADLINE_S:
            time.sleep(0.5)
            after = answer(client, EDIT.desk, EDIT.question)
        seconds = round(time.monotonic() - saved, 1)
    finally:
        path.write_text(before, encoding="utf-8")
        run("index", "add", STORE, path, "--tenant", EDIT.desk, quiet=True)
    say(indented(after))
    changed = EDIT.after["fact"] in after
    verdict = "the answer changed" if changed else "the answer did NOT change"
    say(f"   {verdict}: indexed after {indexed:.1f} s, answered after {seconds:.1f} s")
    reading = READERS[EDIT.desk](after)
    if changed and (reading is None or reading.decision != EDIT.after["decision"]):
        say(f"   the decision is NOT right by the new rule: it should be {EDIT.after['decision']}")
    return seconds if changed else -1.0


def swap_adapter(clients: dict[str, Any], versions: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Promote the release without the adapter, ask, roll back, ask; the server stays the same process throughout."""
    desk = DESKS[0]
    client = clients[desk.tenant]
    seen: list[str] = []
    for words in (["promote", str(versions[desk.tenant]["retrieval only"])], ["rollback"]):
        run("release", *words, "--tenant", desk.tenant)
        began = time.monotonic()
        seen.append(answer(client, desk.tenant, SAME_QUESTION))
        say(f"   the next answer, {time.monotonic() - began:.1f} s later:")
        say(indented(seen[-1]))
    return {"answers_differ": seen[0] != seen[1]}


def show_seconds(stages: Stages) -> None:
    """The time of each stage."""
    say("\n== seconds")
    for name, seconds in stages.seconds.items():
        say(f"   {name:<16}{seconds:>8.1f}")
    say(f"   {'total':<16}{stages.total:>8.1f}")


def show_usage(server: ChildServer, keys: dict[str, str], *, keep_running: bool) -> None:
    """How to talk to the server with curl and with the openai package."""
    tenant = DESKS[0].tenant
    key = keys[tenant]
    question = DESKS[0].example_question
    state = "is running; Ctrl-C stops it" if keep_running else "stops now; 'ryorin serve' starts it again"
    say(f"""
== The server {state}. To talk to it:

curl {server.url}/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{json.dumps({"model": tenant, "messages": [{"role": "user", "content": question}]}, ensure_ascii=False)}'

from openai import OpenAI
client = OpenAI(base_url="{server.url}", api_key="{key}")
answer = client.chat.completions.create(model="{tenant}", messages=[{{"role": "user", "content": {question!r}}}])
print(answer.choices[0].message.content)
""")


def indented(text: str) -> str:
    """Text set off from the demo's own words."""
    return "\n".join(f"      | {line}" for line in text.strip().splitlines())
