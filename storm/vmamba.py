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
from stormrt.storm.grid import GridTrace, KeptTokens
from stormrt.storm.layers import SS2D, LayerNorm2d, Linear2d, VSSBlock, downsample, patch_embed
from stormrt.storm.plan import MIN_IMAGE_SIDE, StormPlan
from stormrt.storm.reductions import LineChoice, UnitReduction, make_reduction
from stormrt.storm.restore import RestoreEnd, RestoreStage
from stormrt.storm.variants import Variant, get_variant


class Stage(nn.Module):
    """Blocks of one resolution, and the downsampling that follows them."""

    def __init__(self, blocks: list[VSSBlock], down: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = down
        self.reductions = nn.ModuleDict()
        """STORM's reductions by the index of the block that they precede, as text."""
        self.restore = RestoreStage()
        self.whole = RestoreEnd()

    def forward(self, x: Tensor, trace: GridTrace) -> Tensor:
        """[B, d, H, W] -> [B, d, H', W']: the stage's map, before downsampling.

        Args:
            x: The map.
            trace: Of the pass, when this stage begins; changed in place.
        """
        measured: Tensor | None = None
        log_size = trace.log_size()
        for index, block in enumerate(self.blocks):
            reduction = self._before(index)
            if reduction is not None:
                x = reduction(x, measured, trace)
                log_size = trace.log_size()
            following = self._before(index + 1)
            needs = None if following is None else following.needs
            x, measured = block(x, measure=needs, log_size=log_size)
        if trace.undos:
            x = self.restore(x, trace)
        return x

    def _before(self, block: int) -> UnitReduction | None:
        """The reduction before a block."""
        if str(block) not in self.reductions:
            return None
        return cast("UnitReduction", self.reductions[str(block)])


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
        num_classes: Outputs of the head; as many as the published weights have, if not given.
        drop_path: Rate of stochastic depth at the last block, rising linearly from 0.
    """

    def __init__(
        self, variant: Variant, num_classes: int | None = None, *, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.variant = variant
        self.num_classes = variant.num_classes if num_classes is None else num_classes
        self.plan = StormPlan()
        self.patch_embed = patch_embed(
            variant.dims[0], overlapping=variant.overlapping, patch=variant.patch
        )
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
        self.classifier = Classifier(variant.dims[-1], self.num_classes)
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
        return self._features(x, GridTrace(self.plan))

    def _features(self, x: Tensor, trace: GridTrace) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        is_whole = any(r.restore == "end" for r in self.plan.reductions)
        x = self.patch_embed(x)
        for module in self.layers:
            stage = cast("Stage", module)
            x = stage(x, trace)
            maps.append(stage.whole(x, trace) if is_whole else x)
            x = stage.downsample(x)
            trace.next_stage()
        return tuple(maps)

    def kept_tokens(self, x: Tensor) -> list[KeptTokens]:
        """What each reduction keeps of images [B, 3, H, W], in the network's order.

        A reduction that keeps everything has no entry.
        """
        trace = GridTrace(self.plan, kept=[])
        self._features(x, trace)
        return trace.kept or []

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
                {str(r.block): make_reduction(r) for r in plan.reductions if r.stage == index}
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
def forced_selections(model: VMamba, selections: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the model keeps the lines given, whatever their scores.

    A graph in lower precision may choose another of two lines with nearly equal scores; to compare
    the arithmetic of two graphs, one must follow the other's choice.

    Args:
        model: A reduced model.
        selections: Module path of a ``LineChoice`` (``layers.0.reductions.1.rows``) -> kept lines
            [B, keep], INT32, or [B, lanes, keep] where windows choose.
    """
    choices = {
        name: module for name, module in model.named_modules() if isinstance(module, LineChoice)
    }
    try:
        for name, selection in selections.items():
            choices[name].forced = selection
        yield
    finally:
        for module in choices.values():
            module.forced = None


def _init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 for linear layers, as upstream."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_vmamba(name: str, num_classes: int | None = None, *, drop_path: float = 0.0) -> VMamba:
    """Build a model with fresh weights (seed PyTorch first for repeatable ones).

    Args:
        name: A key of ``VARIANTS``.
        num_classes: Outputs of the head; as many as the published weights have, if not given.
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
