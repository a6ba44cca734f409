"""What the project says of itself is true: docs name what exists, benches keep their form, no machine is in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHES = sorted(path for path in (ROOT / "bench").glob("*.py") if path.name != "common.py")


@pytest.mark.parametrize("bench", BENCHES, ids=lambda path: path.stem)
def test_a_bench_says_what_it_shows_and_has_a_quick_form(bench: Path) -> None:
    text = bench.read_text(encoding="utf-8")
    assert text.startswith('"""') and "against" in text.partition('"""')[2].partition('"""')[0]
    assert "--quick" in text and "report(" in text


def test_readme_and_docs_name_files_that_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} names {target}"


def test_every_command_of_the_readme_exists() -> None:
    from ryorin.cli import ryorin

    text = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    for line in re.findall(r"^ryorin (.*?)(?:\s+#.*)?$", text, re.MULTILINE):
        words = line.split()
        command = ryorin
        while words and hasattr(command, "get_command"):
            found = command.get_command(None, words[0])  # type: ignore[arg-type]
            assert found is not None, f"README: ryorin {line}"
            command, words = found, words[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in options, f"README: ryorin {line}: {word}"


def test_nothing_of_one_machine_is_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"/(?:home|root|work|Users)/[a-z]+/|file:///")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".pdf", ".lock") or path == Path(__file__) or not path.is_file():
            continue
        found = forbidden.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert found is None, f"{name}: {found and found.group()}"
