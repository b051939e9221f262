# SPDX-License-Identifier: Apache-2.0
"""Top-1 against FLOPs and against measured latency, drawn from benchmarks/results/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.operator_bench.plots import SALT
from benchmarks.storm_eval.tables import first_rows, models

Content = Mapping[str, Any]
Row = Mapping[str, Any]

# STORM's stand out; others are told by shape too, for those who do not see colours.
SERIES = (
    ("lines:dissimilarity:merge", "STORM: lines, merged", "#d62728", "o"),
    ("lines:dissimilarity:drop", "STORM: lines, dropped", "#ff7f0e", "v"),
    ("windows:dissimilarity:merge", "STORM: windows, merged", "#e377c2", "P"),
    ("tokens:step_size", "tokens, MTR's score, repacked", "#1f77b4", "s"),
    ("matching", "ToMe, repacked", "#17becf", "D"),
    ("average", "average pooling", "#2ca02c", "^"),
    ("scan only", "scan only", "#bcbd22", "x"),
    ("smaller input:bicubic", "smaller input", "#7f7f7f", "*"),
)
PLACE = "s0b1"
"""The curves' place; the planner's choices are points of their own."""


def _curve(rows: Sequence[Row], method: str, x: Callable[[Row], float | None]) -> list[Any]:
    found = [r for r in rows if r["method"] == method and r["where"] == PLACE]
    pairs = [(x(r), 100 * r["top1"]) for r in found]
    return sorted((a, b) for a, b in pairs if a is not None)


def _panel(axes: Any, rows: Sequence[Row], x: Callable[[Row], float | None]) -> None:
    """Draw curves, the planner's points and the dense model's level."""
    for method, label, colour, marker in SERIES:
        if curve := _curve(rows, method, x):
            axes.plot(*zip(*curve, strict=True), marker=marker, color=colour, label=label,
                      linewidth=1, markersize=5)  # fmt: skip
    planned = [(x(r), 100 * r["top1"]) for r in rows if r["method"] == "planner"]
    planned = [(a, b) for a, b in planned if a is not None]
    if planned:
        axes.plot(*zip(*planned, strict=True), "h", color="black", markersize=8, label="planner")
    for row in rows:
        if row["method"] == "dense":
            axes.axhline(100 * row["top1"], color="#999999", linewidth=0.8, linestyle="--",
                         label="dense")  # fmt: skip
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)


def _save(figure: Any, axes: Any, target: Path, note: str) -> None:
    labels: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="svg", metadata={"Date": None, "Description": note})


def _settings() -> Any:  # keys of a type that matplotlib spells out
    return {"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 9}


def draw_flops(content: Content, target: Path, note: str) -> None:
    """Top-1 against the share of the dense FLOPs, a panel a model."""
    import matplotlib as mpl  # only where a plot is drawn: checks go without

    mpl.use("svg")
    from matplotlib import pyplot as plt

    names = models(content)
    with mpl.rc_context(_settings()):
        figure, axes = plt.subplots(
            1, len(names), figsize=(4.6 * len(names), 4.2), layout="constrained", squeeze=False
        )
        for axis, model in zip(axes.flat, names, strict=True):
            _panel(axis, first_rows(content, model), lambda r: 100 * float(r["flops_share"]))
            axis.set_title(f"{model}, cut before block 1 of stage 0")
            axis.set_xlabel("FLOPs, % of the dense model")
            axis.set_ylabel("top-1, %")
        _save(figure, axes, target, note)
        plt.close(figure)


def draw_latency(content: Content, target: Path, note: str) -> None:
    """Top-1 against the measured time of a batch, a row of panels a batch size."""
    import matplotlib as mpl  # only where a plot is drawn: checks go without

    mpl.use("svg")
    from matplotlib import pyplot as plt

    timed = {
        (r["model"], r["batch"], r["method"], r["where"], r["keep"]): float(r["ms"])
        for r in (*content["latency"], *content["latency_baselines"])
    }
    names, batches = models(content), (1, 64)
    with mpl.rc_context(_settings()):
        figure, axes = plt.subplots(
            len(batches), len(names), figsize=(4.6 * len(names), 3.6 * len(batches)),
            layout="constrained", squeeze=False,
        )  # fmt: skip
        for line, batch in zip(axes, batches, strict=True):
            for axis, model in zip(line, names, strict=True):

                def time_of(r: Row, model: str = model, batch: int = batch) -> float | None:
                    return timed.get((model, batch, r["method"], r["where"], r["keep"]))

                _panel(axis, first_rows(content, model), time_of)
                axis.set_title(f"{model}, batch {batch}")
                axis.set_xlabel(f"ms a batch of {batch}, {content['environment']['device']}, FP16")
                axis.set_ylabel("top-1, %")
                if not timed:
                    axis.text(0.5, 0.5, "not run", ha="center", transform=axis.transAxes)
        _save(figure, axes, target, note)
        plt.close(figure)


PLOTS: tuple[tuple[str, Callable[[Content, Path, str], None]], ...] = (
    ("docs/figures/storm_flops.svg", draw_flops),
    ("docs/figures/storm_latency.svg", draw_latency),
)
"""File, and what draws it."""
