# SPDX-License-Identifier: Apache-2.0
"""What the scan's kernel is compared with, checked before it is timed.

The peers are the naive core of VMamba's own code: the map is copied into four visiting orders
(cross-scan), a one-dimensional selective scan with its softplus, bias and skip runs over each, and
the four results are summed (cross-merge). dt, B and C are given in visiting order, as VMamba's
projections leave them: their copies are not counted against the peers.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_bench.operands import relative_l2
from benchmarks.operator_bench.timing import Work, in_graph, summary, take_turns

LIMIT = 5e-3
"""Largest relative L2 of a peer in FP16: it rounds each direction to FP16 before the sum."""
MAMBA = "selective_scan_cuda"


class PeerError(Exception):
    """Why a peer is not timed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that has been found right."""

    core: Work
    """The scan of four directions alone."""
    whole: Work
    """With cross-scan and cross-merge."""
    note: dict[str, Any]


def to_visiting_order(maps: Tensor) -> Tensor:
    """[B, 4*C, H, W] -> [B, 4, C, L], each direction in the order in which it visits."""
    batch, rows, height, width = maps.shape
    four = maps.view(batch, 4, rows // 4, height, width)
    columns = four.transpose(3, 4)
    parts = [four[:, 0], columns[:, 1], four[:, 2].flip(2, 3), columns[:, 3].flip(2, 3)]
    return torch.stack([p.flatten(2) for p in parts], 1)


def cross_scan(x: Tensor, xs: Tensor) -> None:
    """Copy a map [B, D, H, W] into the four visiting orders [B, 4, D, L], as VMamba does."""
    xs[:, 0] = x.flatten(2)
    xs[:, 1] = x.transpose(2, 3).flatten(2)
    xs[:, 2:4] = xs[:, 0:2].flip(-1)


def cross_merge(ys: Tensor, y: Tensor) -> None:
    """Sum four visiting orders [B, 4, D, L] into a map [B, D, H, W], as VMamba does."""
    height, width = y.shape[2:]
    two = ys[:, 0:2] + ys[:, 2:4].flip(-1)
    by_columns = two[:, 1].unflatten(-1, (width, height)).transpose(2, 3)
    torch.add(two[:, 0].unflatten(-1, (height, width)), by_columns, out=y)


def naive_operands(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Operands of the contract -> xs, dts [B, 4*D, L], bs, cs [B, 4, N, L], a, d, bias."""
    x, dt, b, c, a, d, bias = tensors
    xs = x.new_empty((x.shape[0], 4, x.shape[1], x.shape[2] * x.shape[3]))
    cross_scan(x, xs)
    orders = (to_visiting_order(m).contiguous() for m in (b, c))
    return xs.flatten(1, 2), to_visiting_order(dt).flatten(1, 2), *orders, a, d, bias


def _checked(whole: Work, y: Tensor, reference: Tensor) -> float:
    y.fill_(float("nan"))
    whole()
    torch.cuda.synchronize()
    error = relative_l2(y, reference)
    if not error < LIMIT:
        raise PeerError(f"wrong: relative L2 {error:.1e} against FP64")
    return error


def _import_triton_core() -> ModuleType:
    try:
        # Not at the top: Triton is not everywhere.
        return importlib.import_module("benchmarks.operator_bench.triton_core")
    except ImportError as error:
        raise PeerError(f"not there: {error}") from error


def triton_peer(tensors: list[Tensor], y: Tensor, reference: Tensor) -> Peer:
    """The naive core in Triton, with the best of its tile sizes, and copies in Triton.

    Raises:
        PeerError: No Triton, or a wrong result.
    """
    kernels = _import_triton_core()
    operands = naive_operands(tensors)
    x, channels = tensors[0], tensors[0].shape[1]
    xs, ys = torch.empty_like(operands[0]), torch.empty_like(operands[0])
    configs = kernels.core_configs(channels, xs.shape[2])

    def core_with(config: tuple[int, int, int]) -> Work:
        return lambda: kernels.core(operands, ys, channels, config)

    times = take_turns({str(c): in_graph(core_with(c), 5) for c in configs}, rounds=5)
    best = min(configs, key=lambda c: summary(times[str(c)])["median"])

    def whole() -> None:
        kernels.cross_scan(x, xs)
        kernels.core((xs, *operands[1:]), ys, channels, best)
        kernels.cross_merge(ys, y)

    note = {
        "version": kernels.version(),
        "relative_l2": _checked(whole, y, reference),
        "channels_positions_warps": list(best),
        "tried": len(configs),
    }
    return Peer(core_with(best), whole, note)


def mamba_peer(tensors: list[Tensor], y: Tensor, reference: Tensor) -> Peer:
    """mamba-ssm's scan (benchmarks/build_mamba_ssm.py), with copies in Triton where it is there.

    Raises:
        PeerError: The module is not there, or its result is wrong.
    """
    try:
        module = importlib.import_module(MAMBA)
    except ImportError as error:
        raise PeerError(f"not built: {error}") from error
    scan_copy: Callable[[Tensor, Tensor], None]
    scan_copy, merge_copy, copies = cross_scan, cross_merge, "PyTorch"
    try:
        kernels = _import_triton_core()
        scan_copy, merge_copy, copies = kernels.cross_scan, kernels.cross_merge, "Triton"
    except PeerError:
        pass
    xs, dts, b, c, a, d, bias = naive_operands(tensors)
    x = tensors[0]
    batch, channels = x.shape[:2]

    def core(xs: Tensor = xs) -> Tensor:
        out: Tensor = module.fwd(xs, dts, a, b, c, d, None, bias, True)[0]
        return out

    copied = torch.empty_like(xs)

    def whole() -> None:
        scan_copy(x, copied.view(batch, 4, channels, -1))
        merge_copy(core(copied).view(batch, 4, channels, -1), y)

    note: dict[str, Any] = {"relative_l2": _checked(whole, y, reference), "copies": copies}
    built = Path(str(module.__file__)).parent / f"{MAMBA}.json"
    if built.is_file():
        note["version"] = json.loads(built.read_text())["mamba_ssm"]
    return Peer(core, whole, note)


PEERS: dict[str, Callable[[list[Tensor], Tensor, Tensor], Peer]] = {
    "mamba_ssm": mamba_peer,
    "triton": triton_peer,
}
