"""One release asked a set of cases: questions, answers, grades. What evaluation and diagnosis both do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ryorin_train.judging.asking import (
    KeptAnswers,
    Progress,
    Question,
    Server,
    answers_of,
    ask_all,
    logged_passages,
    passages_in_log,
)
from ryorin_train.judging.cases import Case
from ryorin_train.judging.grade import Answer, Grader
from ryorin_train.judging.how import How
from ryorin_train.judging.measures import Judged
from ryorin_train.judging.served import Target

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.settings import Settings

EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class Runner:
    """What asking needs. progress_of: a progress for what is asked, by its words."""

    catalog: Catalog
    server: Server
    how: How
    progress_of: Callable[[str], Progress]

    def judge(
        self, target: Target, cases: Sequence[Case], grader: Grader, *, retrieval: bool = True, again: bool = False
    ) -> list[Judged]:
        """
        The cases asked of the target and graded, in their order.

        retrieval: with the release's own, or without. again: also several times at the served temperature, and in
        other words, as far as cases have some.
        """
        plain = {"temperature": self.how.temperature, "max_tokens": self.how.max_tokens}
        served = {"max_tokens": self.how.max_tokens, "n": self.how.samples, "seed": self.how.seed}
        retrieval = retrieval and target.retrieves
        state = target.state if retrieval else target.digest
        asked = Question(target.model, state, (), retrieval, plain)
        questions = [replace(asked, messages=case.messages) for case in cases]
        if again:
            if self.how.samples:
                questions += [replace(question, sampling=served) for question in questions]
            questions += [replace(asked, messages=case.reworded(text)) for case in cases for text in case.paraphrases]
        what = f"{target.model}{'' if retrieval == target.retrieves else ' without documents'}"
        answers = iter(self.answers(target, questions, what))
        first = [next(answers)[0] for _ in cases]
        repeated = [next(answers) if again and self.how.samples else [] for _ in cases]
        judged = []
        for case, answer, more in zip(cases, first, repeated, strict=True):
            grade = grader.grade(case, answer)
            signatures = [grader.grade(case, one).signature for one in more]
            pairs = [one == other for one, other in combinations(signatures, 2)]
            reworded = [grader.grade(case, next(answers)[0]).signature for _ in case.paraphrases] if again else []
            judged.append(
                Judged(
                    case,
                    answer,
                    grade,
                    agreement=sum(pairs) / len(pairs) if pairs else None,
                    rewording=sum(one == grade.signature for one in reworded) / len(reworded) if reworded else None,
                )
            )
        return judged

    def answers(self, target: Target, questions: Sequence[Question], what: str) -> list[list[Answer]]:
        """The answers to each question, one for each choice, with the passages that were in their prompts."""
        kept = KeptAnswers(folder_of(self.catalog.settings, target.tenant) / "answers", target.digest)
        records = ask_all(self.server, questions, kept, self.progress_of(what))
        requests = [
            record["request"]
            for record, question in zip(records, questions, strict=True)
            if question.retrieval and record.get("request")
        ]

        def read(wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
            with self.catalog.session() as session:
                return passages_in_log(session, target.tenant_id, wanted)

        passages = logged_passages(read, requests) if requests else {}
        return [answers_of(record, passages) for record in records]


def folder_of(settings: Settings, tenant: str) -> Path:
    """Where a tenant's answers and reports lie."""
    return settings.home / EVALUATIONS / tenant
