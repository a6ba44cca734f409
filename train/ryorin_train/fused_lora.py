"""
A LoRA linear layer in three matrix products and no pass of elementwise work.

PEFT computes `base(x) + B(A(x)) * scaling`: on a CPU the sums and the scaling of seven modules a layer, forwards and
backwards, cost a quarter of a step because each reads and writes whole activations. Here the last product accumulates
into the base's result (addmm), forwards and backwards. The maths is the same: https://arxiv.org/abs/2106.09685, eq. 3.

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from ryorin_train.frozen import product


class LoraLinear(torch.autograd.Function):
    """
    y = x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ with W and bias frozen.

    Shapes: x (…, in), W (out, in), A (rank, in), B (out, rank).
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
        """Shape (…, out)."""
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ a.T
        result = product(flat, weight.T)
        if bias is not None:
            result.add_(bias)
        result.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Gradients of x (only where something below is trained), A and B."""
        flat, inner, weight, a, b = ctx.saved_tensors
        above = gradient.reshape(-1, gradient.shape[-1])
        through_b = above @ b
        of_a = (through_b.T @ flat).mul_(ctx.scaling)
        of_b = (above.T @ inner).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(above, weight).addmm_(through_b, a, alpha=ctx.scaling).view(ctx.shape)
        return of_x, None, None, of_a, of_b, None


def fuse_lora(model: Any, adapter: str = "default") -> int:
    """Let every LoRA linear layer of a PEFT model compute as above; returns how many. Weights stay where they are."""
    from peft.tuners.lora.layer import Linear

    fused = 0
    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = types.MethodType(_forward(adapter), module)
            fused += 1
    return fused


def _forward(adapter: str) -> Any:
    def forward(self: Any, x: Any, *_: Any, **__: Any) -> Any:
        base = self.get_base_layer()
        return LoraLinear.apply(
            x, base.weight, base.bias, self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter]
        )

    return forward
