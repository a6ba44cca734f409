"""
Turn a GGUF file into a folder that transformers, TRL and vLLM load: bfloat16 safetensors, config, tokenizer.

The one module of the core that imports torch. It runs in a process of its own, which gives the memory back at its end:

    python -m ryorin.models.convert FILE.gguf FOLDER

What it writes depends on the GGUF file and on nothing else: the fields in which transformers notes its own version and
where the model came from are taken out, so two machines get the same digest.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from ryorin.models.folders import without_volatile_fields


def convert_gguf(source: Path, target: Path) -> None:
    """
    Write `source` (a GGUF file with its tokenizer) into the empty folder `target`.

    Raises ValueError when the tokenizer has no chat template or does not survive being written and read.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    torch.set_num_threads(1)  # summation order, and with it the last bit, must not depend on the number of cores
    folder, name = source.parent, source.name
    print("reading the tokenizer", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template")
    tokenizer.save_pretrained(target)
    print("reading and expanding the weights", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    print("writing safetensors", flush=True)
    model.save_pretrained(target, max_shard_size="2GB")
    normalise_folder(target)
    probe = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "料金は? What is it?"}]
    again = AutoTokenizer.from_pretrained(target)
    if again.apply_chat_template(probe, tokenize=False) != tokenizer.apply_chat_template(probe, tokenize=False):
        raise ValueError(f"the tokenizer of {name} does not survive being written")


def normalise_folder(folder: Path) -> None:
    """Rewrite the JSON files of `folder` in one fixed form, without the volatile fields."""
    for path in sorted(folder.rglob("*.json")):
        if path.name == "tokenizer.json":  # large, and written by the tokenizers library without anything volatile
            continue
        value = without_volatile_fields(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went: nothing is left running behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Entry point of the process."""
    end_with_parent()
    source, target = (Path(word) for word in sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    convert_gguf(source, target)


if __name__ == "__main__":
    main()
