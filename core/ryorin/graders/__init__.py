"""
Graders: what an answer is worth, written in OpenAI's JSON, read strictly. Grading itself is in `ryorin_train.graders`.

    definition.py  the kinds of graders and their fields
    template.py    `{{sample.output_text}}`, `{{item.field}}`
    formula.py     the formula of a `multi` grader

The gateway refuses a bad definition when it comes, the trainer before it trains: both read it here.
"""

from ryorin.graders.definition import (
    FullGrader,
    Grader,
    JsonSchema,
    Multi,
    Python,
    Regex,
    RewardModel,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    read_grader,
)

__all__ = [
    "FullGrader",
    "Grader",
    "JsonSchema",
    "Multi",
    "Python",
    "Regex",
    "RewardModel",
    "ScoreModel",
    "StringCheck",
    "TextSimilarity",
    "read_grader",
]
