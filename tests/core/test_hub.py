"""Fetching from a model hub, against a small working hub on loopback (the real one is out of reach of tests)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from model_folders import base_folder

COMMIT = "1" * 40


def entry(name: str, size: int) -> dict[str, object]:
    """A file in the hub's listing of a commit."""
    return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model, `org/tiny`; its address and the files that were fetched."""
    folder = base_folder(tmp_path / "hub")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of the model was run')")
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            names = sorted(file.name for file in folder.iterdir())
            if path == "/api/models/org/tiny":
                self.answer(json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
            elif path == f"/api/models/org/tiny/tree/{COMMIT}":
                sizes = {name: (folder / name).stat().st_size for name in names}
                self.answer(json.dumps([entry(name, size) for name, size in sizes.items()]).encode())
            elif path.startswith("/org/tiny/resolve/") and path.rpartition("/")[2] in names:
                name = path.rpartition("/")[2]
                if self.command == "GET":
                    fetched.append(name)
                self.answer((folder / name).read_bytes())
            else:
                self.answer(b'{"error": "Repository not found"}', 404, "RepoNotFound")

        def answer(self, body: bytes, code: int = 200, error: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()
    thread.join()
    server.server_close()


def ryorin(home: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's address is read when huggingface_hub is imported."""
    environ = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environ |= {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "RYORIN_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "ryorin.cli", "models", "add", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def test_a_model_of_the_hub(home: Path, hub: tuple[str, list[str]]) -> None:
    address, fetched = hub
    ran = ryorin(home, address, "tiny", "--hf", "org/tiny", "--json")
    assert ran.returncode == 0, ran.stderr
    model = json.loads(ran.stdout)
    assert model["source"] == f"hf:org/tiny@{COMMIT[:12]}"
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(fetched) == wanted
    assert sorted(path.name for path in Path(model["path"]).iterdir()) == sorted([*wanted, "ryorin.json"])


def test_a_model_the_hub_does_not_have(home: Path, hub: tuple[str, list[str]]) -> None:
    ran = ryorin(home, hub[0], "tiny", "--hf", "org/other")
    assert (ran.returncode, "has no 'org/other'" in ran.stderr) == (2, True), ran.stderr
    assert not [path for path in (home / "models").iterdir() if not path.name.startswith(".lock")]


def test_no_hub_at_all(home: Path) -> None:
    ran = ryorin(home, "http://127.0.0.1:1", "tiny", "--hf", "org/tiny")
    assert (ran.returncode, "cannot be reached" in ran.stderr, "Traceback" in ran.stderr) == (2, True, False), (
        ran.stderr
    )
