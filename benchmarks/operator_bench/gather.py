# SPDX-License-Identifier: Apache-2.0
"""Times the operators that move lines: gather, and scatter and merge where they are registered.

Shares are of copies in the same run: one that moves as many bytes in the same state (``copy``), and
a large one, which is the memory's own speed. ``bytes`` are the least that the operator moves: what
it keeps, read and written once, and its indices. Memory is read in sectors of 32 bytes, so that a
gather reads more than it keeps: ``sector_bytes`` are the bytes of the sectors that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_bench.operands import total_bytes, without_library
from benchmarks.operator_bench.timing import Flush, Work, copy_of, time_states
from stormrt.errors import StormrtError

SECTOR = 32
CASES = (
    ((1, 96, 56, 56), (48, 48)), ((16, 96, 56, 56), (48, 48)), ((16, 192, 56, 56), (48, 48)),
    ((128, 96, 56, 56), (48, 48)), ((16, 96, 128, 128), (96, 96)), ((16, 384, 14, 14), (12, 12)),
)  # fmt: skip
"""B, C, H, W and the lines that are kept. The fourth does not fit the L2 of any GPU named here."""


def kept_lines(batch: int, size: int, kept: int, generator: torch.Generator) -> Tensor:
    """[B, kept] random lines, strictly increasing, INT32."""
    device = generator.device
    picks = [torch.randperm(size, generator=generator, device=device)[:kept] for _ in range(batch)]
    return torch.stack([p.sort().values for p in picks]).int()


def came_from(lines: Tensor, size: int) -> Tensor:
    """[B, size] the place, among the kept lines, of the last one at or before each line, INT32."""
    every = torch.arange(size, device=lines.device).expand(lines.shape[0], size).contiguous()
    places = torch.searchsorted(lines.long(), every, right=True) - 1
    return places.clamp(min=0).int()


def sectors_read(lines: tuple[Tensor, Tensor], shape: tuple[int, ...], size: int) -> int:
    """Bytes of the 32-byte sectors that hold the crossings of the kept lines, for all channels."""
    rows, columns = (t.long().cpu() for t in lines)
    _, channels, height, width = shape
    total = 0
    for image in range(rows.shape[0]):
        inside = rows[image][:, None] * width + columns[image][None, :]
        # Planes begin anywhere in a sector: those of this image, one behind the other.
        planes = torch.arange(channels) * (height * width)
        addresses = (planes[:, None] + inside.flatten()[None, :]) * size
        total += int(torch.unique(addresses // SECTOR).numel()) * SECTOR
    return total


def operators(
    x: Tensor, kept: tuple[int, int], generator: torch.Generator
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """The registered operators and their operands; the gather's output is the scatter's input."""
    from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather

    batch, _, height, width = x.shape
    rows = kept_lines(batch, height, kept[0], generator)
    columns = kept_lines(batch, width, kept[1], generator)
    found: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "gather": (spatial_unit_gather, (x, rows, columns))
    }
    for name in ("scatter", "merge"):
        try:
            # A part of the project that may not be there yet.
            __import__(f"stormrt.plugins.spatial_unit_{name}.torch_op")
        except ImportError:
            continue
        operator = getattr(torch.ops.stormrt, f"spatial_unit_{name}")
        if name == "scatter":
            small = x[:, :, : kept[0], : kept[1]].contiguous()
            operands = (small, came_from(rows, height), came_from(columns, width))
        else:
            starts = [t.clone() for t in (rows, columns)]
            for lines in starts:
                lines[:, 0] = 0
            weights = [
                torch.rand(batch, n, generator=generator, device=x.device) for n in (height, width)
            ]
            operands = (x, *starts, *weights)
        found[name] = (operator, operands)
    return found


def time_case(
    name: str, operator: Callable[..., Tensor], operands: tuple[Tensor, ...],
    bandwidth: float, flush: Flush,
) -> dict[str, Any]:  # fmt: skip
    """Time one operator: the library's kernel, PyTorch's operations, and a copy."""

    def pytorch() -> Tensor:
        with without_library():
            return operator(*operands)

    expected, y = pytorch(), operator(*operands)
    difference = float((y.double() - expected.double()).norm() / expected.double().norm())
    # The gather and the scatter move values, the merge adds some.
    if not difference <= (1e-3 if name == "merge" else 0.0):
        raise StormrtError(f"the result is wrong: relative L2 {difference:.1e}")
    # A gather reads what it keeps, and a scatter reads each kept value once: the smaller map twice
    # or once, and the larger where it is written or summed.
    values = 2 * total_bytes([y]) if name == "gather" else total_bytes([operands[0], y])
    moved = values + total_bytes(list(operands[1:]))
    works: dict[str, Work] = {
        "kernel": lambda: operator(*operands),
        "copy": copy_of(moved),
        "pytorch": pytorch,
    }
    times = time_states(works, flush)
    row: dict[str, Any] = {
        "operator": name,
        "shape": list(operands[0].shape),
        "to": list(y.shape[2:]),
        "bytes": moved,
        "relative_l2": difference,
    }
    if name == "gather":
        lines = (operands[1], operands[2])
        read = sectors_read(lines, tuple(operands[0].shape), y.element_size())
        row["sector_bytes"] = read + moved - total_bytes([y])
    for state in ("graph", "cold"):
        ms, copy_ms = (times[who][state]["median"] for who in ("kernel", "copy"))
        row[f"{state}_share_of_same_copy"] = round(copy_ms / ms, 3)
        row[f"{state}_share_of_large_copy"] = round(moved / (ms * 1e-3) / bandwidth, 3)
    row["times"] = times
    print(name, row["shape"], "to", row["to"], f"{moved / 1e6:.2f} MB")
    for who, states in times.items():
        print(f"    {who:16}", {s: round(1e3 * t["median"], 2) for s, t in states.items()}, "us")
    shares = {key: value for key, value in row.items() if "share" in key}
    print("   ", shares, flush=True)
    return row


def time_movers(bandwidth: float, flush: Flush) -> Iterator[dict[str, Any]]:
    """Time every registered operator in FP16, for every case."""
    generator = torch.Generator("cuda").manual_seed(0)
    for shape, kept in CASES:
        x = torch.randn(shape, device="cuda", generator=generator).half()
        for name, (operator, operands) in operators(x, kept, generator).items():
            try:
                yield time_case(name, operator, operands, bandwidth, flush)
            except StormrtError as error:
                row = {"operator": name, "shape": list(shape), "not_timed": str(error)}
                print(row, flush=True)
                yield row
