# SPDX-License-Identifier: Apache-2.0
"""Times the scan in FP16 with N = 1: the library's kernel, its peers, and PyTorch's operations.

Roofline: the bytes of each operand of the contract once, at the bandwidth of a large copy in the
same run. ``copy`` is a copy that moves as many bytes, by a kernel: what is left between it and the
roofline is what a single launch of this size costs at best.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.operator_bench.operands import (
    Shape,
    count_tactics,
    launch,
    scan_inputs,
    total_bytes,
    without_library,
)
from benchmarks.operator_bench.peers import PEERS, PeerError
from benchmarks.operator_bench.timing import (
    Flush,
    Work,
    capture,
    copy_of,
    in_graph,
    summary,
    take_turns,
    time_states,
)
from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d

SEARCH_ROUNDS = 5


def best_tactic(tensors: list[Tensor], y: Tensor) -> tuple[int, int, int]:
    """The tactic with the lowest median, of those that take the shape; how many do, and do not."""
    replays, refused = {}, 0
    for tactic in range(1, count_tactics(tensors, y) + 1):

        def work(tactic: int = tactic) -> None:
            launch(tensors, y, tactic)

        try:
            work()
        except InputError:  # a tactic that this shape does not take; nothing was launched
            refused += 1
            continue
        replays[str(tactic)] = in_graph(work, 10)
    if not replays:
        return 0, 0, refused
    times = take_turns(replays, SEARCH_ROUNDS)
    best = min(times, key=lambda name: summary(times[name])["median"])
    return int(best), len(replays), refused


def pytorch(tensors: list[Tensor]) -> Work:
    """The operator in PyTorch's own operations."""

    def work() -> None:
        with without_library():
            selective_scan_2d(*tensors)

    return work


def time_scan(shape: Shape, bandwidth: float, flush: Flush) -> dict[str, Any]:
    """Time one scan beside its peers; shares are of the memory's roofline."""
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = scan_inputs(*shape, 1, "mid", torch.float16, generator)
    singles = [t.float() for t in tensors]
    y, y_single = torch.empty_like(tensors[0]), torch.empty_like(singles[0])
    moved = total_bytes([*tensors, y])
    reference = selective_scan_2d(*(t.double() for t in tensors))
    best, taken, refused = best_tactic(tensors, y)
    works: dict[str, Work] = {
        "kernel": lambda: launch(tensors, y),
        "kernel_best": lambda: launch(tensors, y, best),
        "kernel_fp32": lambda: launch(singles, y_single),
        "copy": copy_of(moved),
        "pytorch": pytorch(tensors),
        "pytorch_fp32": pytorch(singles),
    }
    peers: dict[str, Any] = {}
    outputs = []
    for name, make in PEERS.items():
        outputs.append(torch.empty_like(y))
        try:
            peer = make(tensors, outputs[-1], reference)
            capture(peer.core)
            capture(peer.whole)
        except PeerError as error:
            peers[name] = {"not_timed": str(error)}
            continue
        except Exception as error:  # noqa: BLE001  # a peer that breaks must not cost the run
            peers[name] = {"not_timed": f"{type(error).__name__}: {error}"[:200]}
            continue
        peers[name] = peer.note
        works[f"{name}_core"], works[name] = peer.core, peer.whole
    del reference
    # Without a graph the kernel is called as a user of PyTorch calls it.
    times = time_states(works, flush, {"kernel": lambda: selective_scan_2d(*tensors)})
    roofline = 1e3 * moved / bandwidth
    best_ms, cold_ms = (times["kernel_best"][state]["median"] for state in ("graph", "cold"))
    row = {
        "shape": list(shape),
        "bytes": moved,
        "roofline_ms": round(roofline, 5),
        "roofline_share": round(roofline / best_ms, 3),
        "cold_roofline_share": round(roofline / cold_ms, 3),
        "best_tactic": best,
        "tactics_taken": taken,
        "tactics_refused": refused,
        "default_ms": round(times["kernel"]["graph"]["median"], 5),
        "best_ms": round(best_ms, 5),
        "cold_ms": round(cold_ms, 5),
        "pytorch_ms": round(times["pytorch"]["graph"]["median"], 4),
        "peers": peers,
        "times": times,
    }
    print("x".join(map(str, shape)), f"{moved / 1e6:.2f} MB, roofline {1e3 * roofline:.1f} us,")
    for name, states in times.items():
        print(f"    {name:16}", {s: round(1e3 * t["median"], 2) for s, t in states.items()}, "us")
    print("    peers", peers, "tactics", best, taken, refused, flush=True)
    return row
