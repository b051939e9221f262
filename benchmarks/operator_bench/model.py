# SPDX-License-Identifier: Apache-2.0
"""Times the whole VMamba-T, and what share of its kernels' time the scan has."""

from __future__ import annotations

import re
import statistics
from typing import Any

import torch

from benchmarks.operator_bench.timing import Replay, capture, take_turns

VARIANT = "vmamba_tiny_s1l8"
PLANS = ("keep=1", "keep=0.75", "keep=0.5")
BATCHES = (1, 16, 128)
SCAN = re.compile(r"selective_?scan", re.IGNORECASE)


def time_model() -> list[dict[str, Any]]:
    """VMamba-T s1l8 at 224 in FP16 under a CUDA graph; plans of a batch size take turns."""
    from stormrt.storm import build_vmamba, parse_plan  # slow to import, and of no other part

    torch.manual_seed(0)
    model = build_vmamba(VARIANT).eval()
    rows = []
    for batch in BATCHES:
        graphs, alive = {}, []  # a graph does not keep what it reads alive
        images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.float16)
        for storm in PLANS:
            plan = parse_plan(storm, model.variant, 224, 224)
            network = model.with_plan(plan).to_fp16().cuda()
            alive.append(network)
            with torch.inference_mode():
                graphs[storm] = capture(lambda n=network, x=images: n(x))
        times = take_turns({storm: Replay(graph.replay, 1) for storm, graph in graphs.items()})
        for storm, graph in graphs.items():
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            ) as profile:
                graph.replay()
                torch.cuda.synchronize()
            kernels = profile.key_averages()
            total = sum(k.self_device_time_total for k in kernels)
            scan = sum(k.self_device_time_total for k in kernels if SCAN.search(k.key))
            rows.append(
                {
                    "storm": storm,
                    "batch": batch,
                    "ms": round(statistics.median(times[storm]), 4),
                    "scan_share_of_kernel_time": round(scan / total, 3) if total else None,
                }
            )
            print("model", rows[-1], flush=True)
    return sorted(rows, key=lambda row: (PLANS.index(row["storm"]), row["batch"]))
