"""`ryorin serve` in full, but for a small program in vLLM's place: `serve_with_fake_engine.py FOLDER serve …`."""

import sys
from pathlib import Path

from scripted_house import BASE, WordCounter

import ryorin_serve.server
from ryorin.cli import main

folder = sys.argv.pop(1)
fake = Path(__file__).with_name("fake_engine.py")
ryorin_serve.server.get_base = lambda *_: BASE
ryorin_serve.server.TokenCounter = lambda _: WordCounter()
ryorin_serve.server.vllm_command = lambda *_: lambda port: [sys.executable, str(fake), str(port), folder]
main()
