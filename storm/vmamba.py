# SPDX-License-Identifier: Apache-2.0
"""VMamba, dense or cut down by a STORM plan."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from stormrt.errors import InputError
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from stormrt.storm.layers import SS2D, LayerNorm2d, Linear2d, VSSBlock, downsample, patch_embed
from stormrt.storm.lines import line_scores, line_selector
from stormrt.storm.plan import MIN_IMAGE_SIDE, Reduction, StormPlan
from stormrt.storm.scores import HOSTS
from stormrt.storm.variants import Variant, get_variant

Selection = tuple[Tensor, Tensor]
"""Kept rows [B, H'] and columns [B, W'], INT32."""


class LineReduction(nn.Module):
    """Scores the tokens, chooses lines, and gathers their crossings. Has no parameters."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction
        self.host = HOSTS[reduction.host]
        self.forced: Selection | None = None
        """A choice to follow instead of the scores (``forced_selections``)."""

    def choose(self, x: Tensor, step_size: Tensor | None) -> Selection:
        """Choose the lines that stay, by their scores.

        Args:
            x: [B, C, H, W].
            step_size: [B, H, W] of the block before, for hosts that want it.

        Returns:
            rows [B, H'] and cols [B, W'], INT32, strictly increasing.
        """
        by_row, by_col = line_scores(self.host.score(x, step_size))
        rows = line_selector(x.shape[2], self.reduction.height, x.device)(by_row)
        cols = line_selector(x.shape[3], self.reduction.width, x.device)(by_col)
        return rows, cols

    def forward(self, x: Tensor, step_size: Tensor | None) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        if x.shape[2:] == (self.reduction.height, self.reduction.width):
            return x  # every line stays; a copy in another memory layout would round differently
        rows, cols = self.forced or self.choose(x, step_size)
        return spatial_unit_gather(x, rows, cols)


class Stage(nn.Module):
    """Blocks of one resolution, and the downsampling that follows them."""

    def __init__(self, blocks: list[VSSBlock], down: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = down
        self.reductions = nn.ModuleDict()
        """STORM's reductions by the index of the block that they precede, as text."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, d, H', W']: the stage's map, before downsampling."""
        step: Tensor | None = None
        for index, block in enumerate(self.blocks):
            if str(index) in self.reductions:
                x = self.reductions[str(index)](x, step)
            following = str(index + 1)
            wanted = (
                following in self.reductions
                and cast("LineReduction", self.reductions[following]).host.needs_step_size
            )
            x, step = block(x, with_step_size=wanted)
        return x


class Classifier(nn.Module):
    """Normalise, average over the map, classify."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        # A 1x1 convolution once exported: TensorRT-RTX has no FP32 matrix product on Turing.
        self.head = Linear2d(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8*d, H, W] -> logits [B, num_classes]."""
        # Not adaptive_avg_pool2d: on channels-last memory the exporter makes a Gather of it.
        logits: Tensor = self.head(self.norm(x).mean((2, 3), keepdim=True))
        return logits.flatten(1)


class VMamba(nn.Module):
    """VMamba (Liu et al., NeurIPS 2024), parameter names as in upstream's checkpoints.

    Args:
        variant: Hyper-parameters.
        num_classes: Outputs of the head.
        drop_path: Rate of stochastic depth at the last block, rising linearly from 0.
    """

    def __init__(
        self, variant: Variant, num_classes: int = 1000, *, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.variant, self.num_classes = variant, num_classes
        self.plan = StormPlan()
        self.patch_embed = patch_embed(variant.dims[0], overlapping=variant.overlapping)
        total = sum(variant.depths)
        rates = iter([drop_path * i / (total - 1) for i in range(total)])
        stages = []
        for i, (channels, depth) in enumerate(zip(variant.dims, variant.depths, strict=True)):
            blocks = [
                VSSBlock(
                    channels,
                    SS2D(
                        channels,
                        variant.inner(i),
                        variant.state,
                        variant.dt_rank(i),
                        gated=variant.gated,
                        conv_bias=variant.conv_bias,
                    ),
                    variant.mlp_ratio * channels,
                    next(rates),
                )
                for _ in range(depth)
            ]
            last = i == len(variant.depths) - 1
            stages.append(
                Stage(
                    blocks,
                    nn.Identity()
                    if last
                    else downsample(channels, overlapping=variant.overlapping),
                )
            )
        self.layers = nn.ModuleList(stages)
        self.classifier = Classifier(variant.dims[-1], num_classes)
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of the four stages, for dense prediction.

        Args:
            x: Images [B, 3, H, W], H and W 32 or more.

        Returns:
            Four maps [B, d_i, H_i, W_i], each before its downsampling.
        """
        if not torch.compiler.is_compiling() and min(x.shape[2:]) < MIN_IMAGE_SIDE:
            raise InputError(
                "the image is too small for four stages",
                got=f"{x.shape[2]}x{x.shape[3]} pixels",
                expected=f"{MIN_IMAGE_SIDE} pixels or more on each side",
            )
        maps: list[Tensor] = []
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
            x = cast("Stage", stage).downsample(x)
        return tuple(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.forward_features(x)[-1])
        return logits

    def with_plan(self, plan: StormPlan) -> VMamba:
        """The same model, weights shared, cut down by a plan. The empty plan: dense again.

        The plan must have been checked for the image size in use (``plan.check_plan``).
        """
        reduced = self._sharing_copy()
        reduced.plan = plan
        for index, stage in enumerate(reduced.layers):
            cast("Stage", stage).reductions = nn.ModuleDict(
                {str(r.block): LineReduction(r) for r in plan.reductions if r.stage == index}
            )
        return reduced

    def freeze(self) -> VMamba:
        """A copy for inference and export, weights shared.

        It is in evaluation mode, the scans' weights are precomputed, and linear layers over
        channels are 1x1 convolutions.
        """
        frozen = self._sharing_copy()
        for module in list(frozen.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Linear2d):
                    setattr(module, name, child.as_convolution())
            if isinstance(module, SS2D):
                module.freeze()
        return frozen.eval()

    def to_fp16(self) -> VMamba:
        """A frozen copy in FP16, but for what the scan's contract wants in FP32 (a, d, dt_bias).

        Returns:
            A model for FP16 images; its scores, states and normalisations compute in FP32.
        """
        half = copy.deepcopy(self.freeze())
        exact = {
            name: {key: getattr(module, key).clone() for key in ("a", "Ds", "dt_bias")}
            for name, module in half.named_modules()
            if isinstance(module, SS2D)
        }
        half.half()
        for name, tensors in exact.items():
            for key, tensor in tensors.items():
                getattr(half.get_submodule(name), key).data = tensor
        return half

    def _sharing_copy(self) -> VMamba:
        """A copy of the modules over the same parameters and buffers."""
        shared: dict[int, object] = {id(p): p for p in (*self.parameters(), *self.buffers())}
        return copy.deepcopy(self, shared)


@contextlib.contextmanager
def forced_selections(model: VMamba, selections: Mapping[str, Selection]) -> Iterator[None]:
    """Within the context the model keeps the lines given, whatever their scores.

    A graph in lower precision may choose another of two lines with nearly equal scores; to compare
    the arithmetic of two graphs, one must follow the other's choice.

    Args:
        model: A reduced model.
        selections: Module path of each ``LineReduction`` -> rows [B, H'] and cols [B, W'].
    """
    reductions = {
        name: module for name, module in model.named_modules() if isinstance(module, LineReduction)
    }
    try:
        for name, selection in selections.items():
            reductions[name].forced = selection
        yield
    finally:
        for module in reductions.values():
            module.forced = None


def _init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers, as upstream."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_vmamba(name: str, num_classes: int = 1000, *, drop_path: float = 0.0) -> VMamba:
    """Build a model with fresh weights (seed PyTorch first for repeatable ones).

    Args:
        name: A key of ``VARIANTS``.
        num_classes: Outputs of the head.
        drop_path: Rate of stochastic depth while training.

    Returns:
        The dense model.

    Raises:
        InputError: An unknown name.

    Example:
        >>> model = build_vmamba("vmamba_tiny_s1l8")
        >>> sum(p.numel() for p in model.parameters())
        30249064
    """
    return VMamba(get_variant(name), num_classes, drop_path=drop_path)
