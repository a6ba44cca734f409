"""
Products with frozen weights in bfloat16, on processors that have instructions for it (AVX512-BF16, AMX): they take half
the time of float32's.

A base model's weights are usually kept as bfloat16, so nothing of them is lost; what is rounded, to 8 bits of mantissa,
are the activations and gradients that are multiplied and the sums that come out, as in mixed precision on a GPU
(https://arxiv.org/abs/1905.12322). The processor adds up in float32, and everything else stays float32: the stream
between layers, attention, norms, the logits, LoRA's own matrices, the optimizer. The head rounds its gradient alone. A
linear layer whose weights are not exactly bfloat16 keeps float32.

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

import os
import types
from typing import Any

import torch

from ryorin.errors import InvalidInput

SWITCH = "RYORIN_BFLOAT16"


def wants_bfloat16() -> bool:
    """
    Whether this processor is faster with it, and nobody said otherwise by RYORIN_BFLOAT16=off. Raises InvalidInput for
    another value.
    """
    said = os.environ.get(SWITCH, "on")
    if said not in ("on", "off"):
        raise InvalidInput(f"{SWITCH} is {said!r}; it must be on or off", param=SWITCH)
    has = torch.cpu.get_capabilities()
    return said == "on" and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The product in the matrix's precision, as that of x. Shapes: x (T, in), matrix (in, out), result (T, out)."""
    if x.dtype == matrix.dtype:
        return x @ matrix
    return (x.to(matrix.dtype) @ matrix).to(x.dtype)


class FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ + bias, both frozen. Shapes: x (…, in), W (out, in). backwards: W for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, backwards: Any) -> Any:
        """Shape (…, out)."""
        ctx.save_for_backward(backwards)
        ctx.shape = x.shape
        result = product(x.reshape(-1, x.shape[-1]), weight.T)
        return (result if bias is None else result.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """The gradient of x."""
        (weight,) = ctx.saved_tensors
        return product(gradient.reshape(-1, gradient.shape[-1]), weight).view(ctx.shape), None, None, None


def freeze_in_bfloat16(layers: Any) -> int:
    """
    Keep the weights of every linear layer in `layers` (a module) as bfloat16 and multiply by them in it, where nothing
    of them is lost; returns of how many. They can be trained no longer.
    """
    frozen = 0
    for module in layers.modules():
        if (weight := _in_bfloat16(module)) is not None:
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
            module.forward = types.MethodType(_forward, module)
            frozen += 1
    return frozen


def freeze_head_in_bfloat16(head: Any) -> bool:
    """
    Let the gradient through a head be multiplied in bfloat16, by a copy of its weights (half their size), which others
    may share; false and nothing done if it is no linear layer or something of them would be lost. Logits stay those of
    float32. The head itself can be trained no longer.
    """
    weight = _in_bfloat16(head)
    if weight is None:
        return False
    head.forward = lambda x: FrozenLinear.apply(x, head.weight, head.bias, weight)
    return True


def _in_bfloat16(module: Any) -> Any:
    """The weights of a plain linear layer, where nothing of them is lost; else None."""
    if type(module) is not torch.nn.Linear:
        return None
    weight = module.weight.data.to(torch.bfloat16)
    return weight if torch.equal(weight.to(module.weight.dtype), module.weight.data) else None


def _forward(self: Any, x: Any) -> Any:
    return FrozenLinear.apply(x, self.weight, self.bias, self.weight)
