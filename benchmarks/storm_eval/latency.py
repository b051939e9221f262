# SPDX-License-Identifier: Apache-2.0
"""How long one batch takes on a GPU: FP16, one CUDA graph, rows of one place in turns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_bench.timing import Replay, capture, summary, take_turns

_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("scan", re.compile(r"selective_?scan|bandedScan|stagedScan", re.IGNORECASE)),
    ("STORM's lines", re.compile(r"lineCopy|spatialUnit", re.IGNORECASE)),
    ("normalisation", re.compile(r"layer_?norm", re.IGNORECASE)),
    ("depthwise convolution", re.compile(r"depthwise", re.IGNORECASE)),
    ("memory layout", re.compile(r"nchwToNhwc|nhwcToNchw|transpose|tensorTransform|copy_")),
    ("products and convolutions", re.compile(r"gemm|conv|cutlass|xmma|cudnn|nvjet|gemv")),
    ("elementwise and sums", re.compile(r"elementwise|reduce|CatArray|index|gather|arg")),
)
"""Kinds of kernels, by name; the first that fits."""


def time_together(
    networks: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor
) -> dict[str, dict[str, float]]:
    """Time of one batch of each network in ms, in rounds in which they take turns.

    Args:
        networks: Each from images to logits, on a CUDA device.
        images: One batch.

    Returns:
        For each its median, 10th and 90th percentile.
    """
    graphs = captured(networks, images)
    times = take_turns({name: Replay(graph.replay, 1) for name, graph in graphs.items()})
    return {name: summary(each) for name, each in times.items()}


@torch.inference_mode()
def captured(
    networks: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor
) -> dict[str, torch.cuda.CUDAGraph]:
    """One CUDA graph each. What they read must stay alive: the caller holds the networks."""
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, network in networks.items():
        graphs[name] = capture(partial(network, images))
    return graphs


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next((name for name, pattern in _KINDS if pattern.search(kernel)), "other")


def take_apart(graph: torch.cuda.CUDAGraph) -> dict[str, Any]:
    """Kernels of one replay: how many, and the time of each kind of them in ms."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    graph.replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        graph.replay()
        torch.cuda.synchronize()
    kinds: Counter[str] = Counter()
    count = 0
    for row in profile.key_averages():
        if row.self_device_time_total <= 0:
            continue
        kinds[kind_of(row.key)] += row.self_device_time_total / 1000.0
        count += row.count
    return {
        "kernels": count,
        "kernel_ms": round(sum(kinds.values()), 4),
        "ms_by_kind": {name: round(ms, 4) for name, ms in kinds.most_common()},
    }
