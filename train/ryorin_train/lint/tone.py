"""
Drift of tone, by rules: Japanese sentences in です・ます beside だ・である, by the ear that judges answers
(`ryorin_train.judging.tone`), English with and without contractions.

What an answer quotes from its passages is the passages' tone, and is left out. Sentences that end in a noun, and
answers without a sign of either, say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ryorin_train.judging.tone import register
from ryorin_train.lint.findings import NOTE, WARNING, Finding
from ryorin_train.lint.turns import Turn

_SENTENCE = re.compile(r"[。！？!?\n]+")
_QUOTED = re.compile(r"「[^」]*」|『[^』]*』|\"[^\"\n]*\"|“[^”]*”")
_KANA = re.compile(r"[ぁ-ゖ]")
_CONTRACTED = re.compile(
    r"\b(?:\w+n['’]t|(?:i|you|we|they|he|she|it|that|there|what|who)['’](?:m|re|ve|ll|d|s))\b", re.I
)
_FULL = re.compile(
    r"\b(?:(?:do|does|did|is|are|was|were|has|have|had|will|would|could|should|can) ?not|i am|(?:you|we|they) are|"
    r"(?:it|that|there|he|she) is|(?:i|you|we|they) (?:have|will))\b",
    re.I,
)


def tone_drift(turns: Sequence[Turn]) -> list[Finding]:
    """Answers in another tone than most, and answers that mix two."""
    return [
        *_drift(turns, japanese_tone, "polite (です・ます)", "plain (だ・である)", WARNING),
        *_drift(turns, english_tone, "with contractions (don't)", "without contractions (do not)", NOTE),
    ]


def japanese_tone(turn: Turn) -> tuple[int, int]:
    """(sentences in です・ます, sentences in だ・である) of an answer."""
    polite = plain = 0
    for sentence in _own_sentences(turn):
        heard = register(sentence) if _KANA.search(sentence) else "neither"
        polite += heard == "polite"
        plain += heard == "plain"
    return polite, plain


def english_tone(turn: Turn) -> tuple[int, int]:
    """(contractions, places where one could be and is not) of an answer."""
    text = "\n".join(_own_sentences(turn))
    return len(_CONTRACTED.findall(text)), len(_FULL.findall(text))


def _own_sentences(turn: Turn) -> list[str]:
    """An answer's sentences but for those that it quotes."""
    given = "".join("".join(passage.text.split()) for passage in turn.passages or ())
    sentences = []
    for text in turn.said.texts:
        for sentence in _SENTENCE.split(_QUOTED.sub(" ", text)):
            stripped = sentence.strip()
            if stripped and "".join(stripped.split()).rstrip(".") not in given:
                sentences.append(stripped)
    return sentences


def _drift(
    turns: Sequence[Turn], counted: Callable[[Turn], tuple[int, int]], first: str, second: str, severity: str
) -> list[Finding]:
    by_tone: tuple[list[int], list[int], list[int]] = ([], [], [])
    for turn in turns:
        one, other = counted(turn)
        if one or other:
            by_tone[2 if one and other else 0 if one else 1].append(turn.line)
    ones, others, mixed = (tuple(dict.fromkeys(lines)) for lines in by_tone)
    findings = []
    if mixed:
        findings.append(
            Finding("tone-drift", severity, mixed, f"the answer is {first} and {second}", "write it in one tone")
        )
    if ones and others:
        (few, tone), (_, other_tone) = sorted(((ones, first), (others, second)), key=lambda pair: len(pair[0]))
        findings.append(
            Finding(
                "tone-drift",
                severity,
                few,
                f"{len(few)} rows answer {tone}, {max(len(ones), len(others))} {other_tone}",
                f"write all answers {other_tone}, or all {tone}",
            )
        )
    return findings
