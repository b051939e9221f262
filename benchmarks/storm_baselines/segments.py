# SPDX-License-Identifier: Apache-2.0
"""A model in two parts: up to a block, and from it on with another map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS
from stormrt.storm.layers import SS2D, VSSBlock
from stormrt.storm.vmamba import Stage, VMamba

Where = tuple[int, int]
"""Stage, and the block before which something happens."""


@dataclass(frozen=True)
class Prefix:
    """What the part before a block leaves behind."""

    x: Tensor
    """[B, d, H, W], the map before the block."""
    measured: Mapping[str, Tensor]
    """What the block before tells of each token, [B, H, W], FP32: ``step_size`` and
    ``clipped_output``, as STORM's hosts of these names want them. Empty before block 0."""

    def split(self, batch: int) -> Iterator[Prefix]:
        """Cut into batches."""
        for start in range(0, self.x.shape[0], batch):
            own = slice(start, start + batch)
            yield Prefix(self.x[own], {name: t[own] for name, t in self.measured.items()})


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """One block, without what STORM may want to know of it."""
    out: Tensor | tuple[Tensor, ...] = block(x)
    return out if isinstance(out, Tensor) else out[0]


def prefix(model: VMamba, images: Tensor, where: Where) -> Prefix:
    """Run a dense model up to a block.

    Args:
        model: Dense, in evaluation mode.
        images: [B, 3, height, width]; smaller ones than ``VMamba.forward`` takes are fine.
        where: Stage and block, which do not run.

    Returns:
        The map, and what the block before tells about the tokens.
    """
    x: Tensor = model.patch_embed(images)
    for index, stage in enumerate(_stages(model)):
        for number, block in enumerate(stage.blocks):
            if (index, number) == where:
                return Prefix(x, {})
            if (index, number + 1) == where:
                return _observed(cast("VSSBlock", block), x)
            x = run_block(block, x)
        x = stage.downsample(x)
    raise InputError("no such block", where=model.variant.name, got=str(where))


def _observed(block: VSSBlock, x: Tensor) -> Prefix:
    """Run a block and watch its scan: through hooks, since no other code needs this."""
    op: SS2D = block.op
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
            seen[name] = inputs[0] if output is None else output

        return hook

    with ExitStack() as stack:
        for handle in (
            op.conv2d.register_forward_hook(keep("convolved")),
            op.out_norm.register_forward_pre_hook(keep("scanned")),
        ):
            stack.callback(handle.remove)
        x = run_block(block, x)
    k, inner, rank = NUM_DIRECTIONS, op.inner, op.dt_rank
    to_rank = op.x_proj_weight[:, :rank].reshape(k * rank, inner, 1, 1)
    to_step = op.dt_projs_weight.reshape(k * inner, rank, 1, 1)
    dt = F.conv2d(F.conv2d(F.silu(seen["convolved"]), to_rank), to_step, groups=k)
    bias = op.dt_projs_bias.float().flatten()[:, None, None]
    measured = {
        "step_size": F.softplus(dt.float() + bias).mean(1),
        "clipped_output": seen["scanned"].float().clamp(min=0).mean(1),
    }
    return Prefix(x, measured)


def finish(model: VMamba, x: Tensor, where: Where) -> Tensor:
    """Run the rest of a dense model: the map before a block -> logits [B, classes]."""
    for index, stage in enumerate(_stages(model)):
        for number, block in enumerate(stage.blocks):
            if (index, number) >= where:
                x = run_block(block, x)
        if index >= where[0]:
            x = stage.downsample(x)
    logits: Tensor = model.classifier(x)
    return logits


def _stages(model: VMamba) -> list[Stage]:
    return [cast("Stage", stage) for stage in model.layers]


@dataclass(frozen=True)
class Reduced:
    """A model whose map is transformed before one block: images [B, 3, H, W] -> logits."""

    model: VMamba
    where: Where
    transform: Callable[[Prefix], Tensor]
    """To [B, d, H', W']."""

    def __call__(self, images: Tensor) -> Tensor:
        """The whole of it."""
        return self.from_prefix(prefix(self.model, images, self.where))

    def from_prefix(self, before: Prefix) -> Tensor:
        """From the block on; many transformations share what comes before."""
        return finish(self.model, self.transform(before), self.where)


def check_size(x: Tensor, height: int, width: int) -> None:
    """Check that a map has as many lines.

    Raises:
        InputError: It has fewer, or none is asked for.
    """
    if not (1 <= height <= x.shape[2] and 1 <= width <= x.shape[3]):
        raise InputError(
            "the map cannot shrink to this size",
            got=f"{height}x{width}",
            expected=f"at most {x.shape[2]}x{x.shape[3]}",
        )
