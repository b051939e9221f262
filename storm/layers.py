# SPDX-License-Identifier: Apache-2.0
"""Layers of VMamba, channels first, with the parameter names of upstream's checkpoints.

Source: Liu et al., "VMamba: Visual State Space Model" (NeurIPS 2024). Maps are [B, C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d
from stormrt.storm.hosts import Measure

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4
"""Range of the step size at initialisation (Gu and Dao, "Mamba", 2023, section 3.6)."""

_FROZEN = ("x_proj", "dt_proj", "a", "dt_bias")
"""Buffers that hold SS2D's scan weights once it is frozen, in the order of ``_scan_weights``."""


class Linear2d(nn.Linear):
    """``nn.Linear`` over the channels of a map, run as a 1x1 convolution.

    Loads weights of shape [out, in] and [out, in, 1, 1].
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: object
    ) -> None:
        key = prefix + "weight"
        if key in state_dict and state_dict[key].shape[2:] == (1, 1):
            state_dict = {**state_dict, key: state_dict[key].flatten(1)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def as_convolution(self) -> nn.Conv2d:
        """The same layer as a 1x1 convolution over the same memory, for inference and export."""
        conv = nn.Conv2d(
            self.in_features, self.out_features, 1, bias=self.bias is not None, device="meta"
        )
        conv.weight = nn.Parameter(self.weight.detach()[:, :, None, None])
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach())
        return conv


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each position of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: while training, a residual branch is left out for a share of the images.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (2016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; the identity when not training."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


class Mlp(nn.Module):
    """Two 1x1 convolutions with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear2d(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear2d(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, d, H, W]."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class MeanStepSize(nn.Module):
    """Mean step size of a scan over directions and channels: a score that STORM may use.

    A module of its own, so that its nodes can be found by name in an exported graph and be kept
    in FP32 there.
    """

    def forward(self, dt: Tensor, dt_bias: Tensor) -> Tensor:
        """Dt [B, K*D, H, W] before bias and softplus, dt_bias [K*D] -> [B, H, W], FP32."""
        return F.softplus(dt.float() + dt_bias[:, None, None]).mean(1)


class ClippedOutput(nn.Module):
    """What a scan lets through of each token: another score that STORM may use.

    A module of its own for the same reason.
    """

    def forward(self, y: Tensor) -> Tensor:
        """The scan's output y [B, D, H, W] -> mean over channels of max(y, 0), [B, H, W], FP32."""
        return F.relu(y.float()).mean(1)


class SS2D(nn.Module):
    """2-D selective scan (SS2D) with its projections.

    The projections of B, C and the step size act on single positions, so they commute with the
    cross-scan: they are computed once, on the un-scanned map, as 1x1 convolutions, and no
    four-fold copies exist.

    Args:
        channels: d.
        inner: D.
        state: N.
        dt_rank: R.
        gated: Multiply the output by SiLU(z), z a second half of ``in_proj``.
        conv_bias: The depthwise convolution has a bias.
    """

    def __init__(
        self, channels: int, inner: int, state: int, dt_rank: int, *, gated: bool, conv_bias: bool
    ) -> None:
        super().__init__()
        self.inner, self.state, self.dt_rank, self.gated = inner, state, dt_rank, gated
        k = NUM_DIRECTIONS
        self.in_proj = Linear2d(channels, 2 * inner if gated else inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(torch.empty(k, dt_rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(k, inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(k, inner))
        self.A_logs = nn.Parameter(torch.empty(k * inner, state))
        self.Ds = nn.Parameter(torch.empty(k * inner))
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = Linear2d(inner, channels, bias=False)
        self.step_size = MeanStepSize()
        self.clipped_output = ClippedOutput()
        self.is_frozen = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's initialisation: A = -(1..N), D = 1, step sizes log-uniform in [1e-3, 0.1]."""
        with torch.no_grad():
            bound = 1.0 / math.sqrt(self.inner)
            self.x_proj_weight.uniform_(-bound, bound)
            bound = self.dt_rank**-0.5
            self.dt_projs_weight.uniform_(-bound, bound)
            low, high = math.log(_DT_MIN), math.log(_DT_MAX)
            dt = torch.exp(torch.rand_like(self.dt_projs_bias) * (high - low) + low)
            dt = dt.clamp(min=_DT_FLOOR)
            self.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            components = torch.arange(1, self.state + 1, dtype=torch.float32)
            self.A_logs.copy_(components.log().expand_as(self.A_logs))
            self.Ds.fill_(1.0)

    def _scan_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights in the form that the un-scanned map wants.

        Returns:
            x_proj [4*(R + 2N), D, 1, 1] with the rows ordered dt | B | C and by direction within
            each; dt_proj [4*D, R, 1, 1], one group a direction; a [4*D, N]; bias [4*D].
        """
        r, n = self.dt_rank, self.state
        x_proj = torch.cat(
            [part.flatten(0, 1) for part in self.x_proj_weight.split([r, n, n], dim=1)]
        )
        return (
            x_proj[:, :, None, None],
            self.dt_projs_weight.flatten(0, 1)[:, :, None, None],
            -torch.exp(self.A_logs.float()),
            self.dt_projs_bias.flatten().float(),
        )

    def freeze(self) -> None:
        """Compute the scan's weights once, for inference and export."""
        with torch.no_grad():
            for name, value in zip(_FROZEN, self._scan_weights(), strict=True):
                self.register_buffer(name, value.contiguous(), persistent=False)
        self.is_frozen = True

    def forward(
        self, x: Tensor, *, measure: Measure | None = None, log_size: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply SS2D.

        Args:
            x: [B, d, H, W].
            measure: What to measure of each token on the way, for STORM to score it by:
                ``step_size`` is the mean over directions and channels of softplus(dt + bias),
                ``clipped_output`` that over channels of max(y, 0), y the scan's output.
            log_size: [B, 1, H, W], log of the number of tokens that each one stands for; added to
                dt, which multiplies small step sizes by that number. Steps that are large, and
                overwrite the state anyway, grow less.

        Returns:
            y [B, d, H, W], and what was measured, [B, H, W], FP32 (None unless asked for).
        """
        k = NUM_DIRECTIONS
        if self.is_frozen:
            x_proj, dt_proj, a, dt_bias = (self.get_buffer(name) for name in _FROZEN)
        else:
            x_proj, dt_proj, a, dt_bias = self._scan_weights()
        x = self.in_proj(x)
        gate: Tensor | None = None
        if self.gated:
            x, z = x.chunk(2, dim=1)
            gate = F.silu(z)
        x = F.silu(self.conv2d(x))
        dt, b, c = F.conv2d(x, x_proj).split(
            [k * self.dt_rank, k * self.state, k * self.state], dim=1
        )
        dt = F.conv2d(dt, dt_proj, groups=k)
        if log_size is not None:
            dt = dt + log_size.to(dt.dtype)
        y = selective_scan_2d(x, dt, b, c, a, self.Ds.float(), dt_bias)
        measured: Tensor | None = None
        if measure == "step_size":
            measured = self.step_size(dt, dt_bias)
        elif measure == "clipped_output":
            measured = self.clipped_output(y)
        y = self.out_norm(y)
        if gate is not None:
            y = y * gate
        return self.out_proj(y), measured


class VSSBlock(nn.Module):
    """SS2D and MLP, each normalised first and added to what came in.

    The MLP (``norm2``, ``mlp``) is absent when ``mlp_hidden`` is 0.
    """

    def __init__(self, channels: int, op: SS2D, mlp_hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.op = op
        self.drop_path = DropPath(drop_path)
        if mlp_hidden:
            self.norm2 = LayerNorm2d(channels)
            self.mlp: Mlp | None = Mlp(channels, mlp_hidden)
        else:
            self.mlp = None

    def forward(
        self, x: Tensor, *, measure: Measure | None = None, log_size: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, d, H, W] -> ([B, d, H, W], measured [B, H, W] or None); see ``SS2D.forward``."""
        y, measured = self.op(self.norm(x), measure=measure, log_size=log_size)
        x = x + self.drop_path(y)
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x, measured


class PatchMerging2d(nn.Module):
    """2x2 neighbours become channels, normalised and projected (vanilla VMamba).

    Source: Liu et al., "Swin Transformer" (2021), section 3.1. Odd maps are padded with zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = Linear2d(4 * channels, 2 * channels, bias=False)
        self.norm = LayerNorm2d(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, 2d, ceil(H/2), ceil(W/2)]."""
        height, width = x.shape[2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        corners = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=1)))
        return out


def patch_embed(channels: int, *, overlapping: bool, patch: int = 4) -> nn.Sequential:
    """3-channel image -> one token for each patch x patch pixels.

    Identities keep upstream's indices. Overlapping patches are two 3x3 convolutions of stride 2;
    for patches of 2 pixels the first has stride 1, so that it sees every pixel.

    Args:
        channels: d of stage 0.
        overlapping: Two overlapping convolutions, or one over patches that do not overlap.
        patch: 4, or 2 for small images.
    """
    if overlapping:
        return nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=patch // 2, padding=1),
            nn.Identity(),
            LayerNorm2d(channels // 2),
            nn.Identity(),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.Identity(),
            LayerNorm2d(channels),
        )
    return nn.Sequential(
        nn.Conv2d(3, channels, patch, stride=patch), nn.Identity(), LayerNorm2d(channels)
    )


def downsample(channels: int, *, overlapping: bool) -> nn.Module:
    """Halve a map's sides and double its channels."""
    if overlapping:
        return nn.Sequential(
            nn.Identity(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.Identity(),
            LayerNorm2d(2 * channels),
        )
    return PatchMerging2d(channels)
