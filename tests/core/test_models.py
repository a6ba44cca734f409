"""Models: what is refused, what stays when it is interrupted, digests that say the same everywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from model_folders import base_folder, bundled_embedder, embedder_folder, safetensors

from ryorin.errors import (
    AuthenticationFailed,
    Conflict,
    InvalidInput,
    NotFound,
    RequirementMissing,
    RyorinError,
    Unavailable,
)
from ryorin.models import convert, fetch, install
from ryorin.models.bundled import BUNDLED, InstalledWeights, Wheel
from ryorin.models.install import add_endpoint, add_folder, add_from_hub
from ryorin.models.registry import (
    DEFAULT_BASE,
    DEFAULT_EMBEDDER,
    BaseModel,
    Embedder,
    base_by_digest,
    get_base,
    get_embedder,
    list_models,
    pull,
)
from ryorin.settings import Settings

Cli = Callable[..., Any]


def quiet(_: str) -> None:
    pass


def left(settings: Settings) -> list[str]:
    """What lies in the models folder, lock files aside."""
    if not settings.models_dir.exists():
        return []
    return sorted(path.name for path in settings.models_dir.iterdir() if not path.name.startswith(".lock"))


def test_a_folder_is_copied_and_found_by_name_and_digest(settings: Settings, tmp_path: Path) -> None:
    source = base_folder(tmp_path / "model")
    manifest = add_folder(settings, "ours", source, "base", quiet)
    model = get_base(settings, "ours")
    assert model == BaseModel("ours", manifest.digest, settings.models_dir / manifest.digest[:12], f"path:{source}")
    assert base_by_digest(settings, manifest.digest) == model
    assert left(settings) == [manifest.digest[:12]]
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "ryorin.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    (source / "model.safetensors").write_bytes(safetensors(b"\1" * 16))  # trained on in place: ours stays what it was
    assert (model.path / "model.safetensors").read_bytes() == safetensors()


def test_the_digest_is_of_what_answers(settings: Settings, tmp_path: Path) -> None:
    def digest(name: str, **more: Any) -> str:
        home = Settings(settings.home / name, "")
        return add_folder(home, name, base_folder(tmp_path / name, **more), "base", quiet).digest

    same = {digest("a"), digest("b", transformers_version="9"), digest("c", _name_or_path="/elsewhere")}
    assert len(same) == 1
    assert len({*same, digest("d", values=b"\1" * 16), digest("e", rope_theta=5)}) == 3


def test_an_embedder_folder(settings: Settings, tmp_path: Path) -> None:
    add_folder(settings, "ours", embedder_folder(tmp_path / "model"), "embedder", quiet)
    embedder = get_embedder(settings, "ours")
    assert (embedder.kind, embedder.dimensions) == ("sentence-transformers", 8)
    assert embedder.path is not None
    assert (embedder.path / "1_Pooling" / "config.json").is_file()


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), "has no config.json"),
        (replace("config.json", b"{"), "is not JSON"),
        (replace("config.json", b"[]"), "not a JSON object"),
        (replace("config.json", b"{}"), "names no model_type"),
        (remove("model.safetensors"), r"no \*.safetensors"),
        (only_pickle, "pickled weights only .*can run any code"),
        (only_gguf, "GGUF weights only"),
        (replace("model.safetensors", safetensors()[:-1]), "was cut off"),
        (replace("model.safetensors", b""), "cut off"),
        (replace("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (replace("model.safetensors", b"\2\0\0\0\0\0\0\0[]"), "header cannot be read"),
        (replace("model.safetensors", b"\xff" * 64), "not a safetensors file"),
        (missing_shard, "lacks 1 weight files"),
        (remove("tokenizer.json"), "has no tokenizer"),
        (remove("tokenizer_config.json"), "has no chat template"),
    ],
)
def test_a_folder_that_is_no_base_model(
    settings: Settings, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = base_folder(tmp_path / "model")
    damage(folder)
    with pytest.raises(InvalidInput, match=words):
        add_folder(settings, "ours", folder, "base", quiet)
    assert left(settings) == []


def test_a_folder_that_is_no_folder(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        add_folder(settings, "ours", tmp_path / "none", "base", quiet)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="it is a file"):
        add_folder(settings, "ours", tmp_path / "file", "base", quiet)


def test_embedders_that_are_none(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no modules\.json"):
        add_folder(settings, "ours", base_folder(tmp_path / "base"), "embedder", quiet)
    folder = embedder_folder(tmp_path / "custom")
    (folder / "modules.json").write_text(json.dumps([{"type": "evil.Module", "path": ""}]))
    with pytest.raises(InvalidInput, match="code of its own"):
        add_folder(settings, "ours", folder, "embedder", quiet)


def test_names(settings: Settings, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "model")
    for name in ("", "../x", "a/b", ".hidden", "Ours", "両"):
        with pytest.raises(InvalidInput, match="model name"):
            add_folder(settings, name, folder, "base", quiet)
    with pytest.raises(Conflict, match="bundled"):
        add_folder(settings, DEFAULT_BASE, folder, "base", quiet)
    add_folder(settings, "ours", folder, "base", quiet)
    with pytest.raises(Conflict, match="exists already"):
        add_folder(settings, "ours", base_folder(tmp_path / "other", b"\1"), "base", quiet)
    with pytest.raises(Conflict, match="here already as 'ours'"):
        add_folder(settings, "theirs", folder, "base", quiet)
    assert len(left(settings)) == 1


def test_unknown_and_absent_models_name_the_next_step(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"ryorin models pull {DEFAULT_BASE}"):
        get_base(settings)
    with pytest.raises(NotFound, match=f"ryorin models pull {DEFAULT_EMBEDDER}"):
        get_embedder(settings)
    with pytest.raises(NotFound, match=f"known: {DEFAULT_BASE}.*ryorin models add qwen"):
        get_base(settings, "qwen")
    with pytest.raises(NotFound, match="no bundled model 'qwen'"):
        pull(settings, "qwen")
    with pytest.raises(NotFound, match="no base model with digest abababababab"):
        base_by_digest(settings, "ab" * 32)
    add_folder(settings, "ours", embedder_folder(tmp_path / "model"), "embedder", quiet)
    with pytest.raises(InvalidInput, match="of role 'embedder'"):
        get_base(settings, "ours")


def test_a_model_with_a_missing_file_is_damaged(settings: Settings, tmp_path: Path) -> None:
    add_folder(settings, "ours", base_folder(tmp_path / "model"), "base", quiet)
    path = get_base(settings, "ours").path / "model.safetensors"
    path.unlink()
    with pytest.raises(NotFound, match="damaged"):
        get_base(settings, "ours")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundled embedder whose wheel pip finds in a folder; returns its name."""
    model, links = bundled_embedder(tmp_path)
    monkeypatch.setitem(BUNDLED, model.name, model)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return model.name


@pytest.fixture
def fetched(tiny: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, for what comes after the fetching: the wheel is copied, as pip takes a second to start."""

    def copied(wheel: Wheel, folder: Path, on_event: Callable[[str], None]) -> Path:
        found = Path(shutil.copy(next(Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl")), folder))
        fetch.check_sha256(found, wheel.sha256, wheel.package)
        return found

    monkeypatch.setattr(fetch, "fetch_wheel", copied)
    return tiny


def test_pulling_is_done_once(settings: Settings, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    embedder = pull(settings, tiny, said.append)
    assert isinstance(embedder, Embedder)
    assert (embedder.name, embedder.dimensions, embedder.kind) == (tiny, 8, "sentence-transformers")
    assert left(settings) == [embedder.digest[:12]]
    assert any("fetching" in line for line in said)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert pull(settings, tiny) == embedder


def test_a_damaged_bundled_model_is_pulled_anew(settings: Settings, fetched: str) -> None:
    embedder = pull(settings, fetched)
    assert isinstance(embedder, Embedder)
    assert embedder.path is not None
    (embedder.path / "model.safetensors").unlink()
    assert pull(settings, fetched) == embedder
    assert (embedder.path / "model.safetensors").is_file()


def test_a_wheel_with_another_sha256_is_not_used(settings: Settings, tiny: str) -> None:
    wheel = next(Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl"))
    with wheel.open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(RyorinError, match="SHA-256"):
        pull(settings, tiny)
    assert left(settings) == []


def test_a_wheel_that_cannot_be_fetched(settings: Settings, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(Unavailable, match="No matching distribution found for tiny-embedder=="):
        pull(settings, tiny)
    assert left(settings) == []


@pytest.mark.parametrize("moment", ["fetch_wheel", "extract_member", "check_sha256"])
def test_ctrl_c_leaves_nothing(settings: Settings, fetched: str, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    real = getattr(fetch, moment)

    def interrupted(*words: Any) -> Any:
        real(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull(settings, fetched)
    assert left(settings) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_child_ends_with_the_pull(settings: Settings, tmp_path: Path, stop: signal.Signals) -> None:
    """A process of its own is stopped while its converter runs: nothing half-written, no process behind."""
    script = tmp_path / "pull.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from ryorin.commands.common import say, stopping_in_order\n"
        "from ryorin.models import fetch, store\n"
        "from ryorin.settings import load_settings\n"
        "with stopping_in_order(), store.building(load_settings(), 'slow', say) as work:\n"
        '    code = \'import os, time; open("child.pid", "w").write(str(os.getpid())); time.sleep(60)\'\n'
        "    fetch.run_child([sys.executable, '-c', code], {'TMPDIR': str(work)})\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not ((tmp_path / "child.pid").exists() and (tmp_path / "child.pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(stop)
    process.wait(20)
    assert left(settings) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child.pid").read_text()), 0)


def test_what_a_killed_pull_left_is_removed_by_the_next(settings: Settings, fetched: str) -> None:
    rest = settings.models_dir / f".building-{fetched}" / "content"
    rest.mkdir(parents=True)
    (rest / "model.safetensors").write_bytes(b"half")
    assert get_names(settings) == set(BUNDLED)
    pull(settings, fetched)
    assert not any(name.startswith(".building") for name in left(settings))


def get_names(settings: Settings) -> set[str]:
    return {line.name for line in list_models(settings) if line.state == "not pulled"}


def test_two_pulls_at_once_do_the_work_once(settings: Settings, fetched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fetches, said = fetch.fetch_wheel, [], []
    one_waits = threading.Event()

    def held(*words: Any) -> Path:
        fetches.append(1)
        assert one_waits.wait(60)
        return real(*words)

    def hear(line: str) -> None:
        said.append(line)
        if "another process" in line:
            one_waits.set()

    monkeypatch.setattr(fetch, "fetch_wheel", held)
    threads = [threading.Thread(target=pull, args=(settings, fetched, hear)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1
    assert any("another process" in line for line in said)
    assert len(left(settings)) == 1


def test_a_member_that_would_land_outside_is_refused(tmp_path: Path) -> None:
    import zipfile

    archive = tmp_path / "evil.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("model/../../evil", "x")
    with pytest.raises(InvalidInput, match="outside"):
        fetch.extract_member(archive, "model/", tmp_path / "target")


def test_too_little_disk_is_said_before(settings: Settings, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(RequirementMissing, match="0 MB are free"):
        fetch.check_disk(settings.home, 1)


def test_installed_weights(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in an installed package are verified there."""
    with pytest.raises(RequirementMissing, match="not installed"):
        fetch.find_installed(InstalledWeights("no_such_package", "w.bin", "0" * 64))
    (tmp_path / "fakeweights").mkdir()
    (tmp_path / "fakeweights" / "__init__.py").touch()
    (tmp_path / "fakeweights" / "w.bin").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match="SHA-256"):
        fetch.find_installed(InstalledWeights("fakeweights", "w.bin", "0" * 64))


def test_a_conversion_that_fails_is_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "convert").mkdir()
    content = tmp_path / "content"
    content.mkdir()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    original = install.sys.executable
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\ntouch $4/model.safetensors\necho 'ValueError: broken weights'\nexit 1\n")
    fake.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install.sys, "executable", str(fake))
        with pytest.raises(RyorinError, match="broken weights"):
            install._convert("convert", broken, content, work, quiet)
    assert install.sys.executable == original


def test_saved_configs_lose_what_is_volatile(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"b": 1, "transformers_version": "5.0", "a": "両", "_name_or_path": "/tmp/x"}'
    )
    convert.normalise_folder(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{\n  "a": "両",\n  "b": 1\n}\n'


class EmbeddingHandler(BaseHTTPRequestHandler):
    """A working OpenAI-compatible embedding endpoint with 6 dimensions; the path chooses its mood."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mood = self.path.split("/")[1]
        answer: Any = {"data": [{"embedding": [0.5] * 6, "index": 0}], "model": body["model"]}
        code = {"busy": 503, "unknown": 404}.get(mood, 200)
        if mood == "closed" and self.headers.get("Authorization") != "Bearer good":
            code = 401
        if mood == "nonsense":
            answer = {"hello": "world"}
        text = json.dumps(answer if code == 200 else {"error": {"message": f"mood {mood}"}}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmbeddingHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_asked_for_its_dimensions(
    settings: Settings, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_KEY", "good")
    add_endpoint(settings, "tei", f"{endpoint}/closed/v1/", "bge-m3", "EMBED_KEY", quiet)
    embedder = get_embedder(settings, "tei")
    assert (embedder.kind, embedder.dimensions, embedder.model, embedder.path) == ("openai", 6, "bge-m3", None)
    assert (embedder.url, embedder.api_key_env) == (f"{endpoint}/closed/v1", "EMBED_KEY")
    assert "good" not in next(settings.models_dir.glob("[!.]*/ryorin.json")).read_text()


@pytest.mark.parametrize(
    ("mood", "kind", "words"),
    [
        ("closed", AuthenticationFailed, "--api-key-env"),
        ("busy", Unavailable, "HTTP 503"),
        ("unknown", InvalidInput, "HTTP 404.*mood unknown"),
        ("nonsense", InvalidInput, "does not answer as an OpenAI"),
    ],
)
def test_endpoints_that_are_none(
    settings: Settings, endpoint: str, mood: str, kind: type[RyorinError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        add_endpoint(settings, "tei", f"{endpoint}/{mood}/v1", "m", None, quiet)
    assert left(settings) == []


def test_endpoints_that_cannot_be_asked(settings: Settings) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        add_endpoint(settings, "tei", "http://127.0.0.1:1/v1", "m", None, quiet)
    with pytest.raises(InvalidInput, match="base address"):
        add_endpoint(settings, "tei", "ftp://x", "m", None, quiet)
    with pytest.raises(InvalidInput, match="--api-key-env") as raised:
        add_endpoint(settings, "tei", "http://me:hidden@127.0.0.1:1/v1", "m", None, quiet)
    assert "hidden" not in str(raised.value)
    with pytest.raises(InvalidInput, match="does not answer as an OpenAI embeddings endpoint"):
        add_endpoint(settings, "tei", "http://no where/v1", "m", None, quiet)
    with pytest.raises(InvalidInput, match="NO_SUCH_KEY is not set"):
        add_endpoint(settings, "tei", "http://127.0.0.1:1/v1", "m", "NO_SUCH_KEY", quiet)


def test_the_hub_offline(settings: Settings) -> None:
    with pytest.raises(Unavailable, match="--path DIR"):
        add_from_hub(settings, "qwen", "Qwen/Qwen2.5-0.5B-Instruct", None, "base", quiet)
    with pytest.raises(InvalidInput, match="ORGANISATION/NAME"):
        add_from_hub(settings, "qwen", "Qwen", None, "base", quiet)
    assert left(settings) == []


def test_the_command_line(cli: Cli, fetched: str, tmp_path: Path) -> None:
    pulled = json.loads(cli("models", "pull", fetched, "--json").out)
    assert pulled.keys() == {"name", "role", "state", "digest", "source", "path"}
    added = cli("models", "add", "ours", "--path", base_folder(tmp_path / "model"), "--json")
    assert added.code == 0
    lines = {line["name"]: line for line in json.loads(cli("models", "list", "--json").out)}
    assert lines["ours"] == json.loads(added.out)
    assert (lines[fetched]["state"], lines[DEFAULT_BASE]["state"]) == ("present", "not pulled")
    assert DEFAULT_BASE in cli("models", "list").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull", "nope"], "no bundled model 'nope'"),
        (["add", "x"], "exactly one source"),
        (["add", "x", "--path", "a", "--hf", "b/c"], "exactly one source"),
        (["add", "x", "--path", "/none"], "does not exist"),
        (["add", "x", "--path", "/none", "--revision", "r"], "goes with --hf"),
        (["add", "x", "--path", "/none", "--model", "m"], "go with --endpoint"),
        (["add", "x", "--endpoint", "http://127.0.0.1:1"], "needs --model"),
        (["add", "x", "--endpoint", "http://127.0.0.1:1", "--model", "m", "--role", "base"], "is for embedders"),
    ],
)
def test_the_command_line_refuses(cli: Cli, words: list[str], said: str) -> None:
    ran = cli("models", *words)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
