"""
The formula of a `multi` grader: the names of its graders, numbers, + - * / **, and a few functions; nothing else.

It is read into Python's syntax tree, of which only these nodes are allowed, and computed over that tree: no code runs.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CHARACTERS = 1000
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_TAKES_MANY = ("min", "max")


@dataclass(frozen=True)
class Formula:
    """A formula that was read. names: the graders it asks for."""

    text: str
    names: frozenset[str]
    tree: ast.expr

    def value(self, grades: Mapping[str, float]) -> float:
        """Its value. Raises ValueError or ArithmeticError where there is none (a division by 0, a root of -1)."""
        return float(_compute(self.tree, grades))


def read_formula(text: str) -> Formula:
    """Raises ValueError naming what is not allowed."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters; the limit is {MAX_CHARACTERS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} cannot be read: {error}") from None
    names: set[str] = set()
    _check(tree, names)
    return Formula(text, frozenset(names), tree)


def _check(node: ast.expr, names: set[str]) -> None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        float(node.value)  # type: ignore[arg-type]
    elif isinstance(node, ast.Name):
        names.add(node.id)
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        _check(node.left, names)
        _check(node.right, names)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        _check(node.operand, names)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        many = node.func.id in _TAKES_MANY
        if node.keywords or len(node.args) < (2 if many else 1) or (len(node.args) > 1 and not many):
            raise ValueError(f"{node.func.id} takes {'two values or more' if many else 'one value'}")
        for each in node.args:
            _check(each, names)
    else:
        raise ValueError(
            f"{ast.unparse(node)!r} is not allowed; a formula has names of graders, numbers, + - * / ** and "
            f"{', '.join(FUNCTIONS)}"
        )


def _compute(node: Any, grades: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return grades[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_compute(node.left, grades), _compute(node.right, grades))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_compute(node.operand, grades))
    return FUNCTIONS[node.func.id](*(_compute(each, grades) for each in node.args))
