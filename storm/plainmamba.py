# SPDX-License-Identifier: Apache-2.0
"""PlainMamba with this project's operators: the other backbone that STORM's abstract names.

Source: Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition" (BMVC
2024); names and shapes of parameters, and three habits of the published code that its weights were
trained with, from github.com/ChenhongyiYang/PlainMamba (``mmcls/plain_mamba_dev``):

- a path permutes x alone: at step t of every path the step size, B and C are those of the t-th
  position in row-major order, and only the learned vector for the direction of the step follows
  the path;
- the bias of the step size is added twice, once by its projection and once by the scan;
- the four paths' skips D x are summed, so that x counts four times.

There is no class token. The positional embedding is added once, before the layers, so that lines
that leave take their part of it along.

**Serpentine paths on a row-major operator.** A path that goes right on even rows and left on odd
ones is the row-major path of the map whose odd rows are flipped; the second path is its reverse,
and the other two do the same with columns. ``SelectiveScan2D`` has all four of these directions,
but one map for all of them: the two flipped maps go through it as two images, each of which uses
two directions and silences the others with C = 0. That is twice the arithmetic that four serpentine
directions in the operator itself would need; docs/adr/0010 weighs that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d
from stormrt.storm.checkpoint import read_state_dict
from stormrt.storm.grid import GridTrace
from stormrt.storm.hosts import Measure
from stormrt.storm.layers import ClippedOutput, LayerNorm2d, Linear2d, MeanStepSize
from stormrt.storm.plan import StormPlan, check_plan
from stormrt.storm.reductions import UnitReduction, make_reduction
from stormrt.storm.restore import RestoreEnd, RestoreStage
from stormrt.storm.variants import Variant

_START, _RIGHT, _LEFT, _UP, _DOWN = range(5)
"""Rows of ``direction_Bs``."""
_STEM = 64
"""Channels of the patch embedding's first convolutions."""


@dataclass(frozen=True, slots=True)
class PlainVariant:
    """Hyper-parameters of one PlainMamba model."""

    name: str
    channels: int
    """d."""
    layers: int
    convolutions: int
    """3x3 convolutions in the patch embedding."""
    local: tuple[int, ...]
    """Layers that a depthwise 3x3 convolution follows."""
    image: int = 224
    patch: int = 16
    state: int = 16
    """N."""

    @property
    def inner(self) -> int:
        """D."""
        return 2 * self.channels

    @property
    def dt_rank(self) -> int:
        """R."""
        return -(-self.channels // 16)

    def as_stage(self) -> Variant:
        """What a plan has to fit: one stage, whose blocks are the layers."""
        d = self.channels
        return Variant(
            name=self.name, dims=(d, d, d, d), depths=(self.layers, 0, 0, 0), ssm_ratio=2,
            state=self.state, mlp_ratio=0, gated=True, overlapping=False, conv_bias=True,
            checkpoint="", patch=self.patch, image=self.image,
        )  # fmt: skip


PLAIN_VARIANTS: dict[str, PlainVariant] = {
    v.name: v
    for v in (
        PlainVariant("plainmamba_l1", 192, 24, 1, (0,)),
        PlainVariant("plainmamba_l2", 384, 24, 2, ()),
        PlainVariant("plainmamba_l3", 448, 36, 2, ()),
    )
}
"""The published models by name."""


@lru_cache(maxsize=64)
def step_directions(height: int, width: int) -> tuple[tuple[int, ...], ...]:
    """The direction of each step of the four paths: rows of ``direction_Bs``.

    Paths: by rows in serpentine from the first position, its reverse, by columns, its reverse.

    Returns:
        Four tuples of height * width numbers, each beginning with the start.
    """

    def along(lines: int, length: int, forth: int, back: int, turn: int) -> list[int]:
        steps = []
        for line in range(lines):
            steps += [turn if line else _START, *[back if line % 2 else forth] * (length - 1)]
        return steps

    def reversed_path(steps: list[int]) -> list[int]:
        opposite = {_RIGHT: _LEFT, _LEFT: _RIGHT, _UP: _DOWN, _DOWN: _UP}
        return [_START, *(opposite[step] for step in reversed(steps[1:]))]

    rows = along(height, width, _RIGHT, _LEFT, _DOWN)
    cols = along(width, height, _DOWN, _UP, _RIGHT)
    return tuple(map(tuple, (rows, reversed_path(rows), cols, reversed_path(cols))))


def serpentine(x: Tensor, *, columns: bool) -> Tensor:
    """Flip odd rows (or columns) of [B, C, H, W]. Its own inverse."""
    lines = torch.arange(x.shape[3 if columns else 2], device=x.device) % 2 == 1
    odd = lines[None, :] if columns else lines[:, None]
    return torch.where(odd, x.flip(2 if columns else 3), x)


def _at_steps(maps: Tensor) -> list[Tensor]:
    """Values by step -> as maps, for each direction of ``SelectiveScan2D`` in its order.

    Args:
        maps: [B, C, H, W]; in row-major order, the value of each step.

    Returns:
        Four [B, C, H, W]: what the direction reads at its step t is the t-th value.
    """
    height, width = maps.shape[2:]
    by_columns = maps.reshape(*maps.shape[:2], width, height).transpose(2, 3)
    return [maps, by_columns, maps.flip((2, 3)), by_columns.flip((2, 3))]


class PlainMamba2D(nn.Module):
    """Four serpentine scans with gate and projections; parameter names as upstream's.

    Args:
        variant: Hyper-parameters.
    """

    def __init__(self, variant: PlainVariant) -> None:
        super().__init__()
        d, inner, n, rank = variant.channels, variant.inner, variant.state, variant.dt_rank
        self.inner, self.state, self.dt_rank = inner, n, rank
        self.in_proj = Linear2d(d, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, 7, padding=3, groups=inner)
        self.x_proj = Linear2d(inner, rank + 2 * n, bias=False)
        self.dt_proj = Linear2d(rank, inner)
        components = torch.arange(1, n + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(components.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear2d(inner, d)
        self.direction_Bs = nn.Parameter(torch.zeros(_DOWN + 1, n))
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)
        with torch.no_grad():  # Mamba's initialisation: steps log-uniform in [1e-3, 0.1]
            dt = torch.exp(torch.empty(inner).uniform_(-6.9078, -2.3026)).clamp(min=1e-4)
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.step_size = MeanStepSize()
        self.clipped_output = ClippedOutput()

    def _direction_maps(self, height: int, width: int) -> list[Tensor]:
        """What is added to B, [N, H, W] for each direction of ``SelectiveScan2D``."""
        # The operator's order: rows, columns, rows reversed, columns reversed.
        paths = [step_directions(height, width)[k] for k in (0, 2, 1, 3)]
        maps = []
        for k, path in enumerate(paths):
            steps = torch.tensor(path, device=self.direction_Bs.device)
            by_step = self.direction_Bs.index_select(0, steps).T.reshape(1, -1, height, width)
            maps.append(_at_steps(by_step)[k][0])
        return maps

    def forward(
        self, x: Tensor, *, measure: Measure | None = None, log_size: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, d, H, W] -> [B, d, H, W], and what was measured; see ``layers.SS2D.forward``."""
        batch, _, height, width = x.shape
        x, z = self.in_proj(x).chunk(2, dim=1)
        x = F.silu(self.conv2d(x))
        dt, b, c = self.x_proj(x).split([self.dt_rank, self.state, self.state], dim=1)
        dt = self.dt_proj(dt)
        if log_size is not None:
            dt = dt + log_size.to(dt.dtype)
        b_maps = [
            by_step + direction.to(by_step.dtype)
            for by_step, direction in zip(
                _at_steps(b), self._direction_maps(height, width), strict=True
            )
        ]
        # First the images for the paths by rows, which use directions 0 and 2, then those for the
        # paths by columns, which use 1 and 3. A direction that reads C = 0 says nothing.
        c_maps = _at_steps(c)
        silent = torch.zeros_like(c)
        by_rows = torch.cat([c_maps[0], silent, c_maps[2], silent], 1)
        by_cols = torch.cat([silent, c_maps[1], silent, c_maps[3]], 1)
        bias = self.dt_proj.bias
        y = selective_scan_2d(
            torch.cat([serpentine(x, columns=False), serpentine(x, columns=True)]).contiguous(),
            torch.cat(_at_steps(dt), 1).repeat(2, 1, 1, 1),
            torch.cat(b_maps, 1).repeat(2, 1, 1, 1),
            torch.cat([by_rows, by_cols]),
            (-torch.exp(self.A_log.float())).repeat(NUM_DIRECTIONS, 1),
            # Each image's four directions give four times d x: together it has to be four times.
            (self.D.float() / 2).repeat(NUM_DIRECTIONS),
            bias.float().repeat(NUM_DIRECTIONS),
        )
        rows, cols = y.split(batch)
        y = serpentine(rows, columns=False) + serpentine(cols, columns=True)
        measured: Tensor | None = None
        if measure == "step_size":
            measured = self.step_size(dt, bias)
        elif measure == "clipped_output":
            measured = self.clipped_output(y)
        return self.out_proj(y * F.silu(z)), measured


class PlainMambaLayer(nn.Module):
    """The scan with its norm and residual, and in some layers a depthwise convolution after it."""

    def __init__(self, variant: PlainVariant, *, local: bool) -> None:
        super().__init__()
        d = variant.channels
        self.norm = LayerNorm2d(d)
        self.mamba = PlainMamba2D(variant)
        if local:
            conv = nn.Conv2d(d, d, 3, padding=1, bias=False, groups=d)
            self.dw: nn.Module | None = nn.Sequential(conv, nn.BatchNorm2d(d), nn.GELU())
        else:
            self.dw = None

    def forward(
        self, x: Tensor, *, measure: Measure | None = None, log_size: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, d, H, W] -> [B, d, H, W], and what was measured; see ``layers.SS2D.forward``."""
        y, measured = self.mamba(self.norm(x), measure=measure, log_size=log_size)
        x = x + y
        return x if self.dw is None else self.dw(x), measured


class PatchEmbed(nn.Module):
    """Image -> one token for each patch, by convolutions; names as upstream's."""

    def __init__(self, variant: PlainVariant) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, _STEM, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(_STEM),
            nn.ReLU(),
        )
        convs: list[nn.Module] = []
        for _ in range(variant.convolutions):
            conv = nn.Conv2d(_STEM, _STEM, 3, padding=1, bias=False)
            convs += [conv, nn.BatchNorm2d(_STEM), nn.ReLU()]
        self.convs = nn.Sequential(*convs)
        side = variant.patch // 2
        self.projection = nn.Conv2d(_STEM, variant.channels, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, d, H, W]; sides are padded to whole patches."""
        x = self.convs(self.stem(x))
        side = self.projection.stride[0]
        down, right = -x.shape[2] % side, -x.shape[3] % side
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        tokens: Tensor = self.projection(x)
        return tokens


class Backbone(nn.Module):
    """Patches, positions, layers, norm."""

    def __init__(self, variant: PlainVariant) -> None:
        super().__init__()
        side = variant.image // variant.patch
        self.side = side
        self.patch_embed = PatchEmbed(variant)
        self.pos_embed = nn.Parameter(torch.empty(1, side * side, variant.channels))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(
            PlainMambaLayer(variant, local=i in variant.local) for i in range(variant.layers)
        )
        self.ln1 = LayerNorm2d(variant.channels, eps=1e-6)
        self.reductions = nn.ModuleDict()
        """STORM's reductions by the index of the layer that they precede, as text."""
        self.restore = RestoreStage()
        self.whole = RestoreEnd()

    def positions(self, height: int, width: int) -> Tensor:
        """The positional embedding as a map [1, d, H, W], resized if the map is not the usual."""
        maps = self.pos_embed.transpose(1, 2).reshape(1, -1, self.side, self.side)
        if (height, width) == (self.side, self.side):
            return maps
        return F.interpolate(maps, (height, width), mode="bicubic", align_corners=False)

    def _before(self, layer: int) -> UnitReduction | None:
        """The reduction before a layer."""
        if str(layer) not in self.reductions:
            return None
        return cast("UnitReduction", self.reductions[str(layer)])

    def forward(self, x: Tensor, plan: StormPlan) -> Tensor:
        """Images [B, 3, height, width] -> normalised map [B, d, H', W']."""
        trace = GridTrace(plan)
        x = self.patch_embed(x)
        x = x + self.positions(*x.shape[2:])
        measured: Tensor | None = None
        log_size: Tensor | None = None
        for index, layer in enumerate(self.layers):
            reduction = self._before(index)
            if reduction is not None:
                x = reduction(x, measured, trace)
                log_size = trace.log_size()
            following = self._before(index + 1)
            needs = None if following is None else following.needs
            x, measured = layer(x, measure=needs, log_size=log_size)
        if trace.undos:
            x = self.whole(self.restore(x, trace), trace)
        normalised: Tensor = self.ln1(x)
        return normalised


class _Head(nn.Module):
    """Upstream's name for the classifier: ``head.fc``."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = Linear2d(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> logits [B, num_classes]: the mean of the tokens, classified."""
        logits: Tensor = self.fc(x.mean((2, 3), keepdim=True))
        return logits.flatten(1)


class PlainMamba(nn.Module):
    """PlainMamba for classification, in evaluation mode.

    Args:
        variant: Hyper-parameters.
        num_classes: Outputs of the head.
    """

    def __init__(self, variant: PlainVariant, num_classes: int = 1000) -> None:
        super().__init__()
        self.variant, self.plan = variant, StormPlan()
        self.backbone = Backbone(variant)
        self.head = _Head(variant.channels, num_classes)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, height, width] -> logits [B, num_classes]."""
        logits: Tensor = self.head(self.backbone(x, self.plan))
        return logits

    def with_plan(self, plan: StormPlan) -> PlainMamba:
        """The same model, weights shared, cut down by a plan: stage 0, whose blocks are layers.

        Raises:
            InputError: The plan does not fit the model at the size that it was trained for.
        """
        side = self.variant.image
        check_plan(plan, self.variant.as_stage(), side, side)
        shared: dict[int, object] = {id(p): p for p in (*self.parameters(), *self.buffers())}
        reduced = copy.deepcopy(self, shared)
        reduced.plan = plan
        reduced.backbone.reductions = nn.ModuleDict(
            {str(r.block): make_reduction(r) for r in plan.reductions}
        )
        return reduced


def load_plainmamba(model: PlainMamba, path: Path) -> PlainMamba:
    """Load a published checkpoint, strictly.

    Args:
        model: Of the checkpoint's variant.
        path: See ``checkpoint.read_state_dict``.

    Returns:
        The same model.

    Raises:
        InputError: The file is bad, or is not of this model.
    """
    # The reader gives VMamba's names to the keys of older VMamba code, ``head`` among them.
    weights: Mapping[str, Tensor] = {
        key.replace("classifier.head.fc.", "head.fc."): value
        for key, value in read_state_dict(path).items()
    }
    own = model.state_dict()
    wrong = sorted(
        {*own.keys() ^ weights.keys()}
        | {k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape}
    )
    if wrong:
        raise InputError(
            f"the checkpoint is not of {model.variant.name}",
            where=str(path),
            got=f"{len(wrong)} keys missing, superfluous or of another shape: "
            + ", ".join(wrong[:6]),
        )
    model.load_state_dict(dict(weights))
    return model
