"""
What adapters change: the low-rank updates of a base model's weights, compared and combined without the base model.

An adapter adds s·B·A to a weight, with A (rank, in), B (out, rank) and s its scaling (https://arxiv.org/abs/2106.09685,
section 4.1). Norms and inner products of updates are computed from the factors, in rank x rank matrices; a sum of
updates is again of low rank, exactly: its factors are the others' side by side. Everything in float64.

This module imports torch, so it is imported inside the functions that use it, never by the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ryorin.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from ryorin_train.servable import PREFIX, read_config, scaling


@dataclass(frozen=True)
class Update:
    """The update B·A of one module, scaling included. Shapes: a (rank, in), b (out, rank), float64."""

    a: torch.Tensor
    b: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Shape (out, in)."""
        return self.b @ self.a


def load_updates(folder: Path) -> dict[str, Update]:
    """The updates of an adapter by module name, without PEFT's prefix. The files must have been checked."""
    factor = scaling(read_config(folder / CONFIG_FILE))
    tensors = load_file(folder / WEIGHTS_FILE)
    modules = sorted(name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name)
    return {
        module: Update(
            tensors[f"{PREFIX}{module}.lora_A.weight"].double(),
            tensors[f"{PREFIX}{module}.lora_B.weight"].double() * factor,
        )
        for module in modules
    }


def inner(one: Update | None, other: Update | None) -> float:
    """The Frobenius inner product of two updates of one module; None is no update."""
    if one is None or other is None:
        return 0.0
    return float(((one.b.T @ other.b) * (one.a @ other.a.T)).sum())


@dataclass(frozen=True)
class Distance:
    """
    How far an update is from another one of the same weights.

    norm_a, norm_b: Frobenius norms. distance: of the difference, relative to norm_a; None when A changes nothing there.
    cosine: of the angle between them, -1 to 1; None when one of them changes nothing there.
    """

    norm_a: float
    norm_b: float
    distance: float | None
    cosine: float | None


def distances(
    of_a: Mapping[str, Update], of_b: Mapping[str, Update], groups: Mapping[str, Sequence[str]]
) -> dict[str, Distance]:
    """The distance of two adapters in each group of modules: a group is compared as one long vector of weights."""
    products = {
        module: (
            inner(of_a.get(module), of_a.get(module)),
            inner(of_b.get(module), of_b.get(module)),
            inner(of_a.get(module), of_b.get(module)),
        )
        for module in {*of_a, *of_b}
    }
    return {name: _distance([products[module] for module in modules]) for name, modules in groups.items()}


def _distance(products: Sequence[tuple[float, float, float]]) -> Distance:
    aa = max(math.fsum(one[0] for one in products), 0.0)
    bb = max(math.fsum(one[1] for one in products), 0.0)
    ab = math.fsum(one[2] for one in products)
    apart = math.sqrt(max(aa + bb - 2 * ab, 0.0))
    norm_a, norm_b = math.sqrt(aa), math.sqrt(bb)
    return Distance(
        norm_a=norm_a,
        norm_b=norm_b,
        distance=apart / norm_a if norm_a else None,
        cosine=max(-1.0, min(1.0, ab / (norm_a * norm_b))) if norm_a and norm_b else None,
    )


def summed(updates: Sequence[tuple[float, Mapping[str, Update]]]) -> dict[str, Update]:
    """The weighted sum of several adapters' updates, exact: factors side by side, the rank is the sum of the ranks."""
    modules = sorted({module for _, one in updates for module in one})
    return {
        module: Update(
            torch.cat([one[module].a for _, one in updates if module in one]),
            torch.cat([one[module].b * weight for weight, one in updates if module in one], dim=1),
        )
        for module in modules
    }


def reduced(update: Update, rank: int) -> tuple[Update, float]:
    """
    The nearest update of at most `rank` (Eckart-Young), and the squared norm of what is lost.

    By QR of the factors and the SVD of a small matrix, so the full weight is never built.
    """
    outer_q, outer_r = torch.linalg.qr(update.b)
    inner_q, inner_r = torch.linalg.qr(update.a.T)
    left, values, right = torch.linalg.svd(outer_r @ inner_r.T, full_matrices=False)
    root = values[:rank].sqrt()
    kept = Update(root[:, None] * (right[:rank] @ inner_q.T), (outer_q @ left[:, :rank]) * root)
    return kept, float((values[rank:] ** 2).sum())


def nothing(rows: int, columns: int) -> Update:
    """An update of rank 1 that changes nothing in a weight of (rows, columns)."""
    return Update(torch.zeros(1, columns, dtype=torch.float64), torch.zeros(rows, 1, dtype=torch.float64))


def padded(update: Update, rank: int) -> Update:
    """The same update with factors of `rank`: what is added is zero."""
    more = rank - update.a.shape[0]
    return Update(
        torch.nn.functional.pad(update.a, (0, 0, 0, more)),
        torch.nn.functional.pad(update.b, (0, more)),
    )
