# SPDX-License-Identifier: Apache-2.0
"""The forward pass of ``storm.vmamba.VMamba`` for training: the same function, arranged for speed.

It reads the model's own parameters and computes what the model computes (a test holds the two
together), but on tokens [B, H, W, C], so that projections are matrix products and normalisations
read contiguous memory, and with the projection to step sizes multiplied out beforehand, so that one
product gives the scan all its operands. Products are in ``dtype``, the residual stream,
normalisations and scans in FP32. A block is one pure function of tensors: compiled once for each
stage, it serves all its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.operators import conv_silu, scan
from stormrt.errors import InputError
from stormrt.storm.layers import VSSBlock
from stormrt.storm.vmamba import Stage, VMamba

_BLOCK_KEYS = (
    "norm.weight",
    "norm.bias",
    "op.in_proj.weight",
    "op.conv2d.weight",
    "op.x_proj_weight",
    "op.dt_projs_weight",
    "op.dt_projs_bias",
    "op.A_logs",
    "op.Ds",
    "op.out_norm.weight",
    "op.out_norm.bias",
    "op.out_proj.weight",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
)
"""Parameters of a block, in the order of ``_block``'s arguments."""


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.float(), weight.shape, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _block(
    x: Tensor,
    keep: Tensor | None,
    dtype: torch.dtype,
    norm_w: Tensor, norm_b: Tensor, in_w: Tensor, conv_w: Tensor,
    x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, a_logs: Tensor, ds: Tensor,
    out_norm_w: Tensor, out_norm_b: Tensor, out_w: Tensor,
    norm2_w: Tensor, norm2_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor,
) -> Tensor:  # fmt: skip
    """One VSS block: x [B, H, W, d], FP32 -> [B, H, W, d], FP32.

    ``keep`` [2, B, 1, 1, 1], FP32, is what the two branches are multiplied by (stochastic depth);
    ``dtype`` that of the matrix products; the rest are the parameters of ``_BLOCK_KEYS``.
    """
    rank = dt_proj.shape[2]
    # dt = W_dt (W_x v), one group a direction, is one product with W_dt W_x.
    dt_w = torch.bmm(dt_proj, x_proj[:, :rank]).flatten(0, 1)
    scan_w = torch.cat([dt_w, x_proj[:, rank], x_proj[:, rank + 1]])
    v = conv_silu(_linear(_norm(x, norm_w, norm_b).to(dtype), in_w), conv_w)
    y = scan(v, _linear(v, scan_w), -torch.exp(a_logs[:, 0]), ds, dt_bias.flatten())
    y = _linear(_norm(y, out_norm_w, out_norm_b).to(dtype), out_w).float()
    x = x + (y if keep is None else y * keep[0])
    h = F.gelu(_linear(_norm(x, norm2_w, norm2_b).to(dtype), fc1_w, fc1_b))
    y = _linear(h, fc2_w, fc2_b).float()
    return x + (y if keep is None else y * keep[1])


def _norm_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(_norm(x, weight, bias)).to(x.dtype)


def _conv(x: Tensor, conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """A dense convolution over tokens."""
    maps = x.to(dtype).permute(0, 3, 1, 2)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    y = F.conv2d(maps, conv.weight.to(dtype), bias, conv.stride, conv.padding)
    return y.permute(0, 2, 3, 1)


_PARTS: tuple[Callable[..., Tensor], ...] = (_block, _norm, _norm_gelu)
"""What can be compiled: functions of tensors, without state."""


class TrainingNetwork:
    """Calls a model as ``model(images)`` would, but for training.

    Args:
        model: VMamba v2 with N = 1: not gated, overlapping patches, MLPs; dense, not frozen.
        drop_path: Rate of stochastic depth at the last block, rising linearly from 0.
        dtype: Of the matrix products: BF16 on a GPU, FP32 where there is none.
        compiled: Compile the blocks, for calls that train.

    Raises:
        InputError: A model of another kind.
    """

    def __init__(
        self, model: VMamba, *, drop_path: float, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        variant = model.variant
        fits = variant.overlapping and not variant.gated and not variant.conv_bias
        if not fits or variant.state != 1 or not variant.mlp_ratio:
            raise InputError(
                "this model cannot be trained here",
                where=variant.name,
                expected="VMamba v2 with one state a channel: overlapping patches, MLPs, no gates",
            )
        self.model, self.dtype = model, dtype
        total = sum(variant.depths)
        device = next(model.parameters()).device
        self.rates = torch.linspace(0, drop_path, total, device=device).repeat_interleave(2)
        # PyTorch's own layer normalisation runs a block of threads for each position, which is
        # slow for so few channels: what lies between the blocks is compiled for that alone.
        self._trained: tuple[Callable[..., Tensor], ...] = _PARTS
        if compiled:
            self._trained = tuple(
                torch.compile(part, dynamic=False, fullgraph=True) for part in _PARTS
            )

    def __call__(self, images: Tensor, *, training: bool) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, classes], FP32.

        Args:
            images: Normalised images.
            training: With stochastic depth, and the compiled blocks where there are any.
        """
        batch = images.shape[0]
        keep: Tensor | None = None
        if training:
            drawn = torch.rand(len(self.rates), batch, device=images.device)
            rates = self.rates[:, None]
            keep = ((drawn >= rates) / (1.0 - rates))[:, :, None, None, None]
        run_block, norm, norm_gelu = self._trained if training else _PARTS
        # Index by index as in VMamba.patch_embed and VMamba.downsample.
        first, norm1, second, norm2 = (self.model.patch_embed[i] for i in (0, 2, 5, 7))
        x = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        x = _conv(x, cast("nn.Conv2d", first), self.dtype)
        x = norm_gelu(x, norm1.weight, norm1.bias)
        x = _conv(x, cast("nn.Conv2d", second), self.dtype)
        x = norm(x, norm2.weight, norm2.bias)
        number = 0
        for index, stage in enumerate(self.model.layers):
            for block in cast("Stage", stage).blocks:
                kept = None if keep is None else keep[number : number + 2]
                parameters = _parameters(cast("VSSBlock", block))
                x = run_block(x.contiguous(), kept, self.dtype, *parameters)
                number += 2
            if index < len(self.model.layers) - 1:
                down = cast("nn.Sequential", cast("Stage", stage).downsample)
                x = _conv(x, cast("nn.Conv2d", down[1]), self.dtype)
                x = norm(x, down[3].weight, down[3].bias)
        classifier = self.model.classifier
        pooled = norm(x, classifier.norm.weight, classifier.norm.bias).mean((1, 2))
        return F.linear(pooled, classifier.head.weight, classifier.head.bias)


def _parameters(block: VSSBlock) -> list[Tensor]:
    return [block.get_parameter(key) for key in _BLOCK_KEYS]
