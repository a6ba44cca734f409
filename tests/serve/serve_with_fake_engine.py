"""`ryorin serve` in full, but for a small program in vLLM's place: `serve_with_fake_engine.py FOLDER serve …`."""

import sys
from pathlib import Path
from typing import Any

from scripted_house import BASE, WordCounter


def replaced_parts(folder: Path) -> dict[str, Any]:
    """What stands in `ryorin_serve.server` for the real parts: names and values."""
    fake = Path(__file__).with_name("fake_engine.py")
    return {
        "get_base": lambda *_: BASE,
        "TokenCounter": lambda _: WordCounter(),
        "vllm_command": lambda *_: lambda port: [sys.executable, str(fake), str(port), str(folder)],
    }


if __name__ == "__main__":
    import ryorin_serve.server
    from ryorin.cli import main

    vars(ryorin_serve.server).update(replaced_parts(Path(sys.argv.pop(1))))
    main()
