# SPDX-License-Identifier: Apache-2.0
"""The plots of docs/figures/, drawn from benchmarks/results/.

An SVG holds the digest of the results that it was drawn from, so that a test can tell an old one
without drawing. Nothing in it depends on the day or the machine, but for matplotlib's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Content = Mapping[str, Any]
SALT = "stormrt"
# The kernel stands out; peers are told by shape too, for those who do not see colours.
SERIES = (
    ("kernel_best", "graph", "kernel, best tactic", "#d62728", "o"),
    ("kernel_best", "cold", "kernel, cold L2", "#d62728", "|"),
    ("mamba_ssm", "graph", "mamba-ssm with copies", "#1f77b4", "s"),
    ("triton", "graph", "Triton with copies", "#2ca02c", "^"),
    ("pytorch", "graph", "PyTorch ops", "#7f7f7f", "D"),
    ("copy", "graph", "copy of as many bytes", "#9467bd", "x"),
)
OLD = {
    ("kernel_best", "graph"): "best_ms",
    ("kernel_best", "cold"): "cold_ms",
    ("pytorch", "graph"): "pytorch_ms",
}
"""Where these times are in every version of the results."""


def digest(results: bytes) -> str:
    """What the SVG says of the results that it shows."""
    return "results sha256:" + hashlib.sha256(results).hexdigest()


def time_of(row: Content, candidate: str, state: str) -> float | None:
    """A median in us; None where it was not measured."""
    if key := OLD.get((candidate, state)):
        return float(row[key]) * 1e3
    found = row.get("times", {}).get(candidate)
    return None if found is None else float(found[state]["median"]) * 1e3


def draw_scan(content: Content, target: Path, note: str) -> None:
    """Time of one scan by shape, on a logarithmic axis, with the memory's roofline."""
    import matplotlib as mpl  # only where a plot is drawn: checks go without

    mpl.use("svg")
    from matplotlib import pyplot as plt

    rows = list(content["scan_fp16_n1"])
    settings = {"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8.0, 0.36 * len(rows) + 1.6), layout="constrained")
        places = range(len(rows))
        for place, row in zip(places, rows, strict=True):
            roofline = 1e3 * row["roofline_ms"]
            label = "roofline (bytes at copy bandwidth)" if place == 0 else None
            axes.plot([roofline] * 2, [place - 0.4, place + 0.4], color="black", label=label)
        for candidate, state, label, colour, marker in SERIES:
            times = [time_of(row, candidate, state) for row in rows]
            shown = [(t, p) for t, p in zip(times, places, strict=True) if t is not None]
            if shown:
                x, y = zip(*shown, strict=True)
                axes.plot(x, y, marker, color=colour, label=label, markersize=6, alpha=0.9)
        axes.set_xscale("log")
        axes.set_xlabel("us a call, FP16, N = 1, CUDA graph, median")
        axes.set_yticks(list(places), [" x ".join(map(str, row["shape"])) for row in rows])
        axes.set_ylabel("B x D x H x W")
        axes.invert_yaxis()
        axes.grid(axis="x", which="both", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_title(f"SelectiveScan2D, {content['environment']['gpu']}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": note})
        plt.close(figure)


PLOTS: tuple[tuple[str, str, Callable[[Content, Path, str], None]], ...] = (
    ("docs/figures/scan.svg", "plugins.json", draw_scan),
)
"""File, results, and what draws it."""
