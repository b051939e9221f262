# SPDX-License-Identifier: Apache-2.0
"""AdamW, Muon and averaged weights in a few large operations, fit for capture in a CUDA graph.

Everything that changes from step to step is a tensor on the device, so that a captured step can be
replayed: the learning rate is written before each replay, counts are kept by the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.training.recipes import Recipe

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from Jordan et al., "Muon" (2024)."""
_MUON_SCALE = 0.2
"""Root mean square of an update over the learning rate, about AdamW's: one learning rate fits both
(Liu et al., "Muon is scalable for LLM training", 2025, section 2.2)."""
_CLIP = 5.0
"""Largest norm of the gradient, as in upstream's recipe."""

_MUON_SUFFIXES = (
    "in_proj.weight",
    "out_proj.weight",
    "fc1.weight",
    "fc2.weight",
    "downsample.1.weight",
)
_NO_DECAY_SUFFIXES = ("A_logs", "Ds", "dt_projs_bias", "bias")


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T: [n, r, c] -> [n, r, c], r <= c.

    Rows and columns of zeros stay zero and change nothing else.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    first, second, third = _NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.baddbmm(x, polynomial, x, beta=first)
    return x.to(matrices.dtype)


def _as_matrix(tensor: Tensor) -> Tensor:
    """A weight as a matrix with at most as many rows as columns."""
    matrix = tensor.flatten(1)
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


class _Bucket:
    """Matrices of several shapes, padded with zeros to one, so that few operations move them."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        matrices = [_as_matrix(p.detach()) for p in parameters]
        rows, columns = (max(m.shape[i] for m in matrices) for i in (0, 1))
        device = parameters[0].device
        self.gradient = torch.zeros(len(matrices), rows, columns, device=device)
        self.momentum = torch.zeros_like(self.gradient)
        scales = [_MUON_SCALE * m.shape[1] ** 0.5 for m in matrices]
        self.scales = torch.tensor(scales, device=device).view(-1, 1, 1)

    def parts(self, padded: Tensor) -> list[Tensor]:
        """The matrices within the padded ones, as views."""
        shapes = [_as_matrix(p).shape for p in self.parameters]
        return [m[: s[0], : s[1]] for m, s in zip(padded.unbind(), shapes, strict=True)]

    def step(self, rate: Tensor, weight_decay: float) -> None:
        """Muon: momentum, orthogonalised."""
        gradients = [_as_matrix(_gradient(p)) for p in self.parameters]
        torch._foreach_copy_(self.parts(self.gradient), gradients)
        self.momentum.lerp_(self.gradient, 1 - _MOMENTUM)
        nesterov = self.gradient.lerp(self.momentum, _MOMENTUM)
        update = orthogonalised(nesterov) * (self.scales * -rate)
        matrices = [_as_matrix(p.detach()) for p in self.parameters]
        torch._foreach_mul_([p.detach() for p in self.parameters], 1 - rate * weight_decay)
        torch._foreach_add_(matrices, self.parts(update))


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.dim() > 1 and not name.endswith(_NO_DECAY_SUFFIXES)


class Optimiser:
    """Steps parameters by their gradients, and averages them.

    Args:
        parameters: By name, all on one device.
        recipe: Optimiser, weight decay, averaging.
    """

    def __init__(self, parameters: Mapping[str, Tensor], recipe: Recipe) -> None:
        self.recipe = recipe
        self.parameters = list(parameters.values())
        device = self.parameters[0].device
        self.rate = torch.zeros((), device=device)
        """The learning rate; write to it before a step."""
        self.count = torch.zeros((), device=device)
        self.average = [p.detach().clone() for p in self.parameters]
        """Exponential moving average of the parameters, in their order."""
        muon = [
            (name, p)
            for name, p in parameters.items()
            if recipe.optimiser == "muon" and name.endswith(_MUON_SUFFIXES)
        ]
        names = {name for name, _ in muon}
        rest = [(name, p) for name, p in parameters.items() if name not in names]
        self.rest = [p for _, p in rest]
        sizes = [p.numel() for p in self.rest]
        self.first = torch.zeros(sum(sizes), device=device)
        self.second = torch.zeros_like(self.first)
        self.decay = torch.cat(
            [
                torch.full((p.numel(),), recipe.weight_decay if _decays(n, p) else 0.0)
                for n, p in rest
            ]
        ).to(device)
        rows = {name: _as_matrix(p.detach()).shape[0] for name, p in muon}
        large = max(rows.values(), default=0)
        halves = (
            [p for name, p in muon if 2 * rows[name] > large],
            [p for name, p in muon if 2 * rows[name] <= large],
        )
        self.buckets = [_Bucket(half) for half in halves if half]

    @torch.no_grad()
    def reset(self) -> None:
        """Forget every step, and average from the present parameters on."""
        self.count.zero_()
        self.first.zero_()
        self.second.zero_()
        for bucket in self.buckets:
            bucket.momentum.zero_()
        torch._foreach_copy_(self.average, self.parameters)

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters at the present ``rate``, and of their average."""
        self.count += 1
        gradients = [_gradient(p) for p in self.parameters]
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, (_CLIP / (norms.norm() + 1e-6)).clamp(max=1.0))
        self._adam()
        for bucket in self.buckets:
            bucket.step(self.rate, self.recipe.weight_decay)
        # At first the average is of few steps, or it would remember the initial weights.
        share = torch.maximum(1.0 / self.count, torch.full_like(self.count, 1 - self.recipe.ema))
        changes = torch._foreach_sub(self.parameters, self.average)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(self.average, changes)

    def _adam(self) -> None:
        beta1, beta2 = _BETAS
        gradient = torch.cat([_gradient(p).flatten() for p in self.rest])
        values = torch.cat([p.detach().flatten() for p in self.rest])
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # beta ** count on the device: counts are tensors there.
        mean = self.first / (1 - torch.pow(torch.full_like(self.count, beta1), self.count))
        square = self.second / (1 - torch.pow(torch.full_like(self.count, beta2), self.count))
        change = (mean / (square.sqrt() + _EPSILON) + values * self.decay) * -self.rate
        parts = change.split([p.numel() for p in self.rest])
        torch._foreach_add_(
            self.rest, [part.view_as(p) for part, p in zip(parts, self.rest, strict=True)]
        )


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # every parameter takes part
    return parameter.grad
