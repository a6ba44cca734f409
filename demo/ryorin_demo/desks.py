"""The two departments of Mizunara Living: their files, and how each is trained and served."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryorin_demo.data import common_file, held_out_file, read_jsonl, training_file
from ryorin_demo.grade import Desk as DeskName

HERE = Path(__file__).parent
# What gave the best answers in the time (docs/log.md). A desk's own rows come late and few: a high rate forgets.
SHAPE = ("--layers", "15", "--epochs", "1", "--held-out", "0.02")
COMMON_OPTIONS = (*SHAPE, "--batch-tokens", "448", "--learning-rate", "0.0015", "--keep-general", "640")
TRAIN_OPTIONS = (*SHAPE, "--batch-tokens", "512", "--learning-rate", "0.0002")


@dataclass(frozen=True)
class Desk:
    """
    One department. tenant: its name everywhere.

    top_k: passages in its prompts, as many as its training examples have.
    train_options: what differs from the defaults of `ryorin train sft`.
    """

    tenant: DeskName
    title: str
    example_question: str
    top_k: int = 2
    train_options: tuple[str, ...] = TRAIN_OPTIONS

    @property
    def prompt_file(self) -> Path:
        """The system text and the answer schema."""
        return HERE / "prompts" / f"{self.tenant}.json"

    @property
    def corpus(self) -> Path:
        """Its handbook: Markdown, HTML and PDF, English and Japanese."""
        return HERE / "corpus" / self.tenant

    @property
    def train_file(self) -> Path:
        """Its training examples."""
        return training_file(self.tenant)

    def cases(self) -> list[dict[str, Any]]:
        """Held-out cases: questions about the corpus, with decision, fact and document; never trained on."""
        return read_jsonl(held_out_file(self.tenant))

    def japanese_probes(self) -> list[dict[str, str]]:
        """Japanese questions with the document that answers each."""
        text = (HERE / "datasets" / f"{self.tenant}.japanese.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Company:
    """What the departments share: examples of both, and an adapter that each department's own starts from."""

    tenant: str
    title: str
    prompt_file: Path
    train_file: Path
    train_options: tuple[str, ...] = COMMON_OPTIONS


COMPANY = Company("company", "what both departments share", HERE / "prompts" / "company.json", common_file())
DESKS = (
    Desk("support", "customer support, strict JSON", "Can I still return a lamp that I have not opened after 20 days?"),
    Desk("people", "people desk, a formal letter", "I was ill for 3 days. Do I need a doctor's note?"),
)
